"""Makes and drives a scan: from paths and options to results, new events, run record and exit code.

`open_scan` finds the videos and chooses the detector and the runner. `Scan` drives the runner, which executes the plan on this
machine (`local`) or on several machines (`ray_runner`). `ScanSettings` has everything that a runner needs to know. These
settings contain no loaders, locks or devices, so they can be pickled and sent to another process.

`NewEvents` finds the events that no earlier scan has reported, and runs the command of --on-event once for each of them. Up to
COMMANDS_AT_ONCE commands run at a time, and a thread waits for each of them. The output of the commands goes to stderr, because
stdout is for data. If a command fails or takes too long, the error is logged, and the scan continues.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import psutil

from vadcli import __version__, detectors
from vadcli.detectors import Detector, caveats_of, check_device
from vadcli.engine.event_rules import choices_text
from vadcli.engine.plan import Plan, WorkUnit, make_plan, no_video_text
from vadcli.engine.stream import Update
from vadcli.errors import NoVideoFound, OutputError, UsageError
from vadcli.options import FindOptions, ScanOptions, effective, parse_categories, parse_duration, parse_shard
from vadcli.options.groups import RegionOptions, ignored_options
from vadcli.registry import DETECTOR_OPTIONS, FALLBACK, HAS_ENCODER, RUNNERS
from vadcli.store import OutputLayout, printable
from vadcli.store.atomic import Scratch
from vadcli.store.choices import ReportedEvents, read_choices, read_regions
from vadcli.store.events import EventsDocument, read_unchecked, stored_roots
from vadcli.store.run_log import RunInfo, RunProgress, RunRecord, read_live
from vadcli.types import NOT_FINISHED, CameraRegions, ClipNeeds, Event, Status, VideoResult
from vadcli.types.text import clock, shown

log = logging.getLogger("vadcli")

Fitting = Callable[[str, int], None]
"""Called with the name of a camera and the number of frames that were just read to fit this camera."""

MOST_CAVEATS = 3
"""The log shows the caveats (warnings about scores) of this many cameras, and how many other cameras have caveats."""
MOST_CAMERAS_NAMED = 10
"""If a file of regions names an unknown camera, the warning names this many cameras of the footage."""
COMMANDS_AT_ONCE = 4
"""Largest number of commands of --on-event that run at the same time."""
POLL_S = 0.2
"""While a scan waits for the commands of --on-event, it checks after this many seconds whether the user has stopped it."""


@dataclass(frozen=True)
class ScanSettings:
    """The settings of a scan, for its runner."""

    plan: Plan  # all videos of all shards, because a camera is fitted on a sample of all its videos
    options: ScanOptions
    command: tuple[str, ...] = ()  # the command line, for the run record
    videos: frozenset[str] | None = None  # the videos of the shard to scan; None for all videos of the shard
    regions: CameraRegions = field(default_factory=CameraRegions)  # the hidden parts of each camera's picture

    @property
    def units(self) -> tuple[WorkUnit, ...]:
        """The videos to scan: all videos of this run's shard, or only those in `videos`."""
        units = self.plan.shard(*parse_shard(self.options.shard))
        return units if self.videos is None else tuple(unit for unit in units if unit.video in self.videos)

    def categories_of(self, detector: Detector) -> tuple[str, ...]:
        """Return the categories to store: those of the detector or, if it has none, those of the user."""
        return detector.categories or parse_categories(self.options.categories)


class Runner(Protocol):
    """Executes the plan of a scan. A runner is made from `ScanSettings`, a detector and a `Stop`."""

    def updates(self, fitting: Fitting) -> Generator[Update, None, None]:
        """Scan the videos in the settings. Yield reports of progress, and one result per finished video.

        Args:
            fitting: called each time the runner has read frames to fit a camera.

        Raises:
            OutputError: OUT can't be written at all.
            DeviceError, WeightsError: the detector can't be loaded.
        """
        ...

    def preview(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each video, and a word for what the scan would do with it. Writes nothing.

        The word is one of these:

        - the value of a `Need`
        - "rescore": the scores are computed again from stored vectors.
        - "partial": the video is skipped, because an earlier scan could read only a part of it.
        """
        ...


class Stop:
    """A request to end the run early.

    The request is made by a signal, by a call of `set`, or when `max_runtime` (a duration such as "2h") is over. Every loop of
    the run checks whether the request was made.
    """

    def __init__(self, max_runtime: str | None = None) -> None:
        self.reason = ""
        self.signal: int | None = None
        self._deadline = None if max_runtime is None else time.monotonic() + parse_duration(max_runtime, "max_runtime")

    def set(self, reason: str, signal: int | None = None) -> None:
        """Ask the run to end."""
        self.reason, self.signal = self.reason or reason, self.signal or signal

    def __call__(self) -> bool:
        """True if the run must end: it was asked to end, or its time is over."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.set("the time of --max-runtime is over")
        return bool(self.reason)


@dataclass
class Totals:
    """Counts the results of a run."""

    by_status: Counter[str] = field(default_factory=Counter)  # number of videos per status
    lost: int = 0  # number of videos that are failed or partial, from this run or an earlier run with the same input
    events: int = 0  # number of events in all videos of the run
    new_events: int = 0  # number of events that no earlier scan has reported
    frames: int = 0  # frames that this run has scored
    video_s: float = 0.0  # length of these frames in seconds

    def add(self, result: VideoResult) -> None:
        """Count a result."""
        self.by_status[str(result.status)] += 1
        self.lost += result.is_lost
        self.events += result.events
        self.new_events += result.new_events


class Scan:
    """One run of `vadcli scan`: drives the runner, counts results, finds new events, writes a run record.

    `stop` must be the object with which the runner was made.
    """

    def __init__(self, settings: ScanSettings, detector: Detector, runner: Runner, *, stop: Stop) -> None:
        self.settings, self.detector, self.runner, self.stop = settings, detector, runner, stop
        self.totals = Totals()
        sizes = {item.video: 0 for item in settings.plan.unusable} | {unit.video: unit.size for unit in settings.units}
        self.progress = RunProgress(sizes, {unit.video: unit.camera for unit in settings.units})
        # A caller may set this function, to show progress while a camera is fitted: `run` yields nothing during that time. The
        # function is called each time frames were read for the fit.
        self.on_fitting: Callable[[], None] = lambda: None
        self._record_is_stale = False
        self._unlogged = list(caveats_of(detector))  # the caveats of the detector that are not in the log yet
        self._doubtful: set[str] = set()  # the cameras that have caveats

    def run(self) -> Generator[Update | NewEvent, None, None]:
        """Scan the videos. Yields progress, and one result per video, followed by the video's new events.

        The run record is complete when the iterator ends.

        Raises:
            OutputError: OUT can't be written at all.
            DeviceError, WeightsError: the detector can't be loaded.
        """
        options, layout = self.settings.options, OutputLayout(self.settings.options.out)
        with ExitStack() as stack:
            scratch = stack.enter_context(Scratch(layout.scratch))
            new_events = NewEvents(
                layout,
                {unit.video: unit.path for unit in self.settings.units},
                command=options.on_event,
                timeout_s=parse_duration(options.on_event_timeout, "on_event_timeout"),
                alone=not read_live(layout),
            )
            stack.callback(new_events.close, lambda: True)
            record = stack.enter_context(self._recording(layout, scratch))
            for update in self._updates(record):
                if not isinstance(update, VideoResult):
                    self.totals.frames += update.frames
                    self.totals.video_s += update.video_s
                    self.progress.advance(update.video, frames=update.frames, video_s=update.video_s, size=update.size)
                    with self._logging_write_errors():
                        record.flush()
                    self._log_caveats(update)
                    yield update
                    continue
                new: list[NewEvent] = []
                with self._logging_write_errors():
                    new = new_events.of(update)
                counted = replace(update, new_events=len(new)) if new else update
                self.totals.add(counted)
                with self._logging_write_errors():
                    record.add(counted)
                self._log_caveats(counted)
                yield counted
                yield from new
            if (others := len(self._doubtful) - MOST_CAVEATS) > 0:
                log.info("%d more %s learned on little footage", others, "camera was" if others == 1 else "cameras were")
            new_events.close(lambda: self.stop.signal is not None)
            record.close(self.exit_code)

    @property
    def exit_code(self) -> int:
        """The exit code of the run so far. Fatal errors have their own exit codes.

        If a signal stopped the run, the exit code is 128 + the number of the signal; otherwise, see `ExitOptions.exit_code`.
        """
        if self.stop.signal is not None:
            return 128 + self.stop.signal
        return self.settings.options.exit_code(lost=bool(self.totals.lost), events=bool(self.totals.events))

    def preview(self) -> Iterator[PlannedVideo]:
        """Yield what the scan would do with each video. Writes nothing."""
        for item in self.settings.plan.unusable:
            yield PlannedVideo(item.video, "failed" if item.failed else "skip")
        yield from (PlannedVideo(*planned) for planned in self.runner.preview())

    def _updates(self, record: RunRecord) -> Iterator[Update]:
        """Yield the updates of the runner, and results of the videos that the runner does not scan."""
        for item in self.settings.plan.unusable:
            yield VideoResult(
                item.video, Status.FAILED if item.failed else Status.SKIPPED, "open" if item.failed else "", item.reason
            )

        def fitting(camera: str, frames: int) -> None:
            """Store and show how many frames were read to fit the camera."""
            self.progress.fit(camera, frames=frames)
            with self._logging_write_errors():
                record.write_live()
            self.on_fitting()

        reached: set[str] = set()
        with closing(self.runner.updates(fitting)) as updates:
            for update in updates:
                if isinstance(update, VideoResult):
                    reached.add(update.video)
                yield update
        if self.stop():
            reason = f"{NOT_FINISHED}: {self.stop.reason}"
            for unit in self.settings.units:
                if unit.video not in reached:
                    yield VideoResult(unit.video, Status.UNFINISHED, reason=reason, camera=unit.camera)

    def _log_caveats(self, update: Update) -> None:
        """Log the detector's caveats at the first update, and a camera's caveats at its first result."""
        if isinstance(update, VideoResult) and update.status not in (Status.DONE, Status.PARTIAL):
            return
        while self._unlogged:
            log.info("%s", self._unlogged.pop(0))
        if not isinstance(update, VideoResult) or update.camera in self._doubtful:
            return
        root = "all videos" if self.settings.options.camera_from == "all" else "the root folder"
        for caveat in update.caveats:
            if caveat not in caveats_of(self.detector):
                self._doubtful.add(update.camera)
                if len(self._doubtful) <= MOST_CAVEATS:
                    log.info("%s: %s", root if update.camera == "." else update.camera, caveat)

    @contextmanager
    def _logging_write_errors(self) -> Iterator[None]:
        """Log once that OUT can't be written, and continue: the disk may have room again later."""
        try:
            yield
        except OutputError as error:
            if not self._record_is_stale:
                log.error("the run record is not up to date: %s", error)
            self._record_is_stale = True

    @contextmanager
    def _recording(self, layout: OutputLayout, scratch: Scratch) -> Iterator[RunRecord]:
        """Return the run record for a `with` block, and close the record at the end of the block."""
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
        with RunRecord(layout, scratch, info, progress=self.progress) as record:
            try:
                yield record
            except (SystemExit, GeneratorExit):  # a second signal ended the run at once
                if self.stop.signal is not None:
                    record.close(self.exit_code)
                raise


def choose_detector(options: ScanOptions) -> Detector:
    """Return the detector that the options name.

    For `auto`, this is the first detector that is ready to run.

    Raises:
        UsageError: the detector is not known.
        DeviceError: the device is missing.
        WeightsError: the detector's weights are missing.
    """
    check_device(options.device)
    if options.detector != "auto":
        return detectors.load(options.detector, options)
    for name in DETECTOR_OPTIONS:
        with suppress(UsageError):  # a detector is not ready if its package can't be imported
            is_ready = getattr(DETECTOR_OPTIONS.load(name), "is_ready", None)
            if is_ready is not None and is_ready(options):
                break
    else:
        name = FALLBACK
    return detectors.load(name, options)


def effective_needs(detector: Detector, options: ScanOptions) -> ClipNeeds:
    """Return which frames the detector needs, changed by --interval, --sample-fps and --decode."""
    needs = detector.needs
    decode = options.decode
    if decode == "auto":  # with --interval N, all frames are decoded and every Nth is sampled
        decode = needs.decode if options.interval is None else "all"
    return replace(needs, interval=options.interval, rate_hz=options.sample_fps or needs.rate_hz, decode=decode)


def open_scan(paths: Sequence[Path], options: ScanOptions, *, command: Sequence[str] = ("vadcli.scan",)) -> Scan:
    """Find the videos, choose the detector and the runner, and return the scan, ready to run.

    A warning is logged for each option in `ignored_options`. Raises the same errors as `vadcli.scan`.
    """
    layout = OutputLayout(options.out)
    stop = Stop(options.max_runtime)
    plan = make_plan(
        paths, options, out=options.out, camera_from=options.camera_from, root=options.root, stored=stored_roots(layout)
    )
    if not plan.units and not plan.unusable and not may_be_empty(paths, options):
        raise NoVideoFound(no_video_text(plan, options))
    regions = regions_of_scan(options, plan)
    detector = choose_detector(options)
    for flag, why in ignored_options(options, detector.name):
        log.warning("the %s detector %s; it ignores %s", detector.name, why, flag)
    if (plan.units or plan.unusable) and not detector.uses_categories:
        _warn_of_categories(options, detector)
    note = choices_text(options, read_choices(layout), detector=detector.name)
    plan = replace(plan, notes=(*plan.notes, note)) if note else plan
    settings = ScanSettings(plan, options, tuple(command), regions=regions)
    return Scan(settings, detector, RUNNERS.load(options.runner)(settings, detector, stop=stop), stop=stop)


def _warn_of_categories(options: ScanOptions, detector: Detector) -> None:
    if ignored := parse_categories(options.categories):
        log.warning("the %s detector can't read categories; it ignores %s", detector.name, ", ".join(ignored))
        if options.detector == "auto":
            log.warning("to find these categories, first run: %s", DETECTOR_OPTIONS.load(HAS_ENCODER).encoder_download())


def may_be_empty(paths: Sequence[Path], options: FindOptions) -> bool:
    """True if a scan may have no videos: with --allow-empty, or if the only input is a list of files."""
    # A list of new files may be empty, for example after a night without recordings.
    return options.allow_empty or (options.files_from is not None and not paths)


def regions_of_scan(options: RegionOptions, plan: Plan) -> CameraRegions:
    """Return the regions that --ignore and --only hide.

    If a file names an unknown camera, a warning is logged.

    Raises:
        UsageError: a file can't be read. The message has one line per fault.
    """
    regions = CameraRegions()
    cameras = list(dict.fromkeys(unit.camera for unit in plan.units))
    for kind, path in (("ignore", options.ignore), ("only", options.only)):
        if path is None:
            continue
        of_file = read_regions(path, kind)
        regions |= of_file
        for name in of_file.unknown(cameras) if cameras else ():
            more = f" and {len(cameras) - MOST_CAMERAS_NAMED} more" if len(cameras) > MOST_CAMERAS_NAMED else ""
            known = ", ".join(cameras[:MOST_CAMERAS_NAMED])
            log.warning("%s: no camera is called %s; the cameras are %s%s", path, name, known, more)
    return regions


class PlannedVideo(NamedTuple):
    """What a scan would do with a video: one line of `vadcli scan --dry-run`."""

    video: str
    need: str  # what the scan would do: a word that `Runner.preview` returns, or "skip" for a path that can't be scanned


@dataclass(frozen=True)
class NewEvent:
    """An event that no earlier scan has reported."""

    document: EventsDocument  # the events of the video in which the event happens
    event: Event
    path: Path | None = None  # the video's file or folder; None if the path is not known

    @property
    def title(self) -> str:
        """The name of the event in messages."""
        return f"{self.document.video['path']}, event at {clock(self.event.start_s)}"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `scan --json` prints, and that the command of --on-event gets on stdin."""
        return {
            "type": "event",
            "video": self.document.video["path"],
            "camera": self.document.video["camera"],
            "path": None if self.path is None else printable(shown(self.path)),
            "detector": self.document.detector,
            **self.event.to_json(),
        }


class EventHook:
    """Runs a shell command for new events.

    An event is added to the list of reported events just before its command starts. A command that takes longer than
    `timeout_s` is killed, together with all processes that it has started.
    """

    def __init__(self, command: str, *, timeout_s: float, reported: ReportedEvents) -> None:
        self._command, self._timeout_s, self._reported = command, timeout_s, reported
        self._threads = ThreadPoolExecutor(COMMANDS_AT_ONCE, thread_name_prefix="on-event")
        self._waiting: set[Future[None]] = set()
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, event: NewEvent) -> None:
        """Run the command for an event as soon as a thread is free."""
        self._waiting = {future for future in self._waiting if not future.done()}
        self._waiting.add(self._threads.submit(self._run, event))

    def close(self, stopped: Callable[[], bool]) -> None:
        """Wait until all commands have ended.

        When `stopped` returns True, commands that have not started are not run.
        """
        if any(not future.done() for future in self._waiting):
            log.info("waiting for commands of --on-event")
        try:
            while left := [future for future in self._waiting if not future.done()]:
                if stopped():
                    self._threads.shutdown(wait=False, cancel_futures=True)  # the next scan runs the commands left out here
                wait(left, timeout=POLL_S)
        except BaseException:  # a second signal: do not wait any longer
            self._threads.shutdown(wait=False, cancel_futures=True)
            for process in list(self._running):
                _kill(process)
            raise
        self._threads.shutdown()

    def _run(self, event: NewEvent) -> None:
        """Run the command for an event, in a thread, unless another scan has reported the event.

        Errors are logged.
        """
        try:
            if not self._reported.add(event.document, event.event):
                return  # another scan has reported the event in the meantime
            data = json.dumps(event.to_json(), ensure_ascii=False).encode() + b"\n"
            process = subprocess.Popen(
                ["/bin/sh", "-c", self._command], stdin=subprocess.PIPE, stdout=sys.stderr.fileno(), start_new_session=True
            )
            self._running.add(process)
            try:
                process.communicate(data, timeout=self._timeout_s)
            except subprocess.TimeoutExpired:
                _kill(process)
                log.error("--on-event: %s: the command took longer than %g s and was killed", event.title, self._timeout_s)
                return
            finally:
                self._running.discard(process)
        except (OSError, OutputError) as error:
            log.error("--on-event: %s: the command did not run: %s", event.title, error)
            return
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            log.error("--on-event: %s: the command was ended by %s", event.title, name)
        elif process.returncode:
            log.error("--on-event: %s: the command ended with exit status %d", event.title, process.returncode)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all processes that it has started."""
    family = []
    with suppress(psutil.Error):
        top = psutil.Process(process.pid)
        family = [top, *top.children(recursive=True)]
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # the command has its own session, and so its own process group
    for member in family:
        with suppress(psutil.Error):
            member.kill()
    process.wait()


class NewEvents:
    """Finds the new events in the results of a scan, and runs the command of --on-event for each of them.

    Args:
        layout: the output folder.
        paths: the file or folder of each video, by the name of the video.
        command: the command of --on-event; "" to run no command.
        timeout_s: a command is killed after this many seconds.
        alone: True if no other scan runs in the output folder. If so, the events of skipped videos are new, too, if no scan
            has reported them (because it was interrupted). If False, these events are not new, because the other scan may
            still report them.
    """

    def __init__(self, layout: OutputLayout, paths: Mapping[str, Path], *, command: str, timeout_s: float, alone: bool) -> None:
        self._layout, self._paths, self._alone = layout, paths, alone
        self._reported = ReportedEvents(layout)
        # The new events of this run, by video. An event is stored as reported only when its command starts. Until then, this
        # dict shows that the event is not new.
        self._events: dict[str, list[Event]] = {}
        self._hook = EventHook(command, timeout_s=timeout_s, reported=self._reported) if command else None

    def of(self, result: VideoResult) -> list[NewEvent]:
        """Return the new events of a video, and report them.

        To report an event means to run the command for it. Without a command, the event is only added to the list of reported
        events.

        Raises:
            OutputError: the list of reported events can't be written.
        """
        if not result.events or not (self._alone or result.status in (Status.DONE, Status.PARTIAL)):
            return []
        document = read_unchecked(self._layout.events(result.video))
        if document is None:
            return []
        path, known = self._paths.get(result.video), self._events.setdefault(result.video, [])
        new = [
            NewEvent(document, event, path)
            for event in self._reported.new(document)
            if not any(event.start_s < other.end_s and other.start_s < event.end_s for other in known)
        ]
        known += [event.event for event in new]
        for event in new:
            if self._hook is not None:
                self._hook.run(event)
            else:
                self._reported.add(event.document, event.event)
        return new

    def close(self, stopped: Callable[[], bool]) -> None:
        """Wait for the commands; see `EventHook.close`."""
        if self._hook is not None:
            self._hook.close(stopped)
