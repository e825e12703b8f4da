"""The clips about which the model is asked: proposals per camera, the audit and its interval."""

from __future__ import annotations

import numpy as np
import pytest

from tests.store.test_scores import table_of
from vadcli.engine.event_rules import ClipGrid
from vadcli.metrics import share_interval
from vadcli.store.verification import Audit
from vadcli.types import ScoreTable
from vadcli.verifying.survey import SAMPLE_CLIPS, Candidates, choose_clips, spread_sample
from vadcli.video.sampling import SamplingPlan


def candidates(video: str, score: np.ndarray, *, camera: str = "cam", seed: int = 0) -> Candidates:
    draw = np.random.default_rng([seed, *video.encode()]).random(len(score))
    start = 4.0 * np.arange(len(score))
    return Candidates(video, camera, score.astype(np.float32), start, start + 8.0, np.full(len(score), 4.0), draw)


def table(logit: np.ndarray) -> ScoreTable:
    count = len(logit)
    return ScoreTable(
        video="a",
        frame_index=np.arange(count),
        pts=np.arange(count),
        timestamp=np.arange(count, dtype=np.float64),
        score=np.full(count, 0.5, np.float32),
        logit=logit.astype(np.float32),
        sampled=np.ones(count, np.bool_),
        decode_ok=np.ones(count, np.bool_),
    )


def test_each_camera_gets_its_own_share() -> None:
    rng = np.random.default_rng(0)
    loud = candidates("loud", rng.normal(5, 1, 400), camera="loud")
    quiet = [candidates(name, rng.normal(-5, 1, 100), camera="quiet") for name in ("q1", "q2")]
    choices = choose_clips([loud, *quiet], share=0.15, audit=0.01)
    for videos, chosen in (([loud], choices[:1]), (quiet, choices[1:])):
        score = np.concatenate([video.score for video in videos])
        proposed = np.concatenate([choice.proposed for choice in chosen])
        assert score[proposed].min() >= score[~proposed].max()
        shown = sum(video.shown_s(choice.proposed) for video, choice in zip(videos, chosen, strict=True))
        whole = sum(4.0 * len(video.score) + 4.0 for video in videos)
        assert 0.14 * whole < shown <= 0.15 * whole


def test_the_audit_is_drawn_from_the_rest_and_every_camera_has_a_sample() -> None:
    rng = np.random.default_rng(1)
    videos = [candidates(f"v{number}", rng.normal(0, 1, 500), camera=f"c{number % 4}") for number in range(8)]
    choices = choose_clips(videos, share=0.15, audit=0.01)
    rest = sum(int((~choice.proposed).sum()) for choice in choices)
    assert sum(int(choice.audited.sum()) for choice in choices) == -(-rest // 100)
    for choice in choices:
        assert not (choice.sampled & choice.proposed).any()
        assert (choice.sampled | ~choice.audited).all()
    for camera in range(4):
        assert sum(int(choices[number].sampled.sum()) for number in (camera, camera + 4)) >= SAMPLE_CLIPS
    again = choose_clips(videos, share=0.15, audit=0.01)
    assert all(np.array_equal(one.asked, other.asked) for one, other in zip(choices, again, strict=True))


def test_all_and_nothing_more() -> None:
    videos = [candidates("a", np.zeros(7)), candidates("b", np.zeros(3))]
    whole = choose_clips(videos, share=1.0, audit=0.01)
    assert all(choice.proposed.all() and not choice.sampled.any() for choice in whole)
    without = choose_clips(videos, share=0.3, audit=0.0)
    assert sum(int(choice.asked.sum()) for choice in without) in (1, 2)
    assert sum(int(choice.asked.sum()) for choice in choose_clips(videos, share=0.001, audit=0.0)) == 1


def test_a_high_score_proposes_the_clips_around_it() -> None:
    logit = np.full(200, -3.0)
    logit[101] = 2.0
    scores = table(logit)
    grid = ClipGrid.of(SamplingPlan(8, 4, 1), scores.timestamp, 200.0)
    found = Candidates.of("cam", scores, grid, content="x", seed=0)
    high = np.flatnonzero(found.score > 0)
    assert np.abs(grid.middle[high] - 101).max() <= 5.0
    assert len(high) in (2, 3)
    other = Candidates.of("cam", scores, grid, content="x", seed=1)
    assert not np.array_equal(found.draw, other.draw)


@pytest.mark.parametrize(("frames", "interval"), [(200, 1), (5, 1), (1, 3), (100, 3), (12, 1), (9, 2)])
def test_cells_cover_the_video_once(frames: int, interval: int) -> None:
    scores = table_of(frames, "a")
    plan = SamplingPlan(8, 4, interval)
    duration_s = float(scores.timestamp[-1]) + 0.04
    grid = ClipGrid.of(plan, scores.timestamp, duration_s)
    assert len(grid) == plan.clips(frames) == len(grid.first)
    assert grid.edges[0] == 0.0
    assert grid.edges[-1] == pytest.approx(duration_s)
    assert (grid.length_s > 0).all()
    assert grid.rows.max() < frames
    cells = grid.cell_of(scores.timestamp)
    assert set(cells.tolist()) <= set(range(len(grid)))
    assert (np.diff(cells) >= 0).all()


def test_the_interval_of_a_share_is_that_of_clopper_and_pearson() -> None:
    assert share_interval(0, 100) == pytest.approx((0.0, 0.0362167), abs=1e-6)
    assert share_interval(10, 100) == pytest.approx((0.0490047, 0.1762226), abs=1e-6)
    assert share_interval(100, 100) == pytest.approx((0.9637833, 1.0), abs=1e-6)
    assert share_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("confirmed", "clips", "words"),
    [
        (0, 212, "at most 1.7 % of the footage"),
        (1, 1, "between 2.5 % and 100 % of the footage"),
        (3, 20000, "between 0.0031 % and 0.044 % of the footage"),
    ],
)
def test_shares_are_said_in_plain_numbers(confirmed: int, clips: int, words: str) -> None:
    assert words in Audit(clips, confirmed, *share_interval(confirmed, clips), left_out_s=3600.0, found_s=0.0).text


@pytest.mark.parametrize("missed", [0.0, 0.01, 0.05])
def test_the_audits_interval_covers_the_true_loss(missed: float) -> None:
    """This holds for nearly all of 200 seeds if the detector misses a share of what the model would confirm."""
    rng = np.random.default_rng(7)
    scores = [rng.normal(0, 1, 4000) for _ in range(3)]
    yes = [rng.random(len(score)) < missed + 0.2 * (score > 1.5) for score in scores]
    covered = 0
    for seed in range(200):
        videos = [candidates(f"v{place}", score, camera=f"c{place}", seed=seed) for place, score in enumerate(scores)]
        choices = choose_clips(videos, share=0.15, audit=0.01)
        rest = np.concatenate([one[~choice.proposed] for one, choice in zip(yes, choices, strict=True)])
        drawn = np.concatenate([one[choice.audited] for one, choice in zip(yes, choices, strict=True)])
        low, high = share_interval(int(drawn.sum()), len(drawn))
        covered += low <= rest.mean() <= high
    assert covered >= 0.93 * 200


def test_what_clips_show_together_counts_once() -> None:
    video = candidates("a", np.zeros(10))
    for clips, seconds in (([], 0), ([3], 8), ([3, 4], 12), ([0, 2, 9], 24), (range(10), 44)):
        assert video.shown_s(np.isin(np.arange(10), list(clips))) == seconds


def test_random_clips_count_for_those_they_were_drawn_from() -> None:
    odds = np.arange(6, dtype=np.float32)[:, None]
    proposed = np.array([True, True, False, False, False, False])
    sampled = np.array([False, False, True, True, False, False])
    found = spread_sample(odds, proposed, sampled, rest=20)
    assert sorted(found[:, 0].tolist()) == [0.0, 1.0, *[2.0] * 10, *[3.0] * 10]
