"""Scoring one clip against one camera."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vadcli.detectors.motion.camera import FittedCamera
from vadcli.detectors.motion.features import ClipMaps, map_clip
from vadcli.detectors.motion.grid import Grid
from vadcli.detectors.motion.options import MotionOptions
from vadcli.detectors.motion.rarity import coarse, describe, rarity, scaled, spread_out, video_number
from vadcli.types import BoolArray, ByteArray, FloatArray, TimeArray

MOVING = 0.3
"""Motion from which a cell counts as moving; only those have a rarity."""


@dataclass(frozen=True)
class Channels:
    """The two channels of one clip.

    Attributes:
        motion: (T, h, w) float32, brought to one distance from the camera.
        rarity: (T, h, w) float32, distance to the camera's usual moving cells; 0 where nothing moves.
    """

    motion: FloatArray = field(repr=False)
    rarity: FloatArray = field(repr=False)

    def together(self, fitted: FittedCamera) -> FloatArray:
        """(T, h, w) float32: geometric mean of the two, each by what is usual; motion alone where there are no samples."""
        motion = self.motion / np.float32(fitted.usual_motion)
        if fitted.samples is None:
            return motion
        return np.sqrt(motion * (self.rarity / np.float32(fitted.usual_rarity)))


def measure(
    frames: ByteArray, *, timestamp: TimeArray, seen: BoolArray, fitted: FittedCamera, grid: Grid, options: MotionOptions
) -> ClipMaps:
    """Maps of a clip (T, H, W) with the camera's backgrounds."""
    scenes = fitted.scenes_of(grid.height_px, grid.width_px)
    return map_clip(frames, timestamp=timestamp, seen=seen, scenes=scenes, grid=grid, options=options)


def channels_of(
    maps: ClipMaps, *, video: str, timestamp: TimeArray, fitted: FittedCamera, grid: Grid, options: MotionOptions
) -> Channels:
    """How much each cell moves and how rare that is."""
    motion = maps.motion / fitted.perspective.factors(grid)
    rare = np.zeros_like(motion)
    if fitted.samples is not None:
        number = video_number(video)
        moving = coarse(maps.motion > MOVING)
        query = scaled(describe(maps, grid, moving), fitted.samples.scale, options)
        parts = np.split(query, np.cumsum(moving.sum(axis=(1, 2)))[:-1])
        rare[moving] = np.concatenate(
            [
                rarity(part, fitted.samples, video=number, time_s=float(at), options=options)
                for part, at in zip(parts, timestamp, strict=True)
            ]
        )
        rare = spread_out(rare)
        # Where rarity can't be told, motion speaks for both.
        as_motion = motion * np.float32(fitted.usual_rarity / fitted.usual_motion)
        rare = np.where(np.isnan(rare), as_motion, rare)
    return Channels(motion, rare)


def peaks(cells: FloatArray) -> FloatArray:
    """(T, h, w) -> (T,): each frame's highest cell."""
    return np.asarray(cells.reshape(len(cells), -1).max(axis=1), dtype=np.float32)
