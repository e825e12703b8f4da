"""Frame metrics: comparison with scikit-learn, invariances, and undefined cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from vadcli.metrics import Bootstrap
from vadcli.metrics.frame import NORMAL, FrameSet, frame_ap, frame_ap_macro, frame_auc, frame_auc_macro, frames_of_category

METRICS = {"auc": (frame_auc, roc_auc_score), "ap": (frame_ap, average_precision_score)}


@st.composite
def frame_sets(draw, both=True):
    """Draw a few videos with many ties and with both classes."""
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    scores = [draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)) for n in lengths]
    labels = [draw(st.lists(st.booleans(), min_size=n, max_size=n)) for n in lengths]
    if both:
        scores.append([3, 4])
        labels.append([True, False])
    return FrameSet.of([np.array(part, np.float32) / 9 for part in scores], labels)


def videos_of(frames):
    return [slice(a, b) for a, b in zip(frames.offsets[:-1], frames.offsets[1:], strict=True)]


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=150)
@given(frames=frame_sets())
def test_agrees_with_scikit_learn_to_a_billionth(name, frames):
    ours, theirs = METRICS[name]
    assert ours(frames).value == pytest.approx(theirs(frames.labels, frames.scores), abs=1e-9)
    ended = np.append(frames.labels, [0, 1]), np.append(frames.scores, np.float32([0, 1]))
    estimate = ours(frames, endpoints=True)
    assert estimate.value == pytest.approx(theirs(*ended), abs=1e-9)
    assert "end points" in estimate.note


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ours_theirs", METRICS.values(), ids=METRICS)
def test_agrees_with_scikit_learn_on_many_frames(ours_theirs, dtype):
    ours, theirs = ours_theirs
    rng = np.random.default_rng(1)
    labels = rng.random(50_000) < 0.03
    scores = (rng.normal(size=50_000) + labels).astype(dtype)
    assert ours(FrameSet.of([scores], [labels])).value == pytest.approx(theirs(labels, scores), abs=1e-9)


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=60)
@given(frames=frame_sets(), seed=st.integers(0, 99))
def test_scale_order_and_borders_of_videos_do_not_change_micro(name, frames, seed):
    metric = METRICS[name][0]
    value = metric(frames).value
    stretched = FrameSet(np.exp(3 * frames.scores.astype(np.float64)) - 7, frames.labels, frames.offsets)
    assert metric(stretched).value == pytest.approx(value, abs=1e-12)
    parts = [(frames.scores[part], frames.labels[part]) for part in videos_of(frames)]
    order = np.random.default_rng(seed).permutation(len(parts))
    shuffled = FrameSet.of([parts[i][0] for i in order], [parts[i][1] for i in order])
    assert metric(shuffled).value == pytest.approx(value, abs=1e-12)
    assert metric(FrameSet.of([frames.scores], [frames.labels])).value == pytest.approx(value, abs=1e-12)


@settings(max_examples=60)
@given(frames=frame_sets())
def test_negated_scores_give_one_minus_the_auc(frames):
    turned = FrameSet(1 - frames.scores, frames.labels, frames.offsets)
    assert frame_auc(turned).value == pytest.approx(1 - frame_auc(frames).value, abs=1e-12)


@pytest.mark.parametrize(("macro", "theirs"), [(frame_auc_macro, roc_auc_score), (frame_ap_macro, average_precision_score)])
@settings(max_examples=60)
@given(frames=frame_sets())
def test_macro_is_the_mean_over_videos_that_define_it(macro, theirs, frames):
    parts = [(frames.labels[part], frames.scores[part]) for part in videos_of(frames)]
    needed = (lambda y: 0 < y.sum() < len(y)) if theirs is roc_auc_score else (lambda y: y.any())
    values = [theirs(labels, scores) for labels, scores in parts if needed(labels)]
    metric = macro(frames).metric()
    assert metric.value == pytest.approx(np.mean(values), abs=1e-9)
    assert metric.videos == len(values)
    lost = len(parts) - len(values)
    assert (f"undefined for {lost} of {len(parts)} videos" in metric.note) == (lost > 0)
    ended = [theirs(np.append(labels, [0, 1]), np.append(scores, np.float32([0, 1]))) for labels, scores in parts]
    with_ends = macro(frames, endpoints=True).metric()
    assert with_ends.value == pytest.approx(np.mean(ended), abs=1e-9)
    assert with_ends.videos == len(parts)


def test_only_sampled_rows():
    frames = FrameSet.of([[0.9, 0.9, 0.1, 0.1], [0.2]], [[1, 0, 0, 0], [0]], [[1, 0, 1, 0], [1]])
    assert frame_auc(frames).value == pytest.approx(3.5 / 4)
    sampled = frames.only_sampled()
    assert sampled.offsets.tolist() == [0, 2, 3]
    assert frame_auc(sampled).value == 1.0
    with pytest.raises(ValueError, match="sampled"):
        FrameSet.of([[0.1]], [[0]]).only_sampled()


@pytest.mark.parametrize(
    ("metric", "labels", "says"),
    [
        (frame_auc, [0, 0, 0], "both classes"),
        (frame_auc, [1, 1, 1], "both classes"),
        (frame_auc, [], "both classes"),
        (frame_ap, [0, 0, 0], "a positive frame"),
        (frame_ap, [], "a positive frame"),
        (frame_auc_macro, [1, 1, 1], "all of 1 video"),
        (frame_ap_macro, [0, 0, 0], "all of 1 video"),
    ],
)
def test_undefined_is_none_with_its_reason(metric, labels, says):
    found = metric(FrameSet.of([np.linspace(0, 1, len(labels))], [labels])).metric(Bootstrap(replicates=10))
    assert (found.value, found.ci_low, found.ci_high) == (None, None, None)
    assert says in found.note


def test_end_points_define_figures_of_one_class():
    frames = FrameSet.of([[0.2, 0.4]], [[0, 0]])
    assert frame_auc(frames, endpoints=True).value == 1.0
    assert frame_ap(frames, endpoints=True).value == 1.0
    assert frame_ap(FrameSet.of([[0.2, 0.4]], [[1, 1]])).value == 1.0


def test_no_video_at_all():
    nothing = FrameSet.of([], [])
    assert frame_auc(nothing).metric(Bootstrap()).value is None
    assert frame_auc_macro(nothing).metric(Bootstrap()).value is None


@pytest.mark.parametrize(
    ("scores", "labels", "says"),
    [([[0.1, 0.2]], [[0]], "labels"), ([[np.nan, 0.2]], [[0, 1]], "not a number")],
)
def test_bad_arrays_are_refused(scores, labels, says):
    with pytest.raises(ValueError, match=says):
        FrameSet.of(scores, labels)


def test_bad_sets_are_refused():
    with pytest.raises(ValueError, match="bool"):
        FrameSet(np.zeros(2), np.zeros(2, np.int64), np.array([0, 2]))
    with pytest.raises(ValueError, match="offsets"):
        FrameSet(np.zeros(2), np.zeros(2, bool), np.array([0, 1]))
    with pytest.raises(ValueError, match="sampled"):
        FrameSet(np.zeros(2), np.zeros(2, bool), np.array([0, 2]), np.zeros(3, bool))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        frame_auc(FrameSet.of([[-1.0, 3.0]], [[0, 1]]), endpoints=True)


CATEGORIES = FrameSet.of([[0.9, 0.1, 0.2], [0.3, 0.4, 0.05], [0.35]], [[1, 0, 0], [1, 1, 0], [0]])
CODES = np.array([0, NORMAL, NORMAL, 1, NORMAL, NORMAL, NORMAL])


def test_a_category_is_compared_with_all_normal_frames_or_with_those_of_its_videos():
    fire, fall, fight = (frame_auc(frames_of_category(CATEGORIES, CODES, code)) for code in range(3))
    assert fire.value == 1.0
    assert fall.value == pytest.approx(3 / 4)
    assert fight.metric().value is None
    assert "both classes" in fight.note
    own = frame_auc(frames_of_category(CATEGORIES, CODES, 1, own_videos=True))
    assert own.value == 1.0
    assert own.metric().videos == 1
    assert frames_of_category(CATEGORIES, CODES, 1).scores.tolist() == [0.1, 0.2, 0.3, 0.05, 0.35]
    with pytest.raises(ValueError, match="codes"):
        frames_of_category(CATEGORIES, CODES[:-1], 0)
