"""The checkpoint of a video that is being scanned: its raw scores so far, as one Arrow IPC stream.

The file is in the folder of the finished scores. The process that scans the video locks the file. Blocks of rows are added at
the end of the file; each block has a checksum. If a process dies, the last block may be torn (incomplete). The next process
removes the torn block and continues in the same file. At most one block is in memory.

This module avoids the methods of pyarrow that import pyarrow.compute, because this import delays the end of a short scan.
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
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vadcli.errors import DocumentError
from vadcli.store.atomic import Claim, writing
from vadcli.types import BoolArray, ByteArray, FloatArray, IndexArray, RowTable
from vadcli.types.text import structure

CHECKPOINT_VERSION = 2
_HEADER_KEY = b"vadcli.checkpoint"
_FSYNC_EVERY_S = 5.0
# Speed matters more than size: the masks are compressed while a device waits for clips.
_MASK_CODEC, _MASK_LEVEL = "zstd", 1
# MemoryError and OverflowError come from a damaged length in the file: the reader requests that much memory.
_UNREADABLE = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError)


@dataclass(frozen=True)
class CheckpointHeader:
    """Describes the scan that wrote a checkpoint.

    A later scan continues the checkpoint only if the later scan has the same header.

    Attributes:
        fingerprint: hash of everything that changes scores.
        interval: frames from one sampled frame to the next, at least 1.
        channels: K, the number of raw scores per sampled row, at least 1.
        mask_shape: (h, w) of the stored masks; None if no masks are stored.
        video: the result of the probe, and other values that the next run needs, as JSON values.
        embedding_bytes: bytes of a packed embedding; 0 if no embeddings are stored.
        box_level: the lowest pixel score (0-255) inside the stored boxes; 0 if there are no boxes.
    """

    fingerprint: str
    interval: int
    channels: int
    mask_shape: tuple[int, int] | None = None
    video: Mapping[str, Any] = field(default_factory=dict)
    embedding_bytes: int = 0
    box_level: int = 128  # older checkpoints do not store the level; this was always their level

    def __post_init__(self) -> None:
        if self.channels < 1 or self.interval < 1:
            raise ValueError(f"channels ({self.channels}) and interval ({self.interval}) of a checkpoint must be at least 1")

    def to_bytes(self) -> bytes:
        """Return the header as JSON, for the metadata of the Arrow stream."""
        return json.dumps({"version": CHECKPOINT_VERSION, **asdict(self)}, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> CheckpointHeader:
        """Return the header that `to_bytes` wrote as JSON.

        Raises:
            KeyError, TypeError, ValueError: this is not a header, or it has another version.
        """
        values = dict(json.loads(data))
        if values.pop("version") != CHECKPOINT_VERSION:
            raise ValueError("this checkpoint was written by another version")
        return structure(cls, values, "checkpoint")


@dataclass(frozen=True)
class CheckpointBlock(RowTable):
    """R consecutive rows of a video that is being scanned, one row per frame.

    Attributes:
        frame_index: (R,) int64, number of the frame in the video, from 0.
        pts: (R,) int64, time of the frame in the stream's time base.
        decode_ok: (R,) bool, False if the frame is lost or the decoder concealed damage in it.
        sampled: (R,) bool, True if the detector sees the frame.
        raw: (R, K) float32, the detector's raw scores in K channels; NaN in rows that are not sampled.
        bbox: (R, 4) int32 x, y, width, height in display pixels; the width is 0 if a row has no box.
        mask: (R, h, w) uint8, round(255 × mask) on the detector's mask scale; 0 in rows that are not sampled. None if no masks
            are stored, or if the reader did not ask for them.
        embedding: (R, E) uint8, packed as by `Embeddings.pack`; 0 in rows that are not sampled. None if no embeddings are
            stored, or if the reader did not ask for them.
    """

    frame_index: IndexArray
    pts: IndexArray
    decode_ok: BoolArray
    sampled: BoolArray
    raw: FloatArray
    bbox: NDArray[np.int32]
    mask: ByteArray | None = None
    embedding: ByteArray | None = None

    def __post_init__(self) -> None:
        rows = len(self.frame_index)
        if any(len(column) != rows for column in self.columns().values()):
            raise ValueError(f"a checkpoint block of {rows} rows has a column with another number of rows")
        if self.raw.ndim != 2 or self.bbox.shape != (rows, 4):
            raise ValueError(f"raw must be (R, K) and bbox (R, 4), not {self.raw.shape} and {self.bbox.shape}")


class CheckpointWriter:
    """Appends blocks of rows to a checkpoint.

    Args:
        claim: the lock on the checkpoint file. Do not release this lock while the writer is in use.
        header: describes this scan.
        resume: the checkpoint to continue, after its last whole block. None starts an empty checkpoint.
        fsync_every_s: `flush` without `force` calls fsync at most once per this many seconds.
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
        self._rows = resume.rows if resume else 0
        self._claim = claim
        self._schema = _schema_of(header)
        self._fsync_every_s = fsync_every_s
        self._synced_at = time.monotonic()
        self._last_row = resume.last_row if resume else -1
        self._end = resume.end if resume else 0
        with writing(claim.path):
            os.ftruncate(claim.fd, self._end)
            if not resume:
                self._write(self._schema.serialize().to_pybytes())

    @property
    def stored(self) -> Checkpoint:
        """What the file contains now."""
        return Checkpoint(self._claim.path, self.header, self._rows, self._last_row, self._end)

    def append(self, block: CheckpointBlock) -> None:
        """Add rows after the stored rows.

        The new rows survive the end of this process. After the next `flush`, they also survive a power cut.

        Raises:
            OutputError: the disk is full or was removed. The rows that were stored before are kept.
            ValueError: the rows are out of order, or their shapes differ from the header's.
        """
        if not len(block):
            return
        header, path = self.header, self._claim.path
        if block.frame_index[0] <= self._last_row or np.any(np.diff(block.frame_index) <= 0):
            raise ValueError(f"{path}: rows must be in order and start after row {self._last_row}")
        if block.raw.shape[1] != header.channels:
            raise ValueError(f"{path}: {block.raw.shape[1]} channels instead of {header.channels}")
        shape = None if block.mask is None else block.mask.shape[1:]
        if shape != header.mask_shape:
            raise ValueError(f"{path}: masks of shape {shape} instead of {header.mask_shape}")
        size = 0 if block.embedding is None else block.embedding.shape[1]
        if size != header.embedding_bytes:
            raise ValueError(f"{path}: embeddings of {size} bytes instead of {header.embedding_bytes}")
        with writing(path):
            self._write(_to_arrow(block, self.header, self._schema).serialize().to_pybytes())
        self._rows += len(block)
        self._last_row = int(block.frame_index[-1])

    def flush(self, *, force: bool = False) -> None:
        """Make all rows survive a power cut.

        Without `force`, a call does nothing if the last fsync was less than `fsync_every_s` seconds ago.
        """
        now = time.monotonic()
        if force or now - self._synced_at >= self._fsync_every_s:
            with writing(self._claim.path):
                os.fsync(self._claim.fd)
            self._synced_at = now

    def _write(self, data: bytes) -> None:
        """Write all of the data. If that fails, remove the part that was written."""
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
    """The content of a checkpoint file: its header, and the place where its whole blocks end.

    Attributes:
        path: the file.
        header: describes the scan that wrote the file.
        rows: number of rows in whole blocks.
        last_row: frame_index of the last row in whole blocks; -1 if the file has no whole block.
        end: number of bytes up to the end of the last whole block. The bytes after it are a torn block.
    """

    path: Path
    header: CheckpointHeader
    rows: int
    last_row: int
    end: int

    def blocks(self, *, masks: bool = False, embeddings: bool = False) -> Iterator[CheckpointBlock]:
        """Yield the stored blocks in order. One block is in memory at a time.

        Args:
            masks: True also reads the masks.
            embeddings: True also reads the embeddings.

        Raises:
            DocumentError: the file changed after `read_checkpoint` read it.
        """
        with self.path.open("rb") as file:
            try:
                stream = pa.ipc.open_stream(pa.PythonFile(file, "r"))
                while file.tell() < self.end:
                    yield _from_arrow(stream.read_next_batch(), self.header, masks=masks, embeddings=embeddings)
            except (*_UNREADABLE, StopIteration) as error:
                raise DocumentError(
                    f"{self.path}: the checkpoint changed while it was read ({error})", hint="scan again"
                ) from error


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Return the checkpoint at `path`; None if the file does not exist or its header can't be read.

    Reading ends at the first torn or damaged block. Only the blocks before it are used.
    """
    with suppress(OSError), path.open("rb") as file:
        try:
            stream = pa.ipc.open_stream(pa.PythonFile(file, "r"))
            header = CheckpointHeader.from_bytes((stream.schema.metadata or {})[_HEADER_KEY])
            if not stream.schema.equals(_schema_of(header)):
                return None
        except (*_UNREADABLE, KeyError, TypeError):
            return None
        rows, last_row, end = 0, -1, file.tell()
        with suppress(*_UNREADABLE, StopIteration):
            while True:
                batch = stream.read_next_batch()
                batch.validate(full=True)
                if not len(batch) or batch.column("checksum")[0].as_py() != _checksum(batch.columns[:-1]):
                    break
                frame_index = batch.column("frame_index")
                if frame_index[0].as_py() <= last_row:
                    break
                rows, last_row, end = rows + len(batch), frame_index[-1].as_py(), file.tell()
        return Checkpoint(path, header, rows, last_row, end)
    return None


def _schema_of(header: CheckpointHeader) -> pa.Schema:
    fields = [
        ("frame_index", pa.int64()),
        ("pts", pa.int64()),
        ("decode_ok", pa.bool_()),
        ("sampled", pa.bool_()),
        ("raw", pa.list_(pa.float32(), header.channels)),
        ("bbox", pa.list_(pa.int32(), 4)),
        ("mask", pa.binary()),
        *([("embedding", pa.binary())] if header.embedding_bytes else []),
        ("checksum", pa.uint32()),
    ]
    return pa.schema(fields, metadata={_HEADER_KEY: header.to_bytes()})


def _to_arrow(block: CheckpointBlock, header: CheckpointHeader, schema: pa.Schema) -> pa.RecordBatch:
    """Return a block as it is stored: with compressed masks and a checksum in every row."""
    masks: list[bytes | None] = [None] * len(block)
    if block.mask is not None:
        codec = pa.Codec(_MASK_CODEC, _MASK_LEVEL)
        for row in np.flatnonzero(block.sampled):
            masks[row] = codec.compress(np.ascontiguousarray(block.mask[row], np.uint8), asbytes=True)
    raw = np.ascontiguousarray(block.raw, np.float32).ravel()
    bbox = np.ascontiguousarray(block.bbox, np.int32).ravel()
    valid = pa.py_buffer(np.packbits(block.sampled, bitorder="little"))
    columns = [
        pa.array(block.frame_index, pa.int64()),
        pa.array(block.pts, pa.int64()),
        pa.array(block.decode_ok, pa.bool_()),
        pa.array(block.sampled, pa.bool_()),
        pa.Array.from_buffers(schema.field("raw").type, len(block), [valid], children=[pa.array(raw)]),
        pa.FixedSizeListArray.from_arrays(pa.array(bbox), 4),
        pa.array(masks, pa.binary()),
    ]
    if block.embedding is not None:
        vectors = zip(block.embedding, block.sampled, strict=True)
        columns.append(pa.array([vector.tobytes() if sampled else None for vector, sampled in vectors], pa.binary()))
    checksum = np.full(len(block), _checksum(columns), np.uint32)
    return pa.RecordBatch.from_arrays([*columns, pa.array(checksum)], schema=schema)


def _valid(column: pa.Array) -> BoolArray:
    """Return which rows are not null, (rows,) bool; the same as column.is_valid(), without pyarrow.compute."""
    if not column.null_count:
        return np.ones(len(column), np.bool_)
    bits = np.unpackbits(np.frombuffer(column.buffers()[0], np.uint8), bitorder="little")
    return bits[column.offset : column.offset + len(column)].astype(np.bool_)


def _lists(column: pa.Array) -> NDArray[Any]:
    """Return one array (lists, list size) with all lists of a column. Null rows are left out."""
    values = column.values.to_numpy().reshape(-1, column.type.list_size)
    return np.asarray(values[column.offset : column.offset + len(column)][_valid(column)])


def _checksum(columns: list[pa.Array]) -> int:
    """Return one CRC-32 of all columns: the values, the places of nulls, and lengths of binary values."""
    crc = 0
    for column in columns:
        crc = zlib.crc32(_valid(column).tobytes(), crc)
        if pa.types.is_binary(column.type):
            values = [value for value in column.to_pylist() if value is not None]
            crc = zlib.crc32(np.array([len(value) for value in values], np.int64).tobytes(), crc)
            crc = zlib.crc32(b"".join(values), crc)
        elif pa.types.is_fixed_size_list(column.type):
            crc = zlib.crc32(_lists(column).tobytes(), crc)
        else:
            crc = zlib.crc32(column.to_numpy(zero_copy_only=False).tobytes(), crc)
    return crc


def _from_arrow(batch: pa.RecordBatch, header: CheckpointHeader, *, masks: bool, embeddings: bool) -> CheckpointBlock:
    """Return a stored block; leave out masks or embeddings if the argument of this name is False."""
    columns = {name: batch.column(name) for name in batch.schema.names}
    sampled = columns["sampled"].to_numpy(zero_copy_only=False)
    raw = np.full((len(batch), header.channels), np.nan, np.float32)
    raw[sampled] = _lists(columns["raw"])
    mask = None
    if masks and header.mask_shape is not None:
        mask = np.zeros((len(batch), *header.mask_shape), np.uint8)
        size = int(np.prod(header.mask_shape))
        for row, packed in enumerate(columns["mask"].to_pylist()):
            if packed is not None:
                unpacked = pa.decompress(packed, decompressed_size=size, codec=_MASK_CODEC, asbytes=True)
                mask[row] = np.frombuffer(unpacked, np.uint8).reshape(header.mask_shape)
    embedding = None
    if embeddings and header.embedding_bytes:
        embedding = np.zeros((len(batch), header.embedding_bytes), np.uint8)
        packed_rows = columns["embedding"].drop_null().to_pylist()
        embedding[sampled] = np.frombuffer(b"".join(packed_rows), np.uint8).reshape(-1, header.embedding_bytes)
    return CheckpointBlock(
        frame_index=columns["frame_index"].to_numpy(),
        pts=columns["pts"].to_numpy(),
        decode_ok=columns["decode_ok"].to_numpy(zero_copy_only=False),
        sampled=sampled,
        raw=raw,
        bbox=_lists(columns["bbox"]),
        mask=mask,
        embedding=embedding,
    )
