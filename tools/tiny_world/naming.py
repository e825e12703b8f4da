"""Lists of true and false names for clips of the synthetic world.

Many of the false names differ from a true name in only one word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tools.tiny_world.truth import Answer, Facts
from tools.tiny_world.words import DEEDS, SIZES, Name, name_table
from tools.tiny_world.world import SyntheticWorld
from vadcli.errors import UsageError
from vadcli.train.samples import Segmentation

PATTERNS = {
    "colour": ("colour",),
    "shape": ("shape",),
    "pair": ("colour", "shape"),
    "size": ("size", "colour", "shape"),
    "deed": ("deed",),
    "colour deed": ("colour", "deed"),
    "shape deed": ("shape", "deed"),
    "pair deed": ("colour", "shape", "deed"),
}
"""The parts that a name may have, by kind of name."""
_TRIES = 40


@dataclass(frozen=True)
class NameList:
    """A list of names, and the objects of a clip that they mean.

    Attributes:
        names: the names, each once, in random order.
        meant: per name, the indices of the objects that the name means; empty for a false name.
    """

    names: tuple[str, ...]
    meant: tuple[tuple[int, ...], ...]

    @property
    def true(self) -> tuple[bool, ...]:
        """Whether each name is true."""
        return tuple(bool(objects) for objects in self.meant)

    @property
    def objects(self) -> tuple[int, ...]:
        """The indices of the objects that at least one of the names means."""
        return tuple(sorted({place for objects in self.meant for place in objects}))


class Naming:
    """Draws names for clips of one world.

    Args:
        world: the world; only names that its split may use are drawn.
        patterns: keys of `PATTERNS`, equally likely; a repeated pattern is drawn more often.
        hard: share of the false names that differ from a true name in one word.

    Raises:
        UsageError: a pattern does not exist, or `patterns` is empty.
    """

    def __init__(self, world: SyntheticWorld, *, patterns: Sequence[str], hard: float) -> None:
        unknown = sorted(set(patterns) - set(PATTERNS))
        if unknown or not patterns:
            raise UsageError(
                f"no name pattern is called {unknown[0] if unknown else ''!r}", hint=f"choose among {', '.join(PATTERNS)}"
            )
        self.world, self.patterns, self.hard = world, tuple(patterns), hard
        self._deeds = tuple(deed for deed in DEEDS if world.allows(f"something {deed}"))

    def listing(self, facts: Facts, rng: np.random.Generator, *, length: int, true: int) -> NameList:
        """Return a list of at most `length` names, of which at most `true` are true."""
        drawn: dict[str, Name] = {}
        for number in range(2 * length):
            if len(drawn) == length:
                break
            name = self.true(facts, rng) if number < true else self.false(facts, rng)
            if name is not None:
                drawn[str(name)] = name
        items = list(drawn.items())
        order = [items[place] for place in rng.permutation(len(items))]
        return NameList(tuple(text for text, _ in order), tuple(facts.meant(name) for _, name in order))

    def true(self, facts: Facts, rng: np.random.Generator) -> Name | None:
        """Return a true name that the split may use; None if none was found."""
        for _ in range(_TRIES if facts.roles else 0):
            place = int(rng.integers(len(facts.roles)))
            name = self._of(facts, place, self._pattern(rng), rng)
            if name is not None and self.world.allows(str(name)):
                return name
        return None

    def false(self, facts: Facts, rng: np.random.Generator) -> Name | None:
        """Return a clearly false name; None if none was found."""
        for _ in range(_TRIES):
            pattern = self._pattern(rng)
            name = None
            if facts.roles and rng.random() < self.hard:
                name = self._of(facts, int(rng.integers(len(facts.roles))), pattern, rng)
            if name is None:
                name = self._any(pattern, rng)
            else:
                part = pattern[int(rng.integers(len(pattern)))]
                name = replace(name, **{part: getattr(self._any(pattern, rng), part)})
            if self.world.allows(str(name)) and facts.answer(name) is Answer.FALSE:
                return name
        return None

    def _pattern(self, rng: np.random.Generator) -> tuple[str, ...]:
        return PATTERNS[self.patterns[int(rng.integers(len(self.patterns)))]]

    def _of(self, facts: Facts, place: int, pattern: tuple[str, ...], rng: np.random.Generator) -> Name | None:
        """Return an object's name with the parts of a pattern; None if the object lacks one of the parts."""
        role = facts.roles[place]
        deeds = [deed for deed, answer in facts.deeds[place].items() if answer is Answer.TRUE]
        parts = {"colour": role.pair[0], "shape": role.pair[1], "size": role.size, "deed": _pick(deeds, rng) if deeds else ""}
        return _named(pattern, parts) if all(parts[part] for part in pattern) else None

    def _any(self, pattern: tuple[str, ...], rng: np.random.Generator) -> Name:
        pair = self.world.palette.pair(rng)
        parts = {"colour": pair[0], "shape": pair[1], "size": _pick(SIZES, rng), "deed": _pick(self._deeds, rng)}
        return _named(pattern, parts)


class SpokenWorld:
    """A synthetic world with only some kinds of names; implements `SegmentationData`.

    Args:
        world: the world with all names.
        patterns: keys of `PATTERNS`.
        name: name of the data set; by default the world's name.
    """

    def __init__(self, world: SyntheticWorld, patterns: Sequence[str], *, name: str | None = None) -> None:
        self.world, self.patterns = world, tuple(patterns)
        self.name = name or world.name
        self._parts = {frozenset(PATTERNS[pattern]) for pattern in self.patterns}

    def __len__(self) -> int:
        return len(self.world)

    def __getitem__(self, index: int) -> Segmentation:
        clip = self.world[index]
        return replace(clip, objects=tuple(item for item in clip.objects if self._spoken(item.name)))

    def names(self, index: int) -> tuple[str, ...]:
        """Return the clip's true names of the kinds in `patterns`."""
        return tuple(filter(self._spoken, self.world.names(index)))

    def fingerprint(self) -> str:
        """Return a hexadecimal hash that changes whenever a clip or a name may change."""
        return hashlib.sha256(repr((self.world.fingerprint(), self.patterns)).encode()).hexdigest()

    def _spoken(self, text: str) -> bool:
        name = name_table()[text]
        parts = {part for part in ("size", "colour", "shape", "deed", "relation") if getattr(name, part)}
        return frozenset(parts) in self._parts


def _named(pattern: tuple[str, ...], parts: dict[str, str]) -> Name:
    size, colour, shape, deed = (parts[part] if part in pattern else "" for part in ("size", "colour", "shape", "deed"))
    return Name(size, colour, shape, deed)


def _pick(pool: Sequence[str], rng: np.random.Generator) -> str:
    return pool[int(rng.integers(len(pool)))]
