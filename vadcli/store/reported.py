"""Keeps the list of the events that scans of an output folder have reported, so that each event is new only once.

`reported.jsonl` has one JSON object per line. The first line has the format version. Every other line is an event: its video, a
hash of the video's content, and its span. Lines are only added. Scans that run at the same time share the list. A process locks
the list while it reads or adds lines.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from vadcli.store import OutputLayout, printable
from vadcli.store.atomic import writing
from vadcli.store.events import EventsDocument, read_unchecked
from vadcli.types import Event

REPORTED_FORMAT_VERSION = 1

Span = tuple[float, float]


class ReportedEvents:
    """The reported events of an output folder. An event is new if no reported event of the same video overlaps it.

    If the content of a video has changed, all its events are new. If OUT has no list yet, the events that are stored at that
    time count as reported.

    Args:
        layout: the output folder.

    Raises:
        OutputError: the list can't be written.
    """

    def __init__(self, layout: OutputLayout) -> None:
        self._path = layout.reported
        self._spans: dict[tuple[str, str], list[Span]] = {}
        self._read_to = 0
        self._threads = threading.Lock()
        with self._locked() as fd:
            if os.fstat(fd).st_size == 0:
                lines = [json.dumps({"format_version": REPORTED_FORMAT_VERSION}) + "\n"]
                for document in filter(None, map(read_unchecked, layout.iter_events())):
                    lines += [_line(*_key(document), (event.start_s, event.end_s)) for event in document.events]
                _append(fd, "".join(lines))
                self._read(fd)

    def new(self, document: EventsDocument) -> list[Event]:
        """Return the events of a video that are not in the list.

        Raises:
            OutputError: the list can't be read.
        """
        with self._locked():
            return [event for event in document.events if self._is_new(_key(document), event)]

    def add(self, document: EventsDocument, event: Event) -> bool:
        """Add an event of a video. Returns False if another scan has already added it.

        Raises:
            OutputError: the list can't be written.
        """
        key = _key(document)
        with self._locked() as fd:
            if not self._is_new(key, event):
                return False
            _append(fd, _line(*key, (event.start_s, event.end_s)))
            self._read(fd)
            return True

    def _is_new(self, key: tuple[str, str], event: Event) -> bool:
        return all(event.end_s <= start_s or end_s <= event.start_s for start_s, end_s in self._spans.get(key, ()))

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Open and lock the list, and read what other processes have added."""
        with self._threads, writing(self._path):
            fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                self._read(fd)
                yield fd
            finally:
                os.close(fd)

    def _read(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        text = os.pread(fd, size - self._read_to, self._read_to) if size > self._read_to else b""
        self._read_to = max(self._read_to, size)
        for line in text.splitlines():
            with suppress(ValueError, KeyError, TypeError):  # the first line, or a line that was cut off when the disk was full
                entry = json.loads(line)
                span = float(entry["start_s"]), float(entry["end_s"])
                self._spans.setdefault((entry["video"], entry["content"]), []).append(span)


def _append(fd: int, lines: str) -> None:
    """Add all of these lines, or no line if that fails."""
    size = os.fstat(fd).st_size
    # If an earlier process did not write its last line completely, the new lines must begin on another line.
    if size and os.pread(fd, 1, size - 1) != b"\n":
        lines = "\n" + lines
    left = memoryview(lines.encode())
    try:
        while left:  # if the disk becomes full, a write adds only a part of them
            left = left[os.write(fd, left) :]
    except OSError:
        os.ftruncate(fd, size)
        raise


def _key(document: EventsDocument) -> tuple[str, str]:
    return str(document.video["path"]), str(document.scan.source.get("content", "")) if document.scan else ""


def _line(video: str, content: str, span: Span) -> str:
    entry: dict[str, Any] = {"video": video, "content": content, "start_s": span[0], "end_s": span[1]}
    return printable(json.dumps(entry, ensure_ascii=False)) + "\n"
