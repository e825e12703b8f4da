"""Writes and reads masks as a lossless gray video: FFV1 in Matroska, 0-255 = pixel score 0-1, in display orientation.

Usually the mask video has one frame per sampled row. If it has one frame per row, its tag VADCLI_MASKS says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np

from vadcli.errors import DocumentError
from vadcli.types import Box, ByteArray, MaskRows

_CLOCK = Fraction(1, 1000)
_FFV1_OPTIONS = {"level": "3", "coder": "rice", "slicecrc": "1"}  # rice is fastest for masks that are mostly black
_ROWS_TAG = "VADCLI_MASKS"
_REFINED_TAG = "VADCLI_REFINED"
_RESCAN = "scan the video again with --masks video --force"


def upsample_mask(mask: ByteArray, width: int, height: int) -> ByteArray:
    """Return a mask (h, w) uint8, enlarged bilinearly to (height, width). The bytes are the same on every machine."""
    if mask.shape == (height, width):
        return mask
    from PIL import Image

    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR))


def mask_box(mask: ByteArray, level: int) -> Box | None:
    """Return the box around all pixels >= `level` of a mask (H, W) uint8; None if the mask has no such pixel."""
    strong = mask >= level
    rows = np.flatnonzero(strong.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(strong[rows[0] : rows[-1] + 1].any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


def enlarged_box(mask: ByteArray, width: int, height: int, level: int) -> Box | None:
    """Return the `mask_box` of a mask (h, w) after it is enlarged to the display size.

    To save time, only the part that may reach `level` is enlarged. Because of rounding, a side of the box may be a few pixels
    off.
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
    on the times of the frames: Matroska stores whole milliseconds, and two rows may be closer than that.

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
            raise ValueError(f"a mask must be {self.width} x {self.height} uint8, not {frame.shape} {frame.dtype}")
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
    """Return which rows have a mask in a mask video. If the file can't be read, returns the sampled rows."""
    return MaskRows.EVERY if _tag(path, _ROWS_TAG) == MaskRows.EVERY else MaskRows.SAMPLED


def refined_tag(path: Path) -> str:
    """Return the note of a mask video about refined masks: the JSON `[[first row, row after the last], …]`, or ""."""
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
                raise DocumentError(f"{path}: not a mask video: {stream.codec_context.name} {stream.pix_fmt}", hint=_RESCAN)
            stream.thread_type = "NONE"
            for frame in container.decode(stream):
                yield frame.to_ndarray().astype(np.uint8, copy=False)
    except av.error.EOFError:
        return  # the file has only a header, because no row was sampled
    except (IndexError, av.error.FFmpegError) as error:
        raise DocumentError(f"{path}: not a readable mask video: {error}", hint=_RESCAN) from error
    except OSError as error:
        raise DocumentError(f"{path}: can't be read: {error.strerror or error}", hint=_RESCAN) from error
