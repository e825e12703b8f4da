"""The log of a run: the run record with the result of each video, and the live file with the progress of a running scan.

The run record is `runs/<start>.json`; `run.json` is a copy of it. Because a record may be long, a running scan also writes a
short live file every second, in its folder for temporary files. `vadcli status` reads the live file.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from vadcli.store import OutputLayout, printable
from vadcli.store.atomic import Scratch, writing
from vadcli.store.progress import RunProgress
from vadcli.types import Status, VideoResult
from vadcli.types.codec import document_errors, read_document, structure

RUN_FORMAT_VERSION = 1
LAST_VIDEOS = 5
"""The live file names this many videos: those with events that finished last."""
_WRITE_EVERY_S = 1.0
_SHARE_OF_TIME = 0.02
"""At most this share of a run's time is spent on rewriting its record. So a long record is rewritten less often."""
_FILES_BEGIN = b'\n  "files": ['
_HEAD_BYTES = 16384
_LIVE_NAME = "live.json"
_LIVE_PARTS = ("totals", "progress", "last_videos")


@dataclass(frozen=True)
class RunInfo:
    """The facts about a run that are known when it starts.

    Attributes:
        version: the version of vadcli.
        command: the command line.
        config: the effective options, as JSON values.
        detector: the detector's name and fingerprint, as JSON values.
        weights: name -> sha256; empty if the detector has no weights.
        roots: the absolute paths that the user gave.
        root: the folder that contains all `roots`. Relative paths start there.
        shard: the shard, such as "1/4"; None if the run is not sharded.
        passed_over: suffix -> number of files with this unknown suffix, which were found and not scanned.
        looked_for: the categories that the detector looks for; empty if it reads no categories, None in older records.
        caveats: sentences of the detector that say why its scores deserve less trust than usual.
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


class _Totals:
    """Totals of the results. They are updated with each result."""

    def __init__(self) -> None:
        self._statuses = dict.fromkeys(map(str, Status), 0)
        self._sums = {"expected_frames": 0, "decoded_frames": 0, "events": 0, "new_events": 0}
        self._lost = 0
        self._seconds = 0.0

    def count(self, result: Mapping[str, Any], sign: int, *, lost: bool) -> None:
        """Adds the numbers in the JSON of a result (sign 1), or subtracts them (sign -1)."""
        self._lost += sign * lost
        self._statuses[result["status"]] += sign
        for name in self._sums:
            self._sums[name] += sign * result[name]
        self._seconds += sign * result["seconds"]

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON values that the record stores."""
        return {
            "videos": sum(self._statuses.values()),
            **self._statuses,
            "lost": self._lost,
            **self._sums,
            "seconds": round(self._seconds, 3),
        }


class RunRecord:
    """Writes runs/<start>[-shard].json and its copy run.json, and also the live file if progress is counted.

    Use it as a context manager. If an error ends the `with` block, the record is closed with the error's exit code, or with 1
    if the error has no exit code. Each result is turned into JSON text once, when it is added. The record is rewritten every
    few seconds, each time atomically.

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
        self._files: dict[str, tuple[dict[str, Any], str, bool]] = {}  # video -> result as dict, as text, is lost
        self._totals = _Totals()
        self._write_every_s = write_every_s
        self._due = self._live_due = 0.0
        self._last_videos: deque[str] = deque(maxlen=LAST_VIDEOS)
        self._closed = False
        self.path = self._free_path()
        self._write(end=None, exit_code=None)

    def add(self, result: VideoResult) -> None:
        """Records the result of a video, which replaces an earlier result. Rewrites the record if that is due.

        Raises:
            OutputError: the record can't be written.
        """
        before = self._files.get(result.video)
        if before is not None:
            self._totals.count(before[0], -1, lost=before[2])
        document = result.to_json()
        self._totals.count(document, 1, lost=result.is_lost)
        self._files[result.video] = document, json.dumps(document, ensure_ascii=False, allow_nan=False), result.is_lost
        if result.events:
            self._last_videos.append(result.video)
        if self.progress is not None:
            self.progress.finish(result.video)
        self.flush()

    def flush(self, *, force: bool = False) -> None:
        """Rewrites the record and the live file if they are due, or both if `force` is true."""
        now = time.monotonic()
        if force or now >= self._live_due:
            self.say()
        if force or now >= self._due:
            self._write(end=None, exit_code=None)

    def say(self) -> None:
        """Writes the current state of the run to the live file. Does nothing if progress is not counted.

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
        temporary = path.with_suffix(".new")
        # No fsync is needed: the file has no use after this process has ended.
        with writing(path):
            temporary.write_text(printable(json.dumps(live, ensure_ascii=False, allow_nan=False)), encoding="utf-8")
            os.replace(temporary, path)
        self._live_due = time.monotonic() + self._write_every_s

    def close(self, exit_code: int) -> None:
        """Writes how the run ended. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        self._write(end=datetime.now(UTC), exit_code=exit_code)

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(0 if error is None else getattr(error, "exit_code", 1))

    def _free_path(self) -> Path:
        """Returns an unused path. If another run started in the same microsecond, this run's start is moved by one."""
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
            **{name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(self.info).items()},
            "start": self.start.isoformat(),
            "end": end.isoformat() if end else None,
            "exit_code": exit_code,
            "totals": self._totals.to_json(),
            "progress": self.progress.to_json() if self.progress else None,
        }
        opened = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
        files = ",\n    ".join(text for _, text, _ in self._files.values())
        return printable(f'{opened},\n  "files": [' + (f"\n    {files}\n  " if files else "") + "]\n}\n")


def read_live(layout: OutputLayout) -> dict[str, dict[str, Any]]:
    """Returns name of the run record -> content of the live file, for all scans that are running in an output folder.

    Damaged files are skipped.
    """
    said = {}
    for path in layout.scratch.glob(f"*/{_LIVE_NAME}"):
        # A run may end after the folder was listed. Then its live file is gone.
        with suppress(OSError, ValueError, KeyError, TypeError):
            document = json.loads(path.read_bytes())
            said[str(document["run"])] = {part: document[part] for part in _LIVE_PARTS}
    return said


@dataclass(frozen=True)
class StoredRun:
    """A run record that was read from its file.

    Attributes:
        path: the file.
        info: the facts that were known when the run started.
        start: when the run started.
        end: when the run ended; None if it is still running or was killed.
        exit_code: None if `end` is None.
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
    """Reads a run record. If `head` is true, the list of files, which may be long, is left out.

    Raises:
        DocumentError: the file is missing or damaged, or is not a run record of this version.
    """
    document = read_document(path, version=RUN_FORMAT_VERSION, what="a run record", read=_head if head else Path.read_bytes)
    with document_errors(path, "a run record"):
        return _stored(path, document)


def _head(path: Path) -> bytes:
    """Returns the text of a record with an empty list of files; the whole text if it has no such list."""
    text = b""
    with path.open("rb") as file:
        while (found := text.find(_FILES_BEGIN)) < 0:
            read = file.read(_HEAD_BYTES)
            if not read:
                return text
            text += read
    return text[:found] + _FILES_BEGIN + b"]}"


def _stored(path: Path, document: Mapping[str, Any]) -> StoredRun:
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


def _result(entry: Mapping[str, Any]) -> VideoResult:
    return structure(VideoResult, {key: value for key, value in entry.items() if value is not None}, "files", extra=True)
