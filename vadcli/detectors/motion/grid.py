"""The grid of cells that everything is measured on.

How much faster things move lower in the picture, where they are nearer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from vadcli.types import ByteArray, FloatArray


@dataclass(frozen=True)
class Grid:
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
def grid_for(height_px: int, width_px: int, cell_px: int, box_cells: int) -> Grid:
    """The grid of a picture size; a picture smaller than a cell is one cell."""
    h, w = -(-height_px // cell_px), -(-width_px // cell_px)
    wide = 2 * box_cells - 1
    return Grid(height_px, width_px, cell_px, _box(h, box_cells), _box(w, box_cells).T, _box(h, wide), _box(w, wide).T)


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

    def factors(self, grid: Grid) -> FloatArray:
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
