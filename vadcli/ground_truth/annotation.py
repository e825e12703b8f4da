"""Turns the annotations of one video into spans of frames. Reads no file.

Data sets annotate in four ways: one label per frame, intervals of frames, of seconds, or of shares of the video. Frames are
numbered from 0, like the rows of the video's score table. If the annotation and the scored video have different lengths, an
error names both lengths. Only a small overhang at the end is cut; see `ROUNDING_S` and `OVERHANG_FRAMES`.
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
"""A frame at time t is inside an interval if start_s <= t < end_s. Times that differ by less than this count as equal."""
ROUNDING_S = 1.0
"""An interval may end this long after the video, because people write whole seconds."""
OVERHANG_FRAMES = 3
"""An official interval may end this many frames after the video.

Some intervals of UCF-Crime end up to two frames after the video, and the official evaluators ignore the excess. With a larger
excess, the annotation was made for another version of the video.
"""

_SAME_VIDEO = "scan the file that the annotation was made for, or correct the annotation; vadcli does not crop it to fit"


@dataclass(frozen=True)
class Span:
    """Consecutive frames of a scored video in which an anomaly happens.

    Attributes:
        start_frame, end_frame: the first frame, and the frame after the last one.
        category: the kind of anomaly, if the data set states it for the span.
        severity: how bad the anomaly is, if the data set states it; higher is worse.
    """

    start_frame: int
    end_frame: int
    category: str | None = None
    severity: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start_frame < self.end_frame:
            raise ValueError(f"a span needs 0 <= start < end, not frames {self.start_frame} to {self.end_frame}")


@dataclass(frozen=True)
class TimeInterval:
    """A time in which an anomaly happens: start_s <= t < end_s, in seconds from the first frame.

    `category` and `severity` are as in `Span`.
    """

    start_s: float
    end_s: float
    category: str | None = None
    severity: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.start_s < self.end_s < float("inf"):
            raise ValueError(f"an interval needs 0 <= start < end, not {self.start_s:g} to {self.end_s:g} s")


class Annotation(ABC):
    """The times of the anomalies in one video."""

    @property
    def frames(self) -> int | None:
        """The number of frames that the annotation was made for; None if the annotation does not state it."""
        return None

    @property
    @abstractmethod
    def is_normal(self) -> bool:
        """Whether the video has no anomaly."""

    @abstractmethod
    def spans(self, table: ScoreTable, where: str) -> tuple[Span, ...]:
        """Return the spans of frames with anomalies, ordered by start; spans may overlap.

        Args:
            where: the annotated video and its file, for the error message.

        Raises:
            DocumentError: the annotation was made for another version of the video.
        """

    def overhang_frames(self, table: ScoreTable) -> int:
        """Return the number of annotated frames after the end of the video; `spans` leaves them out."""
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
        return not self.intervals


@dataclass(frozen=True)
class FrameIntervals(_Intervals):
    """An annotation as intervals of frames.

    Attributes:
        intervals: the spans of abnormal frames, counted from 0; empty if the video is normal.
        frames: the number of frames that the annotation was made for; None if the annotation does not state it.
        slack_frames: an interval may end this many frames after the end of the video; see `overhang_frames`.
    """

    intervals: tuple[Span, ...]
    frames: int | None = None
    slack_frames: int = 0

    def spans(self, table: ScoreTable, where: str) -> tuple[Span, ...]:
        """Return the intervals; if an interval ends up to `slack_frames` after the video, it is cut."""
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
        intervals: seconds from the first frame, like the timestamps of the scores.
    """

    intervals: tuple[TimeInterval, ...]

    def spans(self, table: ScoreTable, where: str) -> tuple[Span, ...]:
        """Return one span per interval: the frames inside the interval. Every interval must contain a frame."""
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
                    hint="correct the interval: a frame is inside if start_s <= its time < end_s",
                )
            spans.append(Span(start, end, interval.category, interval.severity))
        return tuple(sorted(spans, key=lambda span: (span.start_frame, span.end_frame)))


@dataclass(frozen=True)
class ShareIntervals(_Intervals):
    """An annotation as intervals of shares of the video: 0 is the start of the video, 1 its end.

    The share s is at the frame round(s x number of frames). The end frame of an interval is outside. As in the code of PreVAD's
    authors, an interval that ends after 1 is cut at the end of the video, and an interval that ends before it starts has no
    frame.

    Attributes:
        intervals: (start, end) of each interval, finite.
        category: the category of all intervals, if the data set states it.
    """

    intervals: tuple[tuple[float, float], ...]
    category: str | None = None

    def spans(self, table: ScoreTable, where: str) -> tuple[Span, ...]:
        """Return one span of frames per interval; intervals without a frame are left out."""
        rows = len(table)
        cut = (tuple(min(max(edge, 0), rows) for edge in edges) for edges in self._edges(rows))
        return tuple(Span(start, end, self.category) for start, end in sorted(cut) if start < end)

    def overhang_frames(self, table: ScoreTable) -> int:
        """Return the number of annotated frames after the end of the video."""
        return max(0, max((end for _, end in self._edges(len(table))), default=0) - len(table))

    def _edges(self, rows: int) -> list[tuple[int, int]]:
        return [(round(start * rows), round(end * rows)) for start, end in self.intervals]


def runs(labels: BoolArray) -> IndexArray:
    """Return the runs of True, (E, 2) int64: index of the first True, index after the last True."""
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

    The table does not state the length of the last frame. The median length of the frames is used.
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
        f"{where}: the truth has {how_many(frames, 'frame')}, but {table.video} has scores for {len(table)}: {kind}",
        hint=_SAME_VIDEO,
    )
