"""Sanity checks of metrics: random scores, the truth as scores, and a shift by one frame."""

import numpy as np
import pytest

from vadcli.cutting import cut_events
from vadcli.metrics import Bootstrap
from vadcli.metrics.event import EventSet, detection_recall, false_alarms_per_hour, onset_error, segment_f1
from vadcli.metrics.frame import FrameSet, frame_ap, frame_ap_macro, frame_auc, frame_auc_macro, pate
from vadcli.metrics.localization import PixelAccumulator, pixel_ap, pixel_auc
from vadcli.types import ScoreTable, Thresholds

PLAIN = Thresholds(high=0.5, low=0.5, merge_gap_s=0.0)


def scores_and_labels(videos=40, frames=200, seed=0):
    """Return scores that follow the labels of each video."""
    rng = np.random.default_rng(seed)
    labels = [np.zeros(frames, bool) for _ in range(videos)]
    for part in labels[: videos * 3 // 4]:
        start = rng.integers(0, frames - 40)
        part[start : start + rng.integers(5, 40)] = True
    return [np.clip(0.3 + 0.3 * part + 0.1 * rng.normal(size=frames), 0, 1) for part in labels], labels


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_labels_give_a_half_within_the_interval(seed):
    scores, labels = scores_and_labels(seed=seed)
    rng = np.random.default_rng(seed)
    # Labels are shuffled across videos. If they were shuffled within each video, videos with anomalies would still score
    # higher.
    shuffled = np.split(rng.permutation(np.concatenate(labels)), len(labels))
    for metric in (frame_auc, frame_auc_macro):
        found = metric(FrameSet.of(scores, shuffled)).metric(Bootstrap(400, confidence=0.99))
        assert found.ci_low < 0.5 < found.ci_high
        honest = metric(FrameSet.of(scores, labels)).metric(Bootstrap(400, confidence=0.99))
        assert honest.ci_low > 0.9
    prevalence = np.mean(labels)
    assert frame_ap(FrameSet.of(scores, shuffled)).value == pytest.approx(prevalence, rel=0.3)


def test_shuffled_pixels_give_a_half_within_the_interval():
    rng = np.random.default_rng(0)
    accumulator = PixelAccumulator()
    for video in range(12):
        masks = rng.integers(0, 256, (4, 20, 20), np.uint8)
        accumulator.add(str(video), masks, rng.random(masks.shape) < 0.1)
    found = pixel_auc(accumulator.counts()).metric(Bootstrap(300, confidence=0.99))
    assert found.ci_low < 0.5 < found.ci_high
    assert pixel_ap(accumulator.counts()).value == pytest.approx(0.1, abs=0.01)


def test_the_truth_as_scores_is_perfect():
    _, labels = scores_and_labels(videos=8)
    frames = FrameSet.of([part.astype(np.float32) for part in labels], labels)
    for metric in (frame_auc, frame_ap, frame_auc_macro, frame_ap_macro):
        found = metric(frames).metric(Bootstrap(50))
        assert (found.value, found.ci_low, found.ci_high) == (1.0, 1.0, 1.0)
    no_buffers = pate(frames, early_frames=[0], late_frames=[0])
    prevalence = np.mean(labels)
    # The recall is 1 at the highest threshold. The lowest threshold, with alarms in all frames, adds no area.
    assert no_buffers.value == pytest.approx(1.0)
    assert prevalence < 0.5


def events_of(score, fps=25.0):
    score = np.asarray(score, np.float32)
    rows = np.arange(len(score))
    table = ScoreTable("v", rows, rows, rows / fps, score, score, np.ones(len(rows), bool), np.ones(len(rows), bool))
    return [(event.start_s, event.end_s) for event in cut_events(table, PLAIN, duration_s=len(rows) / fps)]


def test_figures_of_a_shift_by_one_frame():
    # 100 frames at 25 per second. Rows 25 to 49 (1.00 s to 2.00 s) and row 80 (3.20 s to 3.24 s) are abnormal.
    labels = np.zeros(100, bool)
    labels[25:50] = labels[80] = True
    exact, late = labels.astype(np.float32), np.roll(labels, 1).astype(np.float32)
    true = [events_of(exact)]
    on_time, shifted = EventSet.of([events_of(exact)], true, [4.0]), EventSet.of([events_of(late)], true, [4.0])

    assert segment_f1(on_time, iou=0.5).value == 1.0
    assert onset_error(on_time).value == 0.0
    assert false_alarms_per_hour(on_time).value == 0.0

    # The late long event has an IoU of 0.96 s / 1.04 s = 12 / 13. The late short event does not overlap the true event.
    assert segment_f1(shifted, iou=0.5).value == 0.5
    assert segment_f1(shifted, iou=12 / 13).value == 0.5
    assert segment_f1(shifted, iou=0.93).value == 0.0
    assert onset_error(shifted).value == pytest.approx(0.04)
    assert onset_error(shifted, signed=True).value == pytest.approx(0.04)
    assert false_alarms_per_hour(shifted).value == pytest.approx(3600 / 4)
    assert detection_recall(shifted).value == 0.5

    # 24 of 26 abnormal frames and 2 of 74 normal frames have the high score. With two levels of scores, the AUC is the mean of
    # the two shares of correct frames.
    assert frame_auc(FrameSet.of([late], [labels])).value == pytest.approx((24 / 26 + 72 / 74) / 2)


def test_one_frame_early_has_the_other_sign():
    labels = np.zeros(50, bool)
    labels[10:20] = True
    early = EventSet.of([events_of(np.roll(labels, -1))], [events_of(labels)], [2.0])
    assert onset_error(early, signed=True).value == pytest.approx(-0.04)
    assert onset_error(early).value == pytest.approx(0.04)
    assert false_alarms_per_hour(early).value == 0.0
