"""What a scan finds: a row a frame, events, and what became of each video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from vadcli.types.media import BoolArray, FloatArray, IndexArray, TimeArray

SCORES_SCHEMA_VERSION = 1
EVENTS_FORMAT_VERSION = 1

Box = tuple[int, int, int, int]
"""x, y, width, height in display pixels."""


class Status(StrEnum):
    """What became of a video in a run."""

    DONE = "done"
    PARTIAL = "partial"
    FAILED = "failed"
    SKIPPED = "skipped"
    RUNNING = "running"


@dataclass(frozen=True)
class ScoreTable:
    """A row a frame, as written to Parquet.

    Attributes:
        video: relative path.
        frame_index: (N,) int64 without gaps, from 0.
        pts: (N,) int64 in the stream's time base.
        timestamp: (N,) float64 seconds from the first pts.
        score: (N,) float32 in [0, 1].
        logit: (N,) float32.
        sampled: (N,) bool, True where the model saw the frame.
        decode_ok: (N,) bool, False where the decoder skipped or concealed it.
    """

    video: str
    frame_index: IndexArray
    pts: IndexArray
    timestamp: TimeArray
    score: FloatArray
    logit: FloatArray
    sampled: BoolArray
    decode_ok: BoolArray

    def __post_init__(self) -> None:
        n = len(self.frame_index)
        columns = (self.pts, self.timestamp, self.score, self.logit, self.sampled, self.decode_ok)
        if any(len(column) != n for column in columns):
            raise ValueError(f"{self.video}: columns of different length {[len(c) for c in columns]}")
        if n and not np.array_equal(self.frame_index, np.arange(n)):
            raise ValueError(f"{self.video}: frame_index must run from 0 without gaps")
        if n and not (float(self.score.min()) >= 0.0 and float(self.score.max()) <= 1.0):
            raise ValueError(f"{self.video}: scores must lie in [0, 1]")

    def __len__(self) -> int:
        return len(self.frame_index)


class MaskRows(StrEnum):
    """Which rows of a video have a stored mask."""

    SAMPLED = "sampled"
    EVERY = "every row"

    def of(self, sampled: BoolArray) -> IndexArray:
        """The rows, in order; the k-th stored mask belongs to the k-th of them.

        Args:
            sampled: (N,) True in the video's sampled rows.
        """
        return np.arange(len(sampled), dtype=np.int64) if self is MaskRows.EVERY else np.flatnonzero(sampled).astype(np.int64)


@dataclass(frozen=True)
class Thresholds:
    """How scores become events: hysteresis, then merge, drop the short, pad.

    Attributes:
        high: an event opens where score >= high, in [0, 1].
        low: it closes where score < low, low <= high.
        min_duration_s: shorter events are dropped.
        merge_gap_s: events closer than this become one.
        pad_s: added at both ends, within the video.
    """

    high: float = 0.5
    low: float = 0.4
    min_duration_s: float = 0.0
    merge_gap_s: float = 1.0
    pad_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise ValueError(f"thresholds need 0 <= low ({self.low:g}) <= high ({self.high:g}) <= 1")
        if min(self.min_duration_s, self.merge_gap_s, self.pad_s) < 0:
            raise ValueError("durations, gaps and padding can't be negative")

    def to_json(self) -> dict[str, float]:
        """As written into an events document."""
        return {
            "high": self.high,
            "low": self.low,
            "min_duration_s": self.min_duration_s,
            "merge_gap_s": self.merge_gap_s,
            "pad_s": self.pad_s,
        }


@dataclass(frozen=True)
class Event:
    """A stretch of a video that stands out.

    Attributes:
        id: 1-based number in its video.
        start_frame, end_frame: half-open rows.
        start_s, end_s: seconds from the first pts; end_s is where the last frame ends.
        peak_frame, peak_s, peak_score: the first highest row.
        mean_score: over the event's rows.
        category, category_scores: filled by detectors that read text.
        bbox: union of the mask at >= 0.5 over the event, or None.
    """

    id: int
    start_frame: int
    end_frame: int
    start_s: float
    end_s: float
    peak_frame: int
    peak_s: float
    peak_score: float
    mean_score: float
    category: str | None = None
    category_scores: Mapping[str, float] = field(default_factory=dict)
    bbox: Box | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start_frame <= self.peak_frame < self.end_frame:
            raise ValueError(f"event {self.id}: rows {self.start_frame} <= {self.peak_frame} < {self.end_frame} don't hold")

    def to_json(self) -> dict[str, Any]:
        """As written into an events document."""
        return {
            "id": self.id,
            "start_frame": self.start_frame,
            "end_frame": self.end_frame,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "peak_frame": self.peak_frame,
            "peak_s": self.peak_s,
            "peak_score": self.peak_score,
            "mean_score": self.mean_score,
            "category": self.category,
            "category_scores": dict(self.category_scores),
            "bbox": list(self.bbox) if self.bbox else None,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Event:
        """The inverse of `to_json`."""
        values = dict(document)
        values["bbox"] = tuple(values["bbox"]) if values.get("bbox") else None
        return cls(**values)


class Verdict(StrEnum):
    """What a reader says of an event."""

    TRUE = "true"
    FALSE = "false"
    UNSURE = "unsure"


@dataclass(frozen=True)
class ReviewedEvent:
    """An event that a reader has looked at.

    Attributes:
        video: relative path.
        start_s, end_s: as it was cut then.
        peak_score: its highest score.
        verdict: what they say.
        note: in their words.
    """

    video: str
    start_s: float
    end_s: float
    peak_score: float
    verdict: Verdict
    note: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.start_s <= self.end_s:
            raise ValueError(f"{self.video}: {self.start_s} to {self.end_s} s is no stretch of time")
        if not 0.0 <= self.peak_score <= 1.0:
            raise ValueError(f"{self.video}: {self.peak_score} is not a score")


@dataclass(frozen=True)
class VideoResult:
    """What a scan says of one video: a line of `--json` and a row of the run's record.

    Attributes:
        stage, reason: where and why it failed or lost frames; empty when done.
        seconds: wall time spent on it.
        events: how many events were found.
    """

    video: str
    status: Status
    stage: str = ""
    reason: str = ""
    camera: str = ""
    moving_camera: bool | None = None
    decoder: str = ""
    expected_frames: int = 0
    decoded_frames: int = 0
    seconds: float = 0.0
    events: int = 0

    @property
    def is_lost(self) -> bool:
        """True where frames are missing: in this run, or in an earlier one of the same input that is not tried again."""
        return self.status in (Status.FAILED, Status.PARTIAL) or (self.status is Status.SKIPPED and bool(self.stage))

    def to_json(self) -> dict[str, Any]:
        """In the order of the contract."""
        return {
            "video": self.video,
            "status": str(self.status),
            "stage": self.stage or None,
            "reason": self.reason or None,
            "camera": self.camera or None,
            "moving_camera": self.moving_camera,
            "decoder": self.decoder or None,
            "expected_frames": self.expected_frames,
            "decoded_frames": self.decoded_frames,
            "seconds": round(self.seconds, 3),
            "events": self.events,
        }
