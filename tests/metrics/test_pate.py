"""PATE: examples computed by hand, values of its authors' package, and undefined cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadcli.metrics import Bootstrap
from vadcli.metrics.frame import FrameSet, pate


def wave(frames, seed):
    """Return numbers that look random, without a random generator."""
    return (np.arange(frames) * (seed * 37 + 11) % 101) / 101


def case(frames, spans, seed):
    labels = np.zeros(frames, bool)
    for start, end in spans:
        labels[start:end] = True
    return FrameSet.of([np.round(0.6 * wave(frames, seed) + 0.4 * labels * wave(frames, seed + 3), 4)], [labels])


# What PATE 0.1.1, the package of the paper's authors, gives with e_buffer and d_buffer of 100 and 100 (its default), of 5 and
# 9, and of 20 and 20 with every threshold (Big_Data and drop_intermediate False).
PUBLISHED = [
    (120, [(40, 60)], 1, 0.7020033724066567, 0.6122877415801277, 0.636345909098774),
    (400, [(30, 50), (70, 75), (300, 399)], 2, 0.7552754937855255, 0.6920576584915434, 0.7076730186578747),
    (90, [(0, 10), (85, 90)], 3, 0.7065337106559849, 0.5122456594342695, 0.5639726528281356),
    (200, [(50, 60), (63, 70), (71, 90)], 5, 0.6964711846644122, 0.6011500757542423, 0.6147124220381635),
]


@pytest.mark.parametrize(("frames", "spans", "seed", "default", "short", "every_threshold"), PUBLISHED)
def test_the_figures_of_the_authors_package(frames, spans, seed, default, short, every_threshold):
    series = case(frames, spans, seed)
    assert pate(series).value == pytest.approx(default, abs=1e-9)
    assert pate(series, early_frames=(0, 5), late_frames=(0, 9)).value == pytest.approx(short, abs=1e-9)
    exact = pate(series, early_frames=(0, 20), late_frames=(0, 20), max_thresholds=None)
    assert exact.value == pytest.approx(every_threshold, abs=1e-9)


def test_the_example_of_the_packages_page():
    assert pate(FrameSet.of([[0.1, 0.8, 0.1, 0.9, 0.2]], [[0, 1, 0, 1, 0]])).value == 1.0


def test_buffers_worked_by_hand():
    # The middle of the anomaly is 2.5, and its buffers end at rows 0 and 5. So alarms at rows 1 and 4 are true with weight 0.4.
    # Threshold 1: 3 alarms have the true weight 1.8, and 1 frame is missed. Threshold 0: 7 alarms have 2.8, none is missed.
    series = FrameSet.of([[0.0, 1, 1, 0, 1, 0, 0]], [[0, 0, 1, 1, 0, 0, 0]])
    area = 1.8 / 2.8 * (1 + 0.6) / 2 + 1 / 2.8 * (0.6 + 0.4) / 2
    assert pate(series, early_frames=[2], late_frames=[2], max_thresholds=None).value == pytest.approx(area)


def test_missed_frames_worked_by_hand():
    # One frame of five is hit. The missed frames have the weights 1, 0.7, 0.5 and 0.3.
    series = FrameSet.of([[1.0, 0, 0, 0, 0, 0]], [[1, 1, 1, 1, 1, 0]])
    recall = 1 / (1 + 2.5)
    area = recall * 1 + (1 - recall) * (1 + 5 / 6) / 2
    assert pate(series, early_frames=[0], late_frames=[0], max_thresholds=None).value == pytest.approx(area)


def test_an_alarm_before_an_anomaly_that_is_not_hit_is_false():
    early, never = FrameSet.of([[0, 1.0, 0, 0, 0]], [[0, 0, 1, 1, 0]]), FrameSet.of([[1.0, 0, 0, 0, 0]], [[0, 0, 1, 1, 0]])
    options = {"late_frames": [0], "max_thresholds": None}
    assert pate(early, early_frames=[2], **options).value == pytest.approx(pate(never, early_frames=[2], **options).value)
    late = FrameSet.of([[0, 0, 0, 0, 1.0, 0]], [[0, 0, 1, 1, 0, 0]])
    assert (
        pate(late, early_frames=[0], late_frames=[2], max_thresholds=None).value > pate(late, early_frames=[0], **options).value
    )


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(1, 25), min_size=1, max_size=4), seed=st.integers(0, 9999))
def test_buffers_and_anomalies_end_with_their_video(lengths, seed):
    rng = np.random.default_rng(seed)
    scores = [rng.integers(0, 6, n) / 5 for n in lengths] + [np.array([0.4, 0.6])]
    labels = [rng.random(n) < 0.4 for n in lengths] + [np.array([True, False])]
    options = {"early_frames": (0, 4), "late_frames": (0, 6), "max_thresholds": None}
    once = pate(FrameSet.of(scores, labels), **options)
    # In one series with 50 low-scoring frames between the parts, the parts cannot influence one another.
    gap = np.full(50, -1.0)
    wide = [np.concatenate([gap, part, gap]) for part in scores]
    truth = [np.concatenate([gap > 0, part, gap > 0]) for part in labels]
    glued = FrameSet.of([np.concatenate(wide)], [np.concatenate(truth)])
    assert pate(FrameSet.of(wide, truth), **options).value == pytest.approx(pate(glued, **options).value, abs=1e-12)
    twice = pate(FrameSet.of(scores * 2, labels * 2), **options)
    assert twice.value == pytest.approx(once.value, abs=1e-12)
    order = rng.permutation(len(scores))
    turned = FrameSet.of([2 * scores[i] + 1 for i in order], [labels[i] for i in order])
    assert pate(turned, **options).value == pytest.approx(once.value, abs=1e-12)


def test_an_anomaly_ends_at_the_border_of_a_video():
    scores, labels = [0.5, 0.9, 0.2, 0.2, 0.3, 0.3, 0.3, 0.1], [0, 1, 1, 1, 1, 1, 1, 0]
    apart, one = FrameSet.of([scores[:4], scores[4:]], [labels[:4], labels[4:]]), FrameSet.of([scores], [labels])
    options = {"early_frames": [3], "late_frames": [3], "max_thresholds": None}
    assert abs(pate(apart, **options).value - pate(one, **options).value) > 0.01


def test_a_resample_equals_the_figure_of_the_drawn_videos():
    parts = [case(60, [(seed * 5, seed * 5 + 12)], seed) for seed in range(1, 6)]
    scores, labels = [part.scores for part in parts], [part.labels for part in parts]
    options = {"early_frames": (0, 8), "late_frames": (0, 8), "max_thresholds": None}
    estimate, bootstrap = pate(FrameSet.of(scores, labels), **options), Bootstrap(replicates=20)
    for drawn, figure in zip(
        next(bootstrap.weights(5)).astype(int), estimate.statistic(next(bootstrap.weights(5))), strict=True
    ):
        chosen = np.repeat(np.arange(5), drawn)
        again = FrameSet.of([scores[i] for i in chosen], [labels[i] for i in chosen])
        assert figure == pytest.approx(
            pate(again, **options).value, abs=0.02
        )  # not exact, because the drawn videos alone have fewer thresholds
    metric = estimate.metric(bootstrap)
    assert metric.ci_low < metric.value < metric.ci_high


@pytest.mark.parametrize("labels", [[0, 0], []])
def test_undefined_is_none_with_its_reason(labels):
    found = pate(FrameSet.of([np.zeros(len(labels))], [labels])).metric(Bootstrap(10))
    assert found.value is None
    assert "abnormal frame" in found.note


def test_resamples_without_an_anomaly_are_left_out():
    found = pate(FrameSet.of([[0.1, 0.9], [0.2, 0.1]], [[0, 1], [0, 0]])).metric(Bootstrap(50))
    assert "resamples" in found.note


@pytest.mark.parametrize("options", [{"early_frames": [-1]}, {"late_frames": []}, {"max_thresholds": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError):
        pate(FrameSet.of([[0.1]], [[1]]), **options)
