"""Finds the footage of stored results, and decides whether a video that is not found is really gone."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from enum import Enum
from functools import cached_property
from pathlib import Path

from vadcli.store import OutputLayout, told_paths
from vadcli.store.events import EventsDocument
from vadcli.store.roots import stored_roots
from vadcli.types.text import is_remote, may_exist

_GONE = (errno.ENOENT, errno.ENOTDIR)


class Presence(Enum):
    """The answer to whether footage exists."""

    HERE = "here"
    GONE = "gone"
    UNKNOWN = "unknown"  # its folder is empty, is missing or can't be read: perhaps a share is not mounted


class FootageFolders:
    """The folders in which the footage of an output folder may be.

    Args:
        layout: the output folder.
        moved_to: the folder that holds the footage now; None if it still is in the roots of the scans.
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
        return next((path for path in _below(self.roots(document), str(document.video["path"])) if may_exist(path)), None)

    def judge(self, document: EventsDocument | None = None) -> str | None:
        """Return the first root that exists: its content decides whether a video is gone. None if no root exists."""
        return next(filter(os.path.isdir, self.roots(document)), None)

    def presence(self, name: str, document: EventsDocument | None = None) -> Presence:
        """Return whether a video or a camera folder exists.

        It is gone only if the closest existing folder above it, within the root, can be read and is not empty. If a share is
        not mounted, the folder in which it is usually mounted is empty.
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
        """True if a folder is readable and not empty.

        Hidden files do not count: the folder in which a missing share is usually mounted may hold some.
        """
        if folder not in self._filled:
            try:
                self._filled[folder] = any(not name.startswith(".") for name in os.listdir(folder))
            except OSError:
                self._filled[folder] = False
        return self._filled[folder]


def _below(roots: list[str], name: str) -> Iterator[Path]:
    """Yield the paths that a stored name may mean. A name that leads out of the root gives no path."""
    for root in roots:
        for text in told_paths(name):
            if not text.startswith("/") and ".." not in text.split("/") and "\0" not in text:
                yield Path(root, text)
