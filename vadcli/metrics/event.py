"""Event metrics: matched events, false alarms, thresholds from reviewed events, and severities.

`threshold_choices` uses reviewed events instead of a ground truth.

Two rank correlations show whether more severe true events have higher scores. MAD-Bench uses such correlations for images and
table rows (Cao et al., "Are Anomaly Scores Telling the Whole Story? A Benchmark for Multilevel Anomaly Detection", 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import beta, kendalltau, spearmanr

from vadcli.metrics import Estimate, Numbers, check_share, divide, ranges, ratio
from vadcli.types import IndexArray, ReviewedEvent, TimeArray, Verdict

IOU_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""The values of `iou` for which `segment_f1` is reported."""

TOLERANCE_S = 1e-6
"""Overlaps up to this length are ignored, because they may be rounding errors."""
IOU_TOLERANCE = 1e-9  # so that a rounding error does not exclude a pair whose IoU is equal to the limit

LEVEL = 0.95
"""Confidence level of the intervals in `ThresholdChoice`."""

COMPARED_EVENTS = 512
"""Kendall's tau compares this number of events at once with all events. The number changes only the memory that is used."""


@dataclass(frozen=True)
class EventSet:
    """The predicted and the true events of each of the V videos of a test set.

    Attributes:
        predicted, true: one array (E, 2) float64 per video, with start and end of E events in any order. The times are in
            seconds from the start of the video; end >= start.
        duration_s: (V,) float64, duration of each video in seconds.
    """

    predicted: tuple[TimeArray, ...]
    true: tuple[TimeArray, ...]
    duration_s: TimeArray

    def __post_init__(self) -> None:
        if not len(self.predicted) == len(self.true) == len(self.duration_s):
            counts = f"{len(self.predicted)}, {len(self.true)} and {len(self.duration_s)}"
            raise ValueError(f"predicted events, true events and durations must have the same number of videos, not {counts}")
        for number, spans in enumerate((*self.predicted, *self.true)):
            video = number % len(self.predicted)
            if spans.ndim != 2 or spans.shape[1] != 2:
                raise ValueError(f"video {video}: events must be (E, 2) seconds, not {spans.shape}")
            if not np.all(spans[:, 1] >= spans[:, 0]):
                raise ValueError(f"video {video}: an event ends before it starts, or a time is not a number")

    @classmethod
    def of(cls, predicted: Sequence[ArrayLike], true: Sequence[ArrayLike], duration_s: ArrayLike) -> EventSet:
        """Return the set from lists with one entry per video; an entry is a list of (start, end) in seconds."""
        return cls(tuple(map(_spans, predicted)), tuple(map(_spans, true)), np.asarray(duration_s, np.float64))


def match_events(predicted: TimeArray, true: TimeArray, iou: float) -> IndexArray:
    """Return the matched events of one video as pairs of indices (M, 2): (predicted event, true event).

    - The events of a pair overlap, and their temporal IoU is at least `iou`. No event is in two pairs.
    - The number of pairs is as high as possible. Of all solutions with this number of pairs, the one with the highest sum of
      IoUs is returned.

    The matching does not depend on scores or on the order of events. The libraries `sed_eval` (Mesaros et al., "Metrics for
    Polyphonic Sound Event Detection", 2016) and `mir_eval` use the same matching.

    ActivityNet uses a greedy matching: the predicted event with the highest score takes the best true event, and so on. Both
    matchings give the same pairs if every event fits at most one other event. With `iou` > 0.5, this is so if no two predicted
    events overlap and no two true events overlap.
    """
    first, second, shared = _overlaps(predicted, true)
    union = (predicted[first, 1] - predicted[first, 0]) + (true[second, 1] - true[second, 0]) - shared
    ious = shared / union
    fits = ious >= iou - IOU_TOLERANCE
    return _assign(first[fits], second[fits], ious[fits], len(predicted), len(true))


def segment_f1(events: EventSet, *, iou: float) -> Estimate:
    """Return the F1 score of the events of all videos: 2 · pairs / (predicted events + true events).

    `match_events` finds the pairs. The score is 0 if there are events but no pairs, and undefined if there are no events.

    Lea et al. ("Temporal Convolutional Networks for Action Segmentation and Detection", CVPR 2017) call this score the
    segmental F1. The library `sed_eval` calls it the event-based F1.
    """
    check_share("the IoU", iou)
    matched = [len(match_events(*pair, iou)) for pair in zip(events.predicted, events.true, strict=True)]
    counts = np.array(_lengths(events.predicted)) + np.array(_lengths(events.true))
    return ratio(2.0 * np.array(matched), counts, undefined="event F1 needs a true or a predicted event")


def onset_error(events: EventSet, *, iou: float = IOU_LEVELS[0], signed: bool = False) -> Estimate:
    """Return the mean of |predicted start - true start| in seconds, over all pairs of `match_events`.

    Papers on video anomaly detection have no common definition, so this one is vadcli's own. Events without a pair are ignored,
    so read the error together with the recall. The error is undefined without pairs.

    Args:
        events: the predicted and true events.
        iou: lowest temporal IoU of a pair.
        signed: True returns the mean of (predicted start - true start). It is negative if predicted events start too early.
    """
    check_share("the IoU", iou)
    sums, counts = np.zeros(len(events.true)), np.zeros(len(events.true))
    for video, (predicted, true) in enumerate(zip(events.predicted, events.true, strict=True)):
        pairs = match_events(predicted, true, iou)
        errors = predicted[pairs[:, 0], 0] - true[pairs[:, 1], 0]
        sums[video] = (errors if signed else np.abs(errors)).sum()
        counts[video] = len(pairs)
    note = f"over the {int(counts.sum())} of {sum(_lengths(events.true))} true events that are matched"
    return ratio(sums, counts, undefined="onset error needs a true event that is matched", note=note)


def false_alarms_per_hour(events: EventSet) -> Estimate:
    """Return the number of predicted events that overlap no true event, per hour of video.

    The hours include the abnormal parts of the videos. Undefined if the videos have no duration.

    Surveillance evaluations also count false alarms per hour (TRECVID event detection, NIST 2010). There, an event that
    overlaps a true event only a little is a false alarm, too.
    """
    alarms = [
        len(predicted) - len(np.unique(_overlaps(predicted, true)[0]))
        for predicted, true in zip(events.predicted, events.true, strict=True)
    ]
    hours = events.duration_s / 3600.0
    return ratio(np.array(alarms, np.float64), hours, undefined="false alarms per hour need videos with a duration")


def detection_recall(events: EventSet) -> Estimate:
    """Return the fraction of true events that overlap a predicted event; any overlap is enough.

    Undefined without true events. This is the "existence" part of range-based recall (Tatbul et al., "Precision and Recall for
    Time Series", NeurIPS 2018, section 4.1).
    """
    hits = [
        len(np.unique(_overlaps(predicted, true)[1])) for predicted, true in zip(events.predicted, events.true, strict=True)
    ]
    lengths = np.array(_lengths(events.true), np.float64)
    return ratio(np.array(hits, np.float64), lengths, undefined="detection recall needs a true event")


def _spans(spans: ArrayLike) -> TimeArray:
    array = np.asarray(spans, np.float64)
    return array.reshape(-1, 2) if array.size == 0 else array


def _lengths(events: Sequence[TimeArray]) -> list[int]:
    return [len(spans) for spans in events]


def _overlaps(predicted: TimeArray, true: TimeArray) -> tuple[IndexArray, IndexArray, Numbers]:
    """Return the indices of all pairs (predicted, true) that overlap, and their overlaps in seconds.

    An event of duration 0 has no overlap with any event.
    """
    order = np.argsort(predicted[:, 0], kind="stable")
    starts = predicted[order, 0]
    latest_end = np.maximum.accumulate(predicted[order, 1]) if len(order) else starts  # highest end up to each event
    low = np.searchsorted(latest_end, true[:, 0], "right")
    counts = np.maximum(np.searchsorted(starts, true[:, 1], "left") - low, 0)
    places, second = ranges(low, counts)
    first = order[places]
    shared = np.minimum(predicted[first, 1], true[second, 1]) - np.maximum(predicted[first, 0], true[second, 0])
    touch = shared > TOLERANCE_S
    return first[touch], second[touch], shared[touch]


def _assign(first: IndexArray, second: IndexArray, ious: Numbers, predicted: int, true: int) -> IndexArray:
    """Return the pairs (M, 2) that `match_events` chooses from the candidate pairs (`first`, `second`).

    Two candidate pairs are in the same group if they are connected by common events. Each group is solved as one assignment
    problem, so the problems stay small.
    """
    graph = coo_array((np.ones(len(first)), (first, predicted + second)), shape=(predicted + true,) * 2)
    components = connected_components(graph, directed=False)[1][first] if len(first) else first
    order = np.argsort(components, kind="stable")
    pairs = []
    for members in np.split(order, np.flatnonzero(np.diff(components[order])) + 1):
        if len(members) == 1:
            pairs.append((first[members[0]], second[members[0]]))
            continue
        rows, row = np.unique(first[members], return_inverse=True)
        columns, column = np.unique(second[members], return_inverse=True)
        gain = np.zeros((len(rows), len(columns)))
        gain[row, column] = 1.0 + ious[members] / (len(members) + 1)  # one more pair outweighs the sum of all IoUs
        chosen = linear_sum_assignment(gain, maximize=True)
        pairs.extend((rows[r], columns[c]) for r, c in zip(*chosen, strict=True) if gain[r, c] > 0)
    return np.array(pairs, np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold that the user may choose, and the reviewed events that remain at this threshold.

    Attributes:
        threshold: an event opens when the score reaches this value. Events with lower peak scores disappear.
        true, false: numbers of remaining events that reviewers called true and that they called false.
        precision: true / (true + false).
        low, high: 95 % interval of the precision (Jeffreys).
        kept: fraction of all reviewed true events that remain.
        alarms_per_hour: number of remaining events, reviewed or not, per hour of video.
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
    """Return the useful thresholds, ascending; each has a higher precision than all lower thresholds.

    All returned thresholds are peak scores of reviewed events. A threshold below all these peaks would add events that nobody
    has reviewed.

    Args:
        reviewed: events with a verdict; `unsure` events are ignored.
        peaks: the peak scores of all events, reviewed or not.
        hours: total duration of the scanned videos, in hours.

    Raises:
        ValueError: `hours` is not positive.
    """
    if hours <= 0:
        raise ValueError(f"alarms per hour cannot be computed for {hours:g} hours of video")
    judged = [event for event in reviewed if event.verdict is not Verdict.UNSURE]
    all_true = sum(event.verdict is Verdict.TRUE for event in judged)
    tail = (1 - LEVEL) / 2
    choices: list[ThresholdChoice] = []
    for threshold in sorted({event.peak_score for event in judged}):
        stay = [event.verdict for event in judged if event.peak_score >= threshold]
        true = stay.count(Verdict.TRUE)
        false = len(stay) - true
        precision = true / len(stay)
        if choices and precision <= choices[-1].precision:
            continue
        choice = ThresholdChoice(
            threshold=threshold,
            true=true,
            false=false,
            precision=precision,
            low=float(beta.ppf(tail, true + 0.5, false + 0.5)) if true else 0.0,
            high=float(beta.ppf(1 - tail, true + 0.5, false + 0.5)) if false else 1.0,
            kept=true / all_true if all_true else 0.0,
            alarms_per_hour=sum(peak >= threshold for peak in peaks) / hours,
        )
        choices.append(choice)
    return choices


def without_false(events: Sequence[tuple[float, float]], reviewed: Sequence[ReviewedEvent]) -> list[int]:
    """Return the indices of the events of a video, without the events that a reviewer called false.

    A review applies to an event if the temporal IoU of the reviewed event and this event is above 0.5. So a review still
    applies if other thresholds have changed the start and end of an event a little. If several reviews apply, the one with the
    highest IoU decides.

    Args:
        events: (start_s, end_s) of each event.
        reviewed: the reviewed events of the same video.
    """
    not_false = []
    for index, (start_s, end_s) in enumerate(events):
        highest, verdict = 0.5, None
        for event in reviewed:
            overlap = min(end_s, event.end_s) - max(start_s, event.start_s)
            union = max(end_s, event.end_s) - min(start_s, event.start_s)
            iou = overlap / union if union > 0 else 1.0
            if iou > highest:
                highest, verdict = iou, event.verdict
        if verdict is not Verdict.FALSE:
            not_false.append(index)
    return not_false


@dataclass(frozen=True)
class SeveritySet:
    """The scores and severities of the E true events of V videos.

    Attributes:
        video: (E,) int64, number of the event's video, 0 to V - 1.
        score: (E,) float64, the event's score.
        severity: (E,) float64, a higher number for a worse event; NaN if the ground truth does not state it.
        videos: V, the number of videos.
    """

    video: IndexArray
    score: Numbers
    severity: Numbers
    videos: int


def severity_spearman(events: SeveritySet) -> Estimate:
    """Return Spearman's rank correlation between the scores and the severities of true events.

    Equal values get the mean of their ranks, as in `scipy.stats.spearmanr`. Events without a severity are ignored. Undefined if
    all severities or all scores are equal.
    """
    stated = _stated(events)
    order = [np.unique(values, return_inverse=True)[1] for values in (stated.score, stated.severity)]

    def statistic(weights: Numbers) -> Numbers:
        """Return the rank correlation in each resample."""
        drawn = weights[:, stated.video]  # (B, E) how often each event was drawn
        ranks = [_ranks(drawn, places) for places in order]
        x, y = (rank - divide((drawn * rank).sum(axis=1), drawn.sum(axis=1))[:, None] for rank in ranks)
        spread = (drawn * x * x).sum(axis=1) * (drawn * y * y).sum(axis=1)
        return divide((drawn * x * y).sum(axis=1), np.sqrt(np.where(spread > 1e-9, spread, 0.0)))

    return _estimate(events, stated, lambda x, y: float(spearmanr(x, y).statistic), statistic)


def severity_kendall(events: SeveritySet) -> Estimate:
    """Return Kendall's tau-b between the scores and the severities of true events.

    Tau-b has a correction for equal values, as in `scipy.stats.kendalltau`. Events without a severity are ignored. Undefined if
    all severities or all scores are equal.
    """
    stated = _stated(events)
    videos, pairs = np.unique(stated.video), _pairs(stated)

    def statistic(weights: Numbers) -> Numbers:
        """Return Kendall's tau in each resample."""
        drawn = weights[:, videos]
        agreed, by_score, by_severity = (((drawn @ table) * drawn).sum(axis=1) for table in pairs)
        return divide(agreed, np.sqrt(by_score * by_severity))

    return _estimate(events, stated, lambda x, y: float(kendalltau(x, y).statistic), statistic)


def _stated(events: SeveritySet) -> SeveritySet:
    known = ~np.isnan(events.severity)
    return SeveritySet(events.video[known], events.score[known], events.severity[known], events.videos)


def _estimate(
    events: SeveritySet,
    stated: SeveritySet,
    coefficient: Callable[[Numbers, Numbers], float],
    statistic: Callable[[Numbers], Numbers],
) -> Estimate:
    used = len(np.unique(stated.video))
    note = f"{len(stated.score)} of {len(events.score)} true events have a severity"
    if min(len(np.unique(stated.score)), len(np.unique(stated.severity))) < 2:
        why = "a rank correlation needs true events with different severities and scores"
        return Estimate(None, events.videos, statistic, why, used)
    return Estimate(coefficient(stated.score, stated.severity), events.videos, statistic, note, used, interval=used >= 2)


def _ranks(drawn: Numbers, places: IndexArray) -> Numbers:
    """Return the ranks (B, E) of the events in each resample.

    Equal values get the mean of their ranks. All ranks are 0.5 too low, but this does not change a correlation.

    Args:
        drawn: (B, E) how often each event, with its video, was drawn in each resample.
        places: (E,) for each event, the index of its value in the sorted list of distinct values.
    """
    counts = drawn @ csr_array((np.ones(len(places)), (np.arange(len(places)), places)))
    ranks = np.cumsum(counts, axis=1) - counts / 2.0
    return np.asarray(ranks[:, places], np.float64)


def _pairs(events: SeveritySet) -> tuple[Numbers, Numbers, Numbers]:
    """Return three tables (U, U) with numbers of pairs of events; U videos have events.

    Cell (u, v) is for the pairs of an event in video u and an event in video v. The tables count these pairs:

    1. pairs whose event with the higher score is more severe, minus pairs whose event with the higher score is less severe
    2. pairs with different scores
    3. pairs with different severities
    """
    count, places = len(events.video), np.unique(events.video, return_inverse=True)[1]
    of_video = csr_array((np.ones(count), (np.arange(count), places)))
    tables = np.zeros((3, of_video.shape[1], of_video.shape[1]))
    for start in range(0, count, COMPARED_EVENTS):
        rows = slice(start, start + COMPARED_EVENTS)
        x, y = (np.sign(values[rows, None] - values[None, :]) for values in (events.score, events.severity))
        for number, signs in enumerate((x * y, np.abs(x), np.abs(y))):
            tables[number] += of_video[rows].T @ (signs @ of_video)
    return tables[0], tables[1], tables[2]
