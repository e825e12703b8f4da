"""Makes events from scores: hysteresis, merging close events, dropping short events, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadcli.types import Box, Event, FloatArray, IndexArray, ScoreTable, Thresholds, TimeArray

TIME_TOLERANCE_S = 1e-6
"""Times that differ by less than this count as equal, because decimal times are rounded in binary."""

Spans = IndexArray
"""(E, 2) int64: the first frame of each span, and the frame after its last frame; in order, without overlap."""


@dataclass(frozen=True)
class EventBoxes:
    """One box per sampled frame, around the mask pixels whose score reaches the threshold.

    Attributes:
        rows: (S,) int64, ascending numbers of the frames.
        boxes: (S, 4) int32 x, y, width, height in display pixels; the width is 0 if the mask has no such pixel.
    """

    rows: IndexArray
    boxes: NDArray[np.int32]

    def __post_init__(self) -> None:
        if self.boxes.shape != (len(self.rows), 4):
            raise ValueError(f"{len(self.rows)} rows need ({len(self.rows)}, 4) boxes, not {self.boxes.shape}")
        if np.any(np.diff(self.rows) <= 0):
            raise ValueError(f"the rows of boxes must ascend, not {self.rows.tolist()[:10]}")


def cut_events(table: ScoreTable, thresholds: Thresholds, *, duration_s: float, boxes: EventBoxes | None = None) -> list[Event]:
    """Return the events of one video, in order and without overlap.

    1. An event opens when the score reaches `high`. It extends in both directions while the score is at least `low`.
    2. Events with at most `merge_gap_s` between them become one event.
    3. Events shorter than `min_duration_s` are dropped.
    4. Events are extended by `pad_s` on both sides, to whole frames. If two extended events touch, they become one event.

    Args:
        table: one row per frame. A frame that is not sampled has the score of the sampled frame before it.
        thresholds: how scores become events.
        duration_s: end of the last frame, in seconds from the first pts.
        boxes: the boxes around the masks of the sampled frames. The boxes of events are made from these boxes; the box of a
            sampled frame also counts for the frames before the next sampled frame.
    """
    if not len(table):
        return []
    # (N + 1,) seconds: frame i lasts from edge i to edge i + 1.
    edges = np.append(table.timestamp, max(duration_s, float(table.timestamp[-1])))
    spans = _hysteresis(table.score, high=thresholds.high, low=thresholds.low)
    gaps_s = edges[spans[1:, 0]] - edges[spans[:-1, 1]]
    spans = _merge(spans, gaps_s <= thresholds.merge_gap_s + TIME_TOLERANCE_S)
    lengths_s = edges[spans[:, 1]] - edges[spans[:, 0]]
    spans = spans[lengths_s >= thresholds.min_duration_s - TIME_TOLERANCE_S]
    if thresholds.pad_s > 0:
        spans = _pad(spans, edges, thresholds.pad_s)
        spans = _merge(spans, spans[1:, 0] <= spans[:-1, 1])
    return _describe(spans, table.score, edges, boxes)


def categorised(events: Sequence[Event], table: ScoreTable) -> list[Event]:
    """Return the events with their scores per category, and with the category that has the highest score.

    The score of a category is its highest score in the sampled frames of the event. If the table has no scores per category,
    the events are returned unchanged.
    """
    if table.category_scores is None or not len(table):
        return list(events)
    rows = np.flatnonzero(table.sampled)
    with_scores = []
    for event in events:
        inside = rows[(rows >= event.start_frame) & (rows < event.end_frame)]
        # A short event may have no sampled frame. Its rows repeat the scores of the last sampled frame before the event.
        peaks = table.category_scores[inside if len(inside) else [event.start_frame]].max(axis=0).astype(np.float64)
        scores = {name: round(float(peak), 6) for name, peak in zip(table.category_names, peaks, strict=True)}
        with_scores.append(replace(event, category=table.category_names[int(np.argmax(peaks))], category_scores=scores))
    return with_scores


def with_categories(new: Sequence[Event], table: ScoreTable, old: Sequence[Event]) -> list[Event]:
    """Return the `new` events with categories: from the table if it has categories, else from the `old` events."""
    return inherit_categories(new, old) if table.category_scores is None else categorised(new, table)


def inherit_categories(new: Sequence[Event], old: Sequence[Event]) -> list[Event]:
    """Return the `new` events, each with the category of the `old` event that shares the most frames.

    If two old events share equally many frames with a new event, the earlier old event is used. Both lists must be in order.
    Two events of the same list must not overlap.
    """
    starts = np.array([event.start_frame for event in old], np.int64)
    ends = np.array([event.end_frame for event in old], np.int64)
    inherited = []
    for event in new:
        first = int(np.searchsorted(ends, event.start_frame, "right"))
        last = int(np.searchsorted(starts, event.end_frame, "left"))
        if first >= last:
            inherited.append(replace(event, category=None, category_scores={}))
            continue
        shared = np.minimum(ends[first:last], event.end_frame) - np.maximum(starts[first:last], event.start_frame)
        best = old[first + int(shared.argmax())]
        inherited.append(replace(event, category=best.category, category_scores=dict(best.category_scores)))
    return inherited


def inherit_boxes(new: Sequence[Event], old: Sequence[Event]) -> list[Event]:
    """Return the `new` events with boxes. A box encloses the boxes of all `old` events that overlap the new event.

    Both lists must be in order. Two events of the same list must not overlap.
    """
    boxed = [event for event in old if event.bbox]
    rows = np.array([event.start_frame for event in boxed], np.int64)
    ends = np.array([event.end_frame for event in boxed], np.int64)
    boxes = np.array([event.bbox for event in boxed], np.int32).reshape(-1, 4)
    inherited = []
    for event in new:
        first, last = np.searchsorted(ends, event.start_frame, "right"), np.searchsorted(rows, event.end_frame, "left")
        corners = _corners(boxes[first:last])
        near, far = corners[:, :2].min(axis=0, initial=2**31), corners[:, 2:].max(axis=0, initial=0)
        box = (*near.tolist(), *(far - near).tolist()) if len(corners) else None
        inherited.append(replace(event, bbox=box))
    return inherited


def _hysteresis(score: FloatArray, *, high: float, low: float) -> Spans:
    """Return the spans of frames in which all scores are >= `low`, and the highest score is >= `high`.

    A span is as long as possible: the score before it and the score after it are < `low`.
    """
    stays = score >= np.float32(low)
    edges = np.diff(stays.astype(np.int8), prepend=0, append=0)
    spans = np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1).astype(np.int64)
    opens = np.append(0, np.cumsum(score >= np.float32(high)))
    return spans[opens[spans[:, 1]] > opens[spans[:, 0]]]


def _merge(spans: Spans, joins: NDArray[np.bool_]) -> Spans:
    """Merge event i with event i + 1 if `joins[i]` is true; `joins` is (E - 1,)."""
    if len(spans) < 2:
        return spans
    starts = spans[np.append(True, ~joins), 0]
    ends = spans[np.append(~joins, True), 1]
    return np.stack([starts, ends], axis=1)


def _pad(spans: Spans, edges: TimeArray, pad_s: float) -> Spans:
    """Extend each event by `pad_s` seconds at both ends. A frame that is only partly in this time is included, too."""
    timestamp = edges[:-1]
    first = np.searchsorted(timestamp, edges[spans[:, 0]] - pad_s + TIME_TOLERANCE_S, "right") - 1
    last = np.searchsorted(timestamp, edges[spans[:, 1]] + pad_s - TIME_TOLERANCE_S, "left")
    starts = np.minimum(np.maximum(first, 0), spans[:, 0])
    return np.stack([starts, np.maximum(last, spans[:, 1])], axis=1)


def _describe(spans: Spans, score: FloatArray, edges: TimeArray, boxes: EventBoxes | None) -> list[Event]:
    """Return one event per span, with its times, peak, mean score and box.

    `edges` has the start times of all N frames, and the end of the last frame.
    """
    if not len(spans):
        return []
    top = np.repeat(_reduce(np.maximum, score, spans), spans[:, 1] - spans[:, 0])
    steps = np.zeros(len(score) + 1, np.int8)
    steps[spans[:, 0]], steps[spans[:, 1]] = 1, -1
    rows = np.flatnonzero(np.cumsum(steps[:-1], dtype=np.int8))  # the frames of all events, in order
    highest = rows[score[rows] == top]
    peaks = highest[np.searchsorted(highest, spans[:, 0])]  # the first frame with the highest score of each event
    means = _reduce(np.add, score.astype(np.float64), spans) / (spans[:, 1] - spans[:, 0])
    means = np.minimum(means, score[peaks])  # the mean of equal values may round up to more than the peak
    columns = zip(
        spans.tolist(),
        edges[spans].tolist(),
        peaks.tolist(),
        edges[peaks].tolist(),
        score[peaks].tolist(),
        means.tolist(),
        _unions(spans, boxes),
        strict=True,
    )
    return [
        Event(
            id=number,
            start_frame=start,
            end_frame=end,
            start_s=start_s,
            end_s=end_s,
            peak_frame=peak,
            peak_s=peak_s,
            peak_score=peak_score,
            mean_score=mean,
            bbox=box,
        )
        for number, ((start, end), (start_s, end_s), peak, peak_s, peak_score, mean, box) in enumerate(columns, 1)
    ]


def _reduce(operation: np.ufunc, values: NDArray[Any], spans: Spans) -> NDArray[Any]:
    """Apply `operation` to the values of each span. Return (E,) or (E, C). No span may be empty."""
    padded = np.concatenate([values, values[-1:]])
    reduced: NDArray[Any] = operation.reduceat(padded, spans.ravel(), axis=0)[::2]
    return reduced


def _unions(spans: Spans, boxes: EventBoxes | None) -> list[Box | None]:
    """Return the smallest box around all boxes of each event; None for an event without boxes."""
    unions: list[Box | None] = [None] * len(spans)
    if boxes is None or not np.any(boxes.boxes[:, 2] > 0):
        return unions
    valid_until = np.append(boxes.rows[1:], np.iinfo(np.int64).max)  # the next sampled frame
    filled = boxes.boxes[:, 2] > 0
    corners = _corners(boxes.boxes[filled])
    first = np.searchsorted(valid_until[filled], spans[:, 0], "right")
    last = np.searchsorted(boxes.rows[filled], spans[:, 1], "left")
    boxed = np.flatnonzero(last > first)
    if not len(boxed):
        return unions
    ranges = np.stack([first[boxed], last[boxed]], axis=1)
    near = _reduce(np.minimum, corners[:, :2], ranges)
    far = _reduce(np.maximum, corners[:, 2:], ranges)
    for event, (left, top), (width, height) in zip(boxed.tolist(), near.tolist(), (far - near).tolist(), strict=True):
        unions[event] = (left, top, width, height)
    return unions


def _corners(boxes: NDArray[np.int32]) -> IndexArray:
    """Return the left, top, right and bottom edge of each box, (S, 4)."""
    corners = boxes.astype(np.int64)
    corners[:, 2:] += corners[:, :2]
    return corners


def event_rows(events: Sequence[Event], frames: int) -> NDArray[np.bool_]:
    """Return a mask over all frames, (N,) bool: True if the frame is in an event."""
    inside = np.zeros(frames, np.bool_)
    for event in events:
        inside[event.start_frame : event.end_frame] = True
    return inside
