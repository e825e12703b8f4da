"""Makes events from the scores of a video and the answers of a second model (`vadcli verify`).

The model's log-odds are converted to a logit on the scale of the scores: on this scale, a value means a number of events per
hour of the camera's usual footage. Frames about which the model was asked get the mean of the two logits. Other frames can't
open an event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from vadcli.cutting import EventBoxes, cut_events, inherit_boxes, inherit_categories
from vadcli.detectors.calibration import BellTail, CategoryTails
from vadcli.store.verification import StoredAnswers
from vadcli.types import (
    Answer,
    BoolArray,
    Description,
    Event,
    FloatArray,
    IndexArray,
    ScoreTable,
    Thresholds,
    TimeArray,
    Verification,
    sigmoid,
)
from vadcli.video.sampling import SamplingPlan


@dataclass(frozen=True)
class ClipGrid:
    """All clips of a video about which the model can be asked: the clips of a scan with the detector `ask`.

    The cell of a clip has the frames that are closer to the middle of this clip than to the middle of any other clip.
    """

    rows: IndexArray  # (C, T) int64, the frames of each clip
    start: TimeArray  # (C,) float64 seconds, the start of each clip
    end: TimeArray  # (C,) float64 seconds, the end of each clip
    edges: TimeArray  # (C + 1,) float64 seconds, the edges of the cells; the first is 0 and the last is the end of the video
    interval: int  # frames from one sampled frame to the next
    first: IndexArray  # (C,) int64, the first frame of each clip that is not in an earlier clip

    @classmethod
    def of(cls, plan: SamplingPlan, timestamp: TimeArray, duration_s: float) -> ClipGrid:
        """Return all clips of a video. The video must have at least one frame.

        The plan says which frames are sampled and how they form clips. `timestamp` has the seconds (N,) of the frames, and
        `duration_s` is the end of the last frame.
        """
        frames = len(timestamp)
        samples = np.stack([plan.clip_samples(clip, frames) for clip in range(plan.clips(frames))])  # (C, T)
        times = np.append(timestamp[:: plan.interval], max(duration_s, float(timestamp[-1])))
        start, end = times[samples[:, 0]], times[samples[:, -1] + 1]
        middle = (start + end) / 2
        edges = np.concatenate([[0.0], (middle[1:] + middle[:-1]) / 2, times[-1:]])
        first = np.array([plan.row(plan.first_new_sample(clip)) for clip in range(len(samples))], np.int64)
        return cls(samples * plan.interval, start, end, edges, plan.interval, first)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def length_s(self) -> TimeArray:
        """The length (C,) float64 of each cell, in seconds."""
        return np.diff(self.edges)

    @property
    def middle(self) -> TimeArray:
        """The middle (C,) float64 of the span of each clip, in seconds."""
        return (self.start + self.end) / 2

    def middle_of_frames(self, timestamp: TimeArray) -> TimeArray:
        """Return the middle (C,) of each clip's first and last frame in seconds, rounded as in `ask`."""
        middle, first = (timestamp[self.rows[:, 0]] + timestamp[self.rows[:, -1]]) / 2, timestamp[self.first]
        return np.asarray(first + (middle - first).astype(np.float32))

    def cell_of(self, timestamp: TimeArray) -> IndexArray:
        """Return the number of the cell that contains each timestamp."""
        return cell_of(self.edges, timestamp)


def cell_of(edges: TimeArray, timestamp: TimeArray) -> IndexArray:
    """Return the number of the cell that contains each timestamp. The `edges` are those of a `ClipGrid`."""
    return np.asarray(np.searchsorted(edges[1:-1], timestamp, "right"), dtype=np.int64)


def tails_to_json(tails: CategoryTails) -> dict[str, Any]:
    """Return the JSON that is stored with the answers."""
    return asdict(tails)


def tails_from_json(document: Mapping[str, Any]) -> CategoryTails:
    """Return the tails that `tails_to_json` stored."""
    tails = tuple(BellTail(**values) for values in document["tails"])
    return CategoryTails(tails, int(document["categories"]), float(document["level"]), float(document["rate"]))


def between_clips(log_odds: FloatArray, clips: IndexArray, grid: ClipGrid, timestamp: TimeArray) -> FloatArray:
    """Return the log-odds (N, C) float32 of every frame, interpolated between the middles of clips.

    They are computed for sampled frames and carried forward to the other frames, as in a scan. Frames in the cells of other
    clips are NaN.

    Args:
        log_odds: (A, C), the log-odds of the clips about which the model was asked.
        clips: (A,) the ascending numbers of these clips.
        grid: all clips.
        timestamp: (N,) seconds of the frames.
    """
    found = np.full((len(timestamp), log_odds.shape[1]), np.nan, np.float32)
    cells = grid.cell_of(timestamp)
    sampled = timestamp[:: grid.interval]
    middle = grid.middle_of_frames(timestamp)
    for run in np.split(np.arange(len(clips)), np.flatnonzero(np.diff(clips) > 1) + 1) if len(clips) else []:
        inside = (cells >= clips[run[0]]) & (cells <= clips[run[-1]])
        columns = [np.interp(sampled, middle[clips[run]], column[run]) for column in log_odds.T]
        at_samples = np.stack(columns, axis=1).astype(np.float32)
        found[inside] = np.repeat(at_samples, grid.interval, axis=0)[: len(timestamp)][inside]
    return found


@dataclass(frozen=True)
class VerifiedScores:
    """A video's scores together with the answers about it."""

    table: ScoreTable  # the joint scores. Frames about which the model was not asked have a score below the threshold.
    asked: BoolArray  # (N,) bool, True for frames in the cell of a clip about which the model was asked
    model: FloatArray  # (N,) float32 logits of the model alone; 0 for frames about which it was not asked
    stored: StoredAnswers
    grid: ClipGrid
    logits: FloatArray  # (A, C) float32, the model's logits for the clips with answers about all present categories
    rows: IndexArray  # (A,) int64, the positions of these clips in `stored.answers`

    @classmethod
    def of(cls, table: ScoreTable, stored: StoredAnswers, thresholds: Thresholds, duration_s: float) -> VerifiedScores | None:
        """Return the scores of a verified video; None if no answer can be used."""
        metadata = stored.metadata
        plan = SamplingPlan(metadata.frames, metadata.overlap, metadata.interval)
        if not len(table) or not metadata.usual:
            return None
        tails = tails_from_json(metadata.usual)
        grid = ClipGrid.of(plan, table.timestamp, duration_s)
        log_odds = stored.of(metadata.categories)
        rows = np.flatnonzero(~np.isnan(log_odds).any(axis=1) & (stored.answers.clip < len(grid)))
        between = between_clips(log_odds[rows], stored.answers.clip[rows], grid, table.timestamp)
        asked = np.asarray(~np.isnan(between).any(axis=1), dtype=np.bool_)
        model = np.zeros(len(table), np.float32)
        model[asked] = tails.logits(between[asked]).max(axis=1)
        logit = np.where(asked, (table.logit + model) / 2, table.logit).astype(np.float32)
        below = np.nextafter(np.float32(thresholds.high), np.float32(0))
        score = np.where(asked, sigmoid(logit), np.minimum(table.score, below)).astype(np.float32)
        joint = replace(table, logit=logit, score=score)
        return cls(joint, asked, model, stored, grid, tails.logits(log_odds[rows]), rows)

    def clips_of(self, event: Event) -> IndexArray:
        """Return the positions in `rows` of those clips whose cells overlap the event."""
        edges = self.grid.edges
        clips = self.stored.answers.clip[self.rows]
        return np.flatnonzero((edges[clips + 1] > event.start_s) & (edges[clips] < event.end_s))

    def confirmed(self, event: Event) -> Event:
        """Return an event of the joint scores, with the model's answer, category and description."""
        places, metadata = self.clips_of(event), self.stored.metadata
        found = replace(event, verification=self._verification(Answer.CONFIRMED, places))
        if not len(places):
            return found
        best = self.logits[places].max(axis=0)
        scores = [round(float(score), 6) for score in sigmoid(best)]
        clips = self.stored.answers.clip[self.rows[places[np.argsort(-self.logits[places].max(axis=1), kind="stable")]]]
        descriptions = [metadata.descriptions[str(clip)] for clip in clips.tolist() if metadata.descriptions.get(str(clip))]
        return replace(
            found,
            category=metadata.categories[int(best.argmax())],
            category_scores=dict(zip(metadata.categories, scores, strict=True)),
            description=Description(metadata.model, descriptions[0]) if descriptions else None,
        )

    def doubted(self, event: Event) -> Event:
        """Return an event of the scan, marked as rejected or as not asked."""
        if not self.asked[event.peak_frame]:
            return replace(event, verification=Verification(self.stored.metadata.model, Answer.NOT_ASKED))
        rows = slice(event.start_frame, event.end_frame)
        score = np.where(self.asked[rows], self.table.score[rows], 0.0)
        peak = int(score.argmax())
        return replace(
            event,
            peak_frame=event.start_frame + peak,
            peak_s=float(self.table.timestamp[event.start_frame + peak]),
            peak_score=float(score[peak]),
            mean_score=min(float(score.mean()), float(score[peak])),
            verification=self._verification(Answer.REJECTED, self.clips_of(event)),
        )

    def _verification(self, answer: Answer, places: IndexArray) -> Verification:
        """Return the answer, with the log-odds of one clip and category: those with the highest logit."""
        model = self.stored.metadata.model
        if not len(places):
            return Verification(model, answer)
        log_odds = self.stored.of(self.stored.metadata.categories)[self.rows[places]]
        return Verification(model, answer, round(float(log_odds.flat[int(self.logits[places].argmax())]), 4))


def verified_events(
    video: VerifiedScores, before: Sequence[Event], thresholds: Thresholds, *, duration_s: float, boxes: EventBoxes | None
) -> list[Event]:
    """Return the events of a verified video, in order and without overlap.

    They are the events of the joint scores, and the events of the scan (`before`) that overlap none of them. Both are made with
    the same thresholds. `duration_s` is the end of the last frame, and the boxes are as in `cut_events`.
    """
    found = cut_events(video.table, thresholds, duration_s=duration_s, boxes=boxes)
    found = inherit_boxes(found, before) if boxes is None else found
    found = [video.confirmed(event) for event in inherit_categories(found, before)]
    starts = np.array([event.start_frame for event in found], np.int64)
    ends = np.array([event.end_frame for event in found], np.int64)
    others = [
        video.doubted(event)
        for event in before
        if np.searchsorted(starts, event.end_frame, "left") <= np.searchsorted(ends, event.start_frame, "right")
    ]
    merged = sorted([*found, *others], key=lambda event: event.start_frame)
    return [replace(event, id=number) for number, event in enumerate(merged, 1)]
