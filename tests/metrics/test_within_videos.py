"""ROC-AUC within videos and per category: computed by hand, its invariance, and its intervals.

In the comments, a score "beats" a lower score.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from vadcli.metrics import Bootstrap, difference
from vadcli.metrics.frame import NORMAL, FrameSet, category_auc, frame_auc, frame_auc_macro

FIGHT, FIRE = 0, 1


@st.composite
def whole_scores(draw):
    """Draw videos with whole numbers as scores, so that a constant breaks no ties; two have both classes."""
    lengths = draw(st.lists(st.integers(1, 8), min_size=0, max_size=4))
    scores = [draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)) for n in lengths] + [[3, 4], [1, 1, 5]]
    labels = [draw(st.lists(st.booleans(), min_size=n, max_size=n)) for n in lengths] + [[True, False], [False, True, True]]
    return FrameSet.of([np.array(part, np.float64) for part in scores], labels)


def shifted(frames, video, constant):
    return replace(frames, scores=frames.scores + constant * (frames.video == video))


def test_only_the_auc_over_all_frames_depends_on_the_order_of_videos_by_score():
    # All scores of video 0 are high, and those of video 1 low. Within each, the scores do not separate the classes. Video 2 is
    # normal.
    frames = FrameSet.of(
        [[0.8, 0.9, 0.85], [0.2, 0.1, 0.3], [0.1, 0.1, 0.1, 0.1]],
        [[1, 1, 0], [1, 0, 0], [0, 0, 0, 0]],
    )
    # There are 7 normal frames: 0.9 beats 7 of them, 0.8 beats 6, and 0.2 beats 5.
    assert frame_auc(frames).value == pytest.approx(18 / 21)
    found = frame_auc_macro(frames).metric()
    assert found.value == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert found.videos == 2
    assert "undefined for 1 of 3 videos" in found.note


def test_no_video_with_both_classes_is_none_with_a_note():
    found = frame_auc_macro(FrameSet.of([[0.9, 0.8], [0.1]], [[1, 1], [0]]))
    assert found.metric(Bootstrap(10)).value is None
    assert "undefined for all of 2 videos" in found.note


@settings(max_examples=150)
@given(frames=whole_scores(), data=st.data())
def test_a_constant_added_to_one_video_changes_only_the_auc_over_all_frames(frames, data):
    video = data.draw(st.integers(0, frames.videos - 1))
    constant = data.draw(st.integers(-20, 20))
    within = frame_auc_macro(frames).value
    assert frame_auc_macro(shifted(frames, video, constant)).value == pytest.approx(within, abs=1e-12)
    # With +100, the abnormal frames of the video beat all normal frames of the other videos. With -100, the abnormal frames of
    # the other videos beat all normal frames of the video.
    up, down = (frame_auc(shifted(frames, video, far)).value for far in (100, -100))
    own = frames.labels[frames.video == video]
    abnormal, normal = int(own.sum()), int((~own).sum())
    all_abnormal, all_normal = int(frames.labels.sum()), int((~frames.labels).sum())
    gained = abnormal * (all_normal - normal) - normal * (all_abnormal - abnormal)
    assert up - down == pytest.approx(gained / (all_abnormal * all_normal), abs=1e-12)


# Video 0 has a fight and a fire, video 1 a fight, video 2 no anomaly, and video 3 a fight in its only frame.
FRAMES = FrameSet.of(
    [[0.6, 0.9, 0.5, 0.7], [0.2, 0.1, 0.1], [0.95, 0.95], [0.3]],
    [[1, 1, 0, 0], [1, 0, 0], [0, 0], [1]],
)
CODES = np.array([FIGHT, FIRE, NORMAL, NORMAL, FIGHT, NORMAL, NORMAL, NORMAL, NORMAL, FIGHT])
OF_FIGHT = replace(FRAMES, scores=np.array([0.9, 0.1, 0.2, 0.3, 0.1, 0.1, 0.2, 0.0, 0.0, 0.5]))


def test_a_category_within_videos_and_over_all():
    # Over all videos: of 6 normal frames, 0.6 beats 3, 0.2 beats 2 and 0.3 beats 2. Within video 0, the fight beats 1 of 2
    # normal frames, and within video 1, 2 of 2.
    assert category_auc(FRAMES, CODES, FIGHT).value == pytest.approx(7 / 18)
    within = category_auc(FRAMES, CODES, FIGHT, within=True).metric()
    assert within.value == pytest.approx((1 / 2 + 1) / 2)
    assert within.videos == 2
    assert "undefined for 1 of 3 videos" in within.note
    # The fire is compared only with the normal frames of its video, and not with the fight.
    fire = category_auc(FRAMES, CODES, FIRE, within=True).metric(Bootstrap(20))
    assert (fire.value, fire.ci_low, fire.videos) == (1.0, None, 1)
    assert "two videos" in fire.note


def test_a_category_by_its_own_scores():
    # Over all videos: 0.9 beats 6, 0.5 beats 6, and 0.1 beats 2 and ties with 1. Within video 0, the fight beats 2 of 2. Within
    # video 1, it ties with one frame and is below the other.
    assert category_auc(OF_FIGHT, CODES, FIGHT).value == pytest.approx(14.5 / 18)
    assert category_auc(OF_FIGHT, CODES, FIGHT, within=True).value == pytest.approx((1 + 1 / 4) / 2)


def test_a_category_without_frames_is_none_with_a_note():
    for within in (False, True):
        found = category_auc(FRAMES, CODES, 2, within=within).metric(Bootstrap(10))
        assert found.value is None
        assert "both classes" in found.note
        assert "0 videos" not in found.note


def test_end_points_are_added_only_to_the_videos_of_the_category():
    # Each of the three videos gets an abnormal row that beats all others, and a normal row that is below all others.
    ended = category_auc(FRAMES, CODES, FIGHT, within=True, endpoints=True).metric()
    assert ended.value == pytest.approx(((1 + 1 + 3) / 6 + 1 + 1) / 3)
    assert ended.videos == 3
    assert "end points" in ended.note


@settings(max_examples=60)
@given(frames=whole_scores(), data=st.data())
def test_a_category_within_videos_agrees_with_scikit_learn(frames, data):
    codes = np.array(data.draw(st.lists(st.sampled_from([NORMAL, FIGHT]), min_size=10, max_size=50)))
    codes = np.resize(codes, len(frames.labels))
    values = []
    for video in range(frames.videos):
        rows = (frames.video == video) & ((frames.labels & (codes == FIGHT)) | ~frames.labels)
        labels = frames.labels[rows]
        values += [roc_auc_score(labels, frames.scores[rows])] if 0 < labels.sum() < len(labels) else []
    found = category_auc(frames, codes, FIGHT, within=True)
    if not values:
        assert found.value is None
        return
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    assert found.used == len(values)
    moved = shifted(frames, data.draw(st.integers(0, frames.videos - 1)), data.draw(st.integers(-20, 20)))
    assert category_auc(moved, codes, FIGHT, within=True).value == pytest.approx(found.value, abs=1e-12)


@pytest.mark.parametrize("within", [False, True])
def test_resamples_draw_from_all_videos(within):
    bootstrap = Bootstrap(replicates=120, seed=3)
    kept = FRAMES.labels & (CODES == FIGHT) | ~FRAMES.labels
    figures = []
    for drawn in np.concatenate(list(bootstrap.weights(4))).astype(int):
        rows = [np.flatnonzero((FRAMES.video == video) & kept) for video in np.repeat(np.arange(4), drawn)]
        parts = rows if within else [np.concatenate(rows)]
        pairs = [(FRAMES.labels[part], FRAMES.scores[part]) for part in parts]
        defined = [roc_auc_score(y, s) for y, s in pairs if 0 < y.sum() < len(y)]
        figures += [np.mean(defined)] if defined else []
    found = category_auc(FRAMES, CODES, FIGHT, within=within).metric(bootstrap)
    assert [found.ci_low, found.ci_high] == pytest.approx(np.quantile(figures, [0.025, 0.975]).tolist(), abs=1e-9)
    lost = 120 - len(figures)
    assert (lost > 0) == within
    assert (f"undefined in {lost} of 120 resamples" in found.note) == within


def test_runs_that_lack_frames_in_different_videos_are_paired():
    # The second run lacks the fight of video 1 and all frames of video 3.
    sparse = FRAMES.keep(~np.isin(np.arange(10), [4, 9]))
    codes = np.delete(CODES, [4, 9])
    bootstrap = Bootstrap(50)
    for within, value in ((False, 3 / 6), (True, 1 / 2)):
        first = category_auc(FRAMES, CODES, FIGHT, within=within)
        second = category_auc(sparse, codes, FIGHT, within=within)
        assert second.value == pytest.approx(value)
        found = difference(second, first, bootstrap)
        assert found.value == pytest.approx(value - first.value)
        assert (found.ci_low is None) == within  # within videos, the second value is computed from only one video
