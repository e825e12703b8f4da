"""Counts how far a run has come, in bytes of input, and estimates how long it will still take."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

LEAST_SCORED_S = 1.0
"""The remaining time is estimated only after a run has scored videos for this many seconds."""


class _Phase(StrEnum):
    """What a run is doing. Time spent on starting and fitting is counted apart: it says nothing about the speed of scoring."""

    START = "start"
    FIT = "fit"
    SCORE = "score"


def eta_s(seconds: float, progress: Mapping[str, Any]) -> float | None:
    """Return the estimated seconds until a run ends; None if it is not known yet.

    Args:
        seconds: the time since the start of the run.
        progress: what `RunProgress.to_json` returned, in this or an earlier version.
    """
    worked = progress.get("worked_bytes", 0)
    if worked <= 0:
        return None
    scored_s = max(0.0, seconds - progress.get("setup_s", 0.0))
    left = max(0, progress["planned_bytes"] - progress["done_bytes"])
    return float(scored_s * left / worked + progress.get("setup_left_s", 0.0))


class RunProgress:
    """Counts how far a run has come, for its record, its progress bar and `vadcli status`.

    Progress is measured in bytes of input, because the length of a video is not known before it is opened.

    Args:
        sizes: video -> size in bytes, for every video of the run.
        cameras: video -> camera; empty if cameras are not counted.

    Attributes:
        planned: number of videos in the run.
        total: size of these videos in bytes.
        finished: number of finished videos, with any status.
        frames, footage_s: rows and seconds of video scored in this run.
        worked: bytes of input that were read in this run.
        done: size of the finished videos in bytes, plus the bytes read so far from videos that are being scanned.
    """

    def __init__(self, sizes: Mapping[str, int], cameras: Mapping[str, str] | None = None) -> None:
        self._sizes = sizes
        self._camera_of = cameras or {}
        self._cameras_left = set(self._camera_of.values())
        self._cameras = len(self._cameras_left)
        self._spent_s = dict.fromkeys(_Phase, 0.0)
        self._phase, self._since = _Phase.START, time.monotonic()
        self.planned = len(sizes)
        self.total = sum(sizes.values())
        self.finished = self.frames = 0
        self.footage_s = self.worked = self.done = 0.0
        self._running: dict[str, tuple[int, float]] = {}
        self._fitting: dict[str, Any] | None = None
        self._nodes: Counter[str] = Counter()

    def advance(self, video: str, *, frames: int, video_s: float, size: float) -> None:
        """Add work that was done on a video: rows, seconds of video, and bytes of input."""
        self._fitting = None
        self._enter(_Phase.SCORE)
        self._cameras_left.discard(self._camera_of.get(video, ""))
        before_frames, before = self._running.get(video, (0, 0.0))
        self._running[video] = (before_frames + frames, before + size)
        self.frames += frames
        self.footage_s += video_s
        self.worked += size
        self.done += size

    def fit(self, camera: str, *, frames: int) -> None:
        """Count frames that were read to fit a camera model. The count is removed when the scoring of a video starts."""
        self._enter(_Phase.FIT)
        self._cameras_left.discard(camera)
        before = self._fitting["frames"] if self._fitting and self._fitting["camera"] == camera else 0
        self._fitting = {"camera": camera, "frames": before + frames}

    def finish(self, video: str, node: str = "") -> None:
        """Count a video as finished, with any status. `node` is the machine of a cluster that worked on it."""
        self.finished += 1
        self._nodes.update([node] if node else [])
        self._cameras_left.discard(self._camera_of.get(video, ""))
        _, counted = self._running.pop(video, (0, 0.0))
        self.done += self._sizes.get(video, 0) - counted

    @property
    def fitting(self) -> Mapping[str, Any] | None:
        """The camera that is being fitted and the frames that were read for it; None if no camera is being fitted."""
        return self._fitting

    def eta_s(self) -> float | None:
        """Return the estimated seconds until the end; None if it is not known yet."""
        known = self._spent(_Phase.SCORE) >= LEAST_SCORED_S
        return eta_s(sum(map(self._spent, _Phase)), self.to_json()) if known else None

    def _enter(self, phase: _Phase) -> None:
        if phase is not self._phase:
            self._spent_s[self._phase] = self._spent(self._phase)
            self._phase, self._since = phase, time.monotonic()

    def _spent(self, phase: _Phase) -> float:
        return self._spent_s[phase] + (time.monotonic() - self._since if phase is self._phase else 0.0)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON values that the record stores."""
        fit_s, left = self._spent(_Phase.FIT), len(self._cameras_left)
        nodes = {"nodes": dict(sorted(self._nodes.items()))} if self._nodes else {}
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
            "setup_s": round(self._spent(_Phase.START) + fit_s, 3),
            "setup_left_s": round(fit_s * left / (self._cameras - left), 3) if left < self._cameras else 0.0,
        } | nodes
