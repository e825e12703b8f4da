"""Event metrics in seconds: what was found, how late, and how often nobody should have been called.

What a reader's verdicts tell of thresholds: how many alarms are right, and how many there are an hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import beta

from vadcli.metrics.intervals import Estimate, Numbers, ratio
from vadcli.types import IndexArray, ReviewedEvent, TimeArray, Verdict

IOU_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""The temporal IoUs at which segment F1 is reported."""

TOLERANCE_S = 1e-6
"""Overlaps of no more than this are none: decimal annotations meet binary timestamps."""
IOU_TOLERANCE = 1e-9


@dataclass(frozen=True)
class EventSet:
    """Predicted and true events of a test set, both by video.

    Attributes:
        predicted, true: V arrays (E, 2) float64, start and end in seconds of the video, end >= start; any order.
        duration_s: (V,) float64, how long each video is.
    """

    predicted: tuple[TimeArray, ...]
    true: tuple[TimeArray, ...]
    duration_s: TimeArray

    def __post_init__(self) -> None:
        if not len(self.predicted) == len(self.true) == len(self.duration_s):
            counts = f"{len(self.predicted)}, {len(self.true)} and {len(self.duration_s)}"
            raise ValueError(f"predicted events, true events and durations are of {counts} videos")
        for number, spans in enumerate((*self.predicted, *self.true)):
            video = number % len(self.predicted)
            if spans.ndim != 2 or spans.shape[1] != 2:
                raise ValueError(f"video {video}: events must be (E, 2) seconds, not {spans.shape}")
            if not np.all(spans[:, 1] >= spans[:, 0]):
                raise ValueError(f"video {video}: an event ends before it starts, or a time is not a number")

    @classmethod
    def of(cls, predicted: Sequence[ArrayLike], true: Sequence[ArrayLike], duration_s: ArrayLike) -> EventSet:
        """From lists of (start, end) a video; an empty list is a video without events."""
        return cls(tuple(map(_spans, predicted)), tuple(map(_spans, true)), np.asarray(duration_s, np.float64))


def match_events(predicted: TimeArray, true: TimeArray, iou: float) -> IndexArray:
    """(M, 2) pairs (predicted, true) of one video with a temporal IoU of at least `iou` that overlap at all, one to one.

    The matching has as many pairs as any can have, and among those the highest sum of IoUs: the optimal matching of sed_eval
    (Mesaros et al., Metrics for Polyphonic Sound Event Detection, 2016) and mir_eval, which depends on no score and no order.
    ActivityNet's greedy matching by score gives the same pairs where no two candidates compete for an event, so always where
    events of one side don't overlap and the IoU is above 0.5.
    """
    first, second, shared = _overlaps(predicted, true)
    union = (predicted[first, 1] - predicted[first, 0]) + (true[second, 1] - true[second, 0]) - shared
    ious = shared / union
    fits = ious >= iou - IOU_TOLERANCE
    return _assign(first[fits], second[fits], ious[fits], len(predicted), len(true))


def segment_f1(events: EventSet, *, iou: float) -> Estimate:
    """F1 of events matched one to one at a temporal IoU of at least `iou`, over all videos together.

    2 TP / (predicted + true), as the segmental F1 of Lea et al. (Temporal Convolutional Networks, CVPR 2017) and the event F1
    of sed_eval; matched as `match_events` says. 0 where there are events on one side alone. Undefined where no video has
    an event on either side.
    """
    if not 0.0 < iou <= 1.0:
        raise ValueError(f"the IoU must lie in (0, 1], not {iou:g}")
    matched = [len(match_events(*pair, iou)) for pair in zip(events.predicted, events.true, strict=True)]
    counts = np.array(_lengths(events.predicted)) + np.array(_lengths(events.true))
    return ratio(2.0 * np.array(matched), counts, undefined="event F1 needs a true or a predicted event")


def onset_error(events: EventSet, *, iou: float = IOU_LEVELS[0], signed: bool = False) -> Estimate:
    """The mean distance in seconds from the start of a true event to that of the predicted event matched with it.

    Its definition is this project's own, as papers on video anomaly detection share none: pairs are those of `match_events` at
    `iou`; events without a partner don't count, so read it beside the recall. Undefined where nothing is matched.

    Args:
        events: of all videos.
        iou: from which temporal IoU on events may be paired.
        signed: True gives the mean of predicted minus true: below 0 is early.
    """
    if not 0.0 < iou <= 1.0:
        raise ValueError(f"the IoU must lie in (0, 1], not {iou:g}")
    sums, counts = np.zeros(len(events.true)), np.zeros(len(events.true))
    for video, (predicted, true) in enumerate(zip(events.predicted, events.true, strict=True)):
        pairs = match_events(predicted, true, iou)
        errors = predicted[pairs[:, 0], 0] - true[pairs[:, 1], 0]
        sums[video] = (errors if signed else np.abs(errors)).sum()
        counts[video] = len(pairs)
    note = f"over {int(counts.sum())} matched of {sum(_lengths(events.true))} true events"
    return ratio(sums, counts, undefined="onset error needs a true event that is matched", note=note)


def false_alarms_per_hour(events: EventSet) -> Estimate:
    """Predicted events that overlap no true event, by the hours of all videos, abnormal stretches included.

    The false-alarm rate of surveillance evaluations (TRECVID's event detection counts it so, NIST 2010) with the mildest match:
    touching a true event is enough not to be a false alarm. Undefined where the videos have no length.
    """
    alarms = [
        len(predicted) - len(np.unique(_overlaps(predicted, true)[0]))
        for predicted, true in zip(events.predicted, events.true, strict=True)
    ]
    hours = events.duration_s / 3600.0
    return ratio(np.array(alarms, np.float64), hours, undefined="false alarms an hour need videos that last")


def detection_recall(events: EventSet) -> Estimate:
    """The share of true events that some predicted event overlaps, however little.

    The existence term of range-based recall (Tatbul et al., Precision and Recall for Time Series, NeurIPS 2018, section 4.1).
    Undefined without true events.
    """
    found = [
        len(np.unique(_overlaps(predicted, true)[1])) for predicted, true in zip(events.predicted, events.true, strict=True)
    ]
    lengths = np.array(_lengths(events.true), np.float64)
    return ratio(np.array(found, np.float64), lengths, undefined="detection recall needs a true event")


def _spans(spans: ArrayLike) -> TimeArray:
    array = np.asarray(spans, np.float64)
    return array.reshape(-1, 2) if array.size == 0 else array


def _lengths(events: Sequence[TimeArray]) -> list[int]:
    return [len(spans) for spans in events]


def _overlaps(predicted: TimeArray, true: TimeArray) -> tuple[IndexArray, IndexArray, Numbers]:
    """All pairs (predicted, true) that overlap, and by how many seconds; an event without length overlaps nothing."""
    order = np.argsort(predicted[:, 0], kind="stable")
    starts = predicted[order, 0]
    reach = np.maximum.accumulate(predicted[order, 1]) if len(order) else starts
    low = np.searchsorted(reach, true[:, 0], "right")
    counts = np.maximum(np.searchsorted(starts, true[:, 1], "left") - low, 0)
    second = np.repeat(np.arange(len(true)), counts)
    ramp = np.arange(len(second)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = order[np.repeat(low, counts) + ramp]
    shared = np.minimum(predicted[first, 1], true[second, 1]) - np.maximum(predicted[first, 0], true[second, 0])
    touch = shared > TOLERANCE_S
    return first[touch], second[touch], shared[touch]


def _assign(first: IndexArray, second: IndexArray, ious: Numbers, predicted: int, true: int) -> IndexArray:
    """(M, 2) the one-to-one pairs out of candidates: most of them, then the highest sum of IoUs; each knot of rivals apart."""
    graph = coo_array((np.ones(len(first)), (first, predicted + second)), shape=(predicted + true,) * 2)
    knots = connected_components(graph, directed=False)[1][first] if len(first) else first
    order = np.argsort(knots, kind="stable")
    pairs = []
    for members in np.split(order, np.flatnonzero(np.diff(knots[order])) + 1):
        if len(members) == 1:
            pairs.append((first[members[0]], second[members[0]]))
            continue
        rows, row = np.unique(first[members], return_inverse=True)
        columns, column = np.unique(second[members], return_inverse=True)
        gain = np.zeros((len(rows), len(columns)))
        gain[row, column] = 1.0 + ious[members] / (len(members) + 1)  # one pair more outweighs all IoUs together
        chosen = linear_sum_assignment(gain, maximize=True)
        pairs.extend((rows[r], columns[c]) for r, c in zip(*chosen, strict=True) if gain[r, c] > 0)
    return np.array(pairs, np.int64).reshape(-1, 2)


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
