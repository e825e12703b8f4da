"""Anomaly Exposure Sampler: segmented objects become pseudo-anomalies among names that don't belong (paper 3.3).

    a clip's objects ── probability ½ ──> one or two of their names + irrelevant names, shuffled; masks of those objects
                     └─ otherwise ──────> irrelevant names only; empty masks

The list's length is drawn before and apart from the label, so that it says nothing of it. Everything about a sample follows
from (seed, data set, epoch, index): workers may take samples in any order.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import overload
from zlib import crc32

import numpy as np

from vadcli.train.samples import ExposureSample, Segmentation, SegmentationData
from vadcli.types import BoolArray, IndexArray

HardNegatives = Callable[[str], Sequence[str]]
"""For one name, names that are like it, in the same order in every run; the sampler leaves a sample's own names out of them."""

CATEGORY_LIMITS: Mapping[str, int] = MappingProxyType({"cityscapes": 6, "mapillary": 20})
"""The paper's N for data sets with few categories; 30 elsewhere."""

_TRIES = 20
_COMMON_WORDS = frozenset(
    {"and", "are", "at", "for", "from", "has", "in", "is", "it", "its", "of", "on", "that", "the", "to", "with"}
)


@dataclass(frozen=True)
class ExposureOptions:
    """How samples become anomalies.

    Attributes:
        probability: of an anomaly.
        max_categories: N, the longest list, true and irrelevant names together; the length is uniform up to it.
        max_true: an anomaly shows 1 to max_true of its names, uniformly, or as many as it has.
        min_irrelevant: the least number of irrelevant names beside true ones; 0 also allows lists of one true name.
        hard_share: probability that an irrelevant name is a hard one, where there are hard ones.
        held_out: names that are never listed, neither as true nor as irrelevant; compared as `same_name` does.
    """

    probability: float = 0.5
    max_categories: int = 30
    max_true: int = 2
    min_irrelevant: int = 1
    hard_share: float = 0.0
    held_out: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1 or not 0 <= self.hard_share <= 1:
            raise ValueError(f"probability {self.probability} and hard_share {self.hard_share} must be 0 to 1")
        if self.max_true < 1 or self.min_irrelevant < 0:
            raise ValueError(
                f"max_true must be 1 or more, min_irrelevant 0 or more, not {self.max_true}, {self.min_irrelevant}"
            )
        if self.max_categories < 1 + self.min_irrelevant:
            raise ValueError(
                f"max_categories {self.max_categories} leaves no room for a true name and {self.min_irrelevant} others"
            )


def paper_options(data_name: str) -> ExposureOptions:
    """The paper's options for a data set: N = 30, but 20 for Mapillary and 6 for Cityscapes."""
    return ExposureOptions(max_categories=CATEGORY_LIMITS.get(data_name, ExposureOptions.max_categories))


def same_name(name: str) -> str:
    """What two spellings of one name have in common: neither case, blanks nor a full stop at the end count."""
    return " ".join(name.casefold().split()).rstrip(". ")


@dataclass(frozen=True)
class Listing:
    """The names of one sample, before any pixel is read.

    Attributes:
        categories: the list for the prompt, shuffled.
        true: those of them that name objects of the clip; empty in a normal sample.
        anomalous: whether there are any.
    """

    categories: tuple[str, ...]
    true: tuple[str, ...]

    @property
    def anomalous(self) -> bool:
        """Whether true names are listed."""
        return bool(self.true)


class AnomalyExposureSampler:
    """Makes training samples of one data set.

    Names of other samples are drawn by taking another sample and one of its names, so that a frequent name is as frequent among
    the irrelevant ones. A sample can't be used where all its names are held out, or where no name is left that it doesn't have;
    `plan` leaves those out.

    Args:
        data: the data set; its names are read once, here.
        options: how samples become anomalies.
        seed: 0 or more.
        hard: where hard negatives come from; names of the data set that share a word, where None.

    Raises:
        ValueError: no sample can be used.
    """

    def __init__(
        self, data: SegmentationData, options: ExposureOptions, seed: int, *, hard: HardNegatives | None = None
    ) -> None:
        self.data, self.options, self.seed = data, options, seed
        self._held_out = frozenset(map(same_name, options.held_out))
        self._names = [self._allowed(data.names(index)) for index in range(len(data))]
        self._pools = [tuple(names.items()) for names in self._names if names]
        self._vocabulary = _weigh(self._names)
        least = max(1, options.min_irrelevant)
        self.usable = tuple(
            index for index, names in enumerate(self._names) if names and len(self._vocabulary) - len(names) >= least
        )
        if not self.usable:
            raise ValueError(f"{data.name}: no sample has a name to show and another's name to hide it among")
        self._hard = hard or (shared_words(self.vocabulary) if options.hard_share else _no_name)

    def __len__(self) -> int:
        """How many samples can be used."""
        return len(self.usable)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every name that may be listed, in the order of the data set."""
        return tuple(spelling for spelling, _ in self._vocabulary.values())

    def plan(self, epoch: int) -> IndexArray:
        """The usable samples of an epoch, each once, shuffled: (len(self),) int64."""
        shuffled = np.random.default_rng([self.seed, crc32(self.data.name.encode()), epoch]).permutation(len(self))
        return np.asarray(self.usable, np.int64)[shuffled]

    def listing(self, index: int, epoch: int) -> Listing:
        """The names of a sample; reads no pixels.

        Raises:
            LookupError: the sample can't be used.
        """
        own = self._names[index]
        spare = len(self._vocabulary) - len(own)
        if not own or spare < max(1, self.options.min_irrelevant):
            raise LookupError(f"{self.data.name}: sample {index} has no name to show or none to hide it among")
        rng = np.random.default_rng([self.seed, crc32(self.data.name.encode()), epoch, index])
        anomalous = rng.random() < self.options.probability
        shown, length = self._sizes(rng, len(own), spare)
        true = [own[key] for key in _some(rng, list(own), shown)] if anomalous else []
        others = self._irrelevant(rng, own, min(length - len(true), spare))
        listed = true + others
        return Listing(tuple(listed[place] for place in rng.permutation(len(listed))), tuple(true))

    def sample(self, index: int, epoch: int) -> ExposureSample:
        """Clip `index` as it is shown in an epoch.

        Raises:
            LookupError: the sample can't be used.
            DocumentError: the data set can't read it.
        """
        listing = self.listing(index, epoch)
        clip = self.data[index]
        if clip.names != tuple(dict.fromkeys(self.data.names(index))):
            raise ValueError(f"{self.data.name}: {clip.key} has other objects than its names say")
        masks = _union(clip, listing.true)
        labels = np.asarray(masks.any(axis=(1, 2)))
        return ExposureSample(clip.key, clip.frames, listing.categories, masks, labels, listing.anomalous, listing.true)

    def fingerprint(self) -> str:
        """Changes when the data, the options or the seed do; not with a caller's own hard negatives."""
        options = self.options
        held_out = sorted(self._held_out)
        numbers = (options.probability, options.max_categories, options.max_true, options.min_irrelevant, options.hard_share)
        return hashlib.sha256(repr((self.data.fingerprint(), numbers, held_out, self.seed)).encode()).hexdigest()

    def _allowed(self, names: Iterable[str]) -> dict[str, str]:
        """A sample's names that aren't held out: what is the same of them -> the first spelling."""
        found: dict[str, str] = {}
        for name in names:
            found.setdefault(same_name(name), name)
        return {key: name for key, name in found.items() if key not in self._held_out}

    def _sizes(self, rng: np.random.Generator, own: int, spare: int) -> tuple[int, int]:
        """How many true names an anomaly would show and how long the list is; drawn alike for both labels."""
        options = self.options
        longest = min(options.max_categories, spare)  # what a normal list can be filled to
        room = max(1, longest - options.min_irrelevant)
        shown = min(int(rng.integers(1, options.max_true + 1)), own, room)
        shortest = shown + options.min_irrelevant
        return shown, int(rng.integers(shortest, max(longest, shortest) + 1))

    def _irrelevant(self, rng: np.random.Generator, own: Mapping[str, str], count: int) -> list[str]:
        """`count` names that no object of the sample has, hard ones first."""
        taken = set(own)
        hard = int(rng.binomial(count, self.options.hard_share))
        chosen = self._hard_names(rng, own, taken, hard) if hard else []
        for other in rng.integers(len(self._pools), size=_TRIES * count):
            if len(chosen) == count:
                return chosen
            pool = self._pools[int(other)]
            key, name = pool[int(rng.integers(len(pool)))]
            if key not in taken:
                taken.add(key)
                chosen.append(name)
        return chosen + self._rest(rng, taken, count - len(chosen))

    def _hard_names(self, rng: np.random.Generator, own: Mapping[str, str], taken: set[str], count: int) -> list[str]:
        """Up to `count` names like the sample's own; adds them to `taken`."""
        alike = _Joined([self._hard(mine) for mine in own.values()])
        chosen: list[str] = []
        for place in rng.choice(len(alike), size=min(len(alike), _TRIES * count), replace=False) if len(alike) else ():
            name = alike[int(place)]
            key = same_name(name)
            if key not in taken and key not in self._held_out and len(chosen) < count:
                taken.add(key)
                chosen.append(name)
        return chosen

    def _rest(self, rng: np.random.Generator, taken: set[str], count: int) -> list[str]:
        """The last names where few are left, drawn from those with the same chances as by trying."""
        left = [item for key, item in self._vocabulary.items() if key not in taken]
        count = min(count, len(left))
        if not count:
            return []
        weights = np.array([weight for _, weight in left])
        drawn = rng.choice(len(left), size=count, replace=False, p=weights / weights.sum())
        return [left[place][0] for place in drawn]


def shared_words(names: Iterable[str]) -> HardNegatives:
    """Hard negatives among `names`: those that share a word with the given one, articles and the like apart; also itself."""
    by_word: dict[str, list[str]] = {}
    for name in names:
        for word in _words(name):
            by_word.setdefault(word, []).append(name)
    return lambda name: _Joined([by_word.get(word, []) for word in _words(name)])


class _Joined(Sequence[str]):
    """Several sequences as one, without copying: a common word is shared by tens of thousands of expressions."""

    def __init__(self, parts: Iterable[Sequence[str]]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        part = bisect_right(self._ends, place)
        return self._parts[part][place - self._ends[part] + len(self._parts[part])]


def _words(name: str) -> list[str]:
    """Its words, each once, of two letters or more, without those that say nothing of what is seen."""
    words = dict.fromkeys(re.findall(r"\w{2,}", name.casefold()))
    return [word for word in words if word not in _COMMON_WORDS]


def _no_name(name: str) -> tuple[str, ...]:
    """No hard negatives at all."""
    return ()


def _some(rng: np.random.Generator, items: list[str], count: int) -> list[str]:
    """Up to `count` of them, uniformly, in random order."""
    return [items[place] for place in rng.permutation(len(items))[:count]]


def _weigh(samples: Iterable[Mapping[str, str]]) -> dict[str, tuple[str, float]]:
    """Each name's spelling and how likely it is to be drawn by way of a sample."""
    found: dict[str, tuple[str, float]] = {}
    for names in samples:
        for key, name in names.items():
            spelling, weight = found.get(key, (name, 0.0))
            found[key] = (spelling, weight + 1 / len(names))
    return found


def _union(clip: Segmentation, names: Iterable[str]) -> BoolArray:
    """(T, H, W): where any object with one of the names is."""
    shown = set(map(same_name, names))
    masks = np.zeros(clip.frames.shape[:3], np.bool_)
    for item in clip.objects:
        if same_name(item.name) in shown:
            masks |= item.masks
    return masks
