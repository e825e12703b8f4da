"""What is remembered of one camera, and its form as a CameraModel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from vadcli.detectors.motion.calibration import REFERENCE, Tail
from vadcli.detectors.motion.options import MODEL_VERSION
from vadcli.detectors.motion.perspective import Perspective
from vadcli.detectors.motion.rarity import RaritySamples
from vadcli.types import CameraModel, FloatArray

MOTION_REFERENCE = 6.0
"""Usual motion of something that moves: the geometric mean over a dozen cameras."""

RARITY_REFERENCE = 2.2
"""Usual rarity of a camera's own moving things, in scaled units: the same."""


@dataclass(frozen=True)
class FittedCamera:
    """A camera as the detector uses it.

    Attributes:
        scenes: (height_px, width_px, (h, w) background) for each remembered empty scene.
        samples: for rarity; None where nothing moved or nothing was seen.
        perspective: how motion grows down the picture.
        usual_motion, usual_rarity: usual highest cell of a frame in which something moves.
        tail: of the smoothed frame values that the two make together.
    """

    scenes: tuple[tuple[int, int, FloatArray], ...] = field(default=(), repr=False)
    samples: RaritySamples | None = None
    perspective: Perspective = field(default_factory=Perspective)
    usual_motion: float = MOTION_REFERENCE
    usual_rarity: float = RARITY_REFERENCE
    tail: Tail = REFERENCE

    def scenes_of(self, height_px: int, width_px: int) -> list[FloatArray]:
        """Backgrounds of this picture size."""
        return [scene for height, width, scene in self.scenes if (height, width) == (height_px, width_px)]


def to_model(fitted: FittedCamera, camera: str, detector: str) -> CameraModel:
    """As the engine stores it."""
    arrays: dict[str, NDArray[Any]] = {f"scene_{k}": scene for k, (_, _, scene) in enumerate(fitted.scenes)}
    if fitted.samples is not None:
        arrays |= {
            "sample_features": fitted.samples.features,
            "sample_scale": fitted.samples.scale,
            "sample_video": fitted.samples.video,
            "sample_time_s": fitted.samples.time_s,
        }
    values = {
        "scene_sizes_px": [[height, width] for height, width, _ in fitted.scenes],
        "perspective": fitted.perspective.to_json(),
        "usual_motion": fitted.usual_motion,
        "usual_rarity": fitted.usual_rarity,
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
    sizes = model.values["scene_sizes_px"]
    scenes = tuple((int(h), int(w), model.arrays[f"scene_{k}"]) for k, (h, w) in enumerate(sizes))
    samples = None
    if "sample_features" in model.arrays:
        names = ("sample_features", "sample_scale", "sample_video", "sample_time_s")
        samples = RaritySamples(*(model.arrays[name] for name in names))
    return FittedCamera(
        scenes,
        samples,
        Perspective.from_json(model.values["perspective"]),
        float(model.values["usual_motion"]),
        float(model.values["usual_rarity"]),
        Tail.from_json(model.values["tail"]),
    )
