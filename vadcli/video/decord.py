"""Decodes with decord, which is faster than ffmpeg on short videos because it starts no process.

decord has four weaknesses. It ignores edit lists. It stops at a packet that it cannot decode. It conceals damage without saying
in which frame. It detects the container itself, without an allow-list. So decord is used only for kinds of files that it is
known to read like ffmpeg. decord's frames and times are compared with the probe's. If damage must be noticed, the whole video
is read first, and it is rejected if decord's libraries log an error.
"""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vadcli.errors import DecodeError
from vadcli.types import ByteArray, PixelFormat, VideoInfo
from vadcli.video.container import display_matrix_degrees, open_media, printable
from vadcli.video.images import DecodedFrame, ReadRequest

SHORT_CLIP_PX = 64_000_000
"""Up to this size (width × height × frames), decord takes less CPU time than an ffmpeg process (measured, 240p to 1080p)."""

_SIGNATURES = {
    "mov": (4, (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")),
    "matroska": (0, (b"\x1a\x45\xdf\xa3",)),
    "avi": (0, (b"RIFF",)),
}
"""Demuxer -> (offset in the file, bytes that are allowed there). A playlist has other bytes there."""
_CODECS = frozenset({"h264", "hevc", "mpeg4", "mjpeg"})
_PTS_SLACK_S = 1e-3  # decord reports times as 32-bit floats
_COMPLAINT = re.compile(rb"^\[(?:[^\]]* @ 0x[0-9a-f]+|\d\d:\d\d:\d\d)\] (.*)$")


def can_read(info: VideoInfo, *, upright: bool = False) -> bool:
    """Whether decord is installed and known to read this kind of file correctly.

    Args:
        info: the probe's description of the file.
        upright: True also excludes files with a display matrix. A matrix can mirror the image, but decord only rotates it by
            quarter turns.
    """
    if info.codec not in _CODECS or info.demuxer not in _SIGNATURES or info.edit_list or len(info.shown_pts):
        return False
    if not info.one_frame_per_packet:  # decord counts packets
        return False
    if not str(info.path).isprintable() or importlib.util.find_spec("decord") is None:
        return False
    offset, signatures = _SIGNATURES[info.demuxer]
    with info.path.open("rb") as file:
        if file.read(16)[offset : offset + 4] not in signatures:
            return False
    if not upright:
        return True
    with open_media(info.path) as opened:
        return display_matrix_degrees(opened, info.stream_index) is None


def is_short(info: VideoInfo) -> bool:
    """Whether decord takes less CPU time than ffmpeg for this file."""
    return info.width * info.height * info.frames <= SHORT_CLIP_PX


class DecordFrames:
    """A `Backend` that reads one video with decord.

    Args:
        info: the probe's description of the file.
        request: what to read.
        threads: decoder threads; 0 lets decord choose.
        checked: True is for short videos: the whole video is read before the first frame is yielded, and rejected if decord's
            libraries log an error. If False, frames are read one by one, and damage that decord conceals is not noticed.

    Raises:
        DecodeError: decord is not installed, cannot open the file, finds other frames than the probe, or (if `checked`) logs an
            error.
    """

    def __init__(self, info: VideoInfo, request: ReadRequest, *, threads: int = 0, checked: bool = False) -> None:
        self.complaints = ""
        self._info = info
        self._request = request
        self._frames: Iterator[DecodedFrame] | None
        if checked:
            with _libav_messages() as heard:
                whole = list(self._read(_open(info, request, threads, quiet=False), 0))
            if heard or len(whole) < info.frames:
                raise DecodeError(f"{printable(info.path)}: decord reports: {'; '.join(heard) or self.complaints}")
            self._frames = iter(whole)
        else:
            self._frames = self._read(_open(info, request, threads, quiet=True), request.start)

    def __iter__(self) -> Iterator[DecodedFrame]:
        """Yield the frames in order, up to a frame that cannot be decoded; `complaints` then says why."""
        return self._frames or iter(())

    def close(self) -> None:
        """Free the reader; a second call does nothing."""
        self._frames = None

    def _read(self, reader: Any, start: int) -> Iterator[DecodedFrame]:
        request, frames = self._request, self._info.frames
        try:
            for _ in range(min(start, frames)):
                reader.next()
            for row in range(start, frames):
                selected = request.samples(row) and row >= request.start and (request.stop is None or row < request.stop)
                # `skip_frames` is not used: after it, decord continues at a wrong frame if the codec is HEVC or the frame rate
                # varies.
                picture = reader.next()
                image: ByteArray | None = None
                if selected:
                    rgb: ByteArray = picture.asnumpy()
                    if rgb.shape != (request.height, request.width, 3):  # in narrow images, decord takes padding for pixels
                        raise DecodeError(f"decord cannot deliver images {request.width} px wide")
                    image = rgb if request.pixel_format is PixelFormat.RGB else luma(rgb).reshape(request.shape)
                yield DecodedFrame(int(self._info.pts[row]), True, selected, image)
        except (_decord_error(), RuntimeError, StopIteration) as error:
            self.complaints = f"decord: {_first_line(error)}"


def _open(info: VideoInfo, request: ReadRequest, threads: int, *, quiet: bool) -> Any:
    try:
        import decord
    except ImportError as error:
        raise DecodeError("decord is not installed", hint="use --decoder auto") from error
    try:
        decord.logging.set_level(decord.logging.QUIET if quiet else decord.logging.ERROR)
        path = str(info.path.absolute())
        reader = decord.VideoReader(path, ctx=decord.cpu(0), width=request.width, height=request.height, num_threads=threads)
        seen = np.asarray(reader.get_frame_timestamp(np.arange(len(reader))), np.float64)[:, 0]
    except (_decord_error(), RuntimeError, IndexError, ValueError) as error:
        raise DecodeError(f"{printable(info.path)}: decord cannot open it: {_first_line(error)}") from error
    expected = info.timestamps(info.pts)
    if len(seen) != len(expected) or np.abs(seen - seen[0] - expected).max() > _PTS_SLACK_S + 1e-6 * (seen[0] + expected[-1]):
        text = f"decord's {len(seen)} frames and the probe's {len(expected)} frames differ in number or times"
        raise DecodeError(f"{printable(info.path)}: {text}")
    return reader


_LUMA = np.array([19595, 38470, 7471], np.float32)
_PLACE = re.compile(r"^\[[\d:]+\]\s+\S+:\d+:\s*(Error:\s*)?")  # time and place in decord's source, at the start of a message


def luma(rgb: ByteArray) -> ByteArray:
    """Return the gray levels (H, W) of an image (H, W, 3), exactly as Pillow computes them.

    Pillow computes (R * 19595 + G * 38470 + B * 7471 + 32768) >> 16. In float32 these sums are exact.
    """
    sums = rgb.reshape(-1, 3).astype(np.float32) @ _LUMA
    sums += 32768
    sums *= 2.0**-16
    return sums.astype(np.uint8).reshape(rgb.shape[:2])


@contextmanager
def _libav_messages() -> Iterator[list[str]]:
    """Collect the lines that libav writes to this process's stderr inside the `with` block.

    All other lines are written to stderr when the block ends.

    Raises:
        DecodeError: the process has no stderr.
    """
    heard: list[str] = []
    try:
        stderr = os.dup(2)
    except OSError as error:
        raise DecodeError("decord cannot be checked because this process has no stderr") from error
    with tempfile.TemporaryFile() as text:
        os.dup2(text.fileno(), 2)
        try:
            yield heard
        finally:
            os.dup2(stderr, 2)
            text.seek(0)
            for line in text.read().splitlines(keepends=True):
                complaint = _COMPLAINT.match(line.rstrip())
                if complaint:
                    heard.append(complaint[1].decode(errors="replace"))
                else:
                    os.write(stderr, line)
            os.close(stderr)


def _decord_error() -> type[Exception]:
    import decord

    error: type[Exception] = decord.DECORDError
    return error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _PLACE.sub("", lines[0]) if lines else type(error).__name__
