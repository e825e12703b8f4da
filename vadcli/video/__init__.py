"""Reads videos: `probe` describes a file, `reader` reads its frames, `loader` its clips.

Imports only types, options and errors of vadcli. Nothing here scores a frame, writes outputs or knows a detector.
"""
