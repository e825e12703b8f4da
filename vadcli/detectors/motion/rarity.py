"""How unlike the camera's usual moving things one is: distance to its neighbours among remembered cells."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from vadcli.detectors.motion.features import ClipMaps
from vadcli.detectors.motion.options import MotionOptions
from vadcli.types import BoolArray, FloatArray, IndexArray, TimeArray

SCALE_FLOORS = np.array([0.1, 0.2, 1.0], dtype=np.float32)
"""Smallest spread of [extent, speed, change] that counts as one unit."""

FEWEST_SAMPLES = 20
"""With fewer left to compare with, nothing is rare or usual."""

STRIDE = 2
"""Rarity is looked up at every second cell each way; what it is made of was averaged over more."""


@dataclass(frozen=True)
class RaritySamples:
    """Remembered moving cells of one camera.

    Attributes:
        features: (M, 5) float32, scaled.
        scene: (M,) int64, number of the scene that the sample was seen in.
        video: (M,) int64, hash of the sample's video.
        time_s: (M,) float64, when in that video.
    """

    features: FloatArray = field(repr=False)
    scene: IndexArray = field(repr=False)
    video: IndexArray = field(repr=False)
    time_s: TimeArray = field(repr=False)

    def of_scene(self, scene: int) -> RaritySamples:
        """Those seen in one scene."""
        own = self.scene == scene
        return RaritySamples(self.features[own], self.scene[own], self.video[own], self.time_s[own])


def video_number(video: str) -> int:
    """A number for a video's relative path, the same everywhere."""
    return int.from_bytes(
        hashlib.blake2b(video.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little", signed=True
    )


def describe(maps: ClipMaps, moving: BoolArray) -> FloatArray:
    """The cells (T, h, w) that are asked for -> (Q, 5) float32: extent, speed, change, then x and y in picture widths."""
    t, y, x = np.nonzero(moving)
    own = [channel[t, y, x] for channel in (maps.extent, maps.speed, maps.change)]
    return np.column_stack([*own, maps.grid.positions()[y, x]])


def coarse(moving: BoolArray) -> BoolArray:
    """(T, h, w) -> (T, h, w): only the cells where rarity is looked up."""
    thin = np.zeros_like(moving)
    thin[:, ::STRIDE, ::STRIDE] = moving[:, ::STRIDE, ::STRIDE]
    return thin


def spread_out(thin: FloatArray) -> FloatArray:
    """(T, h, w) with values at the coarse cells -> (T, h, w): their values for the cells beside them too."""
    _, h, w = thin.shape
    return np.repeat(np.repeat(thin[:, ::STRIDE, ::STRIDE], STRIDE, axis=1), STRIDE, axis=2)[:, :h, :w]


def scaled(features: FloatArray, scale: FloatArray, options: MotionOptions) -> FloatArray:
    """(Q, 5) described -> (Q, 5) as compared; `scale` is (3,) or (Q, 3) units of the first three."""
    own = features[..., : len(SCALE_FLOORS)] / scale
    return np.concatenate([own, features[..., len(SCALE_FLOORS) :] * np.float32(options.position_weight)], axis=-1)


def rarity(query: FloatArray, samples: RaritySamples, *, video: int, time_s: float, options: MotionOptions) -> FloatArray:
    """(Q, 5) scaled -> (Q,) float32, distance to the k-th nearest sample; NaN where too few samples are left to tell.

    Samples of the same video within `exclude_s` are left out: a thing must not make itself usual.
    """
    near = (samples.video == video) & (np.abs(samples.time_s - time_s) <= options.exclude_s)
    known = samples.features[~near]
    if len(known) < FEWEST_SAMPLES or not len(query):
        return np.full(len(query), np.nan, dtype=np.float32)
    rank = min(len(known) - 1, round(options.neighbour_share * len(known)))
    square = np.sum(query**2, axis=1)[:, None] + np.sum(known**2, axis=1)[None, :] - 2.0 * (query @ known.T)
    return np.asarray(np.sqrt(np.maximum(np.partition(square, rank, axis=1)[:, rank], 0.0)), dtype=np.float32)
