"""Event metrics: worked examples, comparison with a brute-force matching, and undefined cases."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadcli.metrics import Bootstrap
from vadcli.metrics.event import (
    IOU_LEVELS,
    EventSet,
    detection_recall,
    false_alarms_per_hour,
    match_events,
    onset_error,
    segment_f1,
)

ALL = {
    "f1": lambda events: segment_f1(events, iou=0.3),
    "onset": onset_error,
    "signed": lambda events: onset_error(events, signed=True),
    "alarms": false_alarms_per_hour,
    "recall": detection_recall,
}


def test_worked_by_hand():
    events = EventSet.of(
        predicted=[[(9, 20), (50, 51), (70, 90)], [(0, 5)], []],
        true=[[(10, 20), (60, 80)], [], [(3, 4)]],
        duration_s=[100, 260, 0],
    )
    # Two pairs have IoUs of 10 / 11 and 10 / 30. There are 4 predicted and 3 true events.
    for level in IOU_LEVELS:
        matched = 2 if level <= 0.3 else 1
        assert segment_f1(events, iou=level).value == pytest.approx(2 * matched / 7)
    assert onset_error(events).value == pytest.approx((1 + 10) / 2)
    assert onset_error(events, signed=True).value == pytest.approx((-1 + 10) / 2)
    assert onset_error(events, iou=0.5).value == pytest.approx(1.0)
    assert onset_error(events).note == "over the 2 of 3 true events that are matched"
    assert false_alarms_per_hour(events).value == pytest.approx(2 / 0.1)
    assert detection_recall(events).value == pytest.approx(2 / 3)


def test_most_pairs_come_before_the_best_pair():
    # A greedy matching by IoU would first pair predicted event 1 with true event 0, and leave true event 1 without a partner.
    predicted, true = np.array([[0, 10.0], [4, 14]]), np.array([[3.0, 13], [13, 15]])
    assert sorted(match_events(predicted, true, 0.05).tolist()) == [[0, 0], [1, 1]]
    predicted, true = np.array([[0.0, 10], [1, 11]]), np.array([[1.0, 11], [0, 10]])
    assert sorted(match_events(predicted, true, 0.1).tolist()) == [[0, 1], [1, 0]]


def spans():
    pair = st.tuples(st.integers(0, 30), st.integers(0, 12)).map(lambda p: (p[0] / 2, (p[0] + p[1]) / 2))
    return st.lists(pair, max_size=5)


def iou_of(a, b):
    shared = min(a[1], b[1]) - max(a[0], b[0])
    union = (a[1] - a[0]) + (b[1] - b[0]) - shared
    return shared / union if shared > 0 else -1.0


def best_by_brute_force(predicted, true, level):
    """Return the number of pairs and the sum of IoUs of the best matching, found among all matchings."""
    best = (0, 0.0)
    few, many = sorted((predicted, true), key=len)
    for chosen in permutations(many, len(few)):
        ious = [iou for iou in map(iou_of, few, chosen) if iou >= level - 1e-9]
        best = max(best, (len(ious), round(sum(ious), 9)))
    return best


@settings(max_examples=200)
@given(predicted=spans(), true=spans(), level=st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_the_matching_is_as_good_as_by_brute_force(predicted, true, level):
    events = EventSet.of([predicted], [true], [60])
    pairs = match_events(events.predicted[0], events.true[0], level)
    assert len(set(pairs[:, 0].tolist())) == len(set(pairs[:, 1].tolist())) == len(pairs)
    ious = [iou_of(predicted[a], true[b]) for a, b in pairs.tolist()]
    assert all(iou >= level - 1e-9 for iou in ious)
    assert (len(pairs), pytest.approx(sum(ious), abs=1e-6)) == best_by_brute_force(predicted, true, level)
    touched = [any(iou_of(p, t) > 0 for t in true) for p in predicted]
    assert false_alarms_per_hour(events).value == pytest.approx(60 * touched.count(False))


@settings(max_examples=100)
@given(
    videos=st.lists(st.tuples(spans(), spans()), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_neither_order_nor_concatenation_of_videos_changes_figures(videos, seed):
    rng = np.random.default_rng(seed)
    predicted, true = [list(p) for p, _ in videos], [list(t) for _, t in videos]
    order = rng.permutation(len(videos))
    turned = EventSet.of(
        [rng.permutation(predicted[i]) for i in order], [rng.permutation(true[i]) for i in order], [40] * len(videos)
    )
    glued = EventSet.of(
        [[(a + 40 * v, b + 40 * v) for v, part in enumerate(predicted) for a, b in part]],
        [[(a + 40 * v, b + 40 * v) for v, part in enumerate(true) for a, b in part]],
        [40 * len(videos)],
    )
    for name, metric in ALL.items():
        value = metric(EventSet.of(predicted, true, [40] * len(videos))).value
        if name == "signed" or name == "onset":  # among matchings of equal IoUs the pairs may differ
            assert (metric(turned).value is None) == (metric(glued).value is None) == (value is None)
            continue
        assert metric(turned).value == pytest.approx(value, abs=1e-9), name
        assert metric(glued).value == pytest.approx(value, abs=1e-9), name


def test_the_truth_is_perfect():
    true = [[(1, 2), (5.5, 9)], [], [(0, 0.04)]]
    events = EventSet.of(true, true, [10, 10, 10])
    assert {name: metric(events).value for name, metric in ALL.items()} == {
        "f1": 1.0, "onset": 0.0, "signed": 0.0, "alarms": 0.0, "recall": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "predicted", "true", "duration_s", "says"),
    [
        ("f1", [], [], 10, "a true or a predicted event"),
        ("onset", [], [], 10, "matched"),
        ("onset", [(0, 1)], [(5, 6)], 10, "matched"),
        ("signed", [(0, 1)], [], 10, "matched"),
        ("alarms", [(0, 1)], [], 0, "videos with a duration"),
        ("recall", [(0, 1)], [], 10, "a true event"),
    ],
)
def test_undefined_is_none_with_its_reason(name, predicted, true, duration_s, says):
    found = ALL[name](EventSet.of([predicted], [true], [duration_s])).metric(Bootstrap(10))
    assert found.value is None
    assert says in found.note


def test_no_video_at_all():
    for metric in ALL.values():
        assert metric(EventSet.of([], [], [])).metric(Bootstrap(10)).value is None


def test_only_predicted_or_only_true_events_give_zero():
    assert segment_f1(EventSet.of([[(0, 1)]], [[]], [9]), iou=0.1).value == 0.0
    assert segment_f1(EventSet.of([[]], [[(0, 1)]], [9]), iou=0.1).value == 0.0


def test_adjacent_events_and_events_without_duration_do_not_overlap():
    events = EventSet.of([[(1, 2), (4, 4)]], [[(1.9999999, 3), (3.5, 5)]], [3600])
    assert false_alarms_per_hour(events).value == 2.0
    assert detection_recall(events).value == 0.0


def test_the_interval_contains_the_figure():
    rng = np.random.default_rng(0)
    true = [[(a, a + 3) for a in range(0, 40, 10)] for _ in range(8)]
    predicted = [[(a + rng.normal(), a + 3 + rng.random()) for a, _ in part] for part in true]
    found = segment_f1(EventSet.of(predicted, true, [50] * 8), iou=0.5).metric(Bootstrap(200))
    assert found.ci_low < found.value < found.ci_high
    assert found.videos == 8


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="1, 2 and 1"):
        EventSet.of([[]], [[], []], [1])
    with pytest.raises(ValueError, match="video 1: an event ends before"):
        EventSet.of([[], []], [[], [(2, 1)]], [1, 1])
    with pytest.raises(ValueError, match="seconds"):
        EventSet.of([[1, 2, 3]], [[]], [1])
    for metric in (segment_f1, onset_error):
        with pytest.raises(ValueError, match="IoU"):
            metric(EventSet.of([[]], [[]], [1]), iou=0.0)
