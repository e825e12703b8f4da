"""Computes from stored scores what several thresholds would find: events, events per hour, and the expected alarms per hour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vadcli.cutting import cut_events, with_categories
from vadcli.engine.event_rules import without_false_alarms
from vadcli.engine.recut import calibration_of
from vadcli.errors import DocumentError
from vadcli.options import EventsOptions
from vadcli.store import OutputLayout, matches, stored_layout
from vadcli.store.choices import read_choices, read_review
from vadcli.store.events import EventsDocument, read_events
from vadcli.store.footage import choose
from vadcli.store.scores import read_scores, shown_s
from vadcli.types import Calibration, ReviewedEvent, When

ROUND_THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class PreviewRow:
    """The events that one threshold would find.

    Attributes:
        threshold: an event starts when the score reaches this.
        events: number of events in the footage.
        events_per_hour: number of events per hour of footage.
        expected_per_hour: alarms per hour in normal footage of the cameras; None if the scores are not calibrated.
        present: True if the stored events were made with this threshold.
    """

    threshold: float
    events: int
    events_per_hour: float
    expected_per_hour: float | None
    present: bool


@dataclass(frozen=True)
class Preview:
    """A table of thresholds for an output folder.

    Attributes:
        rows: one row per threshold, ascending.
        videos: number of videos with scores.
        hours: length of these videos.
        problems: one line per video that could not be read.
    """

    rows: tuple[PreviewRow, ...]
    videos: int
    hours: float
    problems: tuple[str, ...]


def preview(out: Path, options: EventsOptions) -> Preview:
    """Return the events that several thresholds would find: round thresholds, those in use, and that of `options`.

    Nothing is written.

    Each row has as many events as `vadcli events --threshold` finds if the other options are the same.

    Raises:
        UsageError: the folder does not exist, or the thresholds in `options` do not fit a video.
        DocumentError: the review or the choices of OUT can't be read.
    """
    layout = stored_layout(out)
    problems: dict[str, None] = {}
    present: set[float] = set()
    asked: set[float] = set()
    calibrations: set[Calibration | None] = set()
    for document in _scored(layout, options, problems):
        calibration = calibration_of(layout, str(document.video["path"]))
        calibrations.add(calibration)
        present.add(document.thresholds.high)
        asked.add(options.thresholds(document.thresholds, calibration).high)
    thresholds = sorted(high for high in {*ROUND_THRESHOLDS, *present, *asked} if high >= (options.low or 0.0))
    counts, videos, seconds = dict.fromkeys(thresholds, 0), 0, 0.0
    review = _review(layout, options)
    for document in _scored(layout, options, problems):
        try:
            found, duration_s = _counts(layout, document, thresholds, options, review)
        except DocumentError as error:
            problems[str(error)] = None
            continue
        counts = {high: counts[high] + count for high, count in zip(thresholds, found, strict=True)}
        videos, seconds = videos + 1, seconds + duration_s
    scale = next(iter(calibrations)) if len(calibrations) == 1 else None
    hours = seconds / 3600
    rows = (
        PreviewRow(
            high, count, count / hours if hours else 0.0, scale.rate_at(high) if scale and high else None, high in present
        )
        for high, count in counts.items()
    )
    return Preview(tuple(rows), videos, hours, tuple(problems))


def _scored(layout: OutputLayout, options: EventsOptions, problems: dict[str, None]) -> Iterator[EventsDocument]:
    """Yield the documents of the chosen videos that have scores. A document that can't be read is added to `problems`."""
    for path in layout.iter_events():
        try:
            document = read_events(path)
        except DocumentError as error:
            problems[str(error)] = None
            continue
        if document.failure is None and matches(str(document.video["path"]), options.include):
            yield document


def _review(layout: OutputLayout, options: EventsOptions) -> tuple[ReviewedEvent, ...]:
    if options.keep_false:
        return ()
    return read_choices(layout).with_reviews(read_review(options.review) if options.review else ()).reviews


def _counts(
    layout: OutputLayout,
    document: EventsDocument,
    thresholds: Sequence[float],
    options: EventsOptions,
    review: Sequence[ReviewedEvent],
) -> tuple[list[int], float]:
    """Return the number of events of one video per threshold, and its length in seconds."""
    video = str(document.video["path"])
    table, metadata = read_scores(layout.scores(video))
    duration_s = shown_s(table, metadata.video)
    judged = [entry for entry in review if entry.video == video]
    counts = []
    for high in thresholds:
        chosen = replace(options, threshold=high, alarms_per_hour=None).thresholds(document.thresholds, None)
        events = with_categories(cut_events(table, chosen, duration_s=duration_s), table, document.events)
        events = without_false_alarms(events, judged)
        some = choose([replace(document, events=tuple(events))], When(), options.category)
        counts.append(sum(len(one.events) for one in some))
    return counts, duration_s
