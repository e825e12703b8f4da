"""Small fakes shared by tests."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from vadcli.types import (
    Calibration,
    CameraModel,
    CameraSample,
    ClipBatch,
    ClipNeeds,
    ClipScores,
    FrameScores,
    MaskScale,
    PixelFormat,
    RawTrack,
    SizeRule,
    Thresholds,
)


class DifferenceDetector:
    """A detector whose scores are easy to predict: the change from the previous frame.

    The second channel is the brightness minus the mean brightness of the camera, which is fitted.
    """

    name = "difference"
    model_version = 1
    needs = ClipNeeds(frames=8, overlap=1, rate_hz=10, size=SizeRule(4096), pixel_format=PixelFormat.GRAY)
    channels = ("difference", "brightness")
    thresholds = Thresholds(high=0.5, low=0.4)
    calibration = Calibration(1.0, 2.0)
    uses_categories = False
    categories: tuple[str, ...] = ()
    weights: Mapping[str, str] = MappingProxyType({})
    mask_scale = MaskScale.SCORE
    batch_size = 1
    parallel = 1

    def __init__(self, *, fits_camera: bool = True) -> None:
        self.fits_camera = fits_camera
        self.fitted: list[str] = []
        self.scored_frames = 0

    def prepare(self) -> None:
        """Do nothing, because there are no weights to load."""

    def fit(self, sample: CameraSample) -> CameraModel | None:
        """Return a model with the mean brightness of the sample."""
        self.fitted.append(sample.camera)
        mean = float(np.mean([clip.frames.mean() for clip in sample.clips]))
        return CameraModel(sample.camera, self.name, self.model_version, {}, {"mean": mean, "clips": len(sample.clips)})

    def score(self, batch: ClipBatch) -> ClipScores:
        """Return the mean change from the previous frame, and the brightness minus the camera's."""
        frames = batch.frames[..., 0].astype(np.float32)
        step = np.abs(np.diff(frames, axis=1))
        step = np.concatenate([step[:, :1], step], axis=1)
        mean = np.array([model.values["mean"] if model else 0.0 for model in batch.models], np.float32)
        raw = np.stack([step.mean(axis=(2, 3)), frames.mean(axis=(2, 3)) - mean[:, None]], axis=-1)
        self.scored_frames += int(batch.valid.sum())
        return ClipScores(raw.astype(np.float32), np.minimum(step[:, :, ::2, ::2] / 64, 1).astype(np.float32))

    def finish(self, track: RawTrack) -> FrameScores:
        """Return the change as a logit."""
        return FrameScores((track.raw[:, 0] - 8).astype(np.float32), moving_camera=None)

    def fingerprint(self) -> dict[str, object]:
        """Return a constant, because no setting changes the scores."""
        return {"version": 1}
