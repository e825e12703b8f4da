"""Scoring one clip against one camera."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vadcli.detectors.motion.camera import FittedCamera
from vadcli.detectors.motion.features import ClipMaps, map_clip
from vadcli.detectors.motion.grid import Grid
from vadcli.detectors.motion.options import MotionOptions
from vadcli.detectors.motion.rarity import RaritySamples, coarse, describe, rarity, scaled, spread_out, video_number
from vadcli.detectors.motion.smoothing import steadying
from vadcli.types import BoolArray, ByteArray, FloatArray, IndexArray, TimeArray

MOVING = 0.3
"""Motion from which a cell counts as moving; only those have a rarity."""


@dataclass(frozen=True)
class Channels:
    """The two channels of one clip.

    Attributes:
        motion: (T, h, w) float32, brought to one distance from the camera.
        rarity: (T, h, w) float32, distance to the scene's usual moving cells; 0 where nothing moves, NaN where unknown.
        steadying: (T, T) float32, means over time.
        scene: (T,) int64, the scene of each row, -1 elsewhere.
    """

    motion: FloatArray = field(repr=False)
    rarity: FloatArray = field(repr=False)
    steadying: FloatArray = field(repr=False)
    scene: IndexArray

    def together(self, fitted: FittedCamera) -> FloatArray:
        """(T, h, w) float32: geometric mean of the two, each by what is usual in the scene, steadied over time."""
        usual = [fitted.levels(number) for number in self.scene.tolist()]
        motion = self.motion / np.array([one.motion for one in usual], dtype=np.float32)[:, None, None]
        rare = self.rarity / np.array([one.rarity for one in usual], dtype=np.float32)[:, None, None]
        # Where rarity can't be told, motion speaks for both.
        return self._steady(np.sqrt(motion * np.where(np.isnan(rare), motion, rare)))

    def frame_values(self) -> tuple[FloatArray, FloatArray]:
        """(T,) each: the highest motion and the highest rarity of each frame."""
        return self._steady(peaks(self.motion)), self._steady(peaks(np.nan_to_num(self.rarity)))

    def _steady(self, rows: FloatArray) -> FloatArray:
        return np.asarray(np.tensordot(self.steadying, rows, axes=1), dtype=np.float32)


def measure(
    frames: ByteArray, *, timestamp: TimeArray, seen: BoolArray, fitted: FittedCamera, grid: Grid, options: MotionOptions
) -> ClipMaps:
    """Maps of a clip (T, H, W) with the camera's backgrounds."""
    scenes = fitted.backgrounds(grid.height_px, grid.width_px)
    return map_clip(frames, timestamp=timestamp, seen=seen, scenes=scenes, grid=grid, options=options)


def channels_of(maps: ClipMaps, *, video: str, fitted: FittedCamera, options: MotionOptions) -> Channels:
    """How much each cell moves and how rare that is."""
    motion = np.empty_like(maps.motion)
    rare = np.full_like(maps.motion, np.nan)
    for scene in np.unique(maps.scene).tolist():
        rows = maps.scene == scene
        motion[rows] = maps.motion[rows] / fitted.levels(scene).perspective.factors(maps.grid)
        if scene >= 0 and fitted.samples is not None:
            own = fitted.samples.of_scene(scene)
            rare[rows] = _rarity(maps, rows, own, video=video, units=fitted.levels(scene).scale, options=options)
    steady = steadying(maps.timestamp, usable=maps.usable, shot=maps.shot, sigma_s=options.steadying_s)
    return Channels(motion, rare, steady, maps.scene)


def peaks(cells: FloatArray) -> FloatArray:
    """(T, h, w) -> (T,): each frame's highest cell."""
    return np.asarray(cells.reshape(len(cells), -1).max(axis=1), dtype=np.float32)


def _rarity(
    maps: ClipMaps, rows: BoolArray, samples: RaritySamples, *, video: str, units: FloatArray, options: MotionOptions
) -> FloatArray:
    """(R, h, w) float32: rarity in the R rows that show the samples' scene."""
    moving = coarse(maps.motion > MOVING) & rows[:, None, None]
    query = scaled(describe(maps, moving), units, options)
    parts = np.split(query, np.cumsum(moving.sum(axis=(1, 2)))[:-1])
    number = video_number(video)
    rare = np.zeros_like(maps.motion)
    rare[moving] = np.concatenate(
        [
            rarity(part, samples, video=number, time_s=float(at), options=options)
            for part, at in zip(parts, maps.timestamp, strict=True)
        ]
    )
    return spread_out(rare)[rows]
