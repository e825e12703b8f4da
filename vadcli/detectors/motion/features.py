"""What one clip shows, cell by cell: how fast things move, how much the picture changes, what isn't background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vadcli.detectors.motion.background import foreground, match_light
from vadcli.detectors.motion.flow import DenseFlow
from vadcli.detectors.motion.grid import Grid
from vadcli.detectors.motion.options import MotionOptions
from vadcli.types import BoolArray, ByteArray, FloatArray, TimeArray

CUT_LEVELS = 12.0
"""A cell that changes by this many gray levels beyond a change of light is a new picture there."""

CUT_SHARE = 0.5
"""A pair with more new cells than this is a cut, or a jump of light that no gain explains."""

TEXTURE_LEVELS = 2.0
"""Gray levels between neighbouring cells from which flow can be trusted to show camera motion."""


@dataclass(frozen=True)
class ClipMaps:
    """One clip on the grid; row t tells of the step from the sample before to sample t.

    Attributes:
        motion: (T, h, w) float32, sqrt(gated speed x change), >= 0; 0 where the row is not usable.
        speed: (T, h, w) float32, pixels a step beside the camera's own motion.
        change: (T, h, w) float32, gray levels beyond noise and light.
        foreground: (T, h, w) float32 in [0, 1].
        camera_px: (T,) float32, pixels a step that the whole picture moved.
        usable: (T,) bool, False for the first row, for cuts and for rows whose picture was lost.
    """

    motion: FloatArray = field(repr=False)
    speed: FloatArray = field(repr=False)
    change: FloatArray = field(repr=False)
    foreground: FloatArray = field(repr=False)
    camera_px: FloatArray
    usable: BoolArray


def map_clip(
    frames: ByteArray,
    *,
    timestamp: TimeArray,
    seen: BoolArray,
    scenes: Sequence[FloatArray],
    grid: Grid,
    options: MotionOptions,
) -> ClipMaps:
    """Measure a clip.

    Args:
        frames: (T, H, W) uint8.
        timestamp: (T,) seconds; flow is brought to the options' rate.
        seen: (T,) bool, False where the row repeats an older picture.
        scenes: the camera's backgrounds on this grid; may be empty.
        grid: of this picture size.
        options: the detector's.
    """
    pooled = grid.pool(frames.astype(np.float32))  # (T, h, w)
    steps = _steps(frames=frames, pooled=pooled, timestamp=timestamp, seen=seen, grid=grid, options=options)
    gate = np.empty_like(pooled)
    for start, end in _shots(steps.cut):
        gate[start:end] = foreground(pooled[start:end], scenes, options)
    speed = grid.box(steps.speed * gate)
    change = grid.box(steps.change)
    motion = np.sqrt(speed * change)
    return ClipMaps(motion, steps.speed, change, gate, steps.camera_px, steps.usable)


@dataclass(frozen=True)
class _Steps:
    speed: FloatArray
    change: FloatArray
    camera_px: FloatArray
    usable: BoolArray
    cut: BoolArray


def _steps(
    *, frames: ByteArray, pooled: FloatArray, timestamp: TimeArray, seen: BoolArray, grid: Grid, options: MotionOptions
) -> _Steps:
    count = len(frames)
    speed, change = np.zeros_like(pooled), np.zeros_like(pooled)
    camera_px = np.zeros(count, dtype=np.float32)
    usable, cut = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    engine, before = DenseFlow(), 0
    for t in range(1, count):
        if not seen[t]:
            continue
        cut[t] = _is_cut(pooled[before], pooled[t])
        if not cut[t]:
            usable[t] = True
            change[t] = _change(frames[before], frames[t], grid, options)
            if change[t].any():
                flow = np.moveaxis(engine.between(frames[before], frames[t]), -1, 0)
                step = (timestamp[t] - timestamp[before]) * options.rate_hz
                speed[t], camera_px[t] = _speed(grid.pool(flow), pooled[t], step, options)
        before = t
    return _Steps(speed, change, camera_px, usable, cut)


def _is_cut(before: FloatArray, after: FloatArray) -> bool:
    new = np.abs(after - match_light(before, after)) > CUT_LEVELS
    return float(np.mean(new)) > CUT_SHARE


def _change(before: ByteArray, after: ByteArray, grid: Grid, options: MotionOptions) -> FloatArray:
    """Gray levels of change in each cell beyond a common shift of light and the pair's own noise."""
    difference = after.astype(np.int16) - before
    light = np.int16(np.median(difference[::4, ::4]))
    cells = grid.pool(np.abs(difference - light).astype(np.float32))
    noise = options.noise_factor * float(np.median(cells)) + options.change_floor
    return np.asarray(np.maximum(cells - noise, 0.0), dtype=np.float32)


def _speed(flow: FloatArray, picture: FloatArray, step: float, options: MotionOptions) -> tuple[FloatArray, np.float32]:
    """(2, h, w) flow -> speed beside the camera's own motion, and that motion, both at the options' rate."""
    texture = np.zeros(picture.shape, dtype=np.float32)
    texture[:, 1:] += np.abs(np.diff(picture, axis=1))
    texture[1:] += np.abs(np.diff(picture, axis=0))
    solid = texture > TEXTURE_LEVELS
    camera = np.median(flow[:, solid], axis=1) if solid.mean() > 0.05 else np.zeros(2, dtype=np.float32)
    rest = np.hypot(*(flow - camera[:, None, None]))
    shake = np.float32(np.hypot(*camera))
    # What is left of the camera's motion after its median is taken away grows with it.
    rest = np.maximum(rest - np.float32(options.speed_floor_px) - np.float32(0.25) * shake, np.float32(0.0))
    scale = np.float32(1.0 / min(max(step, 0.25), 4.0))
    return np.minimum(rest * scale, np.float32(options.speed_cap_px)), shake * scale


def _shots(cut: BoolArray) -> list[tuple[int, int]]:
    starts = [0, *np.flatnonzero(cut).tolist()]
    return list(zip(starts, [*starts[1:], len(cut)], strict=True))
