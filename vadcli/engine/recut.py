"""`vadcli events`: makes events again from stored scores, with the same or with other thresholds.

`preview` only counts the events that several thresholds would give. No video is decoded and no detector is loaded.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vadcli.cutting import EventBoxes, inherit_boxes, with_categories
from vadcli.engine.event_rules import (
    HIGH,
    Judge,
    VerifiedScores,
    given_thresholds,
    judge_of,
    make_events,
    verified_events,
    without_false_alarms,
)
from vadcli.errors import DocumentError, UsageError
from vadcli.options import EventsOptions
from vadcli.store import OutputLayout, matches, stored_layout
from vadcli.store.atomic import Scratch, check_folder
from vadcli.store.choices import Choices, read_choices, read_review, write_choices
from vadcli.store.events import EventsDocument, choose, load, read_events, timed, validate, write_events
from vadcli.store.masks import mask_box, masked_rows, read_boxes, read_masks, rle_threshold
from vadcli.store.run_log import failures_without_events, read_run
from vadcli.store.scores import read_metadata, read_scores, shown_s
from vadcli.store.verification import StoredAnswers, answers_or_none, validate_answers
from vadcli.types import (
    DEFAULT_RULES,
    Calibration,
    ReviewedEvent,
    ScoreTable,
    Thresholds,
    TimeRules,
    VideoResult,
    When,
    mask_level,
)
from vadcli.types.text import counted, how_many

if TYPE_CHECKING:
    from vadcli.metrics.event import ThresholdChoice

log = logging.getLogger("vadcli")

ROUND_THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Every preview has a row for each of these thresholds."""


@dataclass(frozen=True)
class StoredEvents:
    """The events of the videos in an output folder."""

    documents: tuple[EventsDocument, ...]  # one document per video
    problems: tuple[str, ...]  # one line per document that could not be read
    failures: tuple[VideoResult, ...] = ()  # failed videos and folders that have no document

    @property
    def failed(self) -> dict[str, str]:
        """Why the scan of a video or folder failed, by the name of the video or folder."""
        failed = {str(document.video["path"]): document.failure.error for document in self.documents if document.failure}
        return failed | {result.video: result.reason for result in self.failures}


def recut_all(out: Path, options: EventsOptions) -> StoredEvents:
    """Make the events of every video again. Return only the events that the options of time and category choose.

    If `options.write` is true, the new events of each video are stored, and later scans make events with the same choices.

    Raises:
        UsageError: the folder does not exist, the head can judge no video, or the thresholds are wrong for every video.
        DocumentError: the review or the choices of OUT can't be read.
        OutputError: a document can't be written, or the folder `options.to` can't be written.
    """
    layout = stored_layout(out)
    if options.to is not None:
        check_folder(options.to)  # before the stored events change
    entries = (
        [entry for entry in read_review(options.review) if matches(entry.video, options.include)] if options.review else []
    )
    with ExitStack() as stack:
        scratch = stack.enter_context(Scratch(layout.scratch)) if options.write or options.forget else None
        choices = (Choices() if options.forget else read_choices(layout)).with_reviews(entries)
        judge = judge_of(options, choices, out=out)
        cut = _Cut(layout, options, () if options.keep_false else choices.reviews, scratch if options.write else None, judge)
        for path in layout.iter_events():
            cut.add(path)
        if cut.usage_errors and all(document.failure for document in cut.documents):
            raise cut.usage_errors[0]
        _check_judged(judge)
        if options.write and scratch:
            if options.head:
                others = tuple(str(Path(folder).resolve()) for folder in options.embeddings)
                high = HIGH if options.head_threshold is None else options.head_threshold
                choices = replace(choices, head=str(options.head.resolve()), head_threshold=high, embeddings=others)
            write_choices(layout, scratch, cut.changed(choices))
        elif scratch:
            write_choices(layout, scratch, Choices())
    when = options.when()
    unknown = sum(document.start is None and bool(document.events) for document in cut.documents)
    if when and unknown:
        log.warning("%d of %d videos have events but no known start time, so they are left out", unknown, len(cut.documents))
    runs = []
    for path in layout.iter_runs():
        with suppress(DocumentError):
            runs.append(read_run(path, head=True))
    failures = [result for result in failures_without_events(layout, runs) if matches(result.video, options.include)]
    return StoredEvents(tuple(choose(cut.documents, when, options.category)), tuple(cut.problems), tuple(failures))


def export_events(stored: StoredEvents, out: Path, options: EventsOptions) -> list[str]:
    """Write events in the format `options.format` to the folder `options.to`, or to stdout if `to` is None.

    Returns one line per problem; see `export`, which also describes the errors.
    """
    from vadcli.export import export  # not at the top, because a scan does not need it

    shown = [document for document in stored.documents if options.format == "json" or document.failure is None]
    problems = export(shown, options.format, layout=OutputLayout(out), to=options.to, file=sys.stdout)
    if options.to is not None and not problems:
        number = sum(len(document.events) for document in shown)
        log.info("%s: %s of %s", options.to, counted(number, "event"), how_many(len(shown), "video"))
    return problems


def _check_judged(judge: Judge | None) -> None:
    """Log which videos the head could not judge; raise UsageError if the head could judge no video."""
    if judge and judge.refusal:
        raise UsageError(judge.refusal, hint="embed the videos with the head's encoder, or train another head")
    if judge:
        judge.log_refused()


@dataclass
class _Cut:
    """Makes the events of each video again, and collects the documents and the problems."""

    layout: OutputLayout
    options: EventsOptions
    reviews: Sequence[ReviewedEvent]  # of all videos
    scratch: Scratch | None  # None if the documents are not stored
    judge: Judge | None = None  # judges events by a head; None without a head
    documents: list[EventsDocument] = field(default_factory=list)  # one document per video
    # One line per document that could not be read, and one line per video for which the thresholds are wrong.
    problems: list[str] = field(default_factory=list)
    usage_errors: list[UsageError] = field(default_factory=list)  # one per video for which the thresholds are wrong
    _calibrations: dict[str, Calibration | None] = field(default_factory=dict)  # by detector

    def add(self, path: Path) -> None:
        """Make the events of one document again. The events of a failed video stay as they are."""
        try:
            old = read_events(path)
            video = str(old.video["path"])
            if not matches(video, self.options.include):
                return
            thresholds = old.thresholds
            if old.failure is None:
                by_rate = self.options.alarms_per_hour is not None  # only then is the calibration read, because this takes long
                calibration = self._calibrations[old.detector] = calibration_of(self.layout, video) if by_rate else None
                thresholds = self.options.thresholds(thresholds, calibration)
            times = self.options.time_rules()
            self.documents.append(
                recut(
                    self.layout,
                    self.scratch,
                    video,
                    thresholds,
                    reviews=self.reviews,
                    judge=self.judge,
                    times=times,
                    verify=None if self.options.verify else False,
                )
            )
        except DocumentError as error:
            self.problems.append(str(error))
        except UsageError as error:
            self.usage_errors.append(error)
            self.problems.append(f"{video}: {error}")

    def changed(self, choices: Choices) -> Choices:
        """Return the choices to store: the given `choices` and, if the user gave threshold options, this run's thresholds."""
        if not given_thresholds(self.options):
            return choices
        written: dict[str, Counter[Thresholds]] = {}
        for document in self.documents:
            if document.failure is None:
                written.setdefault(document.detector, Counter())[document.thresholds] += 1
        for detector, counts in written.items():
            change = partial(self.options.thresholds, calibration=self._calibrations[detector])
            choices = choices.with_thresholds(detector, self.options.include, counts.most_common(1)[0][0], change)
        return choices


def thresholds_from_review(out: Path, options: EventsOptions) -> tuple[list[ThresholdChoice], list[str]]:
    """Return the thresholds that the review in `options.calibrate` suggests, and a list of problems.

    The list has one problem per document that can't be read. If a head judges the events, the thresholds are for the head's
    scores.

    Raises:
        DocumentError: the review can't be read.
        UsageError: the folder does not exist, or the review has no verdict on any video of OUT.
    """
    layout, review = stored_layout(out), options.calibrate
    entries = () if review is None else read_review(review)
    problems: dict[str, None] = {}
    documents = list(_scored(layout, options, problems))
    videos = {str(document.video["path"]) for document in documents}
    entries = tuple(entry for entry in entries if entry.video in videos)
    hours = sum(float(document.video["duration_s"] or 0.0) for document in documents) / 3600
    peaks = [event.peak_score for document in documents for event in document.events]
    judge = judge_of(options, read_choices(layout), out=out)
    if judge:
        stored = [(str(document.video["path"]), event) for document in documents for event in document.events]
        scores = [judge.score_of(video, event.start_s, event.end_s, event.peak_score) for video, event in stored]
        peaks = [score for score in scores if score is not None]
        of_entries = [judge.score_of(entry.video, entry.start_s, entry.end_s, entry.peak_score) for entry in entries]
        entries = tuple(
            replace(entry, peak_score=score) for entry, score in zip(entries, of_entries, strict=True) if score is not None
        )
        judge.log_refused()
    from vadcli.metrics.event import threshold_choices  # not at the top, because the import takes a second in every scan

    choices = threshold_choices(entries, peaks, hours) if hours > 0 else []
    if not choices:
        raise UsageError(
            f'{review} has no verdict "true" or "false" for any video of {layout.out}', hint="review events in the report first"
        )
    return choices, list(problems)


def validate_all(out: Path) -> Iterator[list[str]]:
    """Check each events document and each file of answers in OUT.

    Yields one list per file: the errors in the file.

    Raises:
        UsageError: the folder does not exist.
    """
    for path in stored_layout(out).iter_events():
        try:
            yield validate(load(path), str(path))
        except DocumentError as error:
            yield [error.message]
    for path in OutputLayout(out).iter_answers():
        yield validate_answers(path)


def calibration_of(layout: OutputLayout, video: str) -> Calibration | None:
    """Return the calibration of a video's stored scores; None if the scores are not calibrated."""
    metadata = read_metadata(layout.scores(video))
    return Calibration(**metadata.calibration) if metadata and metadata.calibration else None


def recut(
    layout: OutputLayout,
    scratch: Scratch | None,
    video: str,
    thresholds: Thresholds,
    *,
    reviews: Sequence[ReviewedEvent] = (),
    judge: Judge | None = None,
    times: TimeRules = DEFAULT_RULES,
    verify: bool | None = None,
) -> EventsDocument:
    """Make one video's events again with the given thresholds.

    The new events are stored if `scratch` is not None.

    - A new event gets its box from the stored masks. Without masks, the box encloses the boxes of the overlapping old events.
    - A new event gets its category from the stored scores per category. Without these scores, it gets the category of the old
      event that shares the most frames with it.
    - The judge (a head), if one is given, removes or makes events. Events that a review marks as false are left out.
    - The stored answers of a second model are used if `verify` is True. If `verify` is None, they are used if the stored events
      are verified.

    Raises:
        DocumentError: the stored scores or events can't be read.
        OutputError: the new document can't be written.
    """
    old = timed(read_events(layout.events(video)), times)
    if old.failure is not None:
        return replace(old, thresholds=thresholds)
    stored = _Stored.of(layout, old, verify=verify)
    boxes = stored_boxes(layout, video, stored.table, thresholds)
    document = stored.events_at(thresholds, boxes=boxes, judge=judge, reviews=reviews)
    if scratch is not None:
        with scratch.replace(layout.events(video)) as path:
            write_events(path, document)
    return document


@dataclass(frozen=True)
class _Stored:
    """The stored scores, events and answers of one video."""

    old: EventsDocument
    table: ScoreTable
    duration_s: float
    answers: StoredAnswers | None  # the answers of a second model; None if they are not used

    @classmethod
    def of(cls, layout: OutputLayout, old: EventsDocument, *, verify: bool | None) -> _Stored:
        """Read the scores and the answers of a video; for `verify`, see `recut`.

        Raises:
            DocumentError: the scores can't be read.
        """
        video = str(old.video["path"])
        table, metadata = read_scores(layout.scores(video))
        wanted = old.scan_events is not None if verify is None else verify
        answers = answers_or_none(layout.answers(video)) if wanted else None
        if answers is not None and answers.metadata.content != str(metadata.source.get("content")):
            answers = None  # they are about another video of this name
        return cls(old, table, shown_s(table, metadata.video), answers)

    def events_at(
        self, thresholds: Thresholds, *, boxes: EventBoxes | None, judge: Judge | None, reviews: Sequence[ReviewedEvent]
    ) -> EventsDocument:
        """Return the document with the events at these thresholds; see `recut`."""
        old, table, duration_s, video = self.old, self.table, self.duration_s, str(self.old.video["path"])
        old_events = old.events if old.scan_events is None else old.scan_events
        events = make_events(video, table, thresholds, duration_s=duration_s, boxes=boxes, judge=judge, reviews=reviews)
        events = inherit_boxes(events, old_events) if boxes is None else events
        events = with_categories(events, table, old_events)
        mark = judge.mark_of(video) if judge else None
        document = replace(old, thresholds=thresholds, events=tuple(events), head=mark, scan_events=None)
        verified = VerifiedScores.of(table, self.answers, thresholds, duration_s) if self.answers else None
        if verified is None:
            return document
        events = verified_events(verified, document.events, thresholds, duration_s=duration_s, boxes=boxes)
        events = without_false_alarms(video, events, reviews)
        return replace(document, events=tuple(events), scan_events=document.events)


def stored_boxes(layout: OutputLayout, video: str, table: ScoreTable, thresholds: Thresholds) -> EventBoxes | None:
    """Return the boxes around the stored masks at the given thresholds; None if no masks are stored.

    The masks are stored as run lengths, as a video, or both. Run lengths were made with one threshold, so their boxes are right
    only for that threshold. For another threshold, the boxes come from the mask video. Without a mask video, the boxes of the
    run lengths are used.
    """
    level, runs, pixels = thresholds.mask_level, layout.mask_rle(video), layout.mask_video(video)
    if runs.exists() and (not pixels.exists() or mask_level(rle_threshold(runs)) == level):
        return EventBoxes(*read_boxes(runs))
    if pixels.exists():
        rows = masked_rows(pixels).of(table.sampled)
        boxes = [mask_box(mask, level) or (0, 0, 0, 0) for mask in read_masks(pixels)]
        if len(boxes) == len(rows):
            return EventBoxes(rows, np.array(boxes, np.int32).reshape(-1, 4))
    return None


@dataclass(frozen=True)
class PreviewRow:
    """The number of events that one threshold would give."""

    threshold: float  # an event starts when the score reaches this value
    events: int  # number of events in all videos
    events_per_hour: float
    expected_per_hour: float | None  # alarms per hour in normal footage of the cameras; None if the scores are not calibrated
    present: bool  # True if the stored events of at least one video were made with this threshold


@dataclass(frozen=True)
class Preview:
    """The number of events in an output folder at several thresholds."""

    rows: tuple[PreviewRow, ...]  # one row per threshold, in ascending order
    videos: int  # number of videos with scores
    hours: float  # total length of these videos
    problems: tuple[str, ...]  # one line per video that could not be read


def preview(out: Path, options: EventsOptions) -> Preview:
    """Return how many events several thresholds would give. Nothing is written.

    The rows are for ROUND_THRESHOLDS, for the present thresholds, and for the threshold of `options`. Each row has the number
    of events that `vadcli events --threshold` would make if the other options stay the same.

    Raises:
        UsageError: the folder does not exist, the head can judge no video, or the thresholds in `options` are wrong for a
            video.
        DocumentError: the review or the choices of OUT can't be read.
    """
    layout = stored_layout(out)
    choices = read_choices(layout).with_reviews(read_review(options.review) if options.review else ())
    reviews, judge = () if options.keep_false else choices.reviews, judge_of(options, choices, out=out)
    problems: dict[str, None] = {}
    present: set[float] = set()
    requested: set[float] = set()
    calibrations: set[Calibration | None] = set()
    for document in _scored(layout, options, problems):
        calibration = calibration_of(layout, str(document.video["path"]))
        calibrations.add(calibration)
        present.add(document.thresholds.high)
        requested.add(options.thresholds(document.thresholds, calibration).high)
    thresholds = sorted(high for high in {*ROUND_THRESHOLDS, *present, *requested} if high >= (options.low or 0.0))
    counts, videos, seconds = Counter(dict.fromkeys(thresholds, 0)), 0, 0.0
    for document in _scored(layout, options, problems):
        try:
            stored = _Stored.of(layout, document, verify=None if options.verify else False)
        except DocumentError as error:
            problems[str(error)] = None
            continue
        videos, seconds = videos + 1, seconds + stored.duration_s
        for high in thresholds:
            chosen = replace(options, threshold=high, alarms_per_hour=None).thresholds(document.thresholds, None)
            made = stored.events_at(chosen, boxes=None, judge=judge, reviews=reviews)
            counts[high] += sum(len(document.events) for document in choose([made], When(), options.category))
    _check_judged(judge)
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
    """Yield the documents of the chosen videos that have scores.

    For each unreadable document, a line is added as a key of `problems`. So equal lines occur only once, and keep their order.
    """
    for path in layout.iter_events():
        try:
            document = read_events(path)
        except DocumentError as error:
            problems[str(error)] = None
            continue
        if document.failure is None and matches(str(document.video["path"]), options.include):
            yield document
