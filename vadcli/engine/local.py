"""A scan on this machine: connects plan, cameras, queue and stream, and keeps the run record while they work."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from vadcli import __version__
from vadcli.detectors import Attributor, Detector, Propagator
from vadcli.engine.cameras import Cameras, fit_on_the_way
from vadcli.engine.job import Need, ScanIdentity, ScanJob, decide
from vadcli.engine.plan import Plan, WorkUnit, by_camera
from vadcli.engine.queue import ClaimQueue
from vadcli.engine.runner import ScanSettings, Stop, Totals, effective_needs, exit_code
from vadcli.engine.second_pass import Attribution, Propagation
from vadcli.engine.stream import ScanStream, Update
from vadcli.errors import OutputError, UsageError, VideoError
from vadcli.options import ScanOptions, effective, parse_duration
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch
from vadcli.store.checkpoint import Claim
from vadcli.store.run_log import RunInfo, RunProgress, RunRecord
from vadcli.types import CameraModel, MaskRows, Status, VideoResult
from vadcli.video.loader import ClipLoader, ClipRequest, Item, LoaderOptions, core_count, loader_options

log = logging.getLogger("vadcli")


class LocalScan:
    """Runs a plan with the devices and cores of this machine.

    Args:
        plan: what to scan.
        options: how.
        detector: through what.
        stop: ends the run early.
        command: the command line, for the run record.

    Raises:
        UsageError: the detector cannot do what the options ask for.
    """

    def __init__(self, plan: Plan, options: ScanOptions, detector: Detector, *, stop: Stop, command: list[str]) -> None:
        if options.propagate_masks and not isinstance(detector, Propagator):
            raise UsageError(
                f"--propagate-masks: the {detector.name} detector can't propagate masks", hint="--detector lavida can"
            )
        self.settings = ScanSettings(plan, options, tuple(command))
        self.plan, self.options = plan, options
        self.detector = detector
        self.stop = stop
        self.totals = Totals()
        self.units = self.settings.units
        self.progress = RunProgress({unit.video: unit.size for unit in self.units})
        self._mine = {unit.video for unit in self.units}
        self._stack = ExitStack()
        self._record_is_stale = False

    def run(self) -> Generator[Update, None, None]:
        """Scan; yields progress, and one result per video. The run record is complete when the iterator ends.

        Raises:
            OutputError: OUT cannot be written at all.
            DeviceError, WeightsError: the detector cannot be loaded.
        """
        layout = OutputLayout(self.options.out)
        with self._stack as stack:
            scratch = stack.enter_context(Scratch(layout.scratch))
            record = stack.enter_context(self._open_record(layout, scratch))
            loader_options = self._loader_options()
            job = replace(
                self._job(layout, scratch),
                attribution=self._attribution(stack, loader_options),
                propagation=self._propagation(stack, loader_options),
            )
            loader = stack.enter_context(ClipLoader(job.needs, loader_options))
            cameras = self._cameras_of(layout, job, told=partial(self._note_fit, record))
            for update in self._updates(job, cameras, loader):
                if isinstance(update, VideoResult):
                    self.totals.add(update)
                else:
                    self.totals.frames += update.frames
                    self.totals.video_s += update.video_s
                with self._noting():
                    _note(record, update)
                yield update
            code = exit_code(self.totals, stop=self.stop, fail_on_event=self.options.fail_on_event)
            record.close(code)

    def _note_fit(self, record: RunRecord, camera: str, frames: int) -> None:
        self.progress.fit(camera, frames=frames)
        with self._noting():
            record.say()

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Log once that the record cannot be updated. This is not fatal: a full disk may have room again when the run ends."""
        try:
            yield
        except OutputError as error:
            if not self._record_is_stale:
                log.error("the run's record is not up to date: %s", error)
            self._record_is_stale = True

    def preview(self) -> Iterator[tuple[str, str]]:
        """Yield (video, need): what the run would do with each video, without doing or writing anything."""
        layout = OutputLayout(self.options.out)
        job = self._job(layout, Scratch(layout.scratch))
        cameras = self._cameras_of(layout, job)
        for item in self.plan.unusable:
            yield item.video, "failed" if item.failed else "skip"
        for unit in self.units:
            model = cameras.stored(unit.camera) if self.detector.fits_camera else None
            try:
                need = decide(job, unit, model).need
            except VideoError:
                need = Need.SCAN
            yield unit.video, str(Need.SCAN if cameras.needs_fit(unit.camera) else need)

    def _updates(self, job: ScanJob, cameras: Cameras, loader: ClipLoader) -> Iterator[Update]:
        for item in self.plan.unusable:
            yield VideoResult(
                item.video, Status.FAILED if item.failed else Status.SKIPPED, "open" if item.failed else "", item.reason
            )
        seen: set[str] = set()
        for update in self._cameras(job, cameras, loader):
            if isinstance(update, VideoResult):
                seen.add(update.video)
            yield update
        for unit in self.units if self.stop() else ():
            if unit.video not in seen:
                yield VideoResult(unit.video, Status.SKIPPED, reason=f"not finished: {self.stop.reason}", camera=unit.camera)

    def _cameras(self, job: ScanJob, cameras: Cameras, loader: ClipLoader) -> Iterator[Update]:
        """Scan camera by camera if the detector fits cameras, else all videos in one stream."""
        groups = by_camera(self.plan.units) if self.detector.fits_camera else [("", list(self.plan.units))]
        for camera, whole in groups:
            mine = [unit for unit in whole if unit.video in self._mine]
            if self.stop() or not mine:
                continue
            work = _Work(job, cameras, loader, camera, whole, self._request, self.stop)
            reported: set[str] = set()
            try:
                for update in work.run(mine, batch_size=self.options.batch_size):
                    reported.add(update.video if isinstance(update, VideoResult) else "")
                    yield update
            except OutputError as error:  # the camera's model can't be written; other cameras may lie elsewhere
                for unit in mine:
                    if unit.video not in reported:
                        yield VideoResult(unit.video, Status.FAILED, stage="write", reason=str(error), camera=unit.camera)

    def _cameras_of(
        self, layout: OutputLayout, job: ScanJob, *, told: Callable[[str, int], None] = lambda camera, frames: None
    ) -> Cameras:
        options = self.options
        return Cameras(
            layout, job.scratch, self.detector, job.needs, self._loader_options(), options.seed, options.refit, self.stop, told
        )

    def _request(self, unit: WorkUnit) -> ClipRequest:
        return ClipRequest(unit.video, unit.path, fps=self.options.fps if unit.is_frames else None)

    def _loader_options(self) -> LoaderOptions:
        workers = self.options.workers or max(1, min(core_count(), len(self.units)))
        return loader_options(self.options, workers=workers)

    def _job(self, layout: OutputLayout, scratch: Scratch) -> ScanJob:
        options = self.options
        categories = self.settings.categories_of(self.detector)
        needs = effective_needs(self.detector, options)
        return ScanJob(
            layout=layout,
            scratch=scratch,
            root=self.plan.root,
            detector=self.detector,
            needs=needs,
            identity=ScanIdentity.of(self.detector, needs, decoder=options.decoder, fps=options.fps, categories=categories),
            thresholds=options.thresholds(self.detector.thresholds, self.detector.calibration),
            categories=categories,
            mask_video=options.masks in ("video", "both"),
            mask_rle=options.masks in ("rle", "both"),
            masked_rows=MaskRows.EVERY if options.propagate_masks else MaskRows.SAMPLED,
            force=options.force or not options.skip_existing,
            retry_failed=options.retry_failed,
            checkpoint_s=parse_duration(options.checkpoint_every, "checkpoint_every"),
        )

    def _attribution(self, stack: ExitStack, options: LoaderOptions) -> Attribution | None:
        """Return what finds the categories of events; it reads with its own decoder process."""
        if not self.options.attribute or not isinstance(self.detector, Attributor):
            return None
        loader = stack.enter_context(ClipLoader(effective_needs(self.detector, self.options), replace(options, workers=1)))
        return Attribution(self.detector, loader)

    def _propagation(self, stack: ExitStack, options: LoaderOptions) -> Propagation | None:
        """Return what makes the masks of every row; it reads with its own decoder process."""
        if not self.options.propagate_masks or not isinstance(self.detector, Propagator):
            return None
        needs = replace(effective_needs(self.detector, self.options), interval=1, overlap=0)
        loader = stack.enter_context(ClipLoader(needs, replace(options, workers=1)))
        return Propagation(self.detector, loader, self.stop)

    def _open_record(self, layout: OutputLayout, scratch: Scratch) -> RunRecord:
        info = RunInfo(
            version=__version__,
            command=self.settings.command,
            config=effective(self.options),
            detector={"name": self.detector.name, **self.detector.fingerprint()},
            weights=self.detector.weights,
            roots=self.plan.roots,
            root=str(self.plan.root),
            shard=self.options.shard,
        )
        return RunRecord(layout, scratch, info, progress=self.progress)


def _note(record: RunRecord, update: Update) -> None:
    if isinstance(update, VideoResult):
        record.add(update)
    elif record.progress is not None:
        record.progress.advance(update.video, frames=update.frames, video_s=update.video_s, size=update.size)
        record.flush()


@dataclass
class _Work:
    """Videos that share a stream, from the decision to the results: those of one camera, or all if no camera is fitted."""

    job: ScanJob
    cameras: Cameras
    loader: ClipLoader
    camera: str
    whole: list[WorkUnit]
    request: Callable[[WorkUnit], ClipRequest]
    stop: Stop

    def run(self, mine: list[WorkUnit], *, batch_size: int | None) -> Iterator[Update]:
        """Judge, claim and scan this shard's videos; the detector is loaded only if one of them needs scanning."""
        queue = ClaimQueue(self.job, self.request, self.stop)
        # Results of videos that turn out to need no scan when the loader asks for the next one.
        settled: deque[VideoResult] = deque()
        detector = self.job.detector
        if self.cameras.needs_fit(self.camera):
            detector.prepare()
            stream = ScanStream(self.job, batch_size=batch_size or detector.batch_size)
            items = self._fit_first(mine, queue, stream, settled)
        else:
            model = self.cameras.stored(self.camera) if detector.fits_camera else None
            pending: list[WorkUnit] = []
            for found in queue.sift(mine, model):
                if isinstance(found, VideoResult):
                    yield found
                else:
                    pending.append(found)
            if not pending:
                return
            detector.prepare()
            stream = ScanStream(self.job, batch_size=batch_size or detector.batch_size)
            items = self.loader.run(self._requests(queue, pending, model, stream, settled), stopped=self.stop)
        for update in stream.run(items):
            yield update
            while settled:
                yield settled.popleft()
        yield from settled

    def _requests(
        self,
        queue: ClaimQueue,
        pending: list[WorkUnit],
        model: CameraModel | None,
        stream: ScanStream,
        settled: deque[VideoResult],
    ) -> Iterator[ClipRequest]:
        """Yield a request per task, each announced to the stream before; results go to `settled`."""
        for found in queue.take(pending, model):
            if isinstance(found, VideoResult):
                settled.append(found)
            else:
                stream.expect(found)
                yield queue.request_of(found)

    def _fit_first(
        self, mine: list[WorkUnit], queue: ClaimQueue, stream: ScanStream, settled: deque[VideoResult]
    ) -> Iterator[Item]:
        """Claim and read while the camera has no model; decide each video when it has one."""
        claimed: dict[str, tuple[WorkUnit, Claim]] = {}

        def requests() -> Iterator[ClipRequest]:
            for unit in mine:
                if self.stop():
                    return
                claim = queue.claim(unit)
                if isinstance(claim, VideoResult):
                    settled.append(claim)
                else:
                    claimed[unit.video] = unit, claim
                    yield self.request(unit)

        reading = self.loader.run(requests(), stopped=self.stop)
        try:
            for item in fit_on_the_way(self.cameras, self.camera, self.whole, reading, self.request):
                if item.video in claimed:
                    unit, claim = claimed.pop(item.video)
                    task = queue.task(unit, claim, self.cameras.stored(self.camera), resume=False)
                    if isinstance(task, VideoResult):
                        settled.append(task)
                    else:
                        stream.expect(task)
                yield item
        finally:
            for _, claim in claimed.values():
                claim.release(delete=False)
