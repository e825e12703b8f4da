"""What a recipe trains on and is validated on: data sets opened, mixed and read in the order of the plan."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path

from vadcli.config import cache_folder
from vadcli.train.base.naming import SpokenWorld
from vadcli.train.datasets import open_data
from vadcli.train.datasets.base import ClipRule
from vadcli.train.exposure import AnomalyExposureSampler, ExposureOptions, paper_options
from vadcli.train.mixture import Mixture
from vadcli.train.recipe import SYNTHETIC, DataChoice, Recipe
from vadcli.train.samples import ExposureSample, SegmentationData
from vadcli.train.synthetic import SyntheticWorld
from vadcli.train.synthetic.painted import painted


def mixture_of(recipe: Recipe, *, frames: int, processes: int = 1) -> Mixture:
    """The training mixture; an epoch has as many samples as its steps take.

    Args:
        recipe: data sets and how samples become anomalies.
        frames: T of a video's clip.
        processes: that train side by side, each with its own batches.

    Raises:
        UsageError: a folder isn't its data set's.
        DocumentError: a file is damaged.
    """
    schedule = recipe.schedule
    parts = [(_sampler(recipe, item, frames=frames), item.weight) for item in recipe.data]
    return Mixture(parts, schedule.steps * schedule.batch * schedule.accumulation * processes, recipe.seed)


class ValidationSet(Sequence[ExposureSample]):
    """The samples that a training is validated on, read when they are asked for; the same in every run of a recipe.

    Raises:
        UsageError: the folder isn't the data set's.
        DocumentError: a file is damaged.
    """

    def __init__(self, recipe: Recipe, *, frames: int) -> None:
        chosen = recipe.validation
        trained = [item for item in recipe.data if item.name == chosen.name]
        spoken = [item.patterns for item in trained]
        item = DataChoice(
            chosen.name,
            chosen.root,
            chosen.split,
            clips=chosen.clips,
            max_categories=trained[0].max_categories if trained else 0,
            patterns=tuple(dict.fromkeys(chain.from_iterable(spoken))) if all(spoken) else (),
        )
        self._sampler = _sampler(recipe, item, frames=frames)
        self._indices = [int(index) for index in self._sampler.plan(0)[: chosen.clips]]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: int) -> ExposureSample:  # type: ignore[override]
        return self._sampler.sample(self._indices[place], 0)

    def fingerprint(self) -> str:
        """Changes when a sample could; hexadecimal."""
        return hashlib.sha256(repr((self._sampler.fingerprint(), self._indices)).encode()).hexdigest()


class PlannedSamples(Sequence[ExposureSample]):
    """All samples of a training in the order in which they are looked at: sample n of the plan's epoch n // draws.

    Knows no process and no batch, so that reader processes may take samples in any order.
    """

    def __init__(self, mixture: Mixture, epochs: int) -> None:
        self.mixture, self.epochs = mixture, epochs
        self._plan = lru_cache(maxsize=2)(mixture.plan)

    def __reduce__(self) -> tuple[object, ...]:
        """Worker processes plan for themselves."""
        return (PlannedSamples, (self.mixture, self.epochs))

    def __len__(self) -> int:
        return self.mixture.draws * self.epochs

    def __getitem__(self, number: int) -> ExposureSample:  # type: ignore[override]
        epoch, place = divmod(number, self.mixture.draws)
        return self.mixture.sample(self._plan(epoch)[place])


class StepOrder:
    """Which samples each step of one process takes, from a step on: its share of the step's consecutive samples."""

    def __init__(self, *, first: int, total: int, per_process: int, processes: int, rank: int) -> None:
        self.first, self.total = first, total
        self.per_process, self.processes, self.rank = per_process, processes, rank

    def __len__(self) -> int:
        return self.total - self.first

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.total):
            start = (step * self.processes + self.rank) * self.per_process
            yield list(range(start, start + self.per_process))


def world_of(recipe: Recipe, item: DataChoice, *, frames: int) -> SyntheticWorld:
    """The synthetic world that a data choice means, from its folder where it is to be painted."""
    options = replace(recipe.world, frames=frames)
    world = SyntheticWorld(options, seed=recipe.seed, split=item.split, length=item.clips)  # type: ignore[arg-type]
    return painted(world, cache_folder() / "training") if item.painted else world


def _sampler(recipe: Recipe, item: DataChoice, *, frames: int) -> AnomalyExposureSampler:
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
    return AnomalyExposureSampler(_open(recipe, item, frames=frames), options, recipe.seed)


def _open(recipe: Recipe, item: DataChoice, *, frames: int) -> SegmentationData:
    if item.name == SYNTHETIC:
        world = world_of(recipe, item, frames=frames)
        return SpokenWorld(world, item.patterns, name=item.called or world.name) if item.patterns else world
    root = Path(item.root).expanduser()
    return open_data(item.name, root, split=item.split, rule=ClipRule(frames=frames), cache=cache_folder() / "training")
