"""Annotations: the rows that each kind marks, and the error if the video has another length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ground_truth.tables import table, true_rows
from vadcli.errors import DocumentError
from vadcli.ground_truth import Span, video_truth
from vadcli.ground_truth.annotation import FrameIntervals, FrameLabels, TimeInterval, TimeIntervals, fill, runs


def truth_of(annotation):
    return video_truth("a.mp4", Path("truth.txt"), annotation)


@pytest.mark.parametrize(
    ("rows", "apart"), [(9, "one frame apart"), (11, "one frame apart"), (4, "6 frames apart"), (0, "10 frames")]
)
@pytest.mark.parametrize("annotation", [FrameLabels(np.arange(10) > 6), FrameIntervals((Span(0, 2),), frames=10)])
def test_another_length_is_an_error_that_names_both_lengths(annotation, rows, apart):
    with pytest.raises(DocumentError) as caught:
        truth_of(annotation).labels(table("scored/a.mp4", rows))
    assert "a.mp4 in truth.txt: the annotation has 10 frames, but scored/a.mp4 has scores for" in caught.value.message
    assert f"for {rows}: " in caught.value.message
    assert apart in caught.value.message
    assert caught.value.hint


def test_frame_labels_are_their_own_spans():
    truth = truth_of(FrameLabels(np.array([1, 0, 1, 1, 0, 0, 1], np.bool_)))
    scored = table("a.mp4", 7)
    assert [(span.start_frame, span.end_frame) for span in truth.spans(scored)] == [(0, 1), (2, 4), (6, 7)]
    assert true_rows(truth.labels(scored)) == [0, 2, 3, 6]


def test_overlapping_intervals_stay_separate_spans():
    truth = truth_of(FrameIntervals((Span(4, 8, "b"), Span(2, 6, "a"))))
    assert truth.spans(table("a.mp4", 10)) == (Span(2, 6, "a"), Span(4, 8, "b"))
    assert true_rows(truth.labels(table("a.mp4", 10))) == [2, 3, 4, 5, 6, 7]


def test_an_interval_that_ends_after_the_video_is_an_error():
    with pytest.raises(DocumentError, match=r"ends at frame 11 .*scores for 10 frames"):
        truth_of(FrameIntervals((Span(5, 11),))).labels(table("a.mp4", 10))


def test_a_small_overhang_is_cut_and_counted():
    truth = truth_of(FrameIntervals((Span(5, 12),), slack_frames=3))
    scored = table("a.mp4", 10)
    assert truth.spans(scored) == (Span(5, 10),)
    assert truth.overhang_frames(scored) == 2
    assert truth.overhang_frames(table("a.mp4", 12)) == 0
    with pytest.raises(DocumentError):
        truth.spans(table("a.mp4", 8))


def test_an_interval_completely_after_the_end_is_always_an_error():
    with pytest.raises(DocumentError):
        truth_of(FrameIntervals((Span(10, 12),), slack_frames=3)).spans(table("a.mp4", 10))


def test_the_start_is_inside_and_the_end_is_outside():
    truth = truth_of(TimeIntervals((TimeInterval(0.08, 0.16, "run"),)))
    assert truth.spans(table("a.mp4", 10)) == (Span(2, 4, "run"),)


@pytest.mark.parametrize(("times", "rows"), [([0, 0.5 + 9e-7, 1], [1]), ([0, 0.5 - 9e-7, 1], [1]), ([0, 0.6, 1 - 9e-7], [1])])
def test_times_have_a_tolerance_of_a_microsecond(times, rows):
    truth = truth_of(TimeIntervals((TimeInterval(0.5, 1.0),)))
    assert true_rows(truth.labels(table("a.mp4", times=times))) == rows


def test_with_a_variable_frame_rate_only_times_count():
    truth = truth_of(TimeIntervals((TimeInterval(1.0, 2.0),)))
    assert true_rows(truth.labels(table("a.mp4", times=[0.0, 0.9, 1.0, 1.01, 1.99, 2.0, 5.0]))) == [2, 3, 4]


def test_an_end_may_be_rounded_up_to_a_second_but_not_further():
    scored = table("a.mp4", 30)  # 1.2 s
    assert true_rows(truth_of(TimeIntervals((TimeInterval(1.0, 2.0),))).labels(scored)) == [25, 26, 27, 28, 29]
    with pytest.raises(DocumentError, match=r"ends at 2.5 s, but a.mp4 has scores up to 1.2 s"):
        truth_of(TimeIntervals((TimeInterval(1.0, 2.5),))).labels(scored)


def test_an_interval_without_a_frame_is_an_error():
    with pytest.raises(DocumentError, match=r"a.mp4 has no frame between"):
        truth_of(TimeIntervals((TimeInterval(0.041, 0.079),))).labels(table("a.mp4", 10))


def test_a_normal_video_of_any_length_has_no_label():
    for annotation in (FrameIntervals(()), TimeIntervals(())):
        assert truth_of(annotation).is_normal
        assert truth_of(annotation).frames is None
        assert truth_of(annotation).labels(table("a.mp4", 3)).tolist() == [False] * 3
        assert truth_of(annotation).labels(table("a.mp4", 0)).shape == (0,)


@given(st.lists(st.booleans(), max_size=40))
def test_fill_is_the_inverse_of_runs(flags):
    labels = np.array(flags, np.bool_)
    spans = [Span(int(start), int(end)) for start, end in runs(labels)]
    assert fill(spans, len(labels)).tolist() == flags
