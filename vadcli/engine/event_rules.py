"""How the scores of each video become events: by the options of the scan, and by what `vadcli events --write` stored in OUT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from vadcli.options import ThresholdOptions
from vadcli.store.choices import Choices, ChosenThresholds, chosen_for
from vadcli.types import Calibration, Event, ReviewedEvent, Thresholds, Verdict
from vadcli.types.media import how_many


@dataclass(frozen=True)
class EventRules:
    """The thresholds of each video, and the verdicts of the stored review.

    Attributes:
        thresholds: of videos for which OUT has no choice.
        chosen: the choices of OUT for the detector of the scan, changed by the options of the scan.
        reviews: verdicts on events.
    """

    thresholds: Thresholds
    chosen: tuple[ChosenThresholds, ...] = ()
    reviews: tuple[ReviewedEvent, ...] = ()

    @classmethod
    def of(
        cls, options: ThresholdOptions, choices: Choices, *, detector: str, default: Thresholds, calibration: Calibration | None
    ) -> EventRules:
        """Return the rules of a scan. What the user gives with the scan counts more than the choices of OUT.

        Raises:
            UsageError: the options contradict the choices, the detector or one another.
        """
        chosen = [
            replace(entry, thresholds=options.thresholds(entry.thresholds, calibration))
            for entry in choices.thresholds
            if entry.detector == detector
        ]
        return cls(options.thresholds(default, calibration), tuple(chosen), choices.reviews)

    def of_video(self, video: str) -> Thresholds:
        """Return the thresholds of a video."""
        return chosen_for(self.chosen, video) or self.thresholds

    def judged(self, video: str, events: Sequence[Event]) -> list[Event]:
        """Return the events of a video without those that the review marks as false."""
        return without_false_alarms(events, [entry for entry in self.reviews if entry.video == video])


def without_false_alarms(events: Sequence[Event], reviews: Sequence[ReviewedEvent]) -> list[Event]:
    """Return the events of one video without those that a review marks as false; the others are numbered again."""
    if not any(entry.verdict is Verdict.FALSE for entry in reviews):
        return list(events)
    from vadcli.metrics import without_false  # takes a second, which a scan without a review need not wait for

    kept = without_false([(event.start_s, event.end_s) for event in events], reviews)
    return [replace(events[place], id=number) for number, place in enumerate(kept, 1)]


def given_thresholds(options: ThresholdOptions) -> list[str]:
    """Return the threshold options that the user gave, as they are written on the command line."""
    given = [item.name for item in fields(ThresholdOptions) if getattr(options, item.name) is not None]
    return [f"--{name.replace('_', '-')}" for name in given]


def choices_text(options: ThresholdOptions, choices: Choices, *, detector: str, out: Path) -> str:
    """Return the line with which a scan says what it does with the choices of OUT; "" if there are none."""
    own = [entry for entry in choices.thresholds if entry.detector == detector]
    said = []
    if own:
        given = " and ".join(given_thresholds(options))
        but = f", except for {given} of this scan" if given else ""
        said.append(f"events are made with {', '.join(map(_entry_text, own))}{but}")
    elif choices.thresholds:
        others = ", ".join(dict.fromkeys(entry.detector for entry in choices.thresholds))
        said.append(f"the thresholds for {others} are not used for {detector}")
    if false := sum(entry.verdict is Verdict.FALSE for entry in choices.reviews):
        said.append(f"{how_many(false, 'false alarm')} of the review {'is' if false == 1 else 'are'} left out")
    return f"as `vadcli events --write` stored in {out}: {'; '.join(said)} (`vadcli events --forget` undoes it)" if said else ""


def _entry_text(entry: ChosenThresholds) -> str:
    where = f" for {' '.join(entry.include)}" if entry.include else ""
    return f"the threshold {entry.thresholds.high:.4g}{where}"
