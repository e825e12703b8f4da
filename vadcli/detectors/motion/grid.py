"""The grid of cells that everything is measured on, and averaging onto it as two small matrix products."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from vadcli.types import FloatArray


@dataclass(frozen=True)
class Grid:
    """Cells of one picture size; a picture smaller than a cell is one cell.

    Attributes:
        height_px, width_px: the picture.
        rows: (h, H) float32, averages pixel rows into cell rows.
        columns: (W, w) float32, averages pixel columns into cell columns.
        box_rows: (h, h) float32, averages a cell with its neighbours above and below.
        box_columns: (w, w) float32, the same sideways.
    """

    height_px: int
    width_px: int
    rows: FloatArray = field(repr=False)
    columns: FloatArray = field(repr=False)
    box_rows: FloatArray = field(repr=False)
    box_columns: FloatArray = field(repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) cells."""
        return len(self.rows), self.columns.shape[1]

    def pool(self, image: FloatArray) -> FloatArray:
        """(..., H, W) -> (..., h, w): the mean of each cell."""
        return np.asarray(np.matmul(np.matmul(self.rows, image), self.columns), dtype=np.float32)

    def box(self, cells: FloatArray) -> FloatArray:
        """(..., h, w) -> (..., h, w): the mean of each cell's square, cut at the border."""
        return np.asarray(np.matmul(np.matmul(self.box_rows, cells), self.box_columns), dtype=np.float32)

    def positions(self) -> FloatArray:
        """(h, w, 2) float32: x and y of the cells' centres in picture widths."""
        h, w = self.shape
        y = (np.arange(h, dtype=np.float32) + 0.5) / w
        x = (np.arange(w, dtype=np.float32) + 0.5) / w
        return np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)


@lru_cache(maxsize=32)
def grid_for(height_px: int, width_px: int, cell_px: int, box_cells: int) -> Grid:
    """The grid of a picture size. What is left over at the right and bottom makes narrower cells."""
    rows, columns = _averaging(height_px, cell_px), _averaging(width_px, cell_px)
    return Grid(
        height_px,
        width_px,
        rows,
        np.ascontiguousarray(columns.T),
        _box(len(rows), box_cells),
        np.ascontiguousarray(_box(len(columns), box_cells).T),
    )


def _averaging(size: int, cell: int) -> FloatArray:
    owner = np.arange(size) // cell
    matrix = (owner[None, :] == np.arange(owner[-1] + 1)[:, None]).astype(np.float32)
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True), dtype=np.float32)


def _box(cells: int, box: int) -> FloatArray:
    index = np.arange(cells)
    matrix = (np.abs(index[:, None] - index[None, :]) <= box // 2).astype(np.float32)
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True), dtype=np.float32)
