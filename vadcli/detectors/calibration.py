"""From a value to how often footage like the camera's own reaches it, and from there to a logit.

The tail is fitted to the bulk of the values, so a camera with a fight in it keeps a fight's high scores; with little
footage it is drawn towards a reference measured on other cameras.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vadcli.types import Calibration, FloatArray

MOMENT_S = 2.0
"""One event lasts about this long: an hour holds 1,800 of them."""

USUAL = 0.25
"""The quantile of the values while something moves that counts as usual; low, so that a busy incident can't lift it much."""

BULK = 0.9
"""The quantile up to which values shape the tail."""

FAINT = 6.0
"""E-folds given to what is fainter than usual."""

CALIBRATION = Calibration(r0_per_hour=1.0, temperature=3.0)
"""With these an 8-bit mask orders pixels as its float does, to .001 of pixel AUC; nothing at all scores .011."""


@dataclass(frozen=True)
class Tail:
    """Share of moments at or above a value: active x 0.75 x exp(-(value - usual) / scale) above what is usual.

    Attributes:
        active: share of the moments in which anything moves.
        usual: lower quartile of the values while something moves.
        scale: by how much the value grows for each e-fold of rarity.
    """

    active: float
    usual: float
    scale: float

    def surprise(self, value: FloatArray) -> FloatArray:
        """-ln of the share of moments at or above each value; rising, same shape.

        Below what is usual there is no frequency to tell: there it only orders, from -FAINT at 0, so that an 8-bit mask keeps
        faint things apart.
        """
        at_usual = -np.log((1.0 - USUAL) * self.active)
        below = (at_usual + FAINT) * np.sqrt(np.minimum(value / self.usual, 1.0)) - FAINT
        above = np.maximum(value - self.usual, 0.0) / self.scale
        return np.asarray(below + above, dtype=np.float32)

    def to_json(self) -> dict[str, float]:
        """As stored in a camera model."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Tail:
        """The inverse of `to_json`."""
        return cls(float(document["active"]), float(document["usual"]), float(document["scale"]))


REFERENCE = Tail(active=0.5, usual=1.0, scale=0.24)
"""The tail of values whose usual is 1, over cameras of normal footage."""

USUAL_PRIOR = 3.0
"""The reference for what is usual weighs as much as this many moments of the camera's own."""

TAIL_PRIOR = 300.0
"""The reference for the tail weighs as much as this many moments: ten minutes."""


@dataclass(frozen=True)
class Footage:
    """How much the fit has seen.

    Attributes:
        sampled_s: seconds in the bursts.
        spanned_s: seconds of footage that the bursts are spread over, at least.
    """

    sampled_s: float
    spanned_s: float

    def part(self, share: float) -> Footage:
        """As much as this share of it."""
        return Footage(share * self.sampled_s, share * self.spanned_s)

    def trust(self, share: float, prior: float, *, spread: bool) -> float:
        """Weight of the camera's own value against a reference worth `prior` moments.

        Args:
            share: of the moments that tell anything.
            prior: moments that the reference is worth.
            spread: count what the bursts are spread over, at most ten times what they hold.
        """
        seconds = min(self.spanned_s, 10.0 * self.sampled_s) if spread else self.sampled_s
        own = share * max(seconds, self.sampled_s) / MOMENT_S
        return own / (own + prior)


def usual_level(values: FloatArray, *, footage: Footage, reference: float) -> float:
    """The lower quartile of the values above a floor, drawn towards the reference; a sixth of that is the floor."""
    floor = reference / 6.0
    active = values[values > floor]
    if not len(active):
        return reference
    trust = footage.trust(len(active) / len(values), USUAL_PRIOR, spread=False)
    return _between(reference, float(np.quantile(active, USUAL)), trust)


def fit_tail(values: FloatArray, *, footage: Footage) -> Tail:
    """Fit the tail of smoothed frame values whose usual is about 1; 0 is nothing."""
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


def logit_of(surprise: FloatArray) -> FloatArray:
    """ln(r0 / r) / temperature, where r = moments an hour x exp(-surprise)."""
    moments_an_hour = 3600.0 / MOMENT_S
    rate = np.log(CALIBRATION.r0_per_hour / moments_an_hour) + surprise.astype(np.float64)
    return np.asarray(rate / CALIBRATION.temperature, dtype=np.float32)


def sigmoid(logit: FloatArray) -> FloatArray:
    """The score of a logit, in [0, 1]."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logit)), dtype=np.float32)


def _between(reference: float, own: float, trust: float) -> float:
    return float(np.exp((1.0 - trust) * np.log(reference) + trust * np.log(own)))
