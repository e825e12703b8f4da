"""The values that go into a detector and come out of it.

In shapes, B is the number of clips per batch, T the number of frames per clip, K the number of raw channels, and S the number
of sampled frames of a video. (H, W) is the size of the delivered frames, and (h, w) is the size of the detector's masks.
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
"""Stored pixel logits lie between minus and plus this value: pixel scores from 0.0003 to 0.9997."""


@dataclass(frozen=True)
class Calibration:
    """Translates a score to r events per hour and back: logit = ln(r0 / r) / temperature.

    Attributes:
        r0_per_hour: r0, the events per hour at a score of 0.5.
        temperature: if the logit rises by 1, there are exp(temperature) times fewer events.
    """

    r0_per_hour: float
    temperature: float

    def score_at(self, alarms_per_hour: float) -> float:
        """Return the score that normal video of this camera reaches `alarms_per_hour` times per hour."""
        logit = math.log(self.r0_per_hour / alarms_per_hour) / self.temperature
        return 1.0 / (1.0 + math.exp(-logit))

    def rate_at(self, score: float) -> float:
        """Return how many times per hour normal video of this camera reaches a score. The score is in [0, 1]."""
        if not 0.0 < score < 1.0:
            return math.inf if score <= 0.0 else 0.0
        return self.r0_per_hour * math.exp(-self.temperature * math.log(score / (1.0 - score)))

    def to_json(self) -> dict[str, float]:
        """Return the JSON that is stored with the scores."""
        return asdict(self)


@dataclass(frozen=True)
class Footage:
    """The footage of a camera from which the sample for its model was drawn.

    Attributes:
        videos: number of videos that could be read.
        seconds: total length of these videos; an estimate if not all of the footage was read.
        bytes: total size of the camera's videos at that time. Damaged videos are included, but not videos that could not be
            read because the machine failed.
    """

    videos: int
    seconds: float
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that is stored in a camera model."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Footage:
        """Return the footage that `to_json` stored; raise KeyError, TypeError or ValueError if it is damaged."""
        return cls(int(document["videos"]), float(document["seconds"]), int(document["bytes"]))


@dataclass(frozen=True)
class CameraModel:
    """The knowledge of a detector about one camera: arrays and values that only this detector uses.

    Attributes:
        camera: the camera's name. This is the relative path of a folder; "." is the root.
        detector: name of the detector that fitted the model.
        version: the detector's model version; a model of another version is fitted again.
        arrays: name -> array.
        values: name -> JSON value.
        footage: the footage on which the model was fitted, set by the engine; None in models of older versions.
        regions: hash of the regions that were hidden in the sample, set by the engine; "" if no region was hidden.
    """

    camera: str
    detector: str
    version: int
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    values: Mapping[str, Any] = field(repr=False)
    footage: Footage | None = None
    regions: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that is stored in OUT/cameras."""
        footage = {"footage": self.footage.to_json()} if self.footage else {}
        regions = {"regions": self.regions} if self.regions else {}
        return {**self._scoring_json(), **footage, **regions}

    def _scoring_json(self) -> dict[str, Any]:
        """Return the fields of `to_json` on which the scores depend."""
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
        """Return the camera model that `to_json` stored.

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
        """Hash of all parts of the model that change scores."""
        text = json.dumps(self._scoring_json(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class CameraSample:
    """The clips that a camera model is fitted on. They are spread over the camera's videos.

    Attributes:
        camera: the camera's name.
        clips: the clips, ordered by video and time. Their sizes may differ between videos.
        seed: the seed for random choices that the fit itself makes.
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
        valid: (B, T) bool, True if the score of the frame is needed.
        videos: B relative paths.
        models: B camera models; each is None if the detector does not fit cameras.
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
            raise ValueError(f"a batch of {b} x {t} frames needs {b} x {t} times and flags")
        if not len(self.videos) == len(self.models) == len(self.interval) == b:
            raise ValueError(f"a batch of {b} clips needs {b} videos, models and intervals")

    @classmethod
    def of(
        cls, clips: Sequence[Clip], models: Sequence[CameraModel | None] | None = None, *, frames: ByteArray | None = None
    ) -> ClipBatch:
        """Return clips of one size as a batch.

        Args:
            clips: B clips.
            models: B camera models; None if no camera has one.
            frames: (B, T, H, W, C) uint8, the pixels of the clips if they already are in one array. If None, the pixels are
                copied from the clips.
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
    """The scale of a detector's stored mask values: pixel scores or pixel logits.

    Masks are enlarged to the frame's size before they are converted to scores. Enlarged logits keep an edge sharp; enlarged
    scores blur it.
    """

    SCORE = "score"
    LOGIT = "logit"

    def pixel_scores(self) -> ByteArray:
        """Return the pixel score (0-255) of each stored byte, (256,) uint8. The middle byte means 0.5."""
        bytes_ = np.arange(256)
        if self is MaskScale.SCORE:
            return bytes_.astype(np.uint8)
        logit = (bytes_ / 255 * 2 - 1) * MASK_LOGIT_LIMIT
        return np.rint(255 / (1 + np.exp(-logit))).astype(np.uint8)

    def lowest(self, level: int) -> int:
        """Return the lowest stored byte on this scale whose pixel score (0-255) is at least `level`."""
        return int(np.searchsorted(self.pixel_scores(), level))


EXACT_FLOAT32 = 2**24
"""float32 computes sums of whole numbers exactly, in any order, if they stay below this number."""


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors, stored as whole numbers with one scale per vector: vector = values · scale.

    A scan scores vectors in this form, too. So stored vectors give exactly the scores of the scan.

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
        """Return vectors (..., D) float32 as whole numbers with scales; zeros stay zeros."""
        # Dot products of two such vectors must be exact in float32: see EXACT_FLOAT32.
        levels = min(127, math.isqrt(EXACT_FLOAT32 // vectors.shape[-1]))
        peak = np.abs(vectors).max(axis=-1).astype(np.float32)
        smallest = levels * np.finfo(np.float32).tiny  # a scale below `tiny` has too few digits; such values become zeros
        scale = np.where(peak > smallest, peak / np.float32(levels), np.float32(1.0)).astype(np.float32)
        return cls(np.rint(vectors / scale[..., None]).astype(np.int8), scale)

    @classmethod
    def unpack(cls, packed: ByteArray) -> Embeddings:
        """Return the vectors of the bytes that `pack` returned."""
        scale = np.ascontiguousarray(packed[..., :4]).view("<f4")[..., 0]
        return cls(np.ascontiguousarray(packed[..., 4:]).view(np.int8), scale.astype(np.float32))

    def pack(self) -> ByteArray:
        """Return the scale (little-endian) and the values of each vector as bytes, (..., 4 + D) uint8."""
        scale = np.ascontiguousarray(self.scale, "<f4")[..., None].view(np.uint8)
        return np.concatenate([scale, self.values.view(np.uint8)], axis=-1)

    def vectors(self) -> FloatArray:
        """Return the vectors (..., D) float32; their length is 1 up to rounding."""
        return np.asarray(self.values * self.scale[..., None], dtype=np.float32)

    def __len__(self) -> int:
        return len(self.scale)

    def __getitem__(self, rows: int | slice | BoolArray | IndexArray) -> Embeddings:
        return Embeddings(self.values[rows], self.scale[rows])


@dataclass(frozen=True)
class ClipScores:
    """The result of a detector for a batch.

    Attributes:
        raw: (B, T, K) float32, the detector's own channels; finite.
        mask: (B, T, h, w) float32 in [0, 1] on the detector's mask scale, where 0.5 means a pixel score of 0.5; None if
            the detector makes no masks. On the logit scale, a value is logit / (2 · MASK_LOGIT_LIMIT) + 0.5, cut to [0, 1].
        embedding: (B, T) vectors from which `raw` can be computed again; None if the detector makes no vectors.
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
    """The raw scores of a whole video, for smoothing and calibration.

    Attributes:
        info: the video.
        timestamp: (S,) float64 seconds of the sampled frames.
        raw: (S, K) float32.
        model: the camera model or None.
    """

    info: VideoInfo
    timestamp: TimeArray
    raw: FloatArray
    model: CameraModel | None


def sigmoid(logit: FloatArray) -> FloatArray:
    """Return the scores of logits, float32 in [0, 1]."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logit)), dtype=np.float32)


@dataclass(frozen=True)
class FrameScores:
    """The final scores of a video: one logit per sampled frame.

    Attributes:
        logit: (S,) float32; score = sigmoid(logit).
        moving_camera: True if the camera itself moved for much of the video; None if the detector can't detect this.
        by_category: (S, C) float32, one column of logits per category of the detector; None if it has no categories.
    """

    logit: FloatArray
    moving_camera: bool | None = None
    by_category: FloatArray | None = None
