"""The samples of a training. Data sets are opened, mixed by weight and read in a planned order.

`Mixture` plans the samples of an epoch and their order. `mixture_of` makes the mixture of a recipe,
and `ValidationSet` has the recipe's samples for validation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from vadcli.options import cache_folder
from vadcli.train.datasets import open_data
from vadcli.train.datasets.base import ClipRule
from vadcli.train.exposure import AnomalyExposureSampler
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
        reading: number of complete passes over the data set before this one. The sampler uses it as
            the epoch, so that every pass differs.
    """

    part: int
    index: int
    reading: int


class Mixture:
    """Data sets mixed by weight.

    Every epoch has the same number of samples from a data set, as close to its weight as whole numbers
    allow. A data set continues in the next epoch where it stopped. So each sample is used once before
    any sample is used again.

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
        weights = np.array([weight for _, weight in parts], np.float64)
        if not len(weights) or not (np.isfinite(weights) & (weights > 0)).all():
            raise ValueError(f"mixture weights must be positive numbers, not {weights.tolist()}")
        # All shares are rounded down. The samples that are left go to the largest remainders; if two
        # are equal, to the first.
        shares = weights / weights.sum() * draws
        quotas = np.floor(shares + 1e-9).astype(np.int64)
        quotas[np.argsort(-(shares - quotas), kind="stable")[: draws - int(quotas.sum())]] += 1
        self.quotas = tuple(int(quota) for quota in quotas)
        for name, quota in zip(names, self.quotas, strict=True):
            if not quota:
                raise ValueError(f"{name}: its weight gives it none of {draws} samples; raise the weight or remove {name}")

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
        """Return one sample of a plan.

        Raises:
            DocumentError: the data set cannot read the sample.
        """
        return self.samplers[draw.part].sample(draw.index, draw.reading)

    def fingerprint(self) -> str:
        """Return a hexadecimal hash that changes when the plan of any epoch changes."""
        parts = [(sampler.fingerprint(), quota) for sampler, quota in zip(self.samplers, self.quotas, strict=True)]
        return hashlib.sha256(repr((parts, self.draws, self.seed)).encode()).hexdigest()


def open_choice(item: DataChoice, frames: int) -> SegmentationData:
    """Open a data set that the paper trains on, with `frames` frames per clip."""
    root = Path(item.root).expanduser()
    return open_data(item.name, root, split=item.split, rule=ClipRule(frames=frames), cache=cache_folder() / "training")


def mixture_of(recipe: Recipe, *, frames: int, processes: int = 1, opened: Open = open_choice) -> Mixture:
    """Return the training mixture; an epoch has as many samples as its steps need.

    Args:
        recipe: names the data sets and the options of exposure.
        frames: T, frames per clip of a video.
        processes: number of processes that train together, each with its own batches.
        opened: opens each data set; its errors are passed on.
    """
    schedule = recipe.schedule
    parts = [
        (
            AnomalyExposureSampler(opened(item, frames), recipe.exposure, recipe.seed, max_categories=item.max_categories),
            item.weight,
        )
        for item in recipe.data
    ]
    return Mixture(parts, schedule.steps * schedule.batch * schedule.accumulation * processes, recipe.seed)


class ValidationSet(Sequence[ExposureSample]):
    """The samples to validate on, the same in every run of a recipe. A sample is read when it is accessed."""

    def __init__(self, recipe: Recipe, item: DataChoice, *, frames: int, opened: Open = open_choice) -> None:
        self._sampler = AnomalyExposureSampler(
            opened(item, frames), recipe.exposure, recipe.seed, max_categories=item.max_categories
        )
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
        """Pickle without the cached plans; each worker process makes them again."""
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
