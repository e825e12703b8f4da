"""The camera model of the motion detector, and how rare a moving cell is for a camera.

A camera model contains samples: features of some moving cells. The rarity of a cell is its distance, in feature space, to the
most similar samples. `to_model` and `from_model` convert between a FittedCamera and a CameraModel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadcli.detectors.calibration import REFERENCE, Tail
from vadcli.detectors.motion import MODEL_VERSION, MotionOptions
from vadcli.detectors.motion.features import ClipMaps
from vadcli.types import BoolArray, CameraModel, FloatArray, IndexArray, TimeArray

SMALLEST_UNIT_PX = 0.2
"""Velocities are divided by the unit of their scene, which is at least this."""

FEWEST_SAMPLES = 20
"""With fewer samples than this, rarity is unknown, and 0 is used instead."""

QUERIES = 64
"""The distances of this many cells are computed together."""

STRIDE = 3
"""Rarity is computed at every third cell in each direction, and in every third frame.

This is enough, because the features of a cell are means over the cells and frames around it.
"""


@dataclass(frozen=True)
class RaritySamples:
    """M stored moving cells of one camera.

    Attributes:
        features: (M, 4) float32, features from `scaled`.
        scene: (M,) int64, number of the scene of each sample.
        video: (M,) int64, hash of the video of each sample.
        time_s: (M,) float64, time of each sample in its video.
    """

    features: FloatArray = field(repr=False)
    scene: IndexArray = field(repr=False)
    video: IndexArray = field(repr=False)
    time_s: TimeArray = field(repr=False)

    def of_scene(self, scene: int) -> RaritySamples:
        """Return only the samples that come from one scene."""
        own = self.scene == scene
        return RaritySamples(self.features[own], self.scene[own], self.video[own], self.time_s[own])

    def near(self, video: int, time_s: float, exclude_s: float) -> BoolArray:
        """Return flags (M,), True for the samples of this video within `exclude_s` seconds of this time."""
        return np.asarray((self.video == video) & (np.abs(self.time_s - time_s) <= exclude_s))


def video_number(video: str) -> int:
    """Return a hash of a video's relative path, the same on every machine."""
    return int.from_bytes(
        hashlib.blake2b(video.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little", signed=True
    )


def describe(maps: ClipMaps, moving: BoolArray) -> FloatArray:
    """Return the features (Q, 4) float32 of the Q cells that are True in `moving` (T, h, w).

    The four features of a cell are its velocity (x and y in pixels per step) and its place (x and y in frame widths).
    """
    t, y, x = np.nonzero(moving)
    return np.concatenate([maps.velocity[t, y, x], maps.grid.positions()[y, x]], axis=1)


def coarse(moving: BoolArray) -> BoolArray:
    """Return flags (T, h, w), True for the moving cells for which rarity is computed.

    Rarity is computed for every STRIDE-th cell in each direction, and in every STRIDE-th frame.
    """
    thin = np.zeros_like(moving)
    thin[::STRIDE, ::STRIDE, ::STRIDE] = moving[::STRIDE, ::STRIDE, ::STRIDE]
    return thin


def spread_out(thin: FloatArray) -> FloatArray:
    """Copy each value of a `coarse` cell to the STRIDE x STRIDE x STRIDE block that starts at the cell.

    `thin` (T, h, w) contains values only in the `coarse` cells.
    """
    frames, h, w = thin.shape
    wide = thin[::STRIDE, ::STRIDE, ::STRIDE]
    for axis in range(3):
        wide = np.repeat(wide, STRIDE, axis=axis)
    return wide[:frames, :h, :w]


def scaled(features: FloatArray, unit: FloatArray, options: MotionOptions) -> FloatArray:
    """Scale features (Q, 4) from `describe`, so that velocity and place can be added up in one distance.

    `unit` (1,) or (Q, 1) is the usual difference between velocities, in pixels per step.
    """
    return np.concatenate([features[:, :2] / unit, features[:, 2:] * np.float32(options.position_weight)], axis=1)


def rarity(query: FloatArray, samples: RaritySamples, *, video: int, time_s: float, options: MotionOptions) -> FloatArray:
    """Return the distance (Q,) float32 from each cell to its k-th nearest sample.

    `query` (Q, 4) contains the scaled features of the cells. All distances are 0 if there are too few samples. Samples of the
    same video that are at most `exclude_s` seconds before or after `time_s` do not count. Otherwise an object would look usual
    because of its own samples.
    """
    return kth_distance(query, samples.features[~samples.near(video, time_s, options.exclude_s)], options)


def kth_distance(query: FloatArray, known: FloatArray, options: MotionOptions) -> FloatArray:
    """Return the distance (Q,) from each cell to its k-th nearest sample in `known` (M, 4)."""
    found = np.zeros(len(query), dtype=np.float32)
    if len(known) < FEWEST_SAMPLES:
        return found
    rank = min(len(known) - 1, round(options.neighbour_share * len(known)))
    of_query, of_known = np.sum(query**2, axis=1)[:, None], np.sum(known**2, axis=1)[None, :]
    twice = 2.0 * known.T
    for start in range(0, len(query), QUERIES):  # so that the distances stay in the processor's cache
        part = slice(start, start + QUERIES)
        square = of_query[part] + of_known
        square -= query[part] @ twice
        square.partition(rank, axis=1)
        found[part] = np.sqrt(np.maximum(square[:, rank], 0.0))
    return found


SPEED_REFERENCE = 8.0
DISORDER_REFERENCE = 1.2
"""The usual speed and disorder of moving things on other cameras, in pixels per step.

If a camera has only seconds of footage, these references count more than the values of the camera. The reason: if an incident
fills the whole clip, the clip does not show usual motion. SPEED_REFERENCE is the speed of a car on a road, so that a high speed
alone does not raise an alarm on an unknown camera.
"""

SPEED_FLOOR = 0.42
DISORDER_FLOOR = 0.1
"""Usual levels are computed only from frames whose highest cell is above these floors, in pixels per step."""

LEVEL_PRIOR = 10.0
"""SPEED_REFERENCE and DISORDER_REFERENCE have the same weight as this many moments of the camera (20 seconds)."""

RARITY_REFERENCE = 1.0
"""The usual rarity of moving things on other cameras: the distance to the samples of their camera, in `scaled` features."""


@dataclass(frozen=True)
class Levels:
    """The usual values of one scene.

    Attributes:
        speed, disorder, rarity: the usual value of the highest cell of a frame, in frames with motion.
        unit: usual difference between the velocities of moving cells, in pixels per step.
    """

    speed: float = SPEED_REFERENCE
    disorder: float = DISORDER_REFERENCE
    rarity: float = RARITY_REFERENCE
    unit: float = SMALLEST_UNIT_PX

    def to_json(self) -> dict[str, float]:
        """Return the JSON that is stored in a camera model."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Levels:
        """Return the levels that `to_json` stored."""
        return cls(**{name: float(document[name]) for name in ("speed", "disorder", "rarity", "unit")})


@dataclass(frozen=True)
class Scene:
    """One view of the camera, such as day, night or another direction.

    Attributes:
        height_px, width_px: frame size.
        background: (h, w) float32, the gray level of each cell without moving things.
        levels: the usual values of this scene.
    """

    height_px: int
    width_px: int
    background: FloatArray = field(repr=False)
    levels: Levels = field(default_factory=Levels)


@dataclass(frozen=True)
class FittedCamera:
    """A camera model in the form that the detector uses.

    Attributes:
        scenes: the camera's scenes; a scene's number is its index.
        elsewhere: the usual values of a view that matches none of the scenes.
        samples: moving cells from which rarity is computed; None if nothing moved or there was no video.
        rarity_power: how much rarity counts, from 0 (too little footage to know what is rare) to RARITY_POWER.
        tail: gives for each smoothed value of a frame how rare it is.
        still: gives for each contrast of still things how rare it is. None if the camera was fitted with --no-still.
    """

    scenes: tuple[Scene, ...] = ()
    elsewhere: Levels = field(default_factory=Levels)
    samples: RaritySamples | None = None
    rarity_power: float = 0.0
    tail: Tail = REFERENCE
    still: Tail | None = None

    def backgrounds(self, height_px: int, width_px: int) -> dict[int, FloatArray]:
        """Return the background of each scene of this frame size, by scene number."""
        size = (height_px, width_px)
        return {n: scene.background for n, scene in enumerate(self.scenes) if (scene.height_px, scene.width_px) == size}

    def levels(self, scene: int) -> Levels:
        """Return the usual values of the scene with this number. -1 is for views that match no scene."""
        return self.scenes[scene].levels if scene >= 0 else self.elsewhere


def to_model(fitted: FittedCamera, camera: str, detector: str) -> CameraModel:
    """Return the camera model that the engine stores."""
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
        "rarity_power": fitted.rarity_power,
        "tail": fitted.tail.to_json(),
    }
    if fitted.still is not None:
        values["still_tail"] = fitted.still.to_json()
    return CameraModel(camera, detector, MODEL_VERSION, arrays, values)


def from_model(model: CameraModel | None) -> FittedCamera:
    """Return the camera that `to_model` stored. For None, return a camera with the reference values.

    Raises:
        KeyError: the model lacks a field, because another version of vadcli stored it.
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
    still = Tail.from_json(model.values["still_tail"]) if "still_tail" in model.values else None
    elsewhere, tail = Levels.from_json(model.values["elsewhere"]), Tail.from_json(model.values["tail"])
    return FittedCamera(scenes, elsewhere, samples, float(model.values["rarity_power"]), tail, still)
