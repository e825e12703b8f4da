"""Learning one camera from short bursts of its footage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vadcli.detectors.motion.background import learn_scenes
from vadcli.detectors.motion.calibration import Footage, fit_tail, usual_level
from vadcli.detectors.motion.camera import MOTION_REFERENCE, RARITY_REFERENCE, FittedCamera
from vadcli.detectors.motion.features import ClipMaps
from vadcli.detectors.motion.grid import Grid, grid_for
from vadcli.detectors.motion.options import MotionOptions
from vadcli.detectors.motion.perspective import Perspective, fit_perspective
from vadcli.detectors.motion.rarity import SCALE_FLOORS, RaritySamples, coarse, describe, scaled, video_number
from vadcli.detectors.motion.scoring import MOVING, channels_of, measure, peaks
from vadcli.detectors.motion.smoothing import smooth
from vadcli.types import BoolArray, CameraSample, Clip, FloatArray


def fit_camera(sample: CameraSample, options: MotionOptions) -> FittedCamera:
    """Background, remembered cells, then the tails; the bursts themselves are scored as any clip would be."""
    clips = [clip for clip in sample.clips if len(clip.frames) > 1]
    if not clips:
        return FittedCamera()
    grids = [grid_for(*clip.frames.shape[1:3], options.cell_px, options.box_cells) for clip in clips]
    fitted = FittedCamera(scenes=_scenes(clips, grids, options))
    maps = [
        measure(
            clip.frames[..., 0],
            timestamp=clip.timestamp,
            seen=_seen(clip),
            fitted=fitted,
            grid=grid,
            options=options,
        )
        for clip, grid in zip(clips, grids, strict=True)
    ]
    fitted = replace(fitted, samples=_draw(clips, grids, maps, sample.seed, options), perspective=_perspective(grids, maps))
    return _with_levels(fitted, clips, grids, maps, options)


def _seen(clip: Clip) -> BoolArray:
    seen = clip.valid.copy()
    seen[0] = True
    return seen


def _scenes(clips: Sequence[Clip], grids: Sequence[Grid], options: MotionOptions) -> tuple[tuple[int, int, FloatArray], ...]:
    by_size: dict[tuple[int, int], list[FloatArray]] = {}
    for clip, grid in zip(clips, grids, strict=True):
        size = (grid.height_px, grid.width_px)
        by_size.setdefault(size, []).append(grid.pool(grid.pad(clip.frames[..., 0])))
    scenes: list[tuple[int, int, FloatArray]] = []
    for (height, width), bursts in sorted(by_size.items(), key=lambda item: -len(item[1])):
        scenes += [(height, width, scene) for scene in learn_scenes(bursts, options.max_scenes - len(scenes))]
    return tuple(scenes[: options.max_scenes])


def _perspective(grids: Sequence[Grid], maps: Sequence[ClipMaps]) -> Perspective:
    motion, height = [], []
    for grid, one in zip(grids, maps, strict=True):
        t, y, x = np.nonzero(coarse(one.motion > MOVING))
        motion.append(one.motion[t, y, x])
        height.append((y + 0.5) / grid.shape[0])
    return fit_perspective(np.concatenate(motion), np.concatenate(height))


def _draw(
    clips: Sequence[Clip], grids: Sequence[Grid], maps: Sequence[ClipMaps], seed: int, options: MotionOptions
) -> RaritySamples | None:
    """An equal number of moving cells from each burst, so that one busy minute doesn't stand for the camera."""
    rng = np.random.default_rng(seed)
    share = -(-options.samples // len(clips))
    features, videos, times = [], [], []
    for clip, grid, one in zip(clips, grids, maps, strict=True):
        moving = one.motion > MOVING
        at = np.nonzero(moving)[0]
        pick = np.sort(rng.choice(len(at), size=min(share, len(at)), replace=False))
        features.append(describe(one, grid, moving)[pick])
        videos.append(np.full(len(pick), video_number(clip.video), dtype=np.int64))
        times.append(clip.timestamp[at[pick]])
    found = np.concatenate(features)
    if not len(found):
        return None
    spread = np.subtract(*np.quantile(found[:, : len(SCALE_FLOORS)], [0.9, 0.1], axis=0))
    scale = np.maximum(0.5 * spread, SCALE_FLOORS).astype(np.float32)
    return RaritySamples(scaled(found, scale, options), scale, np.concatenate(videos), np.concatenate(times))


def _with_levels(
    fitted: FittedCamera,
    clips: Sequence[Clip],
    grids: Sequence[Grid],
    maps: Sequence[ClipMaps],
    options: MotionOptions,
) -> FittedCamera:
    footage = _footage(clips)
    channels = [
        channels_of(one, video=clip.video, timestamp=clip.timestamp, fitted=fitted, grid=grid, options=options)
        for clip, grid, one in zip(clips, grids, maps, strict=True)
    ]
    usable = np.concatenate([one.usable for one in maps])
    motion, rarity = (np.concatenate(values)[usable] for values in zip(*(one.frame_values() for one in channels), strict=True))
    fitted = replace(
        fitted,
        usual_motion=usual_level(motion, footage=footage, reference=MOTION_REFERENCE),
        usual_rarity=usual_level(rarity, footage=footage, reference=RARITY_REFERENCE),
    )
    frames = [
        smooth(
            peaks(channel.together(fitted)),
            timestamp=clip.timestamp,
            usable=one.usable,
            sigma_s=options.smoothing_s,
            gap_s=options.gap_s,
        )
        for clip, one, channel in zip(clips, maps, channels, strict=True)
    ]
    return replace(fitted, tail=fit_tail(np.concatenate(frames), footage=footage))


def _footage(clips: Sequence[Clip]) -> Footage:
    """What the bursts hold, and what they are spread over: each video at least to the end of its last burst."""
    sampled_s = sum(float(clip.timestamp[-1] - clip.timestamp[0]) for clip in clips)
    last_s: dict[str, float] = {}
    for clip in clips:
        last_s[clip.video] = max(last_s.get(clip.video, 0.0), float(clip.timestamp[-1]))
    return Footage(sampled_s, sum(last_s.values()))
