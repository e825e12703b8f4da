"""Leaves out small moving things such as birds, insects and leaves (--min-size).

Motion is smoothed over several cells, so the moving area is larger than the thing that moves. Therefore the height of a thing
is measured in the cells that really changed from one frame to the next.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from vadcli.detectors.motion.background import CellGrid
from vadcli.detectors.motion.features import ClipMaps
from vadcli.types import BoolArray, ByteArray

CHANGED_LEVELS = 3.0
"""A cell changed if its mean difference is at least this many gray levels above the median of all cells."""

ANY_MOTION_PX = 0.02
"""A cell belongs to a thing if its mean speed is more than this, in pixels per step. Slower cells score 0 anyway."""

_NEAR_FRAMES = 6
"""The number of sampled frames before and after a frame in which the height of a thing is measured.

The largest of these heights counts. A single frame is not enough, because speeds are means over time, and because a camera may
repeat frames.
"""


def without_small(maps: ClipMaps, frames: ByteArray, *, seen: BoolArray, min_size: float) -> ClipMaps:
    """Return the measurements of a clip, without the motion of small things.

    A thing is a group of moving cells that touch one another. If a thing is only partly visible, for example at the edge of the
    frame, the height of the visible part counts.

    Args:
        maps: the measurements of the clip.
        frames: (T, H, W) uint8.
        seen: (T,) bool, False for frames that are repeated, padded or lost.
        min_size: the lowest height of a thing that counts, in percent of the frame's height.
    """
    import cv2  # here, because this import is slow, and the decoders can start before it

    least_px = min_size / 100 * maps.grid.height_px
    changed = _changed(maps.grid, frames, seen)
    moving = maps.speed > ANY_MOTION_PX
    left_out = ~moving
    for t in np.flatnonzero(moving.any(axis=(1, 2))).tolist():
        near = changed[max(0, t - _NEAR_FRAMES) : t + _NEAR_FRAMES + 1]
        count, labels, boxes, _ = cv2.connectedComponentsWithStats(moving[t].astype(np.uint8), connectivity=8)
        for number in range(1, count):
            left, top, width, height = boxes[number, :4].tolist()
            part = slice(top, top + height), slice(left, left + width)
            rows = (near[:, *part] & (labels[part] == number)).any(axis=2)
            if _tallest(rows) * maps.grid.cell_px < least_px:
                left_out[t] |= labels == number
    kept = (~left_out).astype(np.float32)
    return replace(maps, velocity=maps.velocity * kept[..., None], speed=maps.speed * kept, disorder=maps.disorder * kept)


def _changed(grid: CellGrid, frames: ByteArray, seen: BoolArray) -> BoolArray:
    """Return flags (T, h, w), True for cells that changed since the previous frame that was seen."""
    padded = grid.pad(frames)
    found = np.zeros((len(frames), *grid.shape), np.bool_)
    rows = np.flatnonzero(seen).tolist()
    for before, after in pairwise(rows):
        cells = grid.pool(np.maximum(padded[before], padded[after]) - np.minimum(padded[before], padded[after]))
        found[after] = cells >= CHANGED_LEVELS + float(np.median(cells))
    return found


def _tallest(rows: BoolArray) -> int:
    """Return the largest number of cells from the first to the last True in a row of `rows` (T, h).

    The number is 0 if no cell is True.
    """
    first, last = rows.argmax(axis=1), rows.shape[1] - rows[:, ::-1].argmax(axis=1)
    return int(np.where(rows.any(axis=1), last - first, 0).max(initial=0))
