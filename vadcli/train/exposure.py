"""Anomaly Exposure Sampler: turns segmented objects into pseudo-anomalies (paper 3.3).

    clip ─┬─ probability ½ ─> list: 1 or 2 names of its objects and irrelevant names, shuffled;
          │                   masks of the listed objects
          └─ otherwise ─────> list: irrelevant names only; empty masks

An irrelevant name is a name that no object of the clip has. The length of the list is drawn in the
same way for anomalies and normal samples, so it does not reveal which of the two a sample is.
A sample depends only on (seed, data set, epoch, index), so workers may take samples in any order.
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
"""Maps a name to similar names in a fixed order. The similar names may include other names of the same sample."""

CATEGORY_LIMITS: Mapping[str, int] = MappingProxyType({"cityscapes": 6, "mapillary": 20})
"""The paper's N (largest length of a list) for data sets with few categories; elsewhere N is 30."""

_TRIES = 20
_COMMON_WORDS = frozenset(
    {"and", "are", "at", "for", "from", "has", "in", "is", "it", "its", "of", "on", "that", "the", "to", "with"}
)


@dataclass(frozen=True)
class ExposureOptions:
    """How clips become pseudo-anomalies.

    Attributes:
        probability: probability that a sample is an anomaly.
        max_categories: N, the largest length of a list, counting true and irrelevant names. The
            length is drawn uniformly.
        max_true: largest number of true names in the list of an anomaly. The number is drawn
            uniformly from 1 to max_true. It is smaller if the clip has fewer names or if the list has
            no room for more.
        min_irrelevant: smallest number of irrelevant names in the list of an anomaly; if it is
            0, a list may consist of a single true name.
        hard_share: probability that an irrelevant name is a hard negative (a name similar to one of
            the clip's names), if such names exist.
        held_out: names that are never listed, neither as true nor as irrelevant. Names are compared
            by `same_name`.
    """

    probability: float = 0.5
    max_categories: int = 30
    max_true: int = 2
    min_irrelevant: int = 1
    hard_share: float = 0.0
    held_out: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1 or not 0 <= self.hard_share <= 1:
            raise ValueError(f"probability {self.probability} and hard_share {self.hard_share} must be in 0-1")
        if self.max_true < 1 or self.min_irrelevant < 0:
            raise ValueError(f"max_true {self.max_true} must be 1 or more and min_irrelevant {self.min_irrelevant} 0 or more")
        if self.max_categories < 1 + self.min_irrelevant:
            raise ValueError(
                f"max_categories {self.max_categories} leaves no room for one true name and {self.min_irrelevant} others"
            )


def paper_options(data_name: str) -> ExposureOptions:
    """Return the paper's options for a data set: N = 30, but 20 for Mapillary and 6 for Cityscapes."""
    return ExposureOptions(max_categories=CATEGORY_LIMITS.get(data_name, ExposureOptions.max_categories))


def same_name(name: str) -> str:
    """Return a name in lower case, without extra spaces and without a full stop at the end; used to compare names."""
    return " ".join(name.casefold().split()).rstrip(". ")


@dataclass(frozen=True)
class Listing:
    """The names in the list of one sample; they are drawn without reading pixels.

    Attributes:
        categories: the list for the prompt, shuffled.
        true: the listed names of objects in the clip; empty in a normal sample.
        anomalous: whether `true` has names.
    """

    categories: tuple[str, ...]
    true: tuple[str, ...]

    @property
    def anomalous(self) -> bool:
        """Whether the list has true names."""
        return bool(self.true)


class AnomalyExposureSampler:
    """Makes training samples from one data set.

    To draw an irrelevant name, the sampler draws a sample and then one of its names. So frequent
    names of the data set are frequent among the irrelevant names. A sample is not usable if all
    its names are held out, or if too few names of other samples are left; `plan` skips it.

    Args:
        data: the data set; its names are read once, when the sampler is created.
        options: how clips become pseudo-anomalies.
        seed: 0 or more.
        hard: source of hard negatives; if None, they are the names of the data set that share a
            word with one of the clip's names.

    Raises:
        ValueError: no sample is usable.
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
            raise ValueError(f"{data.name}: no sample has an allowed name and enough irrelevant names")
        self._hard = hard or (shared_words(self.vocabulary) if options.hard_share else _no_name)

    def __len__(self) -> int:
        """Return the number of usable samples."""
        return len(self.usable)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All names that may be listed, in the order of the data set."""
        return tuple(spelling for spelling, _ in self._vocabulary.values())

    def plan(self, epoch: int) -> IndexArray:
        """Return the indices of the usable samples, each once, shuffled for an epoch: (len(self),) int64."""
        shuffled = np.random.default_rng([self.seed, crc32(self.data.name.encode()), epoch]).permutation(len(self))
        return np.asarray(self.usable, np.int64)[shuffled]

    def listing(self, index: int, epoch: int) -> Listing:
        """Return the names of a sample without reading pixels.

        Raises:
            LookupError: the sample is not usable.
        """
        own = self._names[index]
        spare = len(self._vocabulary) - len(own)
        if not own or spare < max(1, self.options.min_irrelevant):
            raise LookupError(f"{self.data.name}: sample {index} has no allowed name or too few irrelevant names")
        rng = np.random.default_rng([self.seed, crc32(self.data.name.encode()), epoch, index])
        anomalous = rng.random() < self.options.probability
        shown, length = self._sizes(rng, len(own), spare)
        true = [own[key] for key in _some(rng, list(own), shown)] if anomalous else []
        others = self._irrelevant(rng, own, min(length - len(true), spare))
        listed = true + others
        return Listing(tuple(listed[place] for place in rng.permutation(len(listed))), tuple(true))

    def sample(self, index: int, epoch: int) -> ExposureSample:
        """Return the training sample that is made from clip `index` in an epoch.

        Raises:
            LookupError: the sample is not usable.
            DocumentError: the data set cannot read the clip.
        """
        listing = self.listing(index, epoch)
        clip = self.data[index]
        if clip.names != tuple(dict.fromkeys(self.data.names(index))):
            raise ValueError(f"{self.data.name}: {clip.key} has other objects than names() says")
        masks = _union(clip, listing.true)
        labels = np.asarray(masks.any(axis=(1, 2)))
        return ExposureSample(clip.key, clip.frames, listing.categories, masks, labels, listing.anomalous, listing.true)

    def fingerprint(self) -> str:
        """Return a hash that changes with the data, the options and the seed, but not with `hard`."""
        options = self.options
        held_out = sorted(self._held_out)
        numbers = (options.probability, options.max_categories, options.max_true, options.min_irrelevant, options.hard_share)
        return hashlib.sha256(repr((self.data.fingerprint(), numbers, held_out, self.seed)).encode()).hexdigest()

    def _allowed(self, names: Iterable[str]) -> dict[str, str]:
        """Return the names that are not held out: `same_name(name)` -> first spelling of this name."""
        found: dict[str, str] = {}
        for name in names:
            found.setdefault(same_name(name), name)
        return {key: name for key, name in found.items() if key not in self._held_out}

    def _sizes(self, rng: np.random.Generator, own: int, spare: int) -> tuple[int, int]:
        """Draw the number of true names and the list's length, in the same way for anomalies and normal samples."""
        options = self.options
        longest = min(options.max_categories, spare)  # the list of a normal sample cannot be longer
        room = max(1, longest - options.min_irrelevant)
        shown = min(int(rng.integers(1, options.max_true + 1)), own, room)
        shortest = shown + options.min_irrelevant
        return shown, int(rng.integers(shortest, max(longest, shortest) + 1))

    def _irrelevant(self, rng: np.random.Generator, own: Mapping[str, str], count: int) -> list[str]:
        """Draw `count` names that no object of the sample has; hard negatives come first."""
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
        """Draw up to `count` names that are similar to the sample's own, and add them to `taken`."""
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
        """Draw the names that are still missing after the tries. Frequent names are more probable, as in the tries."""
        left = [item for key, item in self._vocabulary.items() if key not in taken]
        count = min(count, len(left))
        if not count:
            return []
        weights = np.array([weight for _, weight in left])
        drawn = rng.choice(len(left), size=count, replace=False, p=weights / weights.sum())
        return [left[place][0] for place in drawn]


def shared_words(names: Iterable[str]) -> HardNegatives:
    """Return a function from a name to its hard negatives: the `names` that share a word with the name.

    The hard negatives include the name itself. Articles and other common words do not count.
    """
    by_word: dict[str, list[str]] = {}
    for name in names:
        for word in _words(name):
            by_word.setdefault(word, []).append(name)
    return lambda name: _Joined([by_word.get(word, []) for word in _words(name)])


class _Joined(Sequence[str]):
    """Joins sequences without copying them, because tens of thousands of names may share a word."""

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
    """Return the words of a name, each once; single letters and common words are left out."""
    words = dict.fromkeys(re.findall(r"\w{2,}", name.casefold()))
    return [word for word in words if word not in _COMMON_WORDS]


def _no_name(name: str) -> tuple[str, ...]:
    """Return no hard negatives; used if `hard_share` is 0 and no source of hard negatives is given."""
    return ()


def _some(rng: np.random.Generator, items: list[str], count: int) -> list[str]:
    """Draw up to `count` items, uniformly, in random order."""
    return [items[place] for place in rng.permutation(len(items))[:count]]


def _weigh(samples: Iterable[Mapping[str, str]]) -> dict[str, tuple[str, float]]:
    """Return the spelling and the weight of each name.

    The weight is a sum over all samples with this name: each adds 1 / (number of names in the sample).
    """
    found: dict[str, tuple[str, float]] = {}
    for names in samples:
        for key, name in names.items():
            spelling, weight = found.get(key, (name, 0.0))
            found[key] = (spelling, weight + 1 / len(names))
    return found


def _union(clip: Segmentation, names: Iterable[str]) -> BoolArray:
    """Return the union of the masks of all objects with one of the names: (T, H, W) bool."""
    shown = set(map(same_name, names))
    masks = np.zeros(clip.frames.shape[:3], np.bool_)
    for item in clip.objects:
        if same_name(item.name) in shown:
            masks |= item.masks
    return masks
