"""What a detector is: arrays in, arrays out. It knows no file and no video; the scan engine knows no model."""

from __future__ import annotations

from typing import Protocol

from vadcli.types import (
    Calibration,
    CameraModel,
    CameraSample,
    ClipBatch,
    ClipNeeds,
    ClipScores,
    FrameScores,
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
        uses_categories: False where the categories in the user's words change nothing.
        fits_camera: True where `fit` makes a model; the engine then reads a sample of each camera's footage first.
    """

    name: str
    model_version: int
    needs: ClipNeeds
    channels: tuple[str, ...]
    thresholds: Thresholds
    calibration: Calibration | None
    uses_categories: bool
    fits_camera: bool

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
