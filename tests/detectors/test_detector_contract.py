"""What the engine relies on, for every detector of the registry."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.detectors.ask.models import tiny_qwen_folder
from tests.detectors.encoders import tiny_encoder_folder
from vadcli import detectors
from vadcli.detectors import Detector
from vadcli.detectors.lavida import LavidaOptions
from vadcli.detectors.motion import MotionUserOptions
from vadcli.detectors.options import AskOptions, ConceptOptions
from vadcli.errors import VadcliError
from vadcli.options import DetectorOptions
from vadcli.registry import DETECTORS
from vadcli.types import CameraModel, CameraSample, Clip, ClipBatch, ClipScores, RawTrack, VideoInfo

SIZES = [(48, 64), (47, 65), (1, 1), (2, 90), (3, 5)]
TOLERANCE = {"lavida": 1e-5, "ask": 1e-5}
"""Largest difference between the scores of the same clip in different batches; 0 for detectors that are not listed."""


@cache
def encoder() -> str:
    """A small image-text encoder with random weights."""
    return str(tiny_encoder_folder(Path(tempfile.mkdtemp(prefix="vadcli-encoder-")) / "clip", family="clip"))


@cache
def language_model() -> str:
    """A small Qwen2-VL with random weights."""
    return str(tiny_qwen_folder(Path(tempfile.mkdtemp(prefix="vadcli-qwen-")) / "qwen"))


OPTIONS: dict[str, Callable[[], DetectorOptions]] = {
    "lavida": lambda: LavidaOptions(categories="fight, fire", model="preset:lavida-tiny", allow_untrained=True, device="cpu"),
    "ask": lambda: AskOptions(categories="fight, fire", model=language_model(), device="cpu"),
    "concept": lambda: ConceptOptions(categories="fight, fire", encoder=encoder(), device="cpu"),
    "motion --no-still": lambda: MotionUserOptions(still=False),
}
"""Makes the options with which a detector is tested. Without an entry, it is tested with its default options.

The first word of a key is the detector's name. Several keys can begin with the same name.
"""


def load(name: str) -> Detector:
    """Return a detector of the registry, ready to score."""
    try:
        detector = detectors.load(name.split(maxsplit=1)[0], OPTIONS[name]() if name in OPTIONS else None)
        detector.prepare()
    except VadcliError as error:
        pytest.fail(
            f"the detector {name} does not load: {error}. Add its options, with small weights, to OPTIONS of this file."
        )
    return detector


@pytest.fixture(params=sorted({*DETECTORS.own, *OPTIONS}))
def detector(request: pytest.FixtureRequest) -> Detector:
    return load(request.param)


@pytest.fixture
def twin(request: pytest.FixtureRequest) -> Detector:
    """Another detector of the same kind as `detector`."""
    return load(request.node.callspec.params["detector"])


def walker(rng: np.random.Generator, frames: int, height: int, width: int, *, speed: float = 2.0) -> np.ndarray:
    """A textured scene with a bright block walking through it."""
    scene = rng.integers(40, 160, (height, width))
    film = np.repeat(scene[None], frames, axis=0)
    for t in range(frames):
        x = int(t * speed) % width
        film[t, height // 3 : height // 3 + 12, x : x + 8] = 230
    return np.clip(film + rng.integers(-3, 4, film.shape), 0, 255).astype(np.uint8)


def make_clip(detector: Detector, *, seed: int, video: str, size: tuple[int, int] = (48, 64), start_s: float = 0.0) -> Clip:
    needs = detector.needs
    count = needs.frames
    gray = walker(np.random.default_rng(seed), count, *size)[..., None]
    frames = np.repeat(gray, needs.pixel_format.channels, axis=-1)
    index = np.arange(count, dtype=np.int64)
    return Clip(video, 0, frames, index, start_s + index / needs.rate_hz, np.ones(count, dtype=bool), 1)


def make_sample(detector: Detector, count: int = 3, *, size: tuple[int, int] = (48, 64)) -> CameraSample:
    clips = tuple(make_clip(detector, seed=k, video=f"cam/{k}.mp4", size=size) for k in range(count))
    return CameraSample("cam", clips, seed=7)


def batch_of(clips: list[Clip], models: list[CameraModel | None]) -> ClipBatch:
    return ClipBatch(
        frames=np.stack([clip.frames for clip in clips]),
        timestamp=np.stack([clip.timestamp for clip in clips]),
        valid=np.stack([clip.valid for clip in clips]),
        videos=tuple(clip.video for clip in clips),
        models=tuple(models),
        interval=np.array([clip.interval for clip in clips]),
    )


def track_of(raw: np.ndarray, model: CameraModel | None, rate_hz: float) -> RawTrack:
    count = len(raw)
    info = VideoInfo(
        Path("v.mp4"), "mov", "h264", 0, 64, 48, 0, Fraction(1, 1000), np.arange(count, dtype=np.int64) * 100, 10.0, count / 10
    )
    return RawTrack(info, np.arange(count) / rate_hz, raw, model)


def same(a: ClipScores, b: ClipScores) -> None:
    np.testing.assert_array_equal(a.raw, b.raw)
    assert (a.mask is None) == (b.mask is None)
    if a.mask is not None and b.mask is not None:
        np.testing.assert_array_equal(a.mask, b.mask)


def test_scoring_twice_gives_the_same(detector: Detector, twin: Detector) -> None:
    model = detector.fit(make_sample(detector))
    batch = batch_of([make_clip(detector, seed=5, video="a.mp4")], [model])
    same(detector.score(batch), twin.score(batch))


def test_fitting_twice_gives_the_same_model(detector: Detector, twin: Detector) -> None:
    first, second = detector.fit(make_sample(detector)), twin.fit(make_sample(detector))
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert first.sha256 == second.sha256


def test_a_clip_scores_the_same_in_any_batch(detector: Detector) -> None:
    model = detector.fit(make_sample(detector))
    clips = [make_clip(detector, seed=k, video=f"{k % 2}.mp4", start_s=3.0 * k) for k in range(4)]
    models = [model, None, model, model]
    together = detector.score(batch_of(clips, models))
    for row, (clip, own) in enumerate(zip(clips, models, strict=True)):
        alone = detector.score(batch_of([clip], [own]))
        np.testing.assert_allclose(alone.raw[0], together.raw[row], rtol=0, atol=TOLERANCE.get(detector.name, 0.0))
        if together.mask is not None and alone.mask is not None:
            np.testing.assert_allclose(alone.mask[0], together.mask[row], rtol=0, atol=TOLERANCE.get(detector.name, 0.0))
    backwards = detector.score(batch_of(clips[::-1], models[::-1]))
    np.testing.assert_allclose(backwards.raw[::-1], together.raw, rtol=0, atol=TOLERANCE.get(detector.name, 0.0))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fitted", [True, False])
def test_shapes_and_ranges_at_every_size(detector: Detector, size: tuple[int, int], fitted: bool) -> None:
    model = detector.fit(make_sample(detector, size=size)) if fitted else None
    clips = [make_clip(detector, seed=k, video="a.mp4", size=size) for k in range(2)]
    scores = detector.score(batch_of(clips, [model, model]))
    assert scores.raw.shape == (2, detector.needs.frames, len(detector.channels))
    assert scores.raw.dtype == np.float32
    assert np.isfinite(scores.raw).all()
    if scores.mask is not None:
        assert scores.mask.shape[:2] == scores.raw.shape[:2]
        assert scores.mask.dtype == np.float32
        assert scores.mask.min() >= 0.0
        assert scores.mask.max() <= 1.0


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_finish_gives_one_finite_logit_a_sample(detector: Detector, count: int) -> None:
    model = detector.fit(make_sample(detector))
    clips = [make_clip(detector, seed=k, video="a.mp4") for k in range(1 + count // detector.needs.frames)]
    raw = np.concatenate(list(detector.score(batch_of(clips, [model] * len(clips))).raw))[:count]
    finished = detector.finish(track_of(raw, model, detector.needs.rate_hz))
    assert finished.logit.shape == (count,)
    assert finished.logit.dtype == np.float32
    assert np.isfinite(finished.logit).all()


def test_finish_takes_an_empty_track(detector: Detector) -> None:
    empty = np.zeros((0, len(detector.channels)), dtype=np.float32)
    assert detector.finish(track_of(empty, None, detector.needs.rate_hz)).logit.shape == (0,)


def test_a_stored_model_scores_as_the_fresh_one(detector: Detector) -> None:
    model = detector.fit(make_sample(detector))
    if model is None:
        assert not detector.fits_camera
        return
    text = json.dumps(model.to_json())
    assert len(text) < 1_000_000
    stored = CameraModel.from_json(json.loads(text))
    assert (stored.detector, stored.version, stored.sha256) == (detector.name, detector.model_version, model.sha256)
    clip = make_clip(detector, seed=9, video="cam/1.mp4")
    fresh, again = detector.score(batch_of([clip], [model])), detector.score(batch_of([clip], [stored]))
    same(fresh, again)
    np.testing.assert_array_equal(
        detector.finish(track_of(fresh.raw[0], model, 10.0)).logit, detector.finish(track_of(again.raw[0], stored, 10.0)).logit
    )


def test_fingerprint_is_json_and_stable(detector: Detector, twin: Detector) -> None:
    assert json.dumps(detector.fingerprint(), sort_keys=True) == json.dumps(twin.fingerprint(), sort_keys=True)


def test_an_empty_sample_is_no_error(detector: Detector) -> None:
    model = detector.fit(CameraSample("cam", ()))
    clip = make_clip(detector, seed=1, video="a.mp4")
    assert np.isfinite(detector.score(batch_of([clip], [model])).raw).all()


def test_the_input_is_left_alone(detector: Detector) -> None:
    clip = make_clip(detector, seed=3, video="a.mp4")
    before = clip.frames.copy()
    detector.score(batch_of([clip], [detector.fit(make_sample(detector))]))
    np.testing.assert_array_equal(clip.frames, before)


def test_it_names_its_weights_and_what_it_looks_for(detector: Detector) -> None:
    assert bool(detector.categories) == detector.uses_categories
    assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in detector.weights.values())
    assert all(digest in str(detector.fingerprint()) for digest in detector.weights.values())
