"""The scan: which videos, in what order, through which detector, into which files."""
