"""The synthetic world as a data set.

A clip depends only on options, seed, split and index.
"""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import product
from typing import Literal, get_args

import numpy as np

from tools.tiny_world.casting import Palette, draw_clip
from tools.tiny_world.painting import paint
from tools.tiny_world.recipe import WorldOptions
from tools.tiny_world.scene import Scene
from tools.tiny_world.silhouettes import Silhouette, silhouettes, visible
from tools.tiny_world.truth import Answer, Facts, observe
from tools.tiny_world.words import COLOURS, SHAPES, Kind, Name, Pair, name_table, performs
from vadcli.errors import UsageError
from vadcli.train.samples import Segmentation, SegmentedObject
from vadcli.types import BoolArray, ByteArray, TimeArray

Split = Literal["train", "validation", "test"]

WORLD_VERSION = 1
"""Increase this number when an index gives another clip or other names than before."""
_TAKES = 50
_SLIVER = 0.0006  # share of the frame; a smaller part of an object is not in its mask
_CACHED = 64


@dataclass(frozen=True, eq=False)
class Query:
    """A true name of a clip.

    Attributes:
        name: as written in a prompt.
        masks: (T, H, W) bool, the visible parts of all objects that the name means.
        labels: (T,) bool, the frames in which the mask is not empty.
    """

    name: str
    masks: BoolArray
    labels: BoolArray


class SyntheticWorld:
    """Clips of coloured shapes in motion, with exact masks and all true names.

    The splits have different random numbers. Each held-out pair is shown and named in one split only,
    test or validation. Training has no held-out motions.

    Args:
        options: options of the world.
        seed: 0 or more.
        split: train, validation or test.
        length: number of clips.

    Raises:
        UsageError: the split does not exist, or the seed or length is negative.
    """

    name = "synthetic"

    def __init__(self, options: WorldOptions, *, seed: int, split: Split, length: int = 10_000) -> None:
        if split not in get_args(Split):
            raise UsageError(f"the synthetic world has no split {split!r}", hint=f"choose one of {', '.join(get_args(Split))}")
        if seed < 0 or length < 0:
            raise UsageError(f"seed {seed} and length {length} of the synthetic world must not be negative")
        self.options = options
        self.seed, self.split, self.length = seed, split, length
        self._clip = lru_cache(maxsize=_CACHED)(self._draw)
        self._names: dict[int, tuple[str, ...]] = {}

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the world for worker processes without its cached clips."""
        return (partial(SyntheticWorld, self.options, seed=self.seed, split=self.split, length=self.length), ())

    def __len__(self) -> int:
        """Return the number of clips."""
        return self.length

    def __getitem__(self, index: int) -> Segmentation:
        """Return clip `index` with one `SegmentedObject` per true name."""
        objects = tuple(SegmentedObject(query.name, query.masks) for query in self.queries(index))
        return Segmentation(f"{self.name}/{self.split}/{self.seed}/{index}", self.frames(index), objects)

    def names(self, index: int) -> tuple[str, ...]:
        """Return all true names of clip `index`, each once, without painting it."""
        if index not in self._names:
            self._names[index] = self.facts(index).names()
        return self._names[index]

    def frames(self, index: int) -> ByteArray:
        """Return the frames of clip `index`, (T, H, W, 3) uint8."""
        scene = self.scene(index)
        return paint(scene, self._shapes(scene), self.times_s, self.options.size_px)

    def queries(self, index: int) -> list[Query]:
        """Return all true names of clip `index` with masks and labels, in the order of `names`."""
        facts, parts = self.facts(index), self.masks(index)
        masks_of: dict[tuple[int, ...], tuple[BoolArray, BoolArray]] = {}  # masks and labels by objects
        queries = []
        for text in self.names(index):
            meant = facts.meant(name_table()[text])
            if meant not in masks_of:
                masks = np.asarray(parts[list(meant)].any(axis=0))
                masks_of[meant] = (masks, np.asarray(masks.any(axis=(1, 2))))
            queries.append(Query(text, *masks_of[meant]))
        return queries

    def masks(self, index: int) -> BoolArray:
        """Return the masks of the named objects of clip `index`; see `object_masks`."""
        scene = self.scene(index)
        return object_masks(self._shapes(scene), self.options.size_px)

    def scene(self, index: int) -> Scene:
        """Return the scene of clip `index`."""
        return self._clip(self._checked(index))[0]

    def facts(self, index: int) -> Facts:
        """Return the facts about clip `index`."""
        return self._clip(self._checked(index))[1]

    def is_true(self, index: int, name: str) -> bool:
        """Return whether a name is true of clip `index`.

        Raises:
            UsageError: the world has no such name.
        """
        return self.facts(index).answer(parsed(name)) is Answer.TRUE

    def is_false(self, index: int, name: str) -> bool:
        """Return whether a name is clearly false of clip `index`, and not arguable.

        Raises:
            UsageError: the world has no such name.
        """
        return self.facts(index).answer(parsed(name)) is Answer.FALSE

    def allows(self, name: str) -> bool:
        """Return whether this split may use a name.

        Only the split that shows a held-out name may use this name.

        Raises:
            UsageError: the world has no such name.
        """
        taken = parsed(name)
        return not set(taken.pairs) & self._forbidden_pairs and not (taken.deed and taken.deed in self._forbidden_deeds)

    @cached_property
    def vocabulary(self) -> dict[str, Kind]:
        """Every name that this split may use, with its kind, in a fixed order."""
        return {text: name.kind for text, name in name_table().items() if self.allows(text)}

    @cached_property
    def palette(self) -> Palette:
        """The pairs and motions that this split shows."""
        options = self.options
        held_out = {*options.held_out_pairs, *options.validation_pairs}
        pairs = tuple(pair for pair in product(COLOURS, SHAPES) if pair not in held_out)
        rare = {"train": (), "validation": options.validation_pairs, "test": options.held_out_pairs}[self.split]
        return Palette(pairs, rare, options.unseen, options.motions(training=self.split == "train"))

    @cached_property
    def times_s(self) -> TimeArray:
        """(T,) seconds, the times of a clip's frames."""
        times: TimeArray = np.arange(self.options.frames) / self.options.rate_hz
        return times

    def fingerprint(self) -> str:
        """Return a hexadecimal hash that changes whenever a clip or a name may change."""
        stated = (WORLD_VERSION, astuple(self.options), self.seed, self.split, self.length)
        return hashlib.sha256(repr(stated).encode()).hexdigest()

    @cached_property
    def _forbidden_pairs(self) -> set[Pair]:
        options = self.options
        return {*options.held_out_pairs, *options.validation_pairs} - set(self.palette.rare)

    @cached_property
    def _forbidden_deeds(self) -> set[str]:
        done = set(self.palette.motions)
        shown = {deed for motion in done for deed in performs(motion)}
        return {deed for motion in self.options.motions(training=False) for deed in performs(motion)} - shown

    def _shapes(self, scene: Scene) -> list[Silhouette]:
        return silhouettes(scene, self.times_s, self.options.size_px)

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.length:
            raise IndexError(f"the synthetic world has clips 0 to {self.length - 1}, not {index}")
        return index

    def _draw(self, index: int) -> tuple[Scene, Facts]:
        """Draw scenes from the index's random numbers until all named objects can be recognised.

        If `_TAKES` scenes were not enough, the objects that cannot be recognised are removed from the last scene.
        """
        rng = np.random.default_rng([self.seed, get_args(Split).index(self.split), index])
        for _ in range(_TAKES):
            scene, hard = draw_clip(self.options, self.palette, rng)
            facts = observe(scene, self.times_s)
            if all(facts.evident) and facts.twins >= hard:
                return scene, facts
        while not all(facts.evident):
            unseen = {id(thing) for thing, evident in zip(scene.cast, facts.evident, strict=True) if not evident}
            scene = replace(scene, things=tuple(thing for thing in scene.things if id(thing) not in unseen))
            facts = observe(scene, self.times_s)
        return scene, facts


def object_masks(shapes: list[Silhouette], size_px: int) -> BoolArray:
    """Return the masks of the named objects, (K, T, H, W) bool, the farthest first.

    A pixel belongs to an object if the object covers more than half of the pixel. Very small masks become empty.
    """
    masks: BoolArray = visible(shapes, size_px) > 0.5
    for mask in masks.reshape(-1, size_px, size_px):
        if np.count_nonzero(mask) < _SLIVER * size_px**2:
            mask[:] = False
    return masks


def parsed(name: str) -> Name:
    """Return the parts of a name.

    Raises:
        UsageError: the world has no such name.
    """
    if name not in name_table():
        raise UsageError(f"the synthetic world has no name {name!r}", hint="tools.tiny_world.words lists all of them")
    return name_table()[name]
