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

PRIOR_MOMENTS = 30.0
"""The reference weighs as much as this many moments of the camera's own footage."""

BULK = 0.95
"""Values above this quantile of the active ones don't shape the tail."""

CALIBRATION = Calibration(r0_per_hour=1.0, temperature=2.5)


@dataclass(frozen=True)
class Tail:
    """Share of moments at or above a value: active x 0.5 x exp(-(value - median) / scale) above the median of the active.

    Attributes:
        active: share of the moments in which anything moves.
        median: of the values while something moves.
        scale: by how much the value grows for each e-fold of rarity.
    """

    active: float
    median: float
    scale: float

    def surprise(self, value: FloatArray) -> FloatArray:
        """-ln of the share of moments at or above each value; 0 at 0, rising, same shape."""
        at_median = -np.log(0.5 * self.active)
        below = value * (at_median / self.median)
        above = at_median + (value - self.median) / self.scale
        return np.asarray(np.where(value < self.median, below, above), dtype=np.float32)

    def to_json(self) -> dict[str, float]:
        """As stored in a camera model."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Tail:
        """The inverse of `to_json`."""
        return cls(float(document["active"]), float(document["median"]), float(document["scale"]))


def fit_tail(values: FloatArray, *, seconds: float, reference: Tail) -> Tail:
    """Fit a tail to frame values.

    Args:
        values: (n,) one value a sampled frame, >= 0; 0 is nothing.
        seconds: how much footage they stand for.
        reference: what is assumed where footage is short; also the floor of scale and median, at a quarter.
    """
    floor = 0.25 * reference.median
    active = values[values > floor]
    moments = seconds / MOMENT_S
    share = (len(active) / max(1, len(values)) * moments + reference.active * PRIOR_MOMENTS) / (moments + PRIOR_MOMENTS)
    if not len(active):
        return Tail(share, reference.median, reference.scale)
    own = moments * len(active) / len(values)
    trust = own / (own + PRIOR_MOMENTS)
    bulk = active[active <= np.quantile(active, BULK)]
    middle, high = np.quantile(bulk, [0.5, 0.9])
    scale = max(float(high - middle) / np.log(5.0), 0.25 * reference.scale)
    return Tail(share, _between(reference.median, float(middle), trust), _between(reference.scale, scale, trust))


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
