"""Heads: small models on top of stored embeddings, trained with the user's own labels.

There are two kinds of heads. Some learn from verdicts on events (true or false). They give a new score to each event that the
detector found; they are at the end of this file. The other heads learn from one label per video. They score every sampled
frame, and vadcli makes events from these scores; see `video_heads`. `vadcli.registry.HEADS` lists all heads.

Letters in shapes: S sampled frames, N examples, D numbers per vector, C categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Protocol, Self, runtime_checkable

import numpy as np

from vadcli.types import BoolArray, FloatArray, IndexArray, TimeArray

STRETCH = 4.0
"""After scaling, the median logit of abnormal training videos is STRETCH, and that of normal training videos is -STRETCH."""
LOGIT_LIMIT = 12.0
"""The detector's logits are clipped to this distance from 0, so that one event cannot outweigh all other events."""
HEADS_VERSION = 1
"""Increase this number whenever a change of the code gives a stored head other scores."""


class Labels(StrEnum):
    """What a head learns from: verdicts on events, or labels of videos.

    A verdict is true or false. A label of a video is either normal or abnormal, or it is a category.
    """

    EVENTS = "events"
    VIDEOS = "videos"
    CATEGORIES = "categories"


@dataclass(frozen=True)
class Sample:
    """The input of a head: the stored vectors and the detector's logits of an event or of a whole video.

    Attributes:
        vectors: one array (S, D) float32 of unit vectors per encoder; S >= 1.
        logit: (S,) float32, the detector's logits. In the sample of an event, all S values are the event's highest logit.
        timestamp: (S,) float64, time of each frame in seconds.
    """

    vectors: tuple[FloatArray, ...] = field(repr=False)
    logit: FloatArray = field(repr=False)
    timestamp: TimeArray = field(repr=False)

    def __post_init__(self) -> None:
        rows = {len(self.logit), len(self.timestamp), *map(len, self.vectors)}
        if len(rows) != 1 or 0 in rows:
            raise ValueError(f"all arrays of a sample must have the same number of rows, 1 or more, not {sorted(rows)}")


@dataclass(frozen=True)
class Examples:
    """Samples with their labels.

    Attributes:
        samples: N samples.
        positive: (N,) bool, True if the sample is abnormal.
        mean: one vector (D,) per encoder, the mean of all its vectors in the training footage.
        category: (N,) int64, the number of each sample's category; -1 for a normal sample. Empty if the head does not learn
            from categories.
        texts: (C, D), the unit vectors of the category names; (0, 0) if the head does not learn from categories.
    """

    samples: Sequence[Sample] = field(repr=False)
    positive: BoolArray
    mean: tuple[FloatArray, ...] = field(repr=False)
    category: IndexArray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    texts: FloatArray = field(default_factory=lambda: np.zeros((0, 0), np.float32), repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def pick(self, rows: IndexArray) -> Examples:
        """Return the examples with the indices `rows`."""
        category = self.category[rows] if len(self.category) else self.category
        return Examples([self.samples[row] for row in rows], self.positive[rows], self.mean, category, self.texts)


@runtime_checkable
class Head(Protocol):
    """A trained head. The same examples and the same seed give the same head.

    Attributes:
        labels: the kind of labels that the head learns from.
        encoders: number of encoders; a sample has an array of vectors from each of them.
    """

    labels: ClassVar[Labels]
    encoders: ClassVar[int]

    @classmethod
    def fit(cls, examples: Examples, *, seed: int) -> Self:
        """Return a head trained on the examples. Most kinds of heads need positive and negative examples."""

    def score(self, sample: Sample) -> FloatArray:
        """Return a logit per frame, (S,) float32; a higher logit means that an anomaly is more probable."""

    def state(self) -> dict[str, FloatArray]:
        """Return the arrays that `of()` needs to make the same head again. The keys are the names of the arrays."""

    @classmethod
    def of(cls, state: Mapping[str, FloatArray]) -> Self:
        """Return the head from the arrays of `state`.

        Raises:
            KeyError, ValueError: the arrays belong to another kind of head.
        """


def pooled(head: Head, sample: Sample) -> float:
    """Return one logit for a sample.

    If the sample is an event, the result is the mean over its frames. If the sample is a whole video, the result is the
    maximum over its frames.
    """
    logit = head.score(sample)
    return float(logit.mean() if head.labels is Labels.EVENTS else logit.max())


@dataclass(frozen=True)
class Scale:
    """A linear scale: scaled logit = (logit - centre) / unit.

    With scaled logits, the same threshold is suitable for heads from different trainings.

    Attributes:
        centre: the logit that becomes 0.
        unit: the difference of two logits that becomes 1; above 0.
    """

    centre: float = 0.0
    unit: float = 1.0

    @classmethod
    def of(cls, head: Head, examples: Examples) -> Scale:
        """Return the scale of a head.

        For a head that learns from videos, the median of the normal videos becomes -STRETCH, and the median of the abnormal
        videos becomes STRETCH. For a head that learns from events, the scale changes nothing: the training of such a
        head has no random numbers, so two trainings give the same logits.
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
    """Return the vectors (S, D) minus the mean, as unit vectors (S, D) float32.

    All vectors of an image-text encoder have nearly the same direction. After the mean is subtracted, the directions of similar
    and of different images are easier to tell apart.
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
    """Logistic regression on the vectors of events and on the detector's logit.

    HiProbe-VAD (Cai et al., "Video Anomaly Detection via Hidden States Probing in Tuning-Free Multimodal LLMs", 2025) and
    HeadHunt-VAD (Cai et al., "Hunting Robust Anomaly-Sensitive Heads in MLLM for Tuning-Free Video Anomaly Detection", AAAI
    2026) train a logistic regression on the hidden states of a language model, with few labels. Two steps of these papers are
    not needed here. The papers choose layers and attention heads, but an image-text encoder gives only one vector per
    frame. The papers also find the times of anomalies, but here the detector has already found the events.

    The regression has an L2 penalty. True and false events have the same total weight, even if there are more false events. The
    head learns from the mean vector of each event, but scores single frames. Both give the same result, because the model is
    linear: the mean of the frames' logits is the logit of the mean vector.

    Attributes:
        weights: (D + 1,), one weight per number of a vector, and a last weight for the detector's logit.
        bias: the intercept.
        mean: (D,) vector that is subtracted from every vector.
    """

    weights: FloatArray = field(repr=False)
    bias: float
    mean: FloatArray = field(repr=False)

    labels: ClassVar[Labels] = Labels.EVENTS
    encoders: ClassVar[int] = 1

    @classmethod
    def fit(cls, examples: Examples, *, seed: int) -> Self:
        """Return a head that is trained on the examples. `seed` is not used: the loss has only one minimum."""
        mean = examples.mean[0]
        features = np.stack([_features(sample, mean).mean(axis=0) for sample in examples.samples])
        weights, bias = fit_logistic(features.astype(np.float64), examples.positive.astype(np.float64), strength=STRENGTH)
        return cls(weights.astype(np.float32), bias, mean)

    def score(self, sample: Sample) -> FloatArray:
        """Return a logit per frame, (S,) float32."""
        return np.asarray(_features(sample, self.mean) @ self.weights + np.float32(self.bias), np.float32)

    def state(self) -> dict[str, FloatArray]:
        """Return the arrays of the head by name."""
        return {"weights": self.weights, "bias": np.array([self.bias], np.float32), "mean": self.mean}

    @classmethod
    def of(cls, state: Mapping[str, FloatArray]) -> Self:
        """Return the head from the arrays of `state`."""
        if state["weights"].shape != (len(state["mean"]) + 1,):
            raise ValueError(f"weights of shape {state['weights'].shape} do not fit a mean of shape {state['mean'].shape}")
        return cls(state["weights"], float(state["bias"][0]), state["mean"])


def _features(sample: Sample, mean: FloatArray) -> FloatArray:
    """Return the features of each frame, (S, D + 1): the centred vector, then the scaled logit."""
    logit = np.asarray(np.clip(sample.logit, -LOGIT_LIMIT, LOGIT_LIMIT) / LOGIT_SPREAD, np.float32)
    return np.column_stack([centred(sample.vectors[0], mean), logit])


def fit_logistic(features: TimeArray, positive: TimeArray, *, strength: float) -> tuple[TimeArray, float]:
    """Return the weights (F,) and the intercept of a logistic regression with balanced classes.

    scikit-learn's `LogisticRegression(C=strength, class_weight="balanced")` gives the same result.

    Args:
        features: (N, F) float64.
        positive: (N,) float64, 1 or 0; both values must occur.
        strength: the weight of the examples; the L2 penalty has the weight 1.
    """
    from scipy.optimize import minimize  # imported here, because it takes a third of a second, and a scan does not need it

    sign = 2.0 * positive - 1.0
    count = np.where(positive > 0, positive.sum(), len(positive) - positive.sum())
    weight = strength * len(positive) / (2.0 * count)

    def loss(parameters: TimeArray) -> tuple[float, TimeArray]:
        """Return the regularized loss and its gradient."""
        margin = sign * (features @ parameters[:-1] + parameters[-1])
        pull = -0.5 * weight * sign * (1.0 - np.tanh(0.5 * margin))
        value = 0.5 * float(parameters[:-1] @ parameters[:-1]) + float(weight @ np.logaddexp(0.0, -margin))
        return value, np.append(parameters[:-1] + features.T @ pull, pull.sum())

    limits = {"maxiter": 500, "gtol": 1e-6, "ftol": 1e-11}
    solution = minimize(loss, np.zeros(features.shape[1] + 1), jac=True, method="L-BFGS-B", options=limits)
    return solution.x[:-1], float(solution.x[-1])


SHARPNESS = 5.5
"""The similarity to a labelled event is exp(-SHARPNESS · (1 - cosine of the vectors)), as in Tip-Adapter."""
SHARE = 4.0
"""Weight of the similarities. For an event that is very similar to rejected events, the logit decreases by about SHARE."""


@dataclass(frozen=True)
class RetrievalHead:
    """Changes the logit of an event that is similar to confirmed or to rejected events.

    The similarity to confirmed events is added to the logit. The similarity to rejected events is subtracted.

    Tip-Adapter (Zhang et al., "Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022) takes CLIP's own score
    and adds the similarity to labelled vectors. NAGL (Wang et al., "Normal-Abnormal Guided Generalist Anomaly Detection",
    NeurIPS 2025) compares an image with normal and with abnormal references. Some steps of these papers are left out:
    Tip-Adapter also fine-tunes the labelled vectors, and searches for its two constants on labelled data. NAGL also learns
    attention, and compares patches of the image.

    A single verdict is enough to train this head. The head compares the mean vector of an event, so all frames of the event get
    the same logit.

    Attributes:
        confirmed, rejected: (N, D), one unit vector per event.
        mean: (D,) vector that is subtracted from every vector.
    """

    confirmed: FloatArray = field(repr=False)
    rejected: FloatArray = field(repr=False)
    mean: FloatArray = field(repr=False)

    labels: ClassVar[Labels] = Labels.EVENTS
    encoders: ClassVar[int] = 1

    @classmethod
    def fit(cls, examples: Examples, *, seed: int) -> Self:
        """Return a head that is trained on the examples. `seed` is not used: no step is random."""
        mean = examples.mean[0]
        keys = np.stack([_key(sample, mean) for sample in examples.samples])
        return cls(keys[examples.positive], keys[~examples.positive], mean)

    def score(self, sample: Sample) -> FloatArray:
        """Return a logit per frame, (S,) float32."""
        key = _key(sample, self.mean)
        difference = _similarity(key, self.confirmed) - _similarity(key, self.rejected)
        return np.asarray(np.clip(sample.logit, -LOGIT_LIMIT, LOGIT_LIMIT) + SHARE * difference, np.float32)

    def state(self) -> dict[str, FloatArray]:
        """Return the arrays of the head by name."""
        return {"confirmed": self.confirmed, "rejected": self.rejected, "mean": self.mean}

    @classmethod
    def of(cls, state: Mapping[str, FloatArray]) -> Self:
        """Return the head from the arrays of `state`."""
        confirmed, rejected, mean = (state[name] for name in ("confirmed", "rejected", "mean"))
        if not confirmed.shape[1] == rejected.shape[1] == len(mean):
            raise ValueError(f"events of shape {confirmed.shape} and {rejected.shape} do not fit a mean of shape {mean.shape}")
        return cls(confirmed, rejected, mean)


def _key(sample: Sample, mean: FloatArray) -> FloatArray:
    """Return one unit vector (D,) float32 for a sample: the mean of its centred vectors (see `centred`)."""
    key = centred(sample.vectors[0], mean).mean(axis=0)
    return np.asarray(key / max(float(np.linalg.norm(key)), 1e-6), np.float32)


def _similarity(key: FloatArray, keys: FloatArray) -> float:
    """Return how similar `key` is to the three nearest of `keys`, in [0, 1]; 0 if there are no keys."""
    # Tip-Adapter takes the sum over all labelled vectors of a class. But reviews contain far more false events than true
    # events, so a sum over the false events would be too large.
    influence = np.exp(-SHARPNESS * (1.0 - keys @ key))
    return float(np.sort(influence)[-3:].mean()) if len(keys) else 0.0
