"""Detectors: arrays in, arrays out. A detector knows no file and no video; the scan engine knows no model.

`vadcli.registry` has them by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from vadcli.options import DetectorOptions
from vadcli.options.config import cache_folder
from vadcli.registry import DETECTORS
from vadcli.types import (
    ByteArray,
    Calibration,
    CameraModel,
    CameraSample,
    ClipBatch,
    ClipNeeds,
    ClipScores,
    FloatArray,
    FrameScores,
    MaskScale,
    RawTrack,
    Thresholds,
)


class Detector(Protocol):
    """One way of scoring footage.

    Scores must not depend on the batch a clip travels in, on its neighbours or on what was scored before: the engine
    batches clips of several videos, runs them in any order between videos and resumes in the middle.

    Attributes:
        name: the registry's name.
        model_version: of the camera models it fits; a stored model of another version is fitted again.
        needs: what the loader delivers.
        channels: K names of the raw values.
        thresholds: default thresholds for events.
        calibration: how scores read as events an hour, None where they don't.
        uses_categories: False if the categories in the user's words change nothing.
        categories: what the detector looks for; empty if it reads none.
        weights: name -> SHA-256 of the weights that it loads; empty if it loads none.
        fits_camera: True where `fit` makes a model; the engine then reads a sample of each camera's footage first.
        mask_scale: how its masks read as pixel scores.
        batch_size: clips that one call of `score` should hold; known after `prepare`.
        parallel: how many calls of `score` may run at the same time, from as many threads; known after `prepare`.
    """

    name: str
    model_version: int
    needs: ClipNeeds
    channels: tuple[str, ...]
    thresholds: Thresholds
    calibration: Calibration | None
    uses_categories: bool
    fits_camera: bool
    mask_scale: MaskScale

    @property
    def categories(self) -> tuple[str, ...]:
        """See above."""
        ...

    @property
    def weights(self) -> Mapping[str, str]:
        """See above."""
        ...

    @property
    def batch_size(self) -> int:
        """See above."""
        ...

    @property
    def parallel(self) -> int:
        """See above."""
        ...

    def prepare(self) -> None:
        """Load what scoring needs, once, before the first call of `score`.

        Raises:
            DeviceError, WeightsError: it is not there, or does not fit.
        """
        ...

    def fit(self, sample: CameraSample) -> CameraModel | None:
        """Learn what is usual for one camera; None where the detector learns nothing of cameras. Deterministic."""
        ...

    def score(self, batch: ClipBatch) -> ClipScores:
        """Raw scores (B, T, K) and pixel scores of a batch. Deterministic, row by row independent."""
        ...

    def finish(self, track: RawTrack) -> FrameScores:
        """Smooth and calibrate one video's raw scores into logits."""
        ...

    def fingerprint(self) -> dict[str, object]:
        """Everything of the detector that changes scores: options and weights, as JSON values."""
        ...


@runtime_checkable
class Attributor(Protocol):
    """A detector that can say which of its categories a clip shows."""

    @property
    def batch_size(self) -> int:
        """Clips a call, as for `score`."""
        ...

    @property
    def categories(self) -> tuple[str, ...]:
        """C names."""
        ...

    def attribute(self, batch: ClipBatch) -> FloatArray:
        """(B, T, C) float32 scores in [0, 1] of each category asked for alone."""
        ...


@runtime_checkable
class Propagator(Protocol):
    """A detector that can carry masks from known frames to those that follow."""

    def propagate(self, frames: ByteArray, known: Mapping[int, FloatArray]) -> FloatArray:
        """Masks of every frame, from those of some. Deterministic.

        Args:
            frames: (N, H, W, C) uint8 in order of time, of the size that `needs` asks for; stretches of different places in a
                video may follow each other, as each begins with a known frame.
            known: frame number -> mask (h, w) float32 on the detector's mask scale, as `score` gives them; frame 0 is among
                them. What is carried to a frame depends on the last known frame and those since alone.

        Returns:
            (N, h, w) float32 on the same scale.
        """
        ...


def make_motion(options: DetectorOptions) -> Detector:
    """Return the motion detector, which has no options of its own."""
    from vadcli.detectors.motion.detector import MotionDetector

    return MotionDetector()


def make_lavida(options: DetectorOptions) -> Detector:
    """Return LAVIDA; raises WeightsError if its weights are missing."""
    # torch makes this folder as soon as transformers is imported, by default among the temporary files, and leaves it there
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "torchinductor"))
    from vadcli.detectors.lavida.detector import LavidaDetector

    return LavidaDetector(options)


def load(name: str, options: DetectorOptions | None = None) -> Detector:
    """Return the detector of a name.

    Args:
        name: a name in `registry.DETECTORS`.
        options: how it computes; the defaults if there are none.

    Raises:
        UsageError: there is no such detector, or the options do not fit it.
        WeightsError: its weights are missing.
    """
    detector: Detector = DETECTORS.load(name)(options or DetectorOptions())
    return detector
