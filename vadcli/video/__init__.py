"""Reads videos: what a file holds (`probe`), its frames (`reader`), and its clips from child processes (`loader`).

Imports only types, options and errors of vadcli. Nothing here scores a frame, writes outputs or knows a detector.
"""
