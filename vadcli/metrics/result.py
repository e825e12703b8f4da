"""A figure as it is reported: its value, its interval, the videos that it rests on, and what a reader must know beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One figure. What can't be computed is None with a note that says why; a NaN is refused.

    Attributes:
        value: the figure, or None where it is undefined.
        ci_low, ci_high: the interval's ends, both or neither.
        videos: how many videos the figure rests on.
        note: what a reader must know; always there where the value is None.
    """

    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    videos: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        if self.value is None and not self.note:
            raise ValueError("an undefined metric needs a note that says why")
        if any(number is not None and not math.isfinite(number) for number in (self.value, self.ci_low, self.ci_high)):
            raise ValueError(f"a metric's numbers must be finite, not {self.value}, {self.ci_low}, {self.ci_high}")
        if (self.ci_low is None) != (self.ci_high is None):
            raise ValueError(f"an interval has both ends or none, not {self.ci_low} and {self.ci_high}")
        if self.ci_low is not None and self.ci_high is not None and self.ci_low > self.ci_high:
            raise ValueError(f"an interval's low end {self.ci_low} lies above its high end {self.ci_high}")

    def to_json(self) -> dict[str, float | int | str | None]:
        """In full precision, as written into `--json`."""
        return {
            "value": self.value,
            "ci_low": self.ci_low,
            "ci_high": self.ci_high,
            "videos": self.videos,
            "note": self.note,
        }
