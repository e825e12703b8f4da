"""RBDC and TBDC: worked examples, and comparison with a loop over all thresholds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadcli.metrics import Bootstrap
from vadcli.metrics.localization import DetectedRegions, Tracks, mask_regions, rbdc, tbdc

BOX = (10, 10, 10, 10)
FAR = (100, 100, 10, 10)


def detected(*rows):
    """Return regions from rows (video, frame, box, score)."""
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    box = np.array(columns[2], float).reshape(-1, 4)
    return DetectedRegions(np.array(columns[0], np.int64), np.array(columns[1], np.int64), box, np.array(columns[3], float))


def tracked(*rows):
    """Return tracks from rows (video, frame, box, track)."""
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    box = np.array(columns[2], float).reshape(-1, 4)
    return Tracks(np.array(columns[0], np.int64), np.array(columns[1], np.int64), box, np.array(columns[3], np.int64))


def test_all_found_and_nothing_false_is_one():
    # As in the example data of the published evaluator, a second region that overlaps the object enough is not false.
    truth = tracked(*[(0, frame, BOX, 0) for frame in range(5)])
    found = detected(*[(0, frame, BOX, 0.5) for frame in range(5)], (0, 3, (5, 5, 12, 12), 0.1))
    assert rbdc(found, truth, np.array([10])).value == 1.0
    assert tbdc(found, truth, np.array([10])).value == 1.0


def test_worked_by_hand():
    # Track 0 has 2 regions, and track 1 has 20.
    truth = tracked((0, 0, BOX, 0), (0, 1, BOX, 0), *[(0, frame, FAR, 1) for frame in range(20)])
    found = detected(
        (0, 0, BOX, 0.9),  # 1 of 22 regions; half of track 0, so track 0 is found
        (0, 0, (50, 50, 9, 9), 0.8),  # 1 false region in 40 frames
        (0, 3, FAR, 0.7),  # 2 of 22 regions; 1 of 20 is less than a tenth of track 1
        (0, 30, FAR, 0.6),  # false, because frame 30 has no true region
        (0, 4, FAR, 0.5),  # 3 of 22 regions; 2 of 20 is a tenth, so track 1 is found
    )
    frames = np.array([40])
    # The curve is at 1/22 and at 2/22 for a width of 1/40 each, and then at 3/22 up to one false region per frame.
    assert rbdc(found, truth, frames).value == pytest.approx((1 / 22 + 2 / 22) / 40 + 3 / 22 * 38 / 40)
    assert tbdc(found, truth, frames).value == pytest.approx((1 / 2 + 1 / 2) / 40 + 1.0 * 38 / 40)
    assert tbdc(found, truth, frames, alpha=0.11).value == pytest.approx(1 / 2)


def test_the_area_ends_at_one_false_region_per_frame():
    truth = tracked((0, 0, BOX, 0), (0, 1, BOX, 1))
    found = detected((0, 0, BOX, 0.9), (0, 0, FAR, 0.8), (0, 1, FAR, 0.7), (0, 1, (200, 0, 5, 5), 0.6), (0, 1, BOX, 0.5))
    assert rbdc(found, truth, np.array([2])).value == pytest.approx(0.5)


def test_regions_of_equal_score_are_added_together():
    truth, frames = tracked((0, 0, BOX, 0)), np.array([1])
    both = [(0, 0, BOX, 0.5), (0, 0, FAR, 0.5)]
    assert rbdc(detected(*both), truth, frames).value == rbdc(detected(*both[::-1]), truth, frames).value == 0.5


def test_a_region_is_found_at_an_iou_of_beta():
    # Two boxes of 10 x 10, shifted by s columns, have the IoU (10 - s) / (10 + s): 1 / 9 for s = 8, and 1 / 19 for s = 9.
    truth, frames = tracked((0, 0, (0, 0, 10, 10), 0)), np.array([5])
    assert rbdc(detected((0, 0, (8, 0, 10, 10), 0.5)), truth, frames).value == 1.0
    assert rbdc(detected((0, 0, (9, 0, 10, 10), 0.5)), truth, frames).value == 0.0
    assert rbdc(detected((0, 0, (9, 0, 10, 10), 0.5)), truth, frames, beta=0.05).value == 1.0
    assert rbdc(detected((1, 0, (0, 0, 10, 10), 0.5)), truth, np.array([5, 5])).value == 0.0


def slow(found, truth, frames, alpha=0.1, beta=0.1):
    """Return (RBDC, TBDC) from a loop over every threshold and every pair."""

    def iou(a, b):
        w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
        h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
        shared = max(w, 0) * max(h, 0)
        return shared / (a[2] * a[3] + b[2] * b[3] - shared)

    def same(d, t):
        return found.video[d] == truth.video[t] and found.frame[d] == truth.frame[t]

    def hits(d, t):
        return same(d, t) and iou(found.box[d], truth.box[t]) >= beta

    names = list(zip(truth.video.tolist(), truth.track.tolist(), strict=True))
    x, regions, tracks = [0.0], [0.0], [0.0]
    for threshold in sorted(set(found.score.tolist()), reverse=True):
        kept = [d for d in range(len(found.score)) if found.score[d] >= threshold]
        seen = [any(hits(d, t) for d in kept) for t in range(len(names))]
        false = sum(not any(hits(d, t) for t in range(len(names))) for d in kept)
        shares = [np.mean([s for s, n in zip(seen, names, strict=True) if n == name]) for name in set(names)]
        x.append(false / frames.sum())
        regions.append(np.mean(seen))
        tracks.append(np.mean([share >= alpha - 1e-9 for share in shares]))
    keep = [i for i, value in enumerate(x) if value <= 1]
    x = [x[i] for i in keep] + [1.0]

    def area(y):
        y = [y[i] for i in keep] + [y[keep[-1]]]
        return sum((b - a) * (p + q) / 2 for a, b, p, q in zip(x[:-1], x[1:], y[:-1], y[1:], strict=True))

    return area(regions), area(tracks)


def some_regions(seed, videos=3):
    rng = np.random.default_rng(seed)

    def rows(count):
        box = np.stack(
            [rng.integers(0, 12, count), rng.integers(0, 12, count), rng.integers(3, 9, count), rng.integers(3, 9, count)], 1
        )
        return rng.integers(0, videos, count), rng.integers(0, 4, count), box.astype(float)

    found = DetectedRegions(*rows(40), np.round(rng.random(40), 1))
    truth = Tracks(*rows(25), rng.integers(0, 3, 25))
    return found, truth, rng.integers(4, 7, videos)


@settings(max_examples=40)
@given(seed=st.integers(0, 9999), alpha=st.sampled_from([0.1, 0.5, 1.0]), beta=st.sampled_from([0.1, 0.3]))
def test_against_one_threshold_after_another(seed, alpha, beta):
    found, truth, frames = some_regions(seed)
    regions, tracks = slow(found, truth, frames, alpha, beta)
    assert rbdc(found, truth, frames, beta=beta).value == pytest.approx(regions, abs=1e-9)
    assert tbdc(found, truth, frames, alpha=alpha, beta=beta).value == pytest.approx(tracks, abs=1e-9)


@settings(max_examples=40)
@given(seed=st.integers(0, 9999))
def test_order_and_scale_change_nothing(seed):
    found, truth, frames = some_regions(seed)
    order = np.random.default_rng(seed).permutation(len(found.score))
    turned = DetectedRegions(found.video[order], found.frame[order], found.box[order], np.exp(found.score[order]) + 5)
    swap = np.array([2, 0, 1])
    renamed = DetectedRegions(swap[found.video], found.frame, found.box, found.score)
    renamed_truth = Tracks(swap[truth.video], truth.frame, truth.box, truth.track)
    for metric in (rbdc, tbdc):
        value = metric(found, truth, frames).value
        assert metric(turned, truth, frames).value == pytest.approx(value, abs=1e-12)
        assert metric(renamed, renamed_truth, frames[np.argsort(swap)]).value == pytest.approx(value, abs=1e-12)


def test_a_resample_equals_the_figure_of_the_drawn_videos():
    found, truth, frames = some_regions(3)
    bootstrap = Bootstrap(replicates=30)
    for metric in (rbdc, tbdc):
        estimate = metric(found, truth, frames)
        for drawn, figure in zip(
            next(bootstrap.weights(3)).astype(int), estimate.statistic(next(bootstrap.weights(3))), strict=True
        ):
            chosen = np.repeat(np.arange(3), drawn)
            parts = [(found.video == v, truth.video == v) for v in chosen]
            again = DetectedRegions(
                np.concatenate([np.full(d.sum(), i) for i, (d, _) in enumerate(parts)]),
                *(np.concatenate([getattr(found, name)[d] for d, _ in parts]) for name in ("frame", "box", "score")),
            )
            true = Tracks(
                np.concatenate([np.full(t.sum(), i) for i, (_, t) in enumerate(parts)]),
                *(np.concatenate([getattr(truth, name)[t] for _, t in parts]) for name in ("frame", "box", "track")),
            )
            assert figure == pytest.approx(metric(again, true, frames[chosen]).value, abs=1e-9)


@pytest.mark.parametrize(("metric", "says"), [(rbdc, "RBDC needs"), (tbdc, "TBDC needs")])
def test_undefined_is_none_with_its_reason(metric, says):
    something = detected((0, 0, BOX, 0.5))
    for truth, frames in ((tracked(), [5]), (tracked((0, 0, BOX, 0)), [0])):
        found = metric(something, truth, np.array(frames)).metric(Bootstrap(10))
        assert found.value is None
        assert says in found.note
    assert metric(detected(), tracked((0, 0, BOX, 0)), np.array([5])).value == 0.0


def test_resamples_without_truth_are_left_out():
    found = rbdc(detected((0, 0, BOX, 0.5)), tracked((0, 0, BOX, 0)), np.array([5, 5])).metric(Bootstrap(50))
    assert "resamples" in found.note
    assert (found.ci_low, found.ci_high) == (1.0, 1.0)


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"alpha": 1.1}])
def test_bad_shares_are_refused(options):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        tbdc(detected(), tracked(), np.array([1]), **options)


def test_bad_regions_are_refused():
    with pytest.raises(ValueError, match="width"):
        detected((0, 0, (1, 1, 0, 4), 0.5))
    with pytest.raises(ValueError, match="scores"):
        detected((0, 0, BOX, np.nan))
    with pytest.raises(ValueError, match="boxes"):
        DetectedRegions(np.zeros(2, np.int64), np.zeros(2, np.int64), np.ones((1, 4)), np.zeros(2))
    with pytest.raises(ValueError, match="track numbers"):
        Tracks(np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones((1, 4)), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="video 1, but there are only 1 videos"):
        rbdc(detected((1, 0, BOX, 0.5)), tracked((0, 0, BOX, 0)), np.array([1]))


def test_regions_of_a_mask():
    mask = np.zeros((8, 9), np.uint8)
    mask[1:3, 2:5] = 128
    mask[3, 5] = 255  # touches the first region at a corner
    mask[6, 0] = 200
    mask[0, 8] = 127  # just below 0.5
    boxes, scores = mask_regions(mask)
    assert boxes.tolist() == [[2, 1, 4, 3], [0, 6, 1, 1]]
    assert scores.tolist() == [1.0, 200 / 255]
    boxes, scores = mask_regions(np.zeros((3, 3), np.uint8), at=0.0)
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)
