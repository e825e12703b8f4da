"""How unlike the camera's usual moving things one is: distance to its neighbours among remembered cells."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from vadcli.detectors.motion.features import ClipMaps
from vadcli.detectors.motion.grid import Grid
from vadcli.detectors.motion.options import MotionOptions
from vadcli.types import FloatArray, IndexArray, TimeArray

SCALE_FLOORS = np.array([0.1, 0.3, 2.0, 0.3], dtype=np.float32)
"""Smallest spread of [foreground, speed, change, speed squared] that counts as one unit."""


@dataclass(frozen=True)
class RaritySamples:
    """Remembered moving cells of one camera.

    Attributes:
        features: (M, D) float32, scaled.
        scale: (4,) float32, what the motion features were divided by.
        video: (M,) int64, hash of the sample's video.
        time_s: (M,) float64, when in that video.
    """

    features: FloatArray = field(repr=False)
    scale: FloatArray
    video: IndexArray = field(repr=False)
    time_s: TimeArray = field(repr=False)


def video_number(video: str) -> int:
    """A number for a video's relative path, the same everywhere."""
    return int.from_bytes(
        hashlib.blake2b(video.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little", signed=True
    )


def describe(maps: ClipMaps, grid: Grid) -> FloatArray:
    """(T, h, w, 6) float32: foreground, speed, change, speed squared, then x and y in picture widths."""
    own = np.stack([maps.foreground, maps.speed, maps.change, 0.1 * maps.speed**2], axis=-1)
    where = np.broadcast_to(grid.positions(), (*own.shape[:3], 2))
    return np.concatenate([own, where], axis=-1)


def scaled(features: FloatArray, scale: FloatArray, options: MotionOptions) -> FloatArray:
    """(..., 6) described -> (..., 6) as compared."""
    weights = np.concatenate([1.0 / scale, np.full(2, options.position_weight, dtype=np.float32)])
    return np.asarray(features * weights, dtype=np.float32)


def rarity(query: FloatArray, samples: RaritySamples, *, video: int, time_s: float, options: MotionOptions) -> FloatArray:
    """(Q, 6) scaled -> (Q,) float32, distance to the k-th nearest sample; 0 where too few samples are left.

    Samples of the same video within `exclude_s` are left out: a thing must not make itself usual.
    """
    near = (samples.video == video) & (np.abs(samples.time_s - time_s) <= options.exclude_s)
    known = samples.features[~near]
    if not len(known) or not len(query):
        return np.zeros(len(query), dtype=np.float32)
    rank = min(len(known) - 1, round(options.neighbour_share * len(known)))
    square = np.sum(query**2, axis=1)[:, None] + np.sum(known**2, axis=1)[None, :] - 2.0 * (query @ known.T)
    return np.asarray(np.sqrt(np.maximum(np.partition(square, rank, axis=1)[:, rank], 0.0)), dtype=np.float32)
