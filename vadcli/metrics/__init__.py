"""Metrics as pure functions over arrays.

This file has the common parts: values, bootstrap intervals and areas under curves. The metrics themselves are in `frame`,
`event` and `localization`. A metric is a function that returns an `Estimate`. `Estimate.metric` returns the value with its
confidence interval. A value that cannot be computed is None with a note, never NaN.

The bootstrap draws whole videos with replacement. Single frames are not drawn, because the frames of a video depend on one
another. `Estimate.statistic` gets only the number of times that each video was drawn, so that the scores are not sorted again
for every resample.

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
    """A metric's value for the report.

    Attributes:
        value: the value, a finite number; None if the metric is undefined.
        ci_low, ci_high: the ends of the confidence interval; both None if there is no interval.
        videos: number of videos from which the value is computed.
        note: a remark for the reader of the report. If the value is None, the remark gives the reason.
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
            raise ValueError(
                f"the value {self.value} and the interval {self.ci_low} to {self.ci_high} of a metric must be finite"
            )
        if (self.ci_low is None) != (self.ci_high is None):
            raise ValueError(f"an interval needs two ends, not {self.ci_low} and {self.ci_high}")
        if self.ci_low is not None and self.ci_high is not None and self.ci_low > self.ci_high:
            raise ValueError(f"the low end {self.ci_low} of an interval is above the high end {self.ci_high}")

    def to_json(self) -> dict[str, Any]:
        """Return the fields for `--json`, with unrounded numbers. `curve` is left out if it is empty."""
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
    """Settings of confidence intervals, which are bootstrap percentile intervals.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993.

    Attributes:
        replicates: number of resamples, 1 or more.
        confidence: confidence level of the interval, between 0 and 1.
        seed: seed for drawing the videos.
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
        """Yield arrays (B, V) float64: how often each of V videos was drawn in B resamples, B <= CHUNK."""
        generator = np.random.default_rng(self.seed)
        shares = np.full(videos, 1.0 / videos)
        for start in range(0, self.replicates, CHUNK):
            count = min(CHUNK, self.replicates - start)
            yield generator.multinomial(videos, shares, size=count).astype(np.float64)


@dataclass(frozen=True)
class Estimate:
    """A metric's value together with the function that computes it for resamples.

    Attributes:
        value: the exact value over all videos; None if the metric is undefined.
        drawn: V, the number of videos in the test set. For each resample, V videos are drawn with replacement.
        statistic: function that computes the metric in resamples (see `Statistic`). Only confidence intervals need it.
        note: a remark for the reader of the report. If the value is None, the remark gives the reason.
        used: number of videos from which the value is computed; None means V.
        interval: False if no interval is possible, because the value is computed from fewer than two videos.
        curve: as in `Metric`.
    """

    value: float | None
    drawn: int
    statistic: Statistic
    note: str = ""
    used: int | None = None
    interval: bool = True
    curve: Curve = ()

    def metric(self, bootstrap: Bootstrap | None = None) -> Metric:
        """Return the value, with its percentile interval if `bootstrap` is given.

        The value may be undefined in a resample, for example because all drawn frames are normal. Such resamples are left out,
        and the note says how many they are. There is no interval if the value is undefined in all resamples, or if it is
        computed from fewer than two videos.
        """
        videos = self.drawn if self.used is None else self.used
        if self.value is None or bootstrap is None:
            return Metric(self.value, videos=videos, note=self.note, curve=self.curve)
        if self.drawn < 2 or not self.interval:
            return Metric(self.value, videos=videos, note=_join(self.note, NEED_TWO), curve=self.curve)
        figures = np.concatenate([self.statistic(weights) for weights in bootstrap.weights(self.drawn)])
        return replace(_with_interval(self.value, figures, bootstrap, videos, self.note), curve=self.curve)


def difference(first: Estimate, second: Estimate, bootstrap: Bootstrap) -> Metric:
    """Return `first` minus `second`, with an interval from paired resamples.

    In each resample, both values are computed from the same drawn videos. So both estimates must be for the same videos in the
    same order. The difference is undefined if one of the values is undefined.

    Raises:
        ValueError: the numbers of videos differ.
    """
    if first.drawn != second.drawn:
        raise ValueError(
            f"two runs can be paired only if they have the same videos, not {first.drawn} and {second.drawn} videos"
        )
    videos = min(first.drawn if first.used is None else first.used, second.drawn if second.used is None else second.used)
    if first.value is None or second.value is None:
        return Metric(None, videos=videos, note=first.note if first.value is None else second.note)
    value = first.value - second.value
    if first.drawn < 2 or not (first.interval and second.interval):
        return Metric(value, videos=videos, note=NEED_TWO)
    figures = [first.statistic(weights) - second.statistic(weights) for weights in bootstrap.weights(first.drawn)]
    return _with_interval(value, np.concatenate(figures), bootstrap, videos, "")


def ratio(numerator: Numbers, denominator: Numbers, *, undefined: str, note: str = "", used: int | None = None) -> Estimate:
    """Return the estimate of a ratio: the sum of the numerators (V,) / the sum of the denominators (V,).

    If the sum of the denominators is 0, the value is None, and the note is the text in `undefined`.
    """
    above, below = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)

    def statistic(weights: Numbers) -> Numbers:
        """Return the ratio in each resample."""
        return divide(weights @ above, weights @ below)

    total = float(below.sum())
    if total == 0.0:
        return Estimate(None, len(below), statistic, undefined, used)
    return Estimate(float(above.sum()) / total, len(below), statistic, note, used)


def over_all(estimate: Estimate, chosen: NDArray[np.bool_]) -> Estimate:
    """Return an estimate over some videos, with resamples from all V videos of the test set.

    The value is that of `estimate`. `difference` can pair two such estimates even if they use different videos of the test set.

    Args:
        estimate: an estimate over the chosen videos, in the order of all videos.
        chosen: (V,) bool, True for the videos of `estimate`.
    """
    used = estimate.drawn if estimate.used is None else estimate.used

    def statistic(weights: Numbers) -> Numbers:
        """Return the figure in each resample; NaN if no chosen video was drawn."""
        drawn = weights[:, chosen]
        return np.where(drawn.any(axis=1), estimate.statistic(drawn), np.nan)

    return Estimate(estimate.value, len(chosen), statistic, estimate.note, used, interval=used >= 2)


def check_share(name: str, share: float) -> None:
    """Raise ValueError if a number is not in (0, 1]; `name` is the subject of the message."""
    if not 0.0 < share <= 1.0:
        raise ValueError(f"{name} must be above 0 and at most 1, not {share:g}")


def divide(numerator: Numbers, denominator: Numbers) -> Numbers:
    """Return numerator / denominator for each element; NaN where the denominator is 0."""
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
    """Return the area under the ROC curve, the same value as `sklearn.metrics.roc_auc_score`.

    It is the probability that a positive has a higher score than a negative, where a pair with equal scores counts one half
    (Mann and Whitney, 1947). The result is NaN without positives or without negatives.
    """
    total = positives.sum(axis=-1, keepdims=True)
    above = total - np.cumsum(positives, axis=-1)
    wins = (negatives * (above + positives / 2.0)).sum(axis=-1)
    return divide(wins, total[..., 0] * negatives.sum(axis=-1, dtype=np.float64))


def average_precision(positives: Counts, negatives: Counts) -> Numbers:
    """Return the average precision, the same value as `sklearn.metrics.average_precision_score`.

    It is the sum over all thresholds of precision x increase of the recall. The result is NaN without positives, and 1 without
    negatives.
    """
    true, false = from_top(positives), from_top(negatives)
    alarms = true + false
    precision = np.divide(true, alarms, out=np.zeros(alarms.shape), where=alarms != 0)
    return divide((positives * precision).sum(axis=-1), np.asarray(true[..., 0], np.float64))


def from_top(counts: NDArray[Any]) -> NDArray[Any]:
    """Return sums (..., K): entry k is the sum of column k and all later columns."""
    sums: NDArray[Any] = np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]
    return sums


def area_to_limit(x: Numbers, y: Numbers, limit: float, *, flat: bool) -> Numbers:
    """Return the areas (...) under piecewise linear curves, from x = 0 to `limit`.

    Args:
        x, y: the points (..., K) of the curves; x starts at 0 and does not decrease.
        limit: the x at which the area ends.
        flat: how a curve continues after its last point with x <= limit. If True, it continues horizontally. If False, it
            continues along the straight line to its next point. A curve without a next point always continues horizontally.
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
    """Return the edges of score bins, ascending. Bins of a group have about the same number of scores.

    `numpy.searchsorted(edges, v, "right")` returns the number k of the bin to which a value v belongs: edges[k - 1] <= v, and
    v < edges[k]. If a group has few distinct values, each of these values gets its own bin.

    Args:
        groups: the scores of the positives and those of the negatives, ascending. Each group gets half of the bins.
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
    """Return the number of entries in each cell of a table, (V, K) float64.

    Args:
        rows, bins: for each entry, the row and the column of its cell.
        shape: (V, K).
        weights: weight of each entry. If given, the result has the sums of weights instead of the numbers of entries.
    """
    flat = np.bincount(rows * shape[1] + bins, weights, minlength=shape[0] * shape[1])
    return flat.reshape(shape).astype(np.float64, copy=False)


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the whole numbers in several ranges, and for each number the index of its range.

    For example, starts [5, 20] and lengths [2, 1] give the numbers [5, 6, 20] and the indices [0, 0, 1].
    """
    owner = np.repeat(np.arange(len(starts)), lengths)
    return np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + starts[owner], owner


def share_interval(hits: int, draws: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact confidence interval of the probability of a hit (Clopper and Pearson, 1934).

    It is exact for draws with replacement. For draws without replacement, it is wider than necessary.

    Args:
        hits: number of hits, 0 to `draws`.
        draws: number of draws.
        confidence: confidence level, between 0 and 1.
    """
    from scipy.special import betaincinv

    tail = (1.0 - confidence) / 2
    low = float(betaincinv(hits, draws - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, draws - hits, 1.0 - tail)) if hits < draws else 1.0
    return low, high
