"""Finds things that appear and then stay. The option --no-still turns this off.

Examples are an abandoned bag, a person who lies on the ground, and a vehicle that stopped.

The background of a camera shows the usual scene. The median of a clip of about four seconds shows the present scene.
If scene and background differ in a cell without motion, something was put down or taken away. Porikli et al. (2008, "Robust
abandoned object detection using dual foregrounds") find stationary objects in this way, with a slow and a fast background.
Their fast background is updated at each frame. Here the fast background is the median of a clip, because the scores of a clip
must not depend on other clips.
"""

from __future__ import annotations

import numpy as np

from vadcli.detectors.calibration import segments
from vadcli.detectors.motion import MotionOptions
from vadcli.detectors.motion.background import shot_median
from vadcli.types import FloatArray, TimeArray

CONTRAST_CAP = 4.0
"""The highest contrast. A higher contrast is not more unusual: a black coat is not more unusual than a gray coat."""

SAME_TIME_S = 1e-6
"""Two times are equal if they differ by less than this, because sums of decimal fractions are not exact."""


def still_cells(shot: FloatArray, background: FloatArray, options: MotionOptions) -> FloatArray:
    """Return the contrast (h, w) float32 of each cell: how much a still cell differs from the background.

    Args:
        shot: (T, h, w) pooled frames.
        background: (h, w) gray levels, after the light was matched to the light of the shot.
        options: the detector's options.

    Returns:
        The contrast from 0 to CONTRAST_CAP. It is 0 if the shot's median differs from the background by `foreground_low` gray
        levels or less, and 1 if it differs by `foreground_high`. The contrast is multiplied by the share of frames in which the
        cell does not move. A cell that looks like a neighbouring cell of the background has the contrast 0, because the camera
        may have shaken.
    """
    median = shot_median(shot)
    differs = _least_difference(median, background)
    contrast = (differs - options.foreground_low) / (options.foreground_high - options.foreground_low)
    stays = np.mean(np.abs(shot - median) < options.foreground_low, axis=0)
    return np.asarray(np.clip(contrast, 0.0, CONTRAST_CAP) * stays, dtype=np.float32)


def _least_difference(median: FloatArray, background: FloatArray) -> FloatArray:
    """Return by how many gray levels each cell (h, w) is outside the range of nearby background cells."""
    h, w = background.shape
    around = np.pad(background, 1, mode="edge")
    shifted = [around[y : y + h, x : x + w] for y in range(3) for x in range(3)]
    lowest, highest = np.minimum.reduce(shifted), np.maximum.reduce(shifted)
    return np.asarray(np.maximum(np.maximum(lowest - median, median - highest), 0.0), dtype=np.float32)


def lasting(values: FloatArray, *, timestamp: TimeArray, still_s: float, gap_s: float) -> FloatArray:
    """Return the values (S,) without peaks that last less than `still_s` seconds.

    The result for a frame is found in two steps (a morphological opening over time):
    1. Of each span of `still_s` seconds that contains the frame, take the lowest value.
    2. The highest of these lowest values is the result.

    Spans that contain a gap in time (see `segments`) are left out. If no span remains, the result is 0.
    """
    result = np.zeros_like(values)
    part = segments(timestamp, gap_s)
    index, shortest = np.arange(len(values)), still_s - SAME_TIME_S
    after = np.searchsorted(timestamp, timestamp + shortest)  # the first frame that is at least `shortest` seconds later
    before = np.searchsorted(timestamp, timestamp - shortest, side="right") - 1  # the last frame at least `shortest` s earlier
    for first, last in [*zip(index, after, strict=True), *zip(before, index, strict=True)]:
        if first >= 0 and last < len(values) and part[first] == part[last]:
            run = slice(first, last + 1)
            np.maximum(result[run], values[run].min(), out=result[run])
    return result
