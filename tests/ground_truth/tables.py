"""Small score tables and data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vadcli.types import ScoreTable

SIZE = (4, 6)


def table(video: str, rows: int = 0, *, times: Sequence[float] | None = None) -> ScoreTable:
    """Return a score table with this many rows and these times; 25 rows per second by default."""
    stamps = np.arange(rows) / 25 if times is None else np.array(times, np.float64)
    n = len(stamps)
    zeros, flags = np.zeros(n, np.float32), np.ones(n, np.bool_)
    return ScoreTable(video, np.arange(n), np.arange(n), stamps, zeros, zeros, flags, flags)


def picture(path: Path, mask: np.ndarray | None = None, *, mode: str = "L") -> None:
    """Write an image, of a mask if one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(SIZE, np.uint8) if mask is None else np.asarray(mask, np.uint8) * (255 if mask.dtype == bool else 1)
    Image.fromarray(values).convert(mode).save(path)


def patch(x: int, y: int, width: int, height: int) -> np.ndarray:
    """Return a mask with one rectangle."""
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def true_rows(labels: np.ndarray) -> list[int]:
    return np.flatnonzero(labels).tolist()
