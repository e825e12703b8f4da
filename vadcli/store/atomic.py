"""A lock on a file that dies with the process that holds it, children or not.

Whole files or none: write to a temporary, fsync, rename; and nothing is left of temporaries whatever ends the process.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import secrets
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from vadcli.errors import OutputError

_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """An exclusive lock on the file at `path`; made by `acquire`.

    The file may be deleted and made anew by others at any time: whoever holds a FileLock holds the file that was at the
    path when the lock was got, and it stays there until the holder deletes it. A forked child closes its copy, so that
    the lock is gone as soon as the process that took it is.

    Attributes:
        path: the locked file.
        fd: its descriptor, open for reading and writing.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        _held.add(self)

    @classmethod
    def acquire(cls, path: Path) -> FileLock | None:
        """Lock the file, making it where it is missing; None where another process holds it.

        Raises:
            OSError: the file can't be made.
            OutputError: the file system has no locks.
        """
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if not _lock(fd, path):
                    os.close(fd)
                    return None
                if _is_at(fd, path):
                    return cls(path, fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def release(self, *, delete: bool = False) -> None:
        """Give the lock back; the file goes with it where `delete`. More than once is harmless."""
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
            hint = "choose a folder on a local disk with --out"
            raise OutputError(f"{path}: the file system does not lock files", hint=hint) from None
        raise
    return True


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _close_in_child() -> None:
    for lock in list(_held):
        lock._close()


os.register_at_fork(after_in_child=_close_in_child)


_LOCK_NAME = "lock"
_OUTPUT_ERRORS = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the system allows",
    errno.EROFS: "the file system is read-only",
}
_FSYNC_NOT_OFFERED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def output_error(path: Path, error: OSError) -> OutputError:
    """The one line that says why `path` can't be written."""
    reason = _OUTPUT_ERRORS.get(error.errno or 0) or (error.strerror or str(error)).lower()
    if error.errno in (errno.EACCES, errno.EPERM):
        return OutputError(f"{path}: {reason}", hint="make the folder writable or choose another with --out")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return OutputError(f"{path}: {reason}", hint="a file lies where a folder is needed: choose another place")
    if error.errno == errno.EXDEV:
        return OutputError(f"{path}: {reason}", hint="the output folder must lie on one file system")
    return OutputError(f"{path}: {reason}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block, which writes to `path` alone, into an OutputError."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


class Scratch:
    """The temporaries of one process: a locked folder of its own under OUT/.tmp, open as a context manager.

    Opening removes what dead processes left; closing removes its own folder, and OUT/.tmp where nobody else works.

    Args:
        root: OUT/.tmp.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder: Path | None = None
        self._lock: FileLock | None = None
        self._numbers = itertools.count(1)

    @property
    def folder(self) -> Path:
        """This process's own folder."""
        if self._folder is None:
            raise RuntimeError("the scratch folder is not open")
        return self._folder

    def __enter__(self) -> Scratch:
        with writing(self.root):
            remove_abandoned(self.root)
            self._folder, self._lock = _own_folder(self.root)
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
        """A temporary path to write; it takes the final name when the block ends well and vanishes when not.

        The temporary has the final name's suffix. Folders on the way are made.

        Raises:
            OutputError: no space, no permission, a read-only file system; `final` is as it was before.
        """
        temporary = self.folder / f"{next(self._numbers)}{final.suffix}"
        try:
            with _output_errors(final, temporary):
                yield temporary
            with writing(final):
                _move(temporary, final)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def write_bytes(self, final: Path, data: bytes) -> None:
        """Write a whole file or none."""
        with self.replace(final) as temporary:
            temporary.write_bytes(data)

    def write_text(self, final: Path, text: str) -> None:
        """Write a whole UTF-8 file or none."""
        self.write_bytes(final, text.encode())


@contextmanager
def _output_errors(final: Path, temporary: Path) -> Iterator[None]:
    """Like `writing`, for a block that may read other files too: their errors stay what they are."""
    try:
        yield
    except OSError as error:
        ours = error.filename is not None and os.fsdecode(error.filename) == os.fspath(temporary)
        if ours or error.errno in _OUTPUT_ERRORS:
            raise output_error(final, error) from error
        raise


def _move(temporary: Path, final: Path) -> None:
    _fsync(temporary)
    final.parent.mkdir(parents=True, exist_ok=True)
    os.replace(temporary, final)
    _fsync(final.parent)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _FSYNC_NOT_OFFERED:
            raise
    finally:
        os.close(fd)


def _own_folder(root: Path) -> tuple[Path, FileLock]:
    """A new folder with its lock held. Another process may take it for abandoned before it is locked: then another one."""
    while True:
        root.parent.mkdir(parents=True, exist_ok=True)
        folder = root / f"{os.getpid()}-{secrets.token_hex(4)}"
        with suppress(FileExistsError):
            root.mkdir()
        with suppress(FileNotFoundError):
            folder.mkdir()
            lock = FileLock.acquire(folder / _LOCK_NAME)
            if lock is not None:
                return folder, lock


def remove_abandoned(root: Path) -> None:
    """Remove the folders of processes that are dead; those of living ones, and of other users, stay."""
    try:
        folders = [entry for entry in root.iterdir() if entry.is_dir()]
    except FileNotFoundError:
        return
    for folder in folders:
        with suppress(FileNotFoundError, PermissionError):
            lock = FileLock.acquire(folder / _LOCK_NAME)
            if lock is not None:
                _remove(folder, lock)


def _remove(folder: Path, lock: FileLock) -> None:
    """Remove a folder that we hold; its lock goes last, so that nobody takes a half-removed folder for a new one."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != _LOCK_NAME:
            with suppress(OSError):
                entry.unlink()
    with suppress(OSError):
        lock.release(delete=True)
        folder.rmdir()
