"""Areas under curves from counts by ascending score: one arithmetic for exact scores, bins and resamples.

Every function takes (..., K) counts, column k being all that scores the k-th lowest value (or bin), and gives (...) areas.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadcli.metrics.intervals import Numbers, divided

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
