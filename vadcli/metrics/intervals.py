"""A figure as it is reported: its value, its interval, the videos that it rests on, and what a reader must know beside it.

Bootstrap intervals over videos: a figure is a function of how often each video counts, so that nothing is sorted twice.

Frames of one video depend on one another, videos hardly do: videos are drawn with replacement, never frames.

Areas under curves from counts by ascending score: one arithmetic for exact scores, bins and resamples.

Every function takes (..., K) counts, column k being all that scores the k-th lowest value (or bin), and gives (...) areas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Metric:
    """One figure. What can't be computed is None with a note that says why; a NaN is refused.

    Attributes:
        value: the figure, or None where it is undefined.
        ci_low, ci_high: the interval's ends, both or neither.
        videos: how many videos the figure rests on.
        note: what a reader must know; always there where the value is None.
    """

    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    videos: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        if self.value is None and not self.note:
            raise ValueError("an undefined metric needs a note that says why")
        if any(number is not None and not math.isfinite(number) for number in (self.value, self.ci_low, self.ci_high)):
            raise ValueError(f"a metric's numbers must be finite, not {self.value}, {self.ci_low}, {self.ci_high}")
        if (self.ci_low is None) != (self.ci_high is None):
            raise ValueError(f"an interval has both ends or none, not {self.ci_low} and {self.ci_high}")
        if self.ci_low is not None and self.ci_high is not None and self.ci_low > self.ci_high:
            raise ValueError(f"an interval's low end {self.ci_low} lies above its high end {self.ci_high}")

    def to_json(self) -> dict[str, float | int | str | None]:
        """In full precision, as written into `--json`."""
        return {
            "value": self.value,
            "ci_low": self.ci_low,
            "ci_high": self.ci_high,
            "videos": self.videos,
            "note": self.note,
        }


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


Counts = NDArray[np.int64] | Numbers


def roc_auc(positives: Counts, negatives: Counts) -> Numbers:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half (Mann and Whitney, 1947).

    Equal to `sklearn.metrics.roc_auc_score`. NaN without positives or without negatives.
    """
    total = positives.sum(axis=-1, keepdims=True)
    above = total - np.cumsum(positives, axis=-1)
    wins = (negatives * (above + positives / 2.0)).sum(axis=-1)
    return divided(wins, total[..., 0] * negatives.sum(axis=-1, dtype=np.float64))


def average_precision(positives: Counts, negatives: Counts) -> Numbers:
    """Average precision: precision at each distinct score, weighed by the recall that it adds, nothing interpolated.

    Equal to `sklearn.metrics.average_precision_score`. NaN without positives; 1 without negatives.
    """
    true, false = from_top(positives), from_top(negatives)
    found = true + false
    precision = np.divide(true, found, out=np.zeros(found.shape), where=found != 0)
    return divided((positives * precision).sum(axis=-1), np.asarray(true[..., 0], np.float64))


def from_top(counts: NDArray[Any]) -> NDArray[Any]:
    """(..., K) running sums from the highest score down: what a threshold at column k lets through."""
    sums: NDArray[Any] = np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]
    return sums


def area_to_limit(x: Numbers, y: Numbers, limit: float, *, flat: bool) -> Numbers:
    """(...) areas of piecewise linear (..., K) curves from x = 0 to `limit`; x never falls and starts at 0.

    Args:
        x, y: (..., K) points in order.
        limit: where the area ends.
        flat: True holds the last point within the limit up to it, False cuts the line that crosses it. A curve that ends before
            the limit is held either way.
    """
    steps = np.diff(x, axis=-1)
    within = np.clip(limit - x[..., :-1], 0.0, steps)
    if flat:
        within = np.where(x[..., 1:] <= limit, steps, 0.0)
    slopes = np.divide(np.diff(y, axis=-1), steps, out=np.zeros(steps.shape), where=steps > 0)
    area = (within * (y[..., :-1] + slopes * within / 2.0)).sum(axis=-1)
    last = (x <= limit).sum(axis=-1, keepdims=True) - 1
    held = limit - np.take_along_axis(x, last, axis=-1)[..., 0]
    if not flat:
        held = np.maximum(limit - x[..., -1], 0.0)
    rest: Numbers = area + held * np.take_along_axis(y, last, axis=-1)[..., 0]
    return rest


def bin_edges(groups: list[NDArray[Any]], bins: int) -> NDArray[Any]:
    """Ascending values that part each group into about `bins / len(groups)` equal shares; with few distinct values all of them.

    Bin k holds edge k - 1 <= value < edge k (`numpy.searchsorted(edges, values, "right")`), so that ties are never parted and
    order between bins is kept. Where every distinct value is an edge, nothing is lost.

    Args:
        groups: each ascending; positives and negatives apart, so that the rarer of them is resolved as finely.
        bins: how many at most, about.
    """
    edges = []
    for group in groups:
        starts = group[np.append(True, group[1:] != group[:-1])] if len(group) else group
        share = max(bins // len(groups), 1)
        edges.append(starts if len(starts) <= share else group[np.arange(share) * len(group) // share])
    return np.unique(np.concatenate(edges))


def histograms(
    rows: NDArray[np.int64], bins: NDArray[np.int64], shape: tuple[int, int], weights: Numbers | None = None
) -> Numbers:
    """(V, K) float64: how many (or how much weight of) the entries have row v and bin k."""
    flat = np.bincount(rows * shape[1] + bins, weights, minlength=shape[0] * shape[1])
    return flat.reshape(shape).astype(np.float64, copy=False)
