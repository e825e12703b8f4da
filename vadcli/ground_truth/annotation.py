"""How a data set says when something happens, and what that means for a scored video's rows.

Three ways: a label a frame, intervals of frames, intervals of seconds. Each turns into spans of rows, or into an error that
names both numbers; none is ever cropped to fit without saying so. Knows no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vadcli.errors import DocumentError
from vadcli.types import BoolArray, IndexArray, ScoreTable, TimeArray

TIME_TOLERANCE_S = 1e-6
"""A frame is inside where start_s <= t < end_s, within this."""
ROUNDING_S = 1.0
"""People write ends in whole seconds: an end may lie so far past the last frame's end. No frame depends on it."""
OVERHANG_FRAMES = 3
"""Some official intervals end past the last frame (UCF-Crime's by up to two), where the official evaluators stop; an end that
lies further out belongs to another cut of the video."""

_SAME_CUT = "scan the very file that the truth was made for, or correct the truth; frames are never cropped to fit"


@dataclass(frozen=True)
class Span:
    """Rows of a scored video in which something happens.

    Attributes:
        start_frame, end_frame: half-open rows.
        category: what happens, where the data set says so of the span.
    """

    start_frame: int
    end_frame: int
    category: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start_frame < self.end_frame:
            raise ValueError(f"rows {self.start_frame} to {self.end_frame} are no span")


@dataclass(frozen=True)
class TimeInterval:
    """Seconds from the first frame in which something happens: start_s <= t < end_s."""

    start_s: float
    end_s: float
    category: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.start_s < self.end_s < float("inf"):
            raise ValueError(f"{self.start_s:g} to {self.end_s:g} s is no interval")


class Annotation(Protocol):
    """When something happens in one video."""

    @property
    def frames(self) -> int | None:
        """How many frames the truth was made for, None where it doesn't say."""

    @property
    def is_normal(self) -> bool:
        """True where nothing happens."""

    def spans(self, table: ScoreTable, where: str) -> tuple[Span, ...]:
        """The rows in which something happens, by start; they may overlap.

        Args:
            table: the scored video.
            where: the truth's video and file, for the error.

        Raises:
            DocumentError: the truth was made for another cut of the video.
        """

    def overhang_frames(self, table: ScoreTable) -> int:
        """How many annotated frames lie past the last row and were left out by `spans`; 0 almost always."""


@dataclass(frozen=True, eq=False)
class FrameLabels:
    """A label a frame.

    Attributes:
        labels: (N,) bool, True where something happens.
    """

    labels: BoolArray

    def __post_init__(self) -> None:
        if self.labels.ndim != 1 or self.labels.dtype != np.bool_:
            raise ValueError(f"labels must be (N,) bool, not {self.labels.shape} {self.labels.dtype}")

    @property
    def frames(self) -> int | None:
        """As many as labels."""
        return len(self.labels)

    @property
    def is_normal(self) -> bool:
        """True where no label is set."""
        return not self.labels.any()

    def spans(self, table: ScoreTable, where: str) -> tuple[Span, ...]:
        """One span a run of labels."""
        _same_length(len(self.labels), table, where)
        return tuple(Span(int(start), int(end)) for start, end in runs(self.labels))

    def overhang_frames(self, table: ScoreTable) -> int:
        """Always 0: there are as many labels as rows, or an error."""
        return 0


@dataclass(frozen=True)
class FrameIntervals:
    """Intervals of frames.

    Attributes:
        intervals: half-open, 0-based.
        frames: how many frames the truth was made for, None where it doesn't say.
        slack_frames: an interval may end so many frames past the last row; the excess is what `overhang_frames` tells.
    """

    intervals: tuple[Span, ...]
    frames: int | None = None
    slack_frames: int = 0

    @property
    def is_normal(self) -> bool:
        """True without an interval."""
        return not self.intervals

    def spans(self, table: ScoreTable, where: str) -> tuple[Span, ...]:
        """The intervals, those that overhang by no more than the slack ended at the last row."""
        if self.frames is not None:
            _same_length(self.frames, table, where)
        rows = len(table)
        for interval in self.intervals:
            if interval.end_frame > rows + self.slack_frames or interval.start_frame >= rows:
                raise DocumentError(
                    f"{where}: an interval runs to frame {interval.end_frame} (counted from 1), "
                    f"but {table.video} has scores for {rows} frames",
                    hint=_SAME_CUT,
                )
        found = [Span(span.start_frame, min(span.end_frame, rows), span.category) for span in self.intervals]
        return tuple(sorted(found, key=lambda span: (span.start_frame, span.end_frame)))

    def overhang_frames(self, table: ScoreTable) -> int:
        """How far the last interval ends past the last row."""
        return max(0, max((span.end_frame for span in self.intervals), default=0) - len(table))


@dataclass(frozen=True)
class TimeIntervals:
    """Intervals of seconds, for videos of any frame rate.

    Attributes:
        intervals: seconds from the first frame, as the scores' timestamps count.
    """

    intervals: tuple[TimeInterval, ...]

    @property
    def frames(self) -> int | None:
        """None: seconds say nothing of frames."""
        return None

    @property
    def is_normal(self) -> bool:
        """True without an interval."""
        return not self.intervals

    def spans(self, table: ScoreTable, where: str) -> tuple[Span, ...]:
        """The rows whose timestamp is inside, at least one an interval."""
        times, end_s = table.timestamp, video_end_s(table.timestamp)
        found = []
        for interval in self.intervals:
            if interval.end_s > end_s + ROUNDING_S:
                raise DocumentError(
                    f"{where}: an interval ends at {interval.end_s:g} s, but {table.video} has scores up to {end_s:g} s",
                    hint=_SAME_CUT,
                )
            edges = np.array([interval.start_s, interval.end_s]) - TIME_TOLERANCE_S
            start, end = (int(row) for row in np.searchsorted(times, edges, side="left"))
            if start >= end:
                raise DocumentError(
                    f"{where}: no frame of {table.video} lies in {interval.start_s:g} to {interval.end_s:g} s",
                    hint="correct the interval: a frame is inside where start_s <= its time < end_s",
                )
            found.append(Span(start, end, interval.category))
        return tuple(sorted(found, key=lambda span: (span.start_frame, span.end_frame)))

    def overhang_frames(self, table: ScoreTable) -> int:
        """Always 0: no frame lies past the last one."""
        return 0


def runs(labels: BoolArray) -> IndexArray:
    """(E, 2) int64, the half-open runs of True."""
    padded = np.concatenate([[False], labels, [False]])
    return np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2).astype(np.int64)


def fill(spans: Sequence[Span], rows: int) -> BoolArray:
    """(rows,) bool, True inside any span."""
    labels = np.zeros(rows, np.bool_)
    for span in spans:
        labels[span.start_frame : span.end_frame] = True
    return labels


def video_end_s(times: TimeArray) -> float:
    """Where the last frame ends, taking it to last as long as the frames usually do; 0 without frames."""
    if not len(times):
        return 0.0
    return float(times[-1]) + (float(np.median(np.diff(times))) if len(times) > 1 else 0.0)


def _same_length(frames: int, table: ScoreTable, where: str) -> None:
    if frames == len(table):
        return
    apart = abs(frames - len(table))
    kind = "one frame apart" if apart == 1 else f"{apart} frames apart"
    raise DocumentError(
        f"{where}: the truth has {frames} frames, but {table.video} has scores for {len(table)}: {kind}", hint=_SAME_CUT
    )
