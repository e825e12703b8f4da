"""The values that go into a detector and come out of it.

Letters in shapes: B clips per batch, T frames per clip, K raw scores per frame, S sampled frames per video, (H, W) the size of
the frames that the detector gets, (h, w) the size of the detector's masks.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadcli.types.media import BoolArray, ByteArray, Clip, FloatArray, IndexArray, TimeArray, VideoInfo

MASK_LOGIT_LIMIT = 8.0
"""Stored pixel logits are clipped to -8 to 8, which are the pixel scores 0.0003 to 0.9997."""


@dataclass(frozen=True)
class Calibration:
    """The relation between a score and the number of alarms per hour on normal video, r.

    logit(score) = ln(r0 / r) / temperature

    Attributes:
        r0_per_hour: r0, the alarms per hour at a score of 0.5.
        temperature: if the logit of the score rises by 1, r is divided by exp(temperature).
    """

    r0_per_hour: float
    temperature: float

    def score_at(self, alarms_per_hour: float) -> float:
        """Return the score that normal video reaches `alarms_per_hour` times per hour; `alarms_per_hour` > 0."""
        logit = math.log(self.r0_per_hour / alarms_per_hour) / self.temperature
        return 1.0 / (1.0 + math.exp(-logit))

    def rate_at(self, score: float) -> float:
        """Return how many times per hour normal video reaches a score in [0, 1]: infinity for 0, and 0 for 1."""
        if not 0.0 < score < 1.0:
            return math.inf if score <= 0.0 else 0.0
        return self.r0_per_hour * math.exp(-self.temperature * math.log(score / (1.0 - score)))

    def to_json(self) -> dict[str, float]:
        """Return the JSON that is stored with the scores."""
        return asdict(self)


@dataclass(frozen=True)
class Footage:
    """The amount of footage that a camera had when its camera model was fitted.

    Attributes:
        videos: number of videos that could be read.
        seconds: total length of these videos; an estimate if only a part of them was read.
        bytes: total size of all videos of the camera, including damaged videos. Videos that could not be read because of an
            error of the machine are left out.
    """

    videos: int
    seconds: float
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that is stored in a camera model."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Footage:
        """Return the footage from the JSON of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: the document is damaged.
        """
        return cls(int(document["videos"]), float(document["seconds"]), int(document["bytes"]))


@dataclass(frozen=True)
class CameraModel:
    """What a detector has learnt about one camera. Other detectors cannot use it.

    Attributes:
        camera: the camera's name: the path of its folder relative to the archive; "." is the archive itself.
        detector: name of the detector that fitted the model.
        version: the detector's model version; a model of another version is fitted again.
        arrays: arrays by name. The detector chooses the names.
        values: JSON values by name. The detector chooses the names.
        footage: the camera's footage when the model was fitted; None in models from older versions of vadcli. The engine
            sets it.
        regions: hash of the regions that were hidden during the fit; "" if no region was hidden. The engine sets it.
    """

    camera: str
    detector: str
    version: int
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    values: Mapping[str, Any] = field(repr=False)
    footage: Footage | None = None
    regions: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the model as the JSON that is stored in OUT/cameras."""
        footage = {"footage": self.footage.to_json()} if self.footage else {}
        regions = {"regions": self.regions} if self.regions else {}
        return {**self._scoring_json(), **footage, **regions}

    def _scoring_json(self) -> dict[str, Any]:
        """Return only those fields of `to_json` that change the scores."""
        arrays = {}
        for name, array in sorted(self.arrays.items()):
            little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            data = base64.b64encode(zlib.compress(little.tobytes(), 6)).decode()
            arrays[name] = {"dtype": little.dtype.str, "shape": list(little.shape), "data": data}
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
        """Return the camera model from the JSON of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: the document is not a camera model.
        """
        arrays = {}
        for name, packed in document["arrays"].items():
            raw = zlib.decompress(base64.b64decode(packed["data"]))
            arrays[name] = np.frombuffer(raw, np.dtype(packed["dtype"])).reshape(packed["shape"]).copy()
        footage = Footage.from_json(document["footage"]) if document.get("footage") else None
        version, regions = int(document["version"]), str(document.get("regions", ""))
        return cls(document["camera"], document["detector"], version, arrays, document["values"], footage, regions)

    @cached_property
    def sha256(self) -> str:
        """Hash of the fields that change the scores. `footage` and `regions` are left out."""
        text = json.dumps(self._scoring_json(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class CameraSample:
    """The clips to fit a camera model on, spread over the camera's videos.

    Attributes:
        camera: the camera's name.
        clips: the clips, ordered by video and time. Clips of different videos may have different frame sizes.
        seed: seed for the random choices that the detector makes during the fit.
    """

    camera: str
    clips: tuple[Clip, ...] = field(repr=False)
    seed: int = 0


@dataclass(frozen=True)
class ClipBatch:
    """B clips with the same frame size, from one or several videos.

    Attributes:
        frames: (B, T, H, W, C) uint8.
        timestamp: (B, T) float64, seconds from the first pts of the clip's video.
        valid: (B, T) bool, False if the score of the frame will not be used.
        videos: for each clip, the relative path of its video.
        models: for each clip, the model of its camera; None if the detector does not fit cameras.
        interval: (B,) int64, frames from one sampled frame to the next.
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
            raise ValueError(
                f"the frames are {b} clips of {t} frames, so timestamp and valid must be {(b, t)}, "
                f"not {self.timestamp.shape} and {self.valid.shape}"
            )
        if not len(self.videos) == len(self.models) == len(self.interval) == b:
            raise ValueError(
                f"a batch of {b} clips has {len(self.videos)} videos, {len(self.models)} models and {len(self.interval)} "
                "intervals; all these numbers must be equal"
            )

    @classmethod
    def of(
        cls, clips: Sequence[Clip], models: Sequence[CameraModel | None] | None = None, *, frames: ByteArray | None = None
    ) -> ClipBatch:
        """Return clips with the same frame size as a batch.

        Args:
            clips: B clips.
            models: for each clip, the model of its camera. None if the detector does not fit cameras.
            frames: (B, T, H, W, C) uint8, an array that already has the pixels of all clips. If None, the pixels are copied
                from the clips.
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
    """What a detector's masks store: pixel scores or pixel logits.

    To draw a mask, vadcli first enlarges it to the size of the frame, then converts it to scores. Enlarged logits have sharp
    edges. Enlarged scores have blurred edges.
    """

    SCORE = "score"
    LOGIT = "logit"

    def pixel_scores(self) -> ByteArray:
        """Return the pixel score of each possible stored byte (0-255): (256,) uint8. 255 means a score of 1."""
        bytes_ = np.arange(256)
        if self is MaskScale.SCORE:
            return bytes_.astype(np.uint8)
        logit = (bytes_ / 255 * 2 - 1) * MASK_LOGIT_LIMIT
        return np.rint(255 / (1 + np.exp(-logit))).astype(np.uint8)

    def lowest(self, level: int) -> int:
        """Return the lowest stored byte whose pixel score is at least `level` (0-255)."""
        return int(np.searchsorted(self.pixel_scores(), level))


EXACT_FLOAT32 = 2**24
"""Sums of whole numbers are exact in float32, in any order, if they stay below this number."""


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors in 8-bit form: vector = values · scale.

    A scan computes its scores from this rounded form, so stored vectors give exactly the same scores later.

    Attributes:
        values: (..., D) int8.
        scale: (...) float32.
    """

    values: NDArray[np.int8]
    scale: FloatArray

    def __post_init__(self) -> None:
        if self.values.dtype != np.int8 or self.values.shape[:-1] != self.scale.shape:
            raise ValueError(f"embeddings {self.values.dtype} {self.values.shape} don't match scales {self.scale.shape}")

    @classmethod
    def of(cls, vectors: FloatArray) -> Embeddings:
        """Return the 8-bit form of vectors (..., D) float32. A vector of zeros stays a vector of zeros."""
        # The dot product of two vectors of `values` must be exact in float32, so its terms must stay small.
        levels = min(127, math.isqrt(EXACT_FLOAT32 // vectors.shape[-1]))
        peak = np.abs(vectors).max(axis=-1).astype(np.float32)
        smallest = levels * np.finfo(np.float32).tiny  # a scale below `tiny` has too few digits, so such vectors become zeros
        scale = np.where(peak > smallest, peak / np.float32(levels), np.float32(1.0)).astype(np.float32)
        return cls(np.rint(vectors / scale[..., None]).astype(np.int8), scale)

    @classmethod
    def unpack(cls, packed: ByteArray) -> Embeddings:
        """Return the vectors from the bytes of `pack`."""
        scale = np.ascontiguousarray(packed[..., :4]).view("<f4")[..., 0]
        return cls(np.ascontiguousarray(packed[..., 4:]).view(np.int8), scale.astype(np.float32))

    def pack(self) -> ByteArray:
        """Return each vector as bytes, (..., 4 + D) uint8: first the scale (little-endian), then the values."""
        scale = np.ascontiguousarray(self.scale, "<f4")[..., None].view(np.uint8)
        return np.concatenate([scale, self.values.view(np.uint8)], axis=-1)

    def vectors(self) -> FloatArray:
        """Return the vectors (..., D) float32. The values are rounded, so a length may differ a little from 1."""
        return np.asarray(self.values * self.scale[..., None], dtype=np.float32)

    def __len__(self) -> int:
        return len(self.scale)

    def __getitem__(self, rows: int | slice | BoolArray | IndexArray) -> Embeddings:
        return Embeddings(self.values[rows], self.scale[rows])


@dataclass(frozen=True)
class ClipScores:
    """The result of a detector for a batch.

    Attributes:
        raw: (B, T, K) float32, finite. The detector defines the meaning of the K raw scores.
        mask: (B, T, h, w) float32 in [0, 1], where 0.5 means a pixel score of 0.5; None if the detector makes no masks.
            With `MaskScale.SCORE`, a value is the pixel score. With `MaskScale.LOGIT`, a value is
            logit / (2 · MASK_LOGIT_LIMIT) + 0.5, clipped to [0, 1].
        embedding: (B, T) vectors from which the detector can compute `raw` again; None if it has no such vectors.
    """

    raw: FloatArray
    mask: FloatArray | None = None
    embedding: Embeddings | None = None

    def __post_init__(self) -> None:
        if self.raw.ndim != 3:
            raise ValueError(f"raw scores must be (B, T, K), not {self.raw.shape}")
        if not np.isfinite(self.raw).all():
            raise ValueError("raw scores must be finite")
        if self.mask is not None and self.mask.shape[:2] != self.raw.shape[:2]:
            raise ValueError(f"masks {self.mask.shape} don't match scores {self.raw.shape}")
        if self.embedding is not None and self.embedding.scale.shape != self.raw.shape[:2]:
            raise ValueError(f"embeddings {self.embedding.values.shape} don't match scores {self.raw.shape}")


@dataclass(frozen=True)
class RawTrack:
    """The raw scores of a whole video, before smoothing and calibration.

    Attributes:
        info: the video.
        timestamp: (S,) float64, seconds from the first pts to each sampled frame.
        raw: (S, K) float32, as in `ClipScores`.
        model: the camera's model; None if the detector does not fit cameras.
    """

    info: VideoInfo
    timestamp: TimeArray
    raw: FloatArray
    model: CameraModel | None


def sigmoid(logit: FloatArray) -> FloatArray:
    """Return the score of each logit, float32 in [0, 1]."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logit)), dtype=np.float32)


@dataclass(frozen=True)
class FrameScores:
    """The final scores of a video: one logit per sampled frame.

    Attributes:
        logit: (S,) float32; score = sigmoid(logit).
        moving_camera: True if the camera moved during much of the video; None if the detector can't detect this.
        by_category: (S, C) float32, one column of logits per category of the detector; None if it has no categories.
    """

    logit: FloatArray
    moving_camera: bool | None = None
    by_category: FloatArray | None = None
