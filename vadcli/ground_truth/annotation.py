"""Turns the annotations of one video into spans of frames. Reads no file.

Data sets annotate in four ways: one label per frame, or intervals in frames, in seconds, or in fractions of the video's length.
Frames are numbered from 0, like the rows of the video's score table. It is an error if the annotation and the scored video have
different lengths. But an annotation may end a little later than the video; see `ROUNDING_S` and `OVERHANG_FRAMES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vadcli.errors import DocumentError
from vadcli.types import BoolArray, IndexArray, ScoreTable, TimeArray
from vadcli.types.text import how_many

TIME_TOLERANCE_S = 1e-6
"""Times that differ by less than this count as equal if a frame is compared with the start or end of an interval."""
ROUNDING_S = 1.0
"""An interval may end up to this long after the video, because people write whole seconds."""
OVERHANG_FRAMES = 3
"""An interval of an official data set may end up to this many frames after the video.

Some intervals of UCF-Crime end one or two frames after the video, and the official evaluation code ignores these frames. If an
interval ends later, the annotation was made for another version of the video.
"""

_SAME_VIDEO = "scan the file that the annotation was made for, or correct the annotation; vadcli does not crop it to fit"


@dataclass(frozen=True)
class Span:
    """Consecutive frames of a scored video that show an anomaly.

    Attributes:
        start_frame, end_frame: the first frame of the anomaly, and the frame after its last frame.
        category: the kind of anomaly; None if the data set does not state it for each span.
        severity: how bad the anomaly is, a higher number for a worse anomaly; None if the data set does not state it.
    """

    start_frame: int
    end_frame: int
    category: str | None = None
    severity: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start_frame < self.end_frame:
            raise ValueError(f"the span from frame {self.start_frame} to {self.end_frame} does not fulfil 0 <= start < end")


@dataclass(frozen=True)
class TimeInterval:
    """The time of an anomaly: start_s <= t < end_s, in seconds from the first frame.

    `category` and `severity` have the same meaning as in `Span`.
    """

    start_s: float
    end_s: float
    category: str | None = None
    severity: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.start_s < self.end_s < float("inf"):
            raise ValueError(f"the interval from {self.start_s:g} to {self.end_s:g} s does not fulfil 0 <= start < end")


class Annotation(ABC):
    """The times of the anomalies in one video."""

    @property
    def frames(self) -> int | None:
        """The number of frames of the annotated video; None if the annotation does not state it."""
        return None

    @property
    @abstractmethod
    def is_normal(self) -> bool:
        """Whether the video has no anomaly."""

    @abstractmethod
    def spans(self, table: ScoreTable, where: str) -> tuple[Span, ...]:
        """Return the spans of the anomalies in a scored video, ordered by start; spans may overlap.

        Args:
            table: the scores of the video.
            where: names the annotated video and the annotation file in error messages.

        Raises:
            DocumentError: the annotation was made for another version of the video.
        """

    def overhang_frames(self, table: ScoreTable) -> int:
        """Return how many frames after the end of the scored video are annotated; `spans` leaves them out."""
        return 0


@dataclass(frozen=True, eq=False)
class FrameLabels(Annotation):
    """An annotation with one label per frame.

    Attributes:
        labels: (N,) bool, True if the frame is abnormal.
    """

    labels: BoolArray

    def __post_init__(self) -> None:
        if self.labels.ndim != 1 or self.labels.dtype != np.bool_:
            raise ValueError(f"labels must be (N,) bool, not {self.labels.shape} {self.labels.dtype}")

    @property
    def frames(self) -> int | None:
        """The number of labels."""
        return len(self.labels)

    @property
    def is_normal(self) -> bool:
        """True if all labels are False."""
        return not self.labels.any()

    def spans(self, table: ScoreTable, where: str) -> tuple[Span, ...]:
        """Return one span per run of True labels."""
        _same_length(len(self.labels), table, where)
        return tuple(Span(int(start), int(end)) for start, end in runs(self.labels))


class _Intervals(Annotation):
    intervals: tuple[Any, ...]

    @property
    def is_normal(self) -> bool:
        """True if there are no intervals."""
        return not self.intervals


@dataclass(frozen=True)
class FrameIntervals(_Intervals):
    """An annotation as intervals of frames.

    Attributes:
        intervals: the spans of abnormal frames; empty if the video is normal.
        frames: the number of frames of the annotated video; None if the annotation does not state it.
        slack_frames: the largest number of frames that an interval may continue after the end of the scored video.
    """

    intervals: tuple[Span, ...]
    frames: int | None = None
    slack_frames: int = 0

    def spans(self, table: ScoreTable, where: str) -> tuple[Span, ...]:
        """Return the intervals. If an interval ends a little after the video, it is cut (see `slack_frames`)."""
        if self.frames is not None:
            _same_length(self.frames, table, where)
        rows = len(table)
        for interval in self.intervals:
            if interval.end_frame > rows + self.slack_frames or interval.start_frame >= rows:
                raise DocumentError(
                    f"{where}: an interval ends at frame {interval.end_frame} (counted from 1), "
                    f"but {table.video} has scores for {how_many(rows, 'frame')}",
                    hint=_SAME_VIDEO,
                )
        cut = [replace(span, end_frame=min(span.end_frame, rows)) for span in self.intervals]
        return tuple(sorted(cut, key=lambda span: (span.start_frame, span.end_frame)))

    def overhang_frames(self, table: ScoreTable) -> int:
        """Return the number of annotated frames after the end of the video."""
        return max(0, max((span.end_frame for span in self.intervals), default=0) - len(table))


@dataclass(frozen=True)
class TimeIntervals(_Intervals):
    """An annotation as intervals of seconds, for videos of any frame rate.

    Attributes:
        intervals: intervals in seconds from the first frame, like the timestamps of the scores.
    """

    intervals: tuple[TimeInterval, ...]

    def spans(self, table: ScoreTable, where: str) -> tuple[Span, ...]:
        """Return one span per interval, with the frames inside it. An interval without a frame is an error."""
        times, end_s = table.timestamp, video_end_s(table.timestamp)
        spans = []
        for interval in self.intervals:
            if interval.end_s > end_s + ROUNDING_S:
                raise DocumentError(
                    f"{where}: an interval ends at {interval.end_s:g} s, but {table.video} has scores up to {end_s:g} s",
                    hint=_SAME_VIDEO,
                )
            edges = np.array([interval.start_s, interval.end_s]) - TIME_TOLERANCE_S
            start, end = (int(row) for row in np.searchsorted(times, edges, side="left"))
            if start >= end:
                raise DocumentError(
                    f"{where}: {table.video} has no frame between {interval.start_s:g} and {interval.end_s:g} s",
                    hint="correct the interval: it contains a frame at the time t if start_s <= t < end_s",
                )
            spans.append(Span(start, end, interval.category, interval.severity))
        return tuple(sorted(spans, key=lambda span: (span.start_frame, span.end_frame)))


@dataclass(frozen=True)
class ShareIntervals(_Intervals):
    """An annotation as intervals in fractions of the video: 0 is the start of the video, 1 is its end.

    The fraction f means the frame round(f x number of frames). An interval does not contain its end frame. As in the code of
    PreVAD's authors, an end after 1 means the end of the video, and an interval with end <= start has no frame.

    Attributes:
        intervals: (start, end) of each interval, finite numbers.
        category: the category of all intervals; None if the data set does not state it.
    """

    intervals: tuple[tuple[float, float], ...]
    category: str | None = None

    def spans(self, table: ScoreTable, where: str) -> tuple[Span, ...]:
        """Return one span per interval; intervals without a frame are left out."""
        rows = len(table)
        cut = (tuple(min(max(edge, 0), rows) for edge in edges) for edges in self._edges(rows))
        return tuple(Span(start, end, self.category) for start, end in sorted(cut) if start < end)

    def overhang_frames(self, table: ScoreTable) -> int:
        """Return the number of annotated frames after the end of the video."""
        return max(0, max((end for _, end in self._edges(len(table))), default=0) - len(table))

    def _edges(self, rows: int) -> list[tuple[int, int]]:
        return [(round(start * rows), round(end * rows)) for start, end in self.intervals]


def runs(labels: BoolArray) -> IndexArray:
    """Return the start and the end of each run of True, (E, 2) int64; the end is not part of the run."""
    padded = np.concatenate([[False], labels, [False]])
    return np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2).astype(np.int64)


def fill(spans: Sequence[Span], rows: int) -> BoolArray:
    """Return one label per frame, (rows,) bool: True inside the spans."""
    labels = np.zeros(rows, np.bool_)
    for span in spans:
        labels[span.start_frame : span.end_frame] = True
    return labels


def video_end_s(times: TimeArray) -> float:
    """Return the end of the last frame in seconds; 0 without frames.

    The length of the last frame is unknown, so the median length of all other frames is used.
    """
    if not len(times):
        return 0.0
    return float(times[-1]) + (float(np.median(np.diff(times))) if len(times) > 1 else 0.0)


def _same_length(frames: int, table: ScoreTable, where: str) -> None:
    if frames == len(table):
        return
    apart = abs(frames - len(table))
    kind = "one frame apart" if apart == 1 else f"{apart} frames apart"
    raise DocumentError(
        f"{where}: the annotation has {how_many(frames, 'frame')}, but {table.video} has scores for {len(table)}: {kind}",
        hint=_SAME_VIDEO,
    )
