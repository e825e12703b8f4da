"""Scores clips with a camera model, and fits a camera model to bursts.

Bursts are short clips from the videos of a camera. The first part of this file scores, the second part fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from vadcli.detectors.calibration import USUAL_PRIOR, FittedTime, Tail, fit_tail, smooth, usual_level
from vadcli.detectors.motion import MotionOptions
from vadcli.detectors.motion.background import CellGrid, grid_for, learn_scenes
from vadcli.detectors.motion.camera import (
    DISORDER_FLOOR,
    DISORDER_REFERENCE,
    LEVEL_PRIOR,
    RARITY_REFERENCE,
    SMALLEST_UNIT_PX,
    SPEED_FLOOR,
    SPEED_REFERENCE,
    FittedCamera,
    Levels,
    RaritySamples,
    Scene,
    coarse,
    describe,
    kth_distance,
    scaled,
    spread_out,
    video_number,
)
from vadcli.detectors.motion.features import ClipMaps, ClipSteps, clip_steps, is_scene_cut, map_clip, shots
from vadcli.detectors.motion.sizes import without_small
from vadcli.types import BoolArray, ByteArray, CameraSample, Clip, FloatArray, TimeArray

MOVING_PX = 0.15
"""A cell that is faster than this, in pixels per step, counts as moving. Only moving cells have a rarity."""

RARITY_POWER = 0.5
"""Motion that is four times as rare as usual counts twice as much, if there is enough footage to know what is rare."""

RARITY_PRIOR = 100.0
"""With this many moments of video (200 seconds), the power of rarity is half of RARITY_POWER.

In a few seconds of footage, chance decides what is rare. With values below 100, every measured result on real clips was worse
than without rarity.
"""


@dataclass(frozen=True)
class Channels:
    """How much the cells of one clip move, and how rare this motion is.

    Attributes:
        motion: (T, h, w) float32, sqrt(s² + d²): s is the speed of the cell divided by the usual speed in the scene, and d is
            the disorder divided by the usual disorder.
        rarity: (T, h, w) float32, distance to the usual moving cells of the scene, divided by the usual distance. The rarity is
            0 if the cell does not move, or if the camera has too few samples.
    """

    motion: FloatArray = field(repr=False)
    rarity: FloatArray = field(repr=False)

    def together(self, fitted: FittedCamera) -> FloatArray:
        """Return the motion (T, h, w) float32, made larger in cells where the motion is rare."""
        return np.asarray(self.motion * np.maximum(self.rarity, 1.0) ** np.float32(fitted.rarity_power), dtype=np.float32)


def measure(
    frames: ByteArray,
    *,
    timestamp: TimeArray,
    seen: BoolArray,
    fitted: FittedCamera,
    grid: CellGrid,
    options: MotionOptions,
    steps: ClipSteps | None = None,
) -> ClipMaps:
    """Return the measurements of a clip (T, H, W), made with the backgrounds of the fitted camera.

    `steps` is the result of `clip_steps` for this clip; None means that it is computed now.
    """
    if steps is None:
        steps = clip_steps(frames, timestamp=timestamp, seen=seen, grid=grid, options=options)
    scenes = fitted.backgrounds(grid.height_px, grid.width_px)
    maps = map_clip(steps, timestamp=timestamp, scenes=scenes, grid=grid, options=options)
    return maps if options.min_size is None else without_small(maps, frames, seen=seen, min_size=options.min_size)


def rarities(maps: ClipMaps, *, video: str, fitted: FittedCamera, options: MotionOptions) -> FloatArray:
    """Return the distance (T, h, w) float32 from each cell to the usual moving cells of the scene.

    The distance is measured in `scaled` features. It depends on the backgrounds, units and samples of the camera. It does not
    depend on the usual speed, disorder or rarity.
    """
    rare = np.zeros_like(maps.speed)
    if fitted.samples is None:
        return rare
    for scene in np.unique(maps.scene[maps.scene >= 0]).tolist():
        rows, own = maps.scene == scene, fitted.samples.of_scene(scene)
        rare[rows] = _rarity(maps, rows, own, video=video, unit=fitted.levels(scene).unit, options=options)
    return rare


def channels_of(maps: ClipMaps, rare: FloatArray, fitted: FittedCamera) -> Channels:
    """Return how much each cell moves, and how rare this motion is. `rare` is the result of `rarities`."""
    levels = [fitted.levels(scene) for scene in maps.scene.tolist()]
    usual = np.array([(each.speed, each.disorder, each.rarity) for each in levels], dtype=np.float32)
    speed, disorder, rarity = usual.T[:, :, None, None]
    return Channels(np.hypot(maps.speed / speed, maps.disorder / disorder), rare / rarity)


def peaks(cells: FloatArray) -> FloatArray:
    """Return the highest value (T,) in each frame of `cells` (T, h, w)."""
    return np.asarray(cells.reshape(len(cells), -1).max(axis=1), dtype=np.float32)


def _rarity(
    maps: ClipMaps, rows: BoolArray, samples: RaritySamples, *, video: str, unit: float, options: MotionOptions
) -> FloatArray:
    """Return the rarity (R, h, w) float32 of R frames.

    `rows` (T,) is True for these R frames. They must show the scene of `samples`.
    """
    moving = coarse(maps.speed > MOVING_PX) & rows[:, None, None]
    query = scaled(describe(maps, moving), np.array([unit], np.float32), options)
    parts = np.split(query, np.cumsum(moving.sum(axis=(1, 2)))[:-1])
    number = video_number(video)
    near = [samples.near(number, at, options.exclude_s) for at in maps.timestamp.tolist()]
    # Frames for which the same samples are left out are computed together.
    starts = [t for t in range(len(near)) if not t or not np.array_equal(near[t], near[t - 1])]
    rare = np.zeros_like(maps.speed)
    rare[moving] = np.concatenate(
        [
            kth_distance(np.concatenate(parts[start:end]), samples.features[~near[start]], options)
            for start, end in pairwise([*starts, len(near)])
        ]
    )
    return spread_out(rare)[rows]


@dataclass(frozen=True)
class MeasuredClip:
    """A clip of the sample, and its measurements.

    The measurements are kept, because scoring needs them too.

    Attributes:
        clip: the clip.
        maps: the measurements of the clip, with the backgrounds of the fitted camera.
        rare: (T, h, w) float32, the result of `rarities`.
    """

    clip: Clip = field(repr=False)
    maps: ClipMaps
    rare: FloatArray = field(repr=False)


def fit_camera(
    sample: CameraSample, options: MotionOptions, *, steps_of: Callable[[Clip], ClipSteps], threads: int = 1
) -> tuple[FittedCamera, list[MeasuredClip]]:
    """Return the camera fitted to a sample of its clips, and the measurements of these clips.

    The parts of the camera are fitted in this order: the scenes, the units of the velocities, the samples of moving cells,
    the usual values, and the tail. Each part is fitted with the help of the parts before it.

    Args:
        sample: clips from the videos of the camera.
        options: the detector's options.
        steps_of: returns the steps of a clip, as `clip_steps` does.
        threads: the number of threads that measure clips. It does not change the result.
    """
    clips = [clip for clip in sample.clips if len(clip.frames) > 1]
    if not clips:
        return FittedCamera(), []
    steps = _in_threads(steps_of, clips, threads=threads)
    fitted = FittedCamera(scenes=_scenes(clips, steps, options))
    maps = _in_threads(lambda clip, known: _measured(clip, known, fitted, options), clips, steps, threads=threads)
    united = replace(fitted, scenes=_with_units(fitted.scenes, maps))
    drawn = replace(united, samples=_draw(united, clips, maps, sample.seed, options))

    def with_rarity(clip: Clip, found: ClipMaps) -> MeasuredClip:
        """Return the clip with its measurements and the rarity of its cells."""
        return MeasuredClip(clip, found, rarities(found, video=clip.video, fitted=drawn, options=options))

    measured = _in_threads(with_rarity, clips, maps, threads=threads)
    footage = _footage(clips)
    levelled = _with_usual(drawn, measured, footage)
    # A burst is a short clip, too short to show whether a contrast lasts for `still_s` seconds. So the tail is fitted to all
    # contrasts, including short ones. As a result, fewer still things raise an alarm.
    contrasts = [peaks(one.maps.still) for one in measured if one.maps.still is not None]
    still = fit_tail(np.concatenate(contrasts), footage=footage) if contrasts else None
    return replace(levelled, tail=_tail(levelled, measured, footage, options, threads=threads), still=still), measured


_Out = TypeVar("_Out")


def _in_threads(function: Callable[..., _Out], *items: Iterable[Any], threads: int) -> list[_Out]:
    with ThreadPoolExecutor(threads, thread_name_prefix="fit") as pool:
        return list(pool.map(function, *items))


def _grid(clip: Clip, options: MotionOptions) -> CellGrid:
    return grid_for(*clip.frames.shape[1:3], options.cell_px, options.blur_cells)


def steps_of_clip(clip: Clip, options: MotionOptions) -> ClipSteps:
    """Return how each cell of a clip moves and changes from frame to frame. No camera model is used."""
    grid = _grid(clip, options)
    return clip_steps(clip.frames[..., 0], timestamp=clip.timestamp, seen=seen_in(clip.valid), grid=grid, options=options)


def seen_in(valid: BoolArray) -> BoolArray:
    """Return a copy of `valid` (T,) whose first entry is True: the first step needs this frame."""
    seen = valid.copy()
    seen[:1] = True
    return seen


def _measured(clip: Clip, steps: ClipSteps, fitted: FittedCamera, options: MotionOptions) -> ClipMaps:
    return measure(
        clip.frames[..., 0],
        timestamp=clip.timestamp,
        seen=seen_in(clip.valid),
        fitted=fitted,
        grid=_grid(clip, options),
        options=options,
        steps=steps,
    )


def _scenes(clips: Sequence[Clip], steps: Sequence[ClipSteps], options: MotionOptions) -> tuple[Scene, ...]:
    by_size: dict[tuple[int, int], list[FloatArray]] = {}
    for clip, found in zip(clips, steps, strict=True):
        cut = np.array([False, *(is_scene_cut(found.pooled[t - 1], found.pooled[t]) for t in range(1, len(found.pooled)))])
        parts = [found.pooled[start:end] for start, end in shots(cut)]
        by_size.setdefault(clip.frames.shape[1:3], []).extend(parts)
    scenes: list[Scene] = []
    for (height, width), parts in sorted(by_size.items(), key=lambda item: -sum(map(len, item[1]))):
        scenes += [Scene(height, width, background) for background in learn_scenes(parts, options.max_scenes - len(scenes))]
    return tuple(scenes)


def _with_units(scenes: Sequence[Scene], maps: Sequence[ClipMaps]) -> tuple[Scene, ...]:
    """Return a copy of each scene in which the unit of speed is set.

    The velocities in a scene are divided by this unit.
    """
    made = []
    for number, scene in enumerate(scenes):
        moving = np.concatenate([one.speed[(one.speed > MOVING_PX) & (one.scene == number)[:, None, None]] for one in maps])
        unit = 0.5 * float(np.subtract(*np.quantile(moving, [0.9, 0.1]))) if len(moving) else 0.0
        made.append(replace(scene, levels=Levels(unit=max(unit, SMALLEST_UNIT_PX))))
    return tuple(made)


def _draw(
    fitted: FittedCamera, clips: Sequence[Clip], maps: Sequence[ClipMaps], seed: int, options: MotionOptions
) -> RaritySamples | None:
    """Draw cells that move in a known scene at random, equally many per clip if possible, so that no clip dominates."""
    rng = np.random.default_rng(seed)
    share = -(-options.samples // len(clips))
    features, scenes, videos, times = [], [], [], []
    for clip, found in zip(clips, maps, strict=True):
        moving = (found.speed > MOVING_PX) & (found.scene >= 0)[:, None, None]
        cells = np.flatnonzero(moving)
        drawn = np.zeros_like(moving)
        drawn.flat[cells[rng.choice(len(cells), size=min(share, len(cells)), replace=False)]] = True
        at = np.nonzero(drawn)[0]
        scene = found.scene[at]
        units = np.array([fitted.levels(number).unit for number in scene.tolist()], dtype=np.float32)[:, None]
        features.append(scaled(describe(found, drawn), units, options))
        scenes.append(scene)
        videos.append(np.full(len(at), video_number(clip.video), dtype=np.int64))
        times.append(clip.timestamp[at])
    if not sum(map(len, features)):
        return None
    return RaritySamples(np.concatenate(features), np.concatenate(scenes), np.concatenate(videos), np.concatenate(times))


def _with_usual(fitted: FittedCamera, bursts: Sequence[MeasuredClip], footage: FittedTime) -> FittedCamera:
    """Return a copy of the camera with the usual levels of each scene.

    Views that match no scene get the levels of all frames.
    """
    usable = np.concatenate([burst.maps.usable for burst in bursts])
    scene = np.concatenate([burst.maps.scene for burst in bursts])[usable]
    highest = [[peaks(each) for each in (burst.maps.speed, burst.maps.disorder, burst.rare)] for burst in bursts]
    speed, disorder, rare = (np.concatenate(values)[usable] for values in zip(*highest, strict=True))

    def level(levels: Levels, rows: BoolArray) -> Levels:
        """Return the usual levels of the frames in `rows`."""
        part = footage.part(float(rows.mean())) if len(rows) else footage
        shrunk = partial(usual_level, footage=part)
        return replace(
            levels,
            speed=shrunk(speed[rows], reference=SPEED_REFERENCE, floor=SPEED_FLOOR, prior=LEVEL_PRIOR),
            disorder=shrunk(disorder[rows], reference=DISORDER_REFERENCE, floor=DISORDER_FLOOR, prior=LEVEL_PRIOR),
            rarity=shrunk(rare[rows], reference=RARITY_REFERENCE, floor=RARITY_REFERENCE / 6, prior=USUAL_PRIOR),
        )

    scenes = tuple(replace(one, levels=level(one.levels, scene == number)) for number, one in enumerate(fitted.scenes))
    power = RARITY_POWER * footage.trust(1.0, RARITY_PRIOR)
    return replace(
        fitted, scenes=scenes, elsewhere=level(fitted.elsewhere, np.ones(len(scene), dtype=bool)), rarity_power=power
    )


def _tail(
    fitted: FittedCamera, bursts: Sequence[MeasuredClip], footage: FittedTime, options: MotionOptions, *, threads: int
) -> Tail:
    def values(burst: MeasuredClip) -> FloatArray:
        """Return the smoothed motion (T,) of a clip."""
        return smooth(
            peaks(channels_of(burst.maps, burst.rare, fitted).together(fitted)),
            timestamp=burst.clip.timestamp,
            usable=burst.maps.usable,
            sigma_s=options.smoothing_s,
            gap_s=options.gap_s,
        )

    return fit_tail(np.concatenate(_in_threads(values, bursts, threads=threads)), footage=footage)


def _footage(clips: Sequence[Clip]) -> FittedTime:
    """Return the total length of the bursts, and a lower bound of the total length of their videos.

    A video lasts at least until the end of its last burst.
    """
    sampled_s = sum(float(clip.timestamp[-1] - clip.timestamp[0]) for clip in clips)
    last_s: dict[str, float] = {}
    for clip in clips:
        last_s[clip.video] = max(last_s.get(clip.video, 0.0), float(clip.timestamp[-1]))
    return FittedTime(sampled_s, sum(last_s.values()))
