"""Pixel metrics compared with scikit-learn and with a slow, simple AUPRO."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, jaccard_score, roc_auc_score

from benchmarks.pimo import at, made_up
from vadcli.metrics import Bootstrap
from vadcli.metrics.localization import PixelAccumulator, aupimo, aupro, mask_iou, pixel_ap, pixel_auc


def some_masks(seed, frames=6, shape=(13, 17)):
    rng = np.random.default_rng(seed)
    truth = np.zeros((frames, *shape), bool)
    for frame in range(0, frames, 2):
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(0, shape[0] - 3), rng.integers(0, shape[1] - 3)
            truth[frame, y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] = True
    scores = np.clip(rng.normal(90, 40, truth.shape) + 60 * truth, 0, 255).astype(np.uint8)
    return scores, truth


def counted(*videos, **options):
    accumulator = PixelAccumulator(**options)
    for number, (scores, truth) in enumerate(videos):
        accumulator.add(f"v{number}", scores, truth)
    return accumulator.counts()


def slow_aupro(scores, truth, limit):
    labelled = [ndimage.label(frame, np.ones((3, 3)))[0] for frame in truth]
    x, y = [0.0], [0.0]
    for threshold in np.unique(scores)[::-1]:
        found = scores >= threshold
        shares = [found[f][regions == r].mean() for f, regions in enumerate(labelled) for r in range(1, regions.max() + 1)]
        x.append(found[~truth].mean())
        y.append(np.mean(shares))
    x, y = np.array(x), np.array(y)
    inside = x < limit
    x, y = np.append(x[inside], limit), np.append(y[inside], np.interp(limit, x, y))
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / limit)


@pytest.mark.parametrize("seed", range(5))
def test_bytes_agree_with_scikit_learn_to_a_billionth(seed):
    (a, at), (b, bt) = some_masks(seed), some_masks(seed + 100, frames=3)
    counts = counted((a, at), (b, bt))
    scores, truth = np.append(a, b), np.append(at, bt)
    assert counts.exact
    assert pixel_auc(counts).value == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    assert pixel_ap(counts).value == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
    assert pixel_auc(counts).note == ""
    ious = [jaccard_score(t.ravel(), s.ravel() >= 128) for s, t in zip([*a, *b], [*at, *bt], strict=True) if t.any()]
    assert mask_iou(counts).value == pytest.approx(np.mean(ious), abs=1e-9)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_aupro_against_thresholds_one_by_one(seed, limit):
    scores, truth = some_masks(seed)
    assert aupro(counted((scores, truth)), limit=limit).value == pytest.approx(slow_aupro(scores, truth, limit), abs=1e-9)


def test_aupro_worked_by_hand():
    # Two regions have 1 and 3 pixels. At threshold 200, the first region and a third of the second region are found, and 1 of 8
    # normal pixels.
    truth = np.zeros((3, 4), bool)
    truth[0, 0] = truth[2, 1:4] = True
    scores = np.zeros((3, 4), np.uint8)
    scores[0, 0] = scores[2, 1] = scores[0, 3] = 200
    first = (0 + 2 / 3) / 2 * 0.125
    at_limit = 2 / 3 + (1 - 2 / 3) * (0.3 - 0.125) / 0.875
    assert aupro(counted((scores, truth))).value == pytest.approx((first + (2 / 3 + at_limit) / 2 * 0.175) / 0.3)


def test_regions_that_meet_at_a_corner_are_one():
    truth = np.eye(2, dtype=bool)
    assert counted((np.zeros((2, 2), np.uint8), truth)).regions.tolist() == [1]


def test_floats_fall_into_the_stated_bins():
    rng = np.random.default_rng(0)
    truth = rng.random((4, 20, 20)) < 0.1
    scores = np.clip(rng.random(truth.shape) * 0.8 + 0.2 * truth, 0, 1)
    fine, coarse = counted((scores, truth), bins=65536), counted((scores, truth), bins=256)
    exact = roc_auc_score(truth.ravel(), scores.ravel())
    assert pixel_auc(fine).value == pytest.approx(exact, abs=1e-4)
    assert pixel_auc(fine).note == "by 65536 bins"
    binned = np.minimum((scores * 256).astype(int), 255)
    assert pixel_auc(coarse).value == pytest.approx(roc_auc_score(truth.ravel(), binned.ravel()), abs=1e-9)


def test_the_truth_as_scores_is_perfect():
    _, truth = some_masks(3)
    counts = counted((truth.astype(np.uint8) * 255, truth))
    assert [figure(counts).value for figure in (pixel_auc, pixel_ap, mask_iou, aupro)] == pytest.approx([1.0] * 4)


@settings(max_examples=25)
@given(seed=st.integers(0, 999))
def test_neither_frame_by_frame_nor_the_order_of_videos_changes_counts(seed):
    (a, at), (b, bt) = some_masks(seed), some_masks(seed + 1, frames=2)
    whole = counted((a, at), (b, bt))
    accumulator = PixelAccumulator()
    for video, scores, truth in (("second", b, bt), ("first", a, at)):
        for frame, mask in zip(scores, truth, strict=True):
            accumulator.add(video, frame, mask.astype(np.uint8) * 255)
    pieces = accumulator.counts()
    assert pieces.names == ("second", "first")
    assert np.array_equal(pieces.negatives[::-1], whole.negatives)
    for figure in (pixel_auc, pixel_ap, mask_iou, aupro):
        assert figure(pieces).value == pytest.approx(figure(whole).value, abs=1e-12)


@settings(max_examples=25)
@given(seed=st.integers(0, 999))
def test_a_monotone_map_of_the_bytes_changes_no_area(seed):
    scores, truth = some_masks(seed)
    halved = scores // 2
    stretched = (halved.astype(int) * 2 + (halved > 50)).astype(np.uint8)
    for figure in (pixel_auc, pixel_ap, aupro):
        assert figure(counted((halved, truth))).value == pytest.approx(figure(counted((stretched, truth))).value, abs=1e-12)


def test_a_resample_equals_the_figure_of_the_drawn_videos():
    videos = [some_masks(seed, frames=2) for seed in range(6)]
    counts, bootstrap = counted(*videos), Bootstrap(replicates=20)
    for figure in (pixel_auc, pixel_ap, mask_iou, aupro):
        estimate = figure(counts)
        by_hand = []
        for drawn in next(bootstrap.weights(6)).astype(int):
            chosen = np.repeat(np.arange(6), drawn)
            by_hand.append(figure(counted(*[videos[i] for i in chosen])).value)
        assert estimate.statistic(next(bootstrap.weights(6))) == pytest.approx(by_hand, abs=1e-9)
        assert estimate.metric(bootstrap).ci_low < estimate.value


@pytest.mark.parametrize(
    ("figure", "truth", "says"),
    [
        (pixel_auc, False, "both classes"),
        (pixel_auc, True, "both classes"),
        (pixel_ap, False, "abnormal pixel"),
        (mask_iou, False, "true mask"),
        (aupro, False, "true region"),
        (aupro, True, "normal pixels"),
    ],
)
def test_undefined_is_none_with_its_reason(figure, truth, says):
    found = figure(counted((np.zeros((2, 3), np.uint8), np.full((2, 3), truth)))).metric(Bootstrap(10))
    assert found.value is None
    assert says in found.note
    nothing = figure(PixelAccumulator().counts()).metric(Bootstrap(10))
    assert (nothing.value, nothing.videos) == (None, 0)


def test_resamples_without_a_true_region_are_left_out():
    scores, truth = some_masks(0)
    found = aupro(counted((scores, truth), (scores, np.zeros_like(truth)))).metric(Bootstrap(50))
    assert "resamples" in found.note
    assert found.ci_low is not None


def test_bad_input_is_refused():
    accumulator = PixelAccumulator()
    byte, floats = np.zeros((2, 2), np.uint8), np.zeros((2, 2))
    with pytest.raises(ValueError, match="must both be"):
        accumulator.add("v", byte, np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        accumulator.add("v", floats + 2, byte)
    accumulator.add("v", byte, byte)
    with pytest.raises(ValueError, match="mixed"):
        accumulator.add("v", floats, byte)
    with pytest.raises(ValueError, match="256"):
        PixelAccumulator(bins=255)
    with pytest.raises(ValueError, match="mask_at"):
        PixelAccumulator(mask_at=1.5)
    with pytest.raises(ValueError, match="limit"):
        aupro(accumulator.counts(), limit=0)


def slow_aupimo(scores, truth, low, high):
    """Return the mean recall over many rates that are equally spaced on a logarithmic scale."""
    flat = truth.reshape(len(truth), -1)
    normal = scores.reshape(len(truth), -1)[~flat.any(axis=1)]
    thresholds = np.arange(257)
    rates = np.array([(normal >= threshold).mean() for threshold in thresholds])
    found = []
    for frame, mask in zip(scores.reshape(len(truth), -1), flat, strict=True):
        if mask.any():
            recall = np.array([(frame[mask] >= threshold).mean() for threshold in thresholds])
            grid = np.exp(np.linspace(np.log(low), np.log(high), 20001))
            found.append(np.mean([recall[rates <= rate].max() for rate in grid[::40]]))
    return np.mean(found)


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.1), (0.05, 1.0)])
def test_aupimo_against_many_rates(low, high):
    scores, truth = some_masks(5)
    truth[: len(truth) // 2] = False
    found = aupimo(counted((scores, truth)), limits=(low, high)).value
    assert found == pytest.approx(slow_aupimo(scores, truth, low, high), abs=0.01)


def test_pimo_agrees_with_the_reference():
    """The expected numbers are from anomalib 2.7.0; `python benchmarks/pimo.py` prints them."""
    scores, truth = made_up(64)
    found = aupimo(counted((scores, truth)), limits=(0.001, 0.1))
    curve = np.array(found.curve)
    expected = [0.5426587301587301, 0.8075396825396827, 0.9697420634920636]
    assert at(curve, (0.001, 0.01, 0.1)) == pytest.approx(expected, abs=1e-12)
    # The reference draws straight lines between thresholds, and ends the area at the thresholds closest to the limits.
    first, last = (int(np.abs(curve[:, 0] - limit).argmin()) for limit in (0.001, 0.1))
    within = curve[first : last + 1]
    area = np.trapezoid(within[:, 1], np.log(within[:, 0])) / np.log(100)
    assert area == pytest.approx(0.781431, abs=1e-6)
    assert found.value == pytest.approx(0.781431, abs=0.002)


def test_the_pimo_curve_rises_to_one():
    found = aupimo(counted(some_masks(5), some_masks(6)))
    curve = np.array(found.metric(Bootstrap(replicates=20)).curve)
    assert (np.diff(curve, axis=0) >= 0).all()
    assert curve[-1] == pytest.approx([1.0, 1.0])
    assert len(np.unique(curve, axis=0)) == len(curve) <= 256
    assert found.metric().to_json()["curve"] == curve.tolist()
    assert "curve" not in pixel_auc(counted(some_masks(5))).metric().to_json()


def test_aupimo_worked_by_hand():
    """In a normal frame of 100 pixels, one pixel scores 200 and nine score 100.

    Four true pixels score 250, 150, 150 and 50.
    """
    scores = np.zeros((2, 10, 10), np.uint8)
    scores[0].ravel()[:10] = [200, *[100] * 9]
    scores[1, 0, :4] = [250, 150, 150, 50]
    truth = np.zeros(scores.shape, bool)
    truth[1, 0, :4] = True
    # Thresholds above 200 have the rate 0, those above 100 the rate 0.01, those above 0 the rate 0.1.
    counts = counted((scores, truth))
    assert aupimo(counts, limits=(0.001, 0.01)).value == pytest.approx(0.25)
    assert aupimo(counts, limits=(0.01, 0.1)).value == pytest.approx(0.75)
    assert aupimo(counts, limits=(0.001, 0.1)).value == pytest.approx(0.5)
    assert aupimo(counts, limits=(0.1, 0.9)).value == pytest.approx(1.0)
    rates, shares = np.array(aupimo(counts).curve).T
    assert rates == pytest.approx([0, 0, 0.01, 0.01, 0.1, 0.1, 1])
    assert shares == pytest.approx([0, 0.25, 0.25, 0.75, 0.75, 1, 1])
    assert aupimo(counted((scores[1:], truth[1:]))).value is None
    assert "frame without one" in aupimo(counted((scores[1:], truth[1:]))).note
    with pytest.raises(ValueError, match="0 < low < high"):
        aupimo(counts, limits=(0.1, 0.01))
