"""Bootstrap intervals over videos: a figure is a function of how often each video counts, so that nothing is sorted twice.

Frames of one video depend on one another, videos hardly do: videos are drawn with replacement, never frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vadcli.metrics.result import Metric

Numbers = NDArray[np.float64]
Statistic = Callable[[Numbers], Numbers]
"""(B, V) weights, how often each video counts, to (B,) figures, NaN where a figure is undefined."""

CHUNK = 64  # replicates weighed at once: bounds memory, changes no result
NEED_TWO = "an interval needs two videos or more"


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: the percentile method (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).

    Attributes:
        replicates: how many times the videos are drawn.
        confidence: the share of replicates inside the interval.
        seed: the same seed, videos and replicates give the same interval.
    """

    replicates: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicates < 1:
            raise ValueError(f"replicates must be 1 or more, not {self.replicates}")
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence must lie between 0 and 1, not {self.confidence:g}")

    def weights(self, videos: int) -> Iterator[Numbers]:
        """(up to CHUNK, V) float64 at a time: how often each video was drawn."""
        generator = np.random.default_rng(self.seed)
        shares = np.full(videos, 1.0 / videos)
        for start in range(0, self.replicates, CHUNK):
            count = min(CHUNK, self.replicates - start)
            yield generator.multinomial(videos, shares, size=count).astype(np.float64)


@dataclass(frozen=True)
class Estimate:
    """A figure that knows how to be resampled.

    Attributes:
        value: the exact figure of all videos, or None where it is undefined.
        drawn: V, how many videos a resample draws from.
        statistic: the figure under (B, V) weights; called only where an interval is asked for.
        note: why it is undefined, or what a reader must know.
        used: how many videos the figure rests on; V where None.
    """

    value: float | None
    drawn: int
    statistic: Statistic
    note: str = ""
    used: int | None = None

    def metric(self, bootstrap: Bootstrap | None = None) -> Metric:
        """The figure, with its percentile interval over videos where `bootstrap` is given.

        The interval is None with a note where the figure is undefined, there is one video alone, or no resample defines the
        figure. Resamples that leave it undefined (one class only, say) are left out and counted in the note.
        """
        videos = self.drawn if self.used is None else self.used
        if self.value is None or bootstrap is None:
            return Metric(self.value, videos=videos, note=self.note)
        if self.drawn < 2:
            return Metric(self.value, videos=videos, note=_joined(self.note, NEED_TWO))
        figures = np.concatenate([self.statistic(weights) for weights in bootstrap.weights(self.drawn)])
        return _with_interval(self.value, figures, bootstrap, videos, self.note)


def difference(first: Estimate, second: Estimate, bootstrap: Bootstrap) -> Metric:
    """`first` minus `second`, with the interval of paired resamples: both runs are weighed by the same drawn videos.

    Undefined where either figure is. Raises ValueError where the runs don't have equally many videos; that they are the same
    ones, in the same order, is for the caller to see to.
    """
    if first.drawn != second.drawn:
        raise ValueError(f"paired runs need the same videos, not {first.drawn} and {second.drawn}")
    videos = min(first.drawn if first.used is None else first.used, second.drawn if second.used is None else second.used)
    if first.value is None or second.value is None:
        return Metric(None, videos=videos, note=first.note if first.value is None else second.note)
    value = first.value - second.value
    if first.drawn < 2:
        return Metric(value, videos=videos, note=NEED_TWO)
    figures = [first.statistic(weights) - second.statistic(weights) for weights in bootstrap.weights(first.drawn)]
    return _with_interval(value, np.concatenate(figures), bootstrap, videos, "")


def ratio(numerator: Numbers, denominator: Numbers, *, undefined: str, note: str = "", used: int | None = None) -> Estimate:
    """The sum of (V,) numerators over the sum of (V,) denominators; None with the note `undefined` where that sum is 0."""
    above, below = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)

    def statistic(weights: Numbers) -> Numbers:
        return divided(weights @ above, weights @ below)

    total = float(below.sum())
    if total == 0.0:
        return Estimate(None, len(below), statistic, undefined, used)
    return Estimate(float(above.sum()) / total, len(below), statistic, note, used)


def divided(numerator: Numbers, denominator: Numbers) -> Numbers:
    """Their quotient, NaN where the denominator is 0."""
    quotient = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=quotient, where=np.asarray(denominator) != 0)
    return quotient


def _with_interval(value: float, figures: Numbers, bootstrap: Bootstrap, videos: int, note: str) -> Metric:
    kept = figures[~np.isnan(figures)]
    if not len(kept):
        return Metric(value, videos=videos, note=_joined(note, "no interval: no resample defines the figure"))
    lost = len(figures) - len(kept)
    if lost:
        note = _joined(note, f"undefined in {lost} of {len(figures)} resamples, left out of the interval")
    tail = (1.0 - bootstrap.confidence) / 2.0
    low, high = np.quantile(kept, [tail, 1.0 - tail])
    return Metric(value, float(low), float(high), videos, note)


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
