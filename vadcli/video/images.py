"""What is asked of a decoder and what it answers: the values that the decoders, `decode` and the loader share.

Folders of numbered images as videos.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vadcli.errors import NoVideoStream, ProbeError
from vadcli.types import ByteArray, PixelFormat, VideoInfo
from vadcli.video.container import shown

DecoderChoice = Literal["auto", "decord", "ffmpeg"]


@dataclass(frozen=True)
class ReadRequest:
    """What to read of a video.

    Attributes:
        start: first row (frame index) wanted; 0 is the beginning.
        interval: rows with index % interval == 0 come with an image.
        width, height: delivered size in pixels, display orientation.
        pixel_format: gray or rgb.
        stop: first row not wanted; None reads to the end.
    """

    start: int
    interval: int
    width: int
    height: int
    pixel_format: PixelFormat
    stop: int | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or self.interval < 1 or min(self.width, self.height) < 1:
            raise ValueError(f"can't read from row {self.start} every {self.interval} rows at {self.width}x{self.height}")

    def samples(self, index: int) -> bool:
        """True where this row comes with an image."""
        return index % self.interval == 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of a delivered image."""
        return self.height, self.width, self.pixel_format.channels


@dataclass(frozen=True)
class Frame:
    """One row of a video.

    Attributes:
        index: 0-based row, presentation order, no gaps.
        pts: in the stream's time base.
        ok: False where the decoder lost or concealed the frame.
        image: (H, W, C) uint8; None where the row isn't sampled or its image is lost.
    """

    index: int
    pts: int
    ok: bool
    image: ByteArray | None = field(repr=False)


@dataclass(frozen=True)
class Shown:
    """A frame as one decoder shows it, before it is matched with a row.

    Attributes:
        pts: as the decoder reports it; None where it has none.
        ok: False where the decoder concealed damage.
        selected: True where the decoder was to deliver the image.
        image: (H, W, C) uint8 where selected; None also where it can't be read.
    """

    pts: int | None
    ok: bool
    selected: bool
    image: ByteArray | None = field(repr=False)


class Backend(Protocol):
    """One decoder at work on one file; iterating it gives what it shows, in order."""

    complaints: str
    """The last lines of what the decoder said; complete after the last frame."""

    def __iter__(self) -> Iterator[Shown]: ...

    def close(self) -> None:
        """End the decoder; a second call does nothing."""
        ...


IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_DEFAULT_FPS = 10.0
_EXIF_ORIENTATION = 0x0112
_UNREADABLE = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)
_MODES = {PixelFormat.GRAY: "L", PixelFormat.RGB: "RGB"}


def list_images(folder: Path) -> tuple[str, ...]:
    """Names of the images of a folder, hidden ones left out, in natural order: frame2 before frame10."""
    names = [
        entry.name
        for entry in folder.iterdir()
        if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    ]
    return tuple(sorted(names, key=_natural))


def _natural(name: str) -> tuple[tuple[tuple[bool, int, str], ...], str]:
    parts = re.split(r"(\d+)", name)
    key = tuple((True, int(part), "") if part.isdecimal() else (False, 0, part.casefold()) for part in parts if part)
    return key, name


def probe_folder(folder: Path, *, fps: float | None = None) -> VideoInfo:
    """A folder of numbered images as a video of `fps` frames a second (default 10); pts are 0 … N-1.

    Raises:
        NoVideoStream: it holds no images.
        ProbeError: it can't be read, its first readable image is none, or fps is not a positive number.
    """
    name = shown(folder)
    rate = _DEFAULT_FPS if fps is None else fps
    if not 0 < rate < 1e6:
        raise ProbeError(f"{name}: {fps} frames a second is not a frame rate", hint="give --fps a number over 0")
    try:
        names = list_images(folder)
    except OSError as error:
        raise ProbeError(f"{name}: can't be read: {error.strerror}") from error
    if not names:
        raise NoVideoStream(f"{name}: the folder holds no images")
    width, height = _first_size(folder, names)
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


def _first_size(folder: Path, names: tuple[str, ...]) -> tuple[int, int]:
    for name in names:
        try:
            with Image.open(folder / name) as image:
                upright = image.getexif().get(_EXIF_ORIENTATION, 1) < 5  # 5 to 8 are quarter turns
                return image.size if upright else (image.height, image.width)
        except _UNREADABLE:
            continue
    raise ProbeError(f"{shown(folder)}: none of its {len(names)} images can be read")


class ImageFrames:
    """A Backend over a folder of images; a row that isn't sampled is not read, only looked for."""

    def __init__(self, info: VideoInfo, request: ReadRequest) -> None:
        self.complaints = ""
        self._info = info
        self._request = request

    def __iter__(self) -> Iterator[Shown]:
        """The images from the first row wanted on; an image that can't be read is not ok and has no picture."""
        request = self._request
        for row in range(request.start, self._info.frames):
            path = self._info.path / self._info.images[row]
            selected = request.samples(row)
            try:
                image = read_image(path, request.width, request.height, request.pixel_format) if selected else None
                ok = selected or path.stat().st_size > 0
            except _UNREADABLE as error:
                self.complaints = f"{shown(path)}: {error}"
                image, ok = None, False
            yield Shown(int(self._info.pts[row]), ok, selected, image)

    def close(self) -> None:
        """Nothing is held open."""


def read_image(path: Path, width: int, height: int, pixel_format: PixelFormat) -> ByteArray:
    """(H, W, C) uint8 of one image, upright.

    Raises:
        OSError, SyntaxError, ValueError: it can't be read; Pillow's own.
    """
    mode = _MODES[pixel_format]
    with Image.open(path) as opened:
        opened.draft(mode, (width, height))
        upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        image = upright.convert(mode)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(image).reshape(height, width, -1)
