"""Calibration: turns a raw value into a logit that depends on how rare the value is for the camera.

A video is divided into moments, which are short spans of equal length. The log rarity of a value is -ln(the share of the
moments that reach the value).

A tail describes how rare high values are. A tail is fitted only to the bulk of a camera's values: the lower three quarters
(motion) or the lower 90 % (categories). So a fight in the fitted videos still gets high scores. If there is little video of the
camera, each fitted number is a mean of the number from this video and a reference number from other cameras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from vadcli.types import BoolArray, Calibration, FloatArray, IndexArray, TimeArray

MOMENT_S = 2.0
"""Length of a moment, in seconds: about the length of an event. An hour has 1,800 moments."""

USUAL = 0.25
"""The usual value is this quantile of the values while something moves. An incident hardly raises such a low quantile."""

BULK = 0.75
"""The tail of the motion values is fitted to the values up to this quantile.

So a quarter of the fitted video may be unusual.
"""

CATEGORY_BULK = 0.9
"""The tail of a category's values is fitted to the values up to this quantile.

The quantile is above BULK, because few frames fit a category.
"""

FAINT = 6.0
"""The value 0 has the log rarity -FAINT. If a log rarity is higher by 1, the value is rarer by a factor of e."""

CALIBRATION = Calibration(r0_per_hour=1.0, temperature=3.0)
"""How a log rarity becomes a logit. The value 0 (nothing moves) gets the score .011.

With these numbers, the pixel AUC of an 8-bit mask differs by at most .001 from the pixel AUC of the float mask.
"""


@dataclass(frozen=True)
class Tail:
    """Gives for each value how rare it is: the share of the camera's time with at least this value.

    For a value above the usual value, the share is active × 0.75 × exp(-(value - usual) / scale). The log rarity is -ln(share).

    Attributes:
        active: share of the camera's time in which anything moves.
        usual: the usual value: the lower quartile of the values while something moves.
        scale: a value that is higher by `scale` is rarer by a factor of e.
    """

    active: float
    usual: float
    scale: float

    def log_rarity(self, value: FloatArray) -> FloatArray:
        """Return the log rarity of each value, in the shape of `value`.

        Below the usual value, the formula for the share does not hold. For these values, the log rarity rises from -FAINT (at
        the value 0) to the log rarity of the usual value. So weak and very weak motion get different values in an 8-bit mask.
        """
        at_usual = -np.log((1.0 - USUAL) * self.active)
        below = (at_usual + FAINT) * np.sqrt(np.minimum(value / self.usual, 1.0)) - FAINT
        above = np.maximum(value - self.usual, 0.0) / self.scale
        return np.asarray(below + above, dtype=np.float32)

    def to_json(self) -> dict[str, float]:
        """Return the attributes of the tail as a JSON object for a camera model."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Tail:
        """Return the tail that `to_json` wrote to a JSON object."""
        return cls(float(document["active"]), float(document["usual"]), float(document["scale"]))


REFERENCE = Tail(active=0.5, usual=1.0, scale=0.4)
"""The reference for the tail of the motion values. It comes from other cameras.

If a camera has only seconds of video, the scale of this tail decides which events are found. The scale was set on the clips of
docs/incidents.md.
"""

USUAL_PRIOR = 3.0
"""The usual value of REFERENCE has the same weight as this many moments of the camera."""

TAIL_PRIOR = 60.0
"""The scale of REFERENCE has the same weight as this many moments of the camera (two minutes).

With a higher weight, a busy camera with a few minutes of video gives many more alarms than it should. With a lower weight, the
events of a camera with one minute of video are not found.
"""


@dataclass(frozen=True)
class FittedTime:
    """How much video a fit is based on.

    A fit reads bursts: short series of sampled frames of one video.

    Attributes:
        sampled_s: total seconds of the bursts.
        spanned_s: total length in seconds of the videos from which the bursts come, or a lower bound of this length.
    """

    sampled_s: float
    spanned_s: float

    def part(self, share: float) -> FittedTime:
        """Return both durations, multiplied by a share."""
        return FittedTime(share * self.sampled_s, share * self.spanned_s)

    def trust(self, share: float, prior: float) -> float:
        """Return the weight in [0, 1] of a number that was fitted to the camera's own videos.

        The reference number, which comes from other cameras, has the weight 1 minus this weight.

        Args:
            share: share of the camera's video that was used to fit its own number.
            prior: with this many moments (of MOMENT_S seconds) of the camera's video, both numbers have the same weight.
        """
        seconds = max(self.sampled_s, min(self.spanned_s, 10.0 * self.sampled_s))  # a burst represents the video around it
        own = share * seconds / MOMENT_S
        return own / (own + prior)


def usual_level(values: FloatArray, *, footage: FittedTime, reference: float, floor: float, prior: float) -> float:
    """Return the lower quartile of the values above a floor, mixed with a reference.

    Args:
        values: (n,) values of sampled frames.
        footage: how many seconds of video the values come from; with more video, the reference has less weight.
        reference: the same quartile for other cameras.
        floor: only values above this floor count.
        prior: with this many moments (of MOMENT_S seconds) of video, the reference and the quartile of this camera have the
            same weight.
    """
    active = values[values > floor]
    if not len(active):
        return reference
    trust = footage.trust(len(active) / len(values), prior)
    return _between(reference, float(np.quantile(active, USUAL)), trust)


def fit_tail(values: FloatArray, *, footage: FittedTime) -> Tail:
    """Return the tail of the distribution of smoothed motion values.

    A value of 0 means no motion; 1 is usual motion.
    """
    active = values[values > 0.25 * REFERENCE.usual]
    share = len(active) / max(1, len(values))
    trust = footage.trust(1.0, USUAL_PRIOR)
    moving = trust * share + (1.0 - trust) * REFERENCE.active
    if not len(active):
        return Tail(max(moving, 0.01), REFERENCE.usual, REFERENCE.scale)
    usual, high = (float(value) for value in np.quantile(active, [USUAL, BULK]))
    scale = max((high - usual) / np.log((1.0 - USUAL) / (1.0 - BULK)), 0.25 * REFERENCE.scale * usual)
    trust = footage.trust(share, TAIL_PRIOR)
    usual = _between(REFERENCE.usual, usual, footage.trust(share, USUAL_PRIOR))
    return Tail(max(moving, 0.01), usual, _between(REFERENCE.scale * usual, scale, trust))


def logit_of(log_rarity: FloatArray) -> FloatArray:
    """Return the logits of log rarities.

    If r moments per hour reach a value, the value has the logit ln(r0 / r) / temperature. r0 and temperature are fields of
    CALIBRATION: r0 moments per hour give the score 0.5.
    """
    moments_per_hour = 3600.0 / MOMENT_S
    log_ratio = np.log(CALIBRATION.r0_per_hour / moments_per_hour) + log_rarity.astype(np.float64)  # ln(r0 / r)
    return np.asarray(log_ratio / CALIBRATION.temperature, dtype=np.float32)


def _between(reference: float, own: float, trust: float) -> float:
    """Return the weighted geometric mean of two positive numbers; `trust` is the weight of `own`."""
    return float(np.exp((1.0 - trust) * np.log(reference) + trust * np.log(own)))


@dataclass(frozen=True)
class BellTail:
    """Like `Tail`, but for values with a bell-shaped distribution.

    Up to the value median + BEND · spread, the share of the camera's time is that of a normal distribution. Higher
    values are more frequent than in a normal distribution, so the share falls more slowly: by a factor of e if the value rises
    by spread / hazard.

    Attributes:
        median: median of the values.
        spread: standard deviation of the values, estimated from the quartiles.
        hazard: how fast the share falls for very high values. With a higher hazard, such values are rarer.
    """

    median: float
    spread: float
    hazard: float

    BEND: ClassVar[float] = 2.0
    HAZARD: ClassVar[float] = 2.373
    """The hazard of a normal distribution at BEND: its density divided by the share of the values above BEND."""

    def log_rarity(self, value: FloatArray) -> FloatArray:
        """Return the log rarity of each value, in the shape of `value`."""
        from scipy.special import log_ndtr  # imported here, because it takes a fifth of a second and `motion` does not need it

        spreads = (np.asarray(value, dtype=np.float64) - self.median) / self.spread  # distance to the median
        inner = -log_ndtr(-np.minimum(spreads, self.BEND))
        return np.asarray(inner + self.hazard * np.maximum(spreads - self.BEND, 0.0), dtype=np.float32)


BELL_PRIOR = 300.0
"""The hazard of a normal distribution has the same weight as this many moments of the camera (ten minutes)."""


def fit_bell_tail(values: FloatArray, *, seconds: float, floor: float) -> BellTail:
    """Return the tail of the distribution of a camera's values.

    The tail hardly changes if a tenth of the values is anomalous.

    Args:
        values: (n,) smoothed values of sampled frames.
        seconds: length of the video from which the values come.
        floor: the smallest spread that the tail can have.
    """
    low, median, high, most, extreme = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75, 0.9, 0.95]))
    # The spread is estimated twice: from the second and third quarter of the values, and from the second quarter alone, which
    # contains hardly any anomalies. The larger estimate is used, because a small spread would make usual values rare.
    spread = max((high - low) / 1.349, (median - low) / 0.6745, floor)
    own_hazard = np.log(2.0) * spread / max(extreme - most, 0.05 * spread)
    moments = seconds / MOMENT_S
    trust = moments / (moments + BELL_PRIOR)
    hazard = float(np.clip(_between(BellTail.HAZARD, own_hazard, trust), 0.5 * BellTail.HAZARD, 2.0 * BellTail.HAZARD))
    return BellTail(median, spread, hazard)


RATES = (0.5, 2.0)
"""The lowest and highest `CategoryTails.rate`. With two independent kinds of evidence per category, the rate is 2."""


@dataclass(frozen=True)
class CategoryTails:
    """How rare the evidence for C categories is for one camera.

    A category has one or more kinds of evidence. For each kind, a tail gives a log rarity. The log rarity of the category is
    the lowest of them. The score of a frame comes from the category with the highest log rarity.

    Each log rarity is corrected: it becomes ln(10) + rate · (log rarity - level). There are two reasons. With more categories,
    it is more likely that one category is rare by chance. With more kinds of evidence, it is less likely that all kinds are
    rare at the same time.

    Attributes:
        tails: K tails, one per column of the evidence. The first C columns are the first kind of evidence for each category,
            the next C columns are the second kind, and so on.
        categories: C, the number of categories.
        level: the 90 % quantile, over the frames, of the log rarity of the rarest category.
        rate: how fast the corrected log rarity rises.
    """

    tails: tuple[BellTail, ...]
    categories: int
    level: float
    rate: float

    @classmethod
    def unknown(cls, categories: int, kinds: int = 1) -> CategoryTails:
        """Return the tails of a camera that has no model."""
        tail = BellTail(0.0, 1.0, BellTail.HAZARD)
        return cls((tail,) * (kinds * categories), categories, float(np.log(10.0)), 1.0)

    @classmethod
    def fit(cls, evidence: FloatArray, categories: int, *, seconds: float, floor: float) -> CategoryTails:
        """Return the tails of a camera, fitted to sampled frames of its videos.

        Args:
            evidence: (n, K) evidence of the sampled frames, n >= 1.
            categories: C, the number of categories. K is a multiple of C.
            seconds: total length of the videos from which the frames were sampled.
            floor: the smallest spread that a tail can have.
        """
        tails = tuple(fit_bell_tail(column, seconds=seconds, floor=floor) for column in evidence.T)
        highest = _rarities(tails, categories, evidence).max(axis=1)
        # Fit an exponential through the median and the 90 % quantile. The frames of a fight have higher values than both, so
        # a fight hardly changes the fit.
        median, level = (float(value) for value in np.quantile(highest, [0.5, CATEGORY_BULK]))
        rate = np.log(0.5 / (1.0 - CATEGORY_BULK)) / max(level - median, 1e-6)
        return cls(tails, categories, level, float(np.clip(rate, *RATES)))

    def logits(self, evidence: FloatArray) -> FloatArray:
        """Return the logits (S, C) of each category for evidence (S, K)."""
        rarities = _rarities(self.tails, self.categories, evidence)
        return logit_of(np.asarray(np.log(10.0) + self.rate * (rarities - self.level), dtype=np.float32))


def _rarities(tails: Sequence[BellTail], categories: int, evidence: FloatArray) -> FloatArray:
    """Return per sample and category the lowest log rarity of all kinds of evidence, (S, C).

    `evidence` is (S, K): each category has K / C columns, one per kind.
    """
    rarities = np.stack([tail.log_rarity(column) for tail, column in zip(tails, evidence.T, strict=True)], axis=1)  # (S, K)
    return np.asarray(rarities.reshape(len(rarities), len(tails) // categories, categories).min(axis=1))


REACH = 3.0
"""`smooth` averages over the samples whose distance in time is at most this many standard deviations."""

LARGEST_LAG = 500
"""`smooth` averages over at most this many samples on each side."""


def segments(timestamp: TimeArray, gap_s: float) -> IndexArray:
    """Return for each sample the number of its segment, (S,) int64.

    A new segment begins after each gap that is longer than `gap_s` and also longer than 3 times the median gap.
    """
    if len(timestamp) < 2:
        return np.zeros(len(timestamp), dtype=np.int64)
    step = np.diff(timestamp)
    return np.concatenate([[0], np.cumsum(step > max(gap_s, 3.0 * float(np.median(step))))]).astype(np.int64)


def smooth(values: FloatArray, *, timestamp: TimeArray, usable: BoolArray, sigma_s: float, gap_s: float) -> FloatArray:
    """Return the values (S,) smoothed over time: weighted means of the usable values at nearby times.

    If no usable value is near a sample, the sample gets the nearest mean of its segment. In a segment without any usable value,
    all samples get 0.

    Args:
        values: (S,) one value per sample.
        timestamp: (S,) seconds, increasing.
        usable: (S,) False for the values to leave out.
        sigma_s: standard deviation of the Gaussian weights, in seconds.
        gap_s: passed to `segments`. A mean includes only samples of one segment.
    """
    count = len(values)
    segment = segments(timestamp, gap_s)
    weight = usable.astype(np.float64)
    total, weights = weight * values, weight.copy()
    for lag in range(1, min(count, LARGEST_LAG + 1)):
        distance = timestamp[lag:] - timestamp[:-lag]
        close = (distance <= REACH * sigma_s) & (segment[lag:] == segment[:-lag])
        if not close.any():
            break
        kernel = np.where(close, np.exp(-0.5 * (distance / sigma_s) ** 2), 0.0)
        total[lag:] += kernel * weight[:-lag] * values[:-lag]
        weights[lag:] += kernel * weight[:-lag]
        total[:-lag] += kernel * weight[lag:] * values[lag:]
        weights[:-lag] += kernel * weight[lag:]
    known = weights > 0
    smoothed = np.divide(total, weights, out=np.zeros(count), where=known)
    for row in np.flatnonzero(~known):
        same = np.flatnonzero(known & (segment == segment[row]))
        if len(same):
            smoothed[row] = smoothed[same[np.argmin(np.abs(timestamp[same] - timestamp[row]))]]
    return np.asarray(smoothed, dtype=np.float32)
