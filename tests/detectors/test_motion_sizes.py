"""--min-size: small things that move have no score, larger ones have the same."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vadcli.detectors.motion import MotionOptions
from vadcli.detectors.motion.detector import MotionDetector
from vadcli.types import CameraSample, Clip, ClipBatch

HEIGHT, WIDTH = 240, 320
FRAMES = 32
PERSON, BIRD = (60, 24), (12, 16)


def film(*things: tuple[tuple[int, int], int, int], repeat: int = 1, light: int = 0, seed: int = 0) -> np.ndarray:
    """(T, H, W, 1): a noisy still picture that things cross: ((height, width), top, pixels per frame)."""
    rng = np.random.default_rng(3)
    ground = rng.integers(60, 120, (HEIGHT // 8, WIDTH // 8)).repeat(8, axis=0).repeat(8, axis=1).astype(float)
    noise = np.random.default_rng(seed)
    shown = []
    for t in range(FRAMES):
        at = t // repeat * repeat
        picture = ground + light * at / FRAMES
        for (height, width), top, step in things:
            left = 20 + step * at
            picture[top : top + height, left : left + width] = 220
        if t == at:
            picture = picture + noise.normal(0, 2, picture.shape)
            last = picture
        shown.append(last)
    return np.clip(np.stack(shown), 0, 255).astype(np.uint8)[..., None]


def scored(detector: MotionDetector, frames: np.ndarray) -> tuple[float, np.ndarray]:
    """The highest raw score of a clip of a camera on which nothing moves, and its masks."""
    quiet = clip(film(seed=1))
    model = detector.fit(CameraSample("c", (quiet,)))
    scores = detector.score(ClipBatch.of([clip(frames)], [model]))
    assert scores.mask is not None
    return float(scores.raw[0, 2:-2, detector.channels.index("together")].max()), scores.mask[0]


def clip(frames: np.ndarray) -> Clip:
    rows = np.arange(FRAMES)
    return Clip("a.mp4", 0, frames, rows, rows / 10, np.ones(FRAMES, np.bool_), 1)


def sized(percent: float | None) -> MotionDetector:
    return MotionDetector(MotionOptions(min_size=percent))


@pytest.mark.parametrize("repeat", [1, 3])  # 3: a camera with fewer frames per second than the file
def test_what_is_small_has_no_score_and_what_is_large_keeps_its_own(repeat: int) -> None:
    bird, person = (BIRD, 40, 5), (PERSON, 150, 3)  # 5 % and 25 % of the height
    alone, _ = scored(sized(None), film(bird, repeat=repeat))
    whole, _ = scored(sized(None), film(person, repeat=repeat))
    assert min(alone, whole) > 0.1
    for percent, bird_counts, person_counts in ((None, True, True), (4, True, True), (8, False, True), (40, False, False)):
        small, _ = scored(sized(percent), film(bird, repeat=repeat))
        assert small == (pytest.approx(alone) if bird_counts else 0), percent
        both, masks = scored(sized(percent), film(bird, person, repeat=repeat))
        assert both == (pytest.approx(max(alone, whole) if bird_counts else whole, rel=0.2) if person_counts else 0), percent
        third, nothing = masks.shape[1] // 3, masks.min()
        assert (masks[4:-4, :third].max() > nothing) == bird_counts
        assert (masks[4:-4, -third:].max() > nothing) == person_counts


def test_a_change_of_light_makes_nothing_small() -> None:
    still, _ = scored(sized(None), film((PERSON, 150, 3)))
    lit, _ = scored(sized(15), film((PERSON, 150, 3), light=60))
    assert lit == pytest.approx(still, rel=0.3)


def test_only_a_set_size_is_part_of_fingerprints_and_models() -> None:
    plain, small = sized(None), sized(5)
    options = plain.fingerprint()["options"]
    assert isinstance(options, dict)
    assert "min_size" not in options
    assert len({str(one.fingerprint()) for one in (plain, small, sized(6))}) == 3
    sample = CameraSample("c", (clip(film()),))
    models = {one: one.fit(sample) for one in (plain, small)}
    for one, model in models.items():
        assert model is not None
        assert one.accepts(model)
        assert not next(other for other in models if other is not one).accepts(model)
        assert not sized(6).accepts(model)


def test_detail_shows_more_of_a_small_fast_thing_and_speeds_stay_those_of_the_small_frame() -> None:
    """A thing of 14x36 px in 1080p, which runs, and one of 120x330 px, which walks: a larger frame dilutes them less."""
    quick, slow = ((36, 14), 200, 14), ((330, 120), 600, 10)
    speeds = [[_speed_in_1080p(thing, detail) for detail in (1.0, 2.0)] for thing in (quick, slow)]
    assert speeds[0][1] > 1.5 * speeds[0][0]
    assert 0.5 < speeds[1][0] < speeds[1][1] < 1.1 * slow[2] * 390 / 1920


def _speed_in_1080p(thing: tuple[tuple[int, int], int, int], detail: float) -> float:
    """The highest speed that the detector measures in eight frames of 1920x1080."""
    detector = MotionDetector(MotionOptions(detail=detail))
    width, height = detector.needs.size.apply(1920, 1080)
    rng = np.random.default_rng(0)
    ground = cv2.GaussianBlur(rng.normal(0, 360, (1080, 1920)).astype(np.float32), (0, 0), 6) + 120
    look = cv2.GaussianBlur(rng.normal(0, 240, (400, 400)).astype(np.float32), (0, 0), 3) + 200
    (high, wide), top, step = thing
    frames = []
    for t in range(8):
        picture = ground.copy()
        picture[top : top + high, 300 + step * t : 300 + step * t + wide] = look[:high, :wide]
        small = cv2.resize(np.clip(picture, 0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_AREA)
        frames.append(small)
    rows = np.arange(8)
    one = Clip("a.mp4", 0, np.stack(frames)[..., None], rows, rows / 10, np.ones(8, np.bool_), 1)
    raw = detector.score(ClipBatch.of([one], [None])).raw[0]
    return float(raw[2:-2, detector.channels.index("speed")].max())


def test_a_model_of_another_detail_is_not_used() -> None:
    model = MotionDetector().fit(CameraSample("c", (clip(film(seed=1)),)))
    assert model is not None
    assert MotionDetector().accepts(model)
    assert not MotionDetector(MotionOptions(detail=2.0)).accepts(model)
    assert "detail" not in str(MotionDetector().fingerprint())
