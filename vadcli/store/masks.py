"""Writes and reads the masks of a video in two formats: as a gray video, and as run lengths.

The mask video is lossless: FFV1 in Matroska, 0-255 = pixel score 0-1, in display orientation. The file of run lengths is
Parquet with compressed run-length encoding (RLE) as in COCO. The run lengths mark the pixels whose score reaches the threshold
at which the scan's events open. Usually a file has one mask per sampled row. If a file has one mask per row, its metadata say
so.

`MaskFiles` writes both formats, and `MaskTrack` reads the format that is stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
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
from vadcli.store.atomic import Scratch
from vadcli.store.events import EventsDocument
from vadcli.store.scores import parquet_errors, read_scores
from vadcli.types import Box, ByteArray, IndexArray, MaskRows, ScoreTable, Thresholds, mask_level
from vadcli.types.text import unreadable

_CLOCK = Fraction(1, 1000)
_FFV1_OPTIONS = {"level": "3", "coder": "rice", "slicecrc": "1"}  # rice is fastest for masks that are mostly black
_ROWS_TAG = "VADCLI_MASKS"
_REFINED_TAG = "VADCLI_REFINED"
_RESCAN_VIDEO = "scan the video again with --masks video --force"


def upsample_mask(mask: ByteArray, width: int, height: int) -> ByteArray:
    """Return a mask (h, w) uint8, enlarged to (height, width); the bytes are equal on every machine."""
    if mask.shape == (height, width):
        return mask
    from PIL import Image

    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR))


def mask_box(mask: ByteArray, level: int) -> Box | None:
    """Return the box around all pixels >= `level` of a mask (H, W) uint8; None if there is no such pixel."""
    strong = mask >= level
    rows = np.flatnonzero(strong.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(strong[rows[0] : rows[-1] + 1].any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


def enlarged_box(mask: ByteArray, width: int, height: int, level: int) -> Box | None:
    """Return the `mask_box` of a mask (h, w) after it is enlarged to the display size.

    To save time, only the part that may reach `level` is enlarged. Because of rounding, a side of the box may be wrong by a few
    pixels.
    """
    strong = mask >= level
    rows = np.flatnonzero(strong.any(axis=1))
    if not len(rows):
        return None
    from PIL import Image

    columns = np.flatnonzero(strong.any(axis=0))
    h, w = mask.shape
    left, right = max(0, int(columns[0] - 1) * width // w), min(width, -(int(columns[-1] + 2) * -width // w))
    top, bottom = max(0, int(rows[0] - 1) * height // h), min(height, -(int(rows[-1] + 2) * -height // h))
    window = left * w / width, top * h / height, right * w / width, bottom * h / height
    part = Image.fromarray(mask).resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=window)
    box = mask_box(np.asarray(part), level)
    return None if box is None else (box[0] + left, box[1] + top, box[2], box[3])


class MaskVideoWriter:
    """A context manager that writes the masks of one video, frame by frame.

    Equal masks and times give equal bytes. The k-th frame belongs to the k-th row that has a mask. Rely on this order and not
    on the times of the frames: Matroska stores whole milliseconds, and two rows may have the same millisecond.

    Args:
        path: the temporary file to write; the caller renames it.
        width, height: display size in pixels.
        fps: written to the header for players; the frames keep their own times.
        rows: which rows have masks.
        refined: a note about refined masks; see `refined_tag`.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        *,
        fps: float = 25.0,
        rows: MaskRows = MaskRows.SAMPLED,
        refined: str = "",
    ) -> None:
        import av
        from av.codec.context import Flags

        self.width, self.height = width, height
        self._last_ms = -1
        self._file = path.open("wb")
        try:
            self._container = av.open(self._file, "w", format="matroska", options={"fflags": "+bitexact"})
            if rows is not MaskRows.SAMPLED:
                self._container.metadata[_ROWS_TAG] = str(rows)
            if refined:
                self._container.metadata[_REFINED_TAG] = refined
            rate = Fraction(fps).limit_denominator(1001)
            options = {**_FFV1_OPTIONS, "slices": "4" if min(width, height) > 1 else "1"}
            self._stream = self._container.add_stream("ffv1", rate=max(rate, Fraction(1, 1000)), options=options)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "gray"
            self._stream.codec_context.time_base = _CLOCK
            self._stream.codec_context.flags |= Flags.bitexact
        except BaseException:
            self._file.close()
            raise

    def write(self, frame: ByteArray, timestamp_s: float) -> None:
        """Add the mask of the next row.

        Args:
            frame: (height, width) uint8.
            timestamp_s: the row's timestamp in seconds.

        Raises:
            OSError: the file can't be written.
            ValueError: the frame has another size or type.
        """
        if frame.shape != (self.height, self.width) or frame.dtype != np.uint8:
            raise ValueError(f"a mask must be {(self.height, self.width)} uint8, not {frame.shape} {frame.dtype}")
        import av

        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="gray")
        self._last_ms = max(round(timestamp_s * 1000), self._last_ms + 1)
        picture.pts, picture.time_base = self._last_ms, _CLOCK
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Finish the file; raise OSError if it can't be written. Calling this method again does nothing."""
        if self._file.closed:
            return
        try:
            if self._last_ms < 0:
                self._container.start_encoding()  # so that a video without sampled rows gets a file, too
            self._container.mux(self._stream.encode(None))
            self._container.close()
        finally:
            self._file.close()

    def __enter__(self) -> MaskVideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._file.close()


def masked_rows(path: Path) -> MaskRows:
    """Return which rows of a video have a mask in its mask video: the sampled rows, or every row.

    If the file can't be read, the result is SAMPLED.
    """
    return MaskRows.EVERY if _tag(path, _ROWS_TAG) == MaskRows.EVERY else MaskRows.SAMPLED


def refined_tag(path: Path) -> str:
    """Return the note in a mask video about the spans whose masks `--refine-masks` has refined.

    The note is JSON: `[[first row, row after the last row], …]`. Return "" if there is no note.
    """
    return _tag(path, _REFINED_TAG)


def _tag(path: Path, name: str) -> str:
    import av

    try:
        with path.open("rb") as file, av.open(file, "r", format="matroska") as container:
            return str(container.metadata.get(name, ""))
    except (OSError, ValueError, av.error.FFmpegError):
        return ""


def read_masks(path: Path) -> Iterator[ByteArray]:
    """Yield the masks of a mask video in row order, each as (H, W) uint8. One mask is in memory at a time.

    Raises:
        DocumentError: the file is missing or damaged, or is not a mask video.
    """
    import av

    try:
        with path.open("rb") as file, av.open(file, "r", format="matroska") as container:
            stream = container.streams.video[0]
            if stream.codec_context.name != "ffv1" or stream.pix_fmt != "gray":
                raise DocumentError(
                    f"{path}: not a mask video: {stream.codec_context.name} {stream.pix_fmt}", hint=_RESCAN_VIDEO
                )
            stream.thread_type = "NONE"
            for frame in container.decode(stream):
                yield frame.to_ndarray().astype(np.uint8, copy=False)
    except av.error.EOFError:
        return  # no row was sampled, so the file has only a header
    except (IndexError, av.error.FFmpegError) as error:
        raise DocumentError(f"{path}: not a readable mask video: {error}", hint=_RESCAN_VIDEO) from error
    except OSError as error:
        raise DocumentError(unreadable(path, error), hint=_RESCAN_VIDEO) from error


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
_RESCAN_RLE = "scan the video again with --masks rle --force"
_RESCAN_ANY = "scan the video again with --masks and --force"
_NO_BOX = (0, 0, 0, 0)
Spans = tuple[tuple[int, int], ...]
"""For each span, its first row, and the row after its last row."""
IN_RUN_LENGTHS = np.uint8(191)
"""The value of marked pixels in masks that are read from run lengths: a score of 0.75."""
_IN_THE_MIDDLE = 96  # halfway between 0 and the value of marked pixels, so that resizing a mask does not move its outline
_OLD_THRESHOLD = 0.5  # the threshold of older files, which do not store it


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
        return np.asarray(coco.decode(self.rle), np.uint8)


class MaskRleWriter:
    """A context manager that writes the masks of one video, row by row, in groups of a thousand rows.

    `video`, `rows`, `threshold` and `refined` are stored in the metadata of the file.

    Args:
        path: the temporary file to write; the caller renames it.
        video: the relative path of the video.
        width, height: display size in pixels.
        rows: which rows have masks.
        threshold: pixels with at least this score are marked.
        refined: a note about refined masks, as `refined_tag` returns it; "" if there is none.
    """

    def __init__(
        self,
        path: Path,
        video: str,
        width: int,
        height: int,
        *,
        rows: MaskRows = MaskRows.SAMPLED,
        threshold: float = _OLD_THRESHOLD,
        refined: str = "",
    ) -> None:
        self.width, self.height = width, height
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
            raise ValueError(f"a mask must be {(self.height, self.width)} uint8, not {frame.shape} {frame.dtype}")
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
        """Finish the file; raise OSError if it can't be written. Calling this method again does nothing."""
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
    """Return which rows of a video have a mask in its file of run lengths: the sampled rows, or every row.

    If the file can't be read, the result is SAMPLED.
    """
    return MaskRows.EVERY if _metadata(path).get(b"vadcli.masks") == MaskRows.EVERY.encode() else MaskRows.SAMPLED


def rle_threshold(path: Path) -> float:
    """Return the lowest pixel score that a file of run lengths marks; 0.5 if the file can't be read."""
    try:
        return float(_metadata(path).get(b"vadcli.mask_threshold", _OLD_THRESHOLD))
    except ValueError:
        return _OLD_THRESHOLD


def _metadata(path: Path) -> dict[bytes, bytes]:
    try:
        with path.open("rb") as file:
            return dict(pq.ParquetFile(file).metadata.metadata or {})
    except (OSError, pa.ArrowException):
        return {}


def read_mask_rle(path: Path) -> Iterator[MaskRow]:
    """Yield the masks in a file of run lengths, in row order. A thousand rows are in memory at a time.

    Raises:
        DocumentError: the file is missing or damaged, or is not a masks file of this version.
    """
    for batch in _batches(path, SCHEMA.names):
        for row in batch.to_pylist():
            yield MaskRow(row["frame_index"], row["pts"], row["rle"], row["area"], tuple(row["bbox"]) if row["bbox"] else None)


def read_boxes(path: Path) -> tuple[IndexArray, NDArray[np.int32]]:
    """Return the rows (S,) and boxes (S, 4) in a file of run lengths without decoding the masks.

    A box is x, y, width, height; the width is 0 if a mask is empty.

    Raises:
        DocumentError: the file is missing or damaged, or is not a masks file of this version.
    """
    rows, boxes = [np.zeros(0, np.int64)], [np.zeros((0, 4), np.int32)]
    for batch in _batches(path, ["frame_index", "bbox"]):
        rows.append(batch.column("frame_index").to_numpy())
        boxes.append(np.array([box or _NO_BOX for box in batch.column("bbox").to_pylist()], np.int32).reshape(-1, 4))
    return np.concatenate(rows), np.concatenate(boxes)


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with parquet_errors(path, "a masks file", _RESCAN_RLE), path.open("rb") as file:
        parquet = pq.ParquetFile(file)
        version = (parquet.metadata.metadata or {}).get(b"vadcli.schema_version", b"").decode()
        if version != str(MASKS_SCHEMA_VERSION) or not parquet.schema_arrow.equals(SCHEMA):
            raise DocumentError(f"{path}: not a masks file of schema version {MASKS_SCHEMA_VERSION}", hint=_RESCAN_RLE)
        yield from parquet.iter_batches(batch_size=_ROWS_PER_GROUP, columns=columns, use_threads=False)


@dataclass(frozen=True)
class MaskFiles:
    """Writes the masks of a video: as a mask video, as run lengths, or both.

    Attributes:
        layout, scratch: the folders for the files and for temporary files.
        width, height: display size in pixels.
        fps: frame rate of the mask video, for players.
        rows: which rows have masks.
        threshold: pixels with at least this score are marked in run lengths.
        as_video, as_rle: the formats to write.
        refined: the spans of events whose masks `--refine-masks` has refined.
    """

    layout: OutputLayout
    scratch: Scratch
    width: int
    height: int
    fps: float
    rows: MaskRows
    threshold: float
    as_video: bool
    as_rle: bool
    refined: Spans = ()

    def write(self, masks: Iterable[tuple[int, ByteArray]], table: ScoreTable, *, level: int) -> NDArray[np.int32]:
        """Write the masks, and return one box per mask, (S, 4): the box around the pixels >= `level`.

        A box is x, y, width, height. The width is 0 if a mask has no such pixel.

        Args:
            masks: (row, mask) in ascending order; a mask is (height, width) uint8 pixel scores.
            table: the rows of the video, for their times; the scores are not used.
            level: lowest pixel score inside a box.

        Raises:
            OutputError: a file can't be written.
        """
        boxes: list[Box] = []
        last, box = None, _NO_BOX
        size = self.width, self.height
        refined = json.dumps(self.refined) if self.refined else ""
        with ExitStack() as stack:
            # The file that is opened last is completed first. This must be the file of run lengths: readers prefer the mask
            # video, so when a reader finds the new mask video, both files are complete.
            pixels = runs = None
            if self.as_video:
                path = stack.enter_context(self.scratch.replace(self.layout.mask_video(table.video)))
                pixels = stack.enter_context(MaskVideoWriter(path, *size, fps=self.fps, rows=self.rows, refined=refined))
            if self.as_rle:
                path = stack.enter_context(self.scratch.replace(self.layout.mask_rle(table.video)))
                writer = MaskRleWriter(path, table.video, *size, rows=self.rows, threshold=self.threshold, refined=refined)
                runs = stack.enter_context(writer)
            for row, mask in masks:
                if mask is not last:
                    last, box = mask, mask_box(mask, level) or _NO_BOX
                if pixels:
                    pixels.write(mask, float(table.timestamp[row]))
                if runs:
                    runs.write(mask, row, int(table.pts[row]))
                boxes.append(box)
        return np.array(boxes, np.int32).reshape(-1, 4)


def refined_spans(layout: OutputLayout, video: str) -> Spans:
    """Return the spans of events whose stored masks are refined; empty if no masks are refined."""
    path = layout.mask_video(video)
    note = refined_tag(path) if path.exists() else _metadata(layout.mask_rle(video)).get(b"vadcli.refined", b"").decode()
    try:
        return tuple((int(first), int(end)) for first, end in json.loads(note or "[]"))
    except (TypeError, ValueError):
        return ()


class MaskTrack:
    """Reads the masks of a video by row, from the mask video if it exists, otherwise from the run lengths.

    One mask is in memory at a time. If you ask for an earlier row than before, the file is read from its start again.

    Args:
        table: the video's scores. They are needed to know which rows are sampled.
        layout: the output folder.

    Attributes:
        problems: one line per reason why masks are missing or do not fit the scores.
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
        """Return the mask of a row, or else the last mask before this row; None if neither exists.

        A mask is (H, W) uint8, 0-255 = pixel score 0-1. The array object stays the same until the mask changes. Masks from run
        lengths have only the values 0 and `IN_RUN_LENGTHS`.
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
        """Return the lowest mask value (0-255) that is drawn as a part of an event, for these thresholds."""
        # Run lengths do not depend on these thresholds: their pixels were marked when the file was written.
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
        stored: Iterator[tuple[int | None, ByteArray]]  # the row is None if the file does not store rows
        if self._video.exists():
            path, rows = self._video, masked_rows(self._video).of(self._sampled)
            stored = ((None, mask) for mask in read_masks(path))
        elif self._rle.exists():
            path, rows = self._rle, rle_rows(self._rle).of(self._sampled)
            stored = ((row.frame_index, row.decode() * IN_RUN_LENGTHS) for row in read_mask_rle(path))
        else:
            return
        # The k-th mask belongs to the k-th row that should have a mask. If there are more or fewer masks, or if a mask has
        # another row number, the masks are from another scan.
        count = 0
        for stored_row, mask in stored:
            fits = count < len(rows) and stored_row in (None, int(rows[count]))
            count += 1
            if not fits:
                total = count + sum(1 for _ in stored)
                if total == len(rows):
                    expected = rows[count - 1]
                    raise DocumentError(f"{path}: has a mask of row {stored_row} instead of row {expected}", hint=_RESCAN_ANY)
                count = total
                break
            yield int(rows[count - 1]), mask
        if count != len(rows):
            raise DocumentError(f"{path}: has {count} masks instead of {len(rows)}", hint=_RESCAN_ANY)


def masks_of(layout: OutputLayout, document: EventsDocument) -> MaskTrack | None:
    """Return the stored masks of a document's video; None if there are no masks or no scores."""
    video = str(document.video["path"])
    if not layout.scores(video).is_file() or not (layout.mask_video(video).exists() or layout.mask_rle(video).exists()):
        return None
    return MaskTrack(read_scores(layout.scores(video))[0], layout)
