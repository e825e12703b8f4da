"""Videos, their clips, and the regions of the picture that a detector must not see.

`VideoInfo` is what is known about a video before decoding. `ClipNeeds` says what clips a detector needs. A `Clip` has frames
with their times. `Regions` are polygons and mask images. Their coordinates are fractions of the frame's width and height, so
regions fit frames of any size. (0, 0) is the top left corner.

Letters in shapes: N frames per video, T frames per clip, (H, W) the size of the frames that the detector gets.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
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
        """Bytes per pixel: 1 for gray, 3 for rgb."""
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
        stream_index: number of the video stream that is read; the same stream that ffmpeg would choose.
        width, height: size of a frame as a player shows it, in pixels: after rotation, and with square pixels.
        rotation: clockwise angle by which a player turns the stored frame: 0, 90, 180 or 270 degrees.
        time_base: seconds per unit of pts.
        pts: (N,) int64, presentation timestamps of the frames that a player shows, strictly increasing. If the container has
            no timestamps, these are estimates, which the decoder corrects.
        fps: average frames per second, > 0.
        duration_s: seconds from the first pts to the end of the last frame.
        vfr: True if the frame rate varies: the time between frames changes by more than rounding errors.
        edit_list: True if the container's edit list hides packets of the stream.
        images: names of the image files in a folder, in order; empty for a video file.
        shown_pts: (N,) int64, the times that a decoder reports, which may repeat or decrease. Empty if they are equal to `pts`.
        keyframes: (K,) int64, numbers of the frames at which decoding can begin, according to the container.
        created: time of the recording according to the container, in ISO 8601; "" if the container does not store it.
        guessed_times: True if the container stores no time, or a wrong time, for some frames. In this case, a decoder may
            report other times than `pts`.
        probe_options: extra ffmpeg options that are needed to find the streams of this file; usually empty.
        missing: number of frames that the file should have but does not have, for example because it ends too early.
        missing_reason: the reason why frames are missing, as a text for the user; "" if `missing` is 0.
        note: a text for the user about the file's other video streams, which are not scanned; "" if there are none.
        one_frame_per_packet: False if a packet may contain two frames, half a frame, or only a command to repeat a frame.
        reference: (N,) bool, False if no other frame is decoded from this frame. A decoder can skip such frames. Empty if
            this is not known, or if skipping is not safe in this file.
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
    probe_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    missing: int = 0
    missing_reason: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"{self.path}: frame size {self.width}x{self.height} must be at least 1x1")
        if self.rotation not in (0, 90, 180, 270):
            raise ValueError(f"{self.path}: rotation {self.rotation} is not 0, 90, 180 or 270")
        if self.pts.ndim != 1 or (len(self.pts) > 1 and np.any(np.diff(self.pts) <= 0)):
            raise ValueError(f"{self.path}: pts must be one-dimensional and strictly increasing")
        if not self.fps > 0:
            raise ValueError(f"{self.path}: fps {self.fps} must be positive")

    @property
    def frames(self) -> int:
        """Number of frames that a player would show."""
        return len(self.pts)

    def timestamps(self, pts: IndexArray) -> TimeArray:
        """Return the seconds from the video's first pts to each of `pts`, float64 in the same shape."""
        first = int(self.pts[0]) if len(self.pts) else 0
        return (pts - first) * np.float64(self.time_base.numerator) / self.time_base.denominator

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that is stored with the scores. It has no pts, because pts are a column of the scores."""
        names = (*_STREAM_FIELDS, "time_base", "fps", "duration_s", "frames", "vfr", "edit_list")
        return {name: getattr(self, name) for name in names} | {"time_base": str(self.time_base)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], path: Path, pts: IndexArray) -> VideoInfo:
        """Return the video from the JSON of `to_json`, which has no path and no pts.

        Raises:
            KeyError, TypeError, ValueError: the document is damaged.
        """
        values = {name: document[name] for name in (*_STREAM_FIELDS, "fps", "duration_s", "vfr", "edit_list")}
        return cls(path=path, time_base=Fraction(document["time_base"]), pts=pts, **values)


@dataclass(frozen=True)
class SizeRule:
    """The size to which the frames of a video are resized for a detector.

    Frames are never enlarged, and keep their aspect ratio. A side of more than 2 pixels is rounded down to an even number.

    Attributes:
        max_area_px: largest width × height in pixels; larger frames are reduced to this area.
    """

    max_area_px: int

    def apply(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) to which a frame of this size is resized, in pixels."""
        scale = min(1.0, math.sqrt(self.max_area_px / (width * height)))
        return _even(width * scale), _even(height * scale)


def _even(side: float) -> int:
    whole = max(1, math.floor(side + 1e-9))
    return whole if whole <= 2 else whole - whole % 2


@dataclass(frozen=True)
class ClipNeeds:
    """The form of the clips that a detector needs.

    Attributes:
        frames: T, the number of sampled frames per clip.
        overlap: number of sampled frames that a clip has in common with the clip before it, less than T.
        rate_hz: sampled frames per second. Every n-th frame is sampled, with n = round(fps / rate_hz), at least 1.
        size: the size to which frames are resized.
        pixel_format: gray (one channel) or rgb.
        interval: n. If the detector sets this value, rate_hz is ignored.
        decode: which frames are decoded: "all", "key" (keyframes) or "reference" (frames from which other frames are decoded).
            If a video has too few reference frames, all frames are decoded. Only decoded frames can be sampled.
        whole_bursts: True if the clips for the fit of a camera must have T frames; False if shorter clips are good enough.
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
            raise ValueError(f"an overlap of {self.overlap} frames is not possible in clips of {self.frames} frames")
        if self.interval is not None and self.interval < 1:
            raise ValueError(f"interval {self.interval} must be at least 1 frame")
        if not self.rate_hz > 0:
            raise ValueError(f"rate {self.rate_hz} must be positive")

    def interval_for(self, fps: float) -> int:
        """Return n for a video with this frame rate: every n-th frame is sampled."""
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
        index: number of the clip in its video, from 0.
        frames: (T, H, W, C) uint8, C = 1 (gray) or 3 (rgb), rotated as a player shows them.
        frame_index: (T,) int64, number of each frame in the video, from 0.
        timestamp: (T,) float64, seconds from the video's first pts.
        valid: (T,) bool, False if the frame's score will not be used. There are three reasons: the previous clip has the same
            frame; the frame is padding at the end of the video; or the frame could not be decoded.
        interval: number of frames from one sampled frame to the next; the mean if this number varies.
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
            raise ValueError(
                f"{self.video}: a clip of {t} frames has {len(self.frame_index)} frame numbers, "
                f"{len(self.timestamp)} timestamps and {len(self.valid)} values in `valid`; it needs {t} of each"
            )

    def owned(self) -> Clip:
        """Return a clip with a copy of the pixels. Without a copy, the loader overwrites the pixels later."""
        return replace(self, frames=self.frames.copy())


FEWEST_POINTS = 3
_SAMPLES_PER_SIDE = 4  # each pixel is tested at 4 x 4 points, because a region may hide only a part of the pixel
_FINE_PX = 2048  # largest number of points per side of a frame; larger frames have fewer points per pixel
_SHOWN_SAMPLES = 4096  # approximate number of visible pixels from which the median is computed


@dataclass(frozen=True)
class Polygon:
    """A region with the shape of a polygon.

    If edges cross each other, the even-odd rule says what is inside.

    Attributes:
        points: at least three points (x, y), as fractions of the frame's width and height in [0, 1].

    Raises:
        ValueError: there are too few points, or a coordinate is outside [0, 1].
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if len(self.points) < FEWEST_POINTS:
            raise ValueError(f"a polygon needs at least {FEWEST_POINTS} points, not {len(self.points)}")
        for x, y in self.points:
            if not (0 <= x <= 1 and 0 <= y <= 1):
                raise ValueError(f"point [{x:g}, {y:g}] is outside 0-1")

    def inside(self, width: int, height: int) -> BoolArray:
        """Return (height, width) bool: True for pixels whose centre is inside the polygon."""
        x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
        inside = np.zeros((height, width), np.bool_)
        for (x0, y0), (x1, y1) in zip(self.points, (*self.points[1:], self.points[0]), strict=True):
            rows = np.flatnonzero((y >= y0) != (y >= y1))
            if len(rows):
                crossing = x0 + (y[rows] - y0) * ((x1 - x0) / (y1 - y0))
                inside[rows] ^= x < crossing[:, None]
        return inside

    def to_json(self) -> list[list[float]]:
        """Return the points as JSON."""
        return [[x, y] for x, y in self.points]


@dataclass(frozen=True)
class MaskImage:
    """A region that the user gave as an image.

    Attributes:
        width, height: size of the image in pixels.
        bits: one bit per pixel, row by row, packed by `numpy.packbits`. A pixel is inside the region if its bit is 1.

    Raises:
        ValueError: the number of bytes is wrong.
    """

    width: int
    height: int
    bits: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 1 or len(self.bits) != -(-self.width * self.height // 8):
            raise ValueError(f"{len(self.bits)} bytes do not fit a mask of {self.width} x {self.height} pixels")

    @classmethod
    def of(cls, pixels: BoolArray) -> MaskImage:
        """Return the region of the pixels (H, W) that are True."""
        return cls(pixels.shape[1], pixels.shape[0], np.packbits(pixels).tobytes())

    def inside(self, width: int, height: int) -> BoolArray:
        """Return (height, width) bool: True for pixels whose nearest pixel in the image is inside the region."""
        pixels = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.width * self.height).astype(np.bool_)
        rows = (np.arange(height) * 2 + 1) * self.height // (2 * height)
        columns = (np.arange(width) * 2 + 1) * self.width // (2 * width)
        inside: BoolArray = pixels.reshape(self.height, self.width)[rows][:, columns]
        return inside

    def to_json(self) -> dict[str, Any]:
        """Return the size and the compressed pixels as JSON."""
        return {"size": [self.width, self.height], "bits": base64.b64encode(zlib.compress(self.bits, 9)).decode()}


Region = Polygon | MaskImage


def region_from_json(value: Any) -> Region:
    """Return the region in a JSON value: a polygon from a list of points, a mask image from an object.

    Raises:
        ValueError: the value is neither a polygon nor a mask image.
    """
    if isinstance(value, Mapping):
        try:
            width, height = (int(side) for side in value["size"])
            return MaskImage(width, height, zlib.decompress(base64.b64decode(value["bits"], validate=True)))
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise ValueError("is not a mask image with `size` and `bits`") from error
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{json.dumps(value)[:40]} is not a list of points")
    points = []
    for point in value:
        fits = isinstance(point, Sequence) and len(point) == 2
        if not fits or not all(isinstance(part, int | float) and not isinstance(part, bool) for part in point):
            raise ValueError(f"{json.dumps(point)[:40]} is not a point [x, y]")
        points.append((float(point[0]), float(point[1])))
    return Polygon(tuple(points))


@dataclass(frozen=True)
class Regions:
    """The regions of one camera. `bool(regions)` is False if there is no region.

    Attributes:
        ignore: regions to hide from the detector.
        only: regions to show to the detector; everything outside them is hidden. If empty, only `ignore` is hidden.
    """

    ignore: tuple[Region, ...] = ()
    only: tuple[Region, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ignore or self.only)

    def __or__(self, other: Regions) -> Regions:
        """Return all regions of both objects, without duplicates."""
        return Regions(tuple(dict.fromkeys(self.ignore + other.ignore)), tuple(dict.fromkeys(self.only + other.only)))

    def hidden(self, width: int, height: int) -> BoolArray:
        """Return (height, width) bool: True for pixels that are hidden completely or partly."""
        fine = max(1, min(_SAMPLES_PER_SIDE, _FINE_PX // max(width, height)))
        wide, tall = width * fine, height * fine
        hidden = np.full((tall, wide), bool(self.only))
        for region in self.only:
            hidden &= ~region.inside(wide, tall)
        for region in self.ignore:
            hidden |= region.inside(wide, tall)
        return np.asarray(hidden.reshape(height, fine, width, fine).any(axis=(1, 3)))

    @property
    def sha256(self) -> str:
        """Hash of the regions; "" if there are no regions. The order of the regions does not matter."""
        if not self:
            return ""
        parts = [sorted(json.dumps(region.to_json(), sort_keys=True) for region in part) for part in (self.ignore, self.only)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def to_json(self) -> dict[str, Any] | None:
        """Return the JSON that is stored with the events; None if there are no regions."""
        if not self:
            return None
        return {"ignore": [region.to_json() for region in self.ignore], "only": [region.to_json() for region in self.only]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | None) -> Regions:
        """Return the regions from the JSON of `to_json`; raise ValueError if the document is damaged."""
        if document is None:
            return NO_REGIONS
        ignore, only = (tuple(map(region_from_json, document.get(name, ()))) for name in ("ignore", "only"))
        return cls(ignore, only)


NO_REGIONS = Regions()


@dataclass(frozen=True)
class CameraRegions:
    """The regions of every camera of a scan.

    Attributes:
        by_name: the regions of each camera name or glob. `gate*` means all cameras whose names begin with `gate`.
    """

    by_name: Mapping[str, Regions] = field(default_factory=dict)

    def __or__(self, other: CameraRegions) -> CameraRegions:
        """Return all regions of both objects, for each camera name or glob."""
        names = dict.fromkeys([*self.by_name, *other.by_name])
        return CameraRegions({name: self.by_name.get(name, NO_REGIONS) | other.by_name.get(name, NO_REGIONS) for name in names})

    def of(self, camera: str) -> Regions:
        """Return all regions in `by_name` whose name or glob matches the camera."""
        matching = NO_REGIONS
        for name, regions in self.by_name.items():
            if _fits(name, camera):
                matching |= regions
        return matching

    def unknown(self, cameras: Iterable[str]) -> list[str]:
        """Return the names and globs that match none of the cameras."""
        known = tuple(cameras)
        return [name for name in self.by_name if not any(_fits(name, camera) for camera in known)]


def _fits(name: str, camera: str) -> bool:
    return name == camera or fnmatchcase(camera, name)


class Blanker:
    """Hides regions in clips that have the same frame size.

    Hidden pixels get the median value of the visible pixels in the same frame. So a change of the light changes the hidden
    pixels like the rest of the frame.

    Args:
        regions: the regions.
        width, height: size of the frames in pixels.
    """

    def __init__(self, regions: Regions, width: int, height: int) -> None:
        self._hidden = regions.hidden(width, height)
        shown = np.flatnonzero(~self._hidden)
        self._sample = shown[:: max(1, len(shown) // _SHOWN_SAMPLES)]

    def blank(self, frames: ByteArray) -> None:
        """Replace the hidden pixels of the frames (T, H, W, C) uint8 in place."""
        count, height, width, channels = frames.shape
        fill = np.full((count, 1, 1, channels), 128, np.uint8)
        if len(self._sample):
            visible = frames.reshape(count, height * width, channels)[:, self._sample]
            fill[:, 0, 0] = np.sort(visible, axis=1)[:, len(self._sample) // 2]
        np.copyto(frames, fill, where=self._hidden[None, :, :, None])
