"""Lists footage in object stores, and copies objects to a cache on this machine (`local_copy`).

A decoder needs a file in which it can seek. So before a video is read from a store, the whole object is copied into the folder
`cache_folder()`. The rules of this cache:

- Each object has its own folder. The name of the folder is a hash of the object's URL and content. An incomplete copy is called
  `.part`, and the next download continues it. A complete copy has the name of the object.
- A process that reads a copy has a shared lock on the copy's folder. A process that downloads a copy has an exclusive lock on
  this folder. The kernel releases the locks of a killed process. Only folders without a lock are removed.
- If all copies together are larger than `cache_bytes()`, copies are removed, the least recently used first. Copies in use stay,
  so the cache can exceed this limit by the size of the videos that are being read.

The stores' packages take credentials from the environment. Credentials are never logged or stored.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vadcli.errors import FileChanged, NotFinished, UsageError, VadcliError
from vadcli.options import cache_folder as platform_cache
from vadcli.types.text import STORES, is_remote, shown

log = logging.getLogger("vadcli")

FOLDER_VARIABLE, SIZE_VARIABLE = "VADCLI_FOOTAGE_CACHE", "VADCLI_FOOTAGE_CACHE_GB"
DEFAULT_GB = 50.0
BLOCK_BYTES = 8 << 20
_WAIT_S = 0.2
_LONGEST_NAME = 100
_PASSWORD = re.compile(r"[a-z0-9]+://[^/]*:[^/]*@")
_MD5 = re.compile(r"[0-9a-f]{32}")
_TIMES = ("LastModified", "updated", "mtime", "last_modified")
_not_md5: set[str] = set()
"""Buckets whose ETags look like an MD5 but are not the MD5 of the content, for example because objects are encrypted."""


@dataclass(frozen=True)
class StoredObject:
    """An object as its store describes it.

    Attributes:
        path: the URL as a path; see `vadcli.types.text`.
        size: number of bytes.
        mtime_ns: time of the last change in nanoseconds, rounded down to whole seconds, because some stores list only seconds.
        content: a hash of size and ETag. If the store has no ETags, a hash of size and time.
        md5: the MD5 of the content, as hexadecimal digits; "" if it is not known.
    """

    path: Path
    size: int
    mtime_ns: int
    content: str
    md5: str = ""


def cache_folder() -> Path:
    """Return the folder for the copies of objects."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder).expanduser() if folder else platform_cache() / "footage"


def cache_bytes() -> int:
    """Return the size limit of the cache; UsageError if VADCLI_FOOTAGE_CACHE_GB is not a number."""
    text = os.environ.get(SIZE_VARIABLE, "") or str(DEFAULT_GB)
    try:
        size = float(text) * 1e9
    except ValueError:
        size = -1.0
    if not 0 <= size < float("inf"):
        raise UsageError(f"{SIZE_VARIABLE}={text!r} is not a size in GB", hint="give a number such as 50")
    return int(size)


def list_objects(path: Path) -> tuple[dict[str, StoredObject], bool]:
    """Return the objects below `path`, sorted by name, and False; or the object at `path` and True.

    The keys are the objects' paths below `path`, or the name of the one object.

    Raises:
        UsageError: the path does not exist or cannot be read, or the store's package is not installed.
    """
    cache_bytes()
    with _store_errors(path, UsageError):
        store, name = _store(path)
        described = store.info(name)
        if described["type"] != "directory":
            return {path.name: _stored_object(path, described)}, True
        listed = store.find(name, detail=True)
    beginning = name.rstrip("/") + "/"
    objects = {}
    for key in sorted(listed):
        if key.startswith(beginning) and not key.endswith("/") and listed[key]["type"] == "file":
            below = key.removeprefix(beginning)
            objects[below] = _stored_object(Path(f"{shown(path)}/{below}"), listed[key])
    return objects, False


def object_of(path: Path) -> StoredObject:
    """Return the store's description of an object.

    Raises:
        FileChanged: the object no longer exists.
        NotFinished: the object can't be read at the moment.
    """
    with _store_errors(path, NotFinished):
        store, name = _store(path)
        return _stored_object(path, store.info(name))


def check_store(path: Path) -> None:
    """Raise UsageError if the package that reads this kind of store is not installed."""
    with _store_errors(path, UsageError):
        _store(path)


@contextmanager
def local_copy(path: Path, on_progress: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield the path of an object's local copy; the path of a file on this machine is yielded unchanged.

    If the object is not in the cache, it is downloaded first. The copy stays in the cache during the `with` block.

    Args:
        path: the path of an object or of a file on this machine.
        on_progress: called after each block of the download, and regularly while another process downloads the object.

    Raises:
        NotFinished: the object cannot be read, or the disk has no room for it.
        FileChanged: the object no longer exists, or was replaced during the download.
    """
    if not is_remote(path):
        yield path
        return
    stored = object_of(path)
    folder = (
        cache_folder() / hashlib.sha256(f"{shown(path)} {stored.content}".encode(errors="surrogateescape")).hexdigest()[:32]
    )
    copy = folder / f"{path.stem[:_LONGEST_NAME].lstrip('.')}{path.suffix}"
    while True:
        lock = _lock(folder, fcntl.LOCK_SH, on_progress)
        if copy.exists():
            break
        os.close(lock)
        lock = _lock(folder, fcntl.LOCK_EX, on_progress)
        try:
            if not copy.exists():
                _download(stored, copy, on_progress)
        finally:
            os.close(lock)
    try:
        os.utime(folder)
        yield copy
    finally:
        os.close(lock)
        _make_room(0)


def _download(stored: StoredObject, copy: Path, on_progress: Callable[[], None]) -> None:
    part, bucket = copy.with_name(".part"), shown(stored.path).split("/")[2]
    digests: list[str] = []
    while True:
        _make_room(stored.size - (part.stat().st_size if part.exists() else 0))
        _fetch(stored, part, on_progress)
        if object_of(stored.path).content != stored.content:
            part.unlink()
            raise FileChanged(f"{shown(stored.path)}: was replaced while it was copied")
        if not stored.md5 or bucket in _not_md5:
            break
        with part.open("rb") as file:
            digests.append(hashlib.file_digest(file, "md5").hexdigest())
        if digests[-1] == stored.md5:
            break
        if len(digests) == 2 and digests[0] == digests[1]:
            _not_md5.add(bucket)
            break
        part.unlink()
        if len(digests) == 2:
            raise NotFinished(f"{shown(stored.path)}: was downloaded twice, but both copies are damaged (wrong MD5)")
        log.debug("%s: the copy has another MD5 than the object; it is copied again", shown(stored.path))
    os.replace(part, copy)


def _fetch(stored: StoredObject, part: Path, on_progress: Callable[[], None]) -> None:
    """Download the bytes that are missing in an incomplete copy."""
    with _store_errors(stored.path, NotFinished):
        store, name = _store(stored.path)
    with part.open("ab", buffering=0) as file:
        have = file.tell()
        if have > stored.size:
            have = file.truncate(0)
        while have < stored.size:
            with _store_errors(stored.path, NotFinished):
                block = store.cat_file(name, start=have, end=min(have + BLOCK_BYTES, stored.size))
            if not block:
                raise NotFinished(f"{shown(stored.path)}: the store sent only {have} of {stored.size} bytes")
            try:
                have += file.write(block)  # if the disk becomes full, only a part may be written
            except OSError as error:
                raise NotFinished(f"{shown(stored.path)}: can't be copied to {cache_folder()}: {error.strerror}") from error
            on_progress()


def _lock(folder: Path, kind: int, on_progress: Callable[[], None]) -> int:
    """Lock a folder, after waiting if necessary, and return its descriptor.

    To release the lock, close the descriptor.
    """
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # after `mkdir`, another process removed the folder
            continue
        except OSError as error:
            raise NotFinished(f"{folder}: copies of footage can't be kept here: {error.strerror}") from error
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            if os.stat(folder).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)
        on_progress()
        time.sleep(_WAIT_S)


def _make_room(size: int) -> None:
    """Make room for `size` more bytes: remove copies that nobody reads, the least recently used first."""
    copies: list[tuple[float, int, Path]] = []
    for folder in cache_folder().glob("*/"):
        with suppress(OSError):
            copy_bytes = sum(file.stat().st_size for file in folder.iterdir())
            copies.append((folder.stat().st_mtime, copy_bytes, folder))
    total, limit = size + sum(copy_bytes for _, copy_bytes, _ in copies), cache_bytes()
    for _, copy_bytes, folder in sorted(copies):
        if total <= limit:
            return
        total -= copy_bytes if _remove(folder) else 0


def _remove(folder: Path) -> bool:
    """Remove the folder of a copy; return False if another process uses it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(folder).st_ino != os.fstat(descriptor).st_ino:  # another process removed this folder and made a new folder
            return False
        renamed = folder.with_name(f"{folder.name}-{os.getpid()}-gone")
        folder.rename(renamed)  # so a process that waits for the lock makes a new folder and does not use this folder
        shutil.rmtree(renamed, ignore_errors=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _store(path: Path) -> tuple[Any, str]:
    """Return fsspec's file system for the store of a path, and the path's name in this file system."""
    from fsspec.core import url_to_fs

    file_system: tuple[Any, str] = url_to_fs(shown(path), use_listings_cache=False)
    return file_system


@contextmanager
def _store_errors(path: Path, kind: type[VadcliError]) -> Iterator[None]:
    """Turn every error of a store's package into an error of type `kind`, with a message of one line."""
    url = shown(path)
    if _PASSWORD.match(url):
        raise UsageError(
            "a URL of footage must not contain a password", hint="the store's package reads it from environment variables"
        )
    protocol = url.partition(":")[0]
    try:
        yield
    except VadcliError:
        raise
    except ImportError as error:
        hint = f"pip install 'vadcli[{STORES[protocol]}]'"
        raise kind(f"{url}: the package that reads {protocol}:// is not installed", hint=hint) from error
    except FileNotFoundError as error:
        missing = FileChanged if issubclass(kind, NotFinished) else kind
        raise missing(f"{url}: the object, folder or bucket does not exist") from error
    except PermissionError as error:
        raise kind(f"{url}: the store denies access", hint="set the store's credentials in environment variables") from error
    except Exception as error:  # each store's package has its own errors
        first_line = (str(error).strip().splitlines() or [""])[0][:200]
        raise kind(f"{url}: can't be read: {first_line or type(error).__name__}") from error


def _stored_object(path: Path, info: Mapping[str, Any]) -> StoredObject:
    size, tag = int(info["size"] or 0), str(info.get("ETag") or info.get("etag") or "").strip('"')
    changed = next((info[key] for key in _TIMES if info.get(key)), 0)
    if isinstance(changed, str):
        changed = datetime.fromisoformat(changed)
    seconds = int(changed.timestamp() if isinstance(changed, datetime) else changed)
    content = hashlib.sha256(f"{size} {tag or seconds}".encode()).hexdigest()
    return StoredObject(path, size, seconds * 10**9, content, tag if _MD5.fullmatch(tag) else "")
