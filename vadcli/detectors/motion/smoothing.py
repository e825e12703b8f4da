"""Gaussian smoothing over real time: samples need not be evenly spaced, and gaps are not bridged."""

from __future__ import annotations

import numpy as np

from vadcli.types import BoolArray, FloatArray, IndexArray, TimeArray

REACH = 3.0
"""Standard deviations beyond which a sample has no say."""

LARGEST_LAG = 500
"""Samples on either side that are looked at, however tightly the timestamps lie."""


def segments(timestamp: TimeArray, gap_s: float) -> IndexArray:
    """(S,) the number of the stretch each sample is in; a new one begins after more than `gap_s` and 3 usual steps."""
    if len(timestamp) < 2:
        return np.zeros(len(timestamp), dtype=np.int64)
    step = np.diff(timestamp)
    return np.concatenate([[0], np.cumsum(step > max(gap_s, 3.0 * float(np.median(step))))]).astype(np.int64)


def smooth(values: FloatArray, *, timestamp: TimeArray, usable: BoolArray, sigma_s: float, gap_s: float) -> FloatArray:
    """(S,) -> (S,) Gaussian means of the usable values within each stretch.

    Where no usable value is in reach, the nearest usable one of the stretch is taken, else 0.
    """
    count = len(values)
    part = segments(timestamp, gap_s)
    weight = usable.astype(np.float64)
    total, said = weight * values, weight.copy()
    for lag in range(1, min(count, LARGEST_LAG + 1)):
        distance = timestamp[lag:] - timestamp[:-lag]
        close = (distance <= REACH * sigma_s) & (part[lag:] == part[:-lag])
        if not close.any():
            break
        kernel = np.where(close, np.exp(-0.5 * (distance / sigma_s) ** 2), 0.0)
        total[lag:] += kernel * weight[:-lag] * values[:-lag]
        said[lag:] += kernel * weight[:-lag]
        total[:-lag] += kernel * weight[lag:] * values[lag:]
        said[:-lag] += kernel * weight[lag:]
    smoothed = np.divide(total, said, out=np.zeros(count), where=said > 0)
    return np.asarray(_fill(smoothed, said > 0, part, timestamp), dtype=np.float32)


def steadying(timestamp: TimeArray, *, usable: BoolArray, shot: IndexArray, sigma_s: float) -> FloatArray:
    """(T, T) float32 weights that turn a clip's rows into Gaussian means over time of its usable rows.

    A row without a pair of its own, such as a shot's first, so shows what the nearest rows do. Rows of a shot without any
    usable row are 0.
    """
    distance = timestamp[:, None] - timestamp[None, :]
    near = usable[None, :] & (shot[:, None] == shot[None, :])
    exponent = np.where(near, -0.5 * (distance / sigma_s) ** 2, -np.inf)
    # Relative to the nearest: with samples seconds apart all weights would vanish else.
    highest = exponent.max(axis=1, keepdims=True)
    weight = np.exp(exponent - np.where(np.isfinite(highest), highest, 0.0))
    total = weight.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(weight, total, out=np.zeros_like(weight), where=total > 0), dtype=np.float32)


def _fill(values: TimeArray, known: BoolArray, part: IndexArray, timestamp: TimeArray) -> TimeArray:
    for row in np.flatnonzero(~known):
        same = np.flatnonzero(known & (part == part[row]))
        if len(same):
            values[row] = values[same[np.argmin(np.abs(timestamp[same] - timestamp[row]))]]
    return values
