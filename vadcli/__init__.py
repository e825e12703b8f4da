"""vadcli finds anomalies in video archives: per-frame scores, events and masks from the command line."""

__version__ = "0.1.0"
