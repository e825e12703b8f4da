"""Intervals: comparison with a simple resampling, and the notes of figures without an interval."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from vadcli.metrics import Bootstrap, Metric, difference
from vadcli.metrics.event import EventSet, segment_f1
from vadcli.metrics.frame import FrameSet, frame_ap, frame_auc, frame_auc_macro


def some_videos(seed=0, videos=9, strength=1.0, levels=None, frames=60):
    rng = np.random.default_rng(seed)
    labels = [rng.random(frames) < share for share in rng.uniform(0.05, 0.5, videos)]
    scores = [rng.normal(size=frames) + strength * part for part in labels]
    if levels:
        scores = [np.round(np.clip((part + 3) / 7, 0, 1) * levels) / levels for part in scores]
    return scores, labels


def by_hand(theirs, scores, labels, bootstrap):
    """Return the interval from resamples that are made one by one, by concatenating the drawn videos."""
    figures = []
    for chunk in bootstrap.weights(len(scores)):
        for drawn in chunk.astype(int):
            chosen = np.repeat(np.arange(len(scores)), drawn)
            figures.append(theirs(np.concatenate([labels[i] for i in chosen]), np.concatenate([scores[i] for i in chosen])))
    return np.array(figures)


@pytest.mark.parametrize(("ours", "theirs"), [(frame_auc, roc_auc_score), (frame_ap, average_precision_score)])
def test_few_distinct_scores_are_resampled_exactly(ours, theirs):
    scores, labels = some_videos(levels=50)
    bootstrap = Bootstrap(replicates=130, seed=4)
    figures = by_hand(theirs, scores, labels, bootstrap)
    metric = ours(FrameSet.of(scores, labels)).metric(bootstrap)
    assert metric.value == pytest.approx(theirs(np.concatenate(labels), np.concatenate(scores)), abs=1e-9)
    assert [metric.ci_low, metric.ci_high] == pytest.approx(np.quantile(figures, [0.025, 0.975]).tolist(), abs=1e-9)
    assert metric.videos == 9


@pytest.mark.parametrize(("ours", "theirs"), [(frame_auc, roc_auc_score), (frame_ap, average_precision_score)])
def test_bins_hardly_change_resamples_of_many_distinct_scores(ours, theirs):
    scores, labels = some_videos(frames=3000, videos=6)
    bootstrap = Bootstrap(replicates=40)
    figures = by_hand(theirs, scores, labels, bootstrap)
    estimate = ours(FrameSet.of(scores, labels))
    binned = np.concatenate([estimate.statistic(weights) for weights in bootstrap.weights(6)])
    assert np.abs(binned - figures).max() < 2 / 4096
    assert np.abs(binned - figures).max() > 0


def test_end_points_are_in_every_resample():
    scores, labels = some_videos(levels=20)
    bootstrap = Bootstrap(replicates=30)
    figures = by_hand(lambda y, s: roc_auc_score(np.append(y, [0, 1]), np.append(s, [0, 1])), scores, labels, bootstrap)
    estimate = frame_auc(FrameSet.of(scores, labels), endpoints=True)
    assert np.concatenate([estimate.statistic(w) for w in bootstrap.weights(9)]) == pytest.approx(figures, abs=1e-9)


def test_only_the_same_seed_gives_the_same_interval():
    frames = FrameSet.of(*some_videos())
    first, again, other = (frame_auc(frames).metric(Bootstrap(200, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first.ci_low != other.ci_low
    wide = frame_auc(frames).metric(Bootstrap(200, confidence=0.99, seed=1))
    assert wide.ci_low < first.ci_low < first.value < first.ci_high < wide.ci_high


def test_paired_differences_have_narrower_intervals_than_unpaired_runs():
    scores, labels = some_videos(videos=20, strength=1.0)
    rng = np.random.default_rng(5)
    better = [part + 0.3 * truth + 0.05 * rng.normal(size=len(part)) for part, truth in zip(scores, labels, strict=True)]
    first, second = frame_auc(FrameSet.of(better, labels)), frame_auc(FrameSet.of(scores, labels))
    bootstrap = Bootstrap(300)
    found = difference(first, second, bootstrap)
    assert found.value == pytest.approx(first.value - second.value)
    assert 0 < found.ci_low < found.value < found.ci_high
    alone = first.metric(bootstrap)
    assert found.ci_high - found.ci_low < alone.ci_high - alone.ci_low
    nothing = difference(first, first, bootstrap)
    assert (nothing.value, nothing.ci_low, nothing.ci_high) == (0.0, 0.0, 0.0)


def test_undefined_and_refused_differences():
    scores, labels = some_videos(videos=3)
    three, two = FrameSet.of(scores, labels), FrameSet.of(scores[:2], labels[:2])
    with pytest.raises(ValueError, match="3 and 2"):
        difference(frame_auc(three), frame_auc(two), Bootstrap())
    normal = FrameSet.of(scores, [np.zeros_like(part) for part in labels])
    found = difference(frame_auc(three), frame_auc(normal), Bootstrap())
    assert found.value is None
    assert "both classes" in found.note
    one = FrameSet.of(scores[:1], labels[:1])
    assert "two videos" in difference(frame_auc(one), frame_auc(one), Bootstrap()).note


def test_one_video_has_no_interval():
    found = frame_auc(FrameSet.of([[0.1, 0.9]], [[0, 1]])).metric(Bootstrap())
    assert (found.value, found.ci_low) == (1.0, None)
    assert "two videos" in found.note


def test_resamples_without_a_class_are_left_out_and_counted():
    frames = FrameSet.of([[0.1, 0.9], [0.2], [0.3]], [[0, 1], [0], [0]])
    bootstrap = Bootstrap(replicates=500)
    lost = sum(int((weights[:, 0] == 0).sum()) for weights in bootstrap.weights(3))
    assert 0 < lost < 500
    found = frame_auc(frames).metric(bootstrap)
    assert f"undefined in {lost} of 500 resamples" in found.note
    assert (found.ci_low, found.ci_high) == (1.0, 1.0)


def test_no_interval_if_the_figure_is_undefined_in_every_resample():
    events = EventSet.of([[], [(0, 1)]], [[], []], [9, 9])
    none = segment_f1(events, iou=0.5).metric(Bootstrap(replicates=1, seed=seed_that_draws_the_first_twice()))
    assert (none.value, none.ci_low) == (0.0, None)
    assert "undefined in every resample" in none.note


def seed_that_draws_the_first_twice():
    return next(seed for seed in range(99) if next(Bootstrap(1, seed=seed).weights(2)).tolist() == [[2.0, 0.0]])


def test_macro_intervals_use_the_videos_with_a_defined_figure():
    scores, labels = some_videos(videos=5)
    labels[2][:] = False
    found = frame_auc_macro(FrameSet.of(scores, labels)).metric(Bootstrap(200))
    assert found.videos == 4
    assert found.ci_low < found.value < found.ci_high


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"value": None}, "note"),
        ({"value": float("nan")}, "finite"),
        ({"value": 1.0, "ci_low": 0.5}, "two ends"),
        ({"value": 1.0, "ci_low": 0.6, "ci_high": 0.5}, "above"),
    ],
)
def test_a_metric_refuses_inconsistent_fields(arguments, says):
    with pytest.raises(ValueError, match=says):
        Metric(**arguments)


def test_a_metric_as_json():
    assert Metric(0.5, 0.4, 0.6, 3, "so").to_json() == {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "videos": 3, "note": "so"}


@pytest.mark.parametrize("arguments", [{"replicates": 0}, {"confidence": 1.0}, {"confidence": 0.0}])
def test_bad_bootstraps_are_refused(arguments):
    with pytest.raises(ValueError):
        Bootstrap(**arguments)
