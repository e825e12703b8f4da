"""The parts of a scan that every runner shares: settings, run record, totals, early stop, exit code and choice of detector.

`Scan` drives a runner, which executes the plan on this machine (`local`) or on several machines (`cluster`). `ScanSettings` has
everything that a runner needs to know. It can be pickled and sent to another process, because it has no loaders, locks or
devices.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from vadcli import __version__, detectors
from vadcli.detectors import Detector, caveats_of, check_device
from vadcli.engine.hooks import NewEvent, NewEvents
from vadcli.engine.plan import Plan, WorkUnit
from vadcli.engine.stream import Update
from vadcli.errors import OutputError, UsageError
from vadcli.options import ExitOptions, ScanOptions, effective, parse_categories, parse_duration, parse_shard
from vadcli.registry import DETECTOR_OPTIONS, FALLBACK
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch
from vadcli.store.run_log import RunProgress, RunRecord, read_live
from vadcli.store.stored_run import RunInfo
from vadcli.types import NOT_FINISHED, CameraRegions, ClipNeeds, Status, VideoResult
from vadcli.types.text import shown

log = logging.getLogger("vadcli")

Fitting = Callable[[str, int], None]
"""Called with a camera and the number of frames that were just read to fit it."""

MOST_CAMERAS_NAMED = 3
"""The log prints the caveats of this many cameras, and counts the other cameras."""


@dataclass(frozen=True)
class ScanSettings:
    """The settings of a scan.

    Attributes:
        plan: all videos, also those of other shards, because a camera is fitted on a sample of all its videos.
        options: the options of the scan.
        command: the command line, for the run record.
        videos: only these videos of the shard are scanned; None for all of them.
        regions: the hidden parts of each camera's picture.
    """

    plan: Plan
    options: ScanOptions
    command: tuple[str, ...] = ()
    videos: frozenset[str] | None = None
    regions: CameraRegions = field(default_factory=CameraRegions)

    @property
    def units(self) -> tuple[WorkUnit, ...]:
        """The videos to scan: those of this run's shard, limited to `videos`."""
        units = self.plan.shard(*parse_shard(self.options.shard))
        return units if self.videos is None else tuple(unit for unit in units if unit.video in self.videos)

    def categories_of(self, detector: Detector) -> tuple[str, ...]:
        """Return the categories to store: the detector's, or the user's if the detector reads no categories."""
        return detector.categories or parse_categories(self.options.categories)


class Runner(Protocol):
    """Executes the plan of a scan. It is made from `ScanSettings` and a `Stop`."""

    def updates(self, fitting: Fitting) -> Generator[Update, None, None]:
        """Scan the videos of the settings. Yields progress, and one result per video that ended.

        Args:
            fitting: called when frames were read to fit a camera.

        Raises:
            OutputError: OUT can't be written at all.
            DeviceError, WeightsError: the detector can't be loaded.
        """
        ...

    def preview(self) -> Iterator[tuple[str, str]]:
        """Yield each video with what the run would do with it (a `Need` or "rescore"). Nothing is done or written."""
        ...


class Stop:
    """A request to end early: a signal or a deadline sets it, and every loop checks it."""

    def __init__(self, deadline_s: float | None = None) -> None:
        self.reason = ""
        self.signal: int | None = None
        self._deadline = None if deadline_s is None else time.monotonic() + deadline_s

    def set(self, reason: str, signal: int | None = None) -> None:
        """Ask the run to end."""
        self.reason, self.signal = self.reason or reason, self.signal or signal

    def __call__(self) -> bool:
        """True if the run was asked to end or the deadline has passed."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.set("the time of --max-runtime is over")
        return bool(self.reason)


@dataclass
class Totals:
    """Counts of a run.

    Attributes:
        by_status: number of videos per status.
        unfinished: number of skipped videos that the run did not finish because it was stopped.
        lost: number of videos that failed or are partial, now or in an earlier run with the same input.
        events: number of events in all videos of the run.
        new_events: number of events that no earlier scan has reported.
        frames, video_s: frames and seconds of footage that this run has scored.
    """

    by_status: Counter[str] = field(default_factory=Counter)
    unfinished: int = 0
    lost: int = 0
    events: int = 0
    new_events: int = 0
    frames: int = 0
    video_s: float = 0.0

    def add(self, result: VideoResult) -> None:
        """Count a result."""
        self.by_status[str(result.status)] += 1
        self.unfinished += result.is_unfinished
        self.lost += result.is_lost
        self.events += result.events
        self.new_events += result.new_events


class Scan:
    """A run of a scan: drives the runner, counts the results, and writes the run record.

    Args:
        settings: what to scan.
        detector: the detector, for the run record.
        runner: executes the plan.
        stop: ends the run early; the runner must have the same object.

    Attributes:
        totals: counts of the run so far.
        progress: how far the run has come.
        on_fitting: called when frames were read to fit a camera. While a camera is fitted, `run` yields nothing.
    """

    def __init__(self, settings: ScanSettings, detector: Detector, runner: Runner, *, stop: Stop) -> None:
        self.settings, self.detector, self.runner, self.stop = settings, detector, runner, stop
        self.totals = Totals()
        self.progress = RunProgress(
            {unit.video: unit.size for unit in settings.units}, {unit.video: unit.camera for unit in settings.units}
        )
        self.on_fitting: Callable[[], None] = lambda: None
        self._record_is_stale = False
        self._unsaid = list(caveats_of(detector))
        self._doubtful: set[str] = set()

    def run(self) -> Generator[Update | NewEvent, None, None]:
        """Scan the videos. Yields progress, and one result per video, followed by the new events of the video.

        The run record is complete when the iterator ends.

        Raises:
            OutputError: OUT can't be written at all.
            DeviceError, WeightsError: the detector can't be loaded.
        """
        layout = OutputLayout(self.settings.options.out)
        with Scratch(layout.scratch) as scratch, self._new_events(layout) as news, self._open_record(layout, scratch) as record:
            for update in self._updates(record):
                found: list[NewEvent] = []
                with self._noting():
                    found = news.of(update) if isinstance(update, VideoResult) else []
                counted = replace(update, new_events=len(found)) if found and isinstance(update, VideoResult) else update
                with self._noting():
                    self._note(record, counted)
                self._say_caveats(counted)
                yield counted
                yield from found
            if (others := len(self._doubtful) - MOST_CAMERAS_NAMED) > 0:
                log.info("%d more %s learned on little footage", others, "camera was" if others == 1 else "cameras were")
            news.close(lambda: self.stop.signal is not None)
            record.close(self.exit_code)

    @property
    def exit_code(self) -> int:
        """The exit code of the run so far."""
        options = self.settings.options
        return exit_code(self.totals, stop=self.stop, fail_on_event=options.fail_on_event, events_first=options.events_first)

    def preview(self) -> Iterator[tuple[str, str]]:
        """Yield each video with what the run would do with it (a `Need` or "rescore"). Nothing is done or written."""
        for item in self.settings.plan.unusable:
            yield item.video, "failed" if item.failed else "skip"
        yield from self.runner.preview()

    def _updates(self, record: RunRecord) -> Iterator[Update]:
        """Yield the updates of the runner, and a result for each video that the runner did not reach."""
        for item in self.settings.plan.unusable:
            yield VideoResult(
                item.video, Status.FAILED if item.failed else Status.SKIPPED, "open" if item.failed else "", item.reason
            )

        def fitting(camera: str, frames: int) -> None:
            self.progress.fit(camera, frames=frames)
            with self._noting():
                record.say()
            self.on_fitting()

        reached: set[str] = set()
        with closing(self.runner.updates(fitting)) as updates:
            for update in updates:
                if isinstance(update, VideoResult):
                    reached.add(update.video)
                yield update
        for unit in self.settings.units if self.stop() else ():
            if unit.video not in reached:
                yield VideoResult(unit.video, Status.SKIPPED, reason=f"{NOT_FINISHED}: {self.stop.reason}", camera=unit.camera)

    def _note(self, record: RunRecord, update: Update) -> None:
        if isinstance(update, VideoResult):
            self.totals.add(update)
            record.add(update)
            return
        self.totals.frames += update.frames
        self.totals.video_s += update.video_s
        self.progress.advance(update.video, frames=update.frames, video_s=update.video_s, size=update.size)
        record.flush()

    def _say_caveats(self, update: Update) -> None:
        """Log the caveats of the detector once, with the first update, and those of each camera with its first result."""
        if isinstance(update, VideoResult) and update.status in (Status.SKIPPED, Status.FAILED):
            return
        while self._unsaid:
            log.info("%s", self._unsaid.pop(0))
        if not isinstance(update, VideoResult) or update.camera in self._doubtful:
            return
        for caveat in update.caveats:
            if caveat not in caveats_of(self.detector):
                self._doubtful.add(update.camera)
                if len(self._doubtful) <= MOST_CAMERAS_NAMED:
                    log.info("%s%s", "" if update.camera == "." else f"{update.camera}: ", caveat)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Log once that the record can't be updated. This is not fatal: a full disk may have room again when the run ends."""
        try:
            yield
        except OutputError as error:
            if not self._record_is_stale:
                log.error("the run record is not up to date: %s", error)
            self._record_is_stale = True

    @contextmanager
    def _new_events(self, layout: OutputLayout) -> Iterator[NewEvents]:
        options = self.settings.options
        news = NewEvents(
            layout,
            {unit.video: unit.path for unit in self.settings.units},
            command=options.on_event,
            timeout_s=parse_duration(options.on_event_timeout, "on_event_timeout"),
            alone=not read_live(layout),
        )
        try:
            yield news
        finally:
            news.close(lambda: True)

    def _open_record(self, layout: OutputLayout, scratch: Scratch) -> RunRecord:
        plan, options = self.settings.plan, self.settings.options
        info = RunInfo(
            version=__version__,
            command=self.settings.command,
            config=effective(options),
            detector={"name": self.detector.name, **self.detector.fingerprint()},
            weights=self.detector.weights,
            roots=plan.roots,
            root=shown(plan.root),
            shard=options.shard,
            passed_over=plan.passed_over,
            looked_for=self.detector.categories if self.detector.uses_categories else (),
            caveats=caveats_of(self.detector),
        )
        return RunRecord(layout, scratch, info, progress=self.progress)


def exit_code(totals: Totals, *, stop: Stop, fail_on_event: bool, events_first: bool = False) -> int:
    """Return the exit code of a run without a fatal error: 128 + the signal if there was one, else `ExitOptions.exit_code`."""
    if stop.signal is not None:
        return 128 + stop.signal
    return ExitOptions(fail_on_event, events_first).exit_code(lost=bool(totals.lost), events=bool(totals.events))


def choose_detector(options: ScanOptions) -> Detector:
    """Return the detector that the options ask for. `auto` takes the first detector that is ready (see `registry`).

    Raises:
        UsageError: the detector is not known.
        DeviceError: the device is missing.
        WeightsError: the detector's weights are missing.
    """
    check_device(options.device)
    return detectors.load(_best(options) if options.detector == "auto" else options.detector, options)


def _best(options: ScanOptions) -> str:
    for name in DETECTOR_OPTIONS:
        with suppress(UsageError):  # a detector is not ready if its package can't be imported
            is_ready = getattr(DETECTOR_OPTIONS.load(name), "is_ready", None)
            if is_ready is not None and is_ready(options):
                return name
    return FALLBACK


def effective_needs(detector: Detector, options: ScanOptions) -> ClipNeeds:
    """Return the detector's needs after applying --interval, --sample-fps and --decode."""
    needs = detector.needs
    decode = options.decode
    if decode == "auto":  # --interval N asks for every Nth frame of all frames
        decode = needs.decode if options.interval is None else "all"
    return replace(needs, interval=options.interval, rate_hz=options.sample_fps or needs.rate_hz, decode=decode)
