"""What a checkpoint stores, as Arrow record batches: a header in the schema, blocks of rows with a checksum each."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vadcli.types import BoolArray, ByteArray, FloatArray, IndexArray

CHECKPOINT_VERSION = 2
_HEADER_KEY = b"vadcli.checkpoint"
_MASK_CODEC, _MASK_LEVEL = "zstd", 1  # quick rather than small: masks are packed beside a device that waits for clips


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


def schema_of(header: CheckpointHeader) -> pa.Schema:
    """The columns of a checkpoint with this header."""
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


def header_of(schema: pa.Schema) -> CheckpointHeader:
    """The header in a stream's schema.

    Raises:
        KeyError, TypeError, ValueError: there is none, or it does not fit the columns.
    """
    header = CheckpointHeader.from_bytes((schema.metadata or {})[_HEADER_KEY])
    if not schema.equals(schema_of(header)):
        raise ValueError("the columns are not those of a checkpoint")
    return header


def to_arrow(block: CheckpointBlock, header: CheckpointHeader, schema: pa.Schema) -> pa.RecordBatch:
    """A block as it is stored: masks compressed, a checksum beside."""
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
    codec = pa.Codec(_MASK_CODEC, _MASK_LEVEL)
    return [codec.compress(mask, asbytes=True) if sampled else None for mask, sampled in zip(masks, block.sampled, strict=True)]


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


def checked_rows(batch: pa.RecordBatch) -> tuple[int, int]:
    """First and last row of a whole block.

    Raises:
        ValueError: its checksum is wrong, or it is no block.
    """
    batch.validate(full=True)
    if not len(batch) or batch.column("checksum")[0].as_py() != _checksum(batch.columns[:-1]):
        raise ValueError("the block is damaged")
    frame_index = batch.column("frame_index")
    return frame_index[0].as_py(), frame_index[-1].as_py()


def from_arrow(batch: pa.RecordBatch, header: CheckpointHeader, *, masks: bool) -> CheckpointBlock:
    """The inverse of `to_arrow`; the masks only where asked for."""
    columns = {name: batch.column(name) for name in batch.schema.names}
    sampled = columns["sampled"].to_numpy(zero_copy_only=False)
    raw = np.full((len(batch), header.channels), np.nan, np.float32)
    raw[sampled] = columns["raw"].flatten().to_numpy().reshape(-1, header.channels)
    mask = None
    if masks and header.mask_shape is not None:
        mask = np.zeros((len(batch), *header.mask_shape), np.uint8)
        size = int(np.prod(header.mask_shape))
        for row, packed in enumerate(columns["mask"].to_pylist()):
            if packed is not None:
                unpacked = pa.decompress(packed, decompressed_size=size, codec=_MASK_CODEC, asbytes=True)
                mask[row] = np.frombuffer(unpacked, np.uint8).reshape(header.mask_shape)
    return CheckpointBlock(
        frame_index=columns["frame_index"].to_numpy(),
        pts=columns["pts"].to_numpy(),
        decode_ok=columns["decode_ok"].to_numpy(zero_copy_only=False),
        sampled=sampled,
        raw=raw,
        bbox=columns["bbox"].flatten().to_numpy().reshape(-1, 4),
        mask=mask,
    )
