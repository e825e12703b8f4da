"""Learning one camera from short bursts of its footage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vadcli.detectors.motion.background import learn_scenes
from vadcli.detectors.motion.calibration import Footage, Tail, fit_tail, usual_level
from vadcli.detectors.motion.camera import MOTION_REFERENCE, RARITY_REFERENCE, FittedCamera, Levels, Scene
from vadcli.detectors.motion.features import ClipMaps, is_cut, shots
from vadcli.detectors.motion.grid import Grid, grid_for
from vadcli.detectors.motion.options import MotionOptions
from vadcli.detectors.motion.perspective import fit_perspective
from vadcli.detectors.motion.rarity import SCALE_FLOORS, RaritySamples, coarse, describe, scaled, video_number
from vadcli.detectors.motion.scoring import MOVING, Channels, channels_of, measure, peaks
from vadcli.detectors.motion.smoothing import smooth
from vadcli.types import BoolArray, CameraSample, Clip, FloatArray, IndexArray


@dataclass(frozen=True)
class _Burst:
    clip: Clip = field(repr=False)
    maps: ClipMaps

    @property
    def moving_rows(self) -> tuple[BoolArray, IndexArray]:
        """(T, h, w) bool, cells that move in a known scene, and the (Q,) rows that they are in."""
        moving = (self.maps.motion > MOVING) & (self.maps.scene >= 0)[:, None, None]
        return moving, np.nonzero(moving)[0]


def fit_camera(sample: CameraSample, options: MotionOptions) -> FittedCamera:
    """Scenes first, then what moves in them, then how high its values usually go; each step uses the one before."""
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


def _grid(clip: Clip, options: MotionOptions) -> Grid:
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
    """Perspective and the units of rarity's features, scene by scene."""
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
    """An equal number of moving cells from each burst, so that one busy minute doesn't stand for the camera."""
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


def _with_usual(fitted: FittedCamera, bursts: Sequence[_Burst], channels: Sequence[Channels], footage: Footage) -> FittedCamera:
    """What is usual in each scene, and over all of them for what is none."""
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
    footage: Footage,
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


def _footage(clips: Sequence[Clip]) -> Footage:
    """What the bursts hold, and what they are spread over: each video at least to the end of its last burst."""
    sampled_s = sum(float(clip.timestamp[-1] - clip.timestamp[0]) for clip in clips)
    last_s: dict[str, float] = {}
    for clip in clips:
        last_s[clip.video] = max(last_s.get(clip.video, 0.0), float(clip.timestamp[-1]))
    return Footage(sampled_s, sum(last_s.values()))
