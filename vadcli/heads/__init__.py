"""Heads: small models on top of stored embeddings, trained with the user's own labels.

A head that learns from verdicts on events judges the events of a detector. A head that learns from one label per video scores
every sampled frame, and events are made from its scores. `vadcli.registry.HEADS` lists the heads.

Letters in shapes: S sampled frames, N examples, D width of a vector, C categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Protocol, Self, runtime_checkable

import numpy as np

from vadcli.types import BoolArray, FloatArray, IndexArray, TimeArray

STRETCH = 4.0
"""The logit of the median abnormal training video after scaling; the median normal video has -STRETCH."""
LOGIT_LIMIT = 12.0
"""The detector's logits are clipped to this distance from 0, so that one event cannot outweigh all others."""
HEADS_VERSION = 1
"""Increase this if a stored head of an earlier version would give other scores."""


class Labels(StrEnum):
    """The kinds of labels: a verdict per event, a label per video, or a category per video."""

    EVENTS = "events"
    VIDEOS = "videos"
    CATEGORIES = "categories"


@dataclass(frozen=True)
class Sample:
    """The vectors and logits that a head scores, of a whole video or of the span of one event.

    Attributes:
        vectors: one (S, D) float32 array of unit vectors per encoder; S >= 1.
        logit: (S,) float32, the detector's logits; for an event, every row has the event's highest logit.
        timestamp: (S,) float64 seconds.
    """

    vectors: tuple[FloatArray, ...] = field(repr=False)
    logit: FloatArray = field(repr=False)
    timestamp: TimeArray = field(repr=False)

    def __post_init__(self) -> None:
        rows = {len(self.logit), len(self.timestamp), *map(len, self.vectors)}
        if len(rows) != 1 or 0 in rows:
            raise ValueError(f"a sample needs at least one row, and the same number in each array, not {sorted(rows)}")


@dataclass(frozen=True)
class Examples:
    """Samples with their labels.

    Attributes:
        samples: N samples.
        positive: (N,) bool, True if something happens in the sample.
        mean: per encoder, the mean (D,) of all vectors of the training footage.
        category: (N,) the number of each sample's category; -1 if nothing happens in the sample or the category is unknown.
        texts: (C, D) unit vectors of the categories' names; (0, 0) if the head needs none.
    """

    samples: Sequence[Sample] = field(repr=False)
    positive: BoolArray
    mean: tuple[FloatArray, ...] = field(repr=False)
    category: IndexArray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    texts: FloatArray = field(default_factory=lambda: np.zeros((0, 0), np.float32), repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def pick(self, rows: IndexArray) -> Examples:
        """Return the examples with these indices."""
        category = self.category[rows] if len(self.category) else self.category
        return Examples([self.samples[row] for row in rows], self.positive[rows], self.mean, category, self.texts)


@runtime_checkable
class Head(Protocol):
    """A trained head. The same examples and seed give the same head.

    Attributes:
        labels: the kind of labels from which the head learns.
        encoders: the number of encoders whose vectors the head reads.
    """

    labels: ClassVar[Labels]
    encoders: ClassVar[int]

    @classmethod
    def fit(cls, examples: Examples, *, seed: int) -> Self:
        """Return a head that is trained on the examples. Usually, both labels must occur."""

    def score(self, sample: Sample) -> FloatArray:
        """Return the logits (S,) float32 of the frames; a higher logit means that an anomaly is more likely."""

    def state(self) -> dict[str, FloatArray]:
        """Return the arrays of the head, for storage."""

    @classmethod
    def of(cls, state: Mapping[str, FloatArray]) -> Self:
        """Return the head of stored arrays; raises KeyError or ValueError if the arrays do not fit."""


def pooled(head: Head, sample: Sample) -> float:
    """Return one logit for a sample: the mean logit of an event, or the highest logit of a video."""
    logit = head.score(sample)
    return float(logit.mean() if head.labels is Labels.EVENTS else logit.max())


@dataclass(frozen=True)
class Scale:
    """Makes the logits of two trainings of one network comparable, so that they can share a threshold.

    Attributes:
        centre: the logit that becomes 0.
        unit: the difference of logits that becomes 1.
    """

    centre: float = 0.0
    unit: float = 1.0

    @classmethod
    def of(cls, head: Head, examples: Examples) -> Scale:
        """Return the scale with -STRETCH for the median normal video and STRETCH for the abnormal one.

        Heads that judge events keep their logits, because their training has only one solution.
        """
        if head.labels is Labels.EVENTS:
            return cls()
        found = np.array([pooled(head, sample) for sample in examples.samples])
        normal, abnormal = (float(np.median(found[examples.positive == label])) for label in (False, True))
        return cls(0.5 * (normal + abnormal), max(abnormal - normal, 1e-3) / (2.0 * STRETCH))

    def __call__(self, logit: FloatArray) -> FloatArray:
        """Return logits on this scale."""
        return np.asarray((logit - self.centre) / self.unit, np.float32)


def centred(vectors: FloatArray, mean: FloatArray) -> FloatArray:
    """Return the differences of vectors from a mean as unit vectors, (S, D) float32.

    All vectors of an image-text encoder have roughly the same direction. After the mean is subtracted, they differ more.
    """
    difference = np.asarray(vectors, np.float32) - mean
    length = np.linalg.norm(difference, axis=-1, keepdims=True)
    return np.asarray(difference / np.maximum(length, 1e-6), np.float32)
