"""Finds what appears and then stays: an abandoned bag, a person who lies on the ground, a vehicle that stopped (--still).

The background of the camera is what its footage usually shows. The median of a clip, about three seconds, is what stands there
now. Where the two differ although nothing moves, something was put down or taken away. This is the rule of two backgrounds, a
slow one and a fast one, by which stationary objects are found (Porikli et al. 2008, "Robust abandoned object detection using
dual foregrounds"). Their second background follows each frame; here it is the median, because clips are independent.
"""

from __future__ import annotations

import numpy as np

from vadcli.detectors.motion import MotionOptions
from vadcli.detectors.motion.background import shot_median
from vadcli.detectors.smoothing import segments
from vadcli.types import FloatArray, TimeArray

CONTRAST_CAP = 4.0
"""A higher contrast says no more: a dark coat is not more of an event than a gray one."""

SAME_TIME_S = 1e-6
"""Times that differ by less are the same: sums of decimal fractions are not exact."""


def still_cells(shot: FloatArray, background: FloatArray, options: MotionOptions) -> FloatArray:
    """Returns (h, w) float32: how much each cell differs from the background in the same way in the whole shot.

    Args:
        shot: (T, h, w) pooled frames.
        background: (h, w) gray levels in the light of the shot.
        options: the detector's options.

    Returns:
        0 where the shot differs by `foreground_low` or less, 1 at `foreground_high`, at most CONTRAST_CAP; multiplied by the
        share of frames in which the cell does not move. If a neighbouring cell of the background explains the difference,
        because the camera shook, it does not count.
    """
    median = shot_median(shot)
    differs = _least_difference(median, background)
    contrast = (differs - options.foreground_low) / (options.foreground_high - options.foreground_low)
    stays = np.mean(np.abs(shot - median) < options.foreground_low, axis=0)
    return np.asarray(np.clip(contrast, 0.0, CONTRAST_CAP) * stays, dtype=np.float32)


def _least_difference(median: FloatArray, background: FloatArray) -> FloatArray:
    """(h, w) -> (h, w): difference from the range of values that a cell and its eight neighbours have in the background."""
    h, w = background.shape
    around = np.pad(background, 1, mode="edge")
    shifted = [around[y : y + h, x : x + w] for y in range(3) for x in range(3)]
    lowest, highest = np.minimum.reduce(shifted), np.maximum.reduce(shifted)
    return np.asarray(np.maximum(np.maximum(lowest - median, median - highest), 0.0), dtype=np.float32)


def lasting(values: FloatArray, *, timestamp: TimeArray, still_s: float, gap_s: float) -> FloatArray:
    """(S,) -> (S,): the largest value that holds for at least `still_s` around each frame, without a break.

    This is a morphological opening over time: what is there for less than `still_s` seconds disappears; what stays longer keeps
    its value from its first frame to its last. Nothing lasts across a gap of more than `gap_s` seconds.
    """
    result = np.zeros_like(values)
    part = segments(timestamp, gap_s)
    index, shortest = np.arange(len(values)), still_s - SAME_TIME_S
    after = np.searchsorted(timestamp, timestamp + shortest)  # the first frame that is late enough
    before = np.searchsorted(timestamp, timestamp - shortest, side="right") - 1  # the last frame that is early enough
    for first, last in [*zip(index, after, strict=True), *zip(before, index, strict=True)]:
        if first >= 0 and last < len(values) and part[first] == part[last]:
            run = slice(first, last + 1)
            np.maximum(result[run], values[run].min(), out=result[run])
    return result
