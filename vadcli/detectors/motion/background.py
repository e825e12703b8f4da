"""What the empty scene looks like, and how far a cell is from it. Backgrounds live on the grid, in gray levels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vadcli.detectors.motion.options import MotionOptions
from vadcli.types import FloatArray

DISAGREE_LEVELS = 15.0
"""A cell this many gray levels from the background, after matching, disagrees with it."""

MOST_OF_PICTURE = 0.4
"""A background that disagrees on more of the picture than this shows another scene."""

FLICKER_LEVELS = 1.0
"""Pictures whose mean distance from the background stands out by more are matched one by one."""

MEDIAN_PICTURES = 9
"""Pictures of a shot that its median is taken over."""

MATCH_PASSES = 3
MATCH_SCALE = 8.0


def match_light(reference: FloatArray, picture: FloatArray) -> FloatArray:
    """`reference` under the light of `picture`: gain and offset by iterated weighted least squares.

    Cells that fit badly, where something stands in one of the two, lose their say. Both (h, w); so is the answer.
    """
    x, y = reference.ravel(), picture.ravel()
    residual = y - x - np.median(y - x)
    gain, offset = 1.0, 0.0
    for _ in range(MATCH_PASSES):
        weight = 1.0 / (1.0 + (residual / MATCH_SCALE) ** 2)
        total = float(weight.sum())
        mean_x, mean_y = float((weight * x).sum()) / total, float((weight * y).sum()) / total
        spread = float((weight * (x - mean_x) ** 2).sum())
        slope = float((weight * (x - mean_x) * (y - mean_y)).sum()) / spread if spread > total else 1.0
        gain = min(2.0, max(0.5, slope))
        offset = mean_y - gain * mean_x
        residual = y - gain * x - offset
    return np.asarray(gain * reference + offset, dtype=np.float32)


def disagreement(background: FloatArray, picture: FloatArray) -> float:
    """Share of the cells that differ once the light is matched."""
    return float(np.mean(np.abs(picture - match_light(background, picture)) > DISAGREE_LEVELS))


def learn_scenes(bursts: Sequence[FloatArray], most: int) -> list[FloatArray]:
    """Backgrounds of one picture size, from the pooled pictures (T, h, w) of each burst; at most `most`, largest first.

    Bursts whose median disagrees with the scenes found so far (a turned camera, night instead of day) make the next one.
    """
    medians = [np.asarray(np.median(burst, axis=0), dtype=np.float32) for burst in bursts]
    left = list(range(len(medians)))
    scenes: list[FloatArray] = []
    while left and len(scenes) < most:
        scene = np.asarray(np.median(np.stack([medians[k] for k in left]), axis=0), dtype=np.float32)
        near = [k for k in left if disagreement(scene, medians[k]) <= MOST_OF_PICTURE]
        if not near:
            # A median over different places looks like none of them: start from one that is there.
            scene = medians[left[0]]
            near = [k for k in left if disagreement(scene, medians[k]) <= MOST_OF_PICTURE]
        scenes.append(np.asarray(np.median(np.stack([medians[k] for k in near]), axis=0), dtype=np.float32))
        left = [k for k in left if k not in near]
    return scenes


def foreground(shot: FloatArray, scenes: Sequence[FloatArray], options: MotionOptions) -> FloatArray:
    """(T, h, w) pooled pictures of one shot -> (T, h, w) in [0, 1]: 0 where the empty scene shows, 1 where something is.

    The nearest of the camera's scenes is the background; the shot's own median where none of them is near.
    """
    spread = np.linspace(0, len(shot) - 1, min(len(shot), MEDIAN_PICTURES)).round().astype(np.int64)
    median = np.asarray(np.median(shot[spread], axis=0), dtype=np.float32)
    background = median
    if scenes:
        shares = [disagreement(scene, median) for scene in scenes]
        best = int(np.argmin(shares))
        if shares[best] <= MOST_OF_PICTURE:
            background = match_light(scenes[best], median)
    distance = shot - background
    light = distance.mean(axis=(1, 2))
    for t in np.flatnonzero(np.abs(light - np.median(light)) > FLICKER_LEVELS):
        distance[t] = shot[t] - match_light(background, shot[t])
    gate = (np.abs(distance) - options.foreground_low) / (options.foreground_high - options.foreground_low)
    return np.asarray(np.clip(gate, 0.0, 1.0), dtype=np.float32)
