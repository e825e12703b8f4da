"""Collects the results that a report shows, and writes sentences about them.

Of a large archive, `collect` keeps counts, the events with the highest scores, and some failures.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.reporting.stories import Stories, VideoStory, counted, read_all
from vadcli.store import OutputLayout, printable, told_paths
from vadcli.store.events import find_below, read_events
from vadcli.store.run_log import StoredRun
from vadcli.store.verification import VerificationRun, read_verification
from vadcli.types import DEFAULT_RULES, DayWindow, Status, TimeRules, TimeSource
from vadcli.types.text import length_text

MOST_VIDEOS = 10_000
"""A report about more videos lists some events and failures, and has no score curves."""
MOST_EVENTS = 10_000
"""Such a report lists this many events: those with the highest peak scores."""
MOST_FAILURES = 1_000
"""Such a report lists this many videos that failed or are partial."""
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

    def add(self, story: VideoStory) -> None:
        """Count a video."""
        self.videos += 1
        self.scored += story.status is not Status.FAILED
        self.lost += story.status is not Status.DONE
        self.events += len(story.events)
        self.footage_s += story.duration_s
        self.highest = max((self.highest, *(event.peak_score for event in story.events)))


@dataclass
class Share:
    """The videos of a caveat: their number, their cameras, and (camera, name) of the first video."""

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
    """Numbers of all videos of a report. Memory grows with the cameras, but not with the videos.

    Attributes:
        cameras: camera -> its numbers; "" stands for failed videos without a camera.
        caveats: caveat of the scores -> the videos that the caveat concerns.
        thresholds: the thresholds that opened events.
        sources: source of the date and time -> number of videos with scores.
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

    def add(self, story: VideoStory) -> None:
        """Count a video."""
        self.total.add(story)
        self.cameras.setdefault(story.camera, Numbers()).add(story)
        place = _in_order(story)
        for caveat in story.caveats:
            share = self.caveats.setdefault(caveat, Share(0, set(), place))
            share.videos += 1
            share.cameras.add(story.camera)
            share.first = min(share.first, place)
        self.is_timed |= story.start is not None
        if story.status is not Status.FAILED:
            self.thresholds.add(story.thresholds.high)
            if story.start:
                self.sources[story.start.source] += 1
                self.zones.add(story.start.zone)


@dataclass(frozen=True)
class Archive:
    """Everything that a report shows.

    Attributes:
        runs: the runs that started at or after `since` of `collect`, from the oldest to the newest.
        videos: the videos, sorted by camera and name. If there are more than `MOST_VIDEOS`, only the listed videos, with the
            listed events.
        problems: one line per file of the output folder that can't be read.
        verification: the newest run of `vadcli verify`; None if there was no such run at or after `since`.
    """

    layout: OutputLayout
    runs: tuple[StoredRun, ...]
    videos: tuple[VideoStory, ...]
    counts: Counts
    problems: tuple[str, ...]
    verification: VerificationRun | None = None

    @property
    def name(self) -> str:
        """The output folder's name; bytes that are not UTF-8 are written as %XX."""
        return printable(self.layout.out.absolute().name)

    @property
    def is_whole(self) -> bool:
        """True if `videos` has all videos and events."""
        return self.counts.total.videos <= MOST_VIDEOS

    @property
    def failures(self) -> tuple[VideoStory, ...]:
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
    def cameras(self) -> dict[str, list[VideoStory]]:
        """The listed videos that have scores, in order and grouped by camera."""
        found: dict[str, list[VideoStory]] = {}
        for video in self.videos:
            if video.status is not Status.FAILED:
                found.setdefault(video.camera, []).append(video)
        return found

    @property
    def unlisted(self) -> dict[str, int]:
        """The numbers of events and of failures that are not listed."""
        total = self.counts.total
        return {"events": total.events - self.listed_events, "failures": total.lost - len(self.failures)}

    @property
    def busiest(self) -> list[tuple[str, Numbers]]:
        """The cameras with the most events, at most `MOST_CAMERAS` of them, and their numbers."""
        cameras = sorted(self.counts.cameras.items(), key=lambda item: (-item[1].events, -item[1].highest, item[0]))
        return cameras[:MOST_CAMERAS]

    @property
    def scored_cameras(self) -> int:
        """The number of cameras that have a video with scores."""
        return sum(numbers.scored > 0 for numbers in self.counts.cameras.values())

    @property
    def caveats(self) -> list[str]:
        """One line per caveat of the scores, with its videos. The caveat of the most videos is first."""
        found = sorted(self.counts.caveats.items(), key=lambda item: (-item[1].videos, item[1].first))
        return [f"{caveat} ({share.text(self.counts.total.scored)})" for caveat, share in found]

    @property
    def newest(self) -> StoredRun | None:
        """The run that started last; None if there are no runs."""
        return self.runs[-1] if self.runs else None

    def footage(self, video: str, root: Path | None = None) -> Path | None:
        """Return the path of a video's file; None if it is not found.

        The file is searched below `root`, or, without `root`, below the root of each run, from the newest to the oldest run.
        """
        told = dict.fromkeys(run.info.root for run in reversed(self.runs))
        roots = [root] if root else [Path(path) for text in told for path in told_paths(text)]
        return find_below(roots, video)


def collect(
    layout: OutputLayout,
    *,
    since: str | None = None,
    include: Collection[str] = (),
    between: DayWindow | None = None,
    rules: TimeRules = DEFAULT_RULES,
) -> Archive:
    """Return the stored results of an output folder. The arguments are those of `Stories`.

    Raises:
        UsageError: the folder has no results of a scan, or `since` is not understood.
    """
    problems: list[str] = []
    stories = Stories(layout, since=since, include=include, between=between, rules=rules, problems=problems)
    gathered, has_documents = _Gathered(), False
    for document in read_all(layout.iter_events(), read_events, problems):  # one at a time: there may be a million
        has_documents = True
        story = stories.of(document)
        if story is not None:
            gathered.add(story)
    if not stories.has_runs and not has_documents and not problems:
        raise UsageError(f"{layout.out}: contains no results of a scan", hint="name the --out folder of a scan")
    verification = next(read_all([layout], read_verification, problems), None)
    if verification and stories.begin and datetime.fromisoformat(verification.start) < stories.begin:
        verification = None
    return Archive(layout, stories.runs, gathered.listed(), gathered.counts, tuple(problems), verification)


class _Gathered:
    """Counts stories, and keeps the listed stories. Memory is limited, except for counts per camera."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._all: list[VideoStory] = []
        self._events: list[tuple[float, str, int, VideoStory]] = []
        self._failures: list[VideoStory] = []

    def add(self, story: VideoStory) -> None:
        self.counts.add(story)
        if self.counts.total.videos <= MOST_VIDEOS:
            self._all.append(story)
            return
        for one in (*self._all, story):
            self._events += [(-event.peak_score, one.video, event.id, one) for event in one.events]
            self._failures += [one] if one.status is not Status.DONE else []
        self._all.clear()
        if len(self._events) > 2 * MOST_EVENTS:
            self._events = sorted(self._events, key=lambda item: item[:3])[:MOST_EVENTS]
        if len(self._failures) > 2 * MOST_FAILURES:
            self._failures = sorted(self._failures, key=_in_order)[:MOST_FAILURES]

    def listed(self) -> tuple[VideoStory, ...]:
        """Return the stories to list, sorted by camera and name."""
        if self.counts.total.videos <= MOST_VIDEOS:
            return tuple(sorted(self._all, key=_in_order))
        chosen = {one.video: replace(one, events=()) for one in sorted(self._failures, key=_in_order)[:MOST_FAILURES]}
        ids: dict[str, set[int]] = {}
        for _, video, number, story in sorted(self._events, key=lambda item: item[:3])[:MOST_EVENTS]:
            ids.setdefault(video, set()).add(number)
            chosen[video] = story
        kept = (
            replace(one, events=tuple(event for event in one.events if event.id in ids.get(one.video, ())))
            for one in chosen.values()
        )
        return tuple(sorted(kept, key=_in_order))


def _in_order(story: VideoStory) -> tuple[str, str]:
    return story.camera, story.video


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
    told = f"There are no events: the highest score is {highest:.2f}, and {needed}."
    return told, [preview, (lower, "stores the events of a lower threshold. Then make the report again.")]


def time_sources(archive: Archive) -> str:
    """Return a sentence about the source of the dates and times of the videos; "" if no video has a date."""
    found, zones = archive.counts.sources, archive.counts.zones
    if not found:
        return ""
    parts = [f"{SOURCES[source]} ({counted(number, 'video')})" for source, number in found.most_common()]
    if unknown := archive.counts.total.scored - found.total():
        parts.append(f"unknown for {counted(unknown, 'video')}")
    zone = f", in the time zone {next(iter(zones))}" if len(zones) == 1 and "" not in zones else ""
    copied = " The last change of a copied file may be the time of the copy." if TimeSource.MODIFIED in found else ""
    return f"Dates and times are from {', '.join(parts)}{zone}.{copied}"


def run_facts(archive: Archive) -> list[tuple[str, str]]:
    """Return facts about the newest run of `archive.runs`, as (name, value) pairs."""
    run = archive.newest
    if run is None:
        return [("Run", "no run record is stored")]
    ending = "not ended: it is still running, or was killed"
    if run.end is not None:
        ending = f"{length_text((run.end - run.start).total_seconds())}, exit code {run.exit_code}"
    facts = [
        ("Detector", str(run.info.detector.get("name", "?"))),
        ("Weights", ", ".join(f"{name} {sha[:_SHORT_HASH]}" for name, sha in run.info.weights.items()) or "none"),
        ("Run", f"{when(run.start)}, {ending}"),
        ("Speed", speed(run) or "not known"),
        ("Footage from", run.info.root),
        ("Command", shlex.join(run.info.command)),
        ("Version", f"vadcli {run.info.version}"),
    ]
    # Records of older versions have only the categories that the user gave, and the motion detector reads none.
    given, read = str(run.info.config.get("categories") or ""), run.info.looked_for
    if read is None:
        looked_for = "" if run.info.detector.get("name") == "motion" else given
    else:
        looked_for = (given or ", ".join(read)) if read else ""
    if looked_for:
        facts.insert(2, ("Looked for", looked_for))
    if verified := archive.verification:
        facts += [("Verified by", f"{verified.model}, {when(datetime.fromisoformat(verified.start))}: {verified.text}")]
        facts += [("Audit", verified.audit.text)] if verified.audit else []
    if len(nodes := (run.progress or {}).get("nodes") or {}) > 1:
        facts.append(("Nodes", ", ".join(f"{node} ({counted(videos, 'video')})" for node, videos in nodes.items())))
    others = len(archive.runs) - 1
    return [*facts, ("Earlier runs", str(others))] if others else facts


def speed(run: StoredRun) -> str:
    """Return text like `310 frames/s`; "" if the run has not ended or has decoded no frames."""
    frames = int(run.totals.get("decoded_frames", 0))
    if run.end is None or not frames:
        return ""
    return f"{frames / max(1e-3, (run.end - run.start).total_seconds()):.0f} frames/s"


def when(moment: datetime) -> str:
    """Return a time as text, in UTC and without seconds."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"
