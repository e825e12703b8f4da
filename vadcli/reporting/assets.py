"""Where a page's pictures, clips and curves go: into the page itself while there is room, or into a folder beside it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Protocol
from urllib.parse import quote

from vadcli.errors import OutputError
from vadcli.store.atomic import FileLock, Scratch, writing

SUFFIXES = {"image/webp": "webp", "video/mp4": "mp4", "text/javascript": "js"}
PAGES = "pages.json"
_LOCK = ".lock"
_OURS = re.compile(rb"[0-9a-f]{32}\.(?:webp|mp4|js)")


class Shelf(Protocol):
    """Takes files and says by what URL the page finds them."""

    beside: bool
    """True where files lie beside the page, so that curves too are loaded only when they are looked at."""

    def put(self, data: bytes, media_type: str) -> str | None:
        """The URL, None where there is no room left.

        Args:
            data: the whole file.
            media_type: one of `SUFFIXES`.

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

    def put(self, data: bytes, media_type: str) -> str | None:
        """See `Shelf`."""
        head = f"data:{media_type};base64,"
        size = len(head) + 4 * ((len(data) + 2) // 3)
        if size > self.room:
            self.refused += 1
            return None
        self.room -= size
        return head + base64.b64encode(data).decode()


class InFolder:
    """Files in a folder, by relative URLs; open as a context manager.

    A file's name is the hash of what it holds, so that an earlier page keeps its own files while this one is made, and several
    pages may share the folder. `settle` removes what no page names any more; `pages.json` says which pages there are.

    Args:
        folder: where they go.
        page: the file that names them.
    """

    beside = True

    def __init__(self, folder: Path, page: Path) -> None:
        self._folder, self._page = folder.absolute(), page.absolute()
        self._scratch = Scratch(self._folder / ".tmp")
        self._lock: FileLock | None = None
        self._base = quote(Path(os.path.relpath(self._folder, self._page.parent)).as_posix())

    def __enter__(self) -> InFolder:
        """Raises OutputError: another report is written into the folder, or it isn't one for pages' files."""
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock.acquire(self._folder / _LOCK)
        if self._lock is None:
            raise OutputError(
                f"{self._folder}: another report is being written here", hint="wait for it, or choose another --assets"
            )
        try:
            self._pages()
            self._scratch.__enter__()
        except BaseException:
            self._lock.release(delete=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._scratch.__exit__(kind, error, trace)
        if self._lock is not None:
            self._lock.release(delete=True)

    def put(self, data: bytes, media_type: str) -> str | None:
        """See `Shelf`."""
        name = f"{hashlib.sha256(data).hexdigest()[:32]}.{SUFFIXES[media_type]}"
        if not (self._folder / name).exists():
            self._scratch.write_bytes(self._folder / name, data)
        return f"{self._base}/{name}"

    def settle(self) -> None:
        """Once the page is written: note it, and remove the files that neither it nor another page names.

        Raises:
            OutputError: the note can't be written.
        """
        if not self._page.is_file():  # a pipe: nobody knows what becomes of it
            return
        ours = Path(os.path.relpath(self._page, self._folder)).as_posix()
        pages = sorted({page for page in self._pages() if (self._folder / page).is_file()} | {ours})
        self._scratch.write_text(self._folder / PAGES, json.dumps(pages, indent=2) + "\n")
        try:
            named = {name for page in pages for name in _OURS.findall((self._folder / page).read_bytes())}
            for entry in self._folder.iterdir():
                name = os.fsencode(entry.name)
                if _OURS.fullmatch(name) and name not in named:
                    entry.unlink()
        except OSError:  # a page that can't be read may name anything: everything stays
            return

    def _pages(self) -> list[str]:
        """The pages that have files here, relative to the folder."""
        path = self._folder / PAGES
        try:
            pages = json.loads(path.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise OutputError(f"{path}: can't be read: {error}", hint="choose another folder with --assets") from error
        if not (isinstance(pages, list) and all(isinstance(page, str) for page in pages)):
            raise OutputError(f"{path}: no list of pages", hint="choose another folder with --assets")
        return pages
