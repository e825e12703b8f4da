"""Every head on planted vectors: it finds what is there and nothing in shuffled labels; the same seed gives the same head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.heads import planted
from vadcli.heads import Head, Labels, fit_logistic, pooled, video_heads
from vadcli.heads.stored import head_kind
from vadcli.heads.video_heads import MOST_SEGMENTS, segments_of, splat
from vadcli.learning import auc
from vadcli.registry import HEADS

VIDEO_HEADS = [name for name in HEADS if head_kind(name).labels is not Labels.EVENTS]


def scores(head: Head, examples: planted.Examples) -> np.ndarray:
    return np.array([pooled(head, sample) for sample in examples.samples])


@pytest.mark.parametrize(("name", "length", "margin"), [("logistic", 1, 0.06), ("retrieval", 16, 0.1)])
def test_heads_of_events_come_close_to_the_best_possible_auc(name: str, length: int, margin: float) -> None:
    """Neighbours need less noise than a straight line does. The detector's logit, which says nothing here, costs the rest."""
    test = planted.events(400, seed=1, length=length)
    head = head_kind(name).fit(planted.events(200, seed=0, length=length), seed=0)
    assert auc(scores(head, test), test.positive) > planted.bound(length) - margin


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_heads, "STEPS", 30)


@pytest.mark.parametrize("name", VIDEO_HEADS)
def test_heads_of_videos_find_the_frames_in_new_videos(name: str) -> None:
    """A segment is the mean of four frames; segments at the edges of the planted span lie half outside, hence the margin."""
    kind = head_kind(name)
    head = kind.fit(planted.videos(40, seed=0, encoders=kind.encoders)[0], seed=0)
    test, truth = planted.videos(20, seed=1, encoders=kind.encoders)
    found = np.concatenate([head.score(sample) for sample in test.samples])
    assert auc(found, np.concatenate(truth) > 0) > planted.bound(4) - 0.06
    assert auc(scores(head, test), test.positive) > 0.95


@pytest.mark.parametrize("name", list(HEADS))
def test_shuffled_labels_teach_nothing(name: str, few_steps: None) -> None:
    kind = head_kind(name)
    found = []
    for seed in range(2):
        if kind.labels is Labels.EVENTS:
            examples, many = planted.events(400, seed=seed), 400
        else:
            examples, many = planted.videos(60, seed=seed, encoders=kind.encoders)[0], 60
        order = np.random.default_rng(seed).permutation(many)
        category = examples.category[order] if len(examples.category) else examples.category
        examples = replace(examples, positive=examples.positive[order], category=category)
        head = kind.fit(examples.pick(np.arange(many // 2)), seed=0)
        rest = examples.pick(np.arange(many // 2, many))
        found.append(auc(scores(head, rest), rest.positive))
    assert abs(np.mean(found) - 0.5) < 0.25


@pytest.mark.parametrize("name", list(HEADS))
def test_the_same_seed_gives_the_same_weights_and_a_stored_head_scores_alike(name: str, few_steps: None) -> None:
    kind = head_kind(name)
    events = kind.labels is Labels.EVENTS
    examples = planted.events(40, seed=0) if events else planted.videos(8, seed=0, encoders=kind.encoders)[0]
    head, again = kind.fit(examples, seed=3), kind.fit(examples, seed=3)
    for key, value in head.state().items():
        np.testing.assert_array_equal(value, again.state()[key])
    stored = kind.of(head.state())
    for sample in examples.samples[:4]:
        found = head.score(sample)
        assert found.shape == sample.logit.shape
        assert found.dtype == np.float32
        np.testing.assert_array_equal(stored.score(sample), found)


@pytest.mark.parametrize("name", VIDEO_HEADS)
def test_another_seed_gives_other_weights(name: str, few_steps: None) -> None:
    kind = head_kind(name)
    examples = planted.videos(8, seed=0, encoders=kind.encoders)[0]
    one, other = kind.fit(examples, seed=0).state(), kind.fit(examples, seed=1).state()
    assert any(not np.array_equal(one[key], other[key]) for key in one)


def test_logistic_regression_equals_that_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    draw = np.random.default_rng(0)
    features = draw.normal(size=(120, 7))
    positive = (features[:, 0] + draw.normal(size=120) > 0.8).astype(float)
    weights, bias = fit_logistic(features, positive, strength=0.7)
    theirs = linear_model.LogisticRegression(C=0.7, class_weight="balanced", tol=1e-10, max_iter=10_000)
    theirs.fit(features, positive)
    np.testing.assert_allclose(weights, theirs.coef_[0], atol=1e-4)
    assert bias == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_one_verdict_is_enough_for_retrieval() -> None:
    examples = planted.events(40, seed=0)
    rejected = int(np.flatnonzero(~examples.positive)[0])
    head = head_kind("retrieval").fit(examples.pick(np.array([rejected])), seed=0)
    sample = examples.samples[rejected]
    assert pooled(head, sample) == pytest.approx(float(sample.logit[0]) - 4.0, abs=1e-4)


def test_segments_are_two_seconds_and_at_most_so_many() -> None:
    examples, _ = planted.videos(2, seed=0)
    sample = examples.samples[0]
    segments, rows = segments_of(sample, examples.mean)
    assert len(segments) == 20
    np.testing.assert_array_equal(rows, np.arange(80) // 4)
    long = replace(sample, timestamp=np.arange(80) * 60.0)
    assert len(segments_of(long, examples.mean)[0]) == 80
    longest = replace(sample, timestamp=np.linspace(0, 1e5, 80))
    assert len(segments_of(longest, examples.mean)[0]) <= MOST_SEGMENTS


def test_a_splat_is_as_wide_as_its_peak() -> None:
    import torch

    score = torch.tensor([0.0, 0.0, 0.4, 0.9, 0.5, 0.0, 0.0, 0.0, 0.8, 0.0])
    label = splat(score)
    assert label[3] == label[8] == 1.0
    assert 0.4 < label[2] < 1.0
    assert label[4] > label[9]  # the first peak is two segments wide, the second one
    assert label[6] < 0.2


def test_categories_have_their_own_direction() -> None:
    import torch

    from vadcli.heads.video_heads import DualHead, TwoBranches

    head = DualHead.fit(planted.videos(40, seed=0)[0], seed=0)
    test, _ = planted.videos(20, seed=1)
    right = []
    for sample, category in zip(test.samples, test.category, strict=True):
        if category >= 0:
            x, _ = segments_of(sample, head.mean)
            assert isinstance(head.network, TwoBranches)
            with torch.inference_mode():
                _, said = head.network.branches(torch.from_numpy(x)[None], torch.ones(1, len(x), dtype=torch.bool))
            best = said[0][int((said[0, :, 1:].logsumexp(-1) - said[0, :, 0]).argmax()), 1:]
            right.append(int(best.argmax()) == category)
    assert np.mean(right) >= 0.8
