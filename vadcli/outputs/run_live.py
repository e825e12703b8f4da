"""What a running scan says every second: a small file among its temporaries, however long its record is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from vadcli.outputs.atomic import Scratch, writing
from vadcli.outputs.layout import OutputLayout, printable

_NAME = "live.json"
_PARTS = ("totals", "progress", "last_videos")


def write_live(scratch: Scratch, document: Mapping[str, Any]) -> None:
    """Replace what this process says; not synced, since it is gone with the process.

    Args:
        scratch: the process's temporaries.
        document: `run`, the name of its record; `totals`, `progress` and `last_videos` as they are now.

    Raises:
        OutputError: it can't be written.
    """
    path = scratch.folder / _NAME
    temporary = path.with_suffix(".new")
    with writing(path):
        temporary.write_text(printable(json.dumps(document, ensure_ascii=False, allow_nan=False)), encoding="utf-8")
        os.replace(temporary, path)


def read_live(layout: OutputLayout) -> dict[str, dict[str, Any]]:
    """What the running scans of an output folder say, by the names of their records; what is damaged is left out."""
    said = {}
    for path in layout.scratch.glob(f"*/{_NAME}"):
        # A run may end, and its temporaries vanish, between the listing and the reading.
        with suppress(OSError, ValueError, KeyError, TypeError):
            document = json.loads(path.read_bytes())
            said[str(document["run"])] = {part: document[part] for part in _PARTS}
    return said
