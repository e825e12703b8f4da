"""Learning one camera from short bursts of its footage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vadcli.detectors.motion.background import learn_scenes
from vadcli.detectors.motion.calibration import fit_tail
from vadcli.detectors.motion.camera import FRAME_REFERENCE, MOTION_REFERENCE, RARITY_REFERENCE, FittedCamera
from vadcli.detectors.motion.features import ClipMaps
from vadcli.detectors.motion.grid import Grid, grid_for
from vadcli.detectors.motion.options import MotionOptions
from vadcli.detectors.motion.rarity import SCALE_FLOORS, RaritySamples, describe, scaled, video_number
from vadcli.detectors.motion.scoring import MOVING, measure, surprise_maps
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
    fitted = replace(fitted, samples=_draw(clips, grids, maps, sample.seed, options))
    return _with_tails(fitted, clips, grids, maps, options)


def _seen(clip: Clip) -> BoolArray:
    seen = clip.valid.copy()
    seen[0] = True
    return seen


def _scenes(clips: Sequence[Clip], grids: Sequence[Grid], options: MotionOptions) -> tuple[tuple[int, int, FloatArray], ...]:
    by_size: dict[tuple[int, int], list[FloatArray]] = {}
    for clip, grid in zip(clips, grids, strict=True):
        size = (grid.height_px, grid.width_px)
        by_size.setdefault(size, []).append(grid.pool(clip.frames[..., 0].astype(np.float32)))
    scenes: list[tuple[int, int, FloatArray]] = []
    for (height, width), bursts in sorted(by_size.items(), key=lambda item: -len(item[1])):
        scenes += [(height, width, scene) for scene in learn_scenes(bursts, options.max_scenes - len(scenes))]
    return tuple(scenes[: options.max_scenes])


def _draw(
    clips: Sequence[Clip], grids: Sequence[Grid], maps: Sequence[ClipMaps], seed: int, options: MotionOptions
) -> RaritySamples | None:
    """An equal number of moving cells from each burst, so that one busy minute doesn't stand for the camera."""
    rng = np.random.default_rng(seed)
    share = -(-options.samples // len(clips))
    features, videos, times = [], [], []
    for clip, grid, one in zip(clips, grids, maps, strict=True):
        t, y, x = np.nonzero((one.motion > MOVING) & one.usable[:, None, None])
        if not len(t):
            continue
        pick = np.sort(rng.choice(len(t), size=min(share, len(t)), replace=False))
        features.append(describe(one, grid)[t[pick], y[pick], x[pick]])
        videos.append(np.full(len(pick), video_number(clip.video), dtype=np.int64))
        times.append(clip.timestamp[t[pick]])
    if not features:
        return None
    found = np.concatenate(features)
    spread = np.quantile(found[:, :4], 0.9, axis=0) - np.quantile(found[:, :4], 0.1, axis=0)
    scale = np.maximum(0.5 * spread, SCALE_FLOORS).astype(np.float32)
    return RaritySamples(scaled(found, scale, options), scale, np.concatenate(videos), np.concatenate(times))


def _with_tails(
    fitted: FittedCamera,
    clips: Sequence[Clip],
    grids: Sequence[Grid],
    maps: Sequence[ClipMaps],
    options: MotionOptions,
) -> FittedCamera:
    seconds = sum(float(clip.timestamp[-1] - clip.timestamp[0]) for clip in clips)
    channels = [
        surprise_maps(one, video=clip.video, timestamp=clip.timestamp, fitted=fitted, grid=grid, options=options)
        for clip, grid, one in zip(clips, grids, maps, strict=True)
    ]
    usable = np.concatenate([one.usable for one in maps])
    motion = np.concatenate([_peaks(one.motion) for one in maps])[usable]
    rarity = np.concatenate([_peaks(one.rarity) for one in channels])[usable]
    fitted = replace(
        fitted,
        motion=fit_tail(motion, seconds=seconds, reference=MOTION_REFERENCE),
        rarity=fit_tail(rarity, seconds=seconds, reference=RARITY_REFERENCE),
    )
    frames = []
    for clip, one, channel in zip(clips, maps, channels, strict=True):
        peaks = _peaks(channel.recombined(one, fitted))
        frames.append(
            smooth(peaks, timestamp=clip.timestamp, usable=one.usable, sigma_s=options.smoothing_s, gap_s=options.gap_s)
        )
    return replace(fitted, frame=fit_tail(np.concatenate(frames), seconds=seconds, reference=FRAME_REFERENCE))


def _peaks(cells: FloatArray) -> FloatArray:
    return np.asarray(cells.reshape(len(cells), -1).max(axis=1), dtype=np.float32)
