"""Measures the speed and the disorder of the motion in a clip, per grid cell.

Speed comes from OpenCV's dense optical flow. Some videos repeat frames, for example if a camera delivers 4 frames per second
and the file has 30 frames per second. Then a change is visible only at the first frame of each group of equal frames, but
the motion really took place during all sampled frames since the previous change. Therefore the measured motion is spread over
these sampled frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vadcli.detectors.motion import MotionOptions
from vadcli.detectors.motion.background import CellGrid, camera_flow, foreground, match_light, shown_scene
from vadcli.detectors.motion.still import still_cells
from vadcli.types import BoolArray, ByteArray, FloatArray, IndexArray, TimeArray

SMALLEST_SIDE_PX = 32
"""If a side of a frame is shorter than this, the frame is padded.

OpenCV's DIS flow (5.0.0) rejects smaller frames, or crashes if they are long and thin.
"""


FLOW_ITERATIONS = 12
FLOW_STRIDE_PX = 6
"""The settings of DIS flow.

The flow is computed at half resolution, at quarter resolution and below. It is not refined. The resolution is higher than in
OpenCV's fast presets, so that small fast things are found. This costs time, but the wider stride and the missing refinement
save as much time.
"""


class DenseFlow:
    """OpenCV's DIS flow (Kroeger et al. 2016), in one thread. The flow depends on two frames only."""

    def __init__(self) -> None:
        import cv2  # here, because this import is slow, and the decoders can start before it

        cv2.setNumThreads(1)
        opencv: Any = cv2
        self._flow: Any = opencv.DISOpticalFlow_create(opencv.DISOPTICAL_FLOW_PRESET_FAST)
        self._flow.setFinestScale(1)
        self._flow.setPatchStride(FLOW_STRIDE_PX)
        self._flow.setGradientDescentIterations(FLOW_ITERATIONS)
        self._flow.setVariationalRefinementIterations(0)

    def between(self, before: ByteArray, after: ByteArray) -> FloatArray:
        """Return how far each pixel moves from `before` to `after`, (H, W, 2) float32: x and y, in pixels.

        Both frames are (H, W) uint8.
        """
        height, width = before.shape
        short = (max(0, SMALLEST_SIDE_PX - height), max(0, SMALLEST_SIDE_PX - width))
        if any(short):
            pad = ((0, short[0]), (0, short[1]))
            before, after = np.pad(before, pad, mode="edge"), np.pad(after, pad, mode="edge")
        flow = self._flow.calc(np.ascontiguousarray(before), np.ascontiguousarray(after), None)
        return np.asarray(flow[:height, :width], dtype=np.float32)


LONGEST_STEPS = 4
"""A change is spread over at most this many sampled frames. If more frames are equal, the scene really did not move."""

HELD_SHARE = 0.1
"""A frame counts as a repetition if its change is less than this share of the change at the next new frame."""


@dataclass(frozen=True)
class RepeatedRows:
    """The sampled frames `start` to `end` - 1, over which the change at frame `source` is spread."""

    start: int
    end: int
    source: int

    @property
    def steps(self) -> int:
        """The number of sampled frames over which the change at frame `source` is spread."""
        return self.end - self.start


def repeated_rows(activity: FloatArray, usable: BoolArray) -> list[RepeatedRows]:
    """Return each group of frames over which one change must be spread, because frames were repeated.

    The still frames right before a motion begins look like repeated frames too. So the first change of the motion is also
    spread over these frames.

    Args:
        activity: (T,) how much each sampled frame changes.
        usable: (T,) True for frames that could be measured. The result contains only such frames.
    """
    found: list[RepeatedRows] = []
    row = len(activity) - 1
    while row > 0:
        start = row
        if usable[row] and activity[row] > 0:
            while start - 1 >= 0 and row - start + 1 < LONGEST_STEPS and _held(start - 1, row, activity, usable):
                start -= 1
        if start < row:
            found.append(RepeatedRows(start, row + 1, row))
        row = start - 1
    return _with_end(found[::-1], activity, usable)


def _held(row: int, source: int, activity: FloatArray, usable: BoolArray) -> bool:
    return bool(usable[row] and activity[row] < HELD_SHARE * activity[source])


def _with_end(found: list[RepeatedRows], activity: FloatArray, usable: BoolArray) -> list[RepeatedRows]:
    """Add a group for the repeated frames at the end of the clip to the groups in `found`.

    The change that belongs to these frames is visible only in the next clip. So the last change in this clip is used instead.
    """
    changed = np.flatnonzero((activity > HELD_SHARE * activity.max(initial=0.0)) & usable)
    if not found or len(changed) < 3:
        return found
    usual = int(np.median(np.diff(changed)))
    last = int(changed[-1])
    end = min(len(activity), last + usual)
    if not 2 <= usual <= LONGEST_STEPS or end == last + 1 or not usable[last:end].all():
        return found
    start = found[-1].start if found[-1].source == last else last
    kept = [repeat for repeat in found if repeat.source < last]
    return [*kept, RepeatedRows(start, end, last)]


CUT_LEVELS = 12.0
"""A cell is new if it changes by more than this many gray levels. Changes of light are subtracted first."""

CUT_SHARE = 0.5
"""If more than this share of the cells is new, there is a cut, or the light has changed in a complicated way."""

LEFTOVER_SHARE = 0.25
"""After the camera's motion is subtracted from the flow, this share of the motion may remain."""

CHANGED_LEVELS = 2.0
"""If the change of a cell minus the noise is less than this many gray levels, its flow is reduced: it may be only noise."""

SPEED_POWER = 2.25
"""Speed is a power mean over space and time, with this power.

With a power above 1, a small fast thing counts more than a large slow thing. A plain mean mixes a small fast thing with the
ground around it, so that the thing looks as slow as a large thing that walks. With higher powers, the outlines of masks get
worse. `docs/motion.md` compares powers.
"""

SHORTEST_PX = 1e-3
"""A small length that avoids a division by 0 if nothing moves."""

SAME_LIGHT_LEVELS = 0.5
"""If the mean brightness changes by fewer gray levels than this, light is not matched."""


@dataclass(frozen=True)
class ClipMaps:
    """The measurements of one clip.

    Entry t belongs to the step from sampled frame t - 1 to sampled frame t. The maps are Gaussian means over space and time.
    The motion of the camera itself and the motion of the background are left out.

    Attributes:
        grid: the grid of cells.
        timestamp: (T,) float64 seconds.
        velocity: (T, h, w, 2) float32, how far a cell moves on average, x and y in pixels per step.
        speed: (T, h, w) float32, how fast a cell moves, in pixels per step. It is a power mean with the power SPEED_POWER.
        disorder: (T, h, w) float32, mean speed minus the length of `velocity`, minus noise, in pixels per step. The disorder is
            0 if everything near a cell moves in one direction, like a car. It is high if things near the cell move in many
            directions, like people who fight.
        camera_px: (T,) float32, motion of the whole frame in pixels per step.
        usable: (T,) bool, False for the first frame, for the first frame after a cut, and for frames that were not measured.
        shot: (T,) int64, number of the shot to which the frame belongs, counted from the start of the clip.
        scene: (T,) int64, number of the scene that the shot shows; -1 if the shot shows no known scene.
        still: (T, h, w) float32, contrast of things that stand still and are not part of the background, smoothed over space.
            None without the option `still`.
    """

    grid: CellGrid
    timestamp: TimeArray = field(repr=False)
    velocity: FloatArray = field(repr=False)
    speed: FloatArray = field(repr=False)
    disorder: FloatArray = field(repr=False)
    camera_px: FloatArray
    usable: BoolArray
    shot: IndexArray
    scene: IndexArray
    still: FloatArray | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """The memory of the maps, in bytes."""
        parts = (self.velocity, self.speed, self.disorder, self.still)
        return sum(part.nbytes for part in parts if part is not None)


@dataclass(frozen=True)
class ClipSteps:
    """Measurements of a clip that do not depend on its camera.

    Entry t belongs to the step from sampled frame t - 1 to sampled frame t. If a step was not measured, its entries are 0, and
    `usable` is False.

    Attributes:
        pooled: (T, h, w) float32, mean gray level of each cell.
        velocity: (2, T, h, w) float32, how far each cell moves in x and in y, in pixels per step.
        change: (T, h, w) float32, change of each cell in gray levels per step.
        camera_px: (T,) float32, motion of the whole frame in pixels per step.
        usable: (T,) bool, True for the steps that were measured.
        cut: (T,) bool, True for the frames with which a new shot begins.
    """

    pooled: FloatArray = field(repr=False)
    velocity: FloatArray = field(repr=False)
    change: FloatArray = field(repr=False)
    camera_px: FloatArray
    usable: BoolArray
    cut: BoolArray

    @classmethod
    def empty(cls, pooled: FloatArray) -> ClipSteps:
        """Return steps in which nothing is measured yet."""
        frames = len(pooled)
        velocity = np.zeros((2, *pooled.shape), dtype=np.float32)
        camera_px, usable, cut = np.zeros(frames, np.float32), np.zeros(frames, np.bool_), np.zeros(frames, np.bool_)
        return cls(pooled, velocity, np.zeros_like(pooled), camera_px, usable, cut)

    @property
    def nbytes(self) -> int:
        """The memory of the measurements, in bytes."""
        return self.pooled.nbytes + self.velocity.nbytes + self.change.nbytes


def clip_steps(
    frames: ByteArray, *, timestamp: TimeArray, seen: BoolArray, grid: CellGrid, options: MotionOptions
) -> ClipSteps:
    """Return the measurements of a clip that need no camera model.

    A scan spends most of its time on them.

    Args:
        frames: (T, H, W) uint8.
        timestamp: (T,) seconds; the flow between two frames is scaled to the time of one step (`MotionOptions.step_s`).
        seen: (T,) bool, False for repeated, padded or lost frames.
        grid: the grid for this frame size.
        options: the detector's options.
    """
    padded = grid.pad(frames)
    steps = ClipSteps.empty(grid.pool(padded))
    stepper = _Stepper(padded, steps, grid, options)
    before = 0
    for t in (np.flatnonzero(seen[1:]) + 1).tolist():
        steps.cut[t] = is_scene_cut(steps.pooled[before], steps.pooled[t])
        if not steps.cut[t]:
            stepper.measure(before, t, step=(timestamp[t] - timestamp[before]) / options.step_s)
        before = t
    _spread_repeats(steps)
    return steps


def map_clip(
    steps: ClipSteps, *, timestamp: TimeArray, scenes: Mapping[int, FloatArray], grid: CellGrid, options: MotionOptions
) -> ClipMaps:
    """Return the measurements of a clip, made with the backgrounds of its camera.

    Args:
        steps: the result of `clip_steps`.
        timestamp: (T,) seconds.
        scenes: the backgrounds of the camera on this grid, by scene number. The mapping may be empty.
        grid: the grid for this frame size.
        options: the detector's options.
    """
    pooled, shot = steps.pooled, np.cumsum(steps.cut, dtype=np.int64)
    gate, scene = np.empty_like(pooled), np.empty(len(pooled), dtype=np.int64)
    still = np.zeros_like(pooled) if options.still else None
    for start, end in shots(steps.cut):
        background, scene[start:end] = shown_scene(pooled[start:end], scenes)
        gate[start:end] = foreground(pooled[start:end], background, options)
        if still is not None:
            still[start:end] = grid.blur(still_cells(pooled[start:end], background, options))
    weights = steadying(timestamp, usable=steps.usable, shot=shot, sigma_s=options.steadying_s)
    changed = np.clip(grid.blur(steps.change) / np.float32(CHANGED_LEVELS), 0.0, 1.0)
    moves = steps.velocity * gate * changed
    length = np.hypot(*moves)
    usual, fast, x, y = (_mean(cells, weights, grid) for cells in (length, length ** np.float32(SPEED_POWER), *moves))
    return ClipMaps(
        grid=grid,
        timestamp=timestamp,
        velocity=np.stack([x, y], axis=-1),
        speed=fast ** np.float32(1 / SPEED_POWER),
        disorder=np.maximum(usual - np.hypot(x, y) - np.float32(options.disorder_floor_px / options.detail), 0.0),
        camera_px=steps.camera_px,
        usable=steps.usable,
        shot=shot,
        scene=scene,
        still=still,
    )


def _mean(cells: FloatArray, weights: FloatArray, grid: CellGrid) -> FloatArray:
    """Return Gaussian means of `cells` (T, h, w) over time, with the weights (T, T), and over space."""
    return grid.blur(np.tensordot(weights, cells, axes=1))


def steadying(timestamp: TimeArray, *, usable: BoolArray, shot: IndexArray, sigma_s: float) -> FloatArray:
    """Return the weights (T, T) float32 for Gaussian means over the usable frames of a clip.

    A frame that is not usable, such as the first frame of a shot, gets the mean of the nearest usable frames. If a shot has no
    usable frame, the weights of all its frames are 0.
    """
    distance = timestamp[:, None] - timestamp[None, :]
    near = usable[None, :] & (shot[:, None] == shot[None, :])
    exponent = np.where(near, -0.5 * (distance / sigma_s) ** 2, -np.inf)
    # Weights are divided by the weight of the nearest frame. Otherwise they would all be 0 if the frames are seconds apart.
    highest = exponent.max(axis=1, keepdims=True)
    weight = np.exp(exponent - np.where(np.isfinite(highest), highest, 0.0))
    total = weight.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(weight, total, out=np.zeros_like(weight), where=total > 0), dtype=np.float32)


class _Stepper:
    """Measures the steps of one clip, one by one."""

    def __init__(self, padded: ByteArray, steps: ClipSteps, grid: CellGrid, options: MotionOptions) -> None:
        self._padded, self._steps, self._grid, self._options = padded, steps, grid, options
        self._flow = DenseFlow()

    def measure(self, before: int, after: int, *, step: float) -> None:
        """Measure the step from frame `before` to frame `after`.

        `step` is the time between the two frames, in steps of `MotionOptions.step_s` seconds.
        """
        steps, pooled = self._steps, self._steps.pooled
        steps.usable[after] = True
        scale = 1.0 / min(max(step, 0.25), 4.0)
        unit = scale / self._options.detail
        light = _light(pooled[before], pooled[after])
        # The change is scaled with a square root. An object that moves twice as far changes a larger part of the frame, but not
        # a part that is twice as large.
        steps.change[after] = self._changed(self._padded[before], self._padded[after], light) * np.sqrt(scale)
        if not steps.change[after].any():
            return
        flow = self._grid.centres(self._flow.between(self._padded[before], self._padded[after]))
        floor: Any = np.float32(self._options.speed_floor_px)
        shared = camera_flow(flow, pooled[before])
        if shared is not None:
            common, moves = shared
            flow = flow - common
            shake = np.hypot(common[..., 0], common[..., 1])
            steps.camera_px[after] = moves * float(shake.mean()) * unit
            # The subtraction of the camera's motion is not exact. If the camera moves faster, more of its motion remains in the
            # flow. So the floor rises with the speed of the camera.
            floor = floor + np.float32(LEFTOVER_SHARE) * shake
        length = np.hypot(flow[..., 0], flow[..., 1])
        speed = np.clip((length - floor) * unit, 0.0, self._options.speed_cap_px)
        speed /= np.maximum(length, SHORTEST_PX)
        for axis in (0, 1):
            np.multiply(flow[..., axis], speed, out=steps.velocity[axis, after])

    def _changed(self, before: ByteArray, after: ByteArray, light: int) -> FloatArray:
        """Return the change of each cell in gray levels. The change of light and the noise are subtracted."""
        if light:
            difference = np.abs(after.astype(np.int16) - before - np.int16(light)).astype(np.uint8)
        else:
            difference = np.maximum(after, before) - np.minimum(after, before)
        cells = self._grid.pool(difference)
        noise = self._options.noise_factor * _median(cells) + self._options.change_floor
        return np.asarray(np.maximum(cells - np.float32(noise), 0.0), dtype=np.float32)


def _spread_repeats(steps: ClipSteps) -> None:
    """Spread the change at a new frame over the repeated frames before it (see `RepeatedRows`).

    For n frames, each frame gets 1/n of the motion, and 1/sqrt(n) of the difference in gray levels.
    """
    for repeat in repeated_rows(steps.change.sum(axis=(1, 2)), steps.usable):
        rows, share = slice(repeat.start, repeat.end), 1.0 / min(repeat.steps, LONGEST_STEPS)
        steps.velocity[:, rows] = steps.velocity[:, repeat.source, None] * np.float32(share)
        steps.change[rows] = steps.change[repeat.source] * np.float32(np.sqrt(share))
        steps.camera_px[rows] = steps.camera_px[repeat.source] * np.float32(share)


def is_scene_cut(before: FloatArray, after: FloatArray) -> bool:
    """Return True if two consecutive pooled frames (h, w) differ in more than brightness."""
    most = CUT_SHARE * before.size
    if np.count_nonzero(np.abs(after - before) > CUT_LEVELS) <= most:
        return False
    return bool(np.count_nonzero(np.abs(after - match_light(before, after)) > CUT_LEVELS) > most)


def _light(before: FloatArray, after: FloatArray) -> int:
    """Return the gray levels by which the whole frame became lighter."""
    if abs(float(after.mean()) - float(before.mean())) < SAME_LIGHT_LEVELS:
        return 0
    return round(_median(after - before))


def _median(values: FloatArray) -> float:
    # Not np.partition: with AVX-512, it is much slower than np.sort if many values are equal (numpy 2.4).
    return float(np.sort(values, axis=None)[values.size // 2])


def shots(cut: BoolArray) -> list[tuple[int, int]]:
    """Return (start, end) of each shot.

    `cut` (T,) is True for the first frame of each shot except the first shot.
    """
    starts = [0, *np.flatnonzero(cut).tolist()]
    return list(zip(starts, [*starts[1:], len(cut)], strict=True))
