"""Reads the results of the scans of an archive: the events and failures of each video, and the runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from vadcli.errors import DocumentError, UsageError
from vadcli.options.mixins import LAST_RUN, parse_since
from vadcli.store import OutputLayout, matches, printable, told_paths
from vadcli.store.events import EventsDocument, read_events
from vadcli.store.footage import timed
from vadcli.store.run_log import StoredRun, read_run
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
    VideoResult,
    When,
)
from vadcli.types.text import clock, may_exist, without_name

SIDE_BY_SIDE = timedelta(minutes=10)
"""Shards that start within this time of each other count as one run."""
ROOT_CAMERA = "."
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class VideoStory:
    """The stored results of one video.

    Attributes:
        video: relative path.
        camera: the camera's name; "" if the video could not be opened.
        status: done, partial or failed.
        reason: why the video is not done; "" if it is done.
        duration_s: length according to the probe; 0 if the probe failed.
        frames: number of frames with a score.
        lost_frames: number of expected frames that could not be decoded.
        detector: name of the detector that scored the video.
        thresholds: the thresholds that opened and closed its events.
        events: the events in order of time.
        start: when the video started; None if this is unknown.
        caveats: sentences that say why its scores deserve less trust than usual.
        regions: the parts of its picture that were hidden.
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


@dataclass(frozen=True)
class Archive:
    """Everything that a report shows.

    Attributes:
        layout: the scans' output folder.
        runs: the runs that started at or after `since` of `collect`; the oldest is first.
        videos: the videos, sorted by camera and name.
        problems: one line per file of the output folder that can't be read.
        verification: the newest run of `vadcli verify`; None if there was no such run at or after `since`.
    """

    layout: OutputLayout
    runs: tuple[StoredRun, ...]
    videos: tuple[VideoStory, ...]
    problems: tuple[str, ...]
    verification: VerificationRun | None = None

    @property
    def name(self) -> str:
        """The output folder's name; bytes that are not UTF-8 are written as %XX."""
        return printable(self.layout.out.absolute().name)

    @property
    def failures(self) -> tuple[VideoStory, ...]:
        """The videos that failed or are partial."""
        return tuple(video for video in self.videos if video.status is not Status.DONE)

    @property
    def events(self) -> int:
        """The number of events."""
        return sum(len(video.events) for video in self.videos)

    @property
    def footage_s(self) -> float:
        """Seconds of footage in videos that have scores."""
        return sum(video.duration_s for video in self.videos)

    @property
    def cameras(self) -> dict[str, list[VideoStory]]:
        """The videos that have scores, in order and grouped by camera."""
        found: dict[str, list[VideoStory]] = {}
        for video in self.videos:
            if video.status is not Status.FAILED:
                found.setdefault(video.camera, []).append(video)
        return found

    @property
    def caveats(self) -> list[str]:
        """One line per caveat of the scores, with the videos that it concerns. The caveat of the most videos is first."""
        found: dict[str, list[VideoStory]] = {}
        for video in self.videos:
            for caveat in video.caveats:
                found.setdefault(caveat, []).append(video)
        scored = sum(len(videos) for videos in self.cameras.values())
        ordered = sorted(found.items(), key=lambda item: -len(item[1]))
        return [f"{caveat} ({_concerned(videos, scored)})" for caveat, videos in ordered]

    @property
    def newest(self) -> StoredRun | None:
        """The run that started last; None if there are no runs."""
        return self.runs[-1] if self.runs else None

    def footage(self, video: str, root: Path | None = None) -> Path | None:
        """Return the path of a video's file; None if it is not found.

        The file is searched below `root`, or, without `root`, below the root of each run, the newest run first. In stored
        names, bytes that are not UTF-8 are written as %XX. So each name is tried as it is, and with %XX decoded.
        """
        told = dict.fromkeys(run.info.root for run in reversed(self.runs))
        roots = [root] if root else [Path(path) for text in told for path in told_paths(text)]
        below = [
            name for name in told_paths(video) if not name.startswith("/") and ".." not in name.split("/") and "\0" not in name
        ]
        return next((path for base in roots for name in below if may_exist(path := base / name)), None)


def collect(
    layout: OutputLayout,
    *,
    since: str | None = None,
    include: Collection[str] = (),
    between: DayWindow | None = None,
    rules: TimeRules = DEFAULT_RULES,
) -> Archive:
    """Return the stored results of an output folder.

    Args:
        layout: the folder.
        since: a time like 2026-11-27T06:00, or how long ago ("24h"): keep only events that happened since then, and videos that
            ended since then. Failed and partial videos, and videos whose start is unknown, are kept if a run worked on them
            since then. "last-run" keeps the videos that the last run worked on. None keeps all videos.
        include: globs of relative paths; empty for all videos.
        between: keep only events in this part of a day; None keeps all events.
        rules: how the start of a video is found.

    Raises:
        UsageError: the folder has no results of a scan, or `since` is not understood.
    """
    problems: list[str] = []
    runs = list(_read_all(layout.iter_runs(), read_run, problems))
    results = _newest_results(runs)
    chosen = runs
    begin = None if since is None else moment(since, runs, rules.zone)
    if begin is not None:
        chosen = [run for run in runs if run.start >= begin]
    worked = {result.video for run in chosen for result in run.files if _concerns(result)}
    when = When(None if since == LAST_RUN else begin, between)
    documents = _read_all(layout.iter_events(), read_events, problems)  # one at a time: there may be a million
    found = [_story(timed(document, rules), results.get(str(document.video["path"]))) for document in documents]
    if not runs and not found and not problems:
        raise UsageError(f"{layout.out}: contains no results of a scan", hint="name the --out folder of a scan")
    stories = [
        replace(story, events=_chosen(story, when))
        for story in found
        if matches(story.video, include) and (begin is None or _is_recent(story, when.since, worked))
    ]
    stories.sort(key=lambda story: (story.camera, story.video))
    verification = next(_read_all([layout], read_verification, problems), None)
    if verification and begin and datetime.fromisoformat(verification.start) < begin:
        verification = None
    return Archive(layout, tuple(chosen), tuple(stories), tuple(problems), verification)


def _concerned(videos: Sequence[VideoStory], scored: int) -> str:
    """Return a short description of the videos: all, some of a camera, or some of several cameras.

    `scored` is the number of all videos with scores.
    """
    if len(videos) == scored:
        return "all videos" if scored > 1 else videos[0].video
    cameras = {video.camera for video in videos}
    count = counted(len(videos), "video")
    if len(cameras) > 1:
        return f"{count} of {len(cameras)} cameras"
    camera = cameras.pop()
    return f"{count} in the root folder" if camera == ROOT_CAMERA else f"camera {camera}, {count}"


def _is_recent(story: VideoStory, since: datetime | None, worked: Collection[str]) -> bool:
    """True if a video ended at `since` or later.

    A video on which a run worked is also recent if `since` is None, its start is unknown, or it is not done.
    """
    if story.video in worked and (since is None or story.start is None or story.status is not Status.DONE):
        return True
    return since is not None and story.start is not None and story.start.at(story.duration_s) >= since


def _chosen(story: VideoStory, when: When) -> tuple[Event, ...]:
    """Return the chosen events of a video.

    If the video's start is unknown, these are all events, or no events if a part of the day is chosen.
    """
    if story.start is None:
        return () if when.between else story.events
    return tuple(event for event in story.events if when.takes(story.start, event.start_s, event.end_s))


def moment(since: str, runs: Sequence[StoredRun], zone: str = "") -> datetime:
    """Return the time that `--since` means. A time without an offset is read in the time zone.

    Raises:
        UsageError: `since` is not a time, a duration or "last-run", or it is "last-run" and no run is stored.
    """
    if since == LAST_RUN:
        if not runs:
            raise UsageError(f"--since {LAST_RUN}: no run record is stored", hint="leave --since out, or scan first")
        return last_run_start(runs)
    return parse_since(since, zone)


def last_run_start(runs: Sequence[StoredRun]) -> datetime:
    """Return when the last run started. Shards of a scan that started at about the same time count as one run.

    Args:
        runs: at least one.
    """
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


def _read_all(sources: Iterable[S], read: Callable[[S], T], problems: list[str]) -> Iterator[T]:
    for source in sources:
        try:
            yield read(source)
        except DocumentError as error:
            problems.append(printable(error.message))


def _newest_results(runs: Sequence[StoredRun]) -> dict[str, VideoResult]:
    """Return each video's result from the newest run that worked on it."""
    return {result.video: result for run in runs for result in run.files if result.status is not Status.SKIPPED}


def _concerns(result: VideoResult) -> bool:
    """True if a run worked on the video, or reported it as still failed or partial."""
    return result.is_lost or result.status is Status.DONE


def _story(document: EventsDocument, result: VideoResult | None) -> VideoStory:
    video = document.video
    status = document.scan.status if document.scan else Status.FAILED if document.failure else Status.DONE
    lost = max(0, result.expected_frames - result.decoded_frames) if result and status is Status.PARTIAL else 0
    reason = document.failure.error if document.failure else result.reason if result and status is not Status.DONE else ""
    return VideoStory(
        video=str(video["path"]),
        camera=str(video["camera"] or ""),
        status=status,
        reason=_reason(without_name(reason, str(video["path"])), status, lost),
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


def _reason(reason: str, status: Status, lost: int) -> str:
    """Return why a video is not done; "" if it is done. The number of lost frames is added if the reason lacks it."""
    if status is Status.DONE:
        return ""
    if not reason:
        return "frames are missing; the run record with the reason was deleted"
    return f"{reason}; {counted(lost, 'frame')} lost" if lost and not reason.startswith(f"{lost} of ") else reason


def lasting(seconds: float) -> str:
    """Return text like `2.7 s` for less than one minute, otherwise what `clock` returns."""
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)


def counted(number: int, noun: str) -> str:
    """Return text like `no events`, `1 event` or `1,204 events`."""
    return f"no {noun}s" if number == 0 else f"{number:,} {noun}{'s' if number > 1 else ''}"
