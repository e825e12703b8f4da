"""Tests of the synthetic world: its clips, masks, names, and held-out pairs and motions."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path

import av
import numpy as np
import pytest

from tests.patience import PATIENCE_S
from tools.tiny_world import HELD_OUT_PAIRS, VALIDATION_PAIRS, SyntheticWorld, WorldOptions, name_table
from tools.tiny_world import world as world_module
from tools.tiny_world.painting import compressed, paint
from tools.tiny_world.scene import Course, Film, Light, Paint, Role, Scene, Sway, Thing
from tools.tiny_world.silhouettes import silhouettes
from tools.tiny_world.truth import Answer, observe
from tools.tiny_world.videos import VideoOptions, draw_video, write_videos
from tools.tiny_world.words import COLOURS, MOTIONS, SHAPES, related
from tools.tiny_world.world import object_masks, parsed
from vadcli.errors import OutputError, UsageError
from vadcli.ground_truth import open_ground_truth
from vadcli.train.samples import SegmentationData
from vadcli.types import BoolArray, TimeArray

PLAIN = WorldOptions(texture=0, lighting=0, noise=0, compressed=0, shake=0)
ALONE = replace(PLAIN, objects=(1, 1), clutter=0, distractors=0, hard=0, interactions=0, comings=0)
TOWARDS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
STILL = Sway(((0.0,) * 3,) * 2, ((1.0,) * 3,) * 2, ((0.0,) * 3,) * 2)
MANY = 300


def train(options: WorldOptions = WorldOptions(), *, seed: int = 5) -> SyntheticWorld:
    return SyntheticWorld(options, seed=seed, split="train")


@cache
def usual() -> SyntheticWorld:
    return train()


def digest(world: SyntheticWorld, index: int) -> str:
    clip = world[index]
    parts = [clip.key.encode(), clip.frames.tobytes(), *(item.name.encode() + item.masks.tobytes() for item in clip.objects)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def centroids(masks: BoolArray) -> tuple[TimeArray, TimeArray]:
    """Return x and y of the centre of a mask, in sides of the frame; NaN if the mask is empty."""
    side = masks.shape[-1]
    with np.errstate(invalid="ignore"):
        area = masks.sum(axis=(1, 2))
        x = (masks * np.arange(side)[None, None, :]).sum(axis=(1, 2)) / area
        y = (masks * np.arange(side)[None, :, None]).sum(axis=(1, 2)) / area
    return x / side, y / side


def whole(masks: BoolArray) -> bool:
    """Return whether the object touches no edge of the frame."""
    return not (masks[:, 0].any() or masks[:, -1].any() or masks[..., 0].any() or masks[..., -1].any())


def inner(mask: BoolArray) -> BoolArray:
    """Return the pixels whose neighbours are all in the mask too."""
    padded = np.pad(mask, 1)
    shifts = [
        padded[1 + dy : mask.shape[0] + 1 + dy, 1 + dx : mask.shape[1] + 1 + dx] for dy, dx in product((-1, 0, 1), repeat=2)
    ]
    return np.logical_and.reduce(shifts)


# Reproducible clips


def test_a_clip_follows_from_its_index_alone() -> None:
    forwards, backwards = train(), train()
    first = [digest(forwards, index) for index in range(6)]
    assert [digest(backwards, index) for index in reversed(range(6))] == first[::-1]
    assert len(set(first)) == 6


def test_seeds_splits_and_options_are_different_worlds() -> None:
    worlds = [
        train(),
        train(seed=6),
        SyntheticWorld(WorldOptions(), seed=5, split="validation"),
        SyntheticWorld(WorldOptions(), seed=5, split="test"),
        train(replace(WorldOptions(), noise=7.0)),
    ]
    assert len({world[0].frames.tobytes() for world in worlds}) == len(worlds)
    assert len({world.fingerprint() for world in worlds}) == len(worlds)
    assert train().fingerprint() == train().fingerprint()
    assert SyntheticWorld(WorldOptions(), seed=5, split="train", length=3).fingerprint() != train().fingerprint()


def test_another_process_with_another_hash_seed_makes_the_same_clip() -> None:
    code = (
        "from tests.tiny_world.test_synthetic import digest, train\n"
        "world = train()\n"
        "print(digest(world, 1), '|'.join(world.names(1)))"
    )
    root = Path(__file__).resolve().parents[2]
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_S,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert digest(train(), 1) in said[0]


def test_workers_get_the_same_world() -> None:
    world = SyntheticWorld(ALONE, seed=2, split="test", length=9)
    world.names(0)
    copy = pickle.loads(pickle.dumps(world))
    assert copy.fingerprint() == world.fingerprint()
    assert digest(copy, 4) == digest(world, 4)


def test_the_world_is_a_segmentation_data_set() -> None:
    data: SegmentationData = SyntheticWorld(WorldOptions(size_px=64, frames=6), seed=0, split="train", length=3)
    clip = data[2]
    assert clip.frames.shape == (6, 64, 64, 3)
    assert clip.names == data.names(2)
    assert len(data) == 3
    with pytest.raises(IndexError, match="0 to 2, not 3"):
        data[3]
    with pytest.raises(IndexError):
        data.names(-1)


def test_names_need_no_painting(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object, **options: object) -> None:
        raise AssertionError("painted")

    expected = train().names(7)
    monkeypatch.setattr(world_module, "paint", forbidden)
    assert train().names(7) == expected
    with pytest.raises(AssertionError, match="painted"):
        train()[7]


# Masks


def test_masks_are_where_an_objects_own_colour_is() -> None:
    world = train(PLAIN)
    inside = other = 0
    for index in range(20):
        frames, masks = world.frames(index), world.masks(index)
        assert (masks.sum(axis=0) <= 1).all()
        anyone = masks.any(axis=0)
        for thing, mask in zip(world.scene(index).cast, masks, strict=True):
            own = (frames == np.rint(thing.paint.colour).astype(np.uint8)).all(axis=-1)
            for frame in range(len(frames)):
                if own[frame].sum() >= 40:  # a smaller part may be a sliver, which the mask leaves out
                    assert not (own[frame] & ~anyone[frame]).any()
                middle = inner(mask[frame])
                inside += int(middle.sum())
                other += int((middle & ~own[frame]).sum())
    assert inside > 50_000
    assert other < 0.0005 * inside  # a pixel on a sharp edge, or a pixel of which another thing covers less than half


def square(x: float, *, role: Role | None, radius: float = 0.2, outline: str = "square") -> Thing:
    return Thing(outline, Course(x, 0.5), radius, Paint((200.0, 40.0, 40.0)), role=role)


def by_hand(*things: Thing) -> Scene:
    return Scene(things, (90.0, 90.0, 90.0), 0.0, STILL, Light(), Film(), 0)


def masks_of(scene: Scene, *, times: int = 8) -> BoolArray:
    return object_masks(silhouettes(scene, np.arange(times) / 7.5, 128), 128)


def test_the_nearer_object_hides_the_farther_one() -> None:
    red, blue = (Role((colour, "square"), "large", "standing still") for colour in ("red", "blue"))
    far, near = square(0.4, role=red), square(0.6, role=blue)
    hidden, free = masks_of(by_hand(far, near))[:, 0], masks_of(by_hand(near, far))[:, 0]
    half = round(0.8 * 0.2 * 128)  # half of the square's side
    assert free[1].sum() == masks_of(by_hand(far))[0, 0].sum() == pytest.approx((2 * half) ** 2, rel=0.06)
    overlap = 2 * 0.8 * 0.2 - 0.2
    assert hidden[0].sum() == pytest.approx(free[1].sum() * (1 - overlap / (2 * 0.8 * 0.2)), rel=0.06)
    assert not (hidden[0] & hidden[1]).any()


def test_clutter_in_front_hides_and_behind_does_not() -> None:
    role = Role(("red", "square"), "large", "standing still")
    post = Thing("box", Course(0.5, 0.5), 0.6, Paint((50.0, 50.0, 50.0)), wide=0.1)
    thing = square(0.5, role=role)
    before, behind, alone = masks_of(by_hand(thing, post)), masks_of(by_hand(post, thing)), masks_of(by_hand(thing))
    assert np.array_equal(behind, alone)
    covered = alone & ~before
    assert covered[0, 0].any(axis=0).sum() == pytest.approx(2 * 0.6 * 0.1 * 128, abs=1)


def test_shake_moves_ground_objects_and_masks_together() -> None:
    thing = square(0.5, role=Role(("red", "square"), "large", "standing still"), radius=0.15)
    sway = Sway(((0.05, 0, 0), (0, 0, 0)), ((0.7, 1, 1), (1, 1, 1)), ((0.3, 0, 0), (0, 0, 0)))
    scene = replace(by_hand(thing), sway=sway, texture=1.0)
    times_s = np.arange(8) / 7.5
    shapes = silhouettes(scene, times_s, 128)
    x, y = centroids(object_masks(shapes, 128)[0])
    offset = sway.at(times_s)[:, 0]
    assert np.ptp(offset) > 0.05
    np.testing.assert_allclose(x - x.mean(), offset - offset.mean(), atol=0.006)
    np.testing.assert_allclose(y, y[0], atol=1e-9)
    frames = paint(scene, shapes, times_s, 128).astype(int)
    shift = round(128 * (offset[4] - offset[0]))
    ground = [frame[:20, 30:90] for frame in (frames[0], np.roll(frames[4], -shift, axis=1), frames[4])]
    assert np.abs(ground[1] - ground[0]).mean() < 0.5 * np.abs(ground[2] - ground[0]).mean()


# Names


@cache
def performances() -> dict[str, list[BoolArray]]:
    """Return the masks of single objects by their motion."""
    world, found = train(ALONE), defaultdict(list)
    for index in range(MANY):
        (role,) = world.facts(index).roles
        found[role.motion].append(world.masks(index)[0])
    assert set(found) == set(MOTIONS)
    return found


@pytest.mark.parametrize("direction", TOWARDS)
def test_what_moves_in_a_direction_does_so_on_the_picture(direction: str) -> None:
    east, south = TOWARDS[direction]
    paces = defaultdict(list)
    for pace in ("slowly", "fast"):
        for masks in performances()[f"moving {direction} {pace}"]:
            x, y = centroids(masks)
            seen = np.flatnonzero(masks.any(axis=(1, 2)))
            along, across = x * east + y * south, x * south - y * east
            steps = np.diff(along[seen]) / np.diff(seen)
            assert along[seen[-1]] - along[seen[0]] > 0.03
            if whole(masks):
                assert abs(across[seen[-1]] - across[seen[0]]) < 0.3 * (along[seen[-1]] - along[seen[0]]) + 0.01
                paces[pace].append(steps.mean() * 7.5)
    assert max(paces["slowly"]) < 0.2 < 0.4 < min(paces["fast"])


def test_what_stands_still_or_blinks_stays_where_it_is() -> None:
    for motion in ("standing still", "blinking"):
        for masks in performances()[motion]:
            x, y = centroids(masks)
            assert np.nanmax(np.abs([x - np.nanmean(x), y - np.nanmean(y)])) < 0.002
            seen = masks.any(axis=(1, 2))
            assert seen.all() if motion == "standing still" else 2 <= seen.sum() <= 6
            assert motion == "standing still" or np.diff(seen).sum() >= 2


def test_what_grows_or_shrinks_changes_its_area() -> None:
    for motion, sign in (("growing", 1), ("shrinking", -1)):
        for masks in filter(whole, performances()[motion]):
            area = masks.sum(axis=(1, 2)).astype(float)
            assert (sign * np.diff(area) > 0).all()
            assert sign * np.log(area[-1] / area[0]) == pytest.approx(2 * 0.9 * 7 / 7.5, abs=0.4)


def test_what_falls_is_faster_and_faster() -> None:
    checked = 0
    for masks in performances()["falling"]:
        x, y = centroids(masks)
        steps = [after - before for before, after in pairwise(y) if after < 0.75]
        assert (np.diff(steps) > -0.004).all()
        if len(steps) > 3 and whole(masks[:5]):
            checked += 1
            assert np.diff(steps).mean() == pytest.approx(1.3 / 7.5**2, abs=0.006)
        assert np.nanmax(np.abs(x - x[0])) < 0.02
        assert y[np.isfinite(y)][-1] - y[0] > 0.3
    assert checked >= 5


def test_what_circles_goes_all_around_and_what_shakes_turns_back_often() -> None:
    for masks in filter(whole, performances()["circling"]):
        x, y = centroids(masks)
        angle = np.unwrap(np.arctan2(np.diff(y), np.diff(x)))
        assert abs(angle[-1] - angle[0]) > 0.6 * 2 * np.pi
        assert np.ptp(x) == pytest.approx(np.ptp(y), rel=0.25)
    for masks in filter(whole, performances()["shaking"]):
        x, _ = centroids(masks)
        assert (np.diff(np.sign(np.diff(x))) != 0).sum() >= 3
        assert 0.015 < np.ptp(x) < 0.1


def test_every_true_name_means_something_that_is_seen() -> None:
    for index in range(60):
        queries = usual().queries(index)
        assert [query.name for query in queries] == list(usual().names(index))
        assert queries
        for query in queries:
            assert query.labels.any(), (index, query.name)
            assert np.array_equal(query.labels, query.masks.any(axis=(1, 2)))
            assert usual().is_true(index, query.name)
            assert not usual().is_false(index, query.name)


def test_a_name_means_the_union_of_all_that_it_fits() -> None:
    for index in range(30):
        facts, parts = usual().facts(index), usual().masks(index)
        for query in usual().queries(index):
            name = parsed(query.name)
            if name.deed or name.relation:
                continue
            fitting = [
                (not name.colour or name.colour == role.pair[0])
                and (not name.shape or name.shape == role.pair[1])
                and (not name.size or name.size == role.size)
                for role in facts.roles
            ]
            assert np.array_equal(query.masks, parts[np.array(fitting)].any(axis=0))


def test_a_clip_says_all_that_is_true_and_nothing_else() -> None:
    for index in range(8):
        names = set(usual().names(index))
        assert names == {text for text in name_table() if usual().is_true(index, text)}
        both = [text for text in usual().vocabulary if usual().is_false(index, text)]
        assert not names & set(both)
        assert len(both) > 0.9 * len(usual().vocabulary)


def test_some_clips_can_only_be_told_by_motion() -> None:
    hard = [index for index in range(MANY) if usual().facts(index).twins]
    assert abs(len(hard) / MANY - WorldOptions().hard) < 4 * np.sqrt(0.4 * 0.6 / MANY)
    told = 0
    for index in hard[:20]:
        facts, queries = usual().facts(index), {query.name: query for query in usual().queries(index)}
        pairs = [role.pair for role in facts.roles]
        twin = next(pair for pair in pairs if pairs.count(pair) > 1)
        alike = queries[" ".join(twin)].masks
        deeds = [queries[name].masks for name in queries if name.startswith(" ".join(twin)) and parsed(name).kind == "motion"]
        assert all((alike | masks == alike).all() for masks in deeds)
        told += any(masks.sum() < alike.sum() for masks in deeds)
    assert told == len(hard[:20])
    easy = train(replace(WorldOptions(), hard=0, objects=(1, 1)))
    assert not any(easy.facts(index).twins for index in range(40))


def pair_of(relation: str, *, wanted: int = 4) -> list[tuple[BoolArray, BoolArray]]:
    """Return the masks of both objects in clips where the first has this relation to the second."""
    world = train(replace(PLAIN, objects=(2, 2), clutter=0, distractors=0, hard=0, interactions=1))
    found = []
    for index in range(MANY):
        for (named, one, other), verdict in world.facts(index).relations.items():
            if named == relation and verdict is Answer.TRUE:
                masks = world.masks(index)
                found.append((masks[one], masks[other]))
                roles = world.facts(index).roles
                assert {str(name) for name in related(roles[one].pair, relation, roles[other].pair)} <= set(world.names(index))
        if len(found) >= wanted:
            return found
    raise AssertionError(f"{relation} hardly ever happens")


def test_who_chases_is_behind_and_follows() -> None:
    for one, other in pair_of("chasing"):
        both = one.any(axis=(1, 2)) & other.any(axis=(1, 2))
        (x, y), (u, v) = centroids(one[both]), centroids(other[both])
        going = np.array([u[-1] - u[0], v[-1] - v[0]])
        ahead = np.stack([u - x, v - y], axis=1) @ (going / np.hypot(*going))
        assert (ahead > 0.05).all()
        assert going @ np.array([x[-1] - x[0], y[-1] - y[0]]) > 0


def test_who_appears_before_is_seen_earlier() -> None:
    for one, other in pair_of("appearing before"):
        first, second = one.any(axis=(1, 2)).argmax(), other.any(axis=(1, 2)).argmax()
        assert 1 <= first <= second - 2


def test_what_touches_has_no_gap_and_what_is_in_front_is_whole() -> None:
    for one, other in pair_of("touching"):
        grown = np.pad(one, ((0, 0), (2, 2), (2, 2)))
        near = np.logical_or.reduce([np.roll(grown, (dy, dx), (1, 2)) for dy, dx in product(range(-2, 3), repeat=2)])
        assert (near[:, 2:-2, 2:-2] & other).any()
    for one, other in pair_of("in front of"):
        grown = np.logical_or.reduce([np.roll(one, step, 2) for step in (-2, 2)])
        assert (grown & other).any()


def test_presence_is_told_by_frames() -> None:
    world, seen = train(replace(ALONE, comings=1)), defaultdict(int)
    for index in range(MANY):
        (role,) = world.facts(index).roles
        there = world.masks(index)[0].any(axis=(1, 2))
        names = world.names(index)
        seen[role.presence] += 1
        assert ("something appearing" in names) == (role.presence in ("appearing", "showing briefly"))
        assert ("something disappearing" in names) == (role.presence in ("disappearing", "showing briefly"))
        if "something appearing" in names:
            assert not there[0]
        if "something disappearing" in names:
            assert not there[-1]
        if "something showing briefly" in names:
            assert 2 <= there.sum() <= 3
    assert min(seen[presence] for presence in ("appearing", "disappearing", "showing briefly")) >= 5


def test_what_people_would_argue_about_is_neither_true_nor_false() -> None:
    world = train(ALONE)
    growing = next(index for index in range(MANY) if world.facts(index).roles[0].motion == "growing")
    colour, shape = world.facts(growing).roles[0].pair
    for name in (f"large {colour} {shape}", f"{colour} {shape} standing still"):
        assert not world.is_true(growing, name)
        assert not world.is_false(growing, name)
    assert world.is_false(growing, f"{colour} {shape} shrinking")


def test_order_in_depth_and_time_is_told_the_right_way_round() -> None:
    red, blue = (Role((colour, "square"), "large", "standing still", "appearing") for colour in ("red", "blue"))
    times_s = np.arange(8) / 7.5

    def verdicts(red_from: int, blue_from: int) -> tuple[Answer, Answer]:
        far = replace(square(0.4, role=red), from_s=times_s[red_from] - 0.01)
        near = replace(square(0.6, role=blue), from_s=times_s[blue_from] - 0.01)
        facts = observe(by_hand(far, near), times_s)
        assert facts.answer(parsed("blue square in front of the red square")) is Answer.TRUE
        assert facts.answer(parsed("red square in front of the blue square")) is Answer.FALSE
        assert facts.answer(parsed("red square touching the blue square")) is Answer.TRUE
        one, other = (
            parsed("red square appearing before the blue square"),
            parsed("blue square appearing before the red square"),
        )
        return facts.answer(one), facts.answer(other)

    assert verdicts(1, 4) == (Answer.TRUE, Answer.FALSE)
    assert verdicts(5, 2) == (Answer.FALSE, Answer.TRUE)
    assert verdicts(3, 4) == (Answer.ARGUABLE, Answer.FALSE)
    assert verdicts(3, 3) == (Answer.FALSE, Answer.FALSE)


def test_what_stands_in_the_way_makes_presence_arguable() -> None:
    role = Role(("red", "circle"), "small", "moving right fast")
    thing = Thing("circle", Course(0.2, 0.5, speed=(0.55, 0.0)), 0.08, Paint((200.0, 40.0, 40.0)), role=role)
    wall = Thing("box", Course(0.45, 0.5), 0.12, Paint((50.0, 50.0, 50.0)))
    times_s = np.arange(8) / 7.5
    name = parsed("red circle disappearing")
    assert observe(by_hand(thing), times_s).answer(name) is Answer.FALSE
    assert observe(by_hand(thing, wall), times_s).answer(name) is Answer.ARGUABLE


def test_the_table_holds_every_name_once() -> None:
    table = name_table()
    assert all(str(name) == text for text, name in table.items())
    assert len(set(table.values())) == len(table)
    assert {name.kind for name in table.values()} == {"appearance", "size", "motion", "order", "interaction"}
    for index in range(40):
        assert set(usual().names(index)) <= set(usual().vocabulary)
    with pytest.raises(UsageError, match="no name 'a red star'"):
        usual().is_true(0, "a red star")


# Held out


def shown(world: SyntheticWorld, count: int = MANY) -> tuple[set[tuple[str, str]], set[str], set[str]]:
    """Return the pairs and motions that clips show, and the names that they have."""
    roles, names = [], set()
    for index in range(count):  # one clip after another, because a world caches only the newest clips
        roles += world.facts(index).roles
        names.update(world.names(index))
    return {role.pair for role in roles}, {role.motion for role in roles}, names


def test_each_split_knows_its_own_pairs_only() -> None:
    held_out, validation = set(HELD_OUT_PAIRS), set(VALIDATION_PAIRS)
    assert not held_out & validation
    common = set(product(COLOURS, SHAPES)) - held_out - validation
    for word in (*COLOURS, *SHAPES):
        assert sum(word in pair for pair in common) >= 4
    for split, own in (("train", set()), ("validation", validation), ("test", held_out)):
        world = SyntheticWorld(WorldOptions(), seed=5, split=split)
        pairs, _, names = shown(world)
        assert pairs == common | own
        assert {pair for name in names for pair in parsed(name).pairs} <= common | own
        assert {pair for name in world.vocabulary for pair in parsed(name).pairs} == common | own
        assert all(world.allows(name) for name in names)


def test_half_of_the_tests_objects_are_unseen_pairs() -> None:
    world = SyntheticWorld(replace(WorldOptions(), hard=0), seed=5, split="test")
    rare = [role.pair in HELD_OUT_PAIRS for index in range(MANY) for role in world.facts(index).roles]
    assert abs(np.mean(rare) - 0.5) < 4 * np.sqrt(0.25 / len(rare))


def test_held_out_motions_are_neither_shown_nor_named_in_training() -> None:
    options = replace(WorldOptions(), held_out_motions=("circling", "moving left"))
    out = {"circling", "moving left", "moving left slowly", "moving left fast"}
    _, motions, names = shown(train(options), 100)
    assert motions == set(MOTIONS) - out
    assert not {parsed(name).deed for name in (*names, *train(options).vocabulary)} & out
    _, motions, names = shown(SyntheticWorld(options, seed=5, split="test"), 100)
    assert out <= {parsed(name).deed for name in names}
    assert motions == set(MOTIONS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size_px": 100}, "multiple of 16"),
        ({"frames": 4}, "at least 6"),
        ({"frames": 31}, "at most 4 s at 7.5 frames per second"),
        ({"objects": (3, 2)}, "in ascending order"),
        ({"hard": 1.5}, "share from 0 to 1"),
        ({"noise": -1}, "0 or more"),
        ({"held_out_pairs": (("mauve", "star"),)}, "colours and shapes"),
        ({"validation_pairs": HELD_OUT_PAIRS[:1]}, "different pairs"),
        ({"held_out_motions": ("flying",)}, "some of standing still"),
        ({"held_out_motions": MOTIONS[1:]}, "leave at least two"),
    ],
)
def test_options_that_make_no_world_say_so(change: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        replace(WorldOptions(), **change)


def test_a_split_must_exist() -> None:
    with pytest.raises(UsageError, match="no split 'dev'"):
        SyntheticWorld(WorldOptions(), seed=0, split="dev")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="negative"):
        SyntheticWorld(WorldOptions(), seed=-1, split="test")


# Noise and compression


def test_quantisation_loses_more_the_lower_the_quality() -> None:
    frames = usual().frames(3)[:2].astype(np.float32)
    errors = [np.abs(compressed(frames, quality) - frames).mean() for quality in (95, 50, 10)]
    assert 0 < errors[0] < errors[1] < errors[2]
    flat = np.full((1, 32, 32, 3), 128, np.float32)
    np.testing.assert_allclose(compressed(flat, 10), flat, atol=1e-3)


def test_quantisation_works_in_blocks_of_eight() -> None:
    rng = np.random.default_rng(0)
    frames = np.clip(128 + rng.normal(0, 6, (1, 64, 64, 1)).cumsum(axis=2), 0, 255).repeat(3, axis=-1).astype(np.float32)
    coarse = compressed(frames, 5)[0, ..., 0]
    steps = np.abs(np.diff(coarse, axis=1)).mean(axis=0)  # differences between columns
    at_seams = steps[7::8].mean()
    assert at_seams > 3 * np.delete(steps, np.arange(7, 63, 8)).mean()


def test_noise_and_light_are_as_wide_as_asked() -> None:
    scene = replace(by_hand(), film=Film(noise=6.0), light=Light((0.5, 1.0, 1.5)))
    frames = paint(scene, [], np.arange(8) / 7.5, 64).astype(float)
    np.testing.assert_allclose(frames.mean(axis=(0, 1, 2)), [45, 90, 135], atol=0.3)
    assert frames.std() > 6
    np.testing.assert_allclose((frames[1:] - frames[:-1]).std() / np.sqrt(2), 6.0, atol=0.15)


# Videos


def read(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


SHORT = VideoOptions(seconds=5, fps=10, objects_per_s=0.8, normal=0.25)


def test_the_truth_of_videos_is_what_is_seen_in_them(tmp_path: Path) -> None:
    world = train(replace(PLAIN, size_px=96))
    truth = write_videos(tmp_path, world, range(4), categories=["something red"], options=SHORT)
    assert sorted(path.name for path in tmp_path.iterdir()) == [truth.name, *(f"train-5-{index:05d}.mp4" for index in range(4))]
    labelled = 0
    for video, of_video in ((entry.video, entry) for entry in open_ground_truth("csv", tmp_path).read()):
        frames = read(tmp_path / video).astype(int)
        assert frames.shape == (50, 96, 96, 3)
        red = ((frames[..., 0] > 150) & (frames[..., 1:] < 95).all(axis=-1)).sum(axis=(1, 2))
        intervals = of_video.annotation.intervals
        for at, count in enumerate(red):
            inside = any(span.start_s - 1e-4 <= at / 10 < span.end_s - 1e-4 for span in intervals)
            labelled += inside
            assert count > 0 if inside else count < 30, (video, at)
    assert 20 < labelled < 180


def test_videos_are_the_same_each_time_and_some_are_normal(tmp_path: Path) -> None:
    world = train(replace(WorldOptions(), size_px=32))
    tiny = replace(SHORT, seconds=2, normal=0.5)
    names = ["something falling", "something small"]
    texts = [
        write_videos(tmp_path / folder, world, indices, categories=names, options=tiny).read_text()
        for folder, indices in (("a", range(10)), ("b", reversed(range(10))))
    ]
    lines = [text.splitlines() for text in texts]
    assert lines[0][0] == "video,start_s,end_s,category"
    assert sorted(lines[0]) == sorted(lines[1])
    normal = [line for line in lines[0] if line.endswith(",,,")]
    assert 1 <= len(normal) <= 9
    assert {line.rsplit(",", 1)[1] for line in lines[0][1:]} <= {"", *names}
    videos = [(tmp_path / folder / "train-5-00003.mp4").read_bytes() for folder in "ab"]
    assert videos[0] == videos[1]


@pytest.mark.parametrize("seconds", [12.0, 120.0])
def test_what_grows_or_moves_without_a_name_comes_and_goes_in_a_long_video(seconds: float) -> None:
    world, options = train(), VideoOptions(seconds=seconds)
    every_s = np.arange(0, seconds, 0.5)
    at_once, largest = [], 0.0
    for index in range(10):
        scene = draw_video(world, index, [parsed("red star")], options)
        passing = [thing for thing in scene.things if thing.role is None and thing.outline == "lump" and thing.until_s < np.inf]
        at_once.append(np.sum([thing.shown(every_s) for thing in passing], axis=0) if passing else np.zeros(len(every_s)))
        for thing in scene.things:
            if thing.course == Course(thing.course.x, thing.course.y):
                continue  # clutter stands still and may be as large as the frame
            shown = every_s[thing.shown(every_s)]
            largest = max([largest, *(thing.radius * thing.course.scale(shown))])
    assert 0.2 < largest < 0.36, "of the largest radius, .12, e to the .9"
    assert 0.5 < np.mean(at_once) < 1.5, "a clip has 0 to 2"
    thirds = np.array_split(np.mean(at_once, axis=0), 3)
    assert min(part.mean() for part in thirds) > 0.25, "at any time"


@pytest.mark.filterwarnings("error")
def test_a_video_of_an_hour_has_numbers_everywhere() -> None:
    world, options = train(replace(WorldOptions(), size_px=32)), VideoOptions(seconds=3600, objects_per_s=0.1, normal=0.0)
    scene = draw_video(world, 0, [parsed("something shrinking"), parsed("something growing")], options)
    assert {"growing", "shrinking"} <= {thing.role.motion for thing in scene.cast if thing.role}
    for start in (0, 1800, 3599):
        shapes = silhouettes(scene, start + np.arange(4) / 30, 32)
        assert all(np.isfinite(shape.alpha).all() for shape in shapes)
        assert max(max(shape.alpha.shape[1:]) for shape in shapes) < 3 * 32


def test_videos_that_can_not_be_written_are_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "films").write_text("a file")
    with pytest.raises(OutputError, match="films: is a file, but must be a folder"):
        write_videos(tmp_path / "films", train(), [0], categories=["red star"], options=SHORT)


@pytest.mark.parametrize(
    ("categories", "says"),
    [
        (["red square"], "held out from train"),
        (["red star appearing"], "can't be a category of a video"),
        (["a dog"], "no name 'a dog'"),
        ([], "at least one category"),
    ],
)
def test_categories_that_a_video_cant_show_are_refused(tmp_path: Path, categories: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        write_videos(tmp_path, train(), [0], categories=categories, options=SHORT)
    assert not list(tmp_path.iterdir())
