"""Finds the videos of stored results and the times of their start, and chooses events by time. No video is opened.

The folders of the videos come from the run records. If a video is not found, it may still exist: perhaps a share is not
mounted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from functools import cached_property
from itertools import chain
from pathlib import Path

from vadcli.errors import DocumentError
from vadcli.store import OutputLayout, matches, told_paths
from vadcli.store.events import EventsDocument
from vadcli.store.run_log import read_run
from vadcli.types import TimeRules, TimeSource, When
from vadcli.types.text import is_remote, may_exist
from vadcli.types.wall_clock import in_zone


def stored_roots(layout: OutputLayout) -> Iterator[Path]:
    """Yield the roots in the run records of an output folder, the newest first, each once.

    Older versions stored one root per scan, so an old output folder may have several roots. If the folder has no results, the
    roots of its ended runs are left out. Unreadable records are skipped.
    """
    cameras = layout.camera(".").parent
    stored = (layout.iter_events(), layout.iter_checkpoints(), cameras.glob("**/*.json"))
    has_results = any(next(files, None) for files in stored)
    seen: set[str] = set()
    for path in chain([layout.run_json], sorted(layout.iter_runs(), reverse=True)):
        with suppress(DocumentError):
            run = read_run(path, head=True)
            if run.info.root and run.info.root not in seen and (has_results or run.end is None):
                seen.add(run.info.root)
                yield from map(Path, told_paths(run.info.root))


_GONE = (errno.ENOENT, errno.ENOTDIR)


class Presence(Enum):
    """Whether a video or folder of the footage exists."""

    HERE = "here"
    GONE = "gone"
    UNKNOWN = "unknown"  # the folder above it is empty, missing or can't be read: perhaps a share is not mounted


class FootageFolders:
    """The folders in which the footage of an output folder may be.

    Args:
        layout: the output folder.
        moved_to: the folder that contains the footage now; None if the footage is still in the roots of the scans.
    """

    def __init__(self, layout: OutputLayout, moved_to: Path | None = None) -> None:
        self._layout, self._moved_to = layout, moved_to
        self._filled: dict[str, bool] = {}

    @cached_property
    def _stored(self) -> list[str]:
        return [str(root) for root in stored_roots(self._layout)]

    def roots(self, document: EventsDocument | None = None) -> list[str]:
        """Return the folders to look in: first the root of this video's scan, then the other roots, the newest first."""
        if self._moved_to is not None:
            return [str(self._moved_to)]
        own = str(document.scan.source.get("root") or "") if document and document.scan else ""
        return list(dict.fromkeys([*(told_paths(own) if own else []), *self._stored]))

    def find(self, document: EventsDocument) -> Path | None:
        """Return the path of a video; None if it is not found."""
        return find_below(self.roots(document), str(document.video["path"]))

    def judge(self, document: EventsDocument | None = None) -> str | None:
        """Return the first root that exists, or None. `presence` judges there whether a missing video is gone."""
        return next(filter(os.path.isdir, self.roots(document)), None)

    def presence(self, name: str, document: EventsDocument | None = None) -> Presence:
        """Return whether a video or a camera folder exists.

        A missing video counts as gone only if the closest folder above it, within the root, can be read and is not empty. If a
        share is not mounted, the folder in which it is usually mounted is empty.
        """
        for path in _below(self.roots(document), name):
            if is_remote(path):
                return Presence.UNKNOWN
            try:
                os.lstat(path)
            except OSError as error:
                if error.errno not in _GONE:
                    return Presence.UNKNOWN
            else:
                return Presence.HERE
        root = self.judge(document)
        closest = next((path.parent for path in _below([root], name)), None) if root else None
        while closest is not None and not os.path.lexists(closest):
            closest = closest.parent if str(closest) != root else None
        return Presence.GONE if closest is not None and self._is_filled(str(closest)) else Presence.UNKNOWN

    def _is_filled(self, folder: str) -> bool:
        if folder not in self._filled:
            # Hidden files do not count: the folder in which a share is usually mounted may contain some without the share.
            try:
                self._filled[folder] = any(not name.startswith(".") for name in os.listdir(folder))
            except OSError:
                self._filled[folder] = False
        return self._filled[folder]


def find_below(roots: Iterable[str | Path], name: str) -> Path | None:
    """Return the path of a video in the first root that has it; None if no root has it."""
    return next((path for path in _below(roots, name) if may_exist(path)), None)


def _below(roots: Iterable[str | Path], name: str) -> Iterator[Path]:
    """Yield the paths that a stored name may mean. A name that leads out of the root gives no path."""
    for root in roots:
        for text in told_paths(name):
            if not text.startswith("/") and ".." not in text.split("/") and "\0" not in text:
                yield Path(root, text)


def timed(document: EventsDocument, rules: TimeRules) -> EventsDocument:
    """Return the document with the start of its video.

    If the user gave no rules, a stored start is kept. Otherwise, or if an older version stored no start, the start is computed
    from the stored values of the video and its file.
    """
    if document.start is not None:
        if not rules.given:
            return document
        # A pattern of an earlier scan gave the stored start. It is not stored itself, so only the time zone can be changed.
        if document.start.source is TimeSource.OPTION and rules.pattern is None:
            return replace(document, start=in_zone(document.start, rules.zone))
    source = document.scan.source if document.scan else {}
    mtime_ns, duration_s = source.get("mtime_ns"), document.video["duration_s"]
    start = rules.start_of(
        f"{source.get('root', '')}/{document.video['path']}",
        created=document.created,
        modified_s=mtime_ns / 1e9 if isinstance(mtime_ns, int | float) else None,
        duration_s=duration_s,
    )
    return replace(document, start=start)


def choose(documents: Sequence[EventsDocument], when: When, categories: Collection[str] = ()) -> list[EventsDocument]:
    """Return the documents with only the chosen events. The events keep their numbers.

    Videos without a chosen event are left out, but failed videos are kept. Without a choice, nothing is left out.

    Args:
        documents: the documents, with the start of their videos.
        when: the choice by time.
        categories: globs of categories; empty for all events. An event without a category counts as `anomaly`.
    """
    if not when and not categories:
        return list(documents)
    chosen = []
    for document in documents:
        events = tuple(
            event
            for event in document.events
            if matches((event.category or "anomaly").casefold(), [name.casefold() for name in categories])
            and when.takes(document.start, event.start_s, event.end_s)
        )
        if events or document.failure:
            chosen.append(replace(document, events=events))
    return chosen
