"""How far a run has come, kept up with every piece of work and written into its record."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


class RunProgress:
    """Counts a run's work. Shares of it are counted in bytes of input, since a file's length is not known before it is opened.

    Args:
        sizes: bytes of every video that the run is to look at.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        self._total = sum(sizes.values())
        self._frames = 0
        self._footage_s = self._worked = self._done = 0.0
        self._running: dict[str, tuple[int, float]] = {}

    def advance(self, video: str, *, frames: int, video_s: float, size: float) -> None:
        """Count work on a video: rows, seconds of footage, bytes of input."""
        before_frames, before = self._running.get(video, (0, 0.0))
        self._running[video] = (before_frames + frames, before + size)
        self._frames += frames
        self._footage_s += video_s
        self._worked += size
        self._done += size

    def finish(self, video: str) -> None:
        """Count a video as over, whatever became of it."""
        _, counted = self._running.pop(video, (0, 0.0))
        self._done += self._sizes.get(video, 0) - counted

    def to_json(self) -> dict[str, Any]:
        """As it stands in the record."""
        return {
            "updated": datetime.now(UTC).isoformat(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "planned_videos": len(self._sizes),
            "planned_bytes": self._total,
            "done_bytes": round(self._done),
            "worked_bytes": round(self._worked),
            "frames": self._frames,
            "footage_s": round(self._footage_s, 3),
            "running": [{"video": video, "frames": frames} for video, (frames, _) in self._running.items()],
        }
