"""A running video's raw scores, so far: one Arrow IPC stream beside the final name, also the claim on the video.

Whole blocks are appended in one write each, so that a process that dies leaves whole blocks and at most one torn one; the next
process cuts that off and goes on in the same file. Each block carries a checksum. Nothing is held in memory but one block.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vadcli.errors import DocumentError
from vadcli.outputs.atomic import writing
from vadcli.outputs.locks import FileLock
from vadcli.types import BoolArray, ByteArray, FloatArray, IndexArray

CHECKPOINT_VERSION = 1
_HEADER_KEY = b"vadcli.checkpoint"
_FSYNC_EVERY_S = 5.0
_MASK_ZLIB_LEVEL = 1
_UNREADABLE = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError)  # damaged lengths ask for absurd sizes


@dataclass(frozen=True)
class CheckpointHeader:
    """What a checkpoint belongs to. One with another header can't be gone on with.

    Attributes:
        fingerprint: of everything that changes scores.
        interval: frames between samples.
        channels: K raw values a sampled row.
        mask_shape: (h, w) of the stored masks, None where none are stored.
        video: the probe and whatever else the next run needs, as JSON values.
    """

    fingerprint: str
    interval: int
    channels: int
    mask_shape: tuple[int, int] | None = None
    video: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.channels < 1 or self.interval < 1:
            raise ValueError(f"a checkpoint needs channels ({self.channels}) and an interval ({self.interval}) of at least 1")

    def to_bytes(self) -> bytes:
        """JSON, as it stands in the stream's metadata."""
        return json.dumps({"version": CHECKPOINT_VERSION, **asdict(self)}, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> CheckpointHeader:
        """The inverse of `to_bytes`.

        Raises:
            KeyError, TypeError, ValueError: it is no header, or one of another version.
        """
        values = dict(json.loads(data))
        if values.pop("version") != CHECKPOINT_VERSION:
            raise ValueError("a checkpoint of another version")
        shape = values["mask_shape"]
        return cls(**{**values, "mask_shape": None if shape is None else (int(shape[0]), int(shape[1]))})


@dataclass(frozen=True)
class CheckpointBlock:
    """R consecutive rows of a running video.

    Attributes:
        frame_index: (R,) int64.
        pts: (R,) int64.
        decode_ok: (R,) bool.
        sampled: (R,) bool.
        raw: (R, K) float32; only sampled rows are kept, the others read back as NaN.
        bbox: (R, 4) int32 x, y, width, height in display pixels; width 0 where there is none.
        mask: (R, h, w) uint8, round(255 × pixel score); only sampled rows are kept, the others read back as 0. None where
            none are stored or asked for.
    """

    frame_index: IndexArray
    pts: IndexArray
    decode_ok: BoolArray
    sampled: BoolArray
    raw: FloatArray
    bbox: NDArray[np.int32]
    mask: ByteArray | None = None

    def __post_init__(self) -> None:
        rows = len(self.frame_index)
        others = (self.pts, self.decode_ok, self.sampled, self.raw, self.bbox)
        if any(len(column) != rows for column in others) or (self.mask is not None and len(self.mask) != rows):
            raise ValueError(f"a checkpoint block of {rows} rows has columns of other lengths")
        if self.raw.ndim != 2 or self.bbox.shape != (rows, 4):
            raise ValueError(f"raw must be (R, K) and bbox (R, 4), not {self.raw.shape} and {self.bbox.shape}")

    def __len__(self) -> int:
        return len(self.frame_index)


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
        self._schema = _schema(header)
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
            self._write(_to_arrow(block, self.header, self._schema).serialize().to_pybytes())
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
                    yield _from_arrow(batch, self.header, masks=masks)
            except (*_UNREADABLE, StopIteration, zlib.error) as error:
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
        header = CheckpointHeader.from_bytes(stream.schema.metadata[_HEADER_KEY])
    except (*_UNREADABLE, KeyError, TypeError):
        return None
    if not stream.schema.equals(_schema(header)):
        return None
    rows, last_row, end = 0, -1, file.tell()
    with suppress(*_UNREADABLE, StopIteration):
        while True:
            batch = stream.read_next_batch()
            first, last = _checked(batch)
            if first <= last_row:
                break
            rows, last_row, end = rows + len(batch), last, file.tell()
    return Checkpoint(path, header, rows, last_row, end)


def _batches(file: BinaryIO, end: int) -> Iterator[pa.RecordBatch]:
    stream = pa.ipc.open_stream(pa.PythonFile(file, "r"))
    while file.tell() < end:
        yield stream.read_next_batch()


def _schema(header: CheckpointHeader) -> pa.Schema:
    fields = [
        ("frame_index", pa.int64()),
        ("pts", pa.int64()),
        ("decode_ok", pa.bool_()),
        ("sampled", pa.bool_()),
        ("raw", pa.list_(pa.float32(), header.channels)),
        ("bbox", pa.list_(pa.int32(), 4)),
        ("mask", pa.binary()),
        ("checksum", pa.uint32()),
    ]
    return pa.schema(fields, metadata={_HEADER_KEY: header.to_bytes()})


def _to_arrow(block: CheckpointBlock, header: CheckpointHeader, schema: pa.Schema) -> pa.RecordBatch:
    missing = ~block.sampled
    raw = np.ascontiguousarray(block.raw, np.float32).ravel()
    bbox = np.ascontiguousarray(block.bbox, np.int32).ravel()
    columns = [
        pa.array(block.frame_index, pa.int64()),
        pa.array(block.pts, pa.int64()),
        pa.array(block.decode_ok, pa.bool_()),
        pa.array(block.sampled, pa.bool_()),
        pa.FixedSizeListArray.from_arrays(pa.array(raw), header.channels, mask=pa.array(missing)),
        pa.FixedSizeListArray.from_arrays(pa.array(bbox), 4),
        pa.array(_packed_masks(block), pa.binary()),
    ]
    checksum = np.full(len(block), _checksum(columns), np.uint32)
    return pa.RecordBatch.from_arrays([*columns, pa.array(checksum)], schema=schema)


def _packed_masks(block: CheckpointBlock) -> list[bytes | None]:
    if block.mask is None:
        return [None] * len(block)
    masks = np.ascontiguousarray(block.mask, np.uint8)
    return [
        zlib.compress(mask.tobytes(), _MASK_ZLIB_LEVEL) if sampled else None
        for mask, sampled in zip(masks, block.sampled, strict=True)
    ]


def _checksum(columns: list[pa.Array]) -> int:
    """CRC-32 over everything that the columns say: which values are there, how long each mask is, and the values."""
    crc = 0
    for column in columns:
        crc = zlib.crc32(column.is_valid().to_numpy(zero_copy_only=False).tobytes(), crc)
        if pa.types.is_binary(column.type):
            values = column.drop_null().to_pylist()
            crc = zlib.crc32(np.array([len(value) for value in values], np.int64).tobytes(), crc)
            crc = zlib.crc32(b"".join(values), crc)
        elif pa.types.is_fixed_size_list(column.type):
            crc = zlib.crc32(column.flatten().to_numpy().tobytes(), crc)
        else:
            crc = zlib.crc32(column.to_numpy(zero_copy_only=False).tobytes(), crc)
    return crc


def _checked(batch: pa.RecordBatch) -> tuple[int, int]:
    """First and last row of a whole block.

    Raises:
        ValueError: its checksum is wrong, or it is no block.
    """
    batch.validate(full=True)
    if not len(batch) or batch.column("checksum")[0].as_py() != _checksum(batch.columns[:-1]):
        raise ValueError("the block is damaged")
    frame_index = batch.column("frame_index")
    return frame_index[0].as_py(), frame_index[-1].as_py()


def _from_arrow(batch: pa.RecordBatch, header: CheckpointHeader, *, masks: bool) -> CheckpointBlock:
    columns = {name: batch.column(name) for name in batch.schema.names}
    sampled = columns["sampled"].to_numpy(zero_copy_only=False)
    raw = np.full((len(batch), header.channels), np.nan, np.float32)
    raw[sampled] = columns["raw"].flatten().to_numpy().reshape(-1, header.channels)
    mask = None
    if masks and header.mask_shape is not None:
        mask = np.zeros((len(batch), *header.mask_shape), np.uint8)
        for row, packed in enumerate(columns["mask"].to_pylist()):
            if packed is not None:
                mask[row] = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(header.mask_shape)
    return CheckpointBlock(
        frame_index=columns["frame_index"].to_numpy(),
        pts=columns["pts"].to_numpy(),
        decode_ok=columns["decode_ok"].to_numpy(zero_copy_only=False),
        sampled=sampled,
        raw=raw,
        bbox=columns["bbox"].flatten().to_numpy().reshape(-1, 4),
        mask=mask,
    )
