"""What is asked of a decoder and what it answers: the values that the decoders, `decode` and the loader share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from vadcli.types import ByteArray, PixelFormat

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
