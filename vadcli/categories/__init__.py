"""Category lists for `--categories @NAME`, one category a line, # starts a comment."""
