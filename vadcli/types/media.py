"""Array types, a probed video (`VideoInfo`), the needs of a detector (`ClipNeeds`), and clips with their times (`Clip`).

In shapes, N is the number of frames of a video, T the frames per clip, and (H, W) the size delivered to the detector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
ByteArray = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
IndexArray = NDArray[np.int64]
TimeArray = NDArray[np.float64]


class PixelFormat(StrEnum):
    """The pixel format that a detector needs."""

    GRAY = "gray"
    RGB = "rgb"

    @property
    def channels(self) -> int:
        """Bytes per pixel."""
        return 1 if self is PixelFormat.GRAY else 3


DecoderChoice = Literal["auto", "decord", "ffmpeg"]
Decoding = Literal["all", "reference", "key"]
DecodingChoice = Literal["auto", "all", "reference", "key"]


class DecoderName(StrEnum):
    """The decoder that read a video."""

    DECORD = "decord"
    FFMPEG = "ffmpeg"
    IMAGES = "images"


_STREAM_FIELDS = ("demuxer", "codec", "stream_index", "width", "height", "rotation")


@dataclass(frozen=True)
class VideoInfo:
    """The facts about a video that are known without decoding it.

    Attributes:
        path: the file, or the folder of numbered images.
        demuxer: ffmpeg's name of the container format; "images" for a folder.
        codec: ffmpeg's decoder name, e.g. "h264".
        stream_index: the stream that ffmpeg would pick.
        width, height: display size in square pixels, after rotation. Frames are delivered in this shape.
        rotation: the clockwise angle in degrees (0, 90, 180, 270) by which a player turns the stored frame.
        time_base: seconds per unit of pts.
        pts: (N,) int64, strictly increasing presentation timestamps of the frames that a player shows. They are an estimate
            until the video has been decoded if the container does not store them.
        fps: average frames per second, > 0.
        duration_s: seconds from the first pts to the end of the last frame.
        vfr: True if the frame rate varies: the time between frames changes by more than rounding errors.
        edit_list: True if an edit list hides packets of the stream.
        images: file names of a frame folder in order; empty for a file.
        shown_pts: (N,) int64, the times that a decoder reports. They may repeat or decrease. Empty if they equal `pts`.
        keyframes: (K,) int64 rows at which decoding can begin, according to the container.
        created: when the recording was made according to the container, in ISO 8601; "" if the container does not say it.
        guessed_times: True if the container does not store the right time of every frame; then decoders may report other times.
        look: ffmpeg's options for reading more of the file if this is needed to find the streams; usually empty.
        missing: number of frames that the file should have but does not have: it ends early, or another stream continues.
        missing_reason: a text that says why frames are missing; empty if `missing` is 0.
        note: a text that says which other parts of the file are left out; empty if nothing is left out.
        one_frame_per_packet: False if a packet may contain two frames, half a frame, or only a command to repeat a frame.
        reference: (N,) bool, False if no other frame needs the frame, so that a decoder can skip it. Empty if this is
            not known, or if it is not safe to skip frames of this file.
    """

    path: Path
    demuxer: str
    codec: str
    stream_index: int
    width: int
    height: int
    rotation: int
    time_base: Fraction
    pts: IndexArray = field(repr=False)
    fps: float
    duration_s: float
    vfr: bool = False
    edit_list: bool = False
    images: tuple[str, ...] = field(default=(), repr=False)
    shown_pts: IndexArray = field(default_factory=lambda: np.empty(0, np.int64), repr=False)
    keyframes: IndexArray = field(default_factory=lambda: np.empty(0, np.int64), repr=False)
    created: str = ""
    guessed_times: bool = False
    one_frame_per_packet: bool = True
    reference: BoolArray = field(default_factory=lambda: np.empty(0, np.bool_), repr=False)
    look: Mapping[str, str] = field(default_factory=dict, repr=False)
    missing: int = 0
    missing_reason: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"{self.path}: frame size {self.width}x{self.height} is empty")
        if self.rotation not in (0, 90, 180, 270):
            raise ValueError(f"{self.path}: rotation {self.rotation} is not a quarter turn")
        if self.pts.ndim != 1 or (len(self.pts) > 1 and np.any(np.diff(self.pts) <= 0)):
            raise ValueError(f"{self.path}: pts must be one-dimensional and strictly increasing")
        if not self.fps > 0:
            raise ValueError(f"{self.path}: fps {self.fps} must be positive")

    @property
    def frames(self) -> int:
        """Number of frames that a player would show."""
        return len(self.pts)

    def timestamps(self, pts: IndexArray) -> TimeArray:
        """Return seconds from the video's first pts as float64, with the same shape as `pts`."""
        first = int(self.pts[0]) if len(self.pts) else 0
        return (pts - first) * np.float64(self.time_base.numerator) / self.time_base.denominator

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that is stored with the scores, without the pts, because the scores have a column of pts."""
        names = (*_STREAM_FIELDS, "time_base", "fps", "duration_s", "frames", "vfr", "edit_list")
        return {name: getattr(self, name) for name in names} | {"time_base": str(self.time_base)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], path: Path, pts: IndexArray) -> VideoInfo:
        """Return the video of a stored probe; `path` and `pts` are not in the document.

        Raises:
            KeyError, TypeError, ValueError: the document is not a probe.
        """
        kept = {name: document[name] for name in (*_STREAM_FIELDS, "fps", "duration_s", "vfr", "edit_list")}
        return cls(path=path, time_base=Fraction(document["time_base"]), pts=pts, **kept)


@dataclass(frozen=True)
class SizeRule:
    """The size at which frames are delivered.

    Frames are never enlarged and keep their aspect ratio. Sides over 2 px are made even.

    Attributes:
        max_area_px: the largest width × height; larger frames are shrunk to this area.
    """

    max_area_px: int

    def apply(self, width: int, height: int) -> tuple[int, int]:
        """Return the delivered (width, height) in pixels of a frame with this display size."""
        scale = min(1.0, math.sqrt(self.max_area_px / (width * height)))
        return _even(width * scale), _even(height * scale)


def _even(side: float) -> int:
    whole = max(1, math.floor(side + 1e-9))
    return whole if whole <= 2 else whole - whole % 2


@dataclass(frozen=True)
class ClipNeeds:
    """The clips that a detector needs; the loader delivers exactly these.

    Attributes:
        frames: T, the number of sampled frames per clip.
        overlap: number of sampled frames that a clip repeats from the end of the clip before it.
        rate_hz: sampled frames per second; the interval is round(fps / rate_hz), at least 1.
        size: the delivered size.
        pixel_format: gray (one channel) or rgb.
        interval: frames from one sampled frame to the next; if given, it replaces rate_hz.
        decode: all frames are decoded, only reference frames (if a video has enough of them), or only keyframes. Only
            decoded frames can be sampled.
        whole_bursts: True if a camera must be fitted on clips of T frames; False if shorter clips are good enough.
    """

    frames: int
    overlap: int
    rate_hz: float
    size: SizeRule
    pixel_format: PixelFormat
    interval: int | None = None
    decode: Decoding = "all"
    whole_bursts: bool = False

    def __post_init__(self) -> None:
        if self.frames < 1 or not 0 <= self.overlap < self.frames:
            raise ValueError(f"a clip of {self.frames} frames can't overlap by {self.overlap}")
        if self.interval is not None and self.interval < 1:
            raise ValueError(f"interval {self.interval} must be at least 1 frame")
        if not self.rate_hz > 0:
            raise ValueError(f"rate {self.rate_hz} must be positive")

    def interval_for(self, fps: float) -> int:
        """Return the frames from one sampled frame to the next in a video of this frame rate."""
        return self.interval or max(1, round(fps / self.rate_hz))

    @property
    def max_clip_bytes(self) -> int:
        """The largest possible size of a clip in bytes."""
        return self.frames * self.size.max_area_px * self.pixel_format.channels


@dataclass(frozen=True)
class Clip:
    """T sampled frames of one video.

    Attributes:
        video: the video's relative path.
        index: 0-based number of the clip in its video.
        frames: (T, H, W, C) uint8, C = 1 (gray) or 3 (rgb), display orientation.
        frame_index: (T,) int64, 0-based row of each frame in the video.
        timestamp: (T,) float64, seconds from the video's first pts.
        valid: (T,) bool, True if this clip scores the frame; False for repeated, padded or lost frames.
        interval: frames from one sampled frame to the next; their mean if it varies.
    """

    video: str
    index: int
    frames: ByteArray
    frame_index: IndexArray
    timestamp: TimeArray
    valid: BoolArray
    interval: int

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.dtype != np.uint8:
            raise ValueError(
                f"{self.video}: clip frames must be (T, H, W, C) uint8, not {self.frames.shape} {self.frames.dtype}"
            )
        t = len(self.frames)
        if not len(self.frame_index) == len(self.timestamp) == len(self.valid) == t:
            raise ValueError(f"{self.video}: a clip of {t} frames needs {t} indices, times and flags")

    def owned(self) -> Clip:
        """Return the clip with a copy of the pixels. The loader uses the memory of the original for its next item."""
        return replace(self, frames=self.frames.copy())
