"""From values to alarms an hour."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadcli.detectors.calibration import (
    CALIBRATION,
    MOMENT_S,
    REFERENCE,
    FittedTime,
    Tail,
    fit_tail,
    logit_of,
    usual_level,
)
from vadcli.types import sigmoid

HOURS = FittedTime(sampled_s=100.0, spanned_s=36_000.0)
SECONDS = FittedTime(sampled_s=10.0, spanned_s=10.0)
tails = st.builds(Tail, active=st.floats(0.01, 1.0), usual=st.floats(0.1, 10.0), scale=st.floats(0.01, 5.0))


def normal_footage(seed: int, size: int = 1000, *, spread: float = 0.25) -> np.ndarray:
    return 1.0 + np.random.default_rng(seed).exponential(spread, size).astype(np.float32)


@given(tails, st.lists(st.floats(0, 100, width=32), min_size=2, max_size=20))
def test_a_higher_value_is_never_less_surprising(tail: Tail, values: list[float]) -> None:
    log_rarity = tail.log_rarity(np.sort(np.array(values, dtype=np.float32)))
    assert np.isfinite(log_rarity).all()
    assert (np.diff(log_rarity) >= -1e-4).all()


@given(tails)
def test_the_value_of_one_an_hour_scores_one_half(tail: Tail) -> None:
    moments_an_hour = 3600.0 / MOMENT_S
    # active x 0.75 x exp(-(value - usual) / scale) = 1 / moments an hour, solved for the value
    value = tail.usual + tail.scale * np.log(0.75 * tail.active * moments_an_hour)
    logit = logit_of(tail.log_rarity(np.array([value], dtype=np.float32)))
    assert sigmoid(logit)[0] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("an_hour", [0.1, 1.0, 10.0, 60.0])
def test_logits_read_as_the_published_calibration_says(an_hour: float) -> None:
    """`Calibration.score_at`, which turns --alarms-per-hour into a threshold, is the inverse of what finish does."""
    log_rarity = np.log(3600.0 / MOMENT_S / an_hour)
    assert sigmoid(logit_of(np.array([log_rarity], dtype=np.float32)))[0] == pytest.approx(
        CALIBRATION.score_at(an_hour), abs=1e-5
    )


@given(st.floats(0.2, 0.6))
def test_a_fitted_tail_tells_how_often_long_footage_of_that_kind_is_so_high(spread: float) -> None:
    tail = fit_tail(normal_footage(1, spread=spread), footage=HOURS)
    fresh = normal_footage(2, 20_000, spread=spread)
    value = 1.0 + spread * np.log(100)  # a hundredth of the footage is as high
    expected = float(np.exp(-tail.log_rarity(np.array([value], dtype=np.float32))[0]))
    assert 0.2 < expected / np.mean(fresh >= value) < 5.0


def test_an_incident_in_the_sample_moves_the_tail_little() -> None:
    calm = normal_footage(1)
    with_fight = np.concatenate([calm[:930], np.full(70, 8.0, dtype=np.float32)])
    fight = np.array([8.0], dtype=np.float32)
    without, spoiled = (fit_tail(values, footage=HOURS).log_rarity(fight)[0] for values in (calm, with_fight))
    assert spoiled > 0.5 * without
    assert sigmoid(logit_of(np.array([spoiled])))[0] > 0.9


def test_alarms_are_not_fixed_by_construction() -> None:
    """A camera with a fight in it gets alarms, a quiet one of the same kind none."""
    calm = normal_footage(1)
    eventful = np.concatenate([calm[:950], np.full(50, 6.0, dtype=np.float32)])
    alarms = [int((sigmoid(logit_of(fit_tail(v, footage=HOURS).log_rarity(v))) >= 0.5).sum()) for v in (calm, eventful)]
    assert alarms[0] <= 5
    assert alarms[1] >= 50


def test_with_seconds_of_footage_the_reference_decides() -> None:
    wild = normal_footage(3, 100, spread=2.0)
    short, long = fit_tail(wild, footage=SECONDS), fit_tail(wild, footage=HOURS)
    from_reference = [abs(np.log(tail.scale / tail.usual / REFERENCE.scale)) for tail in (short, long)]
    assert from_reference[0] < 0.3 * from_reference[1]
    assert long.scale > 1.8 * short.scale


def test_a_silent_camera_keeps_the_reference_and_makes_faint_things_no_alarm() -> None:
    silent = np.full(1000, 0.05, dtype=np.float32)
    tail = fit_tail(silent, footage=HOURS)
    assert (tail.usual, tail.scale) == (REFERENCE.usual, REFERENCE.scale)
    assert sigmoid(logit_of(tail.log_rarity(np.array([0.5], dtype=np.float32))))[0] < 0.3
    busy = fit_tail(normal_footage(1), footage=HOURS)
    passing = np.array([2.0], dtype=np.float32)
    assert tail.log_rarity(passing)[0] > busy.log_rarity(passing)[0]


def test_steady_values_do_not_make_a_hair_trigger() -> None:
    """Values that hardly vary leave a scale that a little more doesn't overturn."""
    tail = fit_tail(np.full(1000, 1.0, dtype=np.float32), footage=HOURS)
    assert sigmoid(logit_of(tail.log_rarity(np.array([1.3], dtype=np.float32))))[0] < 0.3


def test_no_values_at_all() -> None:
    empty = np.zeros(0, dtype=np.float32)
    assert fit_tail(empty, footage=FittedTime(0.0, 0.0)) == REFERENCE
    assert usual_level(empty, footage=FittedTime(0.0, 0.0), reference=6.0, floor=1.0, prior=3.0) == 6.0


@given(st.floats(0.01, 100.0), st.floats(0.0, 1e5))
def test_a_level_lies_between_the_reference_and_the_cameras_own(own: float, seconds: float) -> None:
    values, footage = np.full(50, own, dtype=np.float32), FittedTime(seconds, seconds)
    level = usual_level(values, footage=footage, reference=6.0, floor=1.0, prior=3.0)
    assert min(own, 6.0) * 0.999 <= level <= max(own, 6.0) * 1.001
    assert level >= 1.0 * 0.999 or own > 1.0


@given(tails)
def test_a_tail_survives_json(tail: Tail) -> None:
    assert Tail.from_json(tail.to_json()) == tail


def test_footage_spread_over_hours_is_trusted_more_but_not_without_end() -> None:
    def trust(sampled_s: float, spanned_s: float) -> float:
        return FittedTime(sampled_s, spanned_s).trust(1.0, 300.0)

    assert trust(100, 100) < trust(100, 500) < trust(100, 1000) == trust(100, 1e6)
