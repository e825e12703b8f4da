"""Events are compared with a slow and simple reference, and must have certain properties."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadcli.cutting import (
    TIME_TOLERANCE_S,
    EventBoxes,
    categorised,
    cut_events,
    event_rows,
    inherit_categories,
    with_categories,
)
from vadcli.types import Event, ScoreTable, Thresholds


def table_of(scores, timestamp=None, sampled=None):
    score = np.asarray(scores, np.float32)
    n = len(score)
    timestamp = np.arange(n) / 10.0 if timestamp is None else np.asarray(timestamp, np.float64)
    sampled = np.ones(n, bool) if sampled is None else np.asarray(sampled)
    clipped = np.clip(score.astype(np.float64), 1e-6, 1 - 1e-6)
    logit = np.log(clipped / (1 - clipped)).astype(np.float32)
    pts = np.arange(n, dtype=np.int64) * 9000
    return ScoreTable("v.mp4", np.arange(n), pts, timestamp, score, logit, sampled, np.ones(n, bool))


PLAIN = Thresholds(high=0.5, low=0.4, min_duration_s=0.0, merge_gap_s=0.0, pad_s=0.0)


def spans(events):
    return [(event.start_frame, event.end_frame) for event in events]


@st.composite
def cases(draw):
    n = draw(st.integers(1, 60))
    interval = draw(st.integers(1, 4))
    levels = draw(st.lists(st.sampled_from([0.0, 0.2, 0.3, 0.45, 0.5, 0.6, 0.9, 1.0]), min_size=n, max_size=n))
    held = [levels[row - row % interval] for row in range(n)]
    steps_ms = draw(st.lists(st.integers(1, 400), min_size=n, max_size=n))
    ends = np.cumsum(steps_ms) / 1000
    timestamp = np.append(0.0, ends[:-1])
    low, high = sorted(draw(st.tuples(*[st.sampled_from([0.0, 0.2, 0.45, 0.5, 0.9, 1.0])] * 2)))
    seconds = st.sampled_from([0.0, 0.04, 0.1, 0.25, 0.5, 1.0, 3.0])
    thresholds = Thresholds(high=high, low=low, min_duration_s=draw(seconds), merge_gap_s=draw(seconds), pad_s=draw(seconds))
    return table_of(held, timestamp, np.arange(n) % interval == 0), thresholds, float(ends[-1])


def reference(table, thresholds, duration_s):
    """Return the events according to their definition, row by row."""
    score, start = table.score, list(table.timestamp)
    end = [*start[1:], duration_s]
    low, high = np.float32(thresholds.low), np.float32(thresholds.high)
    found = []
    for row in range(len(score)):
        if score[row] >= high and not any(a <= row < b for a, b in found):
            first = last = row
            while first > 0 and score[first - 1] >= low:
                first -= 1
            while last + 1 < len(score) and score[last + 1] >= low:
                last += 1
            found.append((first, last + 1))
    merged = []
    for a, b in found:
        if merged and start[a] - end[merged[-1][1] - 1] <= thresholds.merge_gap_s + TIME_TOLERANCE_S:
            merged[-1] = (merged[-1][0], b)
        else:
            merged.append((a, b))
    kept = [(a, b) for a, b in merged if end[b - 1] - start[a] >= thresholds.min_duration_s - TIME_TOLERANCE_S]
    if not thresholds.pad_s:
        return kept
    padded = []
    for a, b in kept:
        left, right = start[a] - thresholds.pad_s + TIME_TOLERANCE_S, end[b - 1] + thresholds.pad_s - TIME_TOLERANCE_S
        rows = [row for row in range(len(score)) if a <= row < b or (end[row] > left and start[row] < right)]
        if padded and rows[0] <= padded[-1][1]:
            padded[-1] = (padded[-1][0], rows[-1] + 1)
        else:
            padded.append((rows[0], rows[-1] + 1))
    return padded


@settings(max_examples=400)
@given(cases())
def test_events_equal_the_definition(case):
    table, thresholds, duration_s = case
    events = cut_events(table, thresholds, duration_s=duration_s)
    assert spans(events) == reference(table, thresholds, duration_s)


@settings(max_examples=200)
@given(cases())
def test_events_are_in_order_inside_the_video_and_described_by_their_rows(case):
    table, thresholds, duration_s = case
    end_frame = 0
    for number, event in enumerate(cut_events(table, thresholds, duration_s=duration_s), 1):
        rows = table.score[event.start_frame : event.end_frame]
        assert event.id == number
        assert end_frame <= event.start_frame < event.end_frame <= len(table)
        assert event.start_s == table.timestamp[event.start_frame]
        after = table.timestamp[event.end_frame] if event.end_frame < len(table) else duration_s
        assert event.end_s == after
        assert event.peak_score == rows.max() >= np.float32(thresholds.high)
        assert event.peak_frame == event.start_frame + int(np.flatnonzero(rows == rows.max())[0])
        assert event.peak_s == table.timestamp[event.peak_frame]
        assert event.mean_score == pytest.approx(rows.mean(dtype=np.float64))
        assert event.mean_score <= event.peak_score
        end_frame = event.end_frame


@settings(max_examples=200)
@given(cases())
def test_every_high_row_is_in_an_event_unless_that_was_dropped_as_short(case):
    table, thresholds, duration_s = case
    kept = replace(thresholds, min_duration_s=0.0)
    inside = event_rows(cut_events(table, kept, duration_s=duration_s), len(table))
    assert inside[table.score >= np.float32(thresholds.high)].all()


@settings(max_examples=200)
@given(cases())
def test_cutting_the_events_themselves_gives_the_same_events(case):
    table, thresholds, duration_s = case
    events = cut_events(table, thresholds, duration_s=duration_s)
    again = table_of(event_rows(events, len(table)).astype(np.float32), table.timestamp)
    assert spans(cut_events(again, PLAIN, duration_s=duration_s)) == spans(events)
    assert cut_events(table, thresholds, duration_s=duration_s) == events


def test_an_event_reaches_back_and_forward_over_rows_at_low():
    events = cut_events(table_of([0, 0.4, 0.45, 0.5, 0.4, 0.39, 0.4]), PLAIN, duration_s=0.7)
    assert spans(events) == [(1, 5)]


def test_a_threshold_means_the_stored_score_of_the_same_name():
    thresholds = replace(PLAIN, high=0.9, low=0.7)
    assert spans(cut_events(table_of([0.1, 0.7, 0.9, 0.7, 0.1]), thresholds, duration_s=0.5)) == [(1, 4)]


def test_a_gap_of_exactly_the_merge_gap_merges_in_spite_of_binary_fractions():
    scores = [1, *[0] * 10, 1]
    timestamp = 2 * 0.04 + np.arange(12) * 0.1
    assert timestamp[11] - timestamp[1] > 1.0
    assert spans(cut_events(table_of(scores, timestamp), replace(PLAIN, merge_gap_s=1.0), duration_s=2)) == [(0, 12)]


def test_padded_events_stay_inside_the_video_and_merge_where_they_touch():
    scores = [0, 1, 0, 0, 0, 0, 1, 0, 0, 0]
    assert spans(cut_events(table_of(scores), replace(PLAIN, pad_s=0.2), duration_s=1.0)) == [(0, 9)]
    assert spans(cut_events(table_of(scores), replace(PLAIN, pad_s=0.1), duration_s=1.0)) == [(0, 3), (5, 8)]


def test_no_rows_and_no_high_rows_make_no_events():
    assert cut_events(table_of([]), PLAIN, duration_s=0.0) == []
    assert (
        cut_events(table_of([0.49] * 5), PLAIN, duration_s=0.5, boxes=EventBoxes(np.arange(5), np.ones((5, 4), np.int32))) == []
    )


def test_the_last_row_lasts_until_the_video_ends_and_never_less_than_nothing():
    assert cut_events(table_of([0, 1]), PLAIN, duration_s=0.75)[0].end_s == 0.75
    assert cut_events(table_of([0, 1]), PLAIN, duration_s=0.05)[0].end_s == pytest.approx(0.1)


def test_the_box_of_an_event_is_around_all_its_samples_masks():
    table = table_of([0, 1, 1, 1, 0, 0, 0, 1], sampled=[True, False] * 4)
    rows = np.array([0, 2, 4, 6])
    boxes = np.array([[50, 50, 10, 10], [10, 20, 5, 5], [0, 0, 0, 0], [0, 0, 0, 0]], np.int32)
    first, second = cut_events(table, PLAIN, duration_s=0.8, boxes=EventBoxes(rows, boxes))
    assert first.bbox == (10, 20, 50, 40), "row 1 belongs to the sample of row 0"
    assert second.bbox is None, "the mask of its sample is empty"


@settings(max_examples=200)
@given(cases(), st.data())
def test_boxes_equal_a_search_over_all_samples(case, data):
    table, thresholds, duration_s = case
    rows = np.flatnonzero(table.sampled)
    side = st.integers(0, 30)
    boxes = np.array([data.draw(st.tuples(side, side, side, st.integers(1, 9))) for _ in rows], np.int32).reshape(-1, 4)
    lasts = [*rows[1:], len(table) + 1000]
    for event in cut_events(table, thresholds, duration_s=duration_s, boxes=EventBoxes(rows, boxes)):
        seen = [
            box
            for row, last, box in zip(rows, lasts, boxes.tolist(), strict=True)
            if box[2] and row < event.end_frame and last > event.start_frame
        ]
        if not seen:
            assert event.bbox is None
            continue
        left, top = min(box[0] for box in seen), min(box[1] for box in seen)
        right, bottom = max(box[0] + box[2] for box in seen), max(box[1] + box[3] for box in seen)
        assert event.bbox == (left, top, right - left, bottom - top)


def test_boxes_without_a_row_each_are_refused():
    with pytest.raises(ValueError, match="2 rows need"):
        EventBoxes(np.arange(2), np.zeros((3, 4), np.int32))
    with pytest.raises(ValueError, match="ascend"):
        EventBoxes(np.array([3, 3]), np.zeros((2, 4), np.int32))


def an_event(number, start, end, category=None):
    scores = {category: 0.9} if category else {}
    return Event(number, start, end, start / 10, end / 10, start, start / 10, 0.9, 0.8, category, scores)


def test_a_category_comes_from_the_old_event_that_overlaps_most():
    old = [an_event(1, 0, 10, "fight"), an_event(2, 12, 20, "fire"), an_event(3, 40, 50, "fall")]
    new = [an_event(1, 8, 18), an_event(2, 20, 40, "stale"), an_event(3, 45, 100)]
    inherited = inherit_categories(new, old)
    assert [event.category for event in inherited] == ["fire", None, "fall"]
    assert [event.category_scores for event in inherited] == [{"fire": 0.9}, {}, {"fall": 0.9}]
    assert spans(inherited) == spans(new)
    assert [event.category for event in inherit_categories(new, [])] == [None] * 3


def test_categories_come_from_the_scores_of_the_sampled_frames():
    sampled = np.arange(8) % 2 == 0
    own = np.float32([[0.1, 0.2], [0.1, 0.2], [0.3, 0.7], [0.3, 0.7], [0.8, 0.1], [0.8, 0.1], [0.0, 0.6], [0.0, 0.6]])
    table = replace(table_of([0.6] * 8, sampled=sampled), category_names=("fight", "fire"), category_scores=own)
    events = [an_event(1, 0, 4), an_event(2, 3, 6), an_event(3, 7, 8)]
    found = categorised(events, table)
    assert [event.category for event in found] == ["fire", "fight", "fire"]
    assert [event.category_scores for event in found] == [
        {"fight": 0.3, "fire": 0.7},
        {"fight": 0.8, "fire": 0.1},  # row 3 repeats the scores of row 2, and row 2 is not in the event
        {"fight": 0.0, "fire": 0.6},
    ]
    assert with_categories(events, table, [an_event(1, 0, 8, "fall")]) == found
    plain = table_of([0.6] * 8)
    assert categorised(events, plain) == events
    assert with_categories(events, plain, [an_event(1, 0, 8, "fall")])[0].category == "fall"


def test_of_equal_overlaps_the_earlier_one_counts():
    old = [an_event(1, 0, 10, "fight"), an_event(2, 10, 20, "fire")]
    assert inherit_categories([an_event(1, 5, 15)], old)[0].category == "fight"
