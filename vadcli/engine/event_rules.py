"""Makes events from scores with thresholds, a head that judges events, and the verdicts of reviews.

The rules come from the options of the scan and from the choices in OUT (`vadcli events --write`). A head removes events that
look like rejected events, or makes events from its own scores. It reads stored vectors, so no video is decoded.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from vadcli.cutting import EventBoxes, cut_events
from vadcli.errors import DocumentError, UsageError
from vadcli.heads import Labels
from vadcli.heads.stored import StoredHead, VideoVectors, matching, read_head, read_vectors
from vadcli.options import HeadOptions, ThresholdOptions
from vadcli.store.choices import Choices, ChosenThresholds, chosen_for
from vadcli.types import Calibration, Event, HeadMark, ReviewedEvent, ScoreTable, Thresholds, Verdict
from vadcli.types.text import how_many

log = logging.getLogger("vadcli")

HIGH, LOW = 0.5, 0.4
"""An event is kept if its head score is at least HIGH. A head that scores frames opens events at HIGH and closes them at LOW.

The user can replace HIGH by another value. If the new value is below LOW, it also closes events.
"""


class Judge:
    """Judges the events of an output folder by a head.

    Args:
        head: the head.
        folders: output folders with vectors, one per encoder of the head.
        high: an event is kept if its head score is at least this.
    """

    def __init__(self, head: StoredHead, folders: Sequence[Path], *, high: float = HIGH) -> None:
        self.head, self.folders, self.high = head, tuple(folders), high
        # The name of the head in events documents.
        self.mark = HeadMark(head.name, head.card.kind, head.key if high == HIGH else f"{head.key}@{high:g}")
        self._judged: set[str] = set()
        self._refused: Counter[str] = Counter()
        self._said: set[str] = set()

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

        The table, the events and the thresholds are those of the detector. `duration_s` is the end of the video.
        """
        vectors = self._vectors(video)
        if vectors is None:
            self._judged.discard(video)
            return events
        self._judged.add(video)
        self._say_if_new(video, vectors)
        if self.head.card.labels is Labels.EVENTS:
            scored = [
                replace(event, head_score=self.head.judge(vectors.of_span(event.start_s, event.end_s, event.peak_score)))
                for event in events
            ]
            kept = [event for event in scored if event.head_score is not None and event.head_score >= self.high]
            return [replace(event, id=number) for number, event in enumerate(kept, 1)]
        score = self.head.score(vectors.whole(table))
        rows = np.searchsorted(vectors.frame_index, table.frame_index, "right").clip(1, len(score)) - 1
        own = replace(thresholds, high=self.high, low=min(LOW, self.high))
        made = []
        for event in cut_events(replace(table, score=score[rows]), own, duration_s=duration_s, boxes=boxes):
            scores = table.score[event.start_frame : event.end_frame]  # of the detector
            peak, highest = event.start_frame + int(scores.argmax()), float(scores.max())
            mean = min(float(scores.mean(dtype=np.float64)), highest)
            moved = replace(event, peak_frame=peak, peak_s=float(table.timestamp[peak]), head_score=event.peak_score)
            made.append(replace(moved, peak_score=highest, mean_score=mean))
        return made

    def score_of(self, video: str, start_s: float, end_s: float, peak_score: float) -> float | None:
        """Return the head's score of an event, in [0, 1]; None if the vectors of its video can't be read."""
        vectors = self._vectors(video)
        return None if vectors is None else self.head.judge(vectors.of_span(start_s, end_s, peak_score))

    def mark_of(self, video: str) -> HeadMark | None:
        """Return the head's mark for the events document; None if the head has not judged the video."""
        return self.mark if video in self._judged else None

    @property
    def refusal(self) -> str:
        """The reason why no video could be judged; "" if a video was judged, or if there was no video."""
        return "" if self._judged or not self._refused else f"head {self.head.name}: {self._refused.most_common(1)[0][0]}"

    def say_refused(self) -> None:
        """Log how many videos could not be judged: one line per reason."""
        for reason, count in self._refused.items():
            log.warning("head %s: %s not judged: %s", self.head.name, how_many(count, "video"), reason)
        self._refused.clear()

    def _vectors(self, video: str) -> VideoVectors | None:
        try:
            found = read_vectors(self.folders, video)
        except DocumentError as error:
            self._refused[error.message] += 1
            return None
        if found is None:
            self._refused["no vectors are stored (vadcli embed stores them)"] += 1
            return None
        reason = matching(self.head.card, found.encoders)
        if reason:
            self._refused[reason] += 1
            return None
        return found

    def _say_if_new(self, video: str, vectors: VideoVectors) -> None:
        """Warn once per camera if the head was not trained on it, or if its videos look unlike the training videos."""
        if vectors.camera in self._said:
            return
        strangeness = self.head.strangeness(vectors.centre())
        if strangeness > 1.0:
            log.warning(
                "head %s: %s looks unlike the videos that it was trained on (%.1f times the expected distance), "
                "so it may judge wrongly: review events of the camera %s and learn again",
                self.head.name,
                video,
                strangeness,
                vectors.camera,
            )
        elif vectors.camera not in self.head.card.cameras:
            log.warning("head %s: was not trained on the camera %s", self.head.name, vectors.camera)
        else:
            return
        self._said.add(vectors.camera)


def judge_of(options: HeadOptions, choices: Choices, *, out: Path, detector: str = "") -> Judge | None:
    """Return a judge with the head of the options or of the choices in OUT; None if there is no head.

    Args:
        options: the options of the command. Their head replaces the head of the choices.
        choices: the choices that `vadcli events --write` stored.
        out: the output folder. It has the vectors of the head's first encoder.
        detector: the detector whose events are judged; "" if there may be several detectors.

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
        names = ", ".join(one.name for one in head.card.encoders)
        raise UsageError(
            f"--head {folder}: reads the vectors of {names}, and {how_many(len(others) + 1, 'folder')} with vectors is given",
            hint="name one folder with --embeddings for each of these encoders except the first",
        )
    if detector and detector != head.card.detector and head.card.labels is Labels.EVENTS:
        log.warning(
            "head %s: was trained on events of the detector %s, and may judge those of %s wrongly",
            head.name,
            head.card.detector,
            detector,
        )
    high = choices.head_threshold if options.head is None else options.head_threshold
    return Judge(head, (out, *others), high=HIGH if high is None else high)


@dataclass(frozen=True)
class EventRules:
    """The thresholds of each video, the verdicts of the stored review, and the head."""

    thresholds: Thresholds  # for videos for which OUT has no choice
    # The choices of thresholds in OUT for the scan's detector, changed by the options of the scan.
    chosen: tuple[ChosenThresholds, ...] = ()
    reviews: tuple[ReviewedEvent, ...] = ()
    judge: Judge | None = None  # None if there is no head

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

        Raises:
            UsageError: the options contradict the choices, the detector or one another.
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
        """Return the events of a video, as `make_events` makes them."""
        thresholds = self.of_video(video)
        return make_events(video, table, thresholds, duration_s=duration_s, boxes=boxes, judge=self.judge, reviews=self.reviews)

    def head_of(self, video: str) -> HeadMark | None:
        """Return the head that has judged the events of a video."""
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
    """Cut scores into events, judge the events by a head, and leave out those that are marked as false.

    `duration_s` is the end of the video. The reviews may be of several videos.
    """
    events = cut_events(table, thresholds, duration_s=duration_s, boxes=boxes)
    if judge is not None:
        events = judge.events(video, table, events, thresholds, duration_s=duration_s, boxes=boxes)
    return without_false_alarms(events, [entry for entry in reviews if entry.video == video])


def without_false_alarms(events: Sequence[Event], reviews: Sequence[ReviewedEvent]) -> list[Event]:
    """Return the events of one video, numbered again, without those that a review marks as false."""
    if not any(entry.verdict is Verdict.FALSE for entry in reviews):
        return list(events)
    from vadcli.metrics.event import without_false  # not at the top, because the import takes a second in every scan

    kept = without_false([(event.start_s, event.end_s) for event in events], reviews)
    return [replace(events[place], id=number) for number, place in enumerate(kept, 1)]


def given_thresholds(options: ThresholdOptions) -> list[str]:
    """Return the names of the threshold options that the user gave, such as `--threshold`."""
    given = [item.name for item in fields(ThresholdOptions) if getattr(options, item.name) is not None]
    return [f"--{name.replace('_', '-')}" for name in given]


def choices_text(options: ThresholdOptions, choices: Choices, *, detector: str, out: Path) -> str:
    """Return a line for the user about the choices of OUT that a scan uses; "" if there are no choices."""
    own = [entry for entry in choices.thresholds if entry.detector == detector]
    sentences = []
    if own:
        given = " and ".join(given_thresholds(options))
        but = f", except for {given} of this scan" if given else ""
        wheres = [f" for {' '.join(entry.include)}" if entry.include else "" for entry in own]
        made = [f"the threshold {entry.thresholds.high:.4g}{where}" for entry, where in zip(own, wheres, strict=True)]
        sentences.append(f"events are made with {', '.join(made)}{but}")
    elif choices.thresholds:
        others = ", ".join(dict.fromkeys(entry.detector for entry in choices.thresholds))
        sentences.append(f"the thresholds for {others} are not used for {detector}")
    if choices.head and getattr(options, "head", None) is None:
        sentences.append(f"events are judged by the head {Path(choices.head).name}")
    if false := sum(entry.verdict is Verdict.FALSE for entry in choices.reviews):
        sentences.append(f"{how_many(false, 'false alarm')} of the review {'is' if false == 1 else 'are'} left out")
    return (
        f"as `vadcli events --write` stored in {out}: {'; '.join(sentences)} (`vadcli events --forget` undoes it)"
        if sentences
        else ""
    )
