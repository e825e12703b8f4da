"""Decides whether the machine or the video is at fault, after a video could not be read completely.

A machine's fault passes: a network share vanishes, a permission is missing for a moment, memory runs out, a program is being
updated. Such a video is not finished. Nothing is stored for it, so the next run tries again.

Errors in a file's content can look the same: ffmpeg's libraries report "Input/output error" if a file is cut short, and "Cannot
allocate memory" if a header asks for too much. So these are believed only if the same trouble appears without ffmpeg.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil

from vadcli.errors import NotFinished
from vadcli.video.container import printable

MACHINE_ERRORS = frozenset(
    {
        *(errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.ENOLINK, errno.EREMOTEIO, errno.ENOMEDIUM),
        *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET),
        *(errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ESHUTDOWN, errno.EBUSY),
        *(errno.EACCES, errno.EMFILE, errno.ENFILE, errno.EKEYEXPIRED, errno.EKEYREVOKED, errno.EUCLEAN),
    }
)
"""System errors that no content of a file can cause."""

_SAMPLE_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 22
_SCARCE_BYTES = 256 << 20


def check_machine(path: Path, said: str) -> None:
    """Do nothing if the video itself is the reason why it could not be read completely.

    Args:
        path: the file, or the folder of images.
        said: all messages about the trouble.

    Raises:
        NotFinished: the machine is the reason.
    """
    name = printable(path)
    for number in sorted(MACHINE_ERRORS):
        if os.strerror(number) in said:
            raise NotFinished(f"{name}: can't be read at the moment: {os.strerror(number)}")
    if os.strerror(errno.ENOMEM) in said or "MemoryError" in said:
        _check_memory(name)
    try:
        for part in _parts(path, whole=os.strerror(errno.EIO) in said):
            with part.open("rb", buffering=0) as file:
                _read_samples(file.fileno(), whole=os.strerror(errno.EIO) in said)
    except OSError as error:
        raise NotFinished(f"{name}: can't be read at the moment: {error.strerror}") from error


def _parts(path: Path, *, whole: bool) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    files = sorted(entry for entry in path.iterdir() if entry.is_file())
    yield from files if whole else files[:1] + files[-1:]


def _read_samples(descriptor: int, *, whole: bool) -> None:
    size = os.fstat(descriptor).st_size
    if whole:
        while os.read(descriptor, _CHUNK_BYTES):
            pass
    for start in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
        os.pread(descriptor, _SAMPLE_BYTES, start)


def _check_memory(name: str) -> None:
    """Raise NotFinished if there is little memory even now, without the video."""
    try:
        is_scarce = psutil.virtual_memory().available < _SCARCE_BYTES
        with closing(mmap.mmap(-1, _SCARCE_BYTES)):
            pass
    except (OSError, ValueError):
        is_scarce = True
    if is_scarce:
        raise NotFinished(f"{name}: the machine has too little memory at the moment")
