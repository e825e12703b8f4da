"""What is running in an output folder and how the newest run went: the heads of the records, and what running scans say."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from vadcli.errors import DocumentError, UsageError
from vadcli.store import OutputLayout
from vadcli.store.events import read_events
from vadcli.store.progress import read_live
from vadcli.store.run_record import LAST_VIDEOS, StoredRun, read_run

SILENT_S = 120.0
"""A process on another machine that has not written its record for so long is taken for dead."""
RECENT_RUNS = 64


class RunState(StrEnum):
    """Whether a run goes on."""

    RUNNING = "running"
    ENDED = "ended"
    DIED = "died"


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
        run: its record.
        state: died where its process is gone without having ended the record.
        seconds: from its start to its end, or to its last sign of life.
        eta_s: seconds to go; None where that can't be told yet, or the run is over.
        last_videos: those with events that were over last; None where only the whole record tells.
    """

    run: StoredRun
    state: RunState
    seconds: float
    eta_s: float | None
    last_videos: tuple[str, ...] | None = None

    @classmethod
    def of(cls, run: StoredRun, now: datetime, said: Mapping[str, Any] | None = None) -> RunStatus:
        """A run's status at a moment, from its record and what it says while it runs."""
        if said is not None and run.end is None:
            run = replace(run, totals=said["totals"], progress=said["progress"])
            return replace(cls.of(run, now), last_videos=tuple(said["last_videos"]))
        if run.end is not None:
            return cls(run, RunState.ENDED, (run.end - run.start).total_seconds(), None)
        progress = run.progress or {}
        updated = datetime.fromisoformat(progress["updated"]) if progress else run.start
        lives = _lives(run, now, updated)
        seconds = max(0.0, ((now if lives else updated) - run.start).total_seconds())
        worked = progress.get("worked_bytes", 0)
        left = progress.get("planned_bytes", 0) - progress.get("done_bytes", 0)
        eta_s = max(0.0, seconds * left / worked) if lives and worked > 0 else None
        return cls(run, RunState.RUNNING if lives else RunState.DIED, seconds, eta_s)

    @property
    def frames(self) -> int:
        """Rows scored so far."""
        return int((self.run.progress or {}).get("frames", self.run.totals["decoded_frames"]))

    @property
    def over(self) -> int:
        """Videos that are done, partial, failed or left out."""
        return int(self.run.totals["videos"] - self.run.totals["running"])

    @property
    def planned(self) -> int:
        """Videos that the run is to look at; those that are over, where the record doesn't say."""
        return max(self.over, int((self.run.progress or {}).get("planned_videos", 0)))

    def to_json(self) -> dict[str, Any]:
        """As `vadcli status --json` writes it."""
        progress = self.run.progress or {}
        spent = max(1e-6, self.seconds)
        return {
            "type": "run",
            "run": self.run.path.name,
            "state": str(self.state),
            "start": self.run.start.isoformat(),
            "end": self.run.end.isoformat() if self.run.end else None,
            "exit_code": self.run.exit_code,
            "seconds": round(self.seconds, 1),
            "eta_s": None if self.eta_s is None else round(self.eta_s, 1),
            "planned_videos": self.planned,
            **{name: self.run.totals[name] for name in ("done", "partial", "failed", "skipped", "events")},
            "frames": self.frames,
            "frames_per_s": round(self.frames / spent, 1),
            "times_real_time": round(progress["footage_s"] / spent, 2) if progress else None,
            "running": list(progress.get("running", [])) if self.state is RunState.RUNNING else [],
            "fitting": progress.get("fitting") if self.state is RunState.RUNNING else None,
        }


def read_status(layout: OutputLayout, *, now: datetime | None = None) -> list[RunStatus]:
    """The newest run, and every other recent one that goes on; oldest first.

    Raises:
        UsageError: no run has left a record.
        DocumentError: the newest record can't be read.
    """
    paths = sorted(layout.iter_runs())[-RECENT_RUNS:]
    if not paths:
        raise UsageError(f"{layout.out}: no scan has left a record here", hint="name the --out folder of a scan")
    moment = now or datetime.now(UTC)
    said = read_live(layout)
    newest = RunStatus.of(_head(paths[-1]), moment, said.get(paths[-1].name))
    return [*(one for one in _others(paths[:-1], moment, said) if one.state is RunState.RUNNING), newest]


def last_events(layout: OutputLayout, status: RunStatus) -> list[dict[str, Any]]:
    """The events of the videos that were over last, as JSON values, each with its video."""
    found = status.last_videos
    if found is None:
        found = tuple(result.video for result in read_run(status.run.path).files if result.events)[-LAST_VIDEOS:]
    told = []
    for video in found:
        try:
            document = read_events(layout.events(video))
        except DocumentError:
            continue
        told += [{"video": video, **event.to_json()} for event in document.events]
    return told[-LAST_VIDEOS:]


def _others(paths: list[Path], now: datetime, said: Mapping[str, Mapping[str, Any]]) -> Iterator[RunStatus]:
    for path in paths:
        try:
            yield RunStatus.of(_head(path), now, said.get(path.name))
        except DocumentError:
            continue


def _head(path: Path) -> StoredRun:
    """A record without its files, read again only when it was rewritten."""
    try:
        stored = path.stat()
    except OSError as error:
        raise DocumentError(f"{path}: can't be read: {error.strerror or error}") from error
    return _read_head(path, stored.st_mtime_ns, stored.st_size, stored.st_ino)


@lru_cache(maxsize=2 * RECENT_RUNS)
def _read_head(path: Path, *version: int) -> StoredRun:
    return read_run(path, head=True)


def _lives(run: StoredRun, now: datetime, updated: datetime) -> bool:
    progress = run.progress
    if progress is None or progress["host"] != socket.gethostname():
        return (now - updated).total_seconds() < SILENT_S
    try:
        # A process that began after the run has only got its number.
        return bool(psutil.Process(progress["pid"]).create_time() <= run.start.timestamp() + 1)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
