"""Thresholds from reviewed events, and events without those reviewed as false."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadcli.metrics.event import threshold_choices, without_false
from vadcli.types import ReviewedEvent, Verdict


def event(peak: float, verdict: str, start: float = 0.0, end: float = 1.0) -> ReviewedEvent:
    return ReviewedEvent("a.mp4", start, end, peak, Verdict(verdict))


def test_each_choice_by_hand() -> None:
    reviewed = [event(0.5, "false"), event(0.6, "true"), event(0.7, "false"), event(0.8, "true"), event(0.9, "unsure")]
    choices = threshold_choices(reviewed, [0.5, 0.6, 0.7, 0.8, 0.9, 0.95], hours=2.0)
    assert [(c.threshold, c.true, c.false, c.precision, c.kept, c.alarms_per_hour) for c in choices] == [
        (0.5, 2, 2, 0.5, 1.0, 3.0),
        (0.6, 2, 1, 2 / 3, 1.0, 2.5),
        (0.8, 1, 0, 1.0, 0.5, 1.5),
    ]
    # Jeffreys' interval of 2 of 4, from published tables.
    assert (choices[0].low, choices[0].high) == (pytest.approx(0.1227, abs=1e-3), pytest.approx(0.8773, abs=1e-3))
    assert choices[-1].high == 1.0


def test_only_unsure_reviews_give_no_choice() -> None:
    assert threshold_choices([event(0.9, "unsure")], [0.9], hours=1.0) == []


def test_no_hours_of_video_are_refused() -> None:
    with pytest.raises(ValueError, match="for 0 hours of video"):
        threshold_choices([event(0.9, "true")], [0.9], hours=0.0)


VERDICTS = st.lists(st.tuples(st.integers(0, 100), st.sampled_from(["true", "false", "unsure"])), max_size=40)


@given(VERDICTS)
def test_choices_rise_in_precision_and_never_in_kept_events(given_: list[tuple[int, str]]) -> None:
    reviewed = [event(peak / 100, verdict) for peak, verdict in given_]
    choices = threshold_choices(reviewed, [one.peak_score for one in reviewed], hours=1.0)
    for lower, higher in itertools.pairwise(choices):
        assert lower.threshold < higher.threshold
        assert lower.precision < higher.precision
        assert lower.kept >= higher.kept
        assert lower.alarms_per_hour >= higher.alarms_per_hour
    for choice in choices:
        assert choice.low <= choice.precision <= choice.high


def test_false_events_are_left_out_even_if_their_ends_have_changed() -> None:
    reviewed = [event(0.9, "false", 10, 20), event(0.9, "true", 30, 40), event(0.9, "unsure", 50, 60)]
    assert without_false([(10, 20), (30, 40), (50, 60)], reviewed) == [1, 2]
    assert without_false([(11, 20), (12, 18), (16, 30), (0, 5)], reviewed) == [2, 3]
    assert without_false([(10, 20)], []) == [0]
