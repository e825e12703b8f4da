"""What a reader's verdicts tell of thresholds: how many alarms are right, and how many there are an hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import beta

from vadcli.types import ReviewedEvent, Verdict

LEVEL = 0.95


@dataclass(frozen=True)
class ThresholdChoice:
    """What a threshold would give.

    Attributes:
        threshold: an event opens at this score.
        true, false: reviewed events that would stay.
        precision: share of true ones among these.
        low, high: its 95 % interval (Jeffreys).
        kept: share of all reviewed true events that would stay.
        alarms_per_hour: events, reviewed or not, an hour of footage.
    """

    threshold: float
    true: int
    false: int
    precision: float
    low: float
    high: float
    kept: float
    alarms_per_hour: float


def threshold_choices(reviewed: Sequence[ReviewedEvent], peaks: Sequence[float], hours: float) -> list[ThresholdChoice]:
    """The thresholds worth choosing among, rising: each the lowest with its precision, and each more precise than those below.

    A higher threshold removes exactly the events whose peak lies below it. What a lower one than the scan's would add is not
    known: nobody has looked at it.

    Args:
        reviewed: events with a verdict; unsure ones don't count.
        peaks: peak scores of all stored events.
        hours: footage that these come from.

    Raises:
        ValueError: there is no footage.
    """
    if hours <= 0:
        raise ValueError("no footage, no alarms an hour")
    judged = [event for event in reviewed if event.verdict is not Verdict.UNSURE]
    found: list[ThresholdChoice] = []
    for threshold in sorted({event.peak_score for event in judged}):
        choice = _choice(judged, peaks, hours, threshold)
        if not found or choice.precision > found[-1].precision:
            found.append(choice)
    return found


def _choice(judged: Sequence[ReviewedEvent], peaks: Sequence[float], hours: float, threshold: float) -> ThresholdChoice:
    stay = [event.verdict for event in judged if event.peak_score >= threshold]
    true = stay.count(Verdict.TRUE)
    false = len(stay) - true
    all_true = sum(event.verdict is Verdict.TRUE for event in judged)
    tail = (1 - LEVEL) / 2
    return ThresholdChoice(
        threshold=threshold,
        true=true,
        false=false,
        precision=true / len(stay),
        low=float(beta.ppf(tail, true + 0.5, false + 0.5)) if true else 0.0,
        high=float(beta.ppf(1 - tail, true + 0.5, false + 0.5)) if false else 1.0,
        kept=true / all_true if all_true else 0.0,
        alarms_per_hour=sum(peak >= threshold for peak in peaks) / hours,
    )


def without_false(events: Sequence[tuple[float, float]], reviewed: Sequence[ReviewedEvent]) -> list[int]:
    """Places of the events of one video that no reader called false.

    An event is the reviewed one that shares more than half of their common stretch with it, so that a review holds for
    events that were cut anew as well.

    Args:
        events: (start_s, end_s) of each.
        reviewed: of the same video.
    """
    return [place for place, span in enumerate(events) if _verdict(span, reviewed) is not Verdict.FALSE]


def _verdict(span: tuple[float, float], reviewed: Sequence[ReviewedEvent]) -> Verdict | None:
    best, verdict = 0.5, None
    for event in reviewed:
        common = min(span[1], event.end_s) - max(span[0], event.start_s)
        union = max(span[1], event.end_s) - min(span[0], event.start_s)
        share = common / union if union > 0 else 1.0
        if share > best:
            best, verdict = share, event.verdict
    return verdict
