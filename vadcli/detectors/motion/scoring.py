"""Scores clips with the model of their camera, and fits that model to bursts (short clips of its videos).

This file has three parts, in this order: smoothing over time, scoring, fitting. Smoothing uses
timestamps: samples may be unevenly spaced, and no mean crosses a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vadcli.detectors.calibration import FittedTime, Tail, fit_tail, usual_level
from vadcli.detectors.motion import MotionOptions
from vadcli.detectors.motion.background import CellGrid, fit_perspective, grid_for, learn_scenes
from vadcli.detectors.motion.camera import (
    MOTION_REFERENCE,
    RARITY_REFERENCE,
    SCALE_FLOORS,
    FittedCamera,
    Levels,
    RaritySamples,
    Scene,
    coarse,
    describe,
    rarity,
    scaled,
    spread_out,
    video_number,
)
from vadcli.detectors.motion.features import ClipMaps, is_cut, map_clip, shots
from vadcli.detectors.smoothing import smooth
from vadcli.types import BoolArray, ByteArray, CameraSample, Clip, FloatArray, IndexArray, TimeArray


def steadying(timestamp: TimeArray, *, usable: BoolArray, shot: IndexArray, sigma_s: float) -> FloatArray:
    """Returns (T, T) float32 weights for Gaussian means over time of a clip's usable frames.

    A frame that is not usable, such as the first frame of a shot, gets the values of the nearest
    usable frames. If no frame of its shot is usable, its weights are 0.
    """
    distance = timestamp[:, None] - timestamp[None, :]
    near = usable[None, :] & (shot[:, None] == shot[None, :])
    exponent = np.where(near, -0.5 * (distance / sigma_s) ** 2, -np.inf)
    # Weights are relative to the weight of the nearest frame. Otherwise all weights would be 0 if samples are seconds apart.
    highest = exponent.max(axis=1, keepdims=True)
    weight = np.exp(exponent - np.where(np.isfinite(highest), highest, 0.0))
    total = weight.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(weight, total, out=np.zeros_like(weight), where=total > 0), dtype=np.float32)


MOVING = 0.3
"""A cell with more motion than this is moving; only moving cells have a rarity."""


@dataclass(frozen=True)
class Channels:
    """The two channels of one clip.

    Attributes:
        motion: (T, h, w) float32, motion corrected for the distance from the camera.
        rarity: (T, h, w) float32, distance to the usual moving cells of the scene; 0 where nothing
            moves, NaN if unknown.
        steadying: (T, T) float32, weights of the means over time.
        scene: (T,) int64, number of each frame's scene, or -1.
    """

    motion: FloatArray = field(repr=False)
    rarity: FloatArray = field(repr=False)
    steadying: FloatArray = field(repr=False)
    scene: IndexArray

    def together(self, fitted: FittedCamera) -> FloatArray:
        """Returns (T, h, w) float32: the geometric mean of both channels, smoothed over time.

        Each channel is first divided by what is usual in the scene.
        """
        usual = [fitted.levels(number) for number in self.scene.tolist()]
        motion = self.motion / np.array([one.motion for one in usual], dtype=np.float32)[:, None, None]
        rare = self.rarity / np.array([one.rarity for one in usual], dtype=np.float32)[:, None, None]
        # If rarity is unknown, motion is used in its place.
        return self._steady(np.sqrt(motion * np.where(np.isnan(rare), motion, rare)))

    def frame_values(self) -> tuple[FloatArray, FloatArray]:
        """Returns two arrays (T,): the highest motion and the highest rarity of each frame, smoothed."""
        return self._steady(peaks(self.motion)), self._steady(peaks(np.nan_to_num(self.rarity)))

    def _steady(self, rows: FloatArray) -> FloatArray:
        return np.asarray(np.tensordot(self.steadying, rows, axes=1), dtype=np.float32)


def measure(
    frames: ByteArray, *, timestamp: TimeArray, seen: BoolArray, fitted: FittedCamera, grid: CellGrid, options: MotionOptions
) -> ClipMaps:
    """Returns the measurements of a clip (T, H, W), with the camera's backgrounds."""
    scenes = fitted.backgrounds(grid.height_px, grid.width_px)
    return map_clip(frames, timestamp=timestamp, seen=seen, scenes=scenes, grid=grid, options=options)


def channels_of(maps: ClipMaps, *, video: str, fitted: FittedCamera, options: MotionOptions) -> Channels:
    """Returns how much each cell moves and how rare that is."""
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
    """Returns the highest cell of each frame: (T, h, w) -> (T,)."""
    return np.asarray(cells.reshape(len(cells), -1).max(axis=1), dtype=np.float32)


def _rarity(
    maps: ClipMaps, rows: BoolArray, samples: RaritySamples, *, video: str, units: FloatArray, options: MotionOptions
) -> FloatArray:
    """Returns (R, h, w) float32: rarity in the R frames that show the samples' scene."""
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


@dataclass(frozen=True)
class _Burst:
    clip: Clip = field(repr=False)
    maps: ClipMaps

    @property
    def moving_rows(self) -> tuple[BoolArray, IndexArray]:
        """Returns the cells (T, h, w) bool that move in a known scene, and the frame index of each (Q,)."""
        moving = (self.maps.motion > MOVING) & (self.maps.scene >= 0)[:, None, None]
        return moving, np.nonzero(moving)[0]


def fit_camera(sample: CameraSample, options: MotionOptions) -> FittedCamera:
    """Returns the camera fitted to a sample of its clips.

    The steps fit the scenes, their perspectives and units, the samples of moving cells, the usual
    values and the tail, in this order. Each step uses the results of the steps before it.
    """
    clips = [clip for clip in sample.clips if len(clip.frames) > 1]
    if not clips:
        return FittedCamera()
    fitted = FittedCamera(scenes=_scenes(clips, options))
    bursts = [_measured(clip, fitted, options) for clip in clips]
    fitted = replace(fitted, scenes=_with_units(fitted.scenes, bursts))
    fitted = replace(fitted, samples=_draw(fitted, bursts, sample.seed, options))
    channels = [channels_of(burst.maps, video=burst.clip.video, fitted=fitted, options=options) for burst in bursts]
    footage = _footage(clips)
    fitted = _with_usual(fitted, bursts, channels, footage)
    return replace(fitted, tail=_tail(fitted, bursts, channels, footage, options))


def _grid(clip: Clip, options: MotionOptions) -> CellGrid:
    return grid_for(*clip.frames.shape[1:3], options.cell_px, options.box_cells)


def _measured(clip: Clip, fitted: FittedCamera, options: MotionOptions) -> _Burst:
    seen = clip.valid.copy()
    seen[0] = True
    grid = _grid(clip, options)
    maps = measure(clip.frames[..., 0], timestamp=clip.timestamp, seen=seen, fitted=fitted, grid=grid, options=options)
    return _Burst(clip, maps)


def _scenes(clips: Sequence[Clip], options: MotionOptions) -> tuple[Scene, ...]:
    by_size: dict[tuple[int, int], list[FloatArray]] = {}
    for clip in clips:
        grid = _grid(clip, options)
        pooled = grid.pool(grid.pad(clip.frames[..., 0]))
        cut = np.array([False, *(is_cut(pooled[t - 1], pooled[t]) for t in range(1, len(pooled)))])
        parts = [pooled[start:end] for start, end in shots(cut)]
        by_size.setdefault((grid.height_px, grid.width_px), []).extend(parts)
    scenes: list[Scene] = []
    for (height, width), parts in sorted(by_size.items(), key=lambda item: -sum(map(len, item[1]))):
        scenes += [Scene(height, width, background) for background in learn_scenes(parts, options.max_scenes - len(scenes))]
    return tuple(scenes)


def _with_units(scenes: Sequence[Scene], bursts: Sequence[_Burst]) -> tuple[Scene, ...]:
    """Returns the scenes with their perspectives and the units of their rarity features."""
    made = []
    for number, scene in enumerate(scenes):
        motion, height, found = [], [], []
        for burst in bursts:
            moving = coarse(burst.maps.motion > MOVING) & (burst.maps.scene == number)[:, None, None]
            motion.append(burst.maps.motion[moving])
            height.append((np.nonzero(moving)[1] + 0.5) / burst.maps.grid.shape[0])
            found.append(describe(burst.maps, moving)[:, : len(SCALE_FLOORS)])
        units = SCALE_FLOORS
        described = np.concatenate(found)
        if len(described):
            units = np.maximum(0.5 * np.subtract(*np.quantile(described, [0.9, 0.1], axis=0)), units).astype(np.float32)
        perspective = fit_perspective(np.concatenate(motion), np.concatenate(height))
        made.append(replace(scene, levels=Levels(perspective=perspective, scale=units)))
    return tuple(made)


def _draw(fitted: FittedCamera, bursts: Sequence[_Burst], seed: int, options: MotionOptions) -> RaritySamples | None:
    """Draws moving cells, at most the same number from each burst, so that a busy one does not dominate."""
    rng = np.random.default_rng(seed)
    share = -(-options.samples // len(bursts))
    features, scenes, videos, times = [], [], [], []
    for burst in bursts:
        moving, rows = burst.moving_rows
        pick = np.sort(rng.choice(len(rows), size=min(share, len(rows)), replace=False))
        at = rows[pick]
        scene = burst.maps.scene[at]
        units = np.array([fitted.levels(number).scale for number in scene.tolist()], dtype=np.float32).reshape(-1, 3)
        features.append(scaled(describe(burst.maps, moving)[pick], units, options))
        scenes.append(scene)
        videos.append(np.full(len(pick), video_number(burst.clip.video), dtype=np.int64))
        times.append(burst.clip.timestamp[at])
    if not sum(map(len, features)):
        return None
    return RaritySamples(np.concatenate(features), np.concatenate(scenes), np.concatenate(videos), np.concatenate(times))


def _with_usual(
    fitted: FittedCamera, bursts: Sequence[_Burst], channels: Sequence[Channels], footage: FittedTime
) -> FittedCamera:
    """Returns the camera with the usual levels of each scene. Other views get the levels of all scenes together."""
    usable = np.concatenate([burst.maps.usable for burst in bursts])
    scene = np.concatenate([burst.maps.scene for burst in bursts])[usable]
    motion, rare = (np.concatenate(values)[usable] for values in zip(*(one.frame_values() for one in channels), strict=True))

    def level(levels: Levels, rows: BoolArray) -> Levels:
        part = footage.part(float(rows.mean())) if len(rows) else footage
        return replace(
            levels,
            motion=usual_level(motion[rows], footage=part, reference=MOTION_REFERENCE),
            rarity=usual_level(rare[rows], footage=part, reference=RARITY_REFERENCE),
        )

    scenes = tuple(replace(one, levels=level(one.levels, scene == number)) for number, one in enumerate(fitted.scenes))
    return replace(fitted, scenes=scenes, elsewhere=level(fitted.elsewhere, np.ones(len(scene), dtype=bool)))


def _tail(
    fitted: FittedCamera,
    bursts: Sequence[_Burst],
    channels: Sequence[Channels],
    footage: FittedTime,
    options: MotionOptions,
) -> Tail:
    frames = [
        smooth(
            peaks(channel.together(fitted)),
            timestamp=burst.clip.timestamp,
            usable=burst.maps.usable,
            sigma_s=options.smoothing_s,
            gap_s=options.gap_s,
        )
        for burst, channel in zip(bursts, channels, strict=True)
    ]
    return fit_tail(np.concatenate(frames), footage=footage)


def _footage(clips: Sequence[Clip]) -> FittedTime:
    """Returns the total length of the bursts, and a lower bound of the total length of their videos.

    A video lasts at least until the end of its last burst.
    """
    sampled_s = sum(float(clip.timestamp[-1] - clip.timestamp[0]) for clip in clips)
    last_s: dict[str, float] = {}
    for clip in clips:
        last_s[clip.video] = max(last_s.get(clip.video, 0.0), float(clip.timestamp[-1]))
    return FittedTime(sampled_s, sum(last_s.values()))
