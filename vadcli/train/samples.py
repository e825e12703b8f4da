"""The samples of a training: the Anomaly Exposure Sampler (paper 3.3), and the mixture of data sets.

    clip ─┬─ probability ½ ─> list: 1 or 2 names of its objects and irrelevant names, shuffled;
          │                   masks of the listed objects
          └─ otherwise ─────> list: irrelevant names only; empty masks

The sampler turns a clip with segmented objects (`Segmentation`) into a pseudo-anomaly or a normal sample (`ExposureSample`). An
irrelevant name is a name that no object of the clip has. The lengths of the lists are drawn in the same way for anomalies and
for normal samples, so the model cannot guess the answer from the length. A sample depends only on (seed, data set, epoch,
index), so workers may take samples in any order. `Mixture` plans the samples of an epoch and their order.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from types import MappingProxyType
from typing import Protocol, overload
from zlib import crc32

import numpy as np

from vadcli.errors import UsageError
from vadcli.train import ExposureOptions
from vadcli.types import BoolArray, ByteArray, IndexArray


@dataclass(frozen=True, eq=False)
class SegmentedObject:
    """One object of a clip, or one expression that refers to it.

    Two expressions for one object are two `SegmentedObject`s with the same masks. Two objects of one
    category are two `SegmentedObject`s with the same name.

    Attributes:
        name: category or expression, as it is written in the prompt; never empty.
        masks: (T, H, W) bool, True where the object is visible; all False in frames that do not show the object.
    """

    name: str
    masks: BoolArray

    def __post_init__(self) -> None:
        if not self.name or self.name != self.name.strip():
            raise ValueError(f"the name of an object is {self.name!r}; it must have text and no spaces around it")
        if self.masks.dtype != np.bool_ or self.masks.ndim != 3:
            raise ValueError(f"masks of {self.name!r} are {self.masks.dtype} {self.masks.shape}, not bool (T, H, W)")


@dataclass(frozen=True, eq=False)
class Segmentation:
    """One clip of a segmentation data set with its objects. An image is a clip with T = 1.

    Attributes:
        key: unique name of the clip in its data set; the same in every run.
        frames: (T, H, W, 3) uint8 RGB.
        objects: the named objects; other objects may be visible too.
    """

    key: str
    frames: ByteArray
    objects: tuple[SegmentedObject, ...]

    def __post_init__(self) -> None:
        _check_frames(self.key, self.frames)
        for item in self.objects:
            if item.masks.shape != self.frames.shape[:3]:
                raise ValueError(f"{self.key}: masks {item.masks.shape} of {item.name!r} do not fit frames {self.frames.shape}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the objects in the order of the objects. No name is repeated."""
        return tuple(dict.fromkeys(item.name for item in self.objects))


class SegmentationData(Protocol):
    """A segmentation data set: numbered clips, the same in every run and in every worker.

    `data[index]` reads pixels and depends only on the index. `names(index)` is quick, because it
    reads no pixels.
    """

    @property
    def name(self) -> str:
        """The data set's name, such as `mevis`."""

    def __len__(self) -> int:
        """Return the number of clips."""

    def __getitem__(self, index: int) -> Segmentation:
        """Return clip `index`, 0 ≤ index < len; raises IndexError past the end."""

    def names(self, index: int) -> tuple[str, ...]:
        """Return the same as `data[index].names`, without reading pixels."""

    def fingerprint(self) -> str:
        """Return a hexadecimal hash that changes when the clips, their order or their names change."""


@dataclass(frozen=True, eq=False)
class ExposureSample:
    """One training sample: a clip, a list of anomaly categories, and the resulting labels.

    Attributes:
        key: the clip's key in its data set.
        frames: (T, H, W, 3) uint8 RGB.
        categories: the list for the prompt, shuffled, without repetition.
        masks: (T, H, W) bool, True where the frame shows an object of `true`; all False in a normal sample.
        labels: (T,) bool, True if the mask of the frame has at least one True pixel.
        anomalous: True if `true` is not empty. Some frames of an anomalous clip may be normal.
        true: the categories that the clip shows; empty in a normal sample.
    """

    key: str
    frames: ByteArray
    categories: tuple[str, ...]
    masks: BoolArray
    labels: BoolArray
    anomalous: bool
    true: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_frames(self.key, self.frames)
        if self.masks.dtype != np.bool_ or self.masks.shape != self.frames.shape[:3]:
            raise ValueError(f"{self.key}: masks {self.masks.dtype} {self.masks.shape} do not fit frames {self.frames.shape}")
        if self.labels.dtype != np.bool_ or not np.array_equal(self.labels, self.masks.any(axis=(1, 2))):
            raise ValueError(f"{self.key}: a frame's label must be True if the frame's mask has a True pixel, else False")
        if self.masks.any() and not self.anomalous:
            raise ValueError(f"{self.key}: the masks of a normal sample must not have a True pixel")
        if not self.categories or len(set(self.categories)) != len(self.categories):
            raise ValueError(f"{self.key}: the list of categories is empty or repeats a name: {self.categories}")


def _check_frames(key: str, frames: ByteArray) -> None:
    if not key:
        raise ValueError("a sample needs a key")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"{key}: frames are {frames.dtype} {frames.shape}, not uint8 (T, H, W, 3)")


HardNegatives = Callable[[str], Sequence[str]]
"""Returns names that are similar to a name, in a fixed order. Names of the same clip may be among them."""

CATEGORY_LIMITS: Mapping[str, int] = MappingProxyType({"cityscapes": 6, "mapillary": 20})
"""N, the largest number of categories in a list, for data sets with few categories; the values are from the paper."""
MAX_CATEGORIES = 30
"""N, the largest number of categories in a list, for all other data sets; from the paper."""

_TRIES = 20  # largest number of random draws per wanted name; names that are still missing are drawn from all other names
_COMMON_WORDS = frozenset(
    {"and", "are", "at", "for", "from", "has", "in", "is", "it", "its", "of", "on", "that", "the", "to", "with"}
)


def same_name(name: str) -> str:
    """Return the name in a form for comparisons: lower case, single spaces, no full stop at the end."""
    return " ".join(name.casefold().split()).rstrip(". ")


@dataclass(frozen=True)
class Listing:
    """The list of categories of one sample.

    Attributes:
        categories: the list for the prompt, shuffled.
        true: the categories that the clip shows; empty in a normal sample.
    """

    categories: tuple[str, ...]
    true: tuple[str, ...]


class AnomalyExposureSampler:
    """Makes training samples from one data set.

    To draw an irrelevant name, the sampler draws a clip at random, and then one of that clip's names. So names
    that are frequent in the data set are frequent among the irrelevant names. A clip is usable if at least one of
    its names is allowed (not held out), and if the data set has enough other names. `plan` skips all other clips.

    Args:
        data: the data set. The names of all clips are read once, when the sampler is created.
        options: how clips become pseudo-anomalies.
        seed: seed of all random choices, 0 or more.
        max_categories: N, the largest number of categories in a list; 0 means the paper's N for this data set.
        hard: returns the hard negatives (similar names) of a name; `shared_words` of all names by default.

    Raises:
        UsageError: no clip is usable, or N is smaller than 1 + `options.min_irrelevant`.
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
                f"{data.name}: max_categories {self.max_categories} is too small for 1 true and {others} irrelevant names",
                hint="raise max_categories of the data set, or lower min_irrelevant of [exposure]",
            )
        self._held_out = frozenset(map(same_name, options.held_out))
        # The keys of these dictionaries are `same_name(name)`. The values have the spelling that came first.
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
            raise UsageError(f"{data.name}: no clip has an allowed name and enough irrelevant names")
        self._hard = hard or (shared_words(self.vocabulary) if options.hard_share else None)

    def __len__(self) -> int:
        """Return the number of usable clips."""
        return len(self.usable)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All names of the data set that are not held out, in the order of the clips. No name is repeated."""
        return tuple(spelling for spelling, _ in self._vocabulary.values())

    def plan(self, epoch: int) -> IndexArray:
        """Return the indices of the usable clips, each once, shuffled for an epoch: (len(self),) int64."""
        shuffled = np.random.default_rng([self.seed, crc32(self.data.name.encode()), epoch]).permutation(len(self))
        return np.asarray(self.usable, np.int64)[shuffled]

    def listing(self, index: int, epoch: int) -> Listing:
        """Return the list of categories for clip `index` in an epoch, without reading pixels.

        Raises:
            LookupError: the clip is not usable.
        """
        options, own = self.options, self._names[index]
        spare = len(self._vocabulary) - len(own)
        if not own or spare < max(1, options.min_irrelevant):
            raise LookupError(f"{self.data.name}: clip {index} has no allowed name or too few irrelevant names")
        rng = np.random.default_rng([self.seed, crc32(self.data.name.encode()), epoch, index])
        anomalous = rng.random() < options.probability
        # The number of true names is drawn for normal samples too. So the lengths of lists do not depend on the kind of sample.
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
            raise ValueError(f"{self.data.name}: names({index}) differs from the names of the objects of {clip.key}")
        shown = set(map(same_name, listing.true))
        masks = np.zeros(clip.frames.shape[:3], np.bool_)
        for item in clip.objects:
            if same_name(item.name) in shown:
                masks |= item.masks
        labels = np.asarray(masks.any(axis=(1, 2)))
        return ExposureSample(clip.key, clip.frames, listing.categories, masks, labels, bool(listing.true), listing.true)

    def fingerprint(self) -> str:
        """Return a hash of all values that affect the samples, except the function `hard`."""
        options = self.options
        held_out = sorted(self._held_out)
        numbers = (options.probability, self.max_categories, options.max_true, options.min_irrelevant, options.hard_share)
        return hashlib.sha256(repr((self.data.fingerprint(), numbers, held_out, self.seed)).encode()).hexdigest()

    def _irrelevant(self, rng: np.random.Generator, own: Mapping[str, str], count: int) -> list[str]:
        """Draw `count` names that are not in `own`, the names of the clip. Hard negatives (similar names) come first."""
        taken, chosen = set(own), list[str]()
        hard = int(rng.binomial(count, self.options.hard_share))
        if hard and self._hard is not None:
            similar = _Joined([self._hard(name) for name in own.values()])
            for place in rng.choice(len(similar), size=min(len(similar), _TRIES * hard), replace=False) if len(similar) else ():
                name = similar[int(place)]
                key = same_name(name)
                if key not in taken and key not in self._held_out and len(chosen) < hard:
                    taken.add(key)
                    chosen.append(name)
        for clip in rng.integers(len(self._pools), size=_TRIES * count):
            if len(chosen) == count:
                return chosen
            pool = self._pools[int(clip)]
            key, name = pool[int(rng.integers(len(pool)))]
            if key not in taken:
                taken.add(key)
                chosen.append(name)
        # The loop above has not found enough names. The missing names are drawn from all names that are left. As above,
        # frequent names are more probable.
        left = [item for key, item in self._vocabulary.items() if key not in taken]
        missing = min(count - len(chosen), len(left))
        if not missing:
            return chosen
        weights = np.array([weight for _, weight in left])
        drawn = rng.choice(len(left), size=missing, replace=False, p=weights / weights.sum())
        return chosen + [left[place][0] for place in drawn]


def shared_words(names: Iterable[str]) -> HardNegatives:
    """Return a function that takes a name and returns all `names` with at least one word in common.

    The result includes the name itself. Articles and other common words do not count.
    """
    by_word: dict[str, list[str]] = {}
    for name in names:
        for word in _words(name):
            by_word.setdefault(word, []).append(name)
    return lambda name: _Joined([by_word.get(word, []) for word in _words(name)])


class _Joined(Sequence[str]):
    """Several lists of names as one sequence. Nothing is copied, because a list may have tens of thousands of names."""

    def __init__(self, parts: Iterable[Sequence[str]]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._ends, index)
        return self._parts[part][index - self._ends[part] + len(self._parts[part])]


def _words(name: str) -> list[str]:
    """Return the words of a name, each once; single letters and common words are left out."""
    words = dict.fromkeys(re.findall(r"\w{2,}", name.casefold()))
    return [word for word in words if word not in _COMMON_WORDS]


@dataclass(frozen=True)
class Draw:
    """One sample of an epoch's plan.

    Attributes:
        part: index of the data set in the mixture.
        index: index of the clip in the data set.
        reading: number of complete passes over the data set before this sample. The data set's sampler gets
            this number as `epoch`, so the same clip has other categories in every pass.
    """

    part: int
    index: int
    reading: int


class Mixture:
    """Data sets mixed by weight.

    A data set gives the same number of samples to every epoch. This number is proportional to its weight, but rounded.
    In the next epoch, the data set continues with its next sample. So all clips of the data set are used once
    before one of them is used again.

    Args:
        parts: (sampler, weight) pairs; the weights need not add up to 1.
        draws: samples per epoch.
        seed: seed of the order, 0 or more.

    Raises:
        ValueError: two parts have the same data set, a weight is not positive, or a weight gives less than one
            sample per epoch.
    """

    def __init__(self, parts: Sequence[tuple[AnomalyExposureSampler, float]], draws: int, seed: int) -> None:
        self.samplers = tuple(sampler for sampler, _ in parts)
        self.draws, self.seed = draws, seed
        names = [sampler.data.name for sampler in self.samplers]
        if len(set(names)) != len(names):
            raise ValueError(f"a data set occurs twice in the mixture: {', '.join(names)}")
        weights = np.array([weight for _, weight in parts], np.float64)
        if not len(weights) or not (np.isfinite(weights) & (weights > 0)).all():
            raise ValueError(f"mixture weights must be positive numbers, not {weights.tolist()}")
        # Largest remainder method: all shares are rounded down, and the samples that are left go to the shares
        # that lost most by rounding. If two shares lost the same, the first of them gets the sample.
        shares = weights / weights.sum() * draws
        quotas = np.floor(shares + 1e-9).astype(np.int64)
        quotas[np.argsort(-(shares - quotas), kind="stable")[: draws - int(quotas.sum())]] += 1
        self.quotas = tuple(int(quota) for quota in quotas)
        for name, quota in zip(names, self.quotas, strict=True):
            if not quota:
                raise ValueError(
                    f"{name}: the weight gives less than 1 of {draws} samples per epoch; raise the weight or remove {name}"
                )

    def plan(self, epoch: int) -> tuple[Draw, ...]:
        """Return the samples of an epoch in order; every call returns the same samples."""
        drawn: list[Draw] = []
        for part, (sampler, quota) in enumerate(zip(self.samplers, self.quotas, strict=True)):
            first, last = epoch * quota, (epoch + 1) * quota
            for reading in range(first // len(sampler), (last - 1) // len(sampler) + 1):
                start = reading * len(sampler)
                indices = sampler.plan(reading)[max(first - start, 0) : last - start]
                drawn += [Draw(part, int(index), reading) for index in indices]
        order = np.random.default_rng([self.seed, epoch]).permutation(len(drawn))
        return tuple(drawn[place] for place in order)

    def sample(self, draw: Draw) -> ExposureSample:
        """Return the sample for one entry of the plan.

        Raises:
            DocumentError: the data set cannot read the sample.
        """
        return self.samplers[draw.part].sample(draw.index, draw.reading)

    def fingerprint(self) -> str:
        """Return a hexadecimal hash that changes when the plan of any epoch changes."""
        parts = [(sampler.fingerprint(), quota) for sampler, quota in zip(self.samplers, self.quotas, strict=True)]
        return hashlib.sha256(repr((parts, self.draws, self.seed)).encode()).hexdigest()


class ValidationSet(Sequence[ExposureSample]):
    """The validation samples: the first `count` samples of a sampler, each read when it is accessed."""

    def __init__(self, sampler: AnomalyExposureSampler, *, count: int) -> None:
        self._sampler = sampler
        self._indices = [int(index) for index in sampler.plan(0)[:count]]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: int) -> ExposureSample:  # type: ignore[override]
        return self._sampler.sample(self._indices[place], 0)


class PlannedSamples(Sequence[ExposureSample]):
    """All samples of a training, in the order of their use.

    A sample depends only on its number, so reader processes may take samples in any order.
    """

    def __init__(self, mixture: Mixture, epochs: int) -> None:
        self.mixture, self.epochs = mixture, epochs
        self._plan = lru_cache(maxsize=2)(mixture.plan)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle without the cached plans; each reader process makes its own plans."""
        return (PlannedSamples, (self.mixture, self.epochs))

    def __len__(self) -> int:
        return self.mixture.draws * self.epochs

    def __getitem__(self, number: int) -> ExposureSample:  # type: ignore[override]
        epoch, place = divmod(number, self.mixture.draws)
        return self.mixture.sample(self._plan(epoch)[place])


class StepOrder:
    """The numbers of the samples that one process uses: one list per step, from step `first` on.

    The samples of a step are consecutive. The process of rank 0 uses the first `per_process` samples, the process of
    rank 1 the next ones, and so on.
    """

    def __init__(self, *, first: int, total: int, per_process: int, processes: int, rank: int) -> None:
        self.first, self.total = first, total
        self.per_process, self.processes, self.rank = per_process, processes, rank

    def __len__(self) -> int:
        return self.total - self.first

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.total):
            start = (step * self.processes + self.rank) * self.per_process
            yield list(range(start, start + self.per_process))
