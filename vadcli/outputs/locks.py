"""A lock on a file that dies with the process that holds it, children or not."""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
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
