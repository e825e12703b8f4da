"""Rank correlations of scores and severities: by hand, against scipy, and for resamples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from vadcli.metrics import Bootstrap
from vadcli.metrics.event import SeveritySet, severity_kendall, severity_spearman

FIGURES = {severity_spearman: spearmanr, severity_kendall: kendalltau}


def events(
    score: list[float], severity: list[float], video: list[int] | None = None, *, videos: int | None = None
) -> SeveritySet:
    places = np.array(range(len(score)) if video is None else video, np.int64)
    return SeveritySet(places, np.array(score), np.array(severity), len(score) if videos is None else videos)


def test_by_hand_with_a_tie_and_a_missing_value() -> None:
    """The ranks are 1, 2, 3, 4 and 1, 2.5, 2.5, 4.

    Of six pairs, five have the same order, and one has equal severities.
    """
    found = events([0.2, 0.4, 0.9, 0.6, 0.8], [1, 2, math.nan, 2, 3])
    assert severity_spearman(found).value == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    assert severity_kendall(found).value == pytest.approx(5 / math.sqrt(6 * 5))
    for figure in FIGURES:
        assert figure(found).note == "4 of 5 true events have a severity"
        assert figure(found).metric().videos == 4
        assert figure(events([0.1, 0.5, 0.9], [3, 2, 1])).value == pytest.approx(-1.0)


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize(
    ("score", "severity"), [([0.5], [1.0]), ([0.5, 0.5], [1.0, 2.0]), ([0.5, 0.6], [2.0, 2.0]), ([0.5, 0.6], [2.0, math.nan])]
)
def test_without_differences_it_is_undefined(figure, score: list[float], severity: list[float]) -> None:
    found = figure(events(score, severity)).metric(Bootstrap(replicates=10))
    assert found.value is None
    assert "different severities" in found.note


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=40), st.data())
def test_resamples_equal_repeated_events(rows: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """A resample that has a video twice has all events of the video twice."""
    video, score, severity = (np.array(column) for column in zip(*rows, strict=True))
    drawn = np.array(data.draw(st.lists(st.integers(0, 2), min_size=5, max_size=5)))
    times = drawn[video]
    x, y = np.repeat(score, times), np.repeat(severity, times)
    defined = len(np.unique(x)) > 1 and len(np.unique(y)) > 1
    found = events(score.tolist(), severity.tolist(), video.tolist(), videos=5)
    for figure, reference in FIGURES.items():
        (value,) = figure(found).statistic(drawn[None].astype(float))
        assert value == pytest.approx(reference(x, y).statistic, abs=1e-9) if defined else np.isnan(value)


def test_the_interval_draws_videos() -> None:
    draw = np.random.default_rng(0)
    severity = draw.integers(1, 5, 60).astype(float)
    found = events((severity + draw.normal(0, 1, 60)).tolist(), severity.tolist(), (np.arange(60) // 3).tolist(), videos=25)
    for figure in FIGURES:
        metric = figure(found).metric(Bootstrap(replicates=200))
        assert metric.ci_low is not None
        assert 0.3 < metric.ci_low < metric.value < metric.ci_high < 1
        assert figure(events([0.1, 0.2], [1, 2], [3, 3], videos=5)).metric(Bootstrap(replicates=20)).ci_low is None
