"""Folds, thresholds and false alarms of the comparison, by hand and by property."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadcli.errors import UsageError
from vadcli.learning import MOST_FOLDS, auc, compare, false_alarms, folds, threshold_at


@given(st.data())
def test_folds_never_share_a_video_and_cover_everything(data: st.DataObject) -> None:
    videos = data.draw(st.lists(st.integers(0, 15), min_size=2, max_size=80))
    positive = np.array(data.draw(st.lists(st.booleans(), min_size=len(videos), max_size=len(videos))))
    names = [f"video {number}" for number in videos]
    try:
        found = folds(names, positive, seed=data.draw(st.integers(0, 5)))
    except UsageError:
        one_sided = [not 0 < positive[np.array(names) != name].sum() < (np.array(names) != name).sum() for name in set(names)]
        assert any(one_sided) or len(set(names)) > MOST_FOLDS
        return
    assert sorted(np.concatenate(found).tolist()) == list(range(len(videos)))
    sets = [{names[row] for row in rows} for rows in found]
    assert len(sets) == min(MOST_FOLDS, len(set(names)))
    for place, one in enumerate(sets):
        assert not any(one & other for other in sets[place + 1 :])
    for rows in found:
        rest = np.delete(positive, rows)
        assert rest.any()
        assert not rest.all()


@pytest.mark.parametrize("abnormal", [2, 7, 11, 19, 20, 21, 39])
def test_normal_videos_are_in_several_folds_whatever_the_number_of_abnormal_ones(abnormal: int) -> None:
    """With 19 abnormal videos and ten folds, one fold has one of them less than the others."""
    positive = np.arange(abnormal + 12) < abnormal
    found = folds([f"video {number}" for number in range(len(positive))], positive, seed=0)
    assert sum((~positive[rows]).any() for rows in found) >= 6
    assert sum(positive[rows].any() for rows in found) == min(MOST_FOLDS, abnormal)


def test_thresholds_keep_the_share() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    positive = np.array([True, False, True, True, True])
    assert threshold_at(scores, positive, 1.0) == 0.5
    assert threshold_at(scores, positive, 0.75) == 0.6
    assert threshold_at(scores, positive, 0.5) == 0.7


def test_false_alarms_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.6, 0.5])
    positive = np.array([True, False, True, False, True, False])
    weights = np.array([[1.0] * 6, [1, 3, 1, 1, 0, 1], [0, 1, 0, 1, 1, 2]])
    assert false_alarms(scores, positive, weights, 1.0).tolist() == [2.0, 3.0, 2.0]  # the two 0.6 go together
    assert false_alarms(scores, positive, weights, 0.5).tolist() == [1.0, 0.0, 2.0]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([float(score) for score, _ in rows])
    positive = np.array([label for _, label in rows])
    if positive.all() or not positive.any():
        return
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert auc(scores, positive) == pytest.approx(np.mean(pairs))


def test_a_perfect_head_is_better_and_an_equal_one_is_not() -> None:
    draw = np.random.default_rng(0)
    positive = np.arange(60) % 5 == 0
    groups = [f"video {number // 10}" for number in range(60)]
    detector = draw.random(60)
    settings = {"hours": 2.0, "recall": 0.95, "seed": 0}
    better = compare(positive + 0.1 * detector, detector, positive, groups, **settings)
    assert better.is_better
    assert (better.head_per_hour, better.head_auc) == (0.0, 1.0)
    assert better.change_per_hour == -better.detector_per_hour
    assert better.low <= better.change_per_hour <= better.high
    same = compare(detector, detector, positive, groups, **settings)
    assert (same.change_per_hour, same.low, same.high, same.is_better) == (0.0, 0.0, 0.0, False)
