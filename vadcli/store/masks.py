"""Masks as run lengths: a Parquet file with compressed run-length encoding (RLE) as in COCO.

A mask marks the pixels whose score reaches the threshold at which the scan's events open. The file has one mask per sampled
row, or one per row.

This module also reads the stored masks of a video by row, from a file of either format: run lengths or mask video.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pycocotools import mask as coco

from vadcli.errors import DocumentError
from vadcli.store import OutputLayout
from vadcli.store.events import EventsDocument
from vadcli.store.mask_video import masked_rows, read_masks
from vadcli.store.scores import parquet_errors, read_scores
from vadcli.types import Box, ByteArray, IndexArray, MaskRows, ScoreTable, Thresholds, mask_level

MASKS_SCHEMA_VERSION = 1
SCHEMA = pa.schema(
    [
        pa.field("frame_index", pa.int64(), nullable=False),
        pa.field("pts", pa.int64(), nullable=False),
        pa.field("rle", pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())]), nullable=False),
        pa.field("area", pa.int64(), nullable=False),
        pa.field("bbox", pa.list_(pa.int32(), 4)),
    ]
)
_ROWS_PER_GROUP = 1024
_RESCAN = "scan the video again with --masks rle --force"
_RESCAN_ANY = "scan the video again with --masks and --force"
IN_RUN_LENGTHS = np.uint8(191)
"""The value of marked pixels in masks that are read from run lengths: the middle of the range from 0.5 to 1."""
_IN_THE_MIDDLE = 96  # halfway between 0 and the value of marked pixels, so that resizing a mask does not move its outline
_ALWAYS_BEFORE = 0.5  # the threshold of older files, which do not store it


@dataclass(frozen=True)
class MaskRow:
    """The mask of one row, as run lengths.

    Attributes:
        frame_index: 0-based row in the scores.
        pts: presentation timestamp in the stream's time base.
        rle: {"size": [height, width], "counts": text}, as pycocotools decodes it.
        area: number of marked pixels.
        bbox: the box around the marked pixels; None if no pixel is marked.
    """

    frame_index: int
    pts: int
    rle: dict[str, Any]
    area: int
    bbox: Box | None

    def decode(self) -> ByteArray:
        """Return the mask (H, W) uint8: 1 for marked pixels, else 0."""
        decoded: ByteArray = coco.decode(self.rle)
        return decoded


class MaskRleWriter:
    """A context manager that writes the masks of one video, row by row. Holds about a thousand rows in memory.

    Args:
        path: the temporary file to write; the caller renames it.
        video: the relative path. It is stored in the metadata.
        width, height: display size in pixels.
        rows: which rows have masks. It is stored in the metadata.
        threshold: pixels with at least this score are marked. It is stored in the metadata.
        refined: a note about refined masks; see `refined_metadata`. It is stored in the metadata if it is not empty.
    """

    def __init__(
        self,
        path: Path,
        video: str,
        width: int,
        height: int,
        *,
        rows: MaskRows = MaskRows.SAMPLED,
        threshold: float = _ALWAYS_BEFORE,
        refined: str = "",
    ) -> None:
        self.width = width
        self.height = height
        self._level = mask_level(threshold)
        self._rows: list[dict[str, Any]] = []
        metadata = {
            "vadcli.schema_version": str(MASKS_SCHEMA_VERSION),
            "vadcli.path": video,
            "vadcli.mask_size": f"{width}x{height}",
            "vadcli.mask_threshold": str(float(threshold)),
            "vadcli.masks": str(rows),
        } | ({"vadcli.refined": refined} if refined else {})
        self._file = path.open("wb")
        try:
            self._parquet = pq.ParquetWriter(self._file, SCHEMA.with_metadata(metadata), compression="zstd")
        except BaseException:
            self._file.close()
            raise

    def write(self, frame: ByteArray, frame_index: int, pts: int) -> None:
        """Add the mask of the next row.

        Args:
            frame: the mask (height, width) uint8, 0-255 = pixel score 0-1.
            frame_index: the row of the mask in the scores.
            pts: presentation timestamp of this row.

        Raises:
            OSError: the file can't be written.
            ValueError: the frame has another size or type.
        """
        if frame.shape != (self.height, self.width) or frame.dtype != np.uint8:
            raise ValueError(f"a mask must be {self.width} x {self.height} uint8, not {frame.shape} {frame.dtype}")
        rle = coco.encode(np.asfortranarray(frame >= self._level, np.uint8))
        area = int(coco.area(rle))
        self._rows.append(
            {
                "frame_index": frame_index,
                "pts": pts,
                "rle": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                "area": area,
                "bbox": [int(side) for side in coco.toBbox(rle)] if area else None,
            }
        )
        if len(self._rows) >= _ROWS_PER_GROUP:
            self._write_rows()

    def close(self) -> None:
        """Finish the file. Calling it again does nothing.

        Raises:
            OSError: the file can't be written.
        """
        if self._file.closed:
            return
        try:
            self._write_rows()
            self._parquet.close()
        finally:
            self._file.close()

    def _write_rows(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._parquet.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))

    def __enter__(self) -> MaskRleWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        with suppress(OSError, pa.ArrowException):
            self._parquet.close()
        self._parquet.is_open = False  # otherwise pyarrow tries to close it again later and fails
        self._file.close()


def rle_rows(path: Path) -> MaskRows:
    """Return which rows have a stored mask. If the file can't be read, returns the sampled rows."""
    try:
        return MaskRows(_metadata(path).get(b"vadcli.masks", b"sampled").decode())
    except ValueError:
        return MaskRows.SAMPLED


def rle_threshold(path: Path) -> float:
    """Return the lowest pixel score that is marked in a file of run lengths; 0.5 if the file can't be read."""
    try:
        return float(_metadata(path).get(b"vadcli.mask_threshold", _ALWAYS_BEFORE))
    except ValueError:
        return _ALWAYS_BEFORE


def refined_metadata(path: Path) -> str:
    """Return the note of a file of run lengths about refined masks, in the same form as `refined_tag`."""
    return _metadata(path).get(b"vadcli.refined", b"").decode()


def _metadata(path: Path) -> dict[bytes, bytes]:
    try:
        with path.open("rb") as file:
            return dict(pq.ParquetFile(file).metadata.metadata or {})
    except (OSError, pa.ArrowException):
        return {}


def read_mask_rle(path: Path) -> Iterator[MaskRow]:
    """Yield the stored masks in row order. About a thousand rows are in memory at a time.

    Raises:
        DocumentError: the file is missing or damaged, or is not a masks file of this version.
    """
    for batch in _batches(path, SCHEMA.names):
        for row in batch.to_pylist():
            yield MaskRow(row["frame_index"], row["pts"], row["rle"], row["area"], tuple(row["bbox"]) if row["bbox"] else None)


def read_boxes(path: Path) -> tuple[IndexArray, NDArray[np.int32]]:
    """Return the rows (S,) and boxes (S, 4) of the stored masks without decoding the masks.

    A box is x, y, width, height; the width is 0 if a mask is empty.

    Raises:
        DocumentError: the file is missing or damaged, or is not a masks file of this version.
    """
    rows, boxes = [np.zeros(0, np.int64)], [np.zeros((0, 4), np.int32)]
    for batch in _batches(path, ["frame_index", "bbox"]):
        rows.append(batch.column("frame_index").to_numpy())
        boxes.append(np.array([box or (0, 0, 0, 0) for box in batch.column("bbox").to_pylist()], np.int32).reshape(-1, 4))
    return np.concatenate(rows), np.concatenate(boxes)


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with parquet_errors(path, "a masks file", _RESCAN), path.open("rb") as file:
        parquet = pq.ParquetFile(file)
        version = (parquet.metadata.metadata or {}).get(b"vadcli.schema_version", b"").decode()
        if version != str(MASKS_SCHEMA_VERSION) or not parquet.schema_arrow.equals(SCHEMA):
            raise DocumentError(f"{path}: not a masks file of schema version {MASKS_SCHEMA_VERSION}", hint=_RESCAN)
        yield from parquet.iter_batches(batch_size=_ROWS_PER_GROUP, columns=columns, use_threads=False)


class MaskTrack:
    """Reads the masks of a video by row. One mask is in memory at a time.

    If you ask for an earlier row than before, the file is read from its start again. Masks come from the mask video if it
    exists, otherwise from the run lengths. If neither file exists, there are no masks.

    Args:
        table: the video's scores, which say which rows are sampled.
        layout: the output folder.

    Attributes:
        problems: one line per reason why masks are missing or belong to other scores.
    """

    def __init__(self, table: ScoreTable, layout: OutputLayout) -> None:
        self._sampled = table.sampled
        self._video, self._rle = layout.mask_video(table.video), layout.mask_rle(table.video)
        self.problems: list[str] = []
        self._row = -1
        self._mask: ByteArray | None = None
        self._next: tuple[int, ByteArray] | None = None
        self._restart()

    def at(self, row: int) -> ByteArray | None:
        """Return the mask to show at a row: the mask of this row, or the last mask before it.

        Returns:
            (H, W) uint8, 0–255 = pixel score 0–1. The array object stays the same until the mask changes. Masks from run
            lengths have only the values 0 and `IN_RUN_LENGTHS`. None if there is no mask.
        """
        if row < self._row:
            self._restart()
        self._row = row
        while self._next is not None and self._next[0] <= row:
            if self._mask is None or not np.array_equal(self._mask, self._next[1]):
                self._mask = self._next[1]
            self._advance()
        return self._mask

    def level(self, thresholds: Thresholds) -> int:
        """Return the lowest mask value that is drawn as a part of an event with these thresholds.

        For run lengths, the thresholds do not matter, because the pixels were marked when the file was written.
        """
        return thresholds.mask_level if self._video.exists() else _IN_THE_MIDDLE

    def between(self, start: int, end: int) -> Iterator[tuple[int, ByteArray]]:
        """Yield (row, mask) for each row in [start, end) that has its own mask."""
        if start <= self._row:
            self._restart()
            self._row = -1
        while self._next is not None and self._next[0] < end:
            row, _ = self._next
            mask = self.at(row)
            if row >= start and mask is not None:
                yield row, mask

    def _restart(self) -> None:
        self._mask = None
        self._stored = self._read()
        self._advance()

    def _advance(self) -> None:
        try:
            self._next = next(self._stored, None)
        except DocumentError as error:
            self._next = None
            if error.message not in self.problems:
                self.problems.append(error.message)

    def _read(self) -> Iterator[tuple[int, ByteArray]]:
        stored: Iterator[tuple[int | None, ByteArray]]
        if self._video.exists():
            path, rows = self._video, masked_rows(self._video).of(self._sampled)
            stored = ((None, mask) for mask in read_masks(path))
        elif self._rle.exists():
            path, rows = self._rle, rle_rows(self._rle).of(self._sampled)
            stored = ((row.frame_index, row.decode() * IN_RUN_LENGTHS) for row in read_mask_rle(path))
        else:
            return
        yield from _paired(path, rows, stored)


def _paired(path: Path, rows: IndexArray, stored: Iterator[tuple[int | None, ByteArray]]) -> Iterator[tuple[int, ByteArray]]:
    """Yield pairs of a row and its mask: the k-th stored mask belongs to the k-th row that should have a mask.

    Args:
        path: the file that the error message names.
        rows: (S,) the rows that should have a mask.
        stored: pairs of (row according to the file, mask). The row is None if the file does not store rows.

    Raises:
        DocumentError: the number of masks or the row of a mask is wrong, so the masks belong to other scores.
    """
    count = 0
    for told, mask in stored:
        fits = count < len(rows) and told in (None, int(rows[count]))
        count += 1
        if not fits:
            total = count + sum(1 for _ in stored)
            if total == len(rows):
                raise DocumentError(f"{path}: holds the mask of row {told} instead of row {rows[count - 1]}", hint=_RESCAN_ANY)
            count = total
            break
        yield int(rows[count - 1]), mask
    if count != len(rows):
        raise DocumentError(f"{path}: holds {count} masks for {len(rows)} frames that should have one", hint=_RESCAN_ANY)


def masks_of(layout: OutputLayout, document: EventsDocument) -> MaskTrack | None:
    """Return the masks of the video of an events document; None if there are no scores or no stored masks.

    Raises:
        DocumentError: the scores can't be read.
    """
    video = str(document.video["path"])
    if not layout.scores(video).is_file() or not (layout.mask_video(video).exists() or layout.mask_rle(video).exists()):
        return None
    table, _ = read_scores(layout.scores(video))
    return MaskTrack(table, layout)
