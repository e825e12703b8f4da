"""Metrics as pure functions over arrays.

This file has the common parts: values, bootstrap intervals and areas under curves. The metrics themselves are in `frame`,
`event` and `localization`. They read no file and know no data set and no detector. Each metric returns an `Estimate`; its
method `metric` returns the value with an interval. A value that cannot be computed is None with a note, never NaN.

The bootstrap draws videos with replacement. It does not draw single frames, because the frames of one video depend on one
another. The `statistic` of an estimate computes the metric from how often each video was drawn, so that a resample does not
have to sort the scores again.

`roc_auc` and `average_precision` take counts (..., K) and return areas (...). Column k of the counts is the number of frames or
pixels that have the k-th lowest score, or a score in the k-th bin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Metric:
    """A metric's value as it is reported. An undefined value is None with a note, never NaN.

    Attributes:
        value: None if the metric is undefined.
        ci_low, ci_high: the ends of the interval; both None if there is no interval.
        videos: how many videos the value is computed from.
        note: a remark for the reader; never empty if the value is None.
        curve: (x, y) points of the curve whose area is the value; empty for most metrics.
    """

    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    videos: int = 0
    note: str = ""
    curve: Curve = ()

    def __post_init__(self) -> None:
        if self.value is None and not self.note:
            raise ValueError("an undefined metric needs a note that says why")
        if any(number is not None and not math.isfinite(number) for number in (self.value, self.ci_low, self.ci_high)):
            raise ValueError(f"a metric's numbers must be finite, not {self.value}, {self.ci_low}, {self.ci_high}")
        if (self.ci_low is None) != (self.ci_high is None):
            raise ValueError(f"an interval has both ends or none, not {self.ci_low} and {self.ci_high}")
        if self.ci_low is not None and self.ci_high is not None and self.ci_low > self.ci_high:
            raise ValueError(f"an interval's low end {self.ci_low} is above its high end {self.ci_high}")

    def to_json(self) -> dict[str, Any]:
        """Return the fields in full precision, as printed by `--json`; `curve` only if the metric has a curve."""
        fields = {name: value for name, value in vars(self).items() if name != "curve"}
        return {**fields, "curve": [list(point) for point in self.curve]} if self.curve else fields


Numbers = NDArray[np.float64]
Statistic = Callable[[Numbers], Numbers]
"""Takes weights (B, V): how often each of V videos was drawn in each of B resamples.

Returns the metric's value for each resample (B,); NaN if the metric is undefined.
"""

CHUNK = 64  # number of resamples that are computed together; it changes the memory used, but not the result
NEED_TWO = "an interval needs two videos or more"


@dataclass(frozen=True)
class Bootstrap:
    """Settings of percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).

    Attributes:
        replicates: number of resamples.
        confidence: share of resamples inside the interval.
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
        """Yield how often each video was drawn, in arrays (B, V) float64 of at most CHUNK resamples."""
        generator = np.random.default_rng(self.seed)
        shares = np.full(videos, 1.0 / videos)
        for start in range(0, self.replicates, CHUNK):
            count = min(CHUNK, self.replicates - start)
            yield generator.multinomial(videos, shares, size=count).astype(np.float64)


@dataclass(frozen=True)
class Estimate:
    """A metric's value together with the function that computes it for resamples.

    Attributes:
        value: the exact value over all videos; None if undefined.
        drawn: V, the number of videos that a resample draws from.
        statistic: computes the values of resamples (see `Statistic`); called only if an interval is requested.
        note: why the value is undefined, or a remark for the reader.
        used: how many videos the value is computed from; None means V.
        interval: False if there is no interval because the value is computed from fewer than two videos.
        curve: see `Metric`.
    """

    value: float | None
    drawn: int
    statistic: Statistic
    note: str = ""
    used: int | None = None
    interval: bool = True
    curve: Curve = ()

    def metric(self, bootstrap: Bootstrap | None = None) -> Metric:
        """Return the value, with its percentile interval over videos if `bootstrap` is given.

        There is a note instead of an interval if the value is undefined, if it is computed from fewer than two videos, or if it
        is undefined in every resample. Resamples in which the value is undefined (for example with one class only) are left out
        and counted in the note.
        """
        videos = self.drawn if self.used is None else self.used
        if self.value is None or bootstrap is None:
            return Metric(self.value, videos=videos, note=self.note, curve=self.curve)
        if self.drawn < 2 or not self.interval:
            return Metric(self.value, videos=videos, note=_join(self.note, NEED_TWO), curve=self.curve)
        figures = np.concatenate([self.statistic(weights) for weights in bootstrap.weights(self.drawn)])
        return replace(_with_interval(self.value, figures, bootstrap, videos, self.note), curve=self.curve)


def difference(first: Estimate, second: Estimate, bootstrap: Bootstrap) -> Metric:
    """Return `first` minus `second` with an interval from paired resamples.

    In each resample, both values are computed from the same drawn videos. So both must have the same videos in the same order.
    Undefined if either value is undefined.

    Raises:
        ValueError: the numbers of videos differ.
    """
    if first.drawn != second.drawn:
        raise ValueError(f"paired runs need the same videos, not {first.drawn} and {second.drawn} videos")
    videos = min(first.drawn if first.used is None else first.used, second.drawn if second.used is None else second.used)
    if first.value is None or second.value is None:
        return Metric(None, videos=videos, note=first.note if first.value is None else second.note)
    value = first.value - second.value
    if first.drawn < 2 or not (first.interval and second.interval):
        return Metric(value, videos=videos, note=NEED_TWO)
    figures = [first.statistic(weights) - second.statistic(weights) for weights in bootstrap.weights(first.drawn)]
    return _with_interval(value, np.concatenate(figures), bootstrap, videos, "")


def ratio(numerator: Numbers, denominator: Numbers, *, undefined: str, note: str = "", used: int | None = None) -> Estimate:
    """Return the sum of the numerators (V,) divided by the sum of the denominators (V,).

    If the sum of the denominators is 0, the value is None, and the note is `undefined`.
    """
    above, below = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)

    def statistic(weights: Numbers) -> Numbers:
        return divide(weights @ above, weights @ below)

    total = float(below.sum())
    if total == 0.0:
        return Estimate(None, len(below), statistic, undefined, used)
    return Estimate(float(above.sum()) / total, len(below), statistic, note, used)


def over_all(estimate: Estimate, chosen: NDArray[np.bool_]) -> Estimate:
    """Return the estimate with resamples that draw from all videos, not only from the chosen videos.

    So the estimates of two runs can be paired even if the runs use different videos. Fewer than two videos give no interval.

    Args:
        estimate: an estimate over the chosen videos only, in the order of all videos.
        chosen: (V,) bool, True for the videos of `estimate`.
    """
    used = estimate.drawn if estimate.used is None else estimate.used

    def statistic(weights: Numbers) -> Numbers:
        drawn = weights[:, chosen]
        return np.where(drawn.any(axis=1), estimate.statistic(drawn), np.nan)

    return Estimate(estimate.value, len(chosen), statistic, estimate.note, used, interval=used >= 2)


def check_share(name: str, share: float) -> None:
    """Raise ValueError if a share is not in (0, 1]."""
    if not 0.0 < share <= 1.0:
        raise ValueError(f"{name} must lie in (0, 1], not {share:g}")


def divide(numerator: Numbers, denominator: Numbers) -> Numbers:
    """Return the elementwise quotient; NaN where the denominator is 0."""
    quotient = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=quotient, where=np.asarray(denominator) != 0)
    return quotient


def _with_interval(value: float, figures: Numbers, bootstrap: Bootstrap, videos: int, note: str) -> Metric:
    defined = figures[~np.isnan(figures)]
    if not len(defined):
        return Metric(value, videos=videos, note=_join(note, "no interval: undefined in every resample"))
    if missing := len(figures) - len(defined):
        note = _join(note, f"undefined in {missing} of {len(figures)} resamples, left out of the interval")
    tail = (1.0 - bootstrap.confidence) / 2.0
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return Metric(value, float(low), float(high), videos, note)


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


Counts = NDArray[np.int64] | Numbers


def roc_auc(positives: Counts, negatives: Counts) -> Numbers:
    """Return the area under the ROC curve: the probability that a positive scores above a negative.

    A tie counts one half. Equals `sklearn.metrics.roc_auc_score` (Mann and Whitney, 1947). NaN without positives or without
    negatives.
    """
    total = positives.sum(axis=-1, keepdims=True)
    above = total - np.cumsum(positives, axis=-1)
    wins = (negatives * (above + positives / 2.0)).sum(axis=-1)
    return divide(wins, total[..., 0] * negatives.sum(axis=-1, dtype=np.float64))


def average_precision(positives: Counts, negatives: Counts) -> Numbers:
    """Return the average precision: the precision at each score, weighted by the recall that it adds.

    Equals `sklearn.metrics.average_precision_score`, without interpolation. NaN without positives; 1 without negatives.
    """
    true, false = from_top(positives), from_top(negatives)
    alarms = true + false
    precision = np.divide(true, alarms, out=np.zeros(alarms.shape), where=alarms != 0)
    return divide((positives * precision).sum(axis=-1), np.asarray(true[..., 0], np.float64))


def from_top(counts: NDArray[Any]) -> NDArray[Any]:
    """Return running sums (..., K): entry k is the sum of column k and all later columns."""
    sums: NDArray[Any] = np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]
    return sums


def area_to_limit(x: Numbers, y: Numbers, limit: float, *, flat: bool) -> Numbers:
    """Return the areas (...) under piecewise linear curves, from x = 0 to `limit`.

    Args:
        x, y: the points (..., K) of the curves in order; x starts at 0 and never falls.
        limit: where the area ends.
        flat: if True, the curve continues horizontally from the last point within the limit. If False, the line that crosses
            the limit is cut there. A curve that ends before the limit always continues horizontally.
    """
    steps = np.diff(x, axis=-1)
    within = np.clip(limit - x[..., :-1], 0.0, steps)
    if flat:
        within = np.where(x[..., 1:] <= limit, steps, 0.0)
    slopes = np.divide(np.diff(y, axis=-1), steps, out=np.zeros(steps.shape), where=steps > 0)
    area = (within * (y[..., :-1] + slopes * within / 2.0)).sum(axis=-1)
    last = (x <= limit).sum(axis=-1, keepdims=True) - 1
    width = limit - np.take_along_axis(x, last, axis=-1)[..., 0]  # of the horizontal part
    if not flat:
        width = np.maximum(limit - x[..., -1], 0.0)
    total: Numbers = area + width * np.take_along_axis(y, last, axis=-1)[..., 0]
    return total


def bin_edges(groups: list[NDArray[Any]], bins: int) -> NDArray[Any]:
    """Return ascending values that divide each group into about `bins / len(groups)` equal shares.

    If a group has few distinct values, all of them are edges, and nothing is lost. The values of bin k are at least edge k - 1
    and below edge k: `numpy.searchsorted(edges, values, "right")` returns k.

    Args:
        groups: ascending scores, in one group for positives and one for negatives, so that both classes get equally many bins.
        bins: approximate maximum number of bins.
    """
    edges = []
    for group in groups:
        distinct = group[np.append(True, group[1:] != group[:-1])] if len(group) else group
        share = max(bins // len(groups), 1)
        edges.append(distinct if len(distinct) <= share else group[np.arange(share) * len(group) // share])
    return np.unique(np.concatenate(edges))


def histograms(
    rows: NDArray[np.int64], bins: NDArray[np.int64], shape: tuple[int, int], weights: Numbers | None = None
) -> Numbers:
    """Return the number (or total weight) of the entries per row and bin, (V, K) float64."""
    flat = np.bincount(rows * shape[1] + bins, weights, minlength=shape[0] * shape[1])
    return flat.reshape(shape).astype(np.float64, copy=False)


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of R ranges, one range after another, and the index of the range of each number.

    For example, starts [5, 20] and lengths [2, 1] give the numbers [5, 6, 20] and the indices [0, 0, 1].
    """
    owner = np.repeat(np.arange(len(starts)), lengths)
    return np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + starts[owner], owner


def share_interval(hits: int, draws: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share of hits in random draws (Clopper and Pearson, 1934).

    For draws without replacement, the interval is wider than it needs to be.
    """
    from scipy.special import betaincinv

    tail = (1.0 - confidence) / 2
    low = float(betaincinv(hits, draws - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, draws - hits, 1.0 - tail)) if hits < draws else 1.0
    return low, high
