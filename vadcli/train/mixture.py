"""Several data sets in one training: how many samples each gives to an epoch, which, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from vadcli.train.exposure import AnomalyExposureSampler
from vadcli.train.samples import ExposureSample

LAVIDA_MIX: Mapping[str, float] = MappingProxyType(
    {
        "youtube-vos": 0.05,
        "ref-youtube-vos": 0.20,
        "mevis": 0.25,
        "ref-davis": 0.20,
        "cityscapes": 0.05,
        "refcoco": 0.10,
        "ade20k": 0.10,
        "mapillary": 0.05,
    }
)
"""The paper's training mix, by the names of the data sets."""


@dataclass(frozen=True)
class Draw:
    """One sample of an epoch's plan.

    Attributes:
        part: which data set, by its place in the mixture.
        index: which of its samples.
        reading: how often the data set was gone through before; the sampler's epoch, so that no two readings are alike.
    """

    part: int
    index: int
    reading: int


class Mixture:
    """Data sets mixed by weight.

    Every epoch has the same number of samples of each data set, as near to the weights as whole numbers come, shuffled.
    A data set goes on in the next epoch where it stopped, so each of its samples comes once before any comes again.

    Args:
        parts: (sampler, weight) pairs; weights needn't add up to 1.
        draws: samples in an epoch.
        seed: of the order, 0 or more.

    Raises:
        ValueError: a weight isn't positive, or too small for a single sample in an epoch.
    """

    def __init__(self, parts: Sequence[tuple[AnomalyExposureSampler, float]], draws: int, seed: int) -> None:
        self.samplers = tuple(sampler for sampler, _ in parts)
        self.draws, self.seed = draws, seed
        names = [sampler.data.name for sampler in self.samplers]
        if len(set(names)) != len(names):
            raise ValueError(f"a data set is in the mixture twice: {', '.join(names)}")
        self.quotas = _quotas([weight for _, weight in parts], draws)
        for name, quota in zip(names, self.quotas, strict=True):
            if not quota:
                raise ValueError(f"{name}: its weight gives it none of {draws} samples; raise the weight or leave it out")

    def plan(self, epoch: int) -> tuple[Draw, ...]:
        """The samples of an epoch in order; the same whenever it is asked for."""
        drawn = [draw for part in range(len(self.samplers)) for draw in self._from_part(part, epoch)]
        order = np.random.default_rng([self.seed, epoch]).permutation(len(drawn))
        return tuple(drawn[place] for place in order)

    def sample(self, draw: Draw) -> ExposureSample:
        """Read one sample of a plan.

        Raises:
            DocumentError: the data set can't read it.
        """
        return self.samplers[draw.part].sample(draw.index, draw.reading)

    def fingerprint(self) -> str:
        """Changes when what a plan holds does; hexadecimal."""
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
    """Whole numbers that add up to `draws`, by largest remainder; of equal remainders the first."""
    shares = np.asarray(weights, np.float64)
    if not len(shares) or not (np.isfinite(shares) & (shares > 0)).all():
        raise ValueError(f"mixture weights must be positive numbers, not {list(weights)}")
    shares = shares / shares.sum() * draws
    quotas = np.floor(shares + 1e-9).astype(np.int64)
    largest = np.argsort(-(shares - quotas), kind="stable")[: draws - int(quotas.sum())]
    quotas[largest] += 1
    return tuple(int(quota) for quota in quotas)
