"""Collects the stored results that a report or a search shows, and writes sentences about them.

`Summaries` turns the events document of each video into a `VideoSummary`. `collect` puts the summaries into an `Archive`, and
counts them. If there are very many videos, the archive has only the events with the highest scores and some of the failures.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from vadcli.errors import DocumentError, UsageError
from vadcli.options.groups import LAST_RUN, parse_since
from vadcli.store import OutputLayout, matches, possible_paths, printable
from vadcli.store.events import EventsDocument, find_below, read_events, timed
from vadcli.store.run_log import StoredRun, failures_without_events, read_run, result_lines, result_of
from vadcli.store.verification import VerificationRun, read_verification
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
    TimeSource,
    VideoResult,
    When,
)
from vadcli.types.text import counted, document_errors, length_text, without_name

SIDE_BY_SIDE = timedelta(minutes=10)
"""Shards count as one run if the time from the start of one shard to the start of the next is at most this long."""
MOST_VIDEOS = 10_000
"""A report about more videos lists only some events and failures, and has no score curves."""
MOST_EVENTS = 10_000
"""A report about more than MOST_VIDEOS videos lists this many events: the events with the highest peak scores."""
MOST_FAILURES = 1_000
"""A report about more than MOST_VIDEOS videos lists this many videos that failed or are partial."""
MOST_CAMERAS = 1_000
"""Largest number of rows in the table of cameras."""
ROOT_CAMERA = "."
_SHORT_HASH = 12
SOURCES = {
    TimeSource.OPTION: "the pattern of --time-from",
    TimeSource.CONTAINER: "the creation time in the file",
    TimeSource.NAME: "the file's name",
    TimeSource.MODIFIED: "the file's last change",
}
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class VideoSummary:
    """The stored results of one video.

    Attributes:
        camera: the camera's name; "" if the video could not be opened.
        reason: why the video is not done; "" if it is done.
        duration_s: the video's length according to the probe; 0 if the probe failed.
        frames: number of frames with a score.
        lost_frames: number of expected frames that could not be decoded.
        detector: name of the detector that scored the video.
        thresholds: the thresholds that opened and closed the events.
        events: the events in order of time.
        start: when the video started; None if this is unknown.
        caveats: sentences that say why the scores deserve less trust than usual.
        regions: the hidden parts of the picture.
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


class Summaries:
    """Makes a summary from the events document of each chosen video, one video at a time.

    Args:
        since: a time like 2026-11-27T06:00, or an age like "24h". Only events since this time and videos that ended since this
            time are kept. Videos that failed, are partial or have an unknown start are kept if a run scanned them since this
            time. "last-run" keeps the videos that the last run scanned. None keeps all videos.
        include: globs of relative paths; empty for all videos.
        between: keep only events in this part of a day; None keeps all events.
        rules: how the start of a video is found.
        problems: one line is added per run record that can't be read.

    Attributes:
        runs: the runs that started at or after `begin`, without their results; the oldest is first.
        has_runs: True if the folder has any run record, even from before `begin`.
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
        self.begin = None if since is None else time_of_since(since, runs, rules.zone)
        self._when = When(None if since == LAST_RUN else self.begin, between)
        self.runs = tuple(run for run in runs if self.begin is None or run.start >= self.begin)
        self._partial: dict[str, VideoResult] = {}
        self._scanned: set[str] = set()  # the videos that a run scanned since `begin`
        for _ in read_all(runs, self._read_results, problems):
            pass

    def of(self, document: EventsDocument) -> VideoSummary | None:
        """Return the summary of a video with the chosen events; None if the options do not choose the video."""
        video = str(document.video["path"])
        if not matches(video, self._include):
            return None
        summary = _summary(timed(document, self._rules), self._partial.get(video))
        since, when = self._when.since, self._when
        if self.begin is not None:
            undated = since is None or summary.start is None or summary.status is not Status.DONE
            ended = summary.start.at(summary.duration_s) if summary.start else None
            if not (undated and summary.video in self._scanned) and (since is None or ended is None or ended < since):
                return None
        if not when:
            return summary
        if summary.start is None:
            return replace(summary, events=()) if when.between else summary
        chosen = tuple(event for event in summary.events if when.takes(summary.start, event.start_s, event.end_s))
        return replace(summary, events=chosen)

    def failures(self, layout: OutputLayout) -> Iterator[VideoSummary]:
        """Yield a summary of each chosen video or folder that failed and has no events document."""
        for result in failures_without_events(layout, self.runs):
            if matches(result.video, self._include):
                reason = without_name(result.reason, result.video)
                yield VideoSummary(
                    video=result.video,
                    camera=result.camera,
                    status=result.status,
                    reason=reason,
                    duration_s=0.0,
                    frames=0,
                    lost_frames=0,
                    detector="",
                    thresholds=Thresholds(),
                    events=(),
                )

    def _read_results(self, run: StoredRun) -> None:
        """Remember the partial videos of a run. If the run started at `begin` or later, also remember the scanned videos."""
        chosen = self.begin is not None and run.start >= self.begin
        with document_errors(run.path, "a run record"):
            for line in result_lines(run.path):
                if chosen:
                    entry = json.loads(line)
                    # A skipped video counts only if it failed or is partial. In both cases, its entry has a stage.
                    if entry["status"] not in (Status.SKIPPED, Status.UNFINISHED) or entry["stage"]:
                        self._scanned.add(entry["video"])
                if b'"status": "partial"' in line:
                    result = result_of(line)
                    self._partial[result.video] = result


def time_of_since(since: str, runs: Sequence[StoredRun], zone: str = "") -> datetime:
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
    start, shards = newest.start, {newest.info.shard}
    for run in earlier:
        if start - run.start > SIDE_BY_SIDE or run.info.shard in shards or _shard_count(run) != _shard_count(newest):
            break
        start = run.start
        shards.add(run.info.shard)
    return start


def _shard_count(run: StoredRun) -> str:
    """Return the N of a shard I/N; "" for a run without shards."""
    return (run.info.shard or "").partition("/")[2]


def read_all(sources: Iterable[S], read: Callable[[S], T], problems: list[str]) -> Iterator[T]:
    """Yield `read(source)` for each source that can be read. For every other source, add a line to `problems`."""
    for source in sources:
        try:
            yield read(source)
        except DocumentError as error:
            problems.append(printable(error.message))


def _summary(document: EventsDocument, result: VideoResult | None) -> VideoSummary:
    """Return the summary of a video, with all its events. `result` is None if the video is not partial."""
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
    return VideoSummary(
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


@dataclass
class Numbers:
    """Numbers about a group of videos.

    Attributes:
        videos, scored, lost: number of all videos, of videos with scores, and of failed or partial videos.
        footage_s: seconds of footage in the videos with scores.
        highest: the highest peak score of the events; 0 if there are no events.
    """

    videos: int = 0
    scored: int = 0
    lost: int = 0
    events: int = 0
    footage_s: float = 0.0
    highest: float = 0.0

    def add(self, summary: VideoSummary) -> None:
        """Count a video."""
        self.videos += 1
        self.scored += summary.status is not Status.FAILED
        self.lost += summary.status is not Status.DONE
        self.events += len(summary.events)
        self.footage_s += summary.duration_s
        self.highest = max((self.highest, *(event.peak_score for event in summary.events)))


@dataclass
class Share:
    """The videos to which one caveat applies: their number, their cameras, and (camera, name) of the first video."""

    videos: int
    cameras: set[str]
    first: tuple[str, str]

    def text(self, scored: int) -> str:
        """Return a short description of the videos; `scored` is the number of all videos with scores."""
        if self.videos == scored:
            return "all videos" if scored > 1 else self.first[1]
        count = counted(self.videos, "video")
        if len(self.cameras) > 1:
            return f"{count} of {len(self.cameras)} cameras"
        (camera,) = self.cameras
        return f"{count} in the root folder" if camera == ROOT_CAMERA else f"camera {camera}, {count}"


@dataclass
class Counts:
    """Counts over all videos of a report. They need memory per camera, but no memory per video.

    Attributes:
        cameras: the `Numbers` of each camera's videos. The key "" is for failed videos without a camera.
        caveats: for each caveat of the scores, the videos with this caveat.
        thresholds: the thresholds that opened events.
        sources: for each source of dates and times, the number of videos with scores whose start is from this source.
        zones: the time zones of the videos with scores.
        is_timed: True if the start of at least one video is known.
    """

    total: Numbers = field(default_factory=Numbers)
    cameras: dict[str, Numbers] = field(default_factory=dict)
    caveats: dict[str, Share] = field(default_factory=dict)
    thresholds: set[float] = field(default_factory=set)
    sources: Counter[TimeSource] = field(default_factory=Counter)
    zones: set[str] = field(default_factory=set)
    is_timed: bool = False

    def add(self, summary: VideoSummary) -> None:
        """Count a video."""
        self.total.add(summary)
        self.cameras.setdefault(summary.camera, Numbers()).add(summary)
        name = _by_name(summary)
        for caveat in summary.caveats:
            share = self.caveats.setdefault(caveat, Share(0, set(), name))
            share.videos += 1
            share.cameras.add(summary.camera)
            share.first = min(share.first, name)
        self.is_timed |= summary.start is not None
        if summary.status is not Status.FAILED:
            self.thresholds.add(summary.thresholds.high)
            if summary.start:
                self.sources[summary.start.source] += 1
                self.zones.add(summary.start.zone)


@dataclass(frozen=True)
class Archive:
    """Everything that a report shows.

    Attributes:
        runs: the runs that started at or after `since` of `collect`, from the oldest to the newest.
        videos: the listed videos with their listed events, sorted by camera and name. All videos and events are listed if
            there are at most `MOST_VIDEOS` videos.
        counts: counts over all videos, including the videos that are not listed.
        problems: one line per file of the output folder that can't be read.
        verification: the newest run of `vadcli verify`; None if there was no such run at or after `since`.
    """

    layout: OutputLayout
    runs: tuple[StoredRun, ...]
    videos: tuple[VideoSummary, ...]
    counts: Counts
    problems: tuple[str, ...]
    verification: VerificationRun | None = None

    @property
    def name(self) -> str:
        """The output folder's name. Bytes that are not UTF-8 are written as %XX."""
        return printable(self.layout.out.absolute().name)

    @property
    def is_whole(self) -> bool:
        """True if `videos` has all videos and events."""
        return self.counts.total.videos <= MOST_VIDEOS

    @property
    def failures(self) -> tuple[VideoSummary, ...]:
        """The listed videos that failed or are partial."""
        return tuple(video for video in self.videos if video.status is not Status.DONE)

    @property
    def listed_events(self) -> int:
        """The number of events in `videos`."""
        return sum(len(video.events) for video in self.videos)

    @property
    def events(self) -> int:
        """The number of all events."""
        return self.counts.total.events

    @property
    def footage_s(self) -> float:
        """Seconds of footage in videos that have scores."""
        return self.counts.total.footage_s

    @property
    def cameras(self) -> dict[str, list[VideoSummary]]:
        """The listed videos with scores of each camera, in order; the keys are the cameras."""
        videos: dict[str, list[VideoSummary]] = {}
        for video in self.videos:
            if video.status is not Status.FAILED:
                videos.setdefault(video.camera, []).append(video)
        return videos

    @property
    def unlisted(self) -> dict[str, int]:
        """How many events and how many failures are not listed."""
        total = self.counts.total
        return {"events": total.events - self.listed_events, "failures": total.lost - len(self.failures)}

    @property
    def busiest(self) -> list[tuple[str, Numbers]]:
        """The cameras with the most events, at most `MOST_CAMERAS`, each with its `Numbers`; the busiest is first."""
        cameras = sorted(self.counts.cameras.items(), key=lambda item: (-item[1].events, -item[1].highest, item[0]))
        return cameras[:MOST_CAMERAS]

    @property
    def scored_cameras(self) -> int:
        """The number of cameras that have a video with scores."""
        return sum(numbers.scored > 0 for numbers in self.counts.cameras.values())

    @property
    def caveats(self) -> list[str]:
        """One line per caveat, with a description of its videos. The caveat with the most videos is first."""
        ordered = sorted(self.counts.caveats.items(), key=lambda item: (-item[1].videos, item[1].first))
        return [f"{caveat} ({share.text(self.counts.total.scored)})" for caveat, share in ordered]

    @property
    def newest(self) -> StoredRun | None:
        """The run that started last; None if there are no runs."""
        return self.runs[-1] if self.runs else None

    def footage(self, video: str, root: Path | None = None) -> Path | None:
        """Return the path of a video's file; None if the file is not found.

        The file is searched below `root`. Without `root`, it is searched below the root of each run, from the newest to the
        oldest run.
        """
        stored = dict.fromkeys(run.info.root for run in reversed(self.runs))
        roots = [root] if root else [Path(path) for text in stored for path in possible_paths(text)]
        return find_below(roots, video)


def collect(
    layout: OutputLayout,
    *,
    since: str | None = None,
    include: Collection[str] = (),
    between: DayWindow | None = None,
    rules: TimeRules = DEFAULT_RULES,
) -> Archive:
    """Return the stored results of an output folder. The arguments are those of `Summaries`.

    Raises:
        UsageError: the folder has no results of a scan, or `since` is not understood.
    """
    problems: list[str] = []
    summaries = Summaries(layout, since=since, include=include, between=between, rules=rules, problems=problems)
    collected, has_documents = _ListedSummaries(), False
    for document in read_all(layout.iter_events(), read_events, problems):  # one at a time: there may be a million documents
        has_documents = True
        summary = summaries.of(document)
        if summary is not None:
            collected.add(summary)
    for summary in summaries.failures(layout):
        collected.add(summary)
    if not summaries.has_runs and not has_documents and not problems:
        raise UsageError(f"{layout.out}: contains no results of a scan", hint="name the output folder of a scan")
    verification = next(read_all([layout], read_verification, problems), None)
    if verification and summaries.begin and datetime.fromisoformat(verification.start) < summaries.begin:
        verification = None
    return Archive(layout, summaries.runs, collected.listed(), collected.counts, tuple(problems), verification)


class _ListedSummaries:
    """Counts all summaries. Keeps few of them, so that the needed memory does not grow with the number of videos."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._all: list[VideoSummary] = []
        self._events: list[tuple[float, str, int, VideoSummary]] = []  # negative score, video and number of the event, summary
        self._failures: list[VideoSummary] = []

    def add(self, summary: VideoSummary) -> None:
        """Count a video, and keep its summary if the report may list it."""
        self.counts.add(summary)
        if self.counts.total.videos <= MOST_VIDEOS:
            self._all.append(summary)
            return
        for new in (*self._all, summary):
            self._events += [(-event.peak_score, new.video, event.id, new) for event in new.events]
            self._failures += [new] if new.status is not Status.DONE else []
        self._all.clear()
        if len(self._events) > 2 * MOST_EVENTS:
            self._events = sorted(self._events, key=lambda item: item[:3])[:MOST_EVENTS]
        if len(self._failures) > 2 * MOST_FAILURES:
            self._failures = sorted(self._failures, key=_by_name)[:MOST_FAILURES]

    def listed(self) -> tuple[VideoSummary, ...]:
        """Return the summaries to list, sorted by camera and name."""
        if self.counts.total.videos <= MOST_VIDEOS:
            return tuple(sorted(self._all, key=_by_name))
        chosen = {
            summary.video: replace(summary, events=()) for summary in sorted(self._failures, key=_by_name)[:MOST_FAILURES]
        }
        ids: dict[str, set[int]] = {}
        for _, video, number, summary in sorted(self._events, key=lambda item: item[:3])[:MOST_EVENTS]:
            ids.setdefault(video, set()).add(number)
            chosen[video] = summary
        summaries = (
            replace(summary, events=tuple(event for event in summary.events if event.id in ids.get(summary.video, ())))
            for summary in chosen.values()
        )
        return tuple(sorted(summaries, key=_by_name))


def _by_name(summary: VideoSummary) -> tuple[str, str]:
    return summary.camera, summary.video


def no_events_text(archive: Archive, highest: float | None) -> tuple[str, list[tuple[str, str]]]:
    """Return why there are no events, and pairs (command that may show events, explanation).

    Args:
        highest: the highest score of the archive; None if there are no scores.
    """
    thresholds = archive.counts.thresholds
    if not archive.counts.total.scored:
        return "There are no events, because no video has scores.", []
    out = shlex.quote(printable(str(archive.layout.out)))
    preview = (f"vadcli events {out} --preview", "prints how many events and alarms per hour other thresholds give.")
    if not archive.is_whole:
        return "There are no events.", [preview]
    if highest is None or highest >= min(thresholds):
        reasons = "did so too briefly, outside the chosen times, or in events that a review marks as false"
        return f"There are no events: the scores that reached the threshold {reasons}.", [preview]
    needed = f"the threshold is {min(thresholds):.2f}{' or more' if len(thresholds) > 1 else ''}"
    lower = f"vadcli events {out} --threshold {max(0.01, int(highest * 20) / 20):.2f} --write"
    text = f"There are no events: the highest score is {highest:.2f}, and {needed}."
    return text, [preview, (lower, "stores the events of a lower threshold. Then make the report again.")]


def time_sources(archive: Archive) -> str:
    """Return a sentence about the source of the dates and times of the videos; "" if no video has a date."""
    sources, zones = archive.counts.sources, archive.counts.zones
    if not sources:
        return ""
    parts = [f"{SOURCES[source]} ({counted(number, 'video')})" for source, number in sources.most_common()]
    if unknown := archive.counts.total.scored - sources.total():
        parts.append(f"unknown for {counted(unknown, 'video')}")
    zone = f", in the time zone {next(iter(zones))}" if len(zones) == 1 and "" not in zones else ""
    copied = " The last change of a copied file may be the time of the copy." if TimeSource.MODIFIED in sources else ""
    return f"Dates and times are from {', '.join(parts)}{zone}.{copied}"


def run_facts(archive: Archive) -> list[tuple[str, str]]:
    """Return facts about the newest run of `archive.runs`, as (name, value) pairs."""
    run = archive.newest
    if run is None:
        return [("Run", "no run record is stored")]
    ending, speed = "not ended: it is still running, or was killed", "not known"
    if run.end is not None:
        seconds = (run.end - run.start).total_seconds()
        ending = f"{length_text(seconds)}, exit code {run.exit_code}"
        if frames := int(run.totals.get("decoded_frames", 0)):
            speed = f"{frames / max(1e-3, seconds):.0f} frames/s"
    facts = [
        ("Detector", str(run.info.detector.get("name", "?"))),
        ("Weights", ", ".join(f"{name} {sha[:_SHORT_HASH]}" for name, sha in run.info.weights.items()) or "none"),
        ("Run", f"{_time_text(run.start)}, {ending}"),
        ("Speed", speed),
        ("Footage from", run.info.root),
        ("Command", shlex.join(run.info.command)),
        ("Version", f"vadcli {run.info.version}"),
    ]
    # Run records of older versions have only the categories that the user gave, even if the detector ignored the categories.
    given, read = str(run.info.config.get("categories") or ""), run.info.looked_for
    if read is None:
        looked_for = "" if run.info.detector.get("name") == "motion" else given
    else:
        looked_for = (given or ", ".join(read)) if read else ""
    if looked_for:
        facts.insert(2, ("Looked for", looked_for))
    if verified := archive.verification:
        facts += [("Verified by", f"{verified.model}, {_time_text(datetime.fromisoformat(verified.start))}: {verified.text}")]
        facts += [("Audit", verified.audit.text)] if verified.audit else []
    if len(nodes := (run.progress or {}).get("nodes") or {}) > 1:
        facts.append(("Nodes", ", ".join(f"{node} ({counted(videos, 'video')})" for node, videos in nodes.items())))
    others = len(archive.runs) - 1
    return [*facts, ("Earlier runs", str(others))] if others else facts


def _time_text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
