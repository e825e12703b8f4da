"""Gaussian means over real time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vadcli.detectors.calibration import segments, smooth
from vadcli.detectors.motion.features import steadying

SIGMA_S, GAP_S = 0.4, 1.0

steps = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(0.01, 3.0))


def smoothed(values: np.ndarray, timestamp: np.ndarray, usable: np.ndarray | None = None) -> np.ndarray:
    usable = np.ones(len(values), dtype=bool) if usable is None else usable
    return smooth(values.astype(np.float32), timestamp=timestamp, usable=usable, sigma_s=SIGMA_S, gap_s=GAP_S)


@given(steps, st.floats(-5, 5, width=32))
def test_a_constant_stays(step: np.ndarray, value: float) -> None:
    timestamp = np.cumsum(step)
    np.testing.assert_allclose(smoothed(np.full(len(step), value), timestamp), value, rtol=1e-5, atol=1e-6)


@given(steps, st.integers(0, 2**32 - 1))
def test_it_is_the_gaussian_mean_within_each_stretch(step: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    timestamp, values = np.cumsum(step), rng.random(len(step))
    usable = rng.random(len(step)) < 0.8
    part = segments(timestamp, GAP_S)
    found = smoothed(values, timestamp, usable)
    for row in range(len(step)):
        near = usable & (part == part[row]) & (np.abs(timestamp - timestamp[row]) <= 3 * SIGMA_S)
        if near.any():
            weight = np.exp(-0.5 * ((timestamp[near] - timestamp[row]) / SIGMA_S) ** 2)
            assert found[row] == pytest.approx((weight * values[near]).sum() / weight.sum(), rel=1e-4, abs=1e-5)


def test_nothing_crosses_a_gap() -> None:
    timestamp = np.concatenate([np.arange(10) * 0.1, 5 + np.arange(10) * 0.1])
    values = np.repeat([0.0, 1.0], 10)
    np.testing.assert_allclose(smoothed(values, timestamp), values, atol=1e-6)


def test_seconds_between_samples_are_no_gap_where_they_are_usual() -> None:
    assert segments(np.arange(5) * 10.0, GAP_S).tolist() == [0] * 5
    assert segments(np.array([0, 10, 20, 70, 80.0]), GAP_S).tolist() == [0, 0, 0, 1, 1]


def test_rows_out_of_reach_take_the_nearest_usable_value() -> None:
    usable = np.zeros(60, dtype=bool)
    usable[[5, 50]] = True
    values = np.where(np.arange(60) < 30, 2.0, 3.0)
    found = smoothed(values, np.arange(60) * 0.1, usable)
    assert found[20] == pytest.approx(2.0)
    assert found[35] == pytest.approx(3.0)
    assert smoothed(values, np.arange(60) * 0.1, np.zeros(60, dtype=bool)).tolist() == [0.0] * 60


@pytest.mark.parametrize("count", [0, 1])
def test_next_to_nothing(count: int) -> None:
    assert smoothed(np.ones(count), np.zeros(count)).tolist() == [1.0] * count


@given(steps, st.integers(0, 2**32 - 1))
def test_steadying_weights_are_means_within_a_shot(step: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    usable, shot = rng.random(len(step)) < 0.8, np.cumsum(rng.random(len(step)) < 0.2)
    weights = steadying(np.cumsum(step), usable=usable, shot=shot, sigma_s=0.1)
    total = weights.sum(axis=1)
    alive = np.array([(usable & (shot == one)).any() for one in shot])
    np.testing.assert_allclose(total[alive], 1.0, rtol=1e-5)
    assert (weights[~alive] == 0).all()
    assert (weights[:, ~usable] == 0).all()
    assert (weights[shot[:, None] != shot[None, :]] == 0).all()
