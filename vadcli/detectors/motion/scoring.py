"""Scoring one clip against one camera."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vadcli.detectors.motion.camera import FittedCamera
from vadcli.detectors.motion.features import ClipMaps, map_clip
from vadcli.detectors.motion.grid import Grid
from vadcli.detectors.motion.options import MotionOptions
from vadcli.detectors.motion.rarity import coarse, describe, rarity, scaled, spread_out, video_number
from vadcli.detectors.motion.smoothing import steadying
from vadcli.types import BoolArray, ByteArray, FloatArray, TimeArray

MOVING = 0.3
"""Motion from which a cell counts as moving; only those have a rarity."""


@dataclass(frozen=True)
class Channels:
    """The two channels of one clip.

    Attributes:
        motion: (T, h, w) float32, brought to one distance from the camera.
        rarity: (T, h, w) float32, distance to the camera's usual moving cells; 0 where nothing moves, NaN where unknown.
        steadying: (T, T) float32, means over time.
    """

    motion: FloatArray = field(repr=False)
    rarity: FloatArray = field(repr=False)
    steadying: FloatArray = field(repr=False)

    def together(self, fitted: FittedCamera) -> FloatArray:
        """(T, h, w) float32: geometric mean of the two, each by what is usual, steadied over time."""
        motion = self.motion / np.float32(fitted.usual_motion)
        # Where rarity can't be told, motion speaks for both.
        rarity = np.where(np.isnan(self.rarity), motion, self.rarity / np.float32(fitted.usual_rarity))
        return self._steady(np.sqrt(motion * rarity))

    def frame_values(self) -> tuple[FloatArray, FloatArray]:
        """(T,) each: the highest motion and the highest rarity of each frame."""
        return self._steady(peaks(self.motion)), self._steady(peaks(np.nan_to_num(self.rarity)))

    def _steady(self, rows: FloatArray) -> FloatArray:
        return np.asarray(np.tensordot(self.steadying, rows, axes=1), dtype=np.float32)


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
    steady = steadying(timestamp, usable=maps.usable, shot=maps.shot, sigma_s=options.steadying_s)
    if fitted.samples is None:
        return Channels(motion, np.full_like(motion, np.nan), steady)
    rare = np.zeros_like(motion)
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
    return Channels(motion, spread_out(rare), steady)


def peaks(cells: FloatArray) -> FloatArray:
    """(T, h, w) -> (T,): each frame's highest cell."""
    return np.asarray(cells.reshape(len(cells), -1).max(axis=1), dtype=np.float32)
