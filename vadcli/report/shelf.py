"""Where a page's pictures, clips and curves go: into the page itself while there is room, or into a folder beside it."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from vadcli.outputs.atomic import Scratch


class Shelf(Protocol):
    """Takes files and says by what URL the page finds them."""

    beside: bool
    """True where files lie beside the page, so that curves too are loaded only when they are looked at."""

    def put(self, name: str, data: bytes, media_type: str) -> str | None:
        """The URL, None where there is no room left.

        Raises:
            OutputError: the file can't be written.
        """
        ...


class InPage:
    """Everything inside the page, as data URLs.

    Args:
        room: bytes of page that may be used.

    Attributes:
        refused: files that there was no room for.
    """

    beside = False

    def __init__(self, room: int) -> None:
        self.room = room
        self.refused = 0

    def put(self, name: str, data: bytes, media_type: str) -> str | None:
        """See `Shelf`; the name doesn't matter."""
        head = f"data:{media_type};base64,"
        size = len(head) + 4 * ((len(data) + 2) // 3)
        if size > self.room:
            self.refused += 1
            return None
        self.room -= size
        return head + base64.b64encode(data).decode()


class InFolder:
    """Files in a folder, by relative URLs.

    Args:
        folder: where they go.
        page: the file that names them.
        scratch: temporaries on the folder's file system.
    """

    beside = True

    def __init__(self, folder: Path, page: Path, scratch: Scratch) -> None:
        self._folder, self._scratch = folder, scratch
        self._base = quote(Path(os.path.relpath(folder.absolute(), page.absolute().parent)).as_posix())

    def put(self, name: str, data: bytes, media_type: str) -> str | None:
        """See `Shelf`."""
        self._scratch.write_bytes(self._folder / name, data)
        return f"{self._base}/{quote(name)}"
