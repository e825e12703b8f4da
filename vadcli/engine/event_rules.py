"""Makes events from scores. The rules come from the options of the scan and the choices in OUT (`vadcli events --write`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from vadcli.cutting import EventBoxes, cut_events
from vadcli.engine.judging import Judge
from vadcli.options import ThresholdOptions
from vadcli.store.choices import Choices, ChosenThresholds, chosen_for
from vadcli.types import Calibration, Event, HeadMark, ReviewedEvent, ScoreTable, Thresholds, Verdict
from vadcli.types.text import how_many


@dataclass(frozen=True)
class EventRules:
    """The thresholds of each video, the verdicts of the stored review, and the head.

    Attributes:
        thresholds: the thresholds of videos for which OUT has no choice.
        chosen: the thresholds that OUT has for the scan's detector, changed by the options of the scan.
        reviews: verdicts on events.
        judge: the head that judges events; None if there is no head.
    """

    thresholds: Thresholds
    chosen: tuple[ChosenThresholds, ...] = ()
    reviews: tuple[ReviewedEvent, ...] = ()
    judge: Judge | None = None

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
        """Return the events of a video, judged by the head and without the events that the review marks as false."""
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
    """Return the events of a video.

    Args:
        video: the name of the video.
        table: its scores.
        thresholds: the thresholds for its events.
        duration_s: end of the video.
        boxes: mask boxes.
        judge: the head that judges the events; None if there is no head.
        reviews: verdicts on events of all videos; events that they mark as false are left out.
    """
    events = cut_events(table, thresholds, duration_s=duration_s, boxes=boxes)
    if judge is not None:
        events = judge.events(video, table, events, thresholds, duration_s=duration_s, boxes=boxes)
    return without_false_alarms(events, [entry for entry in reviews if entry.video == video])


def without_false_alarms(events: Sequence[Event], reviews: Sequence[ReviewedEvent]) -> list[Event]:
    """Return the events of one video that no review marks as false, numbered again."""
    if not any(entry.verdict is Verdict.FALSE for entry in reviews):
        return list(events)
    from vadcli.metrics import without_false  # importing it takes a second, which a scan without a review can save

    kept = without_false([(event.start_s, event.end_s) for event in events], reviews)
    return [replace(events[place], id=number) for number, place in enumerate(kept, 1)]


def given_thresholds(options: ThresholdOptions) -> list[str]:
    """Return the threshold options that the user gave, as they are written on the command line."""
    given = [item.name for item in fields(ThresholdOptions) if getattr(options, item.name) is not None]
    return [f"--{name.replace('_', '-')}" for name in given]


def choices_text(options: ThresholdOptions, choices: Choices, *, detector: str, out: Path) -> str:
    """Return the line that tells the user how a scan uses the choices of OUT; "" if there are no choices."""
    own = [entry for entry in choices.thresholds if entry.detector == detector]
    said = []
    if own:
        given = " and ".join(given_thresholds(options))
        but = f", except for {given} of this scan" if given else ""
        said.append(f"events are made with {', '.join(map(_entry_text, own))}{but}")
    elif choices.thresholds:
        others = ", ".join(dict.fromkeys(entry.detector for entry in choices.thresholds))
        said.append(f"the thresholds for {others} are not used for {detector}")
    if choices.head and getattr(options, "head", None) is None:
        said.append(f"events are judged by the head {Path(choices.head).name}")
    if false := sum(entry.verdict is Verdict.FALSE for entry in choices.reviews):
        said.append(f"{how_many(false, 'false alarm')} of the review {'is' if false == 1 else 'are'} left out")
    return f"as `vadcli events --write` stored in {out}: {'; '.join(said)} (`vadcli events --forget` undoes it)" if said else ""


def _entry_text(entry: ChosenThresholds) -> str:
    where = f" for {' '.join(entry.include)}" if entry.include else ""
    return f"the threshold {entry.thresholds.high:.4g}{where}"
