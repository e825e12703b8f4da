"""Scoring one clip against one camera."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vadcli.detectors.motion.camera import FittedCamera
from vadcli.detectors.motion.features import ClipMaps, map_clip
from vadcli.detectors.motion.grid import Grid
from vadcli.detectors.motion.options import MotionOptions
from vadcli.detectors.motion.rarity import describe, rarity, scaled, video_number
from vadcli.types import BoolArray, ByteArray, FloatArray, TimeArray

MOVING = 0.3
"""Motion from which a cell counts as moving; only those have a rarity."""


@dataclass(frozen=True)
class SurpriseMaps:
    """Attributes:
    rarity: (T, h, w) float32, distance to the camera's usual moving cells; 0 where nothing moves.
    surprise: (T, h, w) float32, the two channels together, in e-folds.
    """

    rarity: FloatArray = field(repr=False)
    surprise: FloatArray = field(repr=False)

    def recombined(self, maps: ClipMaps, fitted: FittedCamera) -> FloatArray:
        """The surprise under other tails."""
        return combine(maps.motion, self.rarity, fitted)


def measure(
    frames: ByteArray, *, timestamp: TimeArray, seen: BoolArray, fitted: FittedCamera, grid: Grid, options: MotionOptions
) -> ClipMaps:
    """Maps of a clip (T, H, W) with the camera's backgrounds."""
    scenes = fitted.scenes_of(grid.height_px, grid.width_px)
    return map_clip(frames, timestamp=timestamp, seen=seen, scenes=scenes, grid=grid, options=options)


def surprise_maps(
    maps: ClipMaps, *, video: str, timestamp: TimeArray, fitted: FittedCamera, grid: Grid, options: MotionOptions
) -> SurpriseMaps:
    """How rare each moving cell is, and what both channels say together."""
    rare = np.zeros_like(maps.motion)
    if fitted.samples is not None:
        number = video_number(video)
        described = scaled(describe(maps, grid), fitted.samples.scale, options)
        moving = (maps.motion > MOVING) & maps.usable[:, None, None]
        for t in np.flatnonzero(moving.any(axis=(1, 2))):
            cells = moving[t]
            rare[t][cells] = rarity(
                described[t][cells], fitted.samples, video=number, time_s=float(timestamp[t]), options=options
            )
    return SurpriseMaps(rare, combine(maps.motion, rare, fitted))


def combine(motion: FloatArray, rare: FloatArray, fitted: FittedCamera) -> FloatArray:
    """The mean surprise of the two channels; motion alone where the camera has no samples."""
    said = fitted.motion.surprise(motion)
    if fitted.samples is None:
        return said
    return np.asarray(0.5 * (said + fitted.rarity.surprise(rare)), dtype=np.float32)
