"""Similarity to confirmed events minus similarity to rejected ones, added to the detector's own logit.

Tip-Adapter (Zhang et al., "Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022) adds the similarity to a
cache of labelled vectors to the score that CLIP has without labels. NAGL (Wang et al., "Normal-Abnormal Guided Generalist
Anomaly Detection", NeurIPS 2025) compares with normal and with abnormal references. Left out: Tip-Adapter's fine-tuning of the
cache and its search for the two constants on labelled data; NAGL's learned attention and its patches, since a frame has one
vector here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np

from vadcli.heads import LOGIT_LIMIT, Examples, Labels, Sample, centred
from vadcli.types import FloatArray

SHARPNESS = 5.5
"""How fast the influence of a labelled event falls with the distance: exp(-SHARPNESS (1 - cosine)), as in Tip-Adapter."""
SHARE = 4.0
"""Weight of the similarities. If an event looks like a rejected one, its logit falls by about this much."""


@dataclass(frozen=True)
class RetrievalHead:
    """The cache of labelled events. It works from the first verdict on; one of the two sides may be empty.

    An event has one vector, the mean of its frames, so all its frames get the same logit.

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
        """See `Head`. Nothing is random, so the seed changes nothing."""
        mean = examples.mean[0]
        keys = np.stack([_key(sample, mean) for sample in examples.samples])
        return cls(keys[examples.positive], keys[~examples.positive], mean)

    def score(self, sample: Sample) -> FloatArray:
        """See `Head`."""
        key = _key(sample, self.mean)
        difference = _nearness(key, self.confirmed) - _nearness(key, self.rejected)
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
    """Return (D,) the unit vector of a sample."""
    key = centred(sample.vectors[0], mean).mean(axis=0)
    return np.asarray(key / max(float(np.linalg.norm(key)), 1e-6), np.float32)


def _nearness(key: FloatArray, keys: FloatArray) -> float:
    """Return the influence of the nearest keys, in [0, 1]; 0 if there are none.

    Tip-Adapter sums over the keys of a class. Here it is the mean of the three nearest, because reviews have far more false
    events than true ones.
    """
    influence = np.exp(-SHARPNESS * (1.0 - keys @ key))
    return float(np.sort(influence)[-3:].mean()) if len(keys) else 0.0
