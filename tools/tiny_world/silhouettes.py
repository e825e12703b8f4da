"""Silhouettes of things, with soft edges, and their visible parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tools.tiny_world.scene import Scene, Thing
from vadcli.types import FloatArray, TimeArray

_MARGIN = 1.15  # radii; every outline is within this distance of its centre
Window = tuple[slice, slice]


def distance(outline: str, x: FloatArray, y: FloatArray) -> FloatArray:
    """Return the signed distance to an outline in radii: positive outside, negative inside.

    Args:
        outline: one of `words.SHAPES`, or `box` or `lump` for things without a name. All are within 1.15 radii.
        x, y: position in radii; x points to the right, y points down.
    """
    f = np.float32
    match outline:
        case "circle":
            signed = np.hypot(x, y) - f(0.92)
        case "square":
            signed = np.maximum(np.abs(x), np.abs(y)) - f(0.8)
        case "triangle":
            signed = np.maximum(f(0.867) * np.abs(x) - f(0.499) * (y + 1), y - f(0.65))
        case "star":
            fifth, notch = f(2 * np.pi / 5), 0.45
            # All ten halves of the tips are folded onto one half. Its tip is at angle 0 and radius 1, its notch at fifth / 2.
            angle = np.abs((np.arctan2(x, -y) + fifth / 2) % fifth - fifth / 2)
            radius = np.hypot(x, y)
            across, along = notch * np.sin(np.pi / 5), 1 - notch * np.cos(np.pi / 5)
            scale = np.hypot(across, along)
            signed = (radius * np.cos(angle) - 1) * f(across / scale) + radius * np.sin(angle) * f(along / scale)
        case "cross":
            x, y, long, thick = np.abs(x), np.abs(y), f(0.95), f(0.33)
            signed = np.minimum(np.maximum(x - long, y - thick), np.maximum(x - thick, y - long))
        case "ring":
            signed = np.abs(np.hypot(x, y) - f(0.7)) - f(0.25)
        case "heart":
            x = np.abs(x)
            lobes = np.hypot(x - f(0.48), y + f(0.36)) - f(0.52)
            tip = np.maximum(f(0.758) * x + f(0.653) * (y - f(0.98)), -f(0.15) - y)
            core = np.hypot(x, y + f(0.02)) - f(0.46)  # fills the gap in the middle
            signed = np.minimum(np.minimum(lobes, tip), core)
        case "crescent":
            signed = np.maximum(np.hypot(x, y) - f(0.95), f(0.78) - np.hypot(x - f(0.45), y))
        case "box":
            signed = np.maximum(np.abs(x), np.abs(y)) - 1
        case "lump":
            angle = np.arctan2(y, x)
            signed = np.hypot(x, y) - f(0.72) - f(0.16) * np.sin(2 * angle) - f(0.1) * np.cos(5 * angle)
        case _:
            raise ValueError(f"no outline is called {outline!r}")
    return np.asarray(signed, np.float32)


@dataclass(frozen=True, eq=False)
class Silhouette:
    """The pixels of one thing, as if it were alone, in a box that moves with the thing.

    Attributes:
        thing: the thing.
        alpha: (T, b, c) float32, the covered share of each pixel, inside and outside the frame; 0 while
            the thing is not shown.
        x, y: (T, b, c) float32, positions of the pixels on the thing, in radii; they rotate with the thing.
        top, left: (T,) int, the position of the box in the frame; the box may be partly or fully outside.
    """

    thing: Thing
    alpha: FloatArray
    x: FloatArray
    y: FloatArray
    top: list[int]
    left: list[int]

    def windows(self, size_px: int) -> Iterator[tuple[int, Window, Window]]:
        """Yield (frame, window in the frame, window in the box) for every window that is not empty."""
        tall, wide = self.alpha.shape[1:]
        for frame, (top, left) in enumerate(zip(self.top, self.left, strict=True)):
            low, high, west, east = max(top, 0), min(top + tall, size_px), max(left, 0), min(left + wide, size_px)
            if low < high and west < east and self.alpha[frame].any():
                place = (slice(low, high), slice(west, east))
                yield frame, place, (slice(low - top, high - top), slice(west - left, east - left))

    @property
    def area(self) -> FloatArray:
        """(T,) number of covered pixels, with hidden parts and parts outside the frame."""
        covered: FloatArray = self.alpha.sum(axis=(1, 2))
        return covered


def silhouettes(scene: Scene, times_s: TimeArray, size_px: int) -> list[Silhouette]:
    """Return the silhouettes of all things, the farthest first, for frames of this size."""
    sway = scene.sway.at(times_s)
    return [_silhouette(thing, times_s, sway, size_px) for thing in scene.things]


def alone(shape: Silhouette, size_px: int) -> FloatArray:
    """Return (T, H, W) coverage by one thing, as if it were alone."""
    cover = np.zeros((len(shape.alpha), size_px, size_px), np.float32)
    for frame, place, part in shape.windows(size_px):
        cover[frame][place] = shape.alpha[frame][part]
    return cover


def visible(shapes: list[Silhouette], size_px: int) -> FloatArray:
    """Return (K, T, H, W) coverage by the visible parts of each named object, the farthest first."""
    named = sum(shape.thing.role is not None for shape in shapes)
    frames = len(shapes[0].alpha) if shapes else 0
    cover = np.zeros((named, frames, size_px, size_px), np.float32)
    behind = 0
    for shape in shapes:
        own = shape.thing.role is not None
        for frame, place, part in shape.windows(size_px):
            alpha = shape.alpha[frame][part]
            if behind:
                cover[(slice(behind), frame, *place)] *= 1 - alpha
            if own:
                cover[(behind, frame, *place)] = alpha
        behind += own
    return cover


def _silhouette(thing: Thing, times_s: TimeArray, sway: TimeArray, size_px: int) -> Silhouette:
    x, y = thing.course.at(times_s)
    x, y = (x + sway[:, 0]) * size_px, (y + sway[:, 1]) * size_px
    shown = thing.shown(times_s)
    # (T,). At times at which the thing is not shown, the scale may be zero or infinite.
    radius = np.ones(len(times_s))
    radius[shown] = thing.radius * thing.course.scale(times_s[shown]) * size_px
    reach = float(radius[shown].max(initial=0.0) or 1.0) * _MARGIN
    wide, tall = thing.wide, thing.tall
    if thing.angle and wide != tall:
        wide = tall = float(np.hypot(wide, tall))
    columns, rows = (2 * int(np.ceil(reach * stretch + 1)) + 1 for stretch in (wide, tall))
    left, top = np.floor(x).astype(np.int64) - columns // 2, np.floor(y).astype(np.int64) - rows // 2
    # Pixel centres relative to the thing's centre: (T, 1, c) and (T, b, 1), in radii.
    east: FloatArray = ((left[:, None] + np.arange(columns) + 0.5 - x[:, None]) / radius[:, None]).astype(np.float32)[
        :, None, :
    ]
    south: FloatArray = ((top[:, None] + np.arange(rows) + 0.5 - y[:, None]) / radius[:, None]).astype(np.float32)[:, :, None]
    cos, sin = float(np.cos(thing.angle)), float(np.sin(thing.angle))
    across = np.asarray((east * cos + south * sin) / thing.wide, np.float32)
    down = np.asarray((south * cos - east * sin) / thing.tall, np.float32)
    px = (radius * min(thing.wide, thing.tall)).astype(np.float32)[:, None, None]
    alpha: FloatArray = np.clip(0.5 - distance(thing.outline, across, down) * px, 0, 1)
    alpha *= shown[:, None, None]
    return Silhouette(thing, alpha, across, down, top.tolist(), left.tolist())
