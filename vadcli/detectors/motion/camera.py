"""What is remembered of one camera, and its form as a CameraModel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadcli.detectors.motion.calibration import REFERENCE, Tail
from vadcli.detectors.motion.options import MODEL_VERSION
from vadcli.detectors.motion.perspective import Perspective
from vadcli.detectors.motion.rarity import SCALE_FLOORS, RaritySamples
from vadcli.types import CameraModel, FloatArray

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
