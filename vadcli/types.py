"""The values that cross vadcli's boundaries: frozen, self-checking, with shapes and units where they are born.

N frames of a video, S of them sampled, B clips a batch, T frames a clip, (H, W) the size delivered to the detector,
(h, w) the detector's own mask size, K raw channels.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
ByteArray = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
IndexArray = NDArray[np.int64]
TimeArray = NDArray[np.float64]

SCORES_SCHEMA_VERSION = 1
EVENTS_FORMAT_VERSION = 1


class PixelFormat(StrEnum):
    """What a detector wants a pixel to be."""

    GRAY = "gray"
    RGB = "rgb"

    @property
    def channels(self) -> int:
        """Bytes a pixel."""
        return 1 if self is PixelFormat.GRAY else 3


class DecoderName(StrEnum):
    """Which decoder read a video."""

    DECORD = "decord"
    FFMPEG = "ffmpeg"
    IMAGES = "images"


class Status(StrEnum):
    """What became of a video in a run."""

    DONE = "done"
    PARTIAL = "partial"
    FAILED = "failed"
    SKIPPED = "skipped"
    RUNNING = "running"


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video without decoding it.

    Attributes:
        path: the file, or the folder of numbered images.
        demuxer: ffmpeg's name of the container format; "images" for a folder.
        codec: ffmpeg's decoder name, e.g. "h264".
        stream_index: the stream that ffmpeg would pick.
        width, height: display size in pixels, after rotation.
        rotation: degrees clockwise (0, 90, 180, 270) that a player turns the stored frame by.
        time_base: seconds a pts unit.
        pts: (N,) int64, strictly increasing presentation timestamps of the frames that a player shows. An estimate until
            decoding has reconciled it where the container does not tell.
        fps: average frames a second, > 0.
        duration_s: seconds from the first pts to the end of the last frame.
        vfr: True where the distance between frames varies by more than rounding.
        edit_list: True where an edit list hides packets of the stream.
        images: file names of a frame folder in order, else empty.
        shown_pts: (N,) int64 as a decoder reports them, repeats and jumps back included; empty where they are `pts`.
        keyframes: (K,) int64 rows at which the container says that decoding can begin.
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

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"{self.path}: frame size {self.width}x{self.height} is empty")
        if self.rotation not in (0, 90, 180, 270):
            raise ValueError(f"{self.path}: rotation {self.rotation} is not a quarter turn")
        if self.pts.ndim != 1 or (len(self.pts) > 1 and np.any(np.diff(self.pts) <= 0)):
            raise ValueError(f"{self.path}: pts must be one strictly increasing row")
        if not self.fps > 0:
            raise ValueError(f"{self.path}: fps {self.fps} must be positive")

    @property
    def frames(self) -> int:
        """How many frames a player would show."""
        return len(self.pts)

    def timestamps(self, pts: IndexArray) -> TimeArray:
        """Seconds from the video's first pts, exact to the rounding of a double."""
        first = int(self.pts[0]) if len(self.pts) else 0
        return (pts - first) * np.float64(self.time_base.numerator) / self.time_base.denominator

    def to_json(self) -> dict[str, Any]:
        """The probe as it is stored with the scores; the pts are the scores' own column."""
        return {
            "demuxer": self.demuxer,
            "codec": self.codec,
            "stream_index": self.stream_index,
            "width": self.width,
            "height": self.height,
            "rotation": self.rotation,
            "time_base": str(self.time_base),
            "fps": self.fps,
            "duration_s": self.duration_s,
            "frames": self.frames,
            "vfr": self.vfr,
            "edit_list": self.edit_list,
        }


@dataclass(frozen=True)
class SizeRule:
    """The size at which frames are delivered: never enlarged, aspect kept, sides even where they are over 2 px.

    Attributes:
        max_area_px: the frame is shrunk until width × height is at most this.
    """

    max_area_px: int

    def apply(self, width: int, height: int) -> tuple[int, int]:
        """Delivered (width, height) of a frame of this display size; pure integers, same answer everywhere."""
        scale = min(1.0, math.sqrt(self.max_area_px / (width * height)))
        return _even(width * scale), _even(height * scale)


def _even(side: float) -> int:
    whole = max(1, math.floor(side + 1e-9))
    return whole if whole <= 2 else whole - whole % 2


@dataclass(frozen=True)
class ClipNeeds:
    """What a detector asks of the loader; the decoder delivers just that.

    Attributes:
        frames: T, sampled frames a clip.
        overlap: sampled frames that a clip repeats from the end of the one before.
        rate_hz: sampled frames a second wanted; the interval is round(fps / rate_hz), at least 1.
        size: the delivered size.
        pixel_format: gray (one channel) or rgb.
        interval: frames between samples; overrides rate_hz where given.
    """

    frames: int
    overlap: int
    rate_hz: float
    size: SizeRule
    pixel_format: PixelFormat
    interval: int | None = None

    def __post_init__(self) -> None:
        if self.frames < 1 or not 0 <= self.overlap < self.frames:
            raise ValueError(f"a clip of {self.frames} frames can't overlap by {self.overlap}")
        if self.interval is not None and self.interval < 1:
            raise ValueError(f"interval {self.interval} must be at least 1 frame")
        if not self.rate_hz > 0:
            raise ValueError(f"rate {self.rate_hz} must be positive")

    def interval_for(self, fps: float) -> int:
        """Frames from one sample to the next in a video of this frame rate."""
        return self.interval or max(1, round(fps / self.rate_hz))

    @property
    def max_clip_bytes(self) -> int:
        """The most bytes that one clip can take."""
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
        valid: (T,) bool, True where this clip is the one that scores the frame; False for repeated, padded or lost frames.
        interval: frames between two samples.
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


@dataclass(frozen=True)
class Calibration:
    """How a calibrated score reads as events an hour: logit = ln(r0 / r) / temperature.

    Attributes:
        r0_per_hour: events an hour at a score of 0.5.
        temperature: how many e-folds of rarity make one unit of logit.
    """

    r0_per_hour: float
    temperature: float

    def score_at(self, alarms_per_hour: float) -> float:
        """The score that footage like the camera's own reaches this many times an hour."""
        logit = math.log(self.r0_per_hour / alarms_per_hour) / self.temperature
        return 1.0 / (1.0 + math.exp(-logit))

    def to_json(self) -> dict[str, float]:
        """As stored with the scores."""
        return {"r0_per_hour": self.r0_per_hour, "temperature": self.temperature}


@dataclass(frozen=True)
class CameraModel:
    """What a detector learned of one camera: named arrays and values, meaningful to that detector alone.

    Attributes:
        camera: the camera's name, a folder's relative path ("." is the root).
        detector: name of the detector that fitted it.
        version: the detector's model version; another version is refitted.
        arrays: name -> array.
        values: name -> JSON value.
    """

    camera: str
    detector: str
    version: int
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    values: Mapping[str, Any] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """As stored in cameras/; arrays are zlib-compressed, base64, little-endian."""
        arrays = {name: _pack(array) for name, array in sorted(self.arrays.items())}
        return {
            "format_version": 1,
            "camera": self.camera,
            "detector": self.detector,
            "version": self.version,
            "values": dict(self.values),
            "arrays": arrays,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> CameraModel:
        """The inverse of `to_json`.

        Raises:
            KeyError, ValueError: the document is not a camera model.
        """
        arrays = {name: _unpack(packed) for name, packed in document["arrays"].items()}
        return cls(document["camera"], document["detector"], int(document["version"]), arrays, document["values"])

    @property
    def sha256(self) -> str:
        """Hash of everything that changes scores."""
        text = json.dumps(self.to_json(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _pack(array: NDArray[Any]) -> dict[str, Any]:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    data = base64.b64encode(zlib.compress(little.tobytes(), 6)).decode()
    return {"dtype": little.dtype.str, "shape": list(little.shape), "data": data}


def _unpack(packed: Mapping[str, Any]) -> NDArray[Any]:
    raw = zlib.decompress(base64.b64decode(packed["data"]))
    return np.frombuffer(raw, dtype=np.dtype(packed["dtype"])).reshape(packed["shape"]).copy()


@dataclass(frozen=True)
class CameraSample:
    """What a camera is fitted on: short bursts of clips spread over its videos.

    Attributes:
        camera: the camera's name.
        clips: the bursts, in the order of the seeded sample. Their sizes may differ between videos.
        seed: for any drawing that the fit does itself.
    """

    camera: str
    clips: tuple[Clip, ...] = field(repr=False)
    seed: int = 0


@dataclass(frozen=True)
class ClipBatch:
    """B clips of one delivered size, from one or several videos.

    Attributes:
        frames: (B, T, H, W, C) uint8.
        timestamp: (B, T) float64, seconds from each video's first pts.
        valid: (B, T) bool, where the batch's scores are wanted.
        videos: B relative paths.
        models: B camera models, None where the detector fits none.
        interval: (B,) int64, frames between two samples.
    """

    frames: ByteArray
    timestamp: TimeArray
    valid: BoolArray
    videos: tuple[str, ...]
    models: tuple[CameraModel | None, ...]
    interval: IndexArray

    def __post_init__(self) -> None:
        if self.frames.ndim != 5 or self.frames.dtype != np.uint8:
            raise ValueError(f"batch frames must be (B, T, H, W, C) uint8, not {self.frames.shape} {self.frames.dtype}")
        b, t = self.frames.shape[:2]
        if self.timestamp.shape != (b, t) or self.valid.shape != (b, t):
            raise ValueError(f"a batch of {b} x {t} frames needs {b} x {t} times and flags")
        if not len(self.videos) == len(self.models) == len(self.interval) == b:
            raise ValueError(f"a batch of {b} clips needs {b} videos, models and intervals")


@dataclass(frozen=True)
class ClipScores:
    """What a detector says of a batch.

    Attributes:
        raw: (B, T, K) float32, the detector's own channels; finite.
        mask: (B, T, h, w) float32 pixel scores in [0, 1], or None where the detector has none.
    """

    raw: FloatArray
    mask: FloatArray | None = None

    def __post_init__(self) -> None:
        if self.raw.ndim != 3:
            raise ValueError(f"raw scores must be (B, T, K), not {self.raw.shape}")
        if not np.isfinite(self.raw).all():
            raise ValueError("raw scores must be finite")
        if self.mask is not None and self.mask.shape[:2] != self.raw.shape[:2]:
            raise ValueError(f"masks {self.mask.shape} don't match scores {self.raw.shape}")


@dataclass(frozen=True)
class RawTrack:
    """One whole video's raw scores, for smoothing and calibration.

    Attributes:
        info: the video.
        timestamp: (S,) float64 seconds of the sampled frames.
        raw: (S, K) float32.
        model: the camera's model or None.
    """

    info: VideoInfo
    timestamp: TimeArray
    raw: FloatArray
    model: CameraModel | None


@dataclass(frozen=True)
class FrameScores:
    """A finished video: one logit a sampled frame.

    Attributes:
        logit: (S,) float32; score = sigmoid(logit).
        moving_camera: True where the camera itself moved for a good part of the video; None where the detector can't tell.
    """

    logit: FloatArray
    moving_camera: bool | None = None


@dataclass(frozen=True)
class ScoreTable:
    """A row a frame, as written to Parquet.

    Attributes:
        video: relative path.
        frame_index: (N,) int64 without gaps, from 0.
        pts: (N,) int64 in the stream's time base.
        timestamp: (N,) float64 seconds from the first pts.
        score: (N,) float32 in [0, 1].
        logit: (N,) float32.
        sampled: (N,) bool, True where the model saw the frame.
        decode_ok: (N,) bool, False where the decoder skipped or concealed it.
    """

    video: str
    frame_index: IndexArray
    pts: IndexArray
    timestamp: TimeArray
    score: FloatArray
    logit: FloatArray
    sampled: BoolArray
    decode_ok: BoolArray

    def __post_init__(self) -> None:
        n = len(self.frame_index)
        columns = (self.pts, self.timestamp, self.score, self.logit, self.sampled, self.decode_ok)
        if any(len(column) != n for column in columns):
            raise ValueError(f"{self.video}: columns of different length {[len(c) for c in columns]}")
        if n and not np.array_equal(self.frame_index, np.arange(n)):
            raise ValueError(f"{self.video}: frame_index must run from 0 without gaps")
        if n and not (float(self.score.min()) >= 0.0 and float(self.score.max()) <= 1.0):
            raise ValueError(f"{self.video}: scores must lie in [0, 1]")

    def __len__(self) -> int:
        return len(self.frame_index)


@dataclass(frozen=True)
class Thresholds:
    """How scores become events: hysteresis, then merge, drop the short, pad.

    Attributes:
        high: an event opens where score >= high, in [0, 1].
        low: it closes where score < low, low <= high.
        min_duration_s: shorter events are dropped.
        merge_gap_s: events closer than this become one.
        pad_s: added at both ends, within the video.
    """

    high: float = 0.5
    low: float = 0.4
    min_duration_s: float = 0.0
    merge_gap_s: float = 1.0
    pad_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise ValueError(f"thresholds need 0 <= low ({self.low:g}) <= high ({self.high:g}) <= 1")
        if min(self.min_duration_s, self.merge_gap_s, self.pad_s) < 0:
            raise ValueError("durations, gaps and padding can't be negative")

    def to_json(self) -> dict[str, float]:
        """As written into an events document."""
        return {
            "high": self.high,
            "low": self.low,
            "min_duration_s": self.min_duration_s,
            "merge_gap_s": self.merge_gap_s,
            "pad_s": self.pad_s,
        }


Box = tuple[int, int, int, int]
"""x, y, width, height in display pixels."""


@dataclass(frozen=True)
class Event:
    """A stretch of a video that stands out.

    Attributes:
        id: 1-based number in its video.
        start_frame, end_frame: half-open rows.
        start_s, end_s: seconds from the first pts; end_s is where the last frame ends.
        peak_frame, peak_s, peak_score: the first highest row.
        mean_score: over the event's rows.
        category, category_scores: filled by detectors that read text.
        bbox: union of the mask at >= 0.5 over the event, or None.
    """

    id: int
    start_frame: int
    end_frame: int
    start_s: float
    end_s: float
    peak_frame: int
    peak_s: float
    peak_score: float
    mean_score: float
    category: str | None = None
    category_scores: Mapping[str, float] = field(default_factory=dict)
    bbox: Box | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start_frame <= self.peak_frame < self.end_frame:
            raise ValueError(f"event {self.id}: rows {self.start_frame} <= {self.peak_frame} < {self.end_frame} don't hold")

    def to_json(self) -> dict[str, Any]:
        """As written into an events document."""
        return {
            "id": self.id,
            "start_frame": self.start_frame,
            "end_frame": self.end_frame,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "peak_frame": self.peak_frame,
            "peak_s": self.peak_s,
            "peak_score": self.peak_score,
            "mean_score": self.mean_score,
            "category": self.category,
            "category_scores": dict(self.category_scores),
            "bbox": list(self.bbox) if self.bbox else None,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Event:
        """The inverse of `to_json`."""
        values = dict(document)
        values["bbox"] = tuple(values["bbox"]) if values.get("bbox") else None
        return cls(**values)


@dataclass(frozen=True)
class VideoResult:
    """What a scan says of one video: a line of `--json` and a row of the run's record.

    Attributes:
        stage, reason: where and why it failed or lost frames; empty when done.
        seconds: wall time spent on it.
        events: how many events were found.
    """

    video: str
    status: Status
    stage: str = ""
    reason: str = ""
    camera: str = ""
    moving_camera: bool | None = None
    decoder: str = ""
    expected_frames: int = 0
    decoded_frames: int = 0
    seconds: float = 0.0
    events: int = 0

    @property
    def is_lost(self) -> bool:
        """True where frames are missing: in this run, or in an earlier one of the same input that is not tried again."""
        return self.status in (Status.FAILED, Status.PARTIAL) or (self.status is Status.SKIPPED and bool(self.stage))

    def to_json(self) -> dict[str, Any]:
        """In the order of the contract."""
        return {
            "video": self.video,
            "status": str(self.status),
            "stage": self.stage or None,
            "reason": self.reason or None,
            "camera": self.camera or None,
            "moving_camera": self.moving_camera,
            "decoder": self.decoder or None,
            "expected_frames": self.expected_frames,
            "decoded_frames": self.decoded_frames,
            "seconds": round(self.seconds, 3),
            "events": self.events,
        }
