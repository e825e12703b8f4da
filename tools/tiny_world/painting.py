"""Paints scenes: ground, things, light, noise and compression, with numpy only.

Masks come from `silhouettes`.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from tools.tiny_world.scene import Film, Scene
from tools.tiny_world.silhouettes import Silhouette
from vadcli.types import ByteArray, FloatArray, TimeArray

_OCTAVES = ((4, 26.0), (9, 16.0), (20, 9.0), (45, 6.0))  # knots per side, grey levels
_BLOCK = 8
# Quantisation tables for brightness and colour at quality 50, from annex K of the JPEG standard.
_LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
_CHROMA = np.full((8, 8), 99, np.float32)
_CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
_TO_RGB = np.linalg.inv(_TO_YCC).astype(np.float32)


def paint(scene: Scene, shapes: list[Silhouette], times_s: TimeArray, size_px: int, *, take: int = 0) -> ByteArray:
    """Return the scene's frames, (T, H, W, 3) uint8.

    Args:
        scene: the scene.
        shapes: silhouettes of the scene at these times and in this size.
        times_s: (T,) seconds.
        size_px: side of the frame.
        take: number of the clip in a long scene, so that the noise does not repeat.
    """
    frames = _ground(scene, times_s, size_px)
    for shape in shapes:
        look = shape.thing.paint
        contrast, number, angle = look.stripes
        factor = 1 + np.float32(look.shade[0]) * shape.x + np.float32(look.shade[1]) * shape.y
        if contrast:
            along = np.float32(number * np.cos(angle)) * shape.x + np.float32(number * np.sin(angle)) * shape.y
            factor += np.float32(contrast) * np.sin(along)
        surface = factor[..., None] * np.array(look.colour, np.float32)  # (T, b, c, 3)
        for frame, place, part in shape.windows(size_px):
            window = frames[frame][place]
            window += shape.alpha[frame][part][..., None] * (surface[frame][part] - window)
    light, steps = scene.light, np.linspace(-1, 1, size_px)
    over_picture = 1 + light.slope[0] * steps[None, :] + light.slope[1] * steps[:, None]
    lit = (over_picture[..., None] * np.array(light.tint)).astype(np.float32)  # (H, W, 3)
    for frame, brightness in enumerate(light.over_time(times_s)):
        frames[frame] *= lit * np.float32(brightness)
    return _develop(frames, scene.film, np.random.default_rng([scene.grain_seed, 1, take]))


def _ground(scene: Scene, times_s: TimeArray, size_px: int) -> FloatArray:
    """Return the ground in the frames of the shaking camera, (T, H, W, 3) float32."""
    spare = int(np.ceil(scene.sway.reach * size_px)) + 1
    ground = _texture(scene, size_px + 2 * spare)
    off = spare - scene.sway.at(times_s) * size_px  # (T, 2) px, the frame's corner on the ground
    whole = np.floor(off).astype(np.int64)
    part = (off - whole).astype(np.float32)
    frames = np.empty((len(times_s), size_px, size_px, 3), np.float32)
    for frame, ((left, top), (u, v)) in enumerate(zip(whole, part, strict=True)):
        rows = ground[top : top + size_px + 1, left : left + size_px + 1]
        rows = rows[:-1] + v * (rows[1:] - rows[:-1])
        frames[frame] = rows[:, :-1] + u * (rows[:, 1:] - rows[:, :-1])
    return frames


def _texture(scene: Scene, side_px: int) -> FloatArray:
    """Return (side, side, 3): noise of several scales, half of the time with slabs or boards."""
    rng = np.random.default_rng([scene.grain_seed, 0])
    grey = np.zeros((side_px, side_px), np.float32)
    for knots, levels in _OCTAVES:
        grey += _stretched(rng.standard_normal((knots, knots), np.float32), side_px) * np.float32(levels * 0.6)
    across, along = rng.uniform(8, 40, 2)
    steps = np.arange(side_px)
    match int(rng.integers(4)):
        case 0:  # slabs with joints between them
            tones = rng.standard_normal((side_px // 8 + 1, side_px // 8 + 1), np.float32) * 9
            grey += tones[np.ix_((steps // across).astype(int), (steps // along).astype(int))]
            grey[(steps % across) < 1] -= 22
            grey[:, (steps % along) < 1] -= 22
        case 1:  # boards
            grey += (rng.standard_normal(side_px // 8 + 1, np.float32) * 14)[(steps // across).astype(int)][:, None]
    grey += rng.standard_normal((side_px, side_px), np.float32) * 4
    hue = np.stack([_stretched(rng.standard_normal((4, 4), np.float32), side_px) for _ in range(3)], axis=-1) * 6
    pattern = np.array(scene.ground, np.float32) + np.float32(scene.texture) * (grey[..., None] + hue)
    return np.asarray(np.clip(pattern, 0, 255), np.float32)


def _stretched(knots: FloatArray, side_px: int) -> FloatArray:
    weights = _between(side_px, len(knots))
    return np.asarray(weights @ knots @ weights.T, np.float32)


@cache
def _between(side_px: int, knots: int) -> FloatArray:
    """Return (side, knots) weights of an interpolation that is smooth at the knots."""
    at = np.linspace(0, knots - 1, side_px)
    near = np.minimum(at.astype(np.int64), knots - 2)
    part = at - near
    part = part * part * (3 - 2 * part)
    weights = np.zeros((side_px, knots), np.float32)
    weights[np.arange(side_px), near] = 1 - part
    weights[np.arange(side_px), near + 1] = part
    return weights


def _develop(frames: FloatArray, film: Film, rng: np.random.Generator) -> ByteArray:
    if film.noise:
        grain = rng.standard_normal(frames.shape, np.float32)
        grain *= np.float32(film.noise)
        frames += grain
    np.clip(frames, 0, 255, out=frames)
    if film.quality is not None:
        frames = compressed(frames, film.quality)
        np.clip(frames, 0, 255, out=frames)
    return np.rint(frames, out=frames).astype(np.uint8)


def compressed(frames: FloatArray, quality: int) -> FloatArray:
    """Return frames after 8×8 quantisation as in a JPEG with 4:2:0 colour.

    `frames` is (T, H, W, 3), 0 to 255; H and W are multiples of 16. Results may be outside 0 to 255.
    """
    scale = (5000 / quality if quality < 50 else 200 - 2 * quality) / 100
    count, tall, wide, _ = frames.shape
    ycc = frames @ _TO_YCC.T
    luma = _quantised(ycc[..., 0] - 128, np.maximum(_LUMA * scale, 1)) + 128
    colour = np.moveaxis(ycc[..., 1:], -1, 1)  # (T, 2, H, W)
    halves = 0.25 * (colour[..., ::2, ::2] + colour[..., 1::2, ::2] + colour[..., ::2, 1::2] + colour[..., 1::2, 1::2])
    chroma = _quantised(halves.reshape(2 * count, tall // 2, wide // 2), np.maximum(_CHROMA * scale, 1))
    chroma = chroma.repeat(2, axis=1).repeat(2, axis=2).reshape(count, 2, tall, wide)
    return np.stack([luma, chroma[:, 0], chroma[:, 1]], axis=-1) @ _TO_RGB.T


def _quantised(planes: FloatArray, table: FloatArray) -> FloatArray:
    """Return (N, H, W) planes after rounding the cosines of their 8×8 blocks to the table's steps."""
    count, tall, wide = planes.shape
    waves = _cosines()
    blocks = planes.reshape(count, tall // _BLOCK, _BLOCK, wide // _BLOCK, _BLOCK)
    blocks = (blocks @ waves.T).reshape(count, tall // _BLOCK, _BLOCK, wide)
    steps = np.tile(table, (1, wide // _BLOCK))  # (8, W)
    kept = np.rint((waves @ blocks) / steps) * steps
    back = (waves.T @ kept).reshape(count, tall, wide // _BLOCK, _BLOCK) @ waves
    return np.asarray(back.reshape(count, tall, wide), np.float32)


@cache
def _cosines() -> FloatArray:
    """Return (8, 8) orthonormal cosines, one frequency per row."""
    steps = np.arange(_BLOCK)
    waves = np.cos(np.pi * (2 * steps[None, :] + 1) * steps[:, None] / (2 * _BLOCK)) * np.sqrt(2 / _BLOCK)
    waves[0] /= np.sqrt(2)
    return np.asarray(waves, np.float32)
