"""Calibration: how often a camera's videos reach a value, and the logit for that rate.

A tail is fitted to the lower 90 % of the values. So a fight in the videos of a camera still gets
high scores. If there is little footage, the fit is shrunk towards a reference from other cameras.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import log_ndtr

from vadcli.types import Calibration, FloatArray

MOMENT_S = 2.0
"""Length of a moment, about that of one event. An hour has 1,800 moments."""

USUAL = 0.25
"""The usual value is this quantile of the values while something moves.

It is low, so that a busy incident cannot raise it much.
"""

BULK = 0.9
"""The tail is fitted to the values up to this quantile."""

FAINT = 6.0
"""The log rarity of the value 0 is minus this; one unit is a factor of e in rarity."""

CALIBRATION = Calibration(r0_per_hour=1.0, temperature=3.0)
"""With these values, an 8-bit mask has the pixel AUC of the float mask to within .001.

The value 0 (nothing moves) gets a score of .011.
"""


@dataclass(frozen=True)
class Tail:
    """The share of moments that reach a value or exceed it.

    Above the usual value it is active x 0.75 x exp(-(value - usual) / scale).

    Attributes:
        active: share of the moments in which anything moves.
        usual: lower quartile of the values while something moves.
        scale: if the value rises by this much, it becomes rarer by a factor of e.
    """

    active: float
    usual: float
    scale: float

    def log_rarity(self, value: FloatArray) -> FloatArray:
        """Returns -ln of the share of moments that reach each value, in the same shape.

        It rises with the value. Below the usual value, no share can be estimated. There it starts
        at -FAINT and only keeps the order, so that an 8-bit mask still separates faint motion.
        """
        at_usual = -np.log((1.0 - USUAL) * self.active)
        below = (at_usual + FAINT) * np.sqrt(np.minimum(value / self.usual, 1.0)) - FAINT
        above = np.maximum(value - self.usual, 0.0) / self.scale
        return np.asarray(below + above, dtype=np.float32)

    def to_json(self) -> dict[str, float]:
        """Returns the JSON that is stored in a camera model."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Tail:
        """Returns the tail that `to_json` stored."""
        return cls(float(document["active"]), float(document["usual"]), float(document["scale"]))


REFERENCE = Tail(active=0.5, usual=1.0, scale=0.24)
"""The tail for a usual value of 1, measured on cameras with normal videos."""

USUAL_PRIOR = 3.0
"""The reference for the usual value weighs as much as this many moments of the camera."""

TAIL_PRIOR = 300.0
"""The reference for the tail weighs as much as this many moments (ten minutes)."""


@dataclass(frozen=True)
class FittedTime:
    """How much video a fit is based on.

    Attributes:
        sampled_s: total seconds of the bursts.
        spanned_s: seconds of video over which the bursts are spread; a lower bound.
    """

    sampled_s: float
    spanned_s: float

    def part(self, share: float) -> FittedTime:
        """Returns both durations times a share."""
        return FittedTime(share * self.sampled_s, share * self.spanned_s)

    def trust(self, share: float, prior: float, *, spread: bool) -> float:
        """Returns the weight of the camera's own value in [0, 1]; the reference gets the rest.

        Args:
            share: share of the moments that give information.
            prior: the reference weighs as much as this many moments.
            spread: True counts `spanned_s`, up to ten times `sampled_s`; False counts `sampled_s`.
        """
        seconds = min(self.spanned_s, 10.0 * self.sampled_s) if spread else self.sampled_s
        own = share * max(seconds, self.sampled_s) / MOMENT_S
        return own / (own + prior)


def usual_level(values: FloatArray, *, footage: FittedTime, reference: float) -> float:
    """Returns the lower quartile of the values above a floor, shrunk towards the reference.

    The floor is a sixth of the reference.
    """
    floor = reference / 6.0
    active = values[values > floor]
    if not len(active):
        return reference
    trust = footage.trust(len(active) / len(values), USUAL_PRIOR, spread=False)
    return _between(reference, float(np.quantile(active, USUAL)), trust)


def fit_tail(values: FloatArray, *, footage: FittedTime) -> Tail:
    """Returns the tail of smoothed frame values. About 1 is usual; 0 means no motion."""
    active = values[values > 0.25 * REFERENCE.usual]
    share = len(active) / max(1, len(values))
    trust = footage.trust(1.0, USUAL_PRIOR, spread=True)
    moving = trust * share + (1.0 - trust) * REFERENCE.active
    if not len(active):
        return Tail(max(moving, 0.01), REFERENCE.usual, REFERENCE.scale)
    usual, high = (float(value) for value in np.quantile(active, [USUAL, BULK]))
    scale = max((high - usual) / np.log((1.0 - USUAL) / (1.0 - BULK)), 0.5 * REFERENCE.scale * usual)
    trust = footage.trust(share, TAIL_PRIOR, spread=True)
    usual = _between(REFERENCE.usual, usual, footage.trust(share, USUAL_PRIOR, spread=False))
    return Tail(max(moving, 0.01), usual, _between(REFERENCE.scale * usual, scale, trust))


def logit_of(log_rarity: FloatArray) -> FloatArray:
    """Returns ln(r0 / r) / temperature, where r = moments per hour x exp(-log_rarity)."""
    moments_an_hour = 3600.0 / MOMENT_S
    rate = np.log(CALIBRATION.r0_per_hour / moments_an_hour) + log_rarity.astype(np.float64)
    return np.asarray(rate / CALIBRATION.temperature, dtype=np.float32)


def sigmoid(logit: FloatArray) -> FloatArray:
    """Returns the scores of logits, in [0, 1]."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logit)), dtype=np.float32)


def _between(reference: float, own: float, trust: float) -> float:
    return float(np.exp((1.0 - trust) * np.log(reference) + trust * np.log(own)))


@dataclass(frozen=True)
class BellTail:
    """The share of moments that reach a value, for values that spread to both sides of their median.

    Up to BEND spreads above the median it is that of a normal distribution. Beyond, it falls by a factor of e whenever
    the value rises by spread / hazard, because rare values are more frequent than in a normal distribution.

    Attributes:
        median: of the values.
        spread: their standard deviation, estimated from the quartiles.
        hazard: see above.
    """

    median: float
    spread: float
    hazard: float

    BEND: ClassVar[float] = 2.0
    HAZARD: ClassVar[float] = 2.373
    """Density divided by tail of a normal distribution at BEND."""

    def log_rarity(self, value: FloatArray) -> FloatArray:
        """Returns -ln of the share of moments that reach each value, in the same shape."""
        place = (np.asarray(value, dtype=np.float64) - self.median) / self.spread
        inner = -log_ndtr(-np.minimum(place, self.BEND))
        return np.asarray(inner + self.hazard * np.maximum(place - self.BEND, 0.0), dtype=np.float32)


def fit_bell_tail(values: FloatArray, *, seconds: float, floor: float) -> BellTail:
    """Returns the tail of a camera's values; what is odd in up to a tenth of them hardly changes it.

    Args:
        values: (n,) smoothed values of sampled frames.
        seconds: how much video they are.
        floor: smallest spread.
    """
    low, median, high, most, extreme = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75, 0.9, 0.95]))
    # The lower side cannot hold anomalies of this category, so it bounds the spread from below.
    spread = max((high - low) / 1.349, (median - low) / 0.6745, floor)
    own = np.log(2.0) * spread / max(extreme - most, 0.05 * spread)
    moments = seconds / MOMENT_S
    trust = moments / (moments + TAIL_PRIOR)
    hazard = float(np.clip(_between(BellTail.HAZARD, own, trust), 0.5 * BellTail.HAZARD, 2.0 * BellTail.HAZARD))
    return BellTail(median, spread, hazard)
