"""What a scan leaves behind, one format a file: docs/output-format.md is the contract as users read it.

`layout` knows every path, `atomic` writes whole files or none, `locks` tells living processes from dead ones. A running video
is a `checkpoint`; a finished one is `scores`, `event_json`, `mask_video` and `mask_rle`; a camera is `camera_model`; a run is
`run_record`, what it says meanwhile is `run_live`. `exporters` turn events into the files of other tools. Nothing here knows
a detector, a decoder or the scan engine.
"""

from __future__ import annotations
