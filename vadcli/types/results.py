"""The results of a scan: one row of scores per frame, the events, and the result of each video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self

import numpy as np

from vadcli.types.media import BoolArray, FloatArray, IndexArray, TimeArray

SCORES_SCHEMA_VERSION = 1
EVENTS_FORMAT_VERSION = 1

NOT_FINISHED = "not finished"
"""The reason of a video that a stopped run did not finish begins with these words."""

Box = tuple[int, int, int, int]
"""x, y, width, height in display pixels."""


class RowTable:
    """Base class of tables: frozen dataclasses whose arrays have one entry per row.

    `table[rows]` is a table with only these rows.
    """

    def columns(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return all fields that are arrays, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def __len__(self) -> int:
        return len(next(iter(self.columns().values())))

    def __getitem__(self, rows: slice | BoolArray | IndexArray) -> Self:
        return replace(self, **{name: column[rows] for name, column in self.columns().items()})  # type: ignore[type-var]


class Status(StrEnum):
    """The status of a video in a run record."""

    DONE = "done"
    PARTIAL = "partial"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNFINISHED = "unfinished"
    RUNNING = "running"


@dataclass(frozen=True)
class ScoreTable(RowTable):
    """The scores of a video, one row per frame, as written to Parquet.

    Attributes:
        video: relative path.
        frame_index: (N,) int64, number of the frame: 0, 1, 2, ...
        pts: (N,) int64 in the stream's time base.
        timestamp: (N,) float64, seconds from the first pts.
        score: (N,) float32 in [0, 1].
        logit: (N,) float32.
        sampled: (N,) bool, True for sampled frames. Each other row repeats the score of the sampled frame before it.
            Rows before the first sampled frame repeat the score of that frame.
        decode_ok: (N,) bool, False if the decoder skipped the frame or concealed damage in it.
        category_names: names of the C categories; empty if the detector gives no score per category.
        category_scores: (N, C) float32 in [0, 1], one column per category; None if `category_names` is empty.
    """

    video: str
    frame_index: IndexArray
    pts: IndexArray
    timestamp: TimeArray
    score: FloatArray
    logit: FloatArray
    sampled: BoolArray
    decode_ok: BoolArray
    category_names: tuple[str, ...] = ()
    category_scores: FloatArray | None = None

    def __post_init__(self) -> None:
        n = len(self.frame_index)
        lengths = [len(column) for column in self.columns().values()]
        if any(length != n for length in lengths):
            raise ValueError(f"{self.video}: the columns have different lengths: {lengths}")
        if n and not np.array_equal(self.frame_index, np.arange(n)):
            raise ValueError(f"{self.video}: frame_index must run from 0 without gaps")
        if n and not (float(self.score.min()) >= 0.0 and float(self.score.max()) <= 1.0):
            raise ValueError(f"{self.video}: scores must lie in [0, 1]")
        categories = 0 if self.category_scores is None else self.category_scores.shape[1]
        if categories != len(self.category_names):
            raise ValueError(
                f"{self.video}: category_scores has {categories} columns, but there are {len(self.category_names)} categories"
            )


class MaskRows(StrEnum):
    """Which rows of a video have a stored mask."""

    SAMPLED = "sampled"
    EVERY = "every row"

    def of(self, sampled: BoolArray) -> IndexArray:
        """Return the rows that have a stored mask. The k-th stored mask belongs to the k-th of these rows.

        Args:
            sampled: (N,) bool, the column `sampled` of `ScoreTable`: True for sampled frames.
        """
        return np.arange(len(sampled), dtype=np.int64) if self is MaskRows.EVERY else np.flatnonzero(sampled).astype(np.int64)


def mask_level(score: float) -> int:
    """Return the byte (1-255) that stored masks have for a pixel score; higher scores have higher bytes."""
    # Stored masks are rounded in float32, so this byte must be rounded in float32, too. In float64, the byte could be higher
    # by 1, and then some pixels with this score would have a lower byte.
    return max(1, int(np.rint(np.float32(score) * np.float32(255))))


@dataclass(frozen=True)
class Thresholds:
    """The thresholds and durations with which `cutting.cut_events` makes events from scores.

    Attributes:
        high: an event opens when the score reaches this value, in [0, 1].
        low: the event closes when the score falls below this value, in [0, high].
        min_duration_s: events that are shorter than this number of seconds are dropped.
        merge_gap_s: two events become one event if the gap between them is at most this number of seconds.
        pad_s: each event begins earlier and ends later by this number of seconds, within the video.
    """

    high: float = 0.5
    low: float = 0.4
    min_duration_s: float = 0.0
    merge_gap_s: float = 1.0
    pad_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise ValueError(f"low {self.low:g} and high {self.high:g} must be in 0-1, and low must not be above high")
        if min(self.min_duration_s, self.merge_gap_s, self.pad_s) < 0:
            times = f"{self.min_duration_s:g}, {self.merge_gap_s:g} and {self.pad_s:g}"
            raise ValueError(f"min_duration_s, merge_gap_s and pad_s must be at least 0, not {times}")

    @property
    def mask_level(self) -> int:
        """The lowest value of a mask pixel, 1-255, that means a score of at least `high`.

        Outlines and boxes enclose the pixels with this value or a higher value.
        """
        return mask_level(self.high)

    def to_json(self) -> dict[str, float]:
        """Return the JSON that an events document stores."""
        return asdict(self)


class Answer(StrEnum):
    """The answer of a second model about an event."""

    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    NOT_ASKED = "not asked"


@dataclass(frozen=True)
class Verification:
    """The answer of a second model about an event (`vadcli verify`).

    Attributes:
        model: the model that was asked.
        answer: confirmed, rejected or not asked.
        log_odds: the model's highest log-odds for "yes" in the clips of the event; None if the model was not asked.
    """

    model: str
    answer: Answer
    log_odds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that an events document stores."""
        return {"model": self.model, "answer": str(self.answer), "log_odds": self.log_odds}

    @property
    def text(self) -> str:
        """The answer in words, such as `confirmed by qwen2-vl-2b`."""
        return str(self.answer) if self.answer is Answer.NOT_ASKED else f"{self.answer} by {self.model}"


@dataclass(frozen=True)
class Description:
    """A sentence that a model wrote about an event. It is the model's opinion, not a fact."""

    model: str
    text: str


@dataclass(frozen=True)
class Event:
    """A span of a video whose scores passed the thresholds.

    Attributes:
        id: number of the event in its video, from 1.
        start_frame, end_frame: the first row of the event, and the row after the event.
        start_s, end_s: seconds from the first pts; end_s is the end of the last frame.
        peak_frame, peak_s, peak_score: row, time and score of the first frame with the highest score.
        mean_score: the mean score of the event's rows.
        category: the category with the highest score; None if the detector has no categories.
        category_scores: the score in [0, 1] of each category; empty if the detector has no categories.
        bbox: the box around all mask pixels of the event that reach the threshold `high`; None if there are no such pixels.
        head_score: the score of the event from a head, in [0, 1]; None if no head scored the event.
        verification: the answer of a second model about the event; None if no second model was used.
        description: a model's sentence about the event; None if no model wrote one.
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
    head_score: float | None = None
    verification: Verification | None = None
    description: Description | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start_frame <= self.peak_frame < self.end_frame:
            rows = f"{self.start_frame}, {self.peak_frame}, {self.end_frame}"
            raise ValueError(f"event {self.id}: the rows of start, peak and end are not in order: {rows}")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that an events document stores."""
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
            **({} if self.head_score is None else {"head_score": self.head_score}),
            **({"verification": self.verification.to_json()} if self.verification else {}),
            **({"description": dict(vars(self.description))} if self.description else {}),
        }

    @property
    def verified(self) -> str:
        """The second model's answer, such as `confirmed by qwen2-vl-2b`; "" if no second model was used."""
        return self.verification.text if self.verification else ""

    @property
    def described(self) -> str:
        """The sentence about the event, with its author: `qwen2-vl-2b says: "..."`; "" if no model wrote one."""
        return f'{self.description.model} says: "{self.description.text}"' if self.description else ""

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Event:
        """Return the event that `to_json` stored. Unknown fields are ignored."""
        # `structure` would take six times as long, and a report reads the events of a million videos.
        values = {item.name: document[item.name] for item in fields(cls) if item.name in document}
        values["bbox"] = tuple(values["bbox"]) if values.get("bbox") else None
        if stored := values.get("verification"):
            values["verification"] = Verification(stored["model"], Answer(stored["answer"]), stored["log_odds"])
        if stored := values.get("description"):
            values["description"] = Description(stored["model"], stored["text"])
        return cls(**values)


@dataclass(frozen=True)
class HeadMark:
    """The head that scored the events of a video.

    Attributes:
        name: the name of the head's folder.
        kind: the kind of the head, such as logistic.
        key: hash of the head's files.
    """

    name: str
    kind: str
    key: str


class Verdict(StrEnum):
    """A person's answer to the question: is this event a real anomaly?"""

    TRUE = "true"
    FALSE = "false"
    UNSURE = "unsure"


@dataclass(frozen=True)
class ReviewedEvent:
    """An event with the answer of the person who reviewed it.

    Attributes:
        video: relative path.
        start_s, end_s: span of the event at the time of the review, in seconds.
        peak_score: the highest score of the event.
        verdict: true (a real anomaly), false (a false alarm) or unsure.
        note: the reviewer's own words.
    """

    video: str
    start_s: float
    end_s: float
    peak_score: float
    verdict: Verdict
    note: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.start_s <= self.end_s:
            raise ValueError(f"{self.video}: an event cannot last from {self.start_s} to {self.end_s} s")
        if not 0.0 <= self.peak_score <= 1.0:
            raise ValueError(f"{self.video}: the score {self.peak_score} is outside 0-1")


@dataclass(frozen=True)
class VideoResult:
    """The result of scanning one video: one line of `--json`, and one entry of the run record.

    Attributes:
        stage: the step of the scan at which the video failed or lost frames; "" if the status is done.
        reason: why the video failed, lost frames or was skipped, as a text for the user; "" if the status is done.
        seconds: time spent on the video, in seconds.
        events: number of events.
        new_events: number of events that no earlier scan reported.
        note: more facts for the user, for example that the decoder crashed and another one was used.
        caveats: sentences for the user, each with a reason why the scores are less reliable than usual.
        node: the machine in the cluster that scanned the video; "" without a cluster.
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
    new_events: int = 0
    note: str = ""
    caveats: tuple[str, ...] = ()
    node: str = ""

    @property
    def is_lost(self) -> bool:
        """True if the video failed or lost frames.

        If this run skipped the video, the result describes the earlier run that scanned it.
        """
        return self.status in (Status.FAILED, Status.PARTIAL) or (self.status is Status.SKIPPED and bool(self.stage))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of the video in a run record. The order of the fields is documented."""
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
            "new_events": self.new_events,
            "note": self.note or None,
            "caveats": list(self.caveats),
            **({"node": self.node} if self.node else {}),
        }
