"""Counts how far a run has come, writes its run record and its live file, and reads them.

The run record, `runs/<start>.json`, has the result of each video; `run.json` is a copy of the newest record. A record may have
a million results, so there is a function that reads them one at a time (`result_lines`). A long record is not written often.
So a running scan also writes a short live file every second, in its folder for temporary files. `vadcli status` reads the live
file.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

from vadcli.errors import DocumentError
from vadcli.store import OutputLayout, printable
from vadcli.store.atomic import Scratch, write_unsynced, writing
from vadcli.types import NOT_FINISHED, Status, VideoResult
from vadcli.types.text import document_errors, read_document, structure, unreadable

RUN_FORMAT_VERSION = 1
_FILES_BEGIN = b'\n  "files": ['
_HEAD_BYTES = 16384
_WHAT = "a run record"


@dataclass(frozen=True)
class RunInfo:
    """The facts about a run that are known when it starts.

    Attributes:
        version: the version of vadcli.
        command: the command line.
        config: the effective options, as JSON values.
        detector: the detector's name and fingerprint, as JSON values.
        weights: the SHA-256 of each of the detector's weights, by name; empty if the detector has no weights.
        roots: the absolute paths that the user gave.
        root: the folder that contains all `roots`. Relative paths start there.
        shard: the shard, such as "1/4"; None if the run is not sharded.
        passed_over: for each unknown suffix, the number of files that were not scanned because they have this suffix.
        looked_for: the categories that the detector looks for; empty if the detector uses no categories, None in older records.
        caveats: the detector's sentences that say why its scores deserve less trust than usual.
    """

    version: str
    command: tuple[str, ...]
    config: Mapping[str, Any]
    detector: Mapping[str, Any]
    weights: Mapping[str, str] = field(default_factory=dict)
    roots: tuple[str, ...] = ()
    root: str = ""
    shard: str | None = None
    passed_over: Mapping[str, int] = field(default_factory=dict)
    looked_for: tuple[str, ...] | None = None
    caveats: tuple[str, ...] = ()


LAST_VIDEOS = 5
"""The live file names the newest finished videos that have events: at most this many."""
_WRITE_EVERY_S = 1.0
_SHARE_OF_TIME = 0.02  # writing the record takes at most this share of a run's time, so a long record is written less often
MOST_SKIPPED = 10_000
"""If a run skips more videos than this because they are done, its record counts them and does not list them."""
_LIVE_NAME = "live.json"
_LIVE_PARTS = ("totals", "progress", "last_videos")
_LEAST_SCORED_S = 1.0  # the remaining time is estimated only after a run has scored videos for this long


class _Phase(StrEnum):
    """The current work of a run. The time of starting and fitting does not count for the speed of scoring."""

    START = "start"
    FIT = "fit"
    SCORE = "score"


def eta_s(seconds: float, progress: Mapping[str, Any]) -> float | None:
    """Return the estimated seconds until a run ends; None if it is not known yet.

    Args:
        seconds: the time since the start of the run.
        progress: the JSON that `RunProgress.to_json` returned, in this or an earlier version.
    """
    worked = progress.get("worked_bytes", 0)
    if worked <= 0:
        return None
    scored_s = max(0.0, seconds - progress.get("setup_s", 0.0))
    left = max(0, progress["planned_bytes"] - progress["done_bytes"])
    return float(scored_s * left / worked + progress.get("setup_left_s", 0.0))


class RunProgress:
    """Counts how far a run has come, for its record, its progress bar and `vadcli status`.

    The measure is bytes of input, because the length of a video is not known before it is opened.

    Args:
        sizes: the size in bytes of every video of the run; the keys are the videos' paths.
        cameras: the camera of every video of the run; empty if cameras are not counted.

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
        """Count frames that were read to fit a camera model.

        The count is removed when the scoring of a video starts.
        """
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

    def leave(self, video: str) -> None:
        """Remove an unfinished video from the videos in progress, because the run was stopped."""
        self._running.pop(video, None)

    @property
    def fitting(self) -> Mapping[str, Any] | None:
        """The camera that is being fitted, and how many frames were read for it; None if there is no fit."""
        return self._fitting

    def eta_s(self) -> float | None:
        """Return the estimated seconds until the end; None if it is not known yet."""
        known = self._spent(_Phase.SCORE) >= _LEAST_SCORED_S
        return eta_s(sum(map(self._spent, _Phase)), self.to_json()) if known else None

    def _enter(self, phase: _Phase) -> None:
        if phase is not self._phase:
            self._spent_s[self._phase] = self._spent(self._phase)
            self._phase, self._since = phase, time.monotonic()

    def _spent(self, phase: _Phase) -> float:
        return self._spent_s[phase] + (time.monotonic() - self._since if phase is self._phase else 0.0)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that the record stores."""
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


class _Totals:
    """Sums over the results of a run, updated with each result."""

    def __init__(self) -> None:
        self._statuses = dict.fromkeys(map(str, Status), 0)
        self._sums = {"expected_frames": 0, "decoded_frames": 0, "events": 0, "new_events": 0}
        self._lost = 0
        self._seconds = 0.0

    def count(self, result: VideoResult, sign: int) -> None:
        """Add the numbers of a result (sign 1), or subtract them (sign -1)."""
        self._lost += sign * result.is_lost
        self._statuses[result.status] += sign
        for name in self._sums:
            self._sums[name] += sign * getattr(result, name)
        self._seconds += sign * round(result.seconds, 3)  # rounded as in the record, where earlier results are read again

    def to_json(self) -> dict[str, Any]:
        """Return the totals as the run record stores them."""
        return {
            "videos": sum(self._statuses.values()),
            **self._statuses,
            "lost": self._lost,
            **self._sums,
            "seconds": round(self._seconds, 3),
        }


class RunRecord:
    """Writes the run record, runs/<start>[-shard].json, and its copy run.json.

    If progress is counted, it also writes the live file, which `vadcli status` reads.

    Use it as a context manager. If an error ends the `with` block, the record gets the error's exit code, or 1 if the error has
    no exit code. The results are kept in a temporary file, so memory hardly grows with the number of videos. The record is
    rewritten every few seconds. A reader always finds a complete record.

    Args:
        layout: the output folder.
        scratch: the folder for temporary files.
        info: the facts that are known at the start.
        progress: counts how far the run has come; None if this is not counted.
        write_every_s: `add` rewrites the record at most once per this many seconds.
    """

    def __init__(
        self,
        layout: OutputLayout,
        scratch: Scratch,
        info: RunInfo,
        *,
        progress: RunProgress | None = None,
        write_every_s: float = _WRITE_EVERY_S,
    ) -> None:
        self.info = info
        self.progress = progress
        self.start = datetime.now(UTC)
        self._layout = layout
        self._scratch = scratch
        self._results = _Results(scratch.folder / "results")
        self._totals = _Totals()
        self._write_every_s = write_every_s
        self._due = self._live_due = 0.0
        self._last_videos: deque[str] = deque(maxlen=LAST_VIDEOS)
        self._closed = False
        suffix = f"-{info.shard.replace('/', 'of')}" if info.shard else ""
        while (path := layout.runs / f"{self.start:%Y%m%dT%H%M%S.%fZ}{suffix}.json").exists():
            self.start += timedelta(microseconds=1)  # another run started in the same microsecond
        self.path = path
        self._write(end=None, exit_code=None)

    def add(self, result: VideoResult) -> None:
        """Add the result of a video in place of its earlier result, if any. Rewrite the record if that is due.

        Raises:
            OutputError: the record can't be written.
        """
        before = self._results.put(result)
        if before is not None:
            self._totals.count(before, -1)
        self._totals.count(result, 1)
        if result.events:
            self._last_videos.append(result.video)
        if self.progress is not None and result.status is Status.UNFINISHED:
            self.progress.leave(result.video)
        elif self.progress is not None:
            self.progress.finish(result.video, result.node)
        self.flush()

    def flush(self, *, force: bool = False) -> None:
        """Rewrite the record and the live file if they are due; with `force`, rewrite both now."""
        now = time.monotonic()
        if force or now >= self._live_due:
            self.write_live()
        if force or now >= self._due:
            self._write(end=None, exit_code=None)

    def write_live(self) -> None:
        """Write the current state of the run to the live file. Do nothing if progress is not counted.

        Raises:
            OutputError: the live file can't be written.
        """
        if self.progress is None:
            return
        live = {
            "run": self.path.name,
            "totals": self._totals.to_json(),
            "progress": self.progress.to_json(),
            "last_videos": list(self._last_videos),
        }
        path = self._scratch.folder / _LIVE_NAME
        # No fsync is needed: the file has no use after this process has ended.
        write_unsynced(path, printable(json.dumps(live, ensure_ascii=False, allow_nan=False)))
        self._live_due = time.monotonic() + self._write_every_s

    def close(self, exit_code: int) -> None:
        """Write how the run ended. Calling this method again does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._write(end=datetime.now(UTC), exit_code=exit_code)
        finally:
            self._results.close()

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        fatal = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
        self.close(0 if error is None else fatal)

    def _write(self, *, end: datetime | None, exit_code: int | None) -> None:
        began = time.monotonic()
        unlisted = {"unlisted": self._results.unlisted_count} if self._results.unlisted_count else {}
        head = {
            "format_version": RUN_FORMAT_VERSION,
            **{name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(self.info).items()},
            "start": self.start.isoformat(),
            "end": end.isoformat() if end else None,
            "exit_code": exit_code,
            "totals": self._totals.to_json() | unlisted,
            "progress": self.progress.to_json() if self.progress else None,
        }
        text = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}") + ","
        with self._scratch.replace(self.path) as temporary, temporary.open("wb") as file:
            file.write(printable(text).encode() + _FILES_BEGIN)
            beginning = b"\n    "
            for line in self._results.listed():
                file.write(beginning + line)
                beginning = b",\n    "
            file.write(b"]\n}\n" if beginning == b"\n    " else b"\n  ]\n}\n")
        if max(self._layout.iter_runs()) == self.path:
            with self._scratch.replace(self._layout.run_json) as temporary:
                shutil.copyfile(self.path, temporary)
        now = time.monotonic()
        self._due = now + max(self._write_every_s, (now - began) / _SHARE_OF_TIME)


class _Results:
    """The results of a run, as lines of JSON in a temporary file.

    A new result of a video replaces the earlier result of this video.

    The first character of each line is a mark:

    - space: a later result has replaced this result.
    - "-": the video was skipped because it is done.
    - "+": any other result.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._path, self._size = path, 0
        self._begins: dict[str, int] = {}
        self._skipped = 0

    @property
    def unlisted_count(self) -> int:
        """The number of results that `listed` leaves out."""
        return self._skipped if self._skipped > MOST_SKIPPED else 0

    def put(self, result: VideoResult) -> VideoResult | None:
        """Add a result; return the earlier result of the same video, or None."""
        before = None
        begin = self._begins.pop(result.video, None)
        if begin is not None:
            with writing(self._path):
                self._file.flush()
                with self._path.open("r+b") as file:
                    file.seek(begin)
                    old = file.readline()
                    file.seek(begin)
                    file.write(b" ")
            # The numbers of a million results would need 300 MB of memory. Few videos get a second result, so this is rare.
            before = result_of(old[1:])
            self._skipped -= old.startswith(b"-")
        text = printable(json.dumps(result.to_json(), ensure_ascii=False, allow_nan=False))
        is_skipped = result.status is Status.SKIPPED and result.reason == "done"
        line = f"{'-' if is_skipped else '+'}{text}\n".encode()
        with writing(self._path):
            self._file.write(line)
        self._begins[result.video] = self._size
        self._size += len(line)
        self._skipped += is_skipped
        return before

    def listed(self) -> Iterator[bytes]:
        """Yield the results as JSON in the order in which they were added.

        If more than `MOST_SKIPPED` videos were skipped because they are done, their results are left out.
        """
        with writing(self._path):
            self._file.flush()
        hidden = b" -" if self.unlisted_count else b" "
        with self._path.open("rb") as file:
            yield from (line[1:-1] for line in file if line[:1] not in hidden)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._file.close()


def read_live(layout: OutputLayout) -> dict[str, dict[str, Any]]:
    """Return the content of the live file of each running scan; the keys are the names of the run records."""
    live = {}
    for path in layout.scratch.glob(f"*/{_LIVE_NAME}"):
        # If a run ends after the folder was listed, its live file is gone.
        with suppress(OSError, ValueError, KeyError, TypeError):
            document = json.loads(path.read_bytes())
            live[str(document["run"])] = {part: document[part] for part in _LIVE_PARTS}
    return live


@dataclass(frozen=True)
class StoredRun:
    """A run record that was read from its file.

    Attributes:
        path: the file.
        info: the facts that were known at the start.
        start: when the run started.
        end: when the run ended; None if the run has not ended or was killed.
        exit_code: the exit code; None if `end` is None.
        totals: number of videos by status; sums of frames, seconds and events.
        files: the result of each video; empty if `read_run` left them out.
        progress: how far the run has come, as `RunProgress.to_json` writes it; None in records of older versions.
    """

    path: Path
    info: RunInfo
    start: datetime
    end: datetime | None
    exit_code: int | None
    totals: Mapping[str, Any]
    files: tuple[VideoResult, ...]
    progress: Mapping[str, Any] | None = None


def read_run(path: Path, *, head: bool = False) -> StoredRun:
    """Return a run record. If `head` is true, the list of files, which may be long, is left out.

    Raises:
        DocumentError: the file is missing or damaged, or is not a run record of this version.
    """
    document = read_document(path, version=RUN_FORMAT_VERSION, what=_WHAT, read=_head if head else Path.read_bytes)
    with document_errors(path, _WHAT):
        info = structure(RunInfo, document, extra=True)
        end = document["end"]
        return StoredRun(
            path=path,
            info=info,
            start=datetime.fromisoformat(document["start"]),
            end=datetime.fromisoformat(end) if end else None,
            exit_code=document["exit_code"],
            totals=document["totals"],
            files=tuple(_result(entry) for entry in document["files"]),
            progress=document.get("progress"),
        )


def _head(path: Path) -> bytes:
    """Return the text of a record without the results of the videos: an empty list replaces them."""
    text = b""
    with path.open("rb") as file:
        while (place := text.find(_FILES_BEGIN)) < 0:
            read = file.read(_HEAD_BYTES)
            if not read:
                return text
            text += read
    return text[:place] + _FILES_BEGIN + b"]}"


def result_lines(path: Path) -> Iterator[bytes]:
    """Yield the JSON text of each result in a run record. One result is in memory at a time.

    Raises:
        DocumentError: the file can't be read, or ends early.
    """
    last = b""
    try:
        with path.open("rb") as file:
            is_ours = any(line.startswith(_FILES_BEGIN[1:]) for line in file)
            for line in file:
                last = line.strip(b" ,\r\n")
                if last == b"{":  # another program has written the record again, with other line breaks
                    is_ours = False
                    break
                if last not in (b"]", b"}"):
                    yield last
    except OSError as error:
        raise DocumentError(unreadable(path, error)) from error
    if not is_ours:
        yield from (
            json.dumps(entry).encode() for entry in read_document(path, version=RUN_FORMAT_VERSION, what=_WHAT)["files"]
        )
    elif last != b"}":
        raise DocumentError(f"{path}: not {_WHAT}: it ends early")


def failures_without_events(layout: OutputLayout, runs: Iterable[StoredRun]) -> list[VideoResult]:
    """Return the results of failed paths (for example, of a folder that can't be read) that have no events document.

    If several runs scanned the same paths, only the newest of these runs counts. If a path failed only in an older run, then
    the newest run has read it or excluded it. Damaged run records are left out.

    Args:
        runs: the runs, the oldest first. Their results are read again from the run records.
    """
    newest: dict[object, StoredRun] = {}
    for run in runs:
        is_list = run.info.config.get("files_from") is not None  # a list may name other files in every run
        newest[run.path if is_list else (run.info.root, run.info.roots, run.info.shard)] = run
    failures: dict[str, VideoResult] = {}
    for run in newest.values():
        with suppress(DocumentError), document_errors(run.path, _WHAT):
            failed = [result_of(line) for line in result_lines(run.path) if b'"status": "failed"' in line]
            # A scan stores no events document about a failure if the path is not a readable file (and has no camera), or if the
            # machine or the output folder failed.
            failures |= {
                result.video: result
                for result in failed
                if not result.camera or result.stage == "write" or result.reason.startswith(NOT_FINISHED)
            }
    return [result for result in failures.values() if not layout.events(result.video).exists()]


def result_of(line: bytes) -> VideoResult:
    """Return the result in a line of `result_lines`; raise ValueError if the line is not a result."""
    return _result(json.loads(line))


def _result(entry: Mapping[str, Any]) -> VideoResult:
    return structure(VideoResult, {key: value for key, value in entry.items() if value is not None}, "files", extra=True)
