"""Gaussian means over time. They use timestamps: samples may be unevenly spaced, and no mean crosses a gap."""

from __future__ import annotations

import numpy as np

from vadcli.types import BoolArray, FloatArray, IndexArray, TimeArray

REACH = 3.0
"""A sample counts only if it is at most this many standard deviations away."""

LARGEST_LAG = 500
"""At most this many samples on each side count, even if the timestamps are very dense."""


def segments(timestamp: TimeArray, gap_s: float) -> IndexArray:
    """Return the number of the segment of each sample, (S,) int64.

    A new segment begins after a gap that is longer than both `gap_s` and 3 usual steps between samples.
    """
    if len(timestamp) < 2:
        return np.zeros(len(timestamp), dtype=np.int64)
    step = np.diff(timestamp)
    return np.concatenate([[0], np.cumsum(step > max(gap_s, 3.0 * float(np.median(step))))]).astype(np.int64)


def smooth(values: FloatArray, *, timestamp: TimeArray, usable: BoolArray, sigma_s: float, gap_s: float) -> FloatArray:
    """Return Gaussian means (S,) over time of the usable values within each segment.

    A sample with no usable value close to it gets the nearest mean of its segment, or 0 if the segment has no usable value.
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


def _fill(values: TimeArray, known: BoolArray, part: IndexArray, timestamp: TimeArray) -> TimeArray:
    for row in np.flatnonzero(~known):
        same = np.flatnonzero(known & (part == part[row]))
        if len(same):
            values[row] = values[same[np.argmin(np.abs(timestamp[same] - timestamp[row]))]]
    return values
