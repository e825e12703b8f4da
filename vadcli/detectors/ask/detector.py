"""The detector `ask`: implements the `Detector` protocol with an `Asker`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from vadcli.detectors import digest
from vadcli.detectors.ask import Asker, AskOptions, load_asker, questions_for
from vadcli.detectors.batching import PerCamera
from vadcli.detectors.calibration import CALIBRATION, CategoryTails
from vadcli.errors import UsageError
from vadcli.types import (
    BoolArray,
    Calibration,
    CameraModel,
    CameraSample,
    ClipBatch,
    ClipNeeds,
    ClipScores,
    FloatArray,
    FrameScores,
    MaskScale,
    PixelFormat,
    RawTrack,
    SizeRule,
    Thresholds,
    TimeArray,
)

log = logging.getLogger("vadcli")

VERSION = 1
"""Increase this if the same answers give other scores."""
HOP_S = 4.0
"""Seconds from one clip to the next in a scan. A caller that needs a smaller hop gives its loader a larger overlap."""
SPREAD_FLOOR = 0.25
"""Smallest spread of a camera's log-odds. Without it, a camera whose frames never change would alarm at any change: in half
precision, the log-odds of equal pictures differ by a few hundredths."""
SAME_CLIP_S = 1e-3
"""Two frames belong to one clip if the times of their clips' middles differ by less than this."""


class AskDetector:
    """Asks a multimodal language model one question per category about each clip.

    The score of a category is high if this camera rarely has log-odds as high as those of the frame. Between the middles of two
    clips, the log-odds change linearly with time. This detector makes no masks.

    Args:
        options: the options.
        asker: the model that answers. None: the model that the options name.

    Raises:
        UsageError: the category list can't be read, or the model does not exist.
        WeightsError: the model is not on this machine.
    """

    name = "ask"
    calibration: Calibration | None = CALIBRATION
    uses_categories = True
    fits_camera = True
    makes_masks = False
    mask_scale = MaskScale.SCORE

    def __init__(self, options: AskOptions, asker: Asker | None = None) -> None:
        self.options = options
        self.questions = questions_for(options.categories)
        if not self.questions:
            hint = "omit it to ask about danger, crime, violence, accidents and emergencies"
            raise UsageError(f"--categories {options.categories!r} contains no category", hint=hint)
        self.asker = asker or load_asker(
            options.ask_model,
            device=options.device,
            precision=options.precision,
            compression=options.compression,
            batch_size=options.batch_size,
            compile=options.compile,
        )
        self.categories = tuple(question.category for question in self.questions)
        self.channels = (*self.categories, "seconds to the middle of the clip")
        frames, rate_hz = self.asker.clip_frames, self.asker.clip_frames / self.asker.clip_s
        self.needs = ClipNeeds(
            frames=frames,
            overlap=frames - round(HOP_S * rate_hz),
            rate_hz=rate_hz,
            # Twice the area, because the model makes the sides multiples of 28 px and must not enlarge a frame for that.
            size=SizeRule(2 * self.asker.max_area_px),
            pixel_format=PixelFormat.RGB,
            whole_bursts=True,
        )
        self.thresholds = Thresholds(high=0.5, low=0.4, min_duration_s=0.5, merge_gap_s=2.0)
        self._asker_state = self.asker.fingerprint()
        self._asker_key = digest(self._asker_state)
        self._questions_key = digest([asdict(question) for question in self.questions])
        self.weights: Mapping[str, str] = {self.asker.name: self._asker_key}
        # A camera model stores the answers of one model to one list of questions. So each model and list has its own version.
        self.model_version = int(digest([self._asker_state, self._questions_key])[:12], 16)
        self._tails = PerCamera(lambda model: calibrate(model, len(self.questions)))

    @property
    def batch_size(self) -> int:
        """The number of clips per call of the model."""
        return self.asker.batch_size

    @property
    def parallel(self) -> int:
        """The number of simultaneous calls of the model."""
        return self.asker.parallel

    def prepare(self) -> None:
        """Load the model. Later calls do nothing."""
        self.asker.prepare()
        if not self.options.categories:
            log.info("no --categories: asking about %s", ", ".join(self.categories))

    def fit(self, sample: CameraSample) -> CameraModel | None:
        """Return a camera model with the log-odds of the sample; None if the sample has no frame."""
        clips = [clip for clip in sample.clips if clip.valid.any()]
        if not clips:
            return None
        # One clip at a time: the sizes may differ, and the model must not depend on the batch size.
        values = np.concatenate([self.asker.ask(clip.frames[None], self.questions) for clip in clips])
        seconds = sum(float(np.ptp(clip.timestamp[clip.valid])) for clip in clips)
        arrays = {"values": values.astype(np.float32)}
        return CameraModel(sample.camera, self.name, self.model_version, arrays, {"seconds": seconds})

    def score(self, batch: ClipBatch) -> ClipScores:
        """Return raw scores (B, T, C + 1): the log-odds of the clip, and the seconds to its middle."""
        answers = self.asker.ask(batch.frames, self.questions)  # (B, C)
        frames = batch.frames.shape[1]
        middle = (batch.timestamp[:, :1] + batch.timestamp[:, -1:]) / 2  # (B, 1)
        away = (middle - batch.timestamp).astype(np.float32)[..., None]  # (B, T, 1)
        return ClipScores(np.concatenate([np.repeat(answers[:, None], frames, axis=1), away], axis=2))

    def finish(self, track: RawTrack) -> FrameScores:
        """Return the logits of a video, and the score of each category."""
        if not len(track.timestamp):
            return FrameScores(np.zeros(0, np.float32))
        by_category = self._tails(track.model).logits(between_clips(track.raw, track.timestamp))
        return FrameScores(by_category.max(axis=1), by_category=by_category)

    def fingerprint(self) -> dict[str, object]:
        """Return the model, the questions and the version."""
        return {
            "detector": self.name,
            "version": VERSION,
            "asker": self._asker_state,
            "asker_key": self._asker_key,
            "questions": self._questions_key,
        }


def calibrate(model: CameraModel | None, categories: int) -> CategoryTails:
    """Return how rare log-odds are for a camera. `model` comes from `AskDetector.fit`."""
    if model is None:
        return CategoryTails.unknown(categories)
    return CategoryTails.fit(model.arrays["values"], categories, seconds=float(model.values["seconds"]), floor=SPREAD_FLOOR)


def between_clips(raw: FloatArray, timestamp: TimeArray) -> FloatArray:
    """Return log-odds (S, C) that change linearly in time between the middles of clips.

    Before the first middle and after the last one, they are constant.

    Args:
        raw: (S, C + 1) raw scores of the sampled frames, as `AskDetector.score` returns them.
        timestamp: (S,) seconds, increasing.
    """
    middle = timestamp + raw[:, -1]  # (S,)
    first: BoolArray = np.concatenate([[True], np.diff(middle) > SAME_CLIP_S])
    columns = [np.interp(timestamp, middle[first], column[first]) for column in raw[:, :-1].T]
    return np.stack(columns, axis=1).astype(np.float32)
