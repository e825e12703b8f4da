"""The grid of cells that everything is measured on.

How much faster things move lower in the picture, where they are nearer.

What the empty scene looks like, and how far a cell is from it. Backgrounds live on the grid, in gray levels.

Flow that the whole picture shares: a camera that pans, tilts, zooms and turns gives an affine field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from vadcli.detectors.motion import MotionOptions
from vadcli.types import BoolArray, ByteArray, FloatArray, TimeArray


@dataclass(frozen=True)
class CellGrid:
    """Square cells over one picture size; the last row and column may reach beyond the picture.

    Attributes:
        height_px, width_px: the picture.
        cell_px: a cell's side, at most 16.
        box_rows, box_columns: (h, h) and (w, w) float32, average a cell with its neighbours.
        wide_rows, wide_columns: the same over about twice as many.
    """

    height_px: int
    width_px: int
    cell_px: int
    box_rows: FloatArray = field(repr=False)
    box_columns: FloatArray = field(repr=False)
    wide_rows: FloatArray = field(repr=False)
    wide_columns: FloatArray = field(repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) cells."""
        return len(self.box_rows), len(self.box_columns)

    def pad(self, pictures: ByteArray) -> ByteArray:
        """(..., H, W) -> (..., h * cell, w * cell): the border repeated to whole cells."""
        h, w = self.shape
        short = (h * self.cell_px - self.height_px, w * self.cell_px - self.width_px)
        if not any(short):
            return pictures
        return np.pad(pictures, [*[(0, 0)] * (pictures.ndim - 2), (0, short[0]), (0, short[1])], mode="edge")

    def pool(self, padded: ByteArray) -> FloatArray:
        """(..., h * cell, w * cell) uint8 -> (..., h, w) float32: the mean of each cell."""
        h, w = self.shape
        rows = padded.reshape(*padded.shape[:-2], h, self.cell_px, w * self.cell_px).sum(axis=-2, dtype=np.uint16)
        total = rows[..., 0 :: self.cell_px].copy()
        for column in range(1, self.cell_px):
            total += rows[..., column :: self.cell_px]
        return np.asarray(total * np.float32(1.0 / self.cell_px**2), dtype=np.float32)

    def centres(self, pictures: FloatArray) -> FloatArray:
        """(H, W, ...) -> (h, w, ...): the value at each cell's middle; a view."""
        h, w = self.shape
        middle = self.cell_px // 2
        if self.height_px > (h - 1) * self.cell_px + middle and self.width_px > (w - 1) * self.cell_px + middle:
            return pictures[middle :: self.cell_px, middle :: self.cell_px]
        y = np.minimum(np.arange(h) * self.cell_px + middle, self.height_px - 1)
        x = np.minimum(np.arange(w) * self.cell_px + middle, self.width_px - 1)
        return np.asarray(pictures[np.ix_(y, x)], dtype=np.float32)

    def box(self, cells: FloatArray) -> FloatArray:
        """(..., h, w) -> (..., h, w): the mean of each cell's square, cut at the border."""
        return np.asarray(self.box_rows @ cells @ self.box_columns, dtype=np.float32)

    def wide_box(self, cells: FloatArray) -> FloatArray:
        """(..., h, w) -> (..., h, w): the mean of the square of about twice the side."""
        return np.asarray(self.wide_rows @ cells @ self.wide_columns, dtype=np.float32)

    def positions(self) -> FloatArray:
        """(h, w, 2) float32: x and y of the cells' centres in picture widths."""
        h, w = self.shape
        y = (np.arange(h, dtype=np.float32) + 0.5) / w
        x = (np.arange(w, dtype=np.float32) + 0.5) / w
        return np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)


@lru_cache(maxsize=32)
def grid_for(height_px: int, width_px: int, cell_px: int, box_cells: int) -> CellGrid:
    """The grid of a picture size; a picture smaller than a cell is one cell."""
    h, w = -(-height_px // cell_px), -(-width_px // cell_px)
    wide = 2 * box_cells - 1
    return CellGrid(height_px, width_px, cell_px, _box(h, box_cells), _box(w, box_cells).T, _box(h, wide), _box(w, wide).T)


def _box(cells: int, box: int) -> FloatArray:
    index = np.arange(cells)
    matrix = (np.abs(index[:, None] - index[None, :]) <= box // 2).astype(np.float32)
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True), dtype=np.float32)


RIDGE_CELLS = 100.0
"""The slope is drawn towards none as if by this many cells of the usual spread in height."""

SPREAD = 0.15
"""That usual spread: standard deviation of the cells' heights, in picture heights."""

STEEPEST = 3.0
"""Largest slope of ln(motion) over a picture's height."""


@dataclass(frozen=True)
class Perspective:
    """ln(motion) grows by `slope` from the top of the picture to its bottom, between `top` and `bottom`; flat beyond.

    Attributes:
        slope: e-folds a picture height.
        centre, top, bottom: in picture heights from the top.
    """

    slope: float = 0.0
    centre: float = 0.5
    top: float = 0.0
    bottom: float = 1.0

    def factors(self, grid: CellGrid) -> FloatArray:
        """(h, 1) float32: what motion in each row of cells is divided by."""
        rows = grid.shape[0]
        height = np.clip((np.arange(rows) + 0.5) / rows, self.top, self.bottom) - self.centre
        return np.exp(self.slope * height).astype(np.float32)[:, None]

    def to_json(self) -> dict[str, float]:
        """As stored in a camera model."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Perspective:
        """The inverse of `to_json`."""
        return cls(**{name: float(document[name]) for name in ("slope", "centre", "top", "bottom")})


def fit_perspective(motion: FloatArray, height: FloatArray) -> Perspective:
    """Fit to (M,) motion > 0 of moving cells and their heights in the picture, 0 the top and 1 the bottom."""
    if not len(motion):
        return Perspective()
    centre = float(height.mean())
    away, level = height - centre, np.log(motion)
    slope = float((away * (level - level.mean())).sum() / ((away**2).sum() + RIDGE_CELLS * SPREAD**2))
    top, bottom = (float(edge) for edge in np.quantile(height, [0.05, 0.95]))
    return Perspective(min(STEEPEST, max(-STEEPEST, slope)), centre, top, bottom)


DISAGREE_LEVELS = 15.0
"""A cell this many gray levels from the background, after matching, disagrees with it."""

MOST_OF_PICTURE = 0.4
"""A background that disagrees on more of the picture than this shows another scene."""

SAME_PATTERN = 0.6
"""Correlation over the cells below which two pictures show different scenes."""

FLAT_LEVELS = 4.0
"""Pictures whose cells spread by less have no pattern to compare."""

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


def likeness(background: FloatArray, picture: FloatArray) -> float:
    """How alike two (h, w) pictures are under the same light, 1 at most; below 0 where they show different scenes.

    They show the same scene where most cells agree once the light is matched, and where light and dark lie alike.
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
    """Backgrounds of one picture size, from the pooled pictures (T, h, w) of each shot; at most `most`, commonest first.

    Shots whose median is unlike the scenes found so far (a turned camera, night instead of day, another place) make the next.
    """
    medians = [_median(shot) for shot in shots]
    groups: list[list[int]] = []
    left = list(range(len(medians)))
    while left:
        groups.append(_alike(medians, left))
        left = [k for k in left if k not in groups[-1]]
    groups.sort(key=lambda group: -sum(len(shots[k]) for k in group))
    backgrounds = (np.median(np.stack([medians[k] for k in group]), axis=0) for group in groups[:most])
    return [(np.round(background * 4.0) / 4.0).astype(np.float32) for background in backgrounds]


def _alike(medians: Sequence[FloatArray], left: Sequence[int]) -> list[int]:
    """The shots that show what their common median shows; a median of different places shows none, then the first's."""
    for centre in (np.median(np.stack([medians[k] for k in left]), axis=0).astype(np.float32), medians[left[0]]):
        alike = [k for k in left if likeness(centre, medians[k]) > 0]
        if alike:
            return alike
    return [left[0]]


def foreground(shot: FloatArray, scenes: Mapping[int, FloatArray], options: MotionOptions) -> tuple[FloatArray, int]:
    """What of a shot isn't background, and which scene it shows.

    Args:
        shot: (T, h, w) pooled pictures.
        scenes: backgrounds (h, w) by number.
        options: the detector's.

    Returns:
        (T, h, w) in [0, 1], 0 where the empty scene shows and 1 where something is, and the scene's number. -1 where the shot
        is like none of them; its own median is the background then.
    """
    median = _median(shot)
    alike = {number: likeness(scene, median) for number, scene in scenes.items()}
    best = max(alike, key=lambda number: alike[number], default=-1)
    if best >= 0 and alike[best] > 0:
        background = match_light(scenes[best], median)
    else:
        best, background = -1, median
    distance = shot - background
    light = distance.mean(axis=(1, 2))
    for t in np.flatnonzero(np.abs(light - np.median(light)) > FLICKER_LEVELS):
        distance[t] = shot[t] - match_light(background, shot[t])
    gate = (np.abs(distance) - options.foreground_low) / (options.foreground_high - options.foreground_low)
    return np.asarray(np.clip(gate, 0.0, 1.0), dtype=np.float32), best


def _median(shot: FloatArray) -> FloatArray:
    spread = np.linspace(0, len(shot) - 1, min(len(shot), MEDIAN_PICTURES)).round().astype(np.int64)
    return np.asarray(np.median(shot[spread], axis=0), dtype=np.float32)


TEXTURE_LEVELS = 2.0
"""Gray levels between neighbouring cells from which flow can be trusted."""

FEWEST_TEXTURED = 0.05
"""With a smaller share of textured cells nothing tells whether the camera moves."""

STILL_PX = 0.05
"""A cell whose flow is less stands still; where most of the textured cells do, so does the camera."""

STRIDE = 2
"""Every second cell each way is enough to see it by."""

TOGETHER_SHARE = 0.5
"""Camera motion is what more than this share of the textured cells do together."""

LEFT_SHARE = 0.4
"""A field that leaves more of the flow than this is no camera that moves: noise has a mean, too."""

FIT_PASSES = 3


def camera_flow(flow: FloatArray, picture: FloatArray) -> tuple[FloatArray, bool] | None:
    """The part of the flow that the whole picture shares.

    Args:
        flow: (h, w, 2) pixels.
        picture: (h, w) gray levels, to see where there is texture.

    Returns:
        (h, w, 2) pixels, and whether it explains most of the flow: then the camera moves, else it is a drift within noise.
        None where the picture stands still or nothing tells.
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
    moves = bool(np.median(away) < LEFT_SHARE * np.median(np.hypot(*seen.T)))
    return np.asarray(where @ coefficients, dtype=np.float32), moves


def _textured(picture: FloatArray) -> BoolArray:
    texture = np.zeros(picture.shape, dtype=np.float32)
    texture[:, 1:] += np.abs(picture[:, 1:] - picture[:, :-1])
    texture[1:] += np.abs(picture[1:] - picture[:-1])
    return texture > TEXTURE_LEVELS


@lru_cache(maxsize=32)
def _where(h: int, w: int) -> TimeArray:
    """(h, w, 3): 1, x, y with the picture's middle at 0 and its width 1."""
    y, x = np.mgrid[:h, :w].astype(np.float64)
    return np.stack([np.ones((h, w)), (x - (w - 1) / 2) / w, (y - (h - 1) / 2) / w], axis=-1)


def _fit(basis: TimeArray, seen: TimeArray) -> TimeArray:
    """(n, 3) and (n, 2) -> (3, 2): weighted least squares; cells that move on their own lose their say."""
    middle = np.median(seen, axis=0)
    away = np.hypot(*(seen - middle).T)
    coefficients = np.zeros((3, 2))
    for passed in range(FIT_PASSES):
        scale = max(0.5, (1.5 if passed == 0 else 1.0) * float(np.median(away)))
        weight = 1.0 / (1.0 + (away / scale) ** 2)
        weighted = basis * weight[:, None]
        # The ridge keeps slopes at 0 where the textured cells lie together.
        normal = weighted.T @ basis + np.diag([1e-6, 1e-2, 1e-2]) * len(seen)
        coefficients = np.linalg.solve(normal, weighted.T @ seen)
        away = np.hypot(*(seen - basis @ coefficients).T)
    return coefficients
