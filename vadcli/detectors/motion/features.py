"""Dense optical flow between two gray pictures. The only use of OpenCV.

Footage in which pictures are repeated: a camera of 4 pictures a second in a file of 30.

What one clip shows, cell by cell: how fast things move, how much the picture changes, what isn't background.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from vadcli.detectors.motion import MotionOptions
from vadcli.detectors.motion.background import CellGrid, camera_flow, foreground, match_light
from vadcli.types import BoolArray, ByteArray, FloatArray, IndexArray, TimeArray

SMALLEST_SIDE_PX = 32
"""OpenCV's DIS flow refuses or, where they are long and thin, crashes on smaller pictures (5.0.0); they are padded."""


class DenseFlow:
    """OpenCV's DIS flow at its ULTRAFAST preset: single-threaded, without memory between pairs."""

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        opencv: Any = cv2
        self._flow: Any = opencv.DISOpticalFlow_create(opencv.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def between(self, before: ByteArray, after: ByteArray) -> FloatArray:
        """(H, W) uint8 twice -> (H, W, 2) float32: where each pixel of `before` went, in pixels (x, y)."""
        height, width = before.shape
        short = (max(0, SMALLEST_SIDE_PX - height), max(0, SMALLEST_SIDE_PX - width))
        if any(short):
            pad = ((0, short[0]), (0, short[1]))
            before, after = np.pad(before, pad, mode="edge"), np.pad(after, pad, mode="edge")
        flow = self._flow.calc(np.ascontiguousarray(before), np.ascontiguousarray(after), None)
        return np.asarray(flow[:height, :width], dtype=np.float32)


LONGEST_STEPS = 4
"""A picture is taken as repeated for at most this many sampled steps; beyond that the scene stood still."""

HELD_SHARE = 0.1
"""A row that changes by less than this share of what the next changed row does shows a repeated picture."""


@dataclass(frozen=True)
class Stretch:
    """Rows start ... end - 1 of a clip that show one step of the camera between them; row `source` saw it."""

    start: int
    end: int
    source: int

    @property
    def steps(self) -> int:
        """How many sampled steps the camera's one step is spread over."""
        return self.end - self.start


def stretches(activity: FloatArray, usable: BoolArray) -> list[Stretch]:
    """Find what repeated pictures hide.

    Args:
        activity: (T,) how much each row changes.
        usable: (T,) rows that could be measured; a stretch doesn't reach across others.

    Returns:
        The stretches of more than one row. A scene that begins to move after standing still looks like one, too: its first
        step is spread over the rows before.
    """
    found: list[Stretch] = []
    row = len(activity) - 1
    while row > 0:
        start = row
        if usable[row] and activity[row] > 0:
            while start - 1 >= 0 and row - start + 1 < LONGEST_STEPS and _held(start - 1, row, activity, usable):
                start -= 1
        if start < row:
            found.append(Stretch(start, row + 1, row))
        row = start - 1
    return _with_end(found[::-1], activity, usable)


def _held(row: int, source: int, activity: FloatArray, usable: BoolArray) -> bool:
    return bool(usable[row] and activity[row] < HELD_SHARE * activity[source])


def _with_end(found: list[Stretch], activity: FloatArray, usable: BoolArray) -> list[Stretch]:
    """At the end of a clip the step that repeats would show is not there yet: the last one seen stands in for it."""
    changed = np.flatnonzero((activity > HELD_SHARE * activity.max(initial=0.0)) & usable)
    if not found or len(changed) < 3:
        return found
    usual = int(np.median(np.diff(changed)))
    last = int(changed[-1])
    end = min(len(activity), last + usual)
    if not 2 <= usual <= LONGEST_STEPS or end == last + 1 or not usable[last:end].all():
        return found
    start = found[-1].start if found[-1].source == last else last
    kept = [stretch for stretch in found if stretch.source < last]
    return [*kept, Stretch(start, end, last)]


CUT_LEVELS = 12.0
"""A cell that changes by this many gray levels beyond a change of light is a new picture there."""

CUT_SHARE = 0.5
"""A pair with more new cells than this is a cut, or a jump of light that no gain explains."""

LEFTOVER_SHARE = 0.25
"""Of the camera's motion this share may be left in the flow beside it."""

SAME_LIGHT_LEVELS = 0.5
"""Mean brightness that changes by less needs no matching of light."""


@dataclass(frozen=True)
class ClipMaps:
    """One clip on the grid; row t tells of the step from the sample before to sample t.

    Attributes:
        grid: the cells.
        timestamp: (T,) float64 seconds.
        motion: (T, h, w) float32, sqrt(speed x change), >= 0; 0 where the row is not usable.
        speed: (T, h, w) float32, pixels a step of what isn't background, beside the camera's own motion; over a small square.
        change: (T, h, w) float32, gray levels beyond noise and light; over a small square.
        extent: (T, h, w) float32 in [0, 1], how much of a wider square isn't background.
        camera_px: (T,) float32, pixels a step that the whole picture moved.
        usable: (T,) bool, False for the first row, for cuts and for rows whose picture was lost.
        shot: (T,) int64, the number of the row's shot in the clip.
        scene: (T,) int64, the number of the camera's scene that the shot shows, -1 for none of them.
    """

    grid: CellGrid
    timestamp: TimeArray = field(repr=False)
    motion: FloatArray = field(repr=False)
    speed: FloatArray = field(repr=False)
    change: FloatArray = field(repr=False)
    extent: FloatArray = field(repr=False)
    camera_px: FloatArray
    usable: BoolArray
    shot: IndexArray
    scene: IndexArray


def map_clip(
    frames: ByteArray,
    *,
    timestamp: TimeArray,
    seen: BoolArray,
    scenes: Mapping[int, FloatArray],
    grid: CellGrid,
    options: MotionOptions,
) -> ClipMaps:
    """Measure a clip.

    Args:
        frames: (T, H, W) uint8.
        timestamp: (T,) seconds; flow is brought to the options' rate.
        seen: (T,) bool, False where the row repeats an older picture.
        scenes: the camera's backgrounds on this grid by number; may be empty.
        grid: of this picture size.
        options: the detector's.
    """
    padded = grid.pad(frames)
    pooled = grid.pool(padded)  # (T, h, w)
    steps = _Steps(padded, pooled, grid, options)
    cut = np.zeros(len(frames), dtype=bool)
    before = 0
    for t in (np.flatnonzero(seen[1:]) + 1).tolist():
        cut[t] = is_cut(pooled[before], pooled[t])
        if not cut[t]:
            steps.measure(before, t, step=(timestamp[t] - timestamp[before]) * options.rate_hz)
        before = t
    _spread_repeats(steps)
    gate, scene = np.empty_like(pooled), np.empty(len(frames), dtype=np.int64)
    for start, end in shots(cut):
        gate[start:end], scene[start:end] = foreground(pooled[start:end], scenes, options)
    speed, change = grid.box(steps.speed * gate), grid.box(steps.change)
    return ClipMaps(
        grid=grid,
        timestamp=timestamp,
        motion=np.sqrt(speed * change),
        speed=speed,
        change=change,
        extent=grid.wide_box(gate),
        camera_px=steps.camera_px,
        usable=steps.usable,
        shot=np.cumsum(cut),
        scene=scene,
    )


class _Steps:
    """What each step from one picture to the next shows; rows that are never measured stay zero and unusable."""

    def __init__(self, padded: ByteArray, pooled: FloatArray, grid: CellGrid, options: MotionOptions) -> None:
        self._padded, self._pooled, self._grid, self._options = padded, pooled, grid, options
        self._flow = DenseFlow()
        self.speed, self.change = np.zeros_like(pooled), np.zeros_like(pooled)
        self.camera_px = np.zeros(len(pooled), dtype=np.float32)
        self.usable = np.zeros(len(pooled), dtype=bool)

    def measure(self, before: int, after: int, *, step: float) -> None:
        """Fill row `after`; `step` is the time between the two in usual steps."""
        self.usable[after] = True
        scale = 1.0 / min(max(step, 0.25), 4.0)
        light = _light(self._pooled[before], self._pooled[after])
        # A thing that goes twice as far changes the picture more, but not twice as much: it leaves its own place only once.
        self.change[after] = self._changed(self._padded[before], self._padded[after], light) * np.sqrt(scale)
        if not self.change[after].any():
            return
        flow = self._grid.centres(self._flow.between(self._padded[before], self._padded[after]))
        floor = np.full(flow.shape[:2], self._options.speed_floor_px, dtype=np.float32)
        shared = camera_flow(flow, self._pooled[before])
        if shared is not None:
            common, moves = shared
            flow = flow - common
            shake = np.hypot(common[..., 0], common[..., 1])
            self.camera_px[after] = moves * float(shake.mean()) * scale
            # What is left of the camera's motion after it is taken away grows with it.
            floor += np.float32(LEFTOVER_SHARE) * shake
        speed = np.hypot(flow[..., 0], flow[..., 1]) - floor
        self.speed[after] = np.clip(speed * scale, 0.0, self._options.speed_cap_px)

    def _changed(self, before: ByteArray, after: ByteArray, light: int) -> FloatArray:
        """Gray levels of change in each cell beyond a common shift of light and the pair's own noise."""
        if light:
            difference = np.abs(after.astype(np.int16) - before - np.int16(light)).astype(np.uint8)
        else:
            difference = np.maximum(after, before) - np.minimum(after, before)
        cells = self._grid.pool(difference)
        noise = self._options.noise_factor * _median(cells) + self._options.change_floor
        return np.asarray(np.maximum(cells - np.float32(noise), 0.0), dtype=np.float32)


def _spread_repeats(steps: _Steps) -> None:
    """Give every row its share of a step that the camera made once for several of them."""
    for stretch in stretches(steps.change.sum(axis=(1, 2)), steps.usable):
        rows, share = slice(stretch.start, stretch.end), 1.0 / min(stretch.steps, LONGEST_STEPS)
        steps.speed[rows] = steps.speed[stretch.source] * np.float32(share)
        steps.change[rows] = steps.change[stretch.source] * np.float32(np.sqrt(share))
        steps.camera_px[rows] = steps.camera_px[stretch.source] * np.float32(share)


def is_cut(before: FloatArray, after: FloatArray) -> bool:
    """Whether two pooled pictures (h, w) in a row show different things, beyond what a change of light explains."""
    if float(np.mean(np.abs(after - before) > CUT_LEVELS)) <= CUT_SHARE:
        return False
    return float(np.mean(np.abs(after - match_light(before, after)) > CUT_LEVELS)) > CUT_SHARE


def _light(before: FloatArray, after: FloatArray) -> int:
    """Gray levels by which the whole picture got lighter."""
    if abs(float(after.mean()) - float(before.mean())) < SAME_LIGHT_LEVELS:
        return 0
    return round(_median(after - before))


def _median(values: FloatArray) -> float:
    middle = values.size // 2
    return float(np.partition(values, middle, axis=None)[middle])


def shots(cut: BoolArray) -> list[tuple[int, int]]:
    """(T,) True where a row begins a new shot -> the half-open rows of each."""
    starts = [0, *np.flatnonzero(cut).tolist()]
    return list(zip(starts, [*starts[1:], len(cut)], strict=True))
