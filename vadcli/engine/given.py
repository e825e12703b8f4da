"""Checks that the paths of the user exist, and reads lists of paths."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.types.text import NotText, decode_text, is_remote, shown, text_encoding

_URL = re.compile(r"(?:^|/)[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash only, because pathlib has removed the other one


NO_URL = "this is a URL, and streams are not read"


def absolute(paths: Iterable[Path]) -> list[Path]:
    """Return the paths: those on this machine as absolute paths, those in an object store unchanged.

    Raises:
        UsageError: some paths are on this machine, and others are in an object store.
    """
    found = [path if is_remote(path) else Path(os.path.abspath(path)) for path in paths]
    remote = [path for path in found if is_remote(path)]
    if remote and len(remote) < len(found):
        raise UsageError(
            f"{shown(remote[0])}: in an object store, but other footage is on this machine",
            hint="scan the two into different folders with --out",
        )
    return found


def check_exists(path: Path) -> None:
    """Raise UsageError if a path does not exist. A path that can't be read is accepted here; the walk reports it."""
    if is_remote(path):
        return
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if _URL.search(str(path)):
            raise UsageError(f"{path}: {NO_URL}", hint=_instead_of(path)) from error
        raise UsageError(f"{path}: the file or folder does not exist") from error
    except OSError:
        return


def why_unreadable(path: Path, error: OSError) -> str:
    """Return the reason why a path can't be read, as a text for the user."""
    if isinstance(error, FileNotFoundError) and _URL.search(str(path)):
        return f"{NO_URL} ({_instead_of(path)})"
    return f"can't be read: {error.strerror}"


def _instead_of(url: Path) -> str:
    if "file:/" in str(url):
        return "give the path without file://"
    return "record the stream into files, and scan their folder"


def read_list(source: Path) -> list[Path]:
    """Return the paths of a list file or of stdin (`-`): one per line, or separated by NUL if there is a NUL.

    Raises:
        UsageError: the list can't be read.
    """
    try:
        data = sys.stdin.buffer.read() if str(source) == "-" else source.read_bytes()
        if text_encoding(data) != "utf-8":  # other data stays as it is: the bytes of a path need not be UTF-8
            data = os.fsencode(decode_text(data))
    except OSError as error:
        raise UsageError(f"{list_name(source)} can't be read: {error.strerror}") from error
    except (NotText, UnicodeEncodeError) as error:
        raise UsageError(f"{list_name(source)} can't be read: {error}") from error
    parts = data.split(b"\0") if b"\0" in data else data.splitlines()
    return [Path(os.fsdecode(part)) for part in parts if part.strip()]


def list_name(source: Path) -> str:
    """Return the name that messages use for a list of files."""
    return "the list on stdin" if str(source) == "-" else f"the list {source}"
