"""Heads: small models on top of stored embeddings, trained with the user's own labels.

There are two kinds of heads. A head that learns from verdicts on events gives a new score to each event of the detector. These
heads are at the end of this file. A head that learns from one label per video scores every sampled frame, and vadcli makes
events from these scores; see `video_heads`. `vadcli.registry.HEADS` lists all heads.

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
"""After scaling, the median abnormal training video has the logit STRETCH, and the median normal video has -STRETCH."""
LOGIT_LIMIT = 12.0
"""The detector's logits are clipped to this distance from 0, so that one event cannot outweigh all other events."""
HEADS_VERSION = 1
"""Increase this if a change of the code gives other scores for the same stored head."""


class Labels(StrEnum):
    """The kinds of labels: a verdict per event, normal or abnormal per video, or a category per video."""

    EVENTS = "events"
    VIDEOS = "videos"
    CATEGORIES = "categories"


@dataclass(frozen=True)
class Sample:
    """What a head reads: the vectors and logits of a whole video, or of the span of one event.

    Attributes:
        vectors: for each encoder, an array (S, D) float32 of unit vectors; S >= 1.
        logit: (S,) float32, the detector's logits. In the sample of an event, all S logits are the highest logit of the event.
        timestamp: (S,) float64 seconds.
    """

    vectors: tuple[FloatArray, ...] = field(repr=False)
    logit: FloatArray = field(repr=False)
    timestamp: TimeArray = field(repr=False)

    def __post_init__(self) -> None:
        rows = {len(self.logit), len(self.timestamp), *map(len, self.vectors)}
        if len(rows) != 1 or 0 in rows:
            raise ValueError(f"each array of a sample needs the same number of rows, at least one, not {sorted(rows)}")


@dataclass(frozen=True)
class Examples:
    """Samples with their labels.

    Attributes:
        samples: N samples.
        positive: (N,) bool, True if something happens in the sample.
        mean: for each encoder, the mean (D,) of all vectors of the training footage.
        category: (N,) the number of the category of each sample, or -1 if nothing happens in the sample. The array is empty if
            the head does not learn from categories.
        texts: (C, D) unit vectors of the names of the categories; (0, 0) if the head does not learn from categories.
    """

    samples: Sequence[Sample] = field(repr=False)
    positive: BoolArray
    mean: tuple[FloatArray, ...] = field(repr=False)
    category: IndexArray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    texts: FloatArray = field(default_factory=lambda: np.zeros((0, 0), np.float32), repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def pick(self, rows: IndexArray) -> Examples:
        """Return only the examples with the indices `rows`."""
        category = self.category[rows] if len(self.category) else self.category
        return Examples([self.samples[row] for row in rows], self.positive[rows], self.mean, category, self.texts)


@runtime_checkable
class Head(Protocol):
    """A trained head. The same examples and the same seed give the same head.

    Attributes:
        labels: the kind of labels from which the head learns.
        encoders: the number of encoders whose vectors the head reads.
    """

    labels: ClassVar[Labels]
    encoders: ClassVar[int]

    @classmethod
    def fit(cls, examples: Examples, *, seed: int) -> Self:
        """Return a head that is trained on the examples. Most heads need positive and negative examples."""

    def score(self, sample: Sample) -> FloatArray:
        """Return the logits (S,) float32 of the frames; a higher logit means that an anomaly is more likely."""

    def state(self) -> dict[str, FloatArray]:
        """Return the arrays of the head, for storage."""

    @classmethod
    def of(cls, state: Mapping[str, FloatArray]) -> Self:
        """Return the head that has this `state`. Raises KeyError or ValueError if the arrays are not those of such a head."""


def pooled(head: Head, sample: Sample) -> float:
    """Return one logit for a sample: the mean over the frames of an event, or the maximum over the frames of a video."""
    logit = head.score(sample)
    return float(logit.mean() if head.labels is Labels.EVENTS else logit.max())


@dataclass(frozen=True)
class Scale:
    """A linear scale for logits, so that heads from two trainings can have the same threshold.

    Attributes:
        centre: the logit that becomes 0.
        unit: two logits that differ by this much differ by 1 after scaling.
    """

    centre: float = 0.0
    unit: float = 1.0

    @classmethod
    def of(cls, head: Head, examples: Examples) -> Scale:
        """Return the scale for the logits of a head.

        The median normal video gets the scaled logit -STRETCH, and the median abnormal video gets STRETCH. If the head learns
        from events, the scale does not change its logits, because each training gives the same head.
        """
        if head.labels is Labels.EVENTS:
            return cls()
        logits = np.array([pooled(head, sample) for sample in examples.samples])
        normal, abnormal = (float(np.median(logits[examples.positive == label])) for label in (False, True))
        return cls(0.5 * (normal + abnormal), max(abnormal - normal, 1e-3) / (2.0 * STRETCH))

    def __call__(self, logit: FloatArray) -> FloatArray:
        """Return the scaled logits."""
        return np.asarray((logit - self.centre) / self.unit, np.float32)


def centred(vectors: FloatArray, mean: FloatArray) -> FloatArray:
    """Subtract a mean from vectors (S, D). Return the differences as unit vectors, (S, D) float32.

    All vectors of an image-text encoder have roughly the same direction. After the mean is subtracted, their directions differ
    more.
    """
    difference = np.asarray(vectors, np.float32) - mean
    length = np.linalg.norm(difference, axis=-1, keepdims=True)
    return np.asarray(difference / np.maximum(length, 1e-6), np.float32)


STRENGTH = 10.0
"""The weight of the examples; the L2 penalty has the weight 1. scikit-learn calls this weight C. It is not tuned."""
LOGIT_SPREAD = 4.0
"""The detector's logit is divided by this, so that its values are about as large as the numbers in a vector."""


@dataclass(frozen=True)
class LogisticHead:
    """Logistic regression on the vectors of events and the detector's own logit.

    HiProbe-VAD (Cai et al., "Video Anomaly Detection via Hidden States Probing in Tuning-Free Multimodal LLMs", 2025) and
    HeadHunt-VAD (Cai et al., "Hunting Robust Anomaly-Sensitive Heads in MLLM for Tuning-Free Video Anomaly Detection", AAAI
    2026) train such a linear probe on the hidden states of a language model, with a small part of the labels. Two steps of
    these papers are left out here: the choice of layers and attention heads, because an image-text encoder gives only one
    vector per frame; and the temporal localisation, because the detector has already found the events.

    The regression is L2-regularised. True and false events have the same total weight, even if there are more false events. The
    head learns from the mean vector of each event, but scores single frames. This is consistent, because the model is linear:
    the mean of the logits of the frames equals the logit of the mean vector.

    Attributes:
        weights: (D + 1,): one weight for each of the D numbers of a vector, and one weight for the detector's logit.
        bias: the intercept.
        mean: (D,) vector that is subtracted first.
    """

    weights: FloatArray = field(repr=False)
    bias: float
    mean: FloatArray = field(repr=False)

    labels: ClassVar[Labels] = Labels.EVENTS
    encoders: ClassVar[int] = 1

    @classmethod
    def fit(cls, examples: Examples, *, seed: int) -> Self:
        """See `Head`. The loss has only one minimum, so `seed` has no effect."""
        mean = examples.mean[0]
        features = np.stack([_features(sample, mean).mean(axis=0) for sample in examples.samples])
        weights, bias = fit_logistic(features.astype(np.float64), examples.positive.astype(np.float64), strength=STRENGTH)
        return cls(weights.astype(np.float32), bias, mean)

    def score(self, sample: Sample) -> FloatArray:
        """See `Head`."""
        return np.asarray(_features(sample, self.mean) @ self.weights + np.float32(self.bias), np.float32)

    def state(self) -> dict[str, FloatArray]:
        """See `Head`."""
        return {"weights": self.weights, "bias": np.array([self.bias], np.float32), "mean": self.mean}

    @classmethod
    def of(cls, state: Mapping[str, FloatArray]) -> Self:
        """See `Head`."""
        if state["weights"].shape != (len(state["mean"]) + 1,):
            raise ValueError(f"weights {state['weights'].shape} do not fit a mean {state['mean'].shape}")
        return cls(state["weights"], float(state["bias"][0]), state["mean"])


def _features(sample: Sample, mean: FloatArray) -> FloatArray:
    """Return the features (S, D + 1) of the frames: the centred vector, then the detector's logit / LOGIT_SPREAD."""
    logit = np.asarray(np.clip(sample.logit, -LOGIT_LIMIT, LOGIT_LIMIT) / LOGIT_SPREAD, np.float32)
    return np.column_stack([centred(sample.vectors[0], mean), logit])


def fit_logistic(features: TimeArray, positive: TimeArray, *, strength: float) -> tuple[TimeArray, float]:
    """Return the weights and the intercept of scikit-learn's balanced `LogisticRegression(C=strength)`.

    Args:
        features: (N, F) float64.
        positive: (N,) float64, 1 or 0; both must occur.
        strength: the weight of the examples.
    """
    from scipy.optimize import minimize  # imported here, because it takes a third of a second, and a scan does not need it

    sign = 2.0 * positive - 1.0
    count = np.where(positive > 0, positive.sum(), len(positive) - positive.sum())
    weight = strength * len(positive) / (2.0 * count)

    def loss(parameters: TimeArray) -> tuple[float, TimeArray]:
        margin = sign * (features @ parameters[:-1] + parameters[-1])
        pull = -0.5 * weight * sign * (1.0 - np.tanh(0.5 * margin))
        value = 0.5 * float(parameters[:-1] @ parameters[:-1]) + float(weight @ np.logaddexp(0.0, -margin))
        return value, np.append(parameters[:-1] + features.T @ pull, pull.sum())

    limits = {"maxiter": 500, "gtol": 1e-6, "ftol": 1e-11}
    solution = minimize(loss, np.zeros(features.shape[1] + 1), jac=True, method="L-BFGS-B", options=limits)
    return solution.x[:-1], float(solution.x[-1])


SHARPNESS = 5.5
"""The influence of a labelled event is exp(-SHARPNESS · (1 - cosine)), as in Tip-Adapter."""
SHARE = 4.0
"""Weight of the similarities. If an event looks like a rejected event, its logit decreases by about this much."""


@dataclass(frozen=True)
class RetrievalHead:
    """Corrects the detector's logit by the similarity to confirmed and to rejected events.

    The similarity to confirmed events is added, and the similarity to rejected events is subtracted.

    Tip-Adapter (Zhang et al., "Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022) starts with the score
    that CLIP gives without labels, and adds the similarity to labelled vectors in a cache. NAGL (Wang et al., "Normal-Abnormal
    Guided Generalist Anomaly Detection", NeurIPS 2025) compares with normal and with abnormal references. Some steps of these
    papers are left out. In Tip-Adapter, the cache is fine-tuned, and the two constants are searched for on labelled data. In
    NAGL, attention is learned, and patches are compared; here a frame has only one vector.

    One verdict is enough: the head does not need both confirmed and rejected events. It compares the mean vector of an event's
    frames, so all frames of an event get the same logit.

    Attributes:
        confirmed, rejected: (N, D) unit vectors of events.
        mean: (D,) vector that is subtracted first.
    """

    confirmed: FloatArray = field(repr=False)
    rejected: FloatArray = field(repr=False)
    mean: FloatArray = field(repr=False)

    labels: ClassVar[Labels] = Labels.EVENTS
    encoders: ClassVar[int] = 1

    @classmethod
    def fit(cls, examples: Examples, *, seed: int) -> Self:
        """See `Head`. Nothing is random, so `seed` has no effect."""
        mean = examples.mean[0]
        keys = np.stack([_key(sample, mean) for sample in examples.samples])
        return cls(keys[examples.positive], keys[~examples.positive], mean)

    def score(self, sample: Sample) -> FloatArray:
        """See `Head`."""
        key = _key(sample, self.mean)
        difference = _similarity(key, self.confirmed) - _similarity(key, self.rejected)
        return np.asarray(np.clip(sample.logit, -LOGIT_LIMIT, LOGIT_LIMIT) + SHARE * difference, np.float32)

    def state(self) -> dict[str, FloatArray]:
        """See `Head`."""
        return {"confirmed": self.confirmed, "rejected": self.rejected, "mean": self.mean}

    @classmethod
    def of(cls, state: Mapping[str, FloatArray]) -> Self:
        """See `Head`."""
        confirmed, rejected, mean = (state[name] for name in ("confirmed", "rejected", "mean"))
        if not confirmed.shape[1] == rejected.shape[1] == len(mean):
            raise ValueError(f"keys {confirmed.shape} and {rejected.shape} do not fit a mean {mean.shape}")
        return cls(confirmed, rejected, mean)


def _key(sample: Sample, mean: FloatArray) -> FloatArray:
    """Return the mean of a sample's centred vectors as a unit vector, (D,) float32."""
    key = centred(sample.vectors[0], mean).mean(axis=0)
    return np.asarray(key / max(float(np.linalg.norm(key)), 1e-6), np.float32)


def _similarity(key: FloatArray, keys: FloatArray) -> float:
    """Return the mean influence of the three keys that are nearest to `key`, in [0, 1]; 0 if there are no keys."""
    # Tip-Adapter sums the influences of all keys of a class. But reviews contain far more false events than true events, so a
    # sum would be too large for the false events.
    influence = np.exp(-SHARPNESS * (1.0 - keys @ key))
    return float(np.sort(influence)[-3:].mean()) if len(keys) else 0.0
