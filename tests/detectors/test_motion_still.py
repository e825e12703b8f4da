"""Still things: what appears and then stays is found; what passes, light and a camera that shakes are not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.detectors.films import RATE_HZ, film, fit, put, scan, street, texture
from vadcli.detectors.motion import MotionOptions
from vadcli.detectors.motion.detector import MotionDetector
from vadcli.detectors.motion.still import lasting
from vadcli.types import CameraModel

FRAMES = 240
THERE = range(60, 200)
"""The bag lies there for 14 seconds."""
BAG = {"x": 100, "y": 80, "size": (24, 24)}


@pytest.fixture(scope="module")
def detector() -> MotionDetector:
    return MotionDetector()


@pytest.fixture(scope="module")
def empty_square(detector: MotionDetector) -> CameraModel:
    model = fit(detector, [film([texture(0)] * 192, seed=seed) for seed in range(4)], start_s=3600.0)
    assert model is not None
    return model


def bag(t: int, there: range = THERE) -> np.ndarray:
    return put(texture(0), x=BAG["x"], y=BAG["y"], size=BAG["size"], seed=8) if t in there else texture(0)


def test_a_bag_is_found_in_time_and_place(detector: MotionDetector, empty_square: CameraModel) -> None:
    found = scan(detector, film([bag(t) for t in range(FRAMES)]), empty_square)
    high = found.score >= detector.thresholds.high
    clip = detector.needs.frames
    assert high[THERE.start + clip : THERE.stop - clip].all()  # the clips at its two ends show it in part
    assert not high[: THERE.start - clip].any()
    assert not high[THERE.stop + clip :].any()
    y, x = np.unravel_index(found.mask[130].argmax(), found.mask[130].shape)
    assert BAG["x"] <= 4 * x <= BAG["x"] + 24
    assert BAG["y"] <= 4 * y <= BAG["y"] + 24


def test_without_the_option_it_is_not_found_and_other_scores_are_the_same(
    detector: MotionDetector, empty_square: CameraModel
) -> None:
    plain = MotionDetector(MotionOptions(still=False))
    frames = film([bag(t) for t in range(FRAMES)])
    assert not plain.accepts(empty_square)
    assert scan(plain, frames, empty_square).score[100:160].max() < plain.thresholds.low
    run = street(96, seed=9, runner=range(40, 66))
    np.testing.assert_array_equal(scan(plain, run, empty_square).score, scan(detector, run, empty_square).score)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.4])
def test_a_still_thing_with_a_low_score_changes_no_score(
    detector: MotionDetector, empty_square: CameraModel, share: float
) -> None:
    faint = film([(1 - share) * texture(0) + share * bag(t) for t in range(FRAMES)])
    found, motion = (scan(one, faint, empty_square) for one in (detector, MotionDetector(MotionOptions(still=False))))
    for with_still, without in ((found.score, motion.score), (found.mask, motion.mask)):
        counts = with_still > without
        assert (with_still[counts] >= 0.3).all()
        np.testing.assert_array_equal(with_still[~counts], without[~counts])


UNMOVED: dict[str, Callable[[int], np.ndarray]] = {
    "something that stays for six seconds": lambda t: bag(t, range(100, 160)),
    "brighter light": lambda t: texture(0) * (1.0 if t < 90 else 1.4),
    "a light that is switched off": lambda t: texture(0) * (1.0 if t < 90 else 0.4),
    "a camera that is pushed by a few pixels": lambda t: np.roll(texture(0), 3 if t >= 90 else 0, axis=1),
    "another view": lambda t: texture(0 if t < 90 else 5),
    "noise": lambda t: texture(0) + np.random.default_rng(t).normal(0, 12, texture(0).shape),
}


@pytest.mark.parametrize("kind", UNMOVED)
def test_what_does_not_stay_is_not_found(detector: MotionDetector, empty_square: CameraModel, kind: str) -> None:
    found = scan(detector, film([UNMOVED[kind](t) for t in range(FRAMES)]), empty_square)
    steady = np.ones(FRAMES, dtype=bool)
    steady[84:100] = False  # what happens at that moment may be motion
    assert found.score[steady].max() < detector.thresholds.low


def test_people_who_walk_through_are_not_still(detector: MotionDetector) -> None:
    model = fit(detector, [street(64, seed=seed) for seed in range(1, 5)], start_s=3600.0)
    found, plain = (scan(one, street(128, seed=9), model) for one in (detector, MotionDetector()))
    assert found.score.max() < detector.thresholds.high
    np.testing.assert_allclose(found.score, plain.score)


@given(st.lists(st.tuples(st.floats(0.02, 3.0), st.floats(0, 4, width=32)), min_size=1, max_size=60), st.floats(0.1, 8.0))
def test_lasting_never_raises_and_keeps_what_lasts(steps: list[tuple[float, float]], still_s: float) -> None:
    timestamp = np.cumsum([step for step, _ in steps])
    values = np.array([value for _, value in steps], dtype=np.float32)
    opened = lasting(values, timestamp=timestamp, still_s=still_s, gap_s=1e9)
    assert (opened <= values).all()
    np.testing.assert_array_equal(lasting(opened, timestamp=timestamp, still_s=still_s, gap_s=1e9), opened)
    level = np.full_like(values, 2.0)
    whole = lasting(level, timestamp=timestamp, still_s=still_s, gap_s=1e9)
    assert (whole == (2.0 if timestamp[-1] - timestamp[0] >= still_s - 1e-6 else 0.0)).all()


def test_nothing_lasts_across_a_gap() -> None:
    timestamp = np.concatenate([np.arange(60), 600 + np.arange(60)]) / RATE_HZ
    assert not lasting(np.ones(120, dtype=np.float32), timestamp=timestamp, still_s=10.0, gap_s=1.0).any()
