"""Tests of the Anomaly Exposure Sampler, and of mixtures of data sets.

Seeds are fixed, so a figure is the same in every run; bounds are at p = 1e-4, which a wrong sampler misses by far.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.patience import PATIENCE_S
from tests.train.small import PAPER_MIX
from vadcli.errors import UsageError
from vadcli.train import ExposureOptions
from vadcli.train.samples import (
    CATEGORY_LIMITS,
    MAX_CATEGORIES,
    AnomalyExposureSampler,
    Mixture,
    Segmentation,
    SegmentedObject,
    same_name,
    shared_words,
)

UNLIKELY = 1e-4


class Words:
    """A data set whose objects are single pixels: object k is in row k, in frames 0 to k of T."""

    def __init__(self, samples: Sequence[Sequence[str]], name: str = "words", frames: int = 3) -> None:
        self.name = name
        self.samples = [tuple(names) for names in samples]
        self.frames = frames
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Segmentation:
        self.read.append(index)
        objects = []
        for row, name in enumerate(self.samples[index]):
            masks = np.zeros((self.frames, 8, 8), np.bool_)
            masks[: row + 1, row, index % 8] = True
            objects.append(SegmentedObject(name, masks))
        return Segmentation(f"{self.name}/{index}", np.full((self.frames, 8, 8, 3), index % 256, np.uint8), tuple(objects))

    def names(self, index: int) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.samples[index]))

    def fingerprint(self) -> str:
        return repr(self.samples)


def letters(count: int = 40, each: int = 2) -> Words:
    """Return a data set whose clips have `each` names each; all names differ."""
    return Words([[f"name {sample}.{place}" for place in range(each)] for sample in range(count)])


def uniform(observed: Counter[int], expected: Sequence[int]) -> float:
    """Return p of a chi-square test that all expected values, and no others, are equally frequent."""
    assert set(observed) <= set(expected)
    return float(stats.chisquare([observed[value] for value in expected]).pvalue)


def test_half_of_the_samples_are_anomalies_and_the_probability_is_an_option() -> None:
    data = letters()
    for probability in (0.5, 0.2):
        sampler = AnomalyExposureSampler(data, ExposureOptions(probability=probability), 7)
        anomalies = sum(bool(sampler.listing(index, epoch).true) for epoch in range(100) for index in range(len(data)))
        assert stats.binomtest(anomalies, 4000, probability).pvalue > UNLIKELY
    assert not data.read  # only the names decide


def test_lists_are_uniform_up_to_the_cap_and_their_length_says_nothing_of_the_label() -> None:
    sampler = AnomalyExposureSampler(letters(), ExposureOptions(max_true=1), 3, max_categories=10)
    listings = [sampler.listing(index, epoch) for epoch in range(150) for index in range(40)]
    by_label = {
        label: Counter(len(listing.categories) for listing in listings if bool(listing.true) is label)
        for label in (True, False)
    }
    assert uniform(by_label[True] + by_label[False], range(2, 11)) > UNLIKELY
    table = [[by_label[label][length] for length in range(2, 11)] for label in (True, False)]
    assert stats.chi2_contingency(table).pvalue > UNLIKELY


def test_length_tells_nothing_either_with_one_or_two_true_names_and_lists_of_one() -> None:
    sampler = AnomalyExposureSampler(letters(), ExposureOptions(min_irrelevant=0), 3, max_categories=6)
    listings = [sampler.listing(index, epoch) for epoch in range(200) for index in range(40)]
    table = [
        [sum(len(x.categories) == n and bool(x.true) is label for x in listings) for n in range(1, 7)]
        for label in (True, False)
    ]
    assert min(map(min, table)) > 100
    assert stats.chi2_contingency(table).pvalue > UNLIKELY


def test_one_or_two_true_names_equally_often_each_of_the_clips_names_alike() -> None:
    data = letters(each=4)
    sampler = AnomalyExposureSampler(data, ExposureOptions(), 11)
    true = [sampler.listing(index, epoch).true for epoch in range(150) for index in range(40)]
    assert uniform(Counter(len(names) for names in true if names), [1, 2]) > UNLIKELY
    assert uniform(Counter(int(name[-1]) for names in true for name in names), range(4)) > UNLIKELY


def test_places_in_the_list_are_shuffled() -> None:
    sampler = AnomalyExposureSampler(letters(), ExposureOptions(max_true=1), 13, max_categories=5)
    listings = [sampler.listing(index, epoch) for epoch in range(200) for index in range(40)]
    places = Counter(x.categories.index(x.true[0]) for x in listings if x.true and len(x.categories) == 5)
    assert uniform(places, range(5)) > UNLIKELY


def test_irrelevant_names_come_from_other_samples_as_often_as_those_have_them() -> None:
    # 30 clips have the name "dog", and 10 clips have a name of their own. Each sample lists one irrelevant name.
    data = Words([["cat"], *[["dog"]] * 30, *[[f"rare {k}"] for k in range(10)]])
    sampler = AnomalyExposureSampler(data, ExposureOptions(probability=0, max_true=1), 17, max_categories=2)
    lists = [sampler.listing(0, epoch).categories for epoch in range(3000)]
    # Two draws without repetition: "dog" comes first (30/40), or a rare name (10/40) and then "dog" (30/39).
    dogs = sum("dog" in names for names in lists)
    assert stats.binomtest(dogs, 3000, 0.75 + 0.25 * 30 / 39).pvalue > UNLIKELY
    rare = Counter(int(name.split()[1]) for names in lists for name in names if name.startswith("rare"))
    assert uniform(rare, range(10)) > UNLIKELY


def test_a_seldom_name_is_found_where_it_is_the_only_one_left() -> None:
    data = Words([*[["car", "road"]] * 500, ["tram"]])
    sampler = AnomalyExposureSampler(data, ExposureOptions(probability=1), 1, max_categories=6)
    assert all("tram" in sampler.listing(index, 0).categories for index in range(500))


def test_labels_follow_the_masks_of_the_listed_objects_alone() -> None:
    data = Words([["a", "b", "a"], ["c"], ["d"]])
    sampler = AnomalyExposureSampler(data, ExposureOptions(probability=1, max_true=1), 5)
    seen = set()
    for epoch in range(30):
        sample = sampler.sample(0, epoch)
        (true,) = sampler.listing(0, epoch).true
        seen.add(true)
        rows = {"a": [0, 2], "b": [1]}[true]  # the masks of an anomaly "a" include both objects called "a"
        assert sorted({int(row) for row in np.nonzero(sample.masks)[1]}) == rows
        assert sample.labels.tolist() == {"a": [True, True, True], "b": [True, True, False]}[true]
        assert sample.anomalous
        assert (sample.frames == data[0].frames).all()
    assert seen == {"a", "b"}


def test_a_normal_sample_has_no_mask_and_none_of_its_own_names() -> None:
    data = letters(5)
    sampler = AnomalyExposureSampler(data, ExposureOptions(probability=0), 5)
    for index in range(5):
        sample = sampler.sample(index, 0)
        assert not sample.masks.any()
        assert not sample.labels.any()
        assert not sample.anomalous
        assert not set(sample.categories) & set(data.names(index))


def test_order_and_process_make_no_difference() -> None:
    forward = AnomalyExposureSampler(letters(), ExposureOptions(hard_share=0.5), 9)
    backward = AnomalyExposureSampler(letters(), ExposureOptions(hard_share=0.5), 9)
    theirs = {index: backward.listing(index, 4) for index in reversed(range(40))}
    assert {index: forward.listing(index, 4) for index in range(40)} == theirs
    assert any(forward.listing(index, 5) != theirs[index] for index in range(40))
    assert forward.plan(2).tolist() == backward.plan(2).tolist() != backward.plan(3).tolist()
    other = AnomalyExposureSampler(letters(), ExposureOptions(hard_share=0.5), 10)
    assert any(other.listing(index, 4) != theirs[index] for index in range(40))


def test_held_out_names_are_nowhere_and_samples_of_nothing_else_are_skipped() -> None:
    data = Words([["Red Ball"], ["red ball", "cube"], ["cone"], ["ring"], ["red  ball."]])
    options = ExposureOptions(held_out=("red ball",), hard_share=0.7)
    sampler = AnomalyExposureSampler(data, options, 1, hard=lambda name: ["RED BALL", "star"])
    assert sampler.usable == (1, 2, 3)
    assert sorted(sampler.plan(0).tolist()) == [1, 2, 3]
    assert sampler.vocabulary == ("cube", "cone", "ring")
    for epoch in range(200):
        for index in sampler.plan(epoch):
            listing = sampler.listing(int(index), epoch)
            assert "red ball" not in {same_name(name) for name in listing.categories + listing.true}
    with pytest.raises(LookupError, match="words: clip 0"):
        sampler.listing(0, 0)
    with pytest.raises(UsageError, match="words: no clip"):
        AnomalyExposureSampler(data, replace(options, held_out=frozenset({"red ball", "cube", "cone", "ring"})), 1)


def test_spellings_of_one_name_are_one_name() -> None:
    data = Words([["The Cat."], ["the  cat"], ["dog"]])
    sampler = AnomalyExposureSampler(data, ExposureOptions(probability=0.5), 1)
    for epoch in range(50):
        assert sampler.listing(0, epoch).categories in {("dog",), ("The Cat.", "dog"), ("dog", "The Cat.")}


def test_hard_names_share_a_word_and_come_as_often_as_asked() -> None:
    data = Words([["red ball"], *[[f"red {thing}"] for thing in "abcd"], *[[f"thing {k}"] for k in range(200)]])
    data.samples = [tuple(name.replace("red a", "red cone") for name in names) for names in data.samples]
    plain = AnomalyExposureSampler(data, ExposureOptions(probability=0, max_true=1), 2, max_categories=2)
    hard = AnomalyExposureSampler(data, ExposureOptions(probability=0, max_true=1, hard_share=0.5), 2, max_categories=2)

    def share(sampler: AnomalyExposureSampler) -> tuple[int, int]:
        names = [name for epoch in range(1000) for name in sampler.listing(0, epoch).categories]
        return sum(name.startswith("red") for name in names), len(names)

    red, count = share(hard)
    assert stats.binomtest(red, count, 0.5 + 0.5 * 4 / 204).pvalue > UNLIKELY  # by chance, random names are "red" too
    red, count = share(plain)
    assert stats.binomtest(red, count, 4 / 204).pvalue > UNLIKELY


def test_words_in_common_leave_articles_out() -> None:
    alike = shared_words(["the dog on the left", "a dog", "the cat", "The Dog", "red dog"])
    assert list(alike("the dog")) == ["the dog on the left", "a dog", "The Dog", "red dog"]
    assert list(alike("a red cat")) == ["red dog", "the cat"]
    assert not alike("on the")


def test_drawing_samples_needs_no_torch() -> None:
    code = "import sys, vadcli.train.samples, vadcli.train.datasets; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout
    assert said.strip() == "False"


def test_the_papers_caps() -> None:
    caps = {name: CATEGORY_LIMITS.get(name, MAX_CATEGORIES) for name in PAPER_MIX}
    assert caps.pop("mapillary") == 20
    assert caps.pop("cityscapes") == 6
    assert set(caps.values()) == {30}
    assert sum(PAPER_MIX.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"probability": 1.1}, "probability is 1.1"),
        ({"max_true": 0}, "max_true"),
        ({"min_irrelevant": -1}, "min_irrelevant"),
    ],
)
def test_options_check_themselves(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ExposureOptions(**wrong)  # type: ignore[arg-type]


def test_a_list_needs_room_for_a_true_name_and_an_irrelevant_one() -> None:
    with pytest.raises(UsageError, match="max_categories 1 is too small"):
        AnomalyExposureSampler(letters(), ExposureOptions(), 1, max_categories=1)


def test_data_whose_objects_are_not_what_the_names_said_is_refused() -> None:
    data = letters(5)
    sampler = AnomalyExposureSampler(data, ExposureOptions(), 1)
    data.names = lambda index: ("another",)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="objects of words/2"):
        sampler.sample(2, 0)


def test_fingerprints_tell_options_apart() -> None:
    options = ExposureOptions()
    prints = {
        AnomalyExposureSampler(data, chosen, seed).fingerprint()
        for data in (letters(5), letters(6))
        for chosen in (options, replace(options, probability=0.4), replace(options, held_out=("name 0.0",)))
        for seed in (1, 2)
    }
    assert len(prints) == 12


NAMES = st.sampled_from(["cat", "Cat", "dog", "red dog", "bus", "red bus", "tree", "sky"])


@settings(max_examples=150)
@given(
    samples=st.lists(st.lists(NAMES, max_size=4), min_size=2, max_size=6),
    options=st.builds(
        ExposureOptions,
        probability=st.sampled_from([0.0, 0.5, 1.0]),
        max_true=st.integers(1, 3),
        min_irrelevant=st.integers(0, 2),
        hard_share=st.sampled_from([0.0, 0.5, 1.0]),
        held_out=st.frozensets(NAMES, max_size=3).map(tuple),
    ),
    longest=st.integers(3, 8),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_whatever_the_data_every_sample_keeps_the_rules(
    samples: list[list[str]], options: ExposureOptions, longest: int, seed: int, epoch: int
) -> None:
    data = Words(samples)
    try:
        sampler = AnomalyExposureSampler(data, options, seed, max_categories=longest)
    except UsageError:
        allowed = {same_name(name) for names in samples for name in names} - set(map(same_name, options.held_out))
        for names in samples:
            own = {same_name(name) for name in names} & allowed
            assert not own or len(allowed - own) < max(1, options.min_irrelevant)
        return
    for index in sampler.plan(epoch):
        sample = sampler.sample(int(index), epoch)
        own = {same_name(name) for name in samples[index]}
        listed = [same_name(name) for name in sample.categories]
        assert len(set(listed)) == len(listed) <= longest
        assert not set(listed) & set(map(same_name, options.held_out))
        true = [key for key in listed if key in own]
        assert len(true) <= options.max_true
        assert len(listed) - len(true) >= (options.min_irrelevant if true else 1)
        assert sample.anomalous == bool(true) == bool(sample.masks.any())  # frame 0 shows every object
        assert options.probability == 0.5 or sample.anomalous == bool(options.probability)


def mixed(draws: int = 20, seed: int = 3) -> Mixture:
    parts = [(letters(count), weight) for count, weight in ((7, 0.5), (30, 0.3), (4, 0.2))]
    for place, (data, _) in enumerate(parts):
        data.name = f"part {place}"
    return Mixture([(AnomalyExposureSampler(data, ExposureOptions(), 1), weight) for data, weight in parts], draws, seed)


def test_a_mixture_keeps_to_its_weights_in_every_epoch() -> None:
    mixture = mixed()
    for epoch in range(4):
        assert Counter(draw.part for draw in mixture.plan(epoch)) == {0: 10, 1: 6, 2: 4}


def test_a_mixture_shows_every_sample_before_any_again_across_epochs() -> None:
    mixture = mixed()
    readings: dict[tuple[int, int], Counter[int]] = {}
    for epoch in range(7):
        for draw in mixture.plan(epoch):
            readings.setdefault((draw.part, draw.reading), Counter())[draw.index] += 1
    assert readings[0, 0] == Counter(range(7))  # 10 samples per epoch from 7 clips: the data set starts again within an epoch
    assert readings[1, 0] == Counter(range(30))  # 6 samples per epoch from 30 clips: one pass takes five epochs
    assert max(count for reading in readings.values() for count in reading.values()) == 1
    assert sum(sum(reading.values()) for reading in readings.values()) == 7 * 20


def test_a_mixtures_plan_is_shuffled_and_repeats_exactly() -> None:
    assert mixed().plan(5) == mixed().plan(5)
    assert [draw.part for draw in mixed().plan(0)] != [draw.part for draw in mixed(seed=4).plan(0)]
    parts = [draw.part for draw in mixed(draws=200).plan(0)]
    runs = sum(first != second for first, second in pairwise(parts))
    # Two neighbours differ with probability 1 − (.25 + .09 + .04) = .62: about 123 of 199, with a deviation of about 7.
    assert 95 < runs < 151


def test_a_mixture_reads_the_sample_that_its_plan_names() -> None:
    mixture = mixed()
    draw = mixture.plan(1)[0]
    sample = mixture.sample(draw)
    assert sample.key == f"part {draw.part}/{draw.index}"
    assert sample.categories == mixture.samplers[draw.part].listing(draw.index, draw.reading).categories


def test_mixtures_that_cannot_be_are_refused() -> None:
    sampler = AnomalyExposureSampler(letters(5), ExposureOptions(), 1)
    other = AnomalyExposureSampler(Words([["a"], ["b"]], "other"), ExposureOptions(), 1)
    with pytest.raises(ValueError, match="positive"):
        Mixture([(sampler, 0.0)], 10, 1)
    with pytest.raises(ValueError, match="positive"):
        Mixture([], 10, 1)
    with pytest.raises(ValueError, match="other: the weight gives less than 1 of 10 samples"):
        Mixture([(sampler, 1.0), (other, 0.001)], 10, 1)
    with pytest.raises(ValueError, match="twice"):
        Mixture([(sampler, 1.0), (sampler, 1.0)], 10, 1)
    assert mixed().fingerprint() == mixed().fingerprint() != mixed(draws=21).fingerprint()


@given(weights=st.lists(st.floats(0.2, 2), min_size=1, max_size=8), draws=st.integers(200, 9000))
def test_quotas_are_whole_and_within_one_of_the_weights(weights: list[float], draws: int) -> None:
    samplers = [AnomalyExposureSampler(Words([["a"], ["b"]], str(k)), ExposureOptions(), 1) for k in range(len(weights))]
    quotas = Mixture(list(zip(samplers, weights, strict=True)), draws, 1).quotas
    assert sum(quotas) == draws
    for weight, quota in zip(weights, quotas, strict=True):
        assert abs(quota - draws * weight / sum(weights)) < 1
