"""Anomaly Exposure Sampler: turns segmented objects into pseudo-anomalies (paper 3.3).

    clip ─┬─ probability ½ ─> list: 1 or 2 names of its objects and irrelevant names, shuffled;
          │                   masks of the listed objects
          └─ otherwise ─────> list: irrelevant names only; empty masks

An irrelevant name is a name that no object of the clip has. The length of the list does not show
whether a sample is an anomaly, because it is drawn in the same way for both kinds. A sample depends
only on (seed, data set, epoch, index), so workers may take samples in any order.
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

from vadcli.errors import UsageError
from vadcli.train.recipe import ExposureOptions
from vadcli.train.samples import ExposureSample, SegmentationData
from vadcli.types import IndexArray

HardNegatives = Callable[[str], Sequence[str]]
"""Maps a name to similar names in a fixed order. They may include other names of the same clip."""

CATEGORY_LIMITS: Mapping[str, int] = MappingProxyType({"cityscapes": 6, "mapillary": 20})
"""The paper's N, the longest list, for data sets with few categories."""
MAX_CATEGORIES = 30
"""The paper's N for all other data sets."""

_TRIES = 20
_COMMON_WORDS = frozenset(
    {"and", "are", "at", "for", "from", "has", "in", "is", "it", "its", "of", "on", "that", "the", "to", "with"}
)


def same_name(name: str) -> str:
    """Return a name for comparisons: in lower case, without extra spaces and without a full stop at the end."""
    return " ".join(name.casefold().split()).rstrip(". ")


@dataclass(frozen=True)
class Listing:
    """The names in the list of one sample; they are drawn without reading pixels.

    Attributes:
        categories: the list for the prompt, shuffled.
        true: the listed names of objects in the clip; empty in a normal sample.
    """

    categories: tuple[str, ...]
    true: tuple[str, ...]


class AnomalyExposureSampler:
    """Makes training samples from one data set.

    To draw an irrelevant name, the sampler draws a clip and then one of its names. So names that are
    frequent in the data set are frequent among the irrelevant names. A clip is not usable if all its
    names are held out, or if too few names of other clips are left; `plan` skips it.

    Args:
        data: the data set; its names are read once, when the sampler is created.
        options: how clips become pseudo-anomalies.
        seed: 0 or more.
        max_categories: N, the longest list of categories; 0 means the paper's N for this data set.
        hard: source of hard negatives; if None, they are the names of the data set that share a
            word with one of the clip's names.

    Raises:
        UsageError: no clip is usable, or N is too small.
    """

    def __init__(
        self,
        data: SegmentationData,
        options: ExposureOptions,
        seed: int,
        *,
        max_categories: int = 0,
        hard: HardNegatives | None = None,
    ) -> None:
        self.data, self.options, self.seed = data, options, seed
        self.max_categories = max_categories or CATEGORY_LIMITS.get(data.name, MAX_CATEGORIES)
        if self.max_categories < 1 + options.min_irrelevant:
            others = options.min_irrelevant
            raise UsageError(
                f"{data.name}: max_categories {self.max_categories} leaves no room for one true name and {others} others",
                hint="raise max_categories of the data set, or lower min_irrelevant of [exposure]",
            )
        self._held_out = frozenset(map(same_name, options.held_out))
        # The dictionaries have the keys `same_name(name)`, and keep the first spelling of each name.
        self._names: list[dict[str, str]] = []  # the allowed names of each clip
        self._vocabulary: dict[str, tuple[str, float]] = {}  # spelling and weight
        for index in range(len(data)):
            spellings: dict[str, str] = {}
            for name in data.names(index):
                spellings.setdefault(same_name(name), name)
            allowed = {key: name for key, name in spellings.items() if key not in self._held_out}
            self._names.append(allowed)
            for key, name in allowed.items():
                spelling, weight = self._vocabulary.get(key, (name, 0.0))
                self._vocabulary[key] = (spelling, weight + 1 / len(allowed))
        self._pools = [tuple(names.items()) for names in self._names if names]
        least = max(1, options.min_irrelevant)
        self.usable = tuple(
            index for index, names in enumerate(self._names) if names and len(self._vocabulary) - len(names) >= least
        )
        if not self.usable:
            raise UsageError(f"{data.name}: no sample has an allowed name and enough irrelevant names")
        self._hard = hard or (shared_words(self.vocabulary) if options.hard_share else None)

    def __len__(self) -> int:
        """Return the number of usable clips."""
        return len(self.usable)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All names that may be listed, in the order of the data set."""
        return tuple(spelling for spelling, _ in self._vocabulary.values())

    def plan(self, epoch: int) -> IndexArray:
        """Return the indices of the usable clips, each once, shuffled for an epoch: (len(self),) int64."""
        shuffled = np.random.default_rng([self.seed, crc32(self.data.name.encode()), epoch]).permutation(len(self))
        return np.asarray(self.usable, np.int64)[shuffled]

    def listing(self, index: int, epoch: int) -> Listing:
        """Return the names of a sample without reading pixels.

        Raises:
            LookupError: the clip is not usable.
        """
        options, own = self.options, self._names[index]
        spare = len(self._vocabulary) - len(own)
        if not own or spare < max(1, options.min_irrelevant):
            raise LookupError(f"{self.data.name}: sample {index} has no allowed name or too few irrelevant names")
        rng = np.random.default_rng([self.seed, crc32(self.data.name.encode()), epoch, index])
        anomalous = rng.random() < options.probability
        # Normal samples draw the number of true names too, so that lengths are equally probable for both kinds.
        longest = min(self.max_categories, spare)  # the list of a normal sample cannot be longer
        room = max(1, longest - options.min_irrelevant)
        shown = min(int(rng.integers(1, options.max_true + 1)), len(own), room)
        shortest = shown + options.min_irrelevant
        length = int(rng.integers(shortest, max(longest, shortest) + 1))
        names = list(own.values())
        true = [names[place] for place in rng.permutation(len(names))[:shown]] if anomalous else []
        listed = true + self._irrelevant(rng, own, min(length - len(true), spare))
        return Listing(tuple(listed[place] for place in rng.permutation(len(listed))), tuple(true))

    def sample(self, index: int, epoch: int) -> ExposureSample:
        """Return the training sample that is made from clip `index` in an epoch.

        Raises:
            LookupError: the clip is not usable.
            DocumentError: the data set cannot read the clip.
        """
        listing = self.listing(index, epoch)
        clip = self.data[index]
        if clip.names != tuple(dict.fromkeys(self.data.names(index))):
            raise ValueError(f"{self.data.name}: {clip.key} has other objects than names() says")
        shown = set(map(same_name, listing.true))
        masks = np.zeros(clip.frames.shape[:3], np.bool_)
        for item in clip.objects:
            if same_name(item.name) in shown:
                masks |= item.masks
        labels = np.asarray(masks.any(axis=(1, 2)))
        return ExposureSample(clip.key, clip.frames, listing.categories, masks, labels, bool(listing.true), listing.true)

    def fingerprint(self) -> str:
        """Return a hash that changes with the data, the options and the seed, but not with `hard`."""
        options = self.options
        held_out = sorted(self._held_out)
        numbers = (options.probability, self.max_categories, options.max_true, options.min_irrelevant, options.hard_share)
        return hashlib.sha256(repr((self.data.fingerprint(), numbers, held_out, self.seed)).encode()).hexdigest()

    def _irrelevant(self, rng: np.random.Generator, own: Mapping[str, str], count: int) -> list[str]:
        """Draw `count` names that no object of the clip has; hard negatives come first."""
        taken, chosen = set(own), list[str]()
        hard = int(rng.binomial(count, self.options.hard_share))
        if hard and self._hard is not None:
            alike = _Joined([self._hard(mine) for mine in own.values()])
            for place in rng.choice(len(alike), size=min(len(alike), _TRIES * hard), replace=False) if len(alike) else ():
                name = alike[int(place)]
                key = same_name(name)
                if key not in taken and key not in self._held_out and len(chosen) < hard:
                    taken.add(key)
                    chosen.append(name)
        for other in rng.integers(len(self._pools), size=_TRIES * count):
            if len(chosen) == count:
                return chosen
            pool = self._pools[int(other)]
            key, name = pool[int(rng.integers(len(pool)))]
            if key not in taken:
                taken.add(key)
                chosen.append(name)
        # Draw the names that are still missing. Frequent names are more probable, as in the tries above.
        left = [item for key, item in self._vocabulary.items() if key not in taken]
        missing = min(count - len(chosen), len(left))
        if not missing:
            return chosen
        weights = np.array([weight for _, weight in left])
        drawn = rng.choice(len(left), size=missing, replace=False, p=weights / weights.sum())
        return chosen + [left[place][0] for place in drawn]


def shared_words(names: Iterable[str]) -> HardNegatives:
    """Return a function from a name to its hard negatives: all `names` that share a word with it.

    A name is among its own hard negatives. Articles and other common words do not count.
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
