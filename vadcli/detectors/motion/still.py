"""Finds things that appear and then stay: an abandoned bag, a person who lies on the ground, a vehicle that stopped (--still).

The background of the camera shows its usual scene. The median of a clip, about three seconds, shows the scene of this moment.
If the two differ in a cell in which nothing moves, something was put down or taken away. Stationary objects are found in this
way, with a slow and a fast background, by Porikli et al. (2008, "Robust abandoned object detection using dual foregrounds").
Their fast background follows each frame. Here it is the median of a clip, because clips are independent.
"""

from __future__ import annotations

import numpy as np

from vadcli.detectors.calibration import segments
from vadcli.detectors.motion import MotionOptions
from vadcli.detectors.motion.background import shot_median
from vadcli.types import FloatArray, TimeArray

CONTRAST_CAP = 4.0
"""Higher contrasts are cut to this, because a dark coat is not more of an event than a gray one."""

SAME_TIME_S = 1e-6
"""Times that differ by less are the same: sums of decimal fractions are not exact."""


def still_cells(shot: FloatArray, background: FloatArray, options: MotionOptions) -> FloatArray:
    """Return the contrast (h, w) float32 of each cell: how much it differs from the background in the whole shot.

    Args:
        shot: (T, h, w) pooled frames.
        background: (h, w) gray levels in the light of the shot.
        options: the detector's options.

    Returns:
        0 if the shot's median differs by `foreground_low` or less, 1 at `foreground_high`, at most CONTRAST_CAP. The number is
        multiplied by the share of frames in which the cell does not move. A difference does not count if a neighbouring cell
        of the background explains it, because the camera shook.
    """
    median = shot_median(shot)
    differs = _least_difference(median, background)
    contrast = (differs - options.foreground_low) / (options.foreground_high - options.foreground_low)
    stays = np.mean(np.abs(shot - median) < options.foreground_low, axis=0)
    return np.asarray(np.clip(contrast, 0.0, CONTRAST_CAP) * stays, dtype=np.float32)


def _least_difference(median: FloatArray, background: FloatArray) -> FloatArray:
    """Return how far each cell (h, w) is outside the range of values that it and its neighbours have in the background."""
    h, w = background.shape
    around = np.pad(background, 1, mode="edge")
    shifted = [around[y : y + h, x : x + w] for y in range(3) for x in range(3)]
    lowest, highest = np.minimum.reduce(shifted), np.maximum.reduce(shifted)
    return np.asarray(np.maximum(np.maximum(lowest - median, median - highest), 0.0), dtype=np.float32)


def lasting(values: FloatArray, *, timestamp: TimeArray, still_s: float, gap_s: float) -> FloatArray:
    """Return the largest value (S,) that holds without a break for at least `still_s` seconds that include each frame.

    This is a morphological opening over time: a value that holds for less than `still_s` seconds disappears; a value that holds
    longer is kept from its first frame to its last. Nothing lasts across a gap that separates two `segments`.
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
