"""What goes into a detector and what comes out of it.

B clips a batch, T frames a clip, (H, W) the delivered size, (h, w) the detector's own mask size, K raw channels, S sampled
frames of a video.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadcli.types.media import BoolArray, ByteArray, Clip, FloatArray, IndexArray, TimeArray, VideoInfo

MASK_LOGIT_LIMIT = 8.0
"""Pixel logits are stored within ± this: scores from .0003 to .9997."""


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

    @classmethod
    def of(
        cls, clips: Sequence[Clip], models: Sequence[CameraModel | None] | None = None, *, frames: ByteArray | None = None
    ) -> ClipBatch:
        """Clips of one size as a batch; without models no camera is known.

        Args:
            clips: B.
            models: B.
            frames: (B, T, H, W, C) the clips' pixels where they lie together already; else they are copied.
        """
        return cls(
            frames=np.stack([clip.frames for clip in clips]) if frames is None else frames,
            timestamp=np.stack([clip.timestamp for clip in clips]),
            valid=np.stack([clip.valid for clip in clips]),
            videos=tuple(clip.video for clip in clips),
            models=tuple(models) if models is not None else (None,) * len(clips),
            interval=np.array([clip.interval for clip in clips], np.int64),
        )


class MaskScale(StrEnum):
    """How a detector's mask values read as pixel scores.

    Masks are enlarged to the frame's size before they are read, and enlarging a logit keeps an edge sharp where enlarging a
    probability blurs it.
    """

    SCORE = "score"
    LOGIT = "logit"

    def pixel_scores(self) -> ByteArray:
        """(256,) uint8: the pixel score 0-255 of each stored byte; half of the scale means 0.5 in both."""
        bytes_ = np.arange(256)
        if self is MaskScale.SCORE:
            return bytes_.astype(np.uint8)
        logit = (bytes_ / 255 * 2 - 1) * MASK_LOGIT_LIMIT
        return np.rint(255 / (1 + np.exp(-logit))).astype(np.uint8)


@dataclass(frozen=True)
class ClipScores:
    """What a detector says of a batch.

    Attributes:
        raw: (B, T, K) float32, the detector's own channels; finite.
        mask: (B, T, h, w) float32 in [0, 1] on the detector's mask scale, 0.5 where the pixel score is; None where the
            detector has none. On the logit scale it is logit / (2 · MASK_LOGIT_LIMIT) + 0.5, cut to [0, 1].
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
