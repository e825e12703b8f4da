"""Vectors with known classes: true and false samples differ in one dimension by a known amount."""

from __future__ import annotations

import math

import numpy as np

from vadcli.heads import Examples, Sample
from vadcli.types import FloatArray

WIDTH = 16
NOISE = 0.3
SIGNAL = 0.9
RATE_HZ = 2.0
CATEGORIES = 2


def bound(averaged: int) -> float:
    """Return the AUC of the best possible classifier of the mean of `averaged` frames.

    It is Φ(d / √2), if the classes are d standard deviations apart.
    """
    deviations = SIGNAL / NOISE * math.sqrt(averaged)
    return 0.5 * (1.0 + math.erf(deviations / 2.0))


def unit(vectors: FloatArray) -> FloatArray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def frames(draw: np.random.Generator, seen: FloatArray, *, category: int = 0) -> FloatArray:
    """Return vectors (S, D). `seen` (S,) is 1 in frames with the object, which changes two dimensions.

    One of these dimensions is common to all objects, the other belongs to the category.
    """
    vectors = draw.normal(0.0, NOISE, (len(seen), WIDTH))
    vectors[:, 0] += 2.0
    vectors[:, 1] += SIGNAL * seen
    vectors[:, 2 + category] += SIGNAL * seen
    return unit(vectors)


def events(count: int, *, seed: int, length: int = 1) -> Examples:
    """Return events of `length` frames. A quarter of them is true.

    The detector's logit does not depend on the class.
    """
    draw = np.random.default_rng(seed)
    positive = np.arange(count) % 4 == 0
    samples = []
    for label in positive:
        vectors = draw.normal(0.0, NOISE, (length, WIDTH))
        vectors[:, 0] += 2.0
        vectors[:, 1] += SIGNAL * (label - 0.5)
        samples.append(Sample((unit(vectors),), np.full(length, draw.normal(1.0, 1.0), np.float32), np.arange(length)))
    return Examples(samples, positive, (_mean(samples, 0),))


def videos(count: int, *, seed: int, encoders: int = 1) -> tuple[Examples, list[FloatArray]]:
    """Return videos of 40 s, and per video (S,) the frames with an object.

    Half of the videos have an object for 8 s.
    """
    draw = np.random.default_rng(seed)
    positive = np.arange(count) % 2 == 0
    category = np.where(positive, np.arange(count) // 2 % CATEGORIES, -1)
    samples, truth = [], []
    for label, kind in zip(positive, category, strict=True):
        seen = np.zeros(80, np.float32)
        if label:
            start = int(draw.integers(0, 32)) * 2
            seen[start : start + 16] = 1.0
        vectors = tuple(frames(draw, seen, category=max(0, int(kind))) for _ in range(encoders))
        samples.append(Sample(vectors, np.zeros(80, np.float32), np.arange(80) / RATE_HZ))
        truth.append(seen)
    texts = np.zeros((CATEGORIES, WIDTH), np.float32)
    texts[np.arange(CATEGORIES), 2 + np.arange(CATEGORIES)] = 1.0
    mean = tuple(_mean(samples, place) for place in range(encoders))
    return Examples(samples, positive, mean, category, texts), truth


def _mean(samples: list[Sample], place: int) -> FloatArray:
    return np.asarray(np.concatenate([sample.vectors[place] for sample in samples]).mean(axis=0), np.float32)
