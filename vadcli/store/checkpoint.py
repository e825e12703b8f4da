"""A running video's raw scores, so far: one Arrow IPC stream beside the final name, also the claim on the video.

Whole blocks are appended in one write each, so that a process that dies leaves whole blocks and at most one torn one; the next
process cuts that off and goes on in the same file. Each block carries a checksum. Nothing is held in memory but one block.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from vadcli.errors import DocumentError
from vadcli.store.atomic import FileLock, writing
from vadcli.store.checkpoint_blocks import (
    CheckpointBlock,
    CheckpointHeader,
    checked_rows,
    from_arrow,
    header_of,
    schema_of,
    to_arrow,
)

__all__ = ["Checkpoint", "CheckpointBlock", "CheckpointHeader", "CheckpointWriter", "Claim", "read_checkpoint"]

_FSYNC_EVERY_S = 5.0
_UNREADABLE = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError)  # damaged lengths ask for absurd sizes


class Claim:
    """The right to work on one video: a lock on its checkpoint file that dies with this process."""

    def __init__(self, lock: FileLock) -> None:
        self._lock = lock

    @classmethod
    def acquire(cls, path: Path) -> Claim | None:
        """Claim the video whose checkpoint is at `path`; None where another process works on it.

        Who gets a claim looks again whether the video is done: the one who held it before may just have finished it.

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
        """Let others have the video. The checkpoint goes where `delete`, or where nothing was written to it."""
        if self.fd < 0:
            return
        with writing(self.path):
            self._lock.release(delete=delete or os.fstat(self.fd).st_size == 0)


class CheckpointWriter:
    """Appends blocks to a claimed checkpoint.

    Args:
        claim: the video's claim; it must outlive the writer.
        header: what the checkpoint belongs to.
        resume: go on after its last whole block; None starts anew.
        fsync_every_s: least seconds between two fsyncs by `flush`.
    """

    def __init__(
        self,
        claim: Claim,
        header: CheckpointHeader,
        *,
        resume: Checkpoint | None = None,
        fsync_every_s: float = _FSYNC_EVERY_S,
    ) -> None:
        if resume is not None and resume.header.to_bytes() != header.to_bytes():
            raise ValueError(f"{claim.path}: the checkpoint belongs to another scan")
        self.header = header
        self.rows = resume.rows if resume else 0
        self._claim = claim
        self._schema = schema_of(header)
        self._fsync_every_s = fsync_every_s
        self._synced_at = time.monotonic()
        self._last_row = resume.last_row if resume else -1
        self._end = resume.end if resume else 0
        with writing(claim.path):
            os.ftruncate(claim.fd, self._end)
            if not resume:
                self._write(self._schema.serialize().to_pybytes())

    def append(self, block: CheckpointBlock) -> None:
        """Add rows after those already there. They survive this process at once, a power cut after the next fsync.

        Raises:
            OutputError: the disk is full or gone; what was there before stays.
            ValueError: rows out of order or of another shape than the header's.
        """
        if not len(block):
            return
        self._check(block)
        with writing(self._claim.path):
            self._write(to_arrow(block, self.header, self._schema).serialize().to_pybytes())
        self.rows += len(block)
        self._last_row = int(block.frame_index[-1])

    def flush(self, *, force: bool = False) -> None:
        """Make it survive a power cut; does nothing where the last time was moments ago, unless `force`."""
        now = time.monotonic()
        if force or now - self._synced_at >= self._fsync_every_s:
            with writing(self._claim.path):
                os.fsync(self._claim.fd)
            self._synced_at = now

    def _check(self, block: CheckpointBlock) -> None:
        if block.frame_index[0] <= self._last_row or np.any(np.diff(block.frame_index) <= 0):
            raise ValueError(f"{self._claim.path}: rows must go on after row {self._last_row}")
        if block.raw.shape[1] != self.header.channels:
            raise ValueError(f"{self._claim.path}: {block.raw.shape[1]} channels instead of {self.header.channels}")
        shape = None if block.mask is None else block.mask.shape[1:]
        if shape != self.header.mask_shape:
            raise ValueError(f"{self._claim.path}: masks of shape {shape} instead of {self.header.mask_shape}")

    def _write(self, data: bytes) -> None:
        """All of it or, as far as the disk lets us, nothing of it."""
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._claim.fd, memoryview(data)[done:], self._end + done)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._claim.fd, self._end)
            raise
        self._end += len(data)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds: its header and how far its whole blocks go.

    Attributes:
        path: the file.
        header: what it belongs to.
        rows: how many whole rows it holds.
        last_row: frame_index of the last one, -1 where there is none.
        end: bytes up to the end of the last whole block; what follows is torn.
    """

    path: Path
    header: CheckpointHeader
    rows: int
    last_row: int
    end: int

    def blocks(self, *, masks: bool = False) -> Iterator[CheckpointBlock]:
        """The stored blocks in order, one in memory at a time; masks are read only where asked for.

        Raises:
            DocumentError: the file changed since it was opened.
        """
        with self.path.open("rb") as file:
            try:
                for batch in _batches(file, self.end):
                    yield from_arrow(batch, self.header, masks=masks)
            except (*_UNREADABLE, StopIteration) as error:
                raise DocumentError(
                    f"{self.path}: the checkpoint changed while it was read ({error})", hint="scan again"
                ) from error


def read_checkpoint(path: Path) -> Checkpoint | None:
    """How far the checkpoint at `path` goes; None where there is none, or nothing in it that can be gone on with.

    A torn or damaged block ends it; the whole blocks before it count.
    """
    try:
        with path.open("rb") as file:
            return _scan(path, file)
    except OSError:
        return None


def _scan(path: Path, file: BinaryIO) -> Checkpoint | None:
    try:
        stream = pa.ipc.open_stream(pa.PythonFile(file, "r"))
        header = header_of(stream.schema)
    except (*_UNREADABLE, KeyError, TypeError):
        return None
    rows, last_row, end = 0, -1, file.tell()
    with suppress(*_UNREADABLE, StopIteration):
        while True:
            batch = stream.read_next_batch()
            first, last = checked_rows(batch)
            if first <= last_row:
                break
            rows, last_row, end = rows + len(batch), last, file.tell()
    return Checkpoint(path, header, rows, last_row, end)


def _batches(file: BinaryIO, end: int) -> Iterator[pa.RecordBatch]:
    stream = pa.ipc.open_stream(pa.PythonFile(file, "r"))
    while file.tell() < end:
        yield stream.read_next_batch()
