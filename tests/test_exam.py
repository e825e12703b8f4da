"""The exam of the small checkpoint: its questions, and an exchanged `<SEG>` that reveals no label."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from _exam import GROUPS, _mixed, samples_of

from tools.tiny_world import HELD_OUT_PAIRS, SyntheticWorld, WorldOptions, name_table
from tools.tiny_world.truth import Answer

WORLD = SyntheticWorld(WorldOptions(size_px=32), seed=12, split="test", length=40)
UNSEEN = set(HELD_OUT_PAIRS)


def test_each_question_has_one_true_name_and_the_other_list_none() -> None:
    for group in GROUPS:
        pairs = list(samples_of(WORLD, group, clips=40))
        assert pairs, group.name
        for true, false in pairs:
            facts = WORLD.facts(int(true.key))
            assert len(true.categories) == len(false.categories) == group.length
            holds = [name for name in true.categories if facts.answer(name_table()[name]) is Answer.TRUE]
            assert holds == list(true.true)
            assert len(holds) == 1
            assert all(facts.answer(name_table()[name]) is Answer.FALSE for name in false.categories)
            (pair,) = name_table()[holds[0]].pairs
            assert (pair in UNSEEN) == (group.pairs == "unseen")
            if group.pairs == "twin":
                assert sum(role.pair == pair for role in facts.roles) > len(facts.meant(name_table()[holds[0]]))


def test_the_next_list_is_another_clips_and_of_either_label() -> None:
    keys = [f"{clip}" for clip in range(16) for _ in range(2)]  # with a true name, without, clip by clip
    alike = 0
    for seed in range(200):
        order = _mixed(keys, np.random.default_rng(seed))
        following = order[1:] + order[:1]
        assert sorted(order) == list(range(32))
        assert all(keys[one] != keys[other] for one, other in zip(order, following, strict=True))
        alike += sum(one % 2 == other % 2 for one, other in zip(order, following, strict=True))
    assert 0.45 < alike / (200 * 32) < 0.55
