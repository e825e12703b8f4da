"""Masks as run lengths: a Parquet row a sampled row, or a row, COCO compressed RLE of the pixels that reach 0.5.

A video's stored masks by row, whichever format they are stored in.
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
from vadcli.store.mask_video import MASK_THRESHOLD, masked_rows, read_masks
from vadcli.store.scores import read_scores
from vadcli.types import Box, ByteArray, IndexArray, MaskRows, ScoreTable

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
_ROWS_A_GROUP = 1024
_RESCAN = "scan the video again with --masks rle --force"


@dataclass(frozen=True)
class MaskRow:
    """The mask of one row.

    Attributes:
        frame_index: 0-based row in the scores.
        pts: in the stream's time base.
        rle: {"size": [height, width], "counts": text}, as pycocotools decodes it.
        area: pixels that reach 0.5.
        bbox: around them, None where there are none.
    """

    frame_index: int
    pts: int
    rle: dict[str, Any]
    area: int
    bbox: Box | None

    def decode(self) -> ByteArray:
        """(H, W) uint8, 1 where the pixel score is 0.5 or more."""
        decoded: ByteArray = coco.decode(self.rle)
        return decoded


class MaskRleWriter:
    """Writes the masks of one video, row by row; a context manager. Holds at most a thousand rows.

    Args:
        path: where to, a temporary that the caller renames.
        video: the relative path, kept in the metadata.
        width, height: display size in pixels.
        rows: which rows have masks, kept in the metadata.
    """

    def __init__(self, path: Path, video: str, width: int, height: int, *, rows: MaskRows = MaskRows.SAMPLED) -> None:
        self.width = width
        self.height = height
        self._rows: list[dict[str, Any]] = []
        metadata = {
            "vadcli.schema_version": str(MASKS_SCHEMA_VERSION),
            "vadcli.path": video,
            "vadcli.mask_size": f"{width}x{height}",
            "vadcli.mask_threshold": "0.5",
            "vadcli.masks": str(rows),
        }
        self._file = path.open("wb")
        try:
            self._parquet = pq.ParquetWriter(self._file, SCHEMA.with_metadata(metadata), compression="zstd")
        except BaseException:
            self._file.close()
            raise

    def write(self, frame: ByteArray, frame_index: int, pts: int) -> None:
        """Add the mask of the next row.

        Args:
            frame: (height, width) uint8, 0-255 = pixel score 0-1.
            frame_index: its row in the scores.
            pts: its presentation timestamp.

        Raises:
            OSError: it can't be written.
            ValueError: a frame of another size.
        """
        if frame.shape != (self.height, self.width) or frame.dtype != np.uint8:
            raise ValueError(f"a mask of {self.width} x {self.height} uint8 is wanted, not {frame.shape} {frame.dtype}")
        rle = coco.encode(np.asfortranarray(frame >= MASK_THRESHOLD, np.uint8))
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
        if len(self._rows) >= _ROWS_A_GROUP:
            self._write_rows()

    def close(self) -> None:
        """Finish the file. More than once is harmless.

        Raises:
            OSError: it can't be written.
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
        self._parquet.is_open = False  # else pyarrow tries once more when it is collected, and complains of the closed file
        self._file.close()


def rle_rows(path: Path) -> MaskRows:
    """Which rows the stored masks belong to; the sampled ones where the file can't be read."""
    try:
        with path.open("rb") as file:
            metadata = pq.ParquetFile(file).metadata.metadata or {}
            return MaskRows(metadata.get(b"vadcli.masks", b"sampled").decode())
    except (OSError, ValueError, pa.ArrowException):
        return MaskRows.SAMPLED


def read_mask_rle(path: Path) -> Iterator[MaskRow]:
    """The stored masks in the order of their rows; a thousand rows in memory at a time.

    Raises:
        DocumentError: it is missing, damaged, or no masks file of this version.
    """
    for batch in _batches(path, SCHEMA.names):
        for row in batch.to_pylist():
            yield MaskRow(row["frame_index"], row["pts"], row["rle"], row["area"], tuple(row["bbox"]) if row["bbox"] else None)


def read_boxes(path: Path) -> tuple[IndexArray, NDArray[np.int32]]:
    """Rows (S,) and boxes (S, 4) x, y, width, height of the stored masks; width 0 where a mask is empty. Decodes no mask.

    Raises:
        DocumentError: it is missing, damaged, or no masks file of this version.
    """
    rows, boxes = [np.zeros(0, np.int64)], [np.zeros((0, 4), np.int32)]
    for batch in _batches(path, ["frame_index", "bbox"]):
        rows.append(batch.column("frame_index").to_numpy())
        boxes.append(np.array([box or (0, 0, 0, 0) for box in batch.column("bbox").to_pylist()], np.int32).reshape(-1, 4))
    return np.concatenate(rows), np.concatenate(boxes)


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            version = (parquet.metadata.metadata or {}).get(b"vadcli.schema_version", b"").decode()
            if version != str(MASKS_SCHEMA_VERSION) or not parquet.schema_arrow.equals(SCHEMA):
                raise DocumentError(f"{path}: not a masks file of schema version {MASKS_SCHEMA_VERSION}", hint=_RESCAN)
            yield from parquet.iter_batches(batch_size=_ROWS_A_GROUP, columns=columns, use_threads=False)
    except OSError as error:
        raise DocumentError(f"{path}: can't be read: {error.strerror or error}", hint=_RESCAN) from error
    except pa.ArrowException as error:
        raise DocumentError(f"{path}: not a masks file: {' '.join(str(error).split())}", hint=_RESCAN) from error


IN_RUN_LENGTHS = np.uint8(191)
_RESCAN_mask_track = "scan the video again with --masks and --force"


class MaskTrack:
    """Reads masks forward as rows are asked for, one in memory at a time; an earlier row starts over.

    The mask video is taken where there is one, else the run lengths, else there are no masks.

    Args:
        table: the video's scores; the k-th stored mask belongs to the k-th sampled row, or row, as the file says.
        layout: where they are stored.

    Attributes:
        problems: why masks are missing from some row on, or belong to other scores, a line each.
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
        """The mask shown at a row: its own where it has one, else that of the last row that has one.

        Returns:
            (H, W) uint8, 0–255 = pixel score 0–1; where only run lengths are stored 0 and 191, the middle of what reaches
            0.5. The same array until the mask changes. None where there is none.
        """
        if row < self._row:
            self._restart()
        self._row = row
        while self._next is not None and self._next[0] <= row:
            if self._mask is None or not np.array_equal(self._mask, self._next[1]):
                self._mask = self._next[1]
            self._advance()
        return self._mask

    def between(self, start: int, end: int) -> Iterator[tuple[int, ByteArray]]:
        """The masks that rows in [start, end) have of their own, each with its row; forward as `at`."""
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
    """The k-th stored mask with the k-th row that should have one, up to the first that doesn't fit.

    Args:
        path: the file, for the error.
        rows: (S,) those that should have a mask.
        stored: the masks, each with the row that the file says it is of, None where it says none.

    Raises:
        DocumentError: the masks are fewer or more, or one is of another row, so that they belong to other scores.
    """
    count = 0
    for told, mask in stored:
        fits = count < len(rows) and told in (None, int(rows[count]))
        count += 1
        if not fits:
            total = count + sum(1 for _ in stored)
            if total == len(rows):
                raise DocumentError(
                    f"{path}: holds a mask of row {told} where one of row {rows[count - 1]} should be", hint=_RESCAN_mask_track
                )
            count = total
            break
        yield int(rows[count - 1]), mask
    if count != len(rows):
        raise DocumentError(f"{path}: holds {count} masks for {len(rows)} frames that should have one", hint=_RESCAN_mask_track)


def masks_of(layout: OutputLayout, document: EventsDocument) -> MaskTrack | None:
    """The masks of a document's video; None where it has no scores or none are stored.

    Raises:
        DocumentError: the scores can't be read.
    """
    video = str(document.video["path"])
    if not layout.scores(video).is_file() or not (layout.mask_video(video).exists() or layout.mask_rle(video).exists()):
        return None
    table, _ = read_scores(layout.scores(video))
    return MaskTrack(table, layout)
