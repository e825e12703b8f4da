"""The view of a camera: the grid of cells, the backgrounds, and the motion of the camera itself.

All measurements are made on a grid of square cells. A background shows an empty scene, as one gray level per cell. If the
camera pans, tilts, zooms or turns, the optical flow of the whole frame is an affine field: a linear function of the position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadcli.detectors.motion import MotionOptions
from vadcli.types import BoolArray, ByteArray, FloatArray, TimeArray


@dataclass(frozen=True)
class CellGrid:
    """Square cells over a frame. The last row and the last column may extend past the edge of the frame.

    Attributes:
        height_px, width_px: size of the frame.
        cell_px: side of a cell, at most 16.
        blur_rows, blur_columns: (h, h) and (w, w) float32, the matrices that smooth a map over its rows and over its columns.
    """

    height_px: int
    width_px: int
    cell_px: int
    blur_rows: FloatArray = field(repr=False)
    blur_columns: FloatArray = field(repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """The number of cells (h, w)."""
        return len(self.blur_rows), len(self.blur_columns)

    def pad(self, pictures: ByteArray) -> ByteArray:
        """Enlarge pictures (..., H, W) to whole cells, (..., h * cell, w * cell), by repeating border pixels."""
        h, w = self.shape
        short = (h * self.cell_px - self.height_px, w * self.cell_px - self.width_px)
        if not any(short):
            return pictures
        return np.pad(pictures, [*[(0, 0)] * (pictures.ndim - 2), (0, short[0]), (0, short[1])], mode="edge")

    def pool(self, padded: ByteArray) -> FloatArray:
        """Return the mean (..., h, w) float32 of each cell of `padded` (..., h * cell, w * cell) uint8."""
        h, w = self.shape
        rows = padded.reshape(*padded.shape[:-2], h, self.cell_px, w * self.cell_px).sum(axis=-2, dtype=np.uint16)
        total = rows[..., 0 :: self.cell_px].copy()
        for column in range(1, self.cell_px):
            total += rows[..., column :: self.cell_px]
        return np.asarray(total * np.float32(1.0 / self.cell_px**2), dtype=np.float32)

    def centres(self, pictures: FloatArray) -> FloatArray:
        """Return the values (h, w, ...) of `pictures` (H, W, ...) at the middle of each cell."""
        h, w = self.shape
        middle = self.cell_px // 2
        if self.height_px > (h - 1) * self.cell_px + middle and self.width_px > (w - 1) * self.cell_px + middle:
            return pictures[middle :: self.cell_px, middle :: self.cell_px]
        y = np.minimum(np.arange(h) * self.cell_px + middle, self.height_px - 1)
        x = np.minimum(np.arange(w) * self.cell_px + middle, self.width_px - 1)
        return np.asarray(pictures[y].take(x, axis=1), dtype=np.float32)

    def blur(self, cells: FloatArray) -> FloatArray:
        """Smooth `cells` (..., h, w) over space with Gaussian means. Only cells inside the frame count."""
        return np.asarray(self.blur_rows @ cells @ self.blur_columns, dtype=np.float32)

    def positions(self) -> FloatArray:
        """Return the positions (h, w, 2) float32 of the centres of the cells: x and y in frame widths."""
        h, w = self.shape
        y = (np.arange(h, dtype=np.float32) + 0.5) / w
        x = (np.arange(w, dtype=np.float32) + 0.5) / w
        return np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)


@lru_cache(maxsize=32)
def grid_for(height_px: int, width_px: int, cell_px: int, blur_cells: float) -> CellGrid:
    """Return the grid for a frame size. A frame that is smaller than a cell has one cell."""
    h, w = -(-height_px // cell_px), -(-width_px // cell_px)
    return CellGrid(height_px, width_px, cell_px, _gaussian(h, blur_cells), _gaussian(w, blur_cells).T)


SMALLEST_WEIGHT = 1e-30
"""Weights below this are set to 0. This changes no result, and saves time: products of tiny numbers are 100 times slower."""


def _gaussian(cells: int, sigma: float) -> FloatArray:
    index = np.arange(cells)
    matrix = np.exp(-0.5 * ((index[:, None] - index[None, :]) / sigma) ** 2).astype(np.float32)
    matrix /= matrix.sum(axis=1, keepdims=True)
    return np.where(matrix < SMALLEST_WEIGHT, np.float32(0.0), matrix)


DISAGREE_LEVELS = 15.0
"""A cell differs from a background if, after light matching, they differ by more than this many gray levels."""

MOST_OF_PICTURE = 0.4
"""If more than this share of the cells differs from a background, the frame shows another scene."""

SAME_PATTERN = 0.6
"""Two frames show different scenes if the correlation of their cells is below this."""

FLAT_LEVELS = 4.0
"""If the standard deviation of a frame's cells is less than this many gray levels, the frame has no pattern to compare."""

FLICKER_LEVELS = 1.0
"""If a frame and its shot differ in mean by more than this many gray levels, the frame's light is matched separately."""

MEDIAN_PICTURES = 9
"""The median of a shot is computed from at most this many of its frames."""

MATCH_PASSES = 3
MATCH_SCALE = 8.0


def match_light(reference: FloatArray, pictures: FloatArray) -> FloatArray:
    """Return `reference` (h, w) once per picture, with a gain and an offset that match the light of the picture.

    Iterated weighted least squares finds the gain and the offset. Cells that fit badly, for example because an
    object is in only one of the two frames, get a low weight.

    Args:
        reference: (h, w) float32.
        pictures: (..., h, w) float32; the result has the same shape.
    """
    x, y = reference.reshape(1, -1), pictures.reshape(-1, reference.size)
    residual = y - x - median_of((y - x).T)[:, None]
    gain, offset = np.ones((len(y), 1)), np.zeros((len(y), 1))
    for _ in range(MATCH_PASSES):
        weight = 1.0 / (1.0 + (residual / np.float32(MATCH_SCALE)) ** 2)
        total = _sums(weight)
        mean_x, mean_y = _sums(weight * x) / total, _sums(weight * y) / total
        away = x - mean_x.astype(np.float32)
        spread = _sums(weight * away**2)
        slope = np.divide(
            _sums(weight * away * (y - mean_y.astype(np.float32))), spread, out=np.ones_like(spread), where=spread > total
        )
        gain = np.clip(slope, 0.5, 2.0)
        offset = mean_y - gain * mean_x
        residual = y - gain.astype(np.float32) * x - offset.astype(np.float32)
    return (gain.astype(np.float32) * x + offset.astype(np.float32)).reshape(pictures.shape)


def _sums(rows: FloatArray) -> TimeArray:
    """Return the sum (K, 1) float64 of each row (K, n) float32. The values are added as float32."""
    return np.asarray(rows.sum(axis=1, keepdims=True), dtype=np.float64)


def median_of(values: NDArray[Any]) -> Any:
    """Return the median (...) of values (n, ...) over the first axis, n > 0.

    This is faster than np.median, which makes many checks and imports np.ma. It is also faster than np.partition, which is slow
    with AVX-512 if many values are equal (numpy 2.4).
    """
    half = len(values) // 2
    ordered = np.sort(values, axis=0)
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def likeness(background: FloatArray, picture: FloatArray) -> float:
    """Return how similar a background and a frame (h, w) are.

    The result is at most 1; it is negative if the frame shows another scene. In the same scene, most cells are equal after the
    light is matched, and light and dark cells are in the same places.
    """
    differ = float(np.mean(np.abs(picture - match_light(background, picture)) > DISAGREE_LEVELS))
    if differ > MOST_OF_PICTURE:
        return -differ
    a, b = background - background.mean(), picture - picture.mean()
    spread = float(np.sqrt((a * a).mean() * (b * b).mean()))
    if spread > FLAT_LEVELS**2 and float((a * b).mean()) < SAME_PATTERN * spread:
        return -1.0
    return 1.0 - differ


def learn_scenes(shots: Sequence[FloatArray], most: int) -> list[FloatArray]:
    """Return backgrounds (h, w) for one frame size, the background of the most frequent scene first.

    A shot consists of pooled frames (T, h, w). Shots that differ from all scenes found so far become the next scene. Examples
    are shots at night, and shots after the camera was turned. `most` is the largest number of backgrounds to return.
    """
    medians = [shot_median(shot) for shot in shots]
    groups: list[list[int]] = []
    left = list(range(len(medians)))
    while left:
        groups.append(_alike(medians, left))
        left = [k for k in left if k not in groups[-1]]
    groups.sort(key=lambda group: -sum(len(shots[k]) for k in group))
    backgrounds = (median_of(np.stack([medians[k] for k in group])) for group in groups[:most])
    return [(np.round(background * 4.0) / 4.0).astype(np.float32) for background in backgrounds]


def _alike(medians: Sequence[FloatArray], left: Sequence[int]) -> list[int]:
    """Return the shots in `left` that are similar to the median of all shots in `left`.

    If the shots show different places, perhaps no shot is similar to this median. If so, return the shots that are similar to
    the first shot.
    """
    for centre in (median_of(np.stack([medians[k] for k in left])).astype(np.float32), medians[left[0]]):
        alike = [k for k in left if likeness(centre, medians[k]) > 0]
        if alike:
            return alike
    return [left[0]]


def shown_scene(shot: FloatArray, scenes: Mapping[int, FloatArray]) -> tuple[FloatArray, int]:
    """Return the background (h, w) of a shot, and the number of the scene that the shot shows.

    The shot consists of pooled frames (T, h, w). `scenes` maps the numbers of the camera's scenes to their backgrounds. The
    background is made as light as the shot. If no scene is similar to the shot, the number is -1, and the background is the
    median of the shot.
    """
    median = shot_median(shot)
    alike = {number: likeness(scene, median) for number, scene in scenes.items()}
    best = max(alike, key=lambda number: alike[number], default=-1)
    if best >= 0 and alike[best] > 0:
        return match_light(scenes[best], median), best
    return median, -1


def foreground(shot: FloatArray, background: FloatArray, options: MotionOptions) -> FloatArray:
    """Return weights (T, h, w) for a shot (T, h, w): 0 for background, 1 for foreground, or between."""
    distance = shot - background
    light = distance.mean(axis=(1, 2))
    flickers = np.flatnonzero(np.abs(light - median_of(light)) > FLICKER_LEVELS)
    distance[flickers] = shot[flickers] - match_light(background, shot[flickers])
    gate = (np.abs(distance) - options.foreground_low) / (options.foreground_high - options.foreground_low)
    return np.asarray(np.clip(gate, 0.0, 1.0), dtype=np.float32)


def shot_median(shot: FloatArray) -> FloatArray:
    """Return the median (h, w) of at most MEDIAN_PICTURES frames of a shot (T, h, w)."""
    spread = np.linspace(0, len(shot) - 1, min(len(shot), MEDIAN_PICTURES)).round().astype(np.int64)
    return np.asarray(median_of(shot[spread]), dtype=np.float32)


TEXTURE_LEVELS = 2.0
"""A cell has texture if it differs from its neighbours by more than this many gray levels.

Optical flow is reliable only in cells with texture.
"""

FEWEST_TEXTURED = 0.05
"""If the share of cells with texture is below this, the motion of the camera is unknown."""

STILL_PX = 0.05
"""A cell stands still if its flow is less than this, in pixels, in both directions.

If most cells with texture stand still, the camera stands still too.
"""

STRIDE = 2
"""Camera motion is fitted to every second cell in each direction; more cells are not necessary."""

TOGETHER_SHARE = 0.5
"""The camera's motion is known only if one affine field fits more than this share of the cells with texture."""

LEFT_SHARE = 0.4
"""The camera moves only if subtracting the affine field leaves less than this share of the flow.

The limit is necessary because an affine field removes a little of the flow even if the flow is only noise.
"""

FIT_PASSES = 3

_RIDGE = np.diag([1e-6, 1e-2, 1e-2])
"""Keeps the slopes of the affine field near 0 if all cells with texture are close together."""


def camera_flow(flow: FloatArray, picture: FloatArray) -> tuple[FloatArray, bool] | None:
    """Return the part of the flow that the whole frame shares, and whether the camera moves.

    Args:
        flow: (h, w, 2), the optical flow of each cell in pixels.
        picture: (h, w) gray levels; only the flow of cells with texture counts.

    Returns:
        The shared flow (h, w, 2) in pixels, and True if it explains most of the flow, False if it may be noise.

        None if the camera stands still, or if the frame has too little texture or no shared flow.
    """
    solid = _textured(picture)[::STRIDE, ::STRIDE]
    seen = flow[::STRIDE, ::STRIDE][solid].astype(np.float64)  # (n, 2)
    still = (np.abs(seen[:, 0]) < STILL_PX) & (np.abs(seen[:, 1]) < STILL_PX)
    if len(seen) < max(6, FEWEST_TEXTURED * solid.size) or np.count_nonzero(still) > 0.5 * len(seen):
        return None
    where = _where(flow.shape[0], flow.shape[1])
    basis = where[::STRIDE, ::STRIDE][solid]
    coefficients = _fit(basis, seen)
    fitted = basis @ coefficients
    away = np.hypot(*(seen - fitted).T)
    allowed = 0.5 + 0.25 * np.hypot(*fitted.T)
    if np.count_nonzero(away <= allowed) <= TOGETHER_SHARE * len(seen):
        return None
    moves = bool(median_of(away) < LEFT_SHARE * median_of(np.hypot(*seen.T)))
    return np.asarray(where @ coefficients, dtype=np.float32), moves


def _textured(picture: FloatArray) -> BoolArray:
    texture = np.zeros(picture.shape, dtype=np.float32)
    texture[:, 1:] += np.abs(picture[:, 1:] - picture[:, :-1])
    texture[1:] += np.abs(picture[1:] - picture[:-1])
    return texture > TEXTURE_LEVELS


@lru_cache(maxsize=32)
def _where(h: int, w: int) -> TimeArray:
    """Return, for each cell, the three terms 1, x and y of an affine field: (h, w, 3).

    x and y are measured from the middle of the frame, in frame widths.
    """
    y, x = np.mgrid[:h, :w].astype(np.float64)
    return np.stack([np.ones((h, w)), (x - (w - 1) / 2) / w, (y - (h - 1) / 2) / w], axis=-1)


def _fit(basis: TimeArray, seen: TimeArray) -> TimeArray:
    """Return the coefficients (3, 2) of the affine field that best fits the flow `seen` (n, 2) of cells.

    The rows of `basis` (n, 3) come from `_where`. This is a weighted least-squares fit: cells that do not move with most other
    cells get a low weight.
    """
    middle = np.array([median_of(seen[:, 0]), median_of(seen[:, 1])])
    away = np.hypot(*(seen - middle).T)
    ridge, coefficients = _RIDGE * len(seen), np.zeros((3, 2))
    for passed in range(FIT_PASSES):
        scale = max(0.5, (1.5 if passed == 0 else 1.0) * float(median_of(away)))
        weight = 1.0 / (1.0 + (away / scale) ** 2)
        weighted = basis * weight[:, None]
        coefficients = np.linalg.solve(weighted.T @ basis + ridge, weighted.T @ seen)
        if passed < FIT_PASSES - 1:
            away = np.hypot(*(seen - basis @ coefficients).T)
    return coefficients
