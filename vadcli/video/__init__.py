"""Reads videos: `probe` describes a file, `reader` reads its frames, `loader` its clips.

This package imports only the types, options and errors of vadcli. It scores no frames, writes no outputs and knows no detector.
"""
