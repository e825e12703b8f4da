"""Locks files, and writes a file completely or not at all.

A lock lasts until it is released or its process ends. A file is first written under a temporary name, then synced with fsync,
then renamed. If a process is killed, the next process removes the temporary files of the killed process.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import secrets
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from vadcli.errors import OutputError
from vadcli.types.text import no_folder

_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """An exclusive lock on the file at `path`.

    Use `acquire` to get a lock. Only the holder of the lock may delete the file.

    Attributes:
        path: the locked file.
        fd: the file's descriptor, open for reading and writing.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        _held.add(self)

    @classmethod
    def acquire(cls, path: Path) -> FileLock | None:
        """Create the file if it does not exist, and lock it. Return None if another process has the lock.

        Raises:
            OSError: the file can't be created.
            OutputError: the file system does not support locks.
        """
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if not _lock(fd, path):
                    os.close(fd)
                    return None
                with suppress(FileNotFoundError):
                    # Another process may have deleted the file before it was locked here. If so, try again with a new file.
                    if os.path.samestat(os.fstat(fd), os.stat(path)):
                        return cls(path, fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def release(self, *, delete: bool = False) -> None:
        """Release the lock, and delete the file if `delete` is true. Calling this method again does nothing."""
        if self.fd < 0:
            return
        try:
            if delete:
                self.path.unlink(missing_ok=True)
        finally:
            self._close()

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def _lock(fd: int, path: Path) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS_HERE:
            hint = "choose a folder on a local disk"
            raise OutputError(f"{path}: the file system does not support file locks", hint=hint) from None
        raise
    return True


def _close_in_child() -> None:
    for lock in list(_held):
        lock._close()


# A forked child closes its copies of the descriptors. Otherwise the child would keep the locks after its parent has ended.
os.register_at_fork(after_in_child=_close_in_child)


_LOCK_NAME = "lock"
_SCRATCH_NAME = re.compile(r"\d+-[0-9a-f]+")  # the id of the process, and random digits
_OUTPUT_ERRORS = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the system allows",
    errno.EROFS: "the file system is read-only",
}
_OUTPUT_HINTS = {
    errno.EACCES: "make the folder writable, or choose another folder",
    errno.EPERM: "make the folder writable, or choose another folder",
    errno.EISDIR: "add the name of a file",
    errno.EEXIST: "a file has the name of a folder that is needed: choose another place",
    errno.ENOTDIR: "a file has the name of a folder that is needed: choose another place",
    errno.EXDEV: "the output folder must be on one file system",
}
_FSYNC_NOT_OFFERED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def output_error(path: Path, error: OSError) -> OutputError:
    """Return the error that says in one line why `path` can't be written."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        for place in (path, *path.parents):
            if place.is_file():
                name = "" if place == path else f"{place} "
                return OutputError(f"{path}: {name}{no_folder(place)}", hint="choose another place")
    reason = _OUTPUT_ERRORS.get(error.errno or 0) or (error.strerror or str(error)).lower()
    return OutputError(f"{path}: {reason}", hint=_OUTPUT_HINTS.get(error.errno or 0, ""))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError in the `with` block into an OutputError about `path`.

    The block must write only to this path.
    """
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


def check_folder(folder: Path) -> None:
    """Create a folder if it is missing, and check that a file can be written to it.

    Raises:
        OutputError: the folder can't be created, or no file can be written to it.
    """
    with Scratch(folder / ".tmp"):
        pass


def remove(path: Path) -> None:
    """Remove a file if it exists.

    Raises:
        OutputError: the file can't be removed.
    """
    with writing(path):
        path.unlink(missing_ok=True)


def write_unsynced(final: Path, text: str) -> None:
    """Write a complete UTF-8 file without fsync. After a power cut, the file may be empty.

    Raises:
        OutputError: the file can't be written. The old file stays as it was.
    """
    temporary = final.with_name(f".{final.name}.new")
    with writing(final):
        temporary.write_text(text, encoding="utf-8", newline="")
        os.replace(temporary, final)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Call `write(temporary folder)`, then rename the temporary folder to `folder`.

    So `folder` always has all of its files. If `folder` exists, it is replaced.

    Raises:
        OutputError: the folder can't be written.
    """
    temporary, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old"))
    with writing(folder):
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            _fsync(path)
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)


class Scratch:
    """A context manager that makes a locked folder under OUT/.tmp for the temporary files of this process.

    On entry, it removes the folders of processes that have ended. On exit, it removes its own folder.

    Args:
        root: OUT/.tmp. This folder is removed on exit if it is empty.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder: Path | None = None
        self._lock: FileLock | None = None
        self._numbers = itertools.count(1)

    @property
    def folder(self) -> Path:
        """The folder of this process."""
        if self._folder is None:
            raise RuntimeError("the scratch folder is not open")
        return self._folder

    def __enter__(self) -> Scratch:
        with writing(self.root.parent):
            _remove_abandoned(self.root)
            while self._lock is None:  # another process may remove a new folder before it is locked
                self.root.parent.mkdir(parents=True, exist_ok=True)
                folder = self.root / f"{os.getpid()}-{secrets.token_hex(4)}"
                with suppress(FileExistsError):
                    self.root.mkdir()
                with suppress(FileNotFoundError):
                    folder.mkdir()
                    self._lock = FileLock.acquire(folder / _LOCK_NAME)
            self._folder = folder
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        folder, lock = self._folder, self._lock
        self._folder = self._lock = None
        if folder is not None and lock is not None:
            _remove(folder, lock)
        with suppress(OSError):
            self.root.rmdir()

    @contextmanager
    def replace(self, final: Path) -> Iterator[Path]:
        """Yield the path of a temporary file, which is renamed to `final` at the end of the `with` block.

        After an error, the temporary file is removed instead. Both paths have the same suffix. Missing folders are created.

        Raises:
            OutputError: space or permission is missing, or the file system is read-only. `final` is unchanged.
        """
        temporary = self.folder / f"{next(self._numbers)}{final.suffix}"
        try:
            try:
                yield temporary
            except OSError as error:
                # The block may also read other files. Errors in reading them are raised unchanged.
                is_own = error.filename is not None and os.fsdecode(error.filename) == os.fspath(temporary)
                if is_own or error.errno in _OUTPUT_ERRORS:
                    raise output_error(final, error) from error
                raise
            with writing(final):
                _fsync(temporary)
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, final)
                _fsync(final.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def write_bytes(self, final: Path, data: bytes) -> None:
        """Write a complete file. If that fails, the old file stays as it was."""
        with self.replace(final) as temporary:
            temporary.write_bytes(data)

    def write_text(self, final: Path, text: str) -> None:
        """Write a complete UTF-8 file. If that fails, the old file stays as it was."""
        self.write_bytes(final, text.encode())


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _FSYNC_NOT_OFFERED:
            raise
    finally:
        os.close(fd)


def _remove_abandoned(root: Path) -> None:
    """Remove the folders of processes that have ended. Folders that belong to other users are kept.

    The user may have chosen a folder that already has a `.tmp` with other contents. So only folders whose names have the form
    that `Scratch` gives are removed.
    """
    try:
        folders = [entry for entry in root.iterdir() if _SCRATCH_NAME.fullmatch(entry.name) and entry.is_dir()]
    except FileNotFoundError:
        return
    for folder in folders:
        with suppress(FileNotFoundError, PermissionError):
            lock = FileLock.acquire(folder / _LOCK_NAME)
            if lock is not None:
                _remove(folder, lock)


def _remove(folder: Path, lock: FileLock) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != _LOCK_NAME:
            with suppress(OSError):
                entry.unlink()
    with suppress(OSError):  # the lock file is deleted last, so that no other process locks it too early
        lock.release(delete=True)
        folder.rmdir()


class Claim:
    """The right to work on one video: a lock on its checkpoint file. The lock ends with this process."""

    def __init__(self, lock: FileLock) -> None:
        self._lock = lock

    @classmethod
    def acquire(cls, path: Path) -> Claim | None:
        """Claim the video whose checkpoint is at `path`. Return None if another process works on the video.

        After you get a claim, check again whether the video is done: another process may just have finished it.

        Raises:
            OutputError: the folder can't be written.
        """
        with writing(path):
            while True:
                path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    lock = FileLock.acquire(path)
                    return None if lock is None else cls(lock)

    @property
    def path(self) -> Path:
        """The checkpoint file."""
        return self._lock.path

    @property
    def fd(self) -> int:
        """The checkpoint file's descriptor."""
        return self._lock.fd

    def release(self, *, delete: bool) -> None:
        """Let other processes claim the video. Delete the checkpoint if `delete` is true or the file is empty."""
        if self.fd < 0:
            return
        with writing(self.path):
            self._lock.release(delete=delete or os.fstat(self.fd).st_size == 0)
