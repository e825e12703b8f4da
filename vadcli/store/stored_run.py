"""Reads run records. A record of a million videos has a million results, so they can also be read one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from vadcli.errors import DocumentError
from vadcli.types import VideoResult
from vadcli.types.text import document_errors, read_document, structure

RUN_FORMAT_VERSION = 1
FILES_BEGIN = b'\n  "files": ['
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
        weights: name -> sha256; empty if the detector has no weights.
        roots: the absolute paths that the user gave.
        root: the folder that contains all `roots`. Relative paths start there.
        shard: the shard, such as "1/4"; None if the run is not sharded.
        passed_over: unknown suffix -> number of files that were not scanned because they have this suffix.
        looked_for: the categories that the detector looks for; empty if it reads no categories, None in older records.
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


@dataclass(frozen=True)
class StoredRun:
    """A run record that was read from its file.

    Attributes:
        path: the file.
        info: the facts that were known at the start.
        start: when the run started.
        end: when the run ended; None if it is still running or was killed.
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
    """Read a run record. If `head` is true, the list of files, which may be long, is left out.

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
    """Return the text of a record with an empty list of files; the whole text if it has no such list."""
    text = b""
    with path.open("rb") as file:
        while (found := text.find(FILES_BEGIN)) < 0:
            read = file.read(_HEAD_BYTES)
            if not read:
                return text
            text += read
    return text[:found] + FILES_BEGIN + b"]}"


def result_lines(path: Path) -> Iterator[bytes]:
    """Yield the JSON text of each result in a run record. One result is in memory at a time.

    Raises:
        DocumentError: the file can't be read, or ends early.
    """
    last = b""
    try:
        with path.open("rb") as file:
            is_ours = any(line.startswith(FILES_BEGIN[1:]) for line in file)
            for line in file:
                last = line.strip(b" ,\r\n")
                if last == b"{":  # another program has written the record again, with other line breaks
                    is_ours = False
                    break
                if last not in (b"]", b"}"):
                    yield last
    except OSError as error:
        raise DocumentError(f"{path}: can't be read: {error.strerror or error}") from error
    if not is_ours:
        yield from (
            json.dumps(entry).encode() for entry in read_document(path, version=RUN_FORMAT_VERSION, what=_WHAT)["files"]
        )
    elif last != b"}":
        raise DocumentError(f"{path}: not {_WHAT}: it ends early")


def result_of(line: bytes) -> VideoResult:
    """Return the result in a line of `result_lines`. Raises ValueError if the line is not a result."""
    return _result(json.loads(line))


def _result(entry: Mapping[str, Any]) -> VideoResult:
    return structure(VideoResult, {key: value for key, value in entry.items() if value is not None}, "files", extra=True)
