"""What a running scan says every second: a small file among its temporaries, however long its record is.

How far a run has come, kept up with every piece of work; told by its record, its bar and `vadcli status`.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from vadcli.store import OutputLayout, printable
from vadcli.store.atomic import Scratch, writing

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


class RunProgress:
    """Counts a run's work. Shares of it are counted in bytes of input, since a file's length is not known before it is opened.

    Args:
        sizes: bytes of every video that the run is to look at.

    Attributes:
        planned: how many videos these are.
        total: their bytes.
        finished: videos that are over, whatever became of them.
        frames, footage_s: rows and seconds of footage scored.
        worked: bytes read in this run.
        done: bytes of videos that are over, and of the parts of those running.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        self.planned = len(sizes)
        self.total = sum(sizes.values())
        self.finished = self.frames = 0
        self.footage_s = self.worked = self.done = 0.0
        self._running: dict[str, tuple[int, float]] = {}
        self._fitting: dict[str, Any] | None = None

    def advance(self, video: str, *, frames: int, video_s: float, size: float) -> None:
        """Count work on a video: rows, seconds of footage, bytes of input."""
        self._fitting = None
        before_frames, before = self._running.get(video, (0, 0.0))
        self._running[video] = (before_frames + frames, before + size)
        self.frames += frames
        self.footage_s += video_s
        self.worked += size
        self.done += size

    def fit(self, camera: str, *, frames: int) -> None:
        """Count frames read to fit a camera to, until the first of its videos is worked on."""
        before = self._fitting["frames"] if self._fitting and self._fitting["camera"] == camera else 0
        self._fitting = {"camera": camera, "frames": before + frames}

    def finish(self, video: str) -> None:
        """Count a video as over, whatever became of it."""
        self.finished += 1
        _, counted = self._running.pop(video, (0, 0.0))
        self.done += self._sizes.get(video, 0) - counted

    def to_json(self) -> dict[str, Any]:
        """As it stands in the record."""
        return {
            "updated": datetime.now(UTC).isoformat(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "planned_videos": self.planned,
            "planned_bytes": self.total,
            "done_bytes": round(self.done),
            "worked_bytes": round(self.worked),
            "frames": self.frames,
            "footage_s": round(self.footage_s, 3),
            "running": [{"video": video, "frames": frames} for video, (frames, _) in self._running.items()],
            "fitting": self._fitting,
        }
