"""How much faster things move lower in the picture, where they are nearer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vadcli.detectors.motion.grid import Grid
from vadcli.types import FloatArray

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
