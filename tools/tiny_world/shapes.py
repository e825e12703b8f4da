"""Outlines as signed distances in units of the shape's radius: positive outside, negative inside.

x points to the right, y points down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tools.tiny_world.words import SHAPES
from vadcli.types import FloatArray

Outline = Callable[[FloatArray, FloatArray], FloatArray]


def _circle(x: FloatArray, y: FloatArray) -> FloatArray:
    outside: FloatArray = np.hypot(x, y) - np.float32(0.92)
    return outside


def _square(x: FloatArray, y: FloatArray) -> FloatArray:
    outside: FloatArray = np.maximum(np.abs(x), np.abs(y)) - np.float32(0.8)
    return outside


def _triangle(x: FloatArray, y: FloatArray) -> FloatArray:
    flank = np.float32(0.867) * np.abs(x) - np.float32(0.499) * (y + 1)
    outside: FloatArray = np.maximum(flank, y - np.float32(0.65))
    return outside


def _star(x: FloatArray, y: FloatArray) -> FloatArray:
    fifth, notch = np.float32(2 * np.pi / 5), 0.45
    # All ten half tips of the star are folded onto one: tip at angle 0 and radius 1, notch at fifth / 2.
    angle = np.abs((np.arctan2(x, -y) + fifth / 2) % fifth - fifth / 2)
    radius = np.hypot(x, y)
    across, along = notch * np.sin(np.pi / 5), 1 - notch * np.cos(np.pi / 5)
    scale = np.hypot(across, along)
    tip = (radius * np.cos(angle) - 1) * np.float32(across / scale)
    outside: FloatArray = tip + radius * np.sin(angle) * np.float32(along / scale)
    return outside


def _cross(x: FloatArray, y: FloatArray) -> FloatArray:
    x, y = np.abs(x), np.abs(y)
    long, thick = np.float32(0.95), np.float32(0.33)
    outside: FloatArray = np.minimum(np.maximum(x - long, y - thick), np.maximum(x - thick, y - long))
    return outside


def _ring(x: FloatArray, y: FloatArray) -> FloatArray:
    outside: FloatArray = np.abs(np.hypot(x, y) - np.float32(0.7)) - np.float32(0.25)
    return outside


def _heart(x: FloatArray, y: FloatArray) -> FloatArray:
    x = np.abs(x)
    lobes = np.hypot(x - np.float32(0.48), y + np.float32(0.36)) - np.float32(0.52)
    tip = np.maximum(np.float32(0.758) * x + np.float32(0.653) * (y - np.float32(0.98)), -np.float32(0.15) - y)
    core = np.hypot(x, y + np.float32(0.02)) - np.float32(0.46)  # fills the gap in the middle
    outside: FloatArray = np.minimum(np.minimum(lobes, tip), core)
    return outside


def _crescent(x: FloatArray, y: FloatArray) -> FloatArray:
    outside: FloatArray = np.maximum(np.hypot(x, y) - np.float32(0.95), np.float32(0.78) - np.hypot(x - np.float32(0.45), y))
    return outside


def _box(x: FloatArray, y: FloatArray) -> FloatArray:
    outside: FloatArray = np.maximum(np.abs(x), np.abs(y)) - 1
    return outside


def _lump(x: FloatArray, y: FloatArray) -> FloatArray:
    angle = np.arctan2(y, x)
    outside: FloatArray = (
        np.hypot(x, y) - np.float32(0.72) - np.float32(0.16) * np.sin(2 * angle) - np.float32(0.1) * np.cos(5 * angle)
    )
    return outside


OUTLINES: Mapping[str, Outline] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "crescent": _crescent,
    "box": _box,
    "lump": _lump,
}
"""The named shapes, and `box` and `lump` for things without a name. All are within 1.15 radii."""

assert set(SHAPES) < set(OUTLINES)
