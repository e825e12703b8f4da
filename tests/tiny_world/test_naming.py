"""Tests of lists of names: true and false names, and no held-out pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.tiny_world import HELD_OUT_PAIRS, VALIDATION_PAIRS, SyntheticWorld, WorldOptions, name_table
from tools.tiny_world.naming import PATTERNS, NameList, Naming, SpokenWorld
from vadcli.errors import UsageError

WORLD = SyntheticWorld(WorldOptions(size_px=32), seed=4, split="train", length=40)
EVERYTHING = Naming(WORLD, patterns=tuple(PATTERNS), hard=0.5)


@given(index=st.integers(0, 39), seed=st.integers(0, 2**32), length=st.integers(1, 12), true=st.integers(0, 3))
def test_lists_say_what_holds(index: int, seed: int, length: int, true: int) -> None:
    facts = WORLD.facts(index)
    listed = EVERYTHING.listing(facts, np.random.default_rng(seed), length=length, true=min(true, length))
    assert len(set(listed.names)) == len(listed.names) <= length
    for name, holds, meant in zip(listed.names, listed.true, listed.meant, strict=True):
        assert WORLD.is_true(index, name) == holds
        assert WORLD.is_false(index, name) == (not holds), "arguable names are in no list"
        assert meant == facts.meant(name_table()[name])
    assert sum(listed.true) <= true
    assert listed.objects == tuple(sorted({place for places in listed.meant for place in places}))


def test_held_out_pairs_are_never_spoken_of() -> None:
    held_out = {f"{colour} {shape}" for colour, shape in (*HELD_OUT_PAIRS, *VALIDATION_PAIRS)}
    rng = np.random.default_rng(0)
    spoken = [name for index in range(40) for name in EVERYTHING.listing(WORLD.facts(index), rng, length=12, true=3).names]
    assert len(spoken) > 300
    assert not [name for name in spoken for pair in held_out if pair in name]


def test_hard_names_are_a_word_away_from_a_true_one() -> None:
    hard = Naming(WORLD, patterns=("pair",), hard=1.0)
    rng = np.random.default_rng(1)
    for index in range(40):
        facts = WORLD.facts(index)
        for name in hard.listing(facts, rng, length=6, true=0).names:
            assert any(sum(word in role.pair for word in name.split()) == 1 for role in facts.roles), name


def test_unknown_patterns_are_named() -> None:
    with pytest.raises(UsageError, match="weight"):
        Naming(WORLD, patterns=("weight",), hard=0)
    with pytest.raises(UsageError):
        Naming(WORLD, patterns=(), hard=0)


def test_a_spoken_world_names_only_some_kinds() -> None:
    spoken = SpokenWorld(WORLD, ("pair", "pair deed"))
    for index in range(10):
        names = spoken.names(index)
        assert names
        assert set(names) < set(WORLD.names(index))
        assert all(name_table()[name].colour and name_table()[name].shape for name in names)
        assert not any(name_table()[name].size or name_table()[name].relation for name in names)
    assert spoken[3].names == spoken.names(3)
    assert spoken.fingerprint() != WORLD.fingerprint() != SpokenWorld(WORLD, ("pair",)).fingerprint()


def test_a_list_without_true_names_means_nothing() -> None:
    assert NameList(("red star",), ((),)).objects == ()
