"""Video in: what a file holds (probe), its frames (decode), and batches of clips from child processes (loader).

Level 1: imports types and errors only. Nothing here scores, writes outputs or knows a detector.
"""
