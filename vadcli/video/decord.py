"""decord as a decoder: no process to start, so the quicker one for short clips.

It ignores edit lists, stops at a packet that it can't decode, conceals damage without saying which frame, and detects the
container itself, without an allow-list. So it gets only kinds of file that it is known to read as ffmpeg does, its frames and
times are held against the probe's, and where damage has to be told it reads the whole clip first and gives it up at the first
complaint of its libraries.
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
from PIL import Image

from vadcli.errors import DecodeError
from vadcli.types import ByteArray, PixelFormat, VideoInfo
from vadcli.video.container import display_matrix_degrees, open_media, shown
from vadcli.video.images import ReadRequest, Shown

SHORT_CLIP_PX = 64_000_000
"""Width × height × frames up to which decord costs less CPU time than starting an ffmpeg process (measured, 240p to 1080p)."""

_SIGNATURES = {
    "mov": (4, (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")),
    "matroska": (0, (b"\x1a\x45\xdf\xa3",)),
    "avi": (0, (b"RIFF",)),
}
"""Where and how a container of this demuxer begins; a playlist can't begin so."""
_CODECS = frozenset({"h264", "hevc", "mpeg4", "mjpeg"})
_PTS_SLACK_S = 1e-3  # decord tells times as 32-bit floats
_COMPLAINT = re.compile(rb"^\[(?:[^\]]* @ 0x[0-9a-f]+|\d\d:\d\d:\d\d)\] (.*)$")


def can_read(info: VideoInfo, *, upright: bool = False) -> bool:
    """Whether decord is there and known to read this kind of file right.

    Args:
        info: what the probe says of the file.
        upright: refuse files with a display matrix too: decord turns by quarters, but mirrors nothing.
    """
    if info.codec not in _CODECS or info.demuxer not in _SIGNATURES or info.edit_list or len(info.shown_pts):
        return False
    if not str(info.path).isprintable() or importlib.util.find_spec("decord") is None or not _begins_as(info):
        return False
    return not upright or not _has_matrix(info)


def _has_matrix(info: VideoInfo) -> bool:
    with open_media(info.path) as opened:
        return display_matrix_degrees(opened, info.stream_index) is not None


def is_short(info: VideoInfo) -> bool:
    """Whether decord is the cheaper decoder for this file."""
    return info.width * info.height * info.frames <= SHORT_CLIP_PX


def _begins_as(info: VideoInfo) -> bool:
    offset, words = _SIGNATURES[info.demuxer]
    with info.path.open("rb") as file:
        return file.read(16)[offset : offset + 4] in words


class DecordFrames:
    """A Backend over one decord reader.

    Args:
        info: what the probe says of the file.
        request: what to read.
        threads: decoder threads; 0 lets decord choose.
        checked: read all of it before the first frame is given, and refuse a file that decord's libraries complain of. For
            short clips; without it, frames are read as they are asked for and damage that decord conceals goes unnoticed.

    Raises:
        DecodeError: decord is not there, can't open the file, does not see the probe's frames or (checked) complains.
    """

    def __init__(self, info: VideoInfo, request: ReadRequest, *, threads: int = 0, checked: bool = False) -> None:
        self.complaints = ""
        self._info = info
        self._request = request
        self._frames: Iterator[Shown] | None
        if checked:
            with _overhear() as heard:
                whole = list(self._read(_open(info, request, threads, quiet=False), 0))
            if heard or len(whole) < info.frames:
                raise DecodeError(f"{shown(info.path)}: decord complains: {'; '.join(heard) or self.complaints}")
            self._frames = iter(whole)
        else:
            self._frames = self._read(_open(info, request, threads, quiet=True), request.start)

    def __iter__(self) -> Iterator[Shown]:
        """The frames in order, until one can't be decoded; `complaints` then says why."""
        return self._frames or iter(())

    def close(self) -> None:
        """Free the reader; a second call does nothing."""
        self._frames = None

    def _read(self, reader: Any, start: int) -> Iterator[Shown]:
        request, frames = self._request, self._info.frames
        try:
            for _ in range(min(start, frames)):
                reader.next()
            for row in range(start, frames):
                selected = request.samples(row) and row >= request.start and (request.stop is None or row < request.stop)
                picture = reader.next()  # not skip_frames: in HEVC and at varying rates decord then goes on from another frame
                image = _delivered(picture, request) if selected else None
                yield Shown(int(self._info.pts[row]), True, selected, image)
        except (_decord_error(), RuntimeError, StopIteration) as error:
            self.complaints = f"decord: {_first_line(error)}"


def _open(info: VideoInfo, request: ReadRequest, threads: int, *, quiet: bool) -> Any:
    try:
        import decord
    except ImportError as error:
        raise DecodeError("decord is not installed", hint="leave --decoder at auto") from error
    try:
        decord.logging.set_level(decord.logging.QUIET if quiet else decord.logging.ERROR)
        path = str(info.path.absolute())
        reader = decord.VideoReader(path, ctx=decord.cpu(0), width=request.width, height=request.height, num_threads=threads)
        seen = np.asarray(reader.get_frame_timestamp(np.arange(len(reader))), np.float64)[:, 0]
    except (_decord_error(), RuntimeError, IndexError, ValueError) as error:
        raise DecodeError(f"{shown(info.path)}: decord can't open it: {_first_line(error)}") from error
    expected = info.timestamps(info.pts)
    if len(seen) != len(expected) or np.abs(seen - seen[0] - expected).max() > _PTS_SLACK_S + 1e-6 * (seen[0] + expected[-1]):
        raise DecodeError(f"{shown(info.path)}: decord sees {len(seen)} frames, or other times, where {len(expected)} are")
    return reader


def _delivered(picture: Any, request: ReadRequest) -> ByteArray:
    rgb: ByteArray = picture.asnumpy()
    if rgb.shape != (request.height, request.width, 3):  # narrow pictures: decord takes the padding of a line for colours
        raise DecodeError(f"decord can't deliver pictures {request.width} px wide")
    if request.pixel_format is PixelFormat.RGB:
        return rgb
    return np.asarray(Image.fromarray(rgb).convert("L")).reshape(request.shape)


@contextmanager
def _overhear() -> Iterator[list[str]]:
    """What libav writes to this process's stderr meanwhile; complete at the end. Anything else written goes where it was to go.

    Raises:
        DecodeError: there is no stderr to listen at.
    """
    heard: list[str] = []
    try:
        stderr = os.dup(2)
    except OSError as error:
        raise DecodeError("decord can't be checked without a stderr") from error
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
    return lines[0] if lines else type(error).__name__
