"""How unlike the camera's usual moving things one is: distance to its neighbours among remembered cells.

What is remembered of one camera, and its form as a CameraModel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadcli.detectors.calibration import REFERENCE, Tail
from vadcli.detectors.motion import MODEL_VERSION, MotionOptions
from vadcli.detectors.motion.background import Perspective
from vadcli.detectors.motion.features import ClipMaps
from vadcli.types import BoolArray, CameraModel, FloatArray, IndexArray, TimeArray

SCALE_FLOORS = np.array([0.1, 0.2, 1.0], dtype=np.float32)
"""Smallest spread of [extent, speed, change] that counts as one unit."""

FEWEST_SAMPLES = 20
"""With fewer left to compare with, nothing is rare or usual."""

STRIDE = 2
"""Rarity is looked up at every second cell each way; what it is made of was averaged over more."""


@dataclass(frozen=True)
class RaritySamples:
    """Remembered moving cells of one camera.

    Attributes:
        features: (M, 5) float32, scaled.
        scene: (M,) int64, number of the scene that the sample was seen in.
        video: (M,) int64, hash of the sample's video.
        time_s: (M,) float64, when in that video.
    """

    features: FloatArray = field(repr=False)
    scene: IndexArray = field(repr=False)
    video: IndexArray = field(repr=False)
    time_s: TimeArray = field(repr=False)

    def of_scene(self, scene: int) -> RaritySamples:
        """Those seen in one scene."""
        own = self.scene == scene
        return RaritySamples(self.features[own], self.scene[own], self.video[own], self.time_s[own])


def video_number(video: str) -> int:
    """A number for a video's relative path, the same everywhere."""
    return int.from_bytes(
        hashlib.blake2b(video.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little", signed=True
    )


def describe(maps: ClipMaps, moving: BoolArray) -> FloatArray:
    """The cells (T, h, w) that are asked for -> (Q, 5) float32: extent, speed, change, then x and y in picture widths."""
    t, y, x = np.nonzero(moving)
    own = [channel[t, y, x] for channel in (maps.extent, maps.speed, maps.change)]
    return np.column_stack([*own, maps.grid.positions()[y, x]])


def coarse(moving: BoolArray) -> BoolArray:
    """(T, h, w) -> (T, h, w): only the cells where rarity is looked up."""
    thin = np.zeros_like(moving)
    thin[:, ::STRIDE, ::STRIDE] = moving[:, ::STRIDE, ::STRIDE]
    return thin


def spread_out(thin: FloatArray) -> FloatArray:
    """(T, h, w) with values at the coarse cells -> (T, h, w): their values for the cells beside them too."""
    _, h, w = thin.shape
    return np.repeat(np.repeat(thin[:, ::STRIDE, ::STRIDE], STRIDE, axis=1), STRIDE, axis=2)[:, :h, :w]


def scaled(features: FloatArray, scale: FloatArray, options: MotionOptions) -> FloatArray:
    """(Q, 5) described -> (Q, 5) as compared; `scale` is (3,) or (Q, 3) units of the first three."""
    own = features[..., : len(SCALE_FLOORS)] / scale
    return np.concatenate([own, features[..., len(SCALE_FLOORS) :] * np.float32(options.position_weight)], axis=-1)


def rarity(query: FloatArray, samples: RaritySamples, *, video: int, time_s: float, options: MotionOptions) -> FloatArray:
    """(Q, 5) scaled -> (Q,) float32, distance to the k-th nearest sample; NaN where too few samples are left to tell.

    Samples of the same video within `exclude_s` are left out: a thing must not make itself usual.
    """
    near = (samples.video == video) & (np.abs(samples.time_s - time_s) <= options.exclude_s)
    known = samples.features[~near]
    if len(known) < FEWEST_SAMPLES or not len(query):
        return np.full(len(query), np.nan, dtype=np.float32)
    rank = min(len(known) - 1, round(options.neighbour_share * len(known)))
    square = np.sum(query**2, axis=1)[:, None] + np.sum(known**2, axis=1)[None, :] - 2.0 * (query @ known.T)
    return np.asarray(np.sqrt(np.maximum(np.partition(square, rank, axis=1)[:, rank], 0.0)), dtype=np.float32)


MOTION_REFERENCE = 6.0
"""Usual motion of something that moves: the geometric mean over a dozen cameras."""

RARITY_REFERENCE = 2.2
"""Usual rarity of a camera's own moving things, in scaled units: the same."""


@dataclass(frozen=True)
class Levels:
    """What is usual in one scene.

    Attributes:
        motion, rarity: usual highest cell of a frame in which something moves.
        perspective: how motion grows down the picture.
        scale: (3,) float32, one unit of [extent, speed, change] for rarity.
    """

    motion: float = MOTION_REFERENCE
    rarity: float = RARITY_REFERENCE
    perspective: Perspective = field(default_factory=Perspective)
    scale: FloatArray = field(default_factory=SCALE_FLOORS.copy)

    def to_json(self) -> dict[str, Any]:
        """As stored in a camera model."""
        return {
            "motion": self.motion,
            "rarity": self.rarity,
            "perspective": self.perspective.to_json(),
            "scale": [float(unit) for unit in self.scale],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Levels:
        """The inverse of `to_json`."""
        perspective = Perspective.from_json(document["perspective"])
        scale = np.array(document["scale"], dtype=np.float32)
        return cls(float(document["motion"]), float(document["rarity"]), perspective, scale)


@dataclass(frozen=True)
class Scene:
    """One view of the camera: by day, by night, turned elsewhere.

    Attributes:
        height_px, width_px: picture size.
        background: (h, w) float32 gray levels on the grid.
        levels: what is usual in it.
    """

    height_px: int
    width_px: int
    background: FloatArray = field(repr=False)
    levels: Levels = field(default_factory=Levels)


@dataclass(frozen=True)
class FittedCamera:
    """A camera as the detector uses it.

    Attributes:
        scenes: its views, by number.
        elsewhere: what is taken as usual in a view that is none of them.
        samples: for rarity; None where nothing moved or nothing was seen.
        tail: of the smoothed frame values.
    """

    scenes: tuple[Scene, ...] = ()
    elsewhere: Levels = field(default_factory=Levels)
    samples: RaritySamples | None = None
    tail: Tail = REFERENCE

    def backgrounds(self, height_px: int, width_px: int) -> dict[int, FloatArray]:
        """Backgrounds of this picture size by the scenes' numbers."""
        size = (height_px, width_px)
        return {n: scene.background for n, scene in enumerate(self.scenes) if (scene.height_px, scene.width_px) == size}

    def levels(self, scene: int) -> Levels:
        """What is usual in a scene; -1 is elsewhere."""
        return self.scenes[scene].levels if scene >= 0 else self.elsewhere


def to_model(fitted: FittedCamera, camera: str, detector: str) -> CameraModel:
    """As the engine stores it."""
    arrays: dict[str, NDArray[Any]] = {f"background_{n}": scene.background for n, scene in enumerate(fitted.scenes)}
    if fitted.samples is not None:
        arrays |= {
            "sample_features": fitted.samples.features,
            "sample_scene": fitted.samples.scene,
            "sample_video": fitted.samples.video,
            "sample_time_s": fitted.samples.time_s,
        }
    values = {
        "scenes": [
            {"height_px": scene.height_px, "width_px": scene.width_px, "levels": scene.levels.to_json()}
            for scene in fitted.scenes
        ],
        "elsewhere": fitted.elsewhere.to_json(),
        "tail": fitted.tail.to_json(),
    }
    return CameraModel(camera, detector, MODEL_VERSION, arrays, values)


def from_model(model: CameraModel | None) -> FittedCamera:
    """The inverse of `to_model`; the reference camera where there is no model.

    Raises:
        KeyError: the model lacks what this version stores.
    """
    if model is None:
        return FittedCamera()
    scenes = tuple(
        Scene(int(one["height_px"]), int(one["width_px"]), model.arrays[f"background_{n}"], Levels.from_json(one["levels"]))
        for n, one in enumerate(model.values["scenes"])
    )
    samples = None
    if "sample_features" in model.arrays:
        names = ("sample_features", "sample_scene", "sample_video", "sample_time_s")
        samples = RaritySamples(*(model.arrays[name] for name in names))
    return FittedCamera(scenes, Levels.from_json(model.values["elsewhere"]), samples, Tail.from_json(model.values["tail"]))
