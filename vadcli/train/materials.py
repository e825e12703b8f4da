"""The samples of a training: data sets are opened, mixed by weight and read in a planned order.

`Mixture` decides which samples of each data set an epoch has and in which order. `mixture_of` and
`ValidationSet` make the samples to train on and to validate on from a recipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from vadcli.options.config import cache_folder
from vadcli.train.datasets import open_data
from vadcli.train.datasets.base import ClipRule
from vadcli.train.exposure import AnomalyExposureSampler, ExposureOptions, paper_options
from vadcli.train.recipe import DataChoice, Recipe
from vadcli.train.samples import ExposureSample, SegmentationData

Open = Callable[[DataChoice, int], SegmentationData]
"""Opens a data set: (choice, frames per clip) -> data set."""


@dataclass(frozen=True)
class Draw:
    """One sample of an epoch's plan.

    Attributes:
        part: index of the data set in the mixture.
        index: index of the sample in the data set.
        reading: number of earlier complete passes over the data set. The sampler uses this number
            as the epoch, so that every pass differs.
    """

    part: int
    index: int
    reading: int


class Mixture:
    """Data sets mixed by weight.

    The number of samples from each data set is the same in every epoch, as close to the weights as
    whole numbers allow. A data set continues in the next epoch where it stopped, so each sample is
    used once before any is used again.

    Args:
        parts: (sampler, weight) pairs; the weights need not add up to 1.
        draws: samples per epoch.
        seed: seed of the order, 0 or more.

    Raises:
        ValueError: a weight is not positive, or too small for a single sample per epoch.
    """

    def __init__(self, parts: Sequence[tuple[AnomalyExposureSampler, float]], draws: int, seed: int) -> None:
        self.samplers = tuple(sampler for sampler, _ in parts)
        self.draws, self.seed = draws, seed
        names = [sampler.data.name for sampler in self.samplers]
        if len(set(names)) != len(names):
            raise ValueError(f"the mixture has a data set twice: {', '.join(names)}")
        self.quotas = _quotas([weight for _, weight in parts], draws)
        for name, quota in zip(names, self.quotas, strict=True):
            if not quota:
                raise ValueError(f"{name}: its weight gives it none of {draws} samples; raise the weight or remove {name}")

    def plan(self, epoch: int) -> tuple[Draw, ...]:
        """Return the samples of an epoch in order; every call returns the same samples."""
        drawn = [draw for part in range(len(self.samplers)) for draw in self._from_part(part, epoch)]
        order = np.random.default_rng([self.seed, epoch]).permutation(len(drawn))
        return tuple(drawn[place] for place in order)

    def sample(self, draw: Draw) -> ExposureSample:
        """Return one sample of a plan.

        Raises:
            DocumentError: the data set cannot read the sample.
        """
        return self.samplers[draw.part].sample(draw.index, draw.reading)

    def fingerprint(self) -> str:
        """Return a hexadecimal hash that changes when the plan of any epoch changes."""
        parts = [(sampler.fingerprint(), quota) for sampler, quota in zip(self.samplers, self.quotas, strict=True)]
        return hashlib.sha256(repr((parts, self.draws, self.seed)).encode()).hexdigest()

    def _from_part(self, part: int, epoch: int) -> list[Draw]:
        sampler, quota = self.samplers[part], self.quotas[part]
        first, last = epoch * quota, (epoch + 1) * quota
        found: list[Draw] = []
        for reading in range(first // len(sampler), (last - 1) // len(sampler) + 1):
            start = reading * len(sampler)
            indices = sampler.plan(reading)[max(first - start, 0) : last - start]
            found += [Draw(part, int(index), reading) for index in indices]
        return found


def _quotas(weights: Sequence[float], draws: int) -> tuple[int, ...]:
    """Return the number of samples of each data set: `draws` divided by weight into whole numbers.

    All shares are rounded down. The samples that are left go to the shares with the largest
    remainders; of two equal remainders, the first in the list comes first.
    """
    shares = np.asarray(weights, np.float64)
    if not len(shares) or not (np.isfinite(shares) & (shares > 0)).all():
        raise ValueError(f"mixture weights must be positive numbers, not {list(weights)}")
    shares = shares / shares.sum() * draws
    quotas = np.floor(shares + 1e-9).astype(np.int64)
    largest = np.argsort(-(shares - quotas), kind="stable")[: draws - int(quotas.sum())]
    quotas[largest] += 1
    return tuple(int(quota) for quota in quotas)


def open_choice(item: DataChoice, frames: int) -> SegmentationData:
    """Open a data set that the paper trains on, with `frames` frames per clip."""
    root = Path(item.root).expanduser()
    return open_data(item.name, root, split=item.split, rule=ClipRule(frames=frames), cache=cache_folder() / "training")


def mixture_of(recipe: Recipe, *, frames: int, processes: int = 1, opened: Open = open_choice) -> Mixture:
    """Return the training mixture; an epoch has as many samples as its steps need.

    Args:
        recipe: names the data sets, and how clips become pseudo-anomalies.
        frames: T, frames per clip of a video.
        processes: number of processes that train together, each with its own batches.
        opened: opens each data set.

    Raises:
        UsageError: a folder does not hold its data set.
        DocumentError: a file is damaged.
    """
    schedule = recipe.schedule
    parts = [(_sampler(recipe, item, opened(item, frames)), item.weight) for item in recipe.data]
    return Mixture(parts, schedule.steps * schedule.batch * schedule.accumulation * processes, recipe.seed)


class ValidationSet(Sequence[ExposureSample]):
    """The samples to validate on; they are read when they are accessed, and are the same in every run of a recipe.

    Raises:
        UsageError: the folder does not hold this data set.
        DocumentError: a file is damaged.
    """

    def __init__(self, recipe: Recipe, item: DataChoice, *, frames: int, opened: Open = open_choice) -> None:
        self._sampler = _sampler(recipe, item, opened(item, frames))
        self._indices = [int(index) for index in self._sampler.plan(0)[: recipe.validation.clips]]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: int) -> ExposureSample:  # type: ignore[override]
        return self._sampler.sample(self._indices[place], 0)

    def fingerprint(self) -> str:
        """Return a hexadecimal hash that changes when the samples change."""
        return hashlib.sha256(repr((self._sampler.fingerprint(), self._indices)).encode()).hexdigest()


class PlannedSamples(Sequence[ExposureSample]):
    """All samples of a training in their order: sample n belongs to epoch n // draws.

    A sample depends only on its number, so reader processes may take samples in any order.
    """

    def __init__(self, mixture: Mixture, epochs: int) -> None:
        self.mixture, self.epochs = mixture, epochs
        self._plan = lru_cache(maxsize=2)(mixture.plan)

    def __reduce__(self) -> tuple[object, ...]:
        """Leave the cached plans out of the pickle; each worker process makes the plans again."""
        return (PlannedSamples, (self.mixture, self.epochs))

    def __len__(self) -> int:
        return self.mixture.draws * self.epochs

    def __getitem__(self, number: int) -> ExposureSample:  # type: ignore[override]
        epoch, place = divmod(number, self.mixture.draws)
        return self.mixture.sample(self._plan(epoch)[place])


class StepOrder:
    """The sample numbers of one process for each step, from step `first` on.

    The samples of a step are consecutive, and each process takes its share of them.
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


def _sampler(recipe: Recipe, item: DataChoice, data: SegmentationData) -> AnomalyExposureSampler:
    chosen = recipe.exposure
    options: ExposureOptions = replace(
        paper_options(item.name),
        probability=chosen.probability,
        max_true=chosen.max_true,
        min_irrelevant=chosen.min_irrelevant,
        hard_share=chosen.hard_share,
        held_out=frozenset(chosen.held_out),
    )
    if item.max_categories:
        options = replace(options, max_categories=item.max_categories)
    return AnomalyExposureSampler(data, options, recipe.seed)
