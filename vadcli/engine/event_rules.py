"""Makes events from scores, with thresholds, a head, reviews, and the answers of a second model.

The rules come from the options of the scan and from the choices in OUT, which `vadcli events --write` stores. A head is a small
model that learned from the user's reviews. A head removes events that look like rejected events, or makes events from its own
scores. A head reads stored vectors, so no video is decoded.

`vadcli verify` asks a second model about clips, and stores the answers as log-odds. This module converts the log-odds into
logits on the scale of the scan. On this scale, a value means a number of events per hour of the camera's usual footage. The
joint score of a frame is made from the mean of the model's logit and the scan's logit. If the model was not asked about a
frame, the frame cannot open an event.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from vadcli.cutting import EventBoxes, cut_events, inherit_boxes, inherit_categories
from vadcli.detectors.calibration import BellTail, CategoryTails
from vadcli.errors import DocumentError, UsageError
from vadcli.heads import Labels
from vadcli.heads.stored import StoredHead, VideoVectors, matching, read_head, read_vectors
from vadcli.options import HeadOptions, ScanOptions, ThresholdOptions
from vadcli.options.groups import flag_of
from vadcli.store.choices import Choices, ChosenThresholds, chosen_for
from vadcli.store.verification import StoredAnswers
from vadcli.types import (
    Answer,
    BoolArray,
    Calibration,
    Description,
    Event,
    FloatArray,
    HeadMark,
    IndexArray,
    ReviewedEvent,
    ScoreTable,
    Thresholds,
    TimeArray,
    Verdict,
    Verification,
    sigmoid,
)
from vadcli.types.text import camera_names, how_many
from vadcli.video.sampling import SamplingPlan

log = logging.getLogger("vadcli")

HIGH, LOW = 0.5, 0.4
"""An event is kept if its head score is at least HIGH. A head that scores frames opens events at HIGH and closes them at LOW.

The user can replace HIGH by another value (--head-threshold). If this value is below LOW, it replaces LOW, too.
"""


class Judge:
    """Judges the events of an output folder with a head.

    Args:
        head: the head.
        folders: output folders with vectors, one per encoder of the head.
        high: an event is kept if the head gives it at least this score.
    """

    def __init__(self, head: StoredHead, folders: Sequence[Path], *, high: float = HIGH) -> None:
        self.head, self.folders, self.high = head, tuple(folders), high
        # The facts about the head that an events document stores.
        self.mark = HeadMark(head.name, head.card.kind, head.key if high == HIGH else f"{head.key}@{high:g}")
        self._judged: set[str] = set()  # the videos that the head has judged
        self._refused: defaultdict[str, set[str]] = defaultdict(set)  # the videos that can't be judged, by reason
        self._warned: set[str] = set()  # the cameras about which a warning is in the log

    def events(
        self,
        video: str,
        table: ScoreTable,
        events: list[Event],
        thresholds: Thresholds,
        *,
        duration_s: float,
        boxes: EventBoxes | None = None,
    ) -> list[Event]:
        """Return the events that the head keeps or makes.

        If the vectors of the video can't be read, `events` are returned without a change.

        Args:
            video: the name of the video.
            table, events, thresholds: the scores, the events and the thresholds of the detector.
            duration_s: the end of the video.
            boxes: boxes for the events; see `cut_events`.
        """
        vectors = self._vectors(video)
        if vectors is None:
            self._judged.discard(video)
            return events
        self._judged.add(video)
        self._warn_if_unlike(video, vectors)
        if self.head.card.labels is Labels.EVENTS:
            scored = [
                replace(event, head_score=self.head.judge(vectors.of_span(event.start_s, event.end_s, event.peak_score)))
                for event in events
            ]
            kept = [event for event in scored if event.head_score is not None and event.head_score >= self.high]
            return [replace(event, id=number) for number, event in enumerate(kept, 1)]
        score = self.head.score(vectors.whole(table))
        rows = np.searchsorted(vectors.frame_index, table.frame_index, "right").clip(1, len(score)) - 1
        head_thresholds = replace(thresholds, high=self.high, low=min(LOW, self.high))
        made = []
        for event in cut_events(replace(table, score=score[rows]), head_thresholds, duration_s=duration_s, boxes=boxes):
            scores = table.score[event.start_frame : event.end_frame]  # the detector's scores
            peak, highest = event.start_frame + int(scores.argmax()), float(scores.max())
            mean = min(float(scores.mean(dtype=np.float64)), highest)
            moved = replace(event, peak_frame=peak, peak_s=float(table.timestamp[peak]), head_score=event.peak_score)
            made.append(replace(moved, peak_score=highest, mean_score=mean))
        return made

    def score_of(self, video: str, start_s: float, end_s: float, peak_score: float) -> float | None:
        """Return the head's score of an event, in [0, 1]; None if the vectors of `video` can't be read."""
        vectors = self._vectors(video)
        return None if vectors is None else self.head.judge(vectors.of_span(start_s, end_s, peak_score))

    def mark_of(self, video: str) -> HeadMark | None:
        """Return the facts about the head for the events document; None if the head has not judged the video."""
        return self.mark if video in self._judged else None

    @property
    def refusal(self) -> str:
        """The most common reason why videos could not be judged; "" if any video was judged."""
        if self._judged or not self._refused:
            return ""
        reason, _ = max(self._refused.items(), key=lambda item: len(item[1]))
        return f"head {self.head.name}: {reason}"

    def log_refused(self) -> None:
        """Log how many videos could not be judged, with one line per reason."""
        for reason, videos in self._refused.items():
            log.warning("head %s: %s could not be judged: %s", self.head.name, how_many(len(videos), "video"), reason)
        self._refused.clear()

    def _vectors(self, video: str) -> VideoVectors | None:
        """Return the vectors of a video. If the head can't use them, count the reason, and return None."""
        try:
            vectors = read_vectors(self.folders, video)
        except DocumentError as error:
            self._refused[error.message].add(video)
            return None
        if vectors is None:
            self._refused["no vectors are stored (vadcli embed stores them)"].add(video)
            return None
        reason = matching(self.head.card, vectors.encoders)
        if reason:
            self._refused[reason].add(video)
            return None
        return vectors

    def _warn_if_unlike(self, video: str, vectors: VideoVectors) -> None:
        """Warn once per camera if the head may judge the videos of this camera wrongly.

        This may happen if the video looks unlike the training videos, or if no training video came from the camera.
        """
        if vectors.camera in self._warned:
            return
        strangeness = self.head.strangeness(vectors.centre())
        if strangeness > 1.0:
            log.warning(
                "head %s: %s looks unlike the training videos of the head (%.1f times the expected distance), "
                "so the head may judge wrongly: review events of %s and learn again",
                self.head.name,
                video,
                strangeness,
                camera_names([vectors.camera]),
            )
        elif vectors.camera not in self.head.card.cameras:
            log.warning("head %s was not trained on %s", self.head.name, camera_names([vectors.camera]))
        else:
            return
        self._warned.add(vectors.camera)


def judge_of(options: HeadOptions, choices: Choices, *, out: Path, detector: str = "") -> Judge | None:
    """Return a judge with the user's head; None if neither the options nor the choices in OUT have a head.

    Args:
        options: the options of the command. A head in the options replaces the head in the choices.
        choices: the choices that `vadcli events --write` stored.
        out: the output folder, which has the vectors of the head's first encoder.
        detector: the detector whose events are judged; "" if the events may come from several detectors.

    Raises:
        UsageError: the folder of the head does not exist, or there are too many or too few folders with vectors.
        DocumentError, WeightsError: the head can't be read, or has another version.
    """
    folder = options.head or (Path(choices.head) if choices.head else None)
    if folder is None:
        return None
    others = tuple(map(Path, options.embeddings or choices.embeddings))
    head = read_head(folder)
    if len(others) + 1 != len(head.card.encoders):
        names, given = ", ".join(encoder.name for encoder in head.card.encoders), how_many(len(others) + 1, "folder")
        raise UsageError(
            f"{folder}: the head reads the vectors of {names}, but it was given {given} of vectors",
            hint="OUT has the vectors of the first encoder; name the folder of each other encoder with --embeddings",
        )
    if detector and detector != head.card.detector and head.card.labels is Labels.EVENTS:
        log.warning(
            "head %s was trained on events of the detector %s, and may judge events of %s wrongly",
            head.name,
            head.card.detector,
            detector,
        )
    high = choices.head_threshold if options.head is None else options.head_threshold
    return Judge(head, (out, *others), high=HIGH if high is None else high)


@dataclass(frozen=True)
class EventRules:
    """How scores become events: the thresholds of each video, the stored review, and the head."""

    thresholds: Thresholds  # for videos that have no chosen thresholds
    chosen: tuple[ChosenThresholds, ...] = ()  # thresholds from the choices in OUT, changed by the options of the scan
    reviews: tuple[ReviewedEvent, ...] = ()
    judge: Judge | None = None  # None if the scan uses no head

    @classmethod
    def of(
        cls,
        options: ThresholdOptions,
        choices: Choices,
        *,
        detector: str,
        default: Thresholds,
        calibration: Calibration | None,
        judge: Judge | None = None,
    ) -> EventRules:
        """Return the rules of a scan. An option of the scan replaces the value in the choices of OUT.

        Args:
            options: the options of the scan.
            choices: the choices in OUT.
            detector, default, calibration: the name, the default thresholds and the calibration of the detector.
            judge: the head; None if the scan uses no head.

        Raises:
            UsageError: `low` would be above the threshold, or --alarms-per-hour is given and the scores are not calibrated.
        """
        chosen = [
            replace(entry, thresholds=options.thresholds(entry.thresholds, calibration))
            for entry in choices.thresholds
            if entry.detector == detector
        ]
        return cls(options.thresholds(default, calibration), tuple(chosen), choices.reviews, judge)

    def of_video(self, video: str) -> Thresholds:
        """Return the thresholds of a video."""
        return chosen_for(self.chosen, video) or self.thresholds

    def events(self, video: str, table: ScoreTable, *, duration_s: float, boxes: EventBoxes | None = None) -> list[Event]:
        """Return the events of a video; see `make_events`."""
        thresholds = self.of_video(video)
        return make_events(video, table, thresholds, duration_s=duration_s, boxes=boxes, judge=self.judge, reviews=self.reviews)

    def head_of(self, video: str) -> HeadMark | None:
        """Return the head that has judged the events of a video; None if no head has judged them."""
        return self.judge.mark_of(video) if self.judge else None


def make_events(
    video: str,
    table: ScoreTable,
    thresholds: Thresholds,
    *,
    duration_s: float,
    boxes: EventBoxes | None = None,
    judge: Judge | None = None,
    reviews: Sequence[ReviewedEvent] = (),
) -> list[Event]:
    """Return the events of a video, judged by a head, without events that a review marks as false.

    Args:
        video: the name of the video.
        table: the scores.
        thresholds: the thresholds that open and close events.
        duration_s: the end of the video.
        boxes: boxes for the events; see `cut_events`.
        judge: the head; None if no head judges the events.
        reviews: the verdicts about events of this and other videos.
    """
    events = cut_events(table, thresholds, duration_s=duration_s, boxes=boxes)
    if judge is not None:
        events = judge.events(video, table, events, thresholds, duration_s=duration_s, boxes=boxes)
    return without_false_alarms(video, events, reviews)


def without_false_alarms(video: str, events: Sequence[Event], reviews: Sequence[ReviewedEvent]) -> list[Event]:
    """Return the events of a video, numbered again, without events that a review marks as false.

    The reviews may be about events of several videos.
    """
    reviews = [entry for entry in reviews if entry.video == video]
    if not any(entry.verdict is Verdict.FALSE for entry in reviews):
        return list(events)
    from vadcli.metrics.event import without_false  # not at the top, because the import takes a second in every scan

    kept = without_false([(event.start_s, event.end_s) for event in events], reviews)
    return [replace(events[place], id=number) for number, place in enumerate(kept, 1)]


def given_thresholds(options: ThresholdOptions) -> list[str]:
    """Return the names of the threshold options that the user gave, such as `--threshold`."""
    return [flag_of(item.name) for item in fields(ThresholdOptions) if getattr(options, item.name) is not None]


def choices_text(options: ScanOptions, choices: Choices, *, detector: str) -> str:
    """Return a line about the choices in OUT that a scan uses; "" if OUT has no choices."""
    chosen = [entry for entry in choices.thresholds if entry.detector == detector]
    sentences = []
    if chosen:
        given = " and ".join(given_thresholds(options))
        exception = f", except for {given} of this scan" if given else ""
        videos = [f" for {' '.join(entry.include)}" if entry.include else "" for entry in chosen]
        parts = [f"the threshold {entry.thresholds.high:.4g}{where}" for entry, where in zip(chosen, videos, strict=True)]
        sentences.append(f"events are made with {', '.join(parts)}{exception}")
    elif choices.thresholds:
        others = ", ".join(dict.fromkeys(entry.detector for entry in choices.thresholds))
        sentences.append(f"the thresholds for {others} are not used for {detector}")
    if choices.head and options.head is None:
        sentences.append(f"events are judged by the head {Path(choices.head).name}")
    if false := sum(entry.verdict is Verdict.FALSE for entry in choices.reviews):
        sentences.append(f"{how_many(false, 'false alarm')} of the review {'is' if false == 1 else 'are'} left out")
    if not sentences:
        return ""
    return f"as `vadcli events --write` stored in {options.out}: {'; '.join(sentences)} (`vadcli events --forget` undoes this)"


@dataclass(frozen=True)
class ClipGrid:
    """All clips of a video about which the second model can be asked.

    They are the same clips as in a scan with `--detector ask`. Clips overlap, but their cells do not. The cell of a clip has
    all frames that are closer to the middle of this clip than to the middle of any other clip.
    """

    rows: IndexArray  # (C, T) int64, the frames of each clip
    start: TimeArray  # (C,) float64 seconds, the start of each clip
    end: TimeArray  # (C,) float64 seconds, the end of each clip
    edges: TimeArray  # (C + 1,) float64 seconds, the edges of the cells; the first is 0 and the last is the end of the video
    interval: int  # frames from one sampled frame to the next
    first: IndexArray  # (C,) int64, for each clip, the first of its frames that is not in an earlier clip

    @classmethod
    def of(cls, plan: SamplingPlan, timestamp: TimeArray, duration_s: float) -> ClipGrid:
        """Return all clips of a video. The video must have at least one frame.

        Args:
            plan: which frames are sampled, and how they form clips.
            timestamp: (N,) seconds of all frames.
            duration_s: the end of the last frame.
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
        """The length of each cell in seconds, (C,) float64."""
        return np.diff(self.edges)

    @property
    def middle(self) -> TimeArray:
        """The middle of the span of each clip in seconds, (C,) float64."""
        return (self.start + self.end) / 2

    def middle_of_frames(self, timestamp: TimeArray) -> TimeArray:
        """Return, for each clip, the time in seconds in the middle between its first and last frame, (C,).

        The times are rounded in the same way as in the detector `ask`.
        """
        middle, first = (timestamp[self.rows[:, 0]] + timestamp[self.rows[:, -1]]) / 2, timestamp[self.first]
        return np.asarray(first + (middle - first).astype(np.float32))

    def cell_of(self, timestamp: TimeArray) -> IndexArray:
        """Return, for each timestamp, the number of the cell that contains it."""
        return cell_of(self.edges, timestamp)


def cell_of(edges: TimeArray, timestamp: TimeArray) -> IndexArray:
    """Return, for each timestamp, the number of the cell that contains it. `edges` are the limits of the cells."""
    return np.asarray(np.searchsorted(edges[1:-1], timestamp, "right"), dtype=np.int64)


def tails_to_json(tails: CategoryTails) -> dict[str, Any]:
    """Return a calibration (`CategoryTails`) as the JSON object that is stored with the answers."""
    return asdict(tails)


def tails_from_json(document: Mapping[str, Any]) -> CategoryTails:
    """Return the calibration from the JSON object that `tails_to_json` made."""
    tails = tuple(BellTail(**values) for values in document["tails"])
    return CategoryTails(tails, int(document["categories"]), float(document["level"]), float(document["rate"]))


def interpolate_answers(log_odds: FloatArray, clips: IndexArray, grid: ClipGrid, timestamp: TimeArray) -> FloatArray:
    """Return the log-odds (N, C) float32 of N frames for C categories, from the log-odds of clips.

    A sampled frame gets log-odds that are interpolated between the middles of clips. The frames up to the next sampled frame
    repeat these log-odds, as in a scan. If the model was not asked about a clip, the frames in the clip's cell get NaN.

    Args:
        log_odds: (A, C), the log-odds of the clips about which the model was asked.
        clips: (A,) the numbers of the clips in `log_odds`, in ascending order.
        grid: all clips.
        timestamp: (N,) seconds of the frames.
    """
    of_frames = np.full((len(timestamp), log_odds.shape[1]), np.nan, np.float32)
    cells = grid.cell_of(timestamp)
    sampled = timestamp[:: grid.interval]
    middle = grid.middle_of_frames(timestamp)
    for run in np.split(np.arange(len(clips)), np.flatnonzero(np.diff(clips) > 1) + 1) if len(clips) else []:
        inside = (cells >= clips[run[0]]) & (cells <= clips[run[-1]])
        columns = [np.interp(sampled, middle[clips[run]], column[run]) for column in log_odds.T]
        at_samples = np.stack(columns, axis=1).astype(np.float32)
        of_frames[inside] = np.repeat(at_samples, grid.interval, axis=0)[: len(timestamp)][inside]
    return of_frames


@dataclass(frozen=True)
class VerifiedScores:
    """The scores of a video, together with the answers of the second model about the video."""

    table: ScoreTable  # the joint scores; frames about which the model was not asked have a score below the threshold
    asked: BoolArray  # (N,) bool, True for frames in the cell of a clip about which the model was asked
    model: FloatArray  # (N,) float32 logits of the model alone; 0 for frames about which it was not asked
    stored: StoredAnswers
    grid: ClipGrid
    logits: FloatArray  # (A, C) float32, the model's logits for the clips with answers about all current categories
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
        between = interpolate_answers(log_odds[rows], stored.answers.clip[rows], grid, table.timestamp)
        asked = np.asarray(~np.isnan(between).any(axis=1), dtype=np.bool_)
        model = np.zeros(len(table), np.float32)
        model[asked] = tails.logits(between[asked]).max(axis=1)
        logit = np.where(asked, (table.logit + model) / 2, table.logit).astype(np.float32)
        below = np.nextafter(np.float32(thresholds.high), np.float32(0))
        score = np.where(asked, sigmoid(logit), np.minimum(table.score, below)).astype(np.float32)
        joint = replace(table, logit=logit, score=score)
        return cls(joint, asked, model, stored, grid, tails.logits(log_odds[rows]), rows)

    def clips_of(self, event: Event) -> IndexArray:
        """Return the indices into `rows` of the clips whose cells overlap the event."""
        edges = self.grid.edges
        clips = self.stored.answers.clip[self.rows]
        return np.flatnonzero((edges[clips + 1] > event.start_s) & (edges[clips] < event.end_s))

    def confirmed(self, event: Event) -> Event:
        """Return the event, marked as confirmed, with the model's answer, category and description.

        `event` must have been made from the joint scores.
        """
        places, metadata = self.clips_of(event), self.stored.metadata
        event = replace(event, verification=self._verification(Answer.CONFIRMED, places))
        if not len(places):
            return event
        best = self.logits[places].max(axis=0)
        scores = [round(float(score), 6) for score in sigmoid(best)]
        clips = self.stored.answers.clip[self.rows[places[np.argsort(-self.logits[places].max(axis=1), kind="stable")]]]
        descriptions = [metadata.descriptions[str(clip)] for clip in clips.tolist() if metadata.descriptions.get(str(clip))]
        return replace(
            event,
            category=metadata.categories[int(best.argmax())],
            category_scores=dict(zip(metadata.categories, scores, strict=True)),
            description=Description(metadata.model, descriptions[0]) if descriptions else None,
        )

    def doubted(self, event: Event) -> Event:
        """Return an unconfirmed event of the scan, marked as rejected or as not asked."""
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
        """Return the answer about an event, with the log-odds of the clip and category that have the highest logit.

        `places` are the indices into `rows` of the event's clips.
        """
        model = self.stored.metadata.model
        if not len(places):
            return Verification(model, answer)
        log_odds = self.stored.of(self.stored.metadata.categories)[self.rows[places]]
        return Verification(model, answer, round(float(log_odds.flat[int(self.logits[places].argmax())]), 4))


def verified_events(
    video: VerifiedScores, before: Sequence[Event], thresholds: Thresholds, *, duration_s: float, boxes: EventBoxes | None
) -> list[Event]:
    """Return the events of a verified video, in order and without overlap.

    An event that is made from the joint scores counts as confirmed. The list also has each event of the scan that overlaps no
    confirmed event: the model has rejected this event, or was not asked about it.

    Args:
        video: the scores and answers.
        before: the events of the scan, made with the same thresholds.
        thresholds: the thresholds that open and close events.
        duration_s: the end of the last frame.
        boxes: boxes for the events; see `cut_events`.
    """
    joint = cut_events(video.table, thresholds, duration_s=duration_s, boxes=boxes)
    joint = inherit_boxes(joint, before) if boxes is None else joint
    confirmed = [video.confirmed(event) for event in inherit_categories(joint, before)]
    starts = np.array([event.start_frame for event in confirmed], np.int64)
    ends = np.array([event.end_frame for event in confirmed], np.int64)
    others = [
        video.doubted(event)
        for event in before
        if np.searchsorted(starts, event.end_frame, "left") <= np.searchsorted(ends, event.start_frame, "right")
    ]
    merged = sorted([*confirmed, *others], key=lambda event: event.start_frame)
    return [replace(event, id=number) for number, event in enumerate(merged, 1)]
