"""Reports which scans are running in an output folder, and the result of the newest run.

The data come from the run records (the lists of videos are not read) and from the files in which running scans store
their progress.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
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
from vadcli.store.run_log import LAST_VIDEOS, StoredRun, eta_s, read_live, read_run, result_lines, result_of
from vadcli.types.text import document_errors, no_folder, unreadable

SILENT_S = 120.0
"""A scan on another machine counts as dead if it has not written its progress for this many seconds."""
RECENT_RUNS = 64  # only this many of the newest run records are read
SHARE_OF_TIME = 0.008
"""Largest share of a core that `watch_status` may use. If reading the run records takes long, it reads them less often."""


class RunState(StrEnum):
    """The state of a run: it is running, it has ended, or its process died before the end."""

    RUNNING = "running"
    ENDED = "ended"
    DIED = "died"


@dataclass(frozen=True)
class RunStatus:
    """The progress of a run.

    Attributes:
        run: the run record.
        state: running, ended or died.
        seconds: duration of the run so far. If the run died, the time from the start to the last report.
        eta_s: estimated seconds until the end; None if this is not yet known or if the run has ended.
        last_videos: the most recently finished videos that have events; None if they must be read from the run record.
    """

    run: StoredRun
    state: RunState
    seconds: float
    eta_s: float | None
    last_videos: tuple[str, ...] | None = None

    @classmethod
    def of(cls, run: StoredRun, now: datetime, live: Mapping[str, Any] | None = None) -> RunStatus:
        """Return the status at the time `now`. `live` has the progress that a running scan has stored, if there is any."""
        if live is not None and run.end is None:
            run = replace(run, totals=live["totals"], progress=live["progress"])
            return replace(cls.of(run, now), last_videos=tuple(live["last_videos"]))
        if run.end is not None:
            return cls(run, RunState.ENDED, (run.end - run.start).total_seconds(), None)
        progress = run.progress or {}
        updated = datetime.fromisoformat(progress["updated"]) if progress else run.start
        alive = _is_alive(run, now, updated)
        seconds = max(0.0, ((now if alive else updated) - run.start).total_seconds())
        return cls(run, RunState.RUNNING if alive else RunState.DIED, seconds, eta_s(seconds, progress) if alive else None)

    @property
    def frames(self) -> int:
        """Number of frames scored so far."""
        return int((self.run.progress or {}).get("frames", self.run.totals["decoded_frames"]))

    @property
    def finished(self) -> int:
        """Number of videos that are done, partial, failed or skipped."""
        totals = self.run.totals
        return int(totals["videos"] - totals["running"] - totals.get("unfinished", 0))

    @property
    def planned(self) -> int:
        """Number of videos in the whole run; the number of finished videos if an older version wrote the record."""
        return max(self.finished, int((self.run.progress or {}).get("planned_videos", 0)))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `vadcli status --json` prints."""
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
            "unfinished": self.run.totals.get("unfinished", 0),  # absent in old run records
            "frames": self.frames,
            "frames_per_s": round(self.frames / spent, 1),
            "times_real_time": round(progress["footage_s"] / spent, 2) if progress else None,
            "running": list(progress.get("running", [])) if self.state is RunState.RUNNING else [],
            "fitting": progress.get("fitting") if self.state is RunState.RUNNING else None,
            "nodes": dict(progress.get("nodes") or {}),
        }


def read_status(layout: OutputLayout, *, now: datetime | None = None) -> list[RunStatus]:
    """Return the recent runs that are still running, the oldest first, followed by the newest run.

    The newest run is returned even if it has ended.

    Raises:
        UsageError: the folder does not exist, or has no run record.
        DocumentError: the newest record can't be read.
    """
    if not layout.out.is_dir():
        raise UsageError(f"{layout.out}: {no_folder(layout.out)}", hint="name the output folder of a scan")
    paths = sorted(layout.iter_runs())[-RECENT_RUNS:]
    if not paths:
        raise UsageError(f"{layout.out}: has no run record, so no scan has run here", hint="name the output folder of a scan")
    moment = now or datetime.now(UTC)
    live = read_live(layout)
    newest = RunStatus.of(_head(paths[-1]), moment, live.get(paths[-1].name))
    running = []
    for path in paths[:-1]:
        with suppress(DocumentError):
            status = RunStatus.of(_head(path), moment, live.get(path.name))
            running.extend([status] if status.state is RunState.RUNNING else [])
    return [*running, newest]


def watch_status(
    layout: OutputLayout, *, every_s: float, once: bool = False
) -> Iterator[tuple[list[RunStatus], list[dict[str, Any]]]]:
    """Yield what `read_status` and `last_events` return, every `every_s` seconds until no scan is running.

    With `once`, the result is yielded only once. Raises the same errors as `read_status`.
    """
    while True:
        began = time.process_time()
        runs = read_status(layout)
        yield runs, last_events(layout, runs[-1])
        if once or all(run.state is not RunState.RUNNING for run in runs):
            return
        time.sleep(max(every_s, (time.process_time() - began) / SHARE_OF_TIME))


def last_events(layout: OutputLayout, status: RunStatus) -> list[dict[str, Any]]:
    """Return the events of the videos that finished last, as JSON objects with the path of the video."""
    videos = status.last_videos
    if videos is None:
        path = status.run.path
        lines = deque((line for line in result_lines(path) if b'"events": 0,' not in line), LAST_VIDEOS)
        with document_errors(path, "a run record"):
            videos = tuple(result.video for result in map(result_of, lines) if result.events)
    events: list[dict[str, Any]] = []
    for video in videos:
        try:
            document = read_events(layout.events(video))
        except DocumentError:
            continue
        events += [{"video": video, **event.to_json()} for event in document.events]
    return events[-LAST_VIDEOS:]


def _head(path: Path) -> StoredRun:
    """Return a run record without the list of videos. The file is read again only if it has changed."""
    try:
        stored = path.stat()
    except OSError as error:
        raise DocumentError(unreadable(path, error)) from error
    return _read_head(path, stored.st_mtime_ns, stored.st_size, stored.st_ino)


@lru_cache(maxsize=2 * RECENT_RUNS)
def _read_head(path: Path, *version: int) -> StoredRun:
    return read_run(path, head=True)


def _is_alive(run: StoredRun, now: datetime, updated: datetime) -> bool:
    progress = run.progress
    if progress is None or progress["host"] != socket.gethostname():
        return (now - updated).total_seconds() < SILENT_S
    try:
        # The system may give the id of a dead process to a new process. The new process started later than the run.
        return bool(psutil.Process(progress["pid"]).create_time() <= run.start.timestamp() + 1)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
