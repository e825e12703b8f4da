"""The record of a run: what was asked, what became of each video, how it ended. Kept up to date while the run goes on."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from vadcli.errors import DocumentError
from vadcli.store import OutputLayout, printable
from vadcli.store.atomic import Scratch
from vadcli.store.progress import RunProgress, write_live
from vadcli.types import Status, VideoResult

RUN_FORMAT_VERSION = 1
LAST_VIDEOS = 5
"""So many of the videos with events that were over last are told."""
_WRITE_EVERY_S = 1.0
_FILES_BEGIN = b'\n  "files": ['
_HEAD_BYTES = 16384
_SHARE_OF_TIME = 0.02
"""At most this share of a run's time goes into rewriting its record: a long list is rewritten less often."""


@dataclass(frozen=True)
class RunInfo:
    """What is known of a run when it starts.

    Attributes:
        version: the vadcli that runs.
        command: the command line.
        config: the effective options, as JSON values.
        detector: its name and fingerprint, as JSON values.
        weights: name -> sha256; empty where the detector has none.
        roots: the absolute paths given, and the common ancestor that relative paths start from.
        shard: "1/4", None where the run is not sharded.
    """

    version: str
    command: tuple[str, ...]
    config: Mapping[str, Any]
    detector: Mapping[str, Any]
    weights: Mapping[str, str] = field(default_factory=dict)
    roots: tuple[str, ...] = ()
    root: str = ""
    shard: str | None = None


class RunRecord:
    """Writes runs/<start>[-shard].json and its copy run.json; a context manager that closes with exit code 1 on an error.

    Results are turned to text once, when they come; the file is rewritten every few seconds, whole or not at all. Where its
    progress is counted, a short file among the temporaries says it every second.

    Args:
        layout: the output folder.
        scratch: for temporaries.
        info: what is known at the start.
        progress: how far the run has come, where that is counted.
        write_every_s: least seconds between two rewrites by `add`.
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
        self._lines: dict[str, str] = {}
        self._totals = _Totals()
        self._write_every_s = write_every_s
        self._due = self._live_due = 0.0
        self._last_videos: deque[str] = deque(maxlen=LAST_VIDEOS)
        self._closed = False
        self.path = self._free_path()
        self._write(end=None, exit_code=None)

    def add(self, result: VideoResult) -> None:
        """Note what became of a video, replacing what was noted before; rewrites the record where that is due.

        Raises:
            OutputError: the record can't be written.
        """
        before = self._lines.get(result.video)
        if before is not None:
            self._totals.count(json.loads(before), -1)
        document = result.to_json()
        self._totals.count(document, 1)
        self._lines[result.video] = json.dumps(document, ensure_ascii=False, allow_nan=False)
        if result.events:
            self._last_videos.append(result.video)
        if self.progress is not None:
            self.progress.finish(result.video)
        self.flush()

    def flush(self, *, force: bool = False) -> None:
        """Rewrite the record, and what is said of the run, where that is due; in any case where `force`."""
        now = time.monotonic()
        if force or now >= self._live_due:
            self.say()
        if force or now >= self._due:
            self._write(end=None, exit_code=None)

    def say(self) -> None:
        """Say how far the run is, now; nothing where that isn't counted."""
        if self.progress is None:
            return
        said = {"run": self.path.name, "totals": self._totals.to_json(), "progress": self.progress.to_json()}
        write_live(self._scratch, {**said, "last_videos": list(self._last_videos)})
        self._live_due = time.monotonic() + self._write_every_s

    def close(self, exit_code: int) -> None:
        """Write how the run ended. Only the first call counts."""
        if self._closed:
            return
        self._closed = True
        self._write(end=datetime.now(UTC), exit_code=exit_code)

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(0 if error is None else getattr(error, "exit_code", 1))

    def _free_path(self) -> Path:
        """A name that no run has: two that start in the same microsecond go one after the other."""
        suffix = f"-{self.info.shard.replace('/', 'of')}" if self.info.shard else ""
        while True:
            path = self._layout.runs / f"{self.start:%Y%m%dT%H%M%S.%fZ}{suffix}.json"
            if not path.exists():
                return path
            self.start += timedelta(microseconds=1)

    def _write(self, *, end: datetime | None, exit_code: int | None) -> None:
        began = time.monotonic()
        text = self._text(end, exit_code)
        self._scratch.write_text(self.path, text)
        if max(self._layout.iter_runs()) == self.path:
            self._scratch.write_text(self._layout.run_json, text)
        now = time.monotonic()
        self._due = now + max(self._write_every_s, (now - began) / _SHARE_OF_TIME)

    def _text(self, end: datetime | None, exit_code: int | None) -> str:
        head = {
            "format_version": RUN_FORMAT_VERSION,
            "version": self.info.version,
            "command": list(self.info.command),
            "config": dict(self.info.config),
            "detector": dict(self.info.detector),
            "weights": dict(self.info.weights),
            "roots": list(self.info.roots),
            "root": self.info.root,
            "shard": self.info.shard,
            "start": self.start.isoformat(),
            "end": end.isoformat() if end else None,
            "exit_code": exit_code,
            "totals": self._totals.to_json(),
            "progress": self.progress.to_json() if self.progress else None,
        }
        opened = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
        files = ",\n    ".join(self._lines.values())
        return printable(f'{opened},\n  "files": [' + (f"\n    {files}\n  " if files else "") + "]\n}\n")


class _Totals:
    """Sums over the results, kept up with each."""

    def __init__(self) -> None:
        self._statuses = dict.fromkeys(map(str, Status), 0)
        self._sums = {"expected_frames": 0, "decoded_frames": 0, "events": 0}
        self._seconds = 0.0

    def count(self, result: Mapping[str, Any], sign: int) -> None:
        """Add a result's JSON, or take it back."""
        self._statuses[result["status"]] += sign
        for name in self._sums:
            self._sums[name] += sign * result[name]
        self._seconds += sign * result["seconds"]

    def to_json(self) -> dict[str, Any]:
        """As it stands in the record."""
        return {
            "videos": sum(self._statuses.values()),
            **self._statuses,
            **self._sums,
            "seconds": round(self._seconds, 3),
        }


@dataclass(frozen=True)
class StoredRun:
    """A run's record as read back.

    Attributes:
        path: the file.
        info: what was known at the start.
        start: when it began.
        end: when it ended; None where it still runs or was killed.
        exit_code: None likewise.
        totals: counts by status, sums of frames, seconds and events.
        files: what became of each video; empty where only the head was read.
        progress: how far it has come, as `RunProgress` counts; None in records from before it was counted.
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
    """A stored record, or where `head` all of it but the files, whose list may be long.

    Raises:
        DocumentError: it is missing, damaged, or no record of this version.
    """
    try:
        document = json.loads(_head(path) if head else path.read_bytes())
    except OSError as error:
        raise DocumentError(f"{path}: can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DocumentError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format_version") != RUN_FORMAT_VERSION:
        raise DocumentError(f"{path}: not a run's record of format version {RUN_FORMAT_VERSION}")
    try:
        return _stored(path, document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        detail = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DocumentError(f"{path}: not a run's record: {detail}") from error


def _head(path: Path) -> bytes:
    """A record with an empty list of files; the whole where it isn't laid out as we write it."""
    text = b""
    with path.open("rb") as file:
        while (found := text.find(_FILES_BEGIN)) < 0:
            read = file.read(_HEAD_BYTES)
            if not read:
                return text
            text += read
    return text[:found] + _FILES_BEGIN + b"]}"


def _stored(path: Path, document: Mapping[str, Any]) -> StoredRun:
    info = RunInfo(
        version=document["version"],
        command=tuple(document["command"]),
        config=document["config"],
        detector=document["detector"],
        weights=document["weights"],
        roots=tuple(document["roots"]),
        root=document["root"],
        shard=document["shard"],
    )
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


def _result(entry: Mapping[str, Any]) -> VideoResult:
    return VideoResult(
        video=entry["video"],
        status=Status(entry["status"]),
        stage=entry["stage"] or "",
        reason=entry["reason"] or "",
        camera=entry["camera"] or "",
        moving_camera=entry["moving_camera"],
        decoder=entry["decoder"] or "",
        expected_frames=entry["expected_frames"],
        decoded_frames=entry["decoded_frames"],
        seconds=entry["seconds"],
        events=entry["events"],
    )
