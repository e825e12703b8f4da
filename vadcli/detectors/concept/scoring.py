"""Computes category scores from vectors: comparison with sentences, anchor, calibration.

Each step after the encoder is exact or depends on one video alone. So scores from stored vectors equal those of the scan bit
for bit, and the batch size does not matter.

The anchor is a vector of the camera's usual frames. The method comes from the paper NOVA (arXiv 2609.06360).

Letters in shapes: S vectors, M sentences, C categories, D width of a vector.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vadcli.detectors.calibration import CategoryTails, smooth
from vadcli.types import BoolArray, Embeddings, FloatArray, FrameScores, IndexArray, TimeArray, sigmoid

log = logging.getLogger("vadcli")

POSITIVE_WEIGHT = 0.9
"""Weight of the sentences for a category; the sentences against it have the weight 1 (NOVA)."""
ANCHOR_TEMPERATURE = 0.3
"""A frame's weight in the anchor falls by a factor of e when its score rises by this much (NOVA)."""
SMOOTHING_S = 1.7
"""Standard deviation of the smoothing over time, in seconds (NOVA)."""
GAP_S = 4.0
SIMILAR = 0.70
"""A normal sentence may describe a category if their cosine is higher than this."""
TEXT_LEVELS = 2**15 - 1
"""Vectors of sentences are rounded to whole numbers up to this. Their products with int8 vectors are exact in float64."""
SPREAD_FLOOR = 0.15
"""Smallest spread of a camera's evidence. Otherwise a camera whose frames never change would alarm at any change."""


@dataclass(frozen=True)
class Sentences:
    """M unit vectors of sentences: rows of whole numbers, each multiplied by a scale.

    Attributes:
        values: (M, D) float64, whole numbers.
        scale: (M,) float64, the factor of each row.
    """

    values: TimeArray = field(repr=False)
    scale: TimeArray = field(repr=False)

    @classmethod
    def of(cls, vectors: FloatArray) -> Sentences:
        """Return sentences from their unit vectors (M, D), which are rounded."""
        exact = vectors.astype(np.float64)
        scale = np.maximum(np.abs(exact).max(axis=1), 1e-12) / TEXT_LEVELS
        return cls(np.rint(exact / scale[:, None]), scale)

    def cosines(self, embeddings: Embeddings) -> TimeArray:
        """Return the cosines (S, M) float64 of S vectors and M sentences."""
        products = embeddings.values.astype(np.float64) @ self.values.T  # sums of whole numbers are exact in any order
        return np.asarray(products * embeddings.scale.astype(np.float64)[:, None] * self.scale[None, :])


@dataclass(frozen=True)
class Bank:
    """The sentences of all categories.

    Attributes:
        names: C categories.
        sentences: M different sentences.
        positive, negative: for each category, the indices of the sentences for it, and of those against it.
        temperature: the number by which differences of cosines are divided.
    """

    names: tuple[str, ...]
    sentences: Sentences
    positive: tuple[IndexArray, ...]
    negative: tuple[IndexArray, ...]
    temperature: float

    def evidence(self, embeddings: Embeddings, anchor: Sentences | None) -> FloatArray:
        """Return the evidence (S, 2C) float32: the contrast of C categories, then their fit.

        Fit says how well the sentences for the category fit. Contrast says how much better they fit than the sentences against
        the category. The published method uses contrast alone. But contrast rises for everything unusual, because normal
        sentences then fit less well. So an alarm needs both: contrast and fit must be rare. The fit of an absent category is
        not rare.

        Args:
            embeddings: S vectors.
            anchor: counts as one more sentence against every category; None for no anchor.
        """
        cosines = self.sentences.cosines(embeddings)
        extra = anchor.cosines(embeddings) if anchor is not None else np.empty((len(embeddings), 0))
        count = len(self.names)
        found = np.empty((len(embeddings), 2 * count), np.float32)
        for place, (good, bad) in enumerate(zip(self.positive, self.negative, strict=True)):
            against = np.concatenate([cosines[:, bad], extra], axis=1)
            fit = POSITIVE_WEIGHT * upper_half(cosines[:, good])
            found[:, place] = (fit - upper_half(against)) / self.temperature
            found[:, count + place] = fit / self.temperature
        return found


def upper_half(cosines: TimeArray) -> TimeArray:
    """Return the mean (S,) of the higher half of each row of cosines (S, n), n >= 1."""
    count = (cosines.shape[1] + 1) // 2
    highest = np.ascontiguousarray(np.sort(cosines, axis=1)[:, -count:])
    return np.asarray(highest.sum(axis=1) / count)


def unlike(category: FloatArray, normal: FloatArray, texts: Sequence[str], name: str) -> BoolArray:
    """Return flags (n,) for the normal sentences, True for those that do not describe the category.

    A normal sentence describes the category if its cosine with the category's mean is higher than SIMILAR, and also higher than
    that of most of the category's own sentences. The second rule is for encoders that give similar vectors to all sentences:
    the first rule alone would remove every normal sentence.

    Args:
        category: (m, D) unit vectors of the sentences for the category.
        normal: (n, D) unit vectors of the normal sentences.
        texts: the n sentences, for the log.
        name: the category.
    """
    mean = category.mean(axis=0)
    mean = mean / max(float(np.linalg.norm(mean)), 1e-12)
    limit = max(SIMILAR, float(np.median(category @ mean)))
    keep = normal @ mean <= limit
    left_out = [texts[int(place)] for place in np.flatnonzero(~keep)]
    if left_out:
        log.info("%s: left out %d normal sentences that describe it, such as %r", name, len(left_out), left_out[0])
        log.debug("%s: left out: %s", name, "; ".join(left_out))
    return np.asarray(keep, dtype=np.bool_)


@dataclass(frozen=True)
class Burst:
    """Vectors of consecutive sampled frames of one video.

    Attributes:
        embeddings: S vectors.
        timestamp: (S,) float64 seconds.
    """

    embeddings: Embeddings
    timestamp: TimeArray


@dataclass(frozen=True)
class ConceptCamera:
    """The usual vector and the usual evidence of one camera, for one list of categories.

    Attributes:
        anchor: a vector of the camera's usual frames; None if the camera is unknown.
        tails: how rare the smoothed evidence is, with two kinds of evidence per category.
    """

    anchor: Sentences | None
    tails: CategoryTails

    @classmethod
    def fit(cls, bank: Bank, bursts: Sequence[Burst], seconds: float) -> ConceptCamera:
        """Return the anchor and the tails of a camera. Without bursts, the camera is unknown.

        Args:
            bank: the sentences.
            bursts: a sample of the camera's videos.
            seconds: total length of the sample.
        """
        if not bursts:
            return cls(None, CategoryTails.unknown(len(bank.names), kinds=2))
        vectors = np.concatenate([burst.embeddings.vectors() for burst in bursts])
        plain = np.concatenate([bank.evidence(burst.embeddings, None)[:, : len(bank.names)] for burst in bursts])
        weight = np.exp(-sigmoid(plain.max(axis=1)).astype(np.float64) / ANCHOR_TEMPERATURE)
        mean = (weight[:, None] * vectors).sum(axis=0) / weight.sum()
        anchor = Sentences.of((mean / max(float(np.linalg.norm(mean)), 1e-12))[None].astype(np.float32))
        smoothed = np.concatenate([smooth_all(bank.evidence(one.embeddings, anchor), one.timestamp) for one in bursts])
        return cls(anchor, CategoryTails.fit(smoothed, len(bank.names), seconds=seconds, floor=SPREAD_FLOOR))

    def finish(self, evidence: FloatArray, timestamp: TimeArray) -> FrameScores:
        """Return the scores of a video from its evidence (S, 2C).

        A frame has the score of its rarest category. The scores of single categories are on the same scale.
        """
        by_category = self.tails.logits(smooth_all(evidence, timestamp))  # (S, C)
        return FrameScores(by_category.max(axis=1), by_category=by_category)

    def pixel_scores(self, evidence: FloatArray) -> FloatArray:
        """Return the scores (P,) in [0, 1] of P patches from their evidence (P, 2C)."""
        return sigmoid(self.tails.logits(evidence).max(axis=1))


def smooth_all(evidence: FloatArray, timestamp: TimeArray) -> FloatArray:
    """Return the evidence (S, K), smoothed over time."""
    usable = np.ones(len(timestamp), np.bool_)
    columns = [smooth(column, timestamp=timestamp, usable=usable, sigma_s=SMOOTHING_S, gap_s=GAP_S) for column in evidence.T]
    return np.stack(columns, axis=1) if len(timestamp) else evidence
