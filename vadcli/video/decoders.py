"""Defines the types that all decoders share, and two decoders that need no process.

The two decoders are Pillow, for images, and decord.

A decoder (`Backend`) gets a `ReadRequest` and yields each frame that it decodes as a `DecodedFrame`. `FrameReader` matches
these frames with the rows of the video and yields each row as a `Frame`. A row is the index of a frame in presentation order.

Pillow reads folders of numbered images (`ImageFrames`).

decord (`DecordFrames`) is faster than ffmpeg on short videos because it starts no process. But decord has four weaknesses:

- It ignores edit lists.
- It stops at a packet that it cannot decode.
- It conceals damage and does not report in which frame.
- It opens containers of every format; a list of allowed formats cannot be set.

So decord reads only kinds of files for which it gives the same frames as ffmpeg (`can_read`). The number and times of its
frames are compared with the probe's result. If the caller must know about damage (`checked`), decord reads the whole video
before the first frame is yielded. If decord's libraries log an error, the video is rejected.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vadcli.errors import DecodeError, NotFinished, NoVideoStream, ProbeError
from vadcli.types import BoolArray, ByteArray, PixelFormat, VideoInfo
from vadcli.video.container import display_matrix_degrees, open_media, path_text


@dataclass(frozen=True)
class ReadRequest:
    """Which rows of a video to read, and the size and pixel format of the images.

    Attributes:
        start: first row (frame index) to read; 0 is the beginning.
        interval: rows with index % interval == 0 get an image.
        width, height: size of the images in pixels, in display orientation.
        pixel_format: gray or rgb.
        stop: the row before which reading stops; None reads to the end.
        sampled: (N,) bool, True for the rows that get an image; if given, it replaces `interval`.
        needed: (N,) bool, True for the rows that must be decoded; None if all rows must be decoded. The decoder may leave out
            the other rows. A row that is left out has no image and counts as undamaged.
        only_keys: True if the needed rows are the keyframes; False if they are all frames to which other frames refer.
    """

    start: int
    interval: int
    width: int
    height: int
    pixel_format: PixelFormat
    stop: int | None = None
    sampled: BoolArray | None = field(default=None, repr=False, compare=False)
    needed: BoolArray | None = field(default=None, repr=False, compare=False)
    only_keys: bool = False

    def __post_init__(self) -> None:
        if self.start < 0 or self.interval < 1 or min(self.width, self.height) < 1:
            size = f"{self.width}x{self.height} px"
            raise ValueError(f"start row {self.start} must be at least 0; interval {self.interval} and size {size} at least 1")

    def samples(self, index: int) -> bool:
        """Return True if this row gets an image."""
        if self.sampled is not None:
            return index < len(self.sampled) and bool(self.sampled[index])
        return index % self.interval == 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.height, self.width, self.pixel_format.channels


@dataclass(frozen=True)
class Frame:
    """One row of a video.

    Attributes:
        index: 0-based row in presentation order, without gaps.
        pts: time of the row in the stream's time base.
        ok: False if the decoder lost the frame or concealed damage in it.
        image: (H, W, C) uint8; None if the row is not sampled or its image is lost.
    """

    index: int
    pts: int
    ok: bool
    image: ByteArray | None = field(repr=False)


@dataclass(frozen=True)
class DecodedFrame:
    """A frame from a decoder, before it is matched with a row.

    Attributes:
        pts: time that the decoder reports, in the time base of the probe; None if the decoder reports no time.
        ok: False if the decoder concealed damage.
        selected: True if the request asks for the image of this frame.
        image: (H, W, C) uint8; None if the frame is not selected or not readable.
        after_error: True if the decoder reported an error after the previous frame. If so, some frames before this frame may
            be lost.
    """

    pts: int | None
    ok: bool
    selected: bool
    image: ByteArray | None = field(repr=False)
    after_error: bool = False


class Backend(Protocol):
    """A decoder that reads one file. Iterate over it to get the frames in order."""

    complaints: str
    """The decoder's last messages; they are complete when the last frame was yielded."""

    def __iter__(self) -> Iterator[DecodedFrame]: ...

    def close(self) -> None:
        """End the decoder; a second call does nothing."""
        ...


MACHINE_ERRORS = frozenset(
    {
        *(errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.ENOLINK, errno.EREMOTEIO, errno.ENOMEDIUM),
        *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET),
        *(errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ESHUTDOWN, errno.EBUSY),
        *(errno.EACCES, errno.EMFILE, errno.ENFILE, errno.EKEYEXPIRED, errno.EKEYREVOKED, errno.EUCLEAN),
    }
)
"""Errors of the system that are the fault of the machine: the content of a file cannot cause them."""

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_DEFAULT_FPS = 10.0
_EXIF_ORIENTATION = 0x0112
_MODES = {PixelFormat.GRAY: "L", PixelFormat.RGB: "RGB"}


def _pillow_errors() -> tuple[type[Exception], ...]:
    """Return the errors that Pillow raises for unreadable images."""
    from PIL import Image  # not at the top, because only folders of images need Pillow

    return OSError, SyntaxError, ValueError, Image.DecompressionBombError


def list_images(folder: Path) -> tuple[str, ...]:
    """Return the names of a folder's images in natural order: frame2 before frame10."""
    names = [
        entry.name
        for entry in folder.iterdir()
        if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    ]

    def natural(name: str) -> tuple[tuple[tuple[bool, int, str], ...], str]:
        """Return a sort key that puts `2.png` before `10.png`."""
        parts = re.split(r"(\d+)", name)
        key = tuple((True, int(part), "") if part.isdecimal() else (False, 0, part.casefold()) for part in parts if part)
        return key, name

    return tuple(sorted(names, key=natural))


def probe_folder(folder: Path, *, fps: float | None = None) -> VideoInfo:
    """Describe a folder of numbered images as a video of `fps` frames per second (default 10).

    Raises:
        NoVideoStream: the folder has no images.
        ProbeError: the folder or all of its images are unreadable, or fps is not a positive number.
    """
    name = path_text(folder)
    rate = _DEFAULT_FPS if fps is None else fps
    if not 0 < rate < 1e6:
        raise ProbeError(f"{name}: {fps} frames per second is not a frame rate", hint="give --fps a number above 0")
    try:
        names = list_images(folder)
    except OSError as error:
        raise ProbeError(f"{name}: can't be read: {error.strerror}") from error
    if not names:
        raise NoVideoStream(f"{name}: the folder has no images")
    from PIL import Image

    for first in names:
        try:
            with Image.open(folder / first) as image:
                upright = image.getexif().get(_EXIF_ORIENTATION, 1) < 5  # orientations 5 to 8 are quarter turns
                width, height = image.size if upright else (image.height, image.width)
            break
        except _pillow_errors():
            continue
    else:
        raise ProbeError(f"{name}: none of its images can be read ({len(names)} found)")
    per_second = Fraction(rate).limit_denominator(100_000)
    return VideoInfo(
        path=folder,
        demuxer="images",
        codec=Path(names[0]).suffix.lower().lstrip("."),
        stream_index=0,
        width=width,
        height=height,
        rotation=0,
        time_base=1 / per_second,
        pts=np.arange(len(names), dtype=np.int64),
        fps=float(per_second),
        duration_s=float(len(names) / per_second),
        images=names,
        keyframes=np.arange(len(names), dtype=np.int64),
    )


class ImageFrames:
    """A `Backend` that reads a folder of images.

    If a row is not sampled, its file is not opened. Such a row counts as undamaged if its file is not empty.
    """

    def __init__(self, info: VideoInfo, request: ReadRequest) -> None:
        self.complaints = ""
        self._info = info
        self._request = request

    def __iter__(self) -> Iterator[DecodedFrame]:
        """Yield the frames from row `start` on.

        If an image can't be read, its frame has ok False and no image.
        """
        request = self._request
        for row in range(request.start, self._info.frames):
            path = self._info.path / self._info.images[row]
            selected = request.samples(row)
            try:
                image = read_image(path, request.width, request.height, request.pixel_format) if selected else None
                ok = selected or path.stat().st_size > 0
            except _pillow_errors() as error:
                if isinstance(error, OSError) and error.errno in MACHINE_ERRORS | {errno.EIO}:
                    raise NotFinished(f"{path_text(path)}: can't be read at the moment: {error.strerror}") from error
                self.complaints = f"{path_text(path)}: {error}"
                image, ok = None, False
            yield DecodedFrame(int(self._info.pts[row]), ok, selected, image)

    def close(self) -> None:
        """Do nothing: no file stays open."""


def read_image(path: Path, width: int, height: int, pixel_format: PixelFormat) -> ByteArray:
    """Return the pixels (H, W, C) uint8 of an image file, in display orientation.

    Raises:
        OSError, SyntaxError, ValueError: Pillow cannot read it.
    """
    from PIL import Image, ImageOps

    mode = _MODES[pixel_format]
    with Image.open(path) as opened:
        opened.draft(mode, (width, height))
        upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith("I;16"):  # `convert` would clip 16-bit values at 255 and not scale them
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        image = upright.convert(mode)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(image).reshape(height, width, -1)


SHORT_CLIP_PX = 64_000_000
"""Up to this size (width × height × frames), decord takes less CPU time than an ffmpeg process; measured from 240p to 1080p."""

_SIGNATURES = {
    "mov": (4, (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")),
    "matroska": (0, (b"\x1a\x45\xdf\xa3",)),
    "avi": (0, (b"RIFF",)),
}
"""For each demuxer, an offset in the file, and the bytes that are allowed there. A playlist has other bytes."""
_CODECS = frozenset({"h264", "hevc", "mpeg4", "mjpeg"})
_PTS_SLACK_S = 1e-3  # decord reports times as 32-bit floats
_COMPLAINT = re.compile(rb"^\[(?:[^\]]* @ 0x[0-9a-f]+|\d\d:\d\d:\d\d)\] (.*)$")


def can_read(info: VideoInfo, *, upright: bool = False) -> bool:
    """Return True if decord is installed and known to read this kind of file correctly.

    Args:
        info: the probe's description of the file.
        upright: True if files with a display matrix are excluded, too. Some matrices mirror the image, but decord can only
            rotate an image by quarter turns.
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
    """Return True if decord takes less CPU time than ffmpeg for this file."""
    return info.width * info.height * info.frames <= SHORT_CLIP_PX


class DecordFrames:
    """A `Backend` that reads one video with decord.

    Args:
        info: the probe's description of the file.
        request: what to read.
        threads: decoder threads; 0 lets decord choose.
        checked: True reads the whole video before the first frame is yielded, and raises an error if decord's libraries log an
            error; use it only for short videos. False reads one frame at a time; damage that decord conceals is not noticed.

    Raises:
        DecodeError: decord is not installed, cannot open the file, or finds other frames than the probe. Or `checked` is True,
            and decord's libraries log an error.
    """

    def __init__(self, info: VideoInfo, request: ReadRequest, *, threads: int = 0, checked: bool = False) -> None:
        self.complaints = ""
        self._info = info
        self._request = request
        self._frames: Iterator[DecodedFrame] | None
        if checked:
            with _libav_messages() as messages:
                frames = list(self._read(_open(info, request, threads, quiet=False), 0))
            if messages or len(frames) < info.frames:
                raise DecodeError(f"{path_text(info.path)}: {'; '.join(messages) or self.complaints}")
            self._frames = iter(frames)
        else:
            self._frames = self._read(_open(info, request, threads, quiet=True), request.start)

    def __iter__(self) -> Iterator[DecodedFrame]:
        """Yield the frames in order.

        If a frame cannot be decoded, stop there and put the reason in `complaints`.
        """
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
                # All frames are decoded, because decord's `skip_frames` is unsafe: with HEVC or a variable frame rate, decord
                # continues at a wrong frame.
                frame = reader.next()
                image: ByteArray | None = None
                if selected:
                    rgb: ByteArray = frame.asnumpy()
                    if rgb.shape != (request.height, request.width, 3):  # decord returns narrow images with their padding
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
        times_s = np.asarray(reader.get_frame_timestamp(np.arange(len(reader))), np.float64)[:, 0]
    except (_decord_error(), RuntimeError, IndexError, ValueError) as error:
        raise DecodeError(f"{path_text(info.path)}: decord cannot open it: {_first_line(error)}") from error
    expected_s = info.timestamps(info.pts)
    slack_s = _PTS_SLACK_S + 1e-6 * (times_s[0] + expected_s[-1])
    if len(times_s) != len(expected_s) or np.abs(times_s - times_s[0] - expected_s).max() > slack_s:
        text = f"decord's {len(times_s)} frames and the probe's {len(expected_s)} frames differ in number or times"
        raise DecodeError(f"{path_text(info.path)}: {text}")
    return reader


_LUMA = np.array([19595, 38470, 7471], np.float32)
_PLACE = re.compile(r"^\[[\d:]+\]\s+\S+:\d+:\s*(Error:\s*)?")  # a message begins with a time and a place in decord's code


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
    """Collect the lines that libav writes to the stderr of this process inside the `with` block.

    Lines that are not from libav are written to stderr when the block ends.

    Raises:
        DecodeError: the process has no stderr.
    """
    messages: list[str] = []
    try:
        stderr = os.dup(2)
    except OSError as error:
        raise DecodeError("decord's error messages cannot be read, because this process has no stderr") from error
    with tempfile.TemporaryFile() as text:
        os.dup2(text.fileno(), 2)
        try:
            yield messages
        finally:
            os.dup2(stderr, 2)
            text.seek(0)
            for line in text.read().splitlines(keepends=True):
                complaint = _COMPLAINT.match(line.rstrip())
                if complaint:
                    messages.append(complaint[1].decode(errors="replace").rstrip(" ."))
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
