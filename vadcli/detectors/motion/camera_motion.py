"""Flow that the whole picture shares: a camera that pans, tilts, zooms and turns gives an affine field."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from vadcli.types import BoolArray, FloatArray, TimeArray

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
