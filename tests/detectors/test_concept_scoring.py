"""From vectors to category scores: equal to plain NumPy, exact in any batch, and calibrated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planted import PlantedEncoder
from vadcli.detectors.concept import (
    ANCHOR_TEMPERATURE,
    Bank,
    Burst,
    ConceptCamera,
    Sentences,
    make_bank,
    smooth_all,
    unlike,
    upper_half,
)
from vadcli.options.categories import Category, CategoryBook
from vadcli.types import Embeddings

RATE_HZ = 2.0


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def bank_of(rng: np.random.Generator, categories: int = 3, width: int = 24) -> tuple[Bank, np.ndarray]:
    texts = unit(rng, 30, width)
    positive = tuple(np.arange(5) + 5 * number for number in range(categories))
    negative = tuple(np.arange(15, 15 + 7 + number) for number in range(categories))
    return Bank(tuple("abcdef"[:categories]), Sentences.of(texts), positive, negative, 0.03), texts


def test_the_evidence_is_that_of_plain_numpy() -> None:
    rng = np.random.default_rng(0)
    bank, texts = bank_of(rng)
    vectors, anchor = Embeddings.of(unit(rng, 40, 24)), unit(rng, 1, 24)
    got = bank.evidence(vectors, Sentences.of(anchor))
    cosines = vectors.vectors() @ texts.T
    for number in range(3):
        good = np.sort(cosines[:, bank.positive[number]], axis=1)[:, -3:].mean(axis=1)
        against = np.concatenate([cosines[:, bank.negative[number]], vectors.vectors() @ anchor.T], axis=1)
        half = (against.shape[1] + 1) // 2
        bad = np.sort(against, axis=1)[:, -half:].mean(axis=1)
        np.testing.assert_allclose(got[:, number], (0.9 * good - bad) / 0.03, atol=2e-3)
        np.testing.assert_allclose(got[:, 3 + number], 0.9 * good / 0.03, atol=2e-3)


@given(st.lists(st.integers(0, 39), min_size=1, max_size=40, unique=True))
@settings(max_examples=30)
def test_a_vectors_evidence_does_not_depend_on_the_others(rows: list[int]) -> None:
    rng = np.random.default_rng(1)
    bank, _ = bank_of(rng)
    vectors, anchor = Embeddings.of(unit(rng, 40, 24)), Sentences.of(unit(rng, 1, 24))
    whole = bank.evidence(vectors, anchor)
    np.testing.assert_array_equal(bank.evidence(vectors[np.array(rows)], anchor), whole[rows])


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_the_upper_half(count: int, kept: int) -> None:
    values = np.arange(count, dtype=np.float64)[None]
    assert upper_half(values)[0] == pytest.approx(np.arange(count)[-kept:].mean())


def test_a_normal_sentence_that_describes_the_category_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    category = np.array([[1, 0, 0], [0.9, 0.436, 0]], np.float32)
    normal = np.array([[0.98, 0.2, 0], [0, 0, 1]], np.float32)
    with caplog.at_level("INFO", logger="vadcli"):
        assert unlike(category, normal, ["a street fight", "a quiet street"], "fight").tolist() == [False, True]
    assert "a street fight" in caplog.text


def test_odd_frames_count_little_in_the_anchor() -> None:
    rng = np.random.default_rng(2)
    bank = make_bank(CategoryBook((Category("red", ("a red thing",)),), ("a street", "a yard")), PlantedEncoder())
    usual, odd = np.zeros((30, 8), np.float32), np.zeros((10, 8), np.float32)
    usual[:, 3], odd[:, 0] = 1.0, 1.0
    usual += rng.normal(0, 0.02, usual.shape).astype(np.float32)
    vectors = np.concatenate([usual, odd])
    camera = ConceptCamera.fit(bank, [Burst(Embeddings.of(vectors), np.arange(40) / RATE_HZ)], 20.0)
    assert camera.anchor is not None
    anchor = camera.anchor.values[0] * camera.anchor.scale[0]
    assert anchor[0] < 10 / 40 * np.exp(-0.9 / ANCHOR_TEMPERATURE) * 2


def noise(kind: str, rng: np.random.Generator, count: int, columns: int) -> np.ndarray:
    if kind == "normal":
        return rng.normal(size=(count, columns)).astype(np.float32)
    return rng.standard_t(4, size=(count, columns)).astype(np.float32)


def camera_of(evidence: np.ndarray, seconds: float) -> ConceptCamera:
    """A camera fitted on evidence instead of vectors: those of the bank are its first columns as they are."""

    class Given(Bank):
        def evidence(self, embeddings: Embeddings, anchor: Sentences | None) -> np.ndarray:
            return evidence[embeddings.scale.astype(int)]

    count = evidence.shape[1] // 2
    bank = Given(tuple(map(str, range(count))), Sentences.of(np.eye(4, dtype=np.float32)), (), (), 1.0)
    starts = np.linspace(0, len(evidence) - 32, 20).astype(int)
    bursts = [
        Burst(
            Embeddings(np.ones((32, 4), np.int8), np.arange(start, start + 32).astype(np.float32)),
            np.arange(start, start + 32) / RATE_HZ,
        )
        for start in starts
    ]
    return ConceptCamera.fit(bank, bursts, seconds)


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("categories", [1, 12])
def test_one_alarm_per_hour_means_about_one(kind: str, categories: int) -> None:
    hours, found = 10, []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        evidence = noise(kind, rng, int(hours * 3600 * RATE_HZ), 2 * categories)
        evidence[:, categories:] = 0.7 * evidence[:, :categories] + 0.71 * evidence[:, categories:]
        camera = camera_of(evidence, 320.0)
        timestamp = np.arange(len(evidence)) / RATE_HZ
        alarm = camera.finish(evidence, timestamp).logit >= 0.0  # a score of 0.5 is one event per hour
        begins = timestamp[1:][alarm[1:] & ~alarm[:-1]]
        found.append((1 + int((np.diff(begins) > 2.0).sum()) if len(begins) else 0) / hours)
    assert 0.03 < np.mean(found) < 4.0
    assert max(found) < 12.0


def test_a_category_without_positive_evidence_is_not_found() -> None:
    rng = np.random.default_rng(3)
    evidence = rng.normal(size=(2000, 2)).astype(np.float32)
    camera = camera_of(evidence, 320.0)
    odd = evidence.copy()
    odd[900:920, 0] += 20.0  # normal sentences fit less, but the category does not fit better
    assert camera.finish(odd, np.arange(2000) / RATE_HZ).logit[880:940].max() < 0.0
    odd[900:920, 1] += 20.0
    assert camera.finish(odd, np.arange(2000) / RATE_HZ).logit[905] > 0.0


def test_each_categorys_score_is_on_the_frames_scale() -> None:
    rng = np.random.default_rng(4)
    evidence = rng.normal(size=(500, 6)).astype(np.float32)
    scores = camera_of(evidence, 320.0).finish(evidence, np.arange(500) / RATE_HZ)
    assert scores.by_category is not None
    assert scores.by_category.shape == (500, 3)
    np.testing.assert_array_equal(scores.by_category.max(axis=1), scores.logit)


def test_a_camera_that_never_changes_has_a_floor() -> None:
    still = np.zeros((700, 2), np.float32)
    camera = camera_of(still, 320.0)
    moved = still.copy()
    moved[300:320] = 0.1
    assert camera.finish(moved, np.arange(700) / RATE_HZ).logit.max() < 0.0


def test_nothing_known_gives_finite_scores() -> None:
    rng = np.random.default_rng(5)
    bank, _ = bank_of(rng)
    camera = ConceptCamera.fit(bank, [], 0.0)
    evidence = bank.evidence(Embeddings.of(unit(rng, 9, 24)), camera.anchor)
    assert np.isfinite(camera.finish(evidence, np.arange(9) / RATE_HZ).logit).all()
    assert np.isfinite(camera.tails.logits(smooth_all(evidence, np.arange(9) / RATE_HZ))).all()
