"""Turns the events documents of a scan into one `VideoStory` per video, for reports and searches."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from vadcli.errors import DocumentError, UsageError
from vadcli.options.groups import LAST_RUN, parse_since
from vadcli.store import OutputLayout, matches, printable
from vadcli.store.events import EventsDocument, timed
from vadcli.store.run_log import StoredRun, read_run, result_lines, result_of
from vadcli.types import (
    DEFAULT_RULES,
    NO_REGIONS,
    DayWindow,
    Event,
    Regions,
    StartTime,
    Status,
    Thresholds,
    TimeRules,
    VideoResult,
    When,
)
from vadcli.types.text import document_errors, without_name

SIDE_BY_SIDE = timedelta(minutes=10)
"""Shards that start within this time of each other count as one run."""
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class VideoStory:
    """The stored results of one video.

    Attributes:
        camera: the camera's name; "" if the video could not be opened.
        reason: why the video is not done; "" if it is done.
        duration_s: length according to the probe; 0 if the probe failed.
        frames: number of frames with a score.
        lost_frames: number of expected frames that could not be decoded.
        detector: name of the detector that scored the video.
        thresholds: the thresholds that opened and closed its events.
        events: the events in order of time.
        start: when the video started; None if this is unknown.
        caveats: sentences that say why its scores deserve less trust than usual.
        regions: the hidden parts of its picture.
    """

    video: str
    camera: str
    status: Status
    reason: str
    duration_s: float
    frames: int
    lost_frames: int
    detector: str
    thresholds: Thresholds
    events: tuple[Event, ...]
    start: StartTime | None = None
    caveats: tuple[str, ...] = ()
    regions: Regions = NO_REGIONS


class Stories:
    """Makes the stories of chosen videos from their documents, one at a time.

    Args:
        since: a time like 2026-11-27T06:00 or an age like "24h": keep only events since then, and videos that ended since then.
            Failed and partial videos, and videos whose start is unknown, are kept if a run worked on them since then.
            "last-run" keeps the videos that the last run worked on. None keeps all videos.
        include: globs of relative paths; empty for all videos.
        between: keep only events in this part of a day; None keeps all events.
        rules: how the start of a video is found.
        problems: one line is added per run record that can't be read.

    Attributes:
        runs: the runs that started at or after `since`, without their results; the oldest is first.
        begin: the time that `since` means; None without `since`.

    Raises:
        UsageError: `since` is not understood.
    """

    def __init__(
        self,
        layout: OutputLayout,
        *,
        since: str | None = None,
        include: Collection[str] = (),
        between: DayWindow | None = None,
        rules: TimeRules = DEFAULT_RULES,
        problems: list[str],
    ) -> None:
        self._include, self._rules = include, rules
        runs = list(read_all(layout.iter_runs(), lambda path: read_run(path, head=True), problems))
        self.has_runs = bool(runs)
        self.begin = None if since is None else moment(since, runs, rules.zone)
        self._when = When(None if since == LAST_RUN else self.begin, between)
        self.runs = tuple(run for run in runs if self.begin is None or run.start >= self.begin)
        self._partial: dict[str, VideoResult] = {}
        self._worked: set[str] = set()
        for _ in read_all(runs, self._read_results, problems):
            pass

    def of(self, document: EventsDocument) -> VideoStory | None:
        """Return the story of a video with its chosen events; None if the video is not chosen."""
        if not matches(str(document.video["path"]), self._include):
            return None
        document = timed(document, self._rules)
        story = _story(document, self._partial.get(str(document.video["path"])))
        since, when = self._when.since, self._when
        if self.begin is not None:
            undated = since is None or story.start is None or story.status is not Status.DONE
            ended = story.start.at(story.duration_s) if story.start else None
            if not (undated and story.video in self._worked) and (since is None or ended is None or ended < since):
                return None
        if not when:
            return story
        if story.start is None:
            return replace(story, events=()) if when.between else story
        chosen = tuple(event for event in story.events if when.takes(story.start, event.start_s, event.end_s))
        return replace(story, events=chosen)

    def _read_results(self, run: StoredRun) -> None:
        """Keep the results of partial videos and, if the run is chosen by `since`, the names of its videos."""
        chosen = self.begin is not None and run.start >= self.begin
        with document_errors(run.path, "a run record"):
            for line in result_lines(run.path):
                if chosen:
                    entry = json.loads(line)
                    # A skipped video has a stage if it is still failed or partial.
                    if entry["status"] != Status.SKIPPED or entry["stage"]:
                        self._worked.add(entry["video"])
                if b'"status": "partial"' in line:
                    result = result_of(line)
                    self._partial[result.video] = result


def moment(since: str, runs: Sequence[StoredRun], zone: str = "") -> datetime:
    """Return the time that `--since` means; a time without an offset is in the time zone `zone`.

    For "last-run", this is the start of the last run. Shards of a scan that start at about the same time count as one run.

    Raises:
        UsageError: `since` is not a time, a duration or "last-run", or it is "last-run" and no run is stored.
    """
    if since != LAST_RUN:
        return parse_since(since, zone)
    if not runs:
        raise UsageError(f"--since {LAST_RUN}: no run record is stored", hint="leave --since out, or scan first")
    newest, *earlier = sorted(runs, key=lambda run: run.start, reverse=True)
    start, seen = newest.start, {newest.info.shard}
    for run in earlier:
        if start - run.start > SIDE_BY_SIDE or run.info.shard in seen or _parts(run) != _parts(newest):
            break
        start = run.start
        seen.add(run.info.shard)
    return start


def _parts(run: StoredRun) -> str:
    """Return the N of a shard I/N; "" for a run without shards."""
    return (run.info.shard or "").partition("/")[2]


def read_all(sources: Iterable[S], read: Callable[[S], T], problems: list[str]) -> Iterator[T]:
    """Yield the result of `read` for each source. Sources that can't be read are added to `problems`."""
    for source in sources:
        try:
            yield read(source)
        except DocumentError as error:
            problems.append(printable(error.message))


def _story(document: EventsDocument, result: VideoResult | None) -> VideoStory:
    video = document.video
    status = document.scan.status if document.scan else Status.FAILED if document.failure else Status.DONE
    lost = max(0, result.expected_frames - result.decoded_frames) if result and status is Status.PARTIAL else 0
    reason = document.failure.error if document.failure else result.reason if result else ""
    reason = without_name(reason, str(video["path"]))
    if status is Status.DONE:
        reason = ""
    elif not reason:
        reason = "frames are missing; the run record with the reason was deleted"
    elif lost and not reason.startswith(f"{lost} of "):
        reason = f"{reason}; {counted(lost, 'frame')} lost"
    return VideoStory(
        video=str(video["path"]),
        camera=str(video["camera"] or ""),
        status=status,
        reason=reason,
        duration_s=float(video["duration_s"] or 0.0),
        frames=int(video["frames"] or 0),
        lost_frames=lost,
        detector=document.detector,
        thresholds=document.thresholds,
        events=document.events,
        start=document.start,
        caveats=document.caveats,
        regions=document.regions,
    )


def counted(number: int, noun: str) -> str:
    """Return text like `no events`, `1 event` or `1,204 events`."""
    return f"no {noun}s" if number == 0 else f"{number:,} {noun}{'s' if number > 1 else ''}"
