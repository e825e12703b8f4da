"""Asks a small LAVIDA about new clips of the synthetic world, and marks its answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from vadcli.metrics import Bootstrap, Metric
from vadcli.metrics.frame import FrameSet, frame_auc
from vadcli.metrics.localization import PixelAccumulator, mask_iou, pixel_ap, pixel_auc
from vadcli.train.samples import ExposureSample
from vadcli.train.step import ExposureStep, Seg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout: tools/ is not part of the wheel
from tools.tiny_world import SyntheticWorld
from tools.tiny_world.naming import Naming
from tools.tiny_world.truth import Answer, Facts
from tools.tiny_world.words import DEEDS, Name

T = TypeVar("T")
BOOTSTRAP = Bootstrap()


@dataclass(frozen=True)
class Group:
    """One kind of question.

    Each suitable clip is scored with two lists of names: only one list has a true name.

    Attributes:
        name: name of the group. It also seeds the questions, so it must not change.
        pattern: the parts of a name: `pair` is a colour and a shape, `pair deed` has a motion, too.
        pairs: `seen` for colour-shape pairs that training showed, `unseen` for other pairs. `twin` is a seen pair that two
            objects of the clip have; only their motions differ.
        length: number of names per list.
        wanted: the promised frame AUC; None if no figure is promised.
    """

    name: str
    pattern: str
    pairs: str
    length: int
    wanted: float | None = None


def title(name: str) -> str:
    """Return the name of a group for tables."""
    return name.replace("a motion that another object like it has", "motion of one of two similar objects")


GROUPS = (
    Group("seen pairs, 1 name", "pair", "seen", 1),
    Group("seen pairs, 8 names", "pair", "seen", 8, 0.98),
    Group("seen pairs, 24 names", "pair", "seen", 24),
    Group("pairs never shown, 1 name", "pair", "unseen", 1, 0.95),
    Group("pairs never shown, 8 names", "pair", "unseen", 8, 0.90),
    Group("pairs never shown, 24 names", "pair", "unseen", 24, 0.87),
    Group("a motion that another object like it has, 1 name", "pair deed", "twin", 1, 0.90),
    Group("a motion that another object like it has, 4 names", "pair deed", "twin", 4, 0.85),
    Group("any motion, seen pairs, 1 name", "pair deed", "seen", 1),
    Group("any motion, seen pairs, 8 names", "pair deed", "seen", 8),
)


@dataclass(frozen=True)
class Marks:
    """The results of one group of questions.

    Attributes:
        frames: frame AUC over all frames of both lists.
        iou, ap, auc: mask IoU, pixel AP and pixel AUC over all frames that show a named object.
        lists: number of lists of names that were scored.
    """

    frames: Metric
    iou: Metric
    ap: Metric
    auc: Metric
    lists: int


def samples_of(world: SyntheticWorld, group: Group, *, clips: int) -> Iterator[tuple[ExposureSample, ExposureSample]]:
    """Yield two samples per suitable clip, which are always the same.

    The list of the first sample has a true name. The list of the second sample has only false names.
    """
    naming = Naming(world, patterns=(group.pattern,), hard=0.3)
    for index in range(clips):
        rng = np.random.default_rng([world.seed, 7, index, group.length, *group.name.encode()])
        facts = world.facts(index)
        true = _true(facts, world, group, rng)
        if true is None:
            continue
        frames, parts = world.frames(index), world.masks(index)
        name, lure = true
        candidates = (lure, *(naming.false(facts, rng) for _ in range(4 * group.length)))
        others = [candidate for candidate in candidates if candidate is not None]
        false = list(dict.fromkeys(map(str, others)))[: group.length]
        if len(false) < group.length:
            continue
        shown = np.asarray(parts[list(facts.meant(name))].any(axis=0))
        listed = [str(name), *false[: group.length - 1]]
        key = f"{index}"
        yield (
            _sample(key, frames, [listed[place] for place in rng.permutation(group.length)], shown, str(name)),
            _sample(key, frames, [false[place] for place in rng.permutation(group.length)], np.zeros_like(shown), ""),
        )


def examine(step: ExposureStep, world: SyntheticWorld, group: Group, *, clips: int, batch: int = 16, seg: Seg = "own") -> Marks:
    """Return the marks for a group's questions, which the model answers."""
    step.eval()
    scores: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    pixels = PixelAccumulator(bins=256)
    count = 0
    for number, pairs in enumerate(_batches(samples_of(world, group, clips=clips), batch)):
        if seg == "next" and len(pairs) < 2:
            continue  # the batch has no other clip
        both = [sample for pair in pairs for sample in pair]
        order = _mixed([sample.key for sample in both], np.random.default_rng([world.seed, 8, number]))
        verdict = step.judge([both[place] for place in order], seg=seg)
        back = np.argsort(order)
        answers = [
            (both[place], verdict.object_logit[back[place]], verdict.mask_logit[back[place]]) for place in range(len(both))
        ]
        for true, false in zip(answers[::2], answers[1::2], strict=True):
            scores.append(np.concatenate([logit.float().numpy() for _, logit, _ in (true, false)]))
            labels.append(np.concatenate([sample.labels for sample, _, _ in (true, false)]))
            _mark_pixels(pixels, *true)
        count += len(both)
    counts = pixels.counts()
    frames = frame_auc(FrameSet.of(scores, labels)).metric(BOOTSTRAP)
    iou, ap, auc = (figure(counts).metric(BOOTSTRAP) for figure in (mask_iou, pixel_ap, pixel_auc))
    return Marks(frames, iou, ap, auc, lists=count)


def _mixed(keys: Sequence[str], rng: np.random.Generator) -> list[int]:
    """Return a random, circular order in which no list is followed by a list of the same clip.

    The order also mixes lists with and without a true name. So the `<SEG>` of the next list does not reveal whether a list has
    a true name.
    """
    while True:
        order = [int(place) for place in rng.permutation(len(keys))]
        followed = [keys[place] for place in order]
        if len(set(keys)) < 2 or all(one != other for one, other in zip(followed, followed[1:] + followed[:1], strict=True)):
            return order


def _mark_pixels(pixels: PixelAccumulator, sample: ExposureSample, logit: torch.Tensor, mask: torch.Tensor) -> None:
    size = sample.masks.shape[1:]
    wide = F.interpolate(mask[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0].sigmoid()
    scores = (wide * 255).round().to(torch.uint8).numpy()
    for frame in np.flatnonzero(sample.labels):
        pixels.add(sample.key, scores[frame], sample.masks[frame])


def _true(facts: Facts, world: SyntheticWorld, group: Group, rng: np.random.Generator) -> tuple[Name, Name | None] | None:
    """Return a true name for the group's question; for twins also a false name with another motion."""
    rare = set(world.options.held_out_pairs)
    places = [place for place, role in enumerate(facts.roles) if (role.pair in rare) == (group.pairs == "unseen")]
    if group.pairs == "twin":
        pairs = [role.pair for role in facts.roles]
        places = [place for place in places if pairs.count(facts.roles[place].pair) > 1]
    choices: list[tuple[Name, Name | None]] = []
    for place in places:
        role = facts.roles[place]
        if group.pattern == "pair":
            choices.append((Name(colour=role.pair[0], shape=role.pair[1]), None))
            continue
        heads = {deed: Name(colour=role.pair[0], shape=role.pair[1], deed=deed) for deed in DEEDS}
        true = [name for deed, name in heads.items() if facts.deeds[place][deed] is Answer.TRUE]
        if group.pairs == "twin":
            like = sum(other.pair == role.pair for other in facts.roles)
            true = [name for name in true if len(facts.meant(name)) < like]
        false = [name for name in heads.values() if facts.answer(name) is Answer.FALSE]
        if true and false:
            lure = false[int(rng.integers(len(false)))] if group.pairs == "twin" else None
            choices.append((true[int(rng.integers(len(true)))], lure))
    return choices[int(rng.integers(len(choices)))] if choices else None


def _sample(key: str, frames: np.ndarray, names: Sequence[str], masks: np.ndarray, true: str) -> ExposureSample:
    labels = np.asarray(masks.any(axis=(1, 2)))
    return ExposureSample(key, frames, tuple(names), masks, labels, bool(true), (true,) if true else ())


def _batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
