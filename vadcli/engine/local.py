"""The runner for one machine: locks the videos, fits the cameras, reads the videos and scores them.

Whether a video needs a scan is decided from its stored results (`job.decide`). If it needs a scan, the video is locked, and the
decision is made again, because another scan may have finished the video in the meantime.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cached_property
from typing import cast

from vadcli.detectors import Attributor, Detector, Propagator, Traits, digest
from vadcli.engine.cameras import CameraFit, Cameras
from vadcli.engine.event_rules import EventRules, judge_of
from vadcli.engine.job import Decision, Need, ScanIdentity, ScanJob, Task, decide, usable_checkpoint
from vadcli.engine.plan import WorkUnit, by_camera
from vadcli.engine.recut import recut
from vadcli.engine.results import can_rescore, rescore, write_failure
from vadcli.engine.runner import Fitting, ScanSettings, Stop, effective_needs
from vadcli.engine.second_pass import Attribution, Propagation, Refinement, refiner_of
from vadcli.engine.stream import ScanStream, Update
from vadcli.errors import DocumentError, OutputError, UsageError, VideoError
from vadcli.options import ScanOptions, parse_duration
from vadcli.options.categories import own_categories
from vadcli.store import OutputLayout
from vadcli.store.atomic import Claim, Scratch
from vadcli.store.choices import read_choices
from vadcli.types import CameraModel, MaskRows, Status, VideoResult
from vadcli.types.text import MOST_NAMED, camera_names
from vadcli.video.loader import ClipLoader, ClipRequest, Item, LoaderOptions, core_count, loader_options

log = logging.getLogger("vadcli")


class LocalRunner:
    """Executes a plan with the devices and cores of this machine.

    The detector is loaded when the first video needs it. The caller may give an open `loader` (see `loader_of`), and must close
    this loader later. Without a `loader`, the runner opens and closes a loader itself.

    Raises:
        UsageError: the detector can't do what the options ask for.
        WeightsError: the model that refines masks is missing.
    """

    def __init__(self, settings: ScanSettings, detector: Detector, *, stop: Stop, loader: ClipLoader | None = None) -> None:
        if settings.options.propagate_masks and not isinstance(detector, Propagator):
            raise UsageError(
                f"--propagate-masks: the {detector.name} detector can't propagate masks",
                hint="omit the option, or use --detector lavida",
            )
        if settings.options.refine_masks and isinstance(detector, Propagator):
            raise UsageError(
                f"--refine-masks: SAM2 already makes the masks of the {detector.name} detector", hint="omit the option"
            )
        if settings.options.masks != "none" and not Traits.of(detector).makes_masks:
            raise UsageError(
                f"--masks: the {detector.name} detector makes no masks", hint="omit the option, or take another --detector"
            )
        self.refiner = refiner_of(settings.options)
        self.settings, self.detector, self.stop = settings, detector, stop
        self.options = settings.options
        self._loader = loader
        self.units = settings.units
        self._mine = {unit.video for unit in self.units}

    def updates(self, fitting: Fitting) -> Generator[Update, None, None]:
        """See `Runner`."""
        layout = OutputLayout(self.options.out)
        with ExitStack() as stack:
            scratch = stack.enter_context(Scratch(layout.scratch))
            layout.rename_old_files((unit.video for unit in self.units), {unit.camera for unit in self.settings.plan.units})
            job, options = self._job(layout, scratch), self._loader_options()
            one_process = replace(options, workers=1)  # each second pass has its own loader, with one decoder process
            if self.options.attribute and isinstance(self.detector, Attributor):
                loader = stack.enter_context(ClipLoader(job.needs, one_process))
                job = replace(job, attribution=Attribution(self.detector, loader))
            if self.options.propagate_masks and isinstance(self.detector, Propagator):
                loader = stack.enter_context(ClipLoader(replace(job.needs, interval=1, overlap=0, decode="all"), one_process))
                job = replace(job, propagation=Propagation(self.detector, loader, self.stop))
            if self.refiner is not None:
                refinement = Refinement.of(self.refiner, one_process, self.stop)
                stack.enter_context(refinement.loader)
                job = replace(job, refinement=refinement)
            loader = self._loader or stack.enter_context(ClipLoader(job.needs, options))
            cameras = self._cameras_of(layout, job, fitting=fitting)
            if self.settings.videos is None:  # otherwise this is a worker of a run, and the driver logs this
                self._log_learned_again(cameras)
            yield from self._scan(job, cameras, loader)
            if job.rules.judge:
                job.rules.judge.log_refused()

    def preview(self) -> Iterator[tuple[str, str]]:
        """See `Runner`."""
        layout = OutputLayout(self.options.out)
        job = self._job(layout, Scratch(layout.scratch))
        cameras = self._cameras_of(layout, job)
        self._log_learned_again(cameras, outgrown=True)
        for camera, whole in by_camera(self.settings.plan.units):
            mine = [unit for unit in whole if unit.video in self._mine]
            needs_fit = cameras.needs_fit(camera)
            # A fingerprint contains the camera's model. So if the camera has no model, or if this run replaces its model, all
            # its videos are scanned.
            has_model = self.detector.fits_camera and not cameras.is_outgrown(camera, whole)
            model = cameras.stored(camera) if has_model and mine else None
            yield from ((unit.video, "scan" if needs_fit else _need(job, unit, model)) for unit in mine)

    def is_fitted(self, camera: str) -> bool:
        """True if OUT has a camera model that this detector can use."""
        return self._stored_cameras().has_model(camera)

    def log_learned_again(self) -> None:
        """Log which cameras the run learns again, and why. Only the driver of a cluster calls this method."""
        self._log_learned_again(self._stored_cameras())

    def _log_learned_again(self, cameras: Cameras, *, outgrown: bool = False) -> None:
        """Log which cameras the run learns again, in one line per reason.

        With `outgrown`, cameras that have much more footage now are included. Only a preview needs this, because a run logs
        such a camera after its fit.
        """
        by_reason: dict[str, list[str]] = {}
        for camera, whole in by_camera(self.settings.plan.units):
            if all(unit.video not in self._mine for unit in whole):
                continue
            why = cameras.why_again(camera)
            if outgrown and cameras.is_outgrown(camera, whole):
                why = "much more footage than at the last fit"
            if why:
                by_reason.setdefault(why, []).append(camera)
        for why, names in by_reason.items():
            it_is, its = ("it is", "its") if len(names) == 1 else ("they are", "their")
            log.info("%s: %s, so %s learned again and %s videos are scanned again", camera_names(names), why, it_is, its)

    def _stored_cameras(self) -> Cameras:
        layout = OutputLayout(self.options.out)
        return self._cameras_of(layout, self._job(layout, Scratch(layout.scratch)))

    def _scan(self, job: ScanJob, cameras: Cameras, loader: ClipLoader) -> Iterator[Update]:
        """Scan one camera after the other if the detector fits cameras; otherwise all videos in one stream."""
        plan = self.settings.plan
        groups = by_camera(plan.units) if self.detector.fits_camera else [("", list(plan.units))]
        scans = (
            _CameraScan(job, CameraFit(cameras, camera, whole, self._request), mine, loader, self.stop)
            for camera, whole in groups
            if (mine := [unit for unit in whole if unit.video in self._mine])
        )
        work = next(scans, None)
        while work is not None and not self.stop():
            following = next(scans, None)
            reported: set[str] = set()
            try:
                for update in work.run(following, batch_size=self.options.batch_size):
                    reported.add(update.video if isinstance(update, VideoResult) else "")
                    yield update
            except OutputError as error:  # this camera's model can't be written, but the next model may be
                for unit in work.mine:
                    if unit.video not in reported:
                        yield VideoResult(unit.video, Status.FAILED, stage="write", reason=str(error), camera=unit.camera)
            except BaseException:
                if following is not None:
                    following.close()
                raise
            work = following
        if work is not None:
            work.close()
        if (others := cameras.outgrown - MOST_NAMED) > 0:
            log.info("%d more %s learned again from more footage", others, "camera was" if others == 1 else "cameras were")

    def _cameras_of(self, layout: OutputLayout, job: ScanJob, *, fitting: Fitting = lambda camera, frames: None) -> Cameras:
        options = self.options
        return Cameras(
            layout,
            job.scratch,
            self.detector,
            job.needs,
            self._loader_options(),
            seed=options.seed,
            refit=options.refit,
            stopped=self.stop,
            fitting=fitting,
            regions=job.regions,
        )

    def _request(self, unit: WorkUnit) -> ClipRequest:
        regions = self.settings.regions.of(unit.camera)
        return ClipRequest(unit.video, unit.path, fps=self.options.fps if unit.is_frames else None, regions=regions)

    def _loader_options(self) -> LoaderOptions:
        workers = self.options.workers or max(1, min(core_count(), len(self.units)))
        return loader_options(self.options, workers=workers)

    def _job(self, layout: OutputLayout, scratch: Scratch) -> ScanJob:
        """Return the settings for the scan of each video, but without second passes: `updates` adds the second passes."""
        options = self.options
        categories = self.settings.categories_of(self.detector)
        needs = effective_needs(self.detector, options)
        choices = read_choices(layout)
        return ScanJob(
            layout=layout,
            scratch=scratch,
            root=self.settings.plan.root,
            detector=self.detector,
            needs=needs,
            identity=ScanIdentity.of(self.detector, needs, decoder=options.decoder, fps=options.fps, categories=categories),
            rules=EventRules.of(
                options,
                choices,
                detector=self.detector.name,
                default=self.detector.thresholds,
                calibration=self.detector.calibration,
                judge=judge_of(options, choices, out=options.out, detector=self.detector.name),
            ),
            categories=categories,
            own_categories=own_categories(options.categories),
            mask_video=options.masks in ("video", "both"),
            mask_rle=options.masks in ("rle", "both"),
            masked_rows=MaskRows.EVERY if options.propagate_masks else MaskRows.SAMPLED,
            force=options.force or not options.skip_existing,
            retry_failed=options.retry_failed,
            checkpoint_s=parse_duration(options.checkpoint_every, "checkpoint_every"),
            refined=digest(self.refiner.fingerprint()) if self.refiner else "",
            times=options.time_rules(),
            regions=self.settings.regions,
        )


def loader_of(detector: Detector, options: ScanOptions) -> ClipLoader:
    """Return a loader for scans with these options.

    Without --workers, the loader has one decoder process per core.
    """
    return ClipLoader(effective_needs(detector, options), loader_options(options, workers=options.workers or core_count()))


def _need(job: ScanJob, unit: WorkUnit, model: CameraModel | None) -> str:
    """Return what a run would do with a video: "rescore", "partial", or the value of a `Need` such as "scan"."""
    try:
        decision = decide(job, unit, model)
    except VideoError:
        return str(Need.SCAN)
    if decision.need is Need.NOTHING:
        return str(decision.status)  # "done" or "partial"
    return "rescore" if decision.need is Need.SCAN and can_rescore(job, unit, decision) else str(decision.need)


class _CameraScan:
    """Scans the videos of one camera, or all videos if the detector does not fit cameras.

    Args:
        job: the settings of the scan.
        fit: fits the camera if necessary; its camera is "" if the detector does not fit cameras.
        mine: the videos to scan.
        loader: reads the videos.
        stop: when this function returns True, the scan ends.

    Attributes:
        requests: the loader's requests. The loader may take the first ones while the camera before this one is scored.
    """

    def __init__(
        self, job: ScanJob, fit: CameraFit, mine: list[WorkUnit], loader: ClipLoader, stop: Callable[[], bool]
    ) -> None:
        self.mine = mine
        self.requests = self._requests()
        self._job, self._fit, self._loader, self._stop = job, fit, loader, stop
        self._queue = ClaimQueue(job, fit.request, stop)
        self._stream: ScanStream | None = None
        self._expected: deque[Task | VideoResult] = deque()  # what the stream must expect as soon as it exists
        self._claimed: dict[str, tuple[WorkUnit, Claim]] = {}  # the videos that are locked but not yet a task
        self._pending: list[WorkUnit] = []  # the videos that need a scan, if the camera has a model
        self._sifted: deque[VideoResult] = deque()  # the results of the videos that need no scan

    @cached_property
    def is_outgrown(self) -> bool:
        """True if the camera must be fitted again from its own sample, before any of its videos is read."""
        return self._fit.cameras.is_outgrown(self._fit.camera, self._fit.whole)

    @cached_property
    def _fits_first(self) -> bool:
        return self._fit.cameras.needs_fit(self._fit.camera)

    @cached_property
    def _model(self) -> CameraModel | None:
        return self._fit.cameras.stored(self._fit.camera) if self._job.detector.fits_camera else None

    @cached_property
    def _sifting(self) -> Iterator[WorkUnit | VideoResult]:
        return self._queue.sift(self.mine, self._model)

    def run(self, following: _CameraScan | None, *, batch_size: int | None) -> Iterator[Update]:
        """Scan the videos of `mine` that need a scan. If no video needs a scan, the detector is not loaded.

        While the last videos are scored, the loader begins to read the videos of the camera `following`.
        """
        detector = self._job.detector
        if self.is_outgrown:
            detector.prepare()
            scored = sum(self._job.layout.scores(unit.video).exists() for unit in self.mine)
            self._fit.again(scored=scored)
        if not self._fits_first:
            yield from self._sift()
            if not self._pending:
                return
        detector.prepare()
        self._stream = ScanStream(self._job, batch_size=batch_size or detector.batch_size)
        while self._expected:
            self._stream.expect(self._expected.popleft())
        then = following.requests if following is not None and not following.is_outgrown else None
        try:
            with closing(
                cast(Generator[Item, None, None], self._loader.run(self.requests, stopped=self._stop, then=then))
            ) as items:
                yield from self._stream.run(self._fitted(items, self._stream) if self._fits_first else items)
        finally:
            self.close()

    def close(self) -> None:
        """Release the videos that are locked and have no result."""
        for _, claim in self._claimed.values():
            claim.release(delete=False)
        self._claimed.clear()
        while self._expected:
            task = self._expected.popleft()
            if isinstance(task, Task):
                task.claim.release(delete=False)

    def _sift(self) -> Iterator[VideoResult]:
        """Yield the results of the videos that need no scan. The other videos are in `_pending` afterwards."""
        while self._sifted:
            yield self._sifted.popleft()
        for item in self._sifting:
            if isinstance(item, VideoResult):
                yield item
            else:
                self._pending.append(item)

    def _requests(self) -> Iterator[ClipRequest]:
        """Claim each video when the loader has room for it, and yield a request if the video must be read."""
        if self._fits_first:
            for unit in self.mine:
                if self._stop():
                    return
                claim = self._queue.claim(unit)
                if isinstance(claim, VideoResult):
                    self._expect(claim)
                else:
                    self._claimed[unit.video] = unit, claim
                    yield self._fit.request(unit)
            return
        self._sifted.extend(list(self._sift()))
        for task in self._queue.take(self._pending, self._model):
            self._expect(task)
            if isinstance(task, Task):
                yield self._queue.request_of(task)

    def _expect(self, task: Task | VideoResult) -> None:
        if self._stream is None:
            self._expected.append(task)
        else:
            self._stream.expect(task)

    def _fitted(self, reading: Iterator[Item], stream: ScanStream) -> Iterator[Item]:
        """Fit the camera on the first items of the loader. Then yield all items, in order.

        The videos were locked before they were read. After the fit, `ClaimQueue.task` decides which of them need a scan.
        """
        for item in self._fit.on_the_way(reading):
            if item.video in self._claimed:
                unit, claim = self._claimed.pop(item.video)
                model = self._fit.cameras.stored(self._fit.camera)
                stream.expect(self._queue.task(unit, claim, model, resume=False))
            yield item


class ClaimQueue:
    """Claims videos, that is, locks their files. Decides which of these videos need a scan.

    A video that needs a scan becomes a `Task`. A video that needs no scan becomes a result.

    Args:
        job: the settings of the scan.
        request: makes a request that asks the loader to read a video.
        stopped: when this function returns True, no more videos are claimed.
    """

    def __init__(self, job: ScanJob, request: Callable[[WorkUnit], ClipRequest], stopped: Callable[[], bool]) -> None:
        self.job = job
        self.request = request
        self.stopped = stopped

    def sift(self, units: Iterable[WorkUnit], model: CameraModel | None) -> Iterator[WorkUnit | VideoResult]:
        """Yield each video that needs scanning, and a result for every other video."""
        for unit in units:
            if self.stopped():
                return
            try:
                result = self._without_scan(unit, decide(self.job, unit, model))
            except (VideoError, DocumentError, OutputError):  # `task` meets the same error and reports it
                result = None
            yield unit if result is None else result

    def claim(self, unit: WorkUnit) -> Claim | VideoResult:
        """Lock a video and return the lock.

        If another process has the lock, or OUT can't be written, return a result.
        """
        try:
            claim = Claim.acquire(self.job.layout.checkpoint(unit.video))
        except OutputError as error:
            return _unwritten(unit, error)
        if claim is None:
            reason = "another scan is working on it"
            return VideoResult(unit.video, Status.SKIPPED, reason=reason, camera=unit.camera)
        return claim

    def task(self, unit: WorkUnit, claim: Claim, model: CameraModel | None, *, resume: bool) -> Task | VideoResult:
        """Return a claimed video as a task. If the video needs no scan, release the lock and return a result.

        If only the categories changed, the stored vectors of the video are scored again here, without a scan. If `resume` is
        true and a checkpoint is stored, the scan continues from the checkpoint.
        """
        try:
            decision = decide(self.job, unit, model)
        except VideoError as error:
            try:
                return write_failure(self.job, Task(unit, claim, Decision(Need.SCAN, "", {}), model), error)
            except OutputError as output_error:
                claim.release(delete=False)
                return _unwritten(unit, output_error)
        try:
            result = self._without_scan(unit, decision)
            if result is None and can_rescore(self.job, unit, decision):
                result = rescore(self.job, unit, decision, model)
        except DocumentError as error:
            log.warning("%s: scanned again, because its stored results are damaged: %s", unit.video, error.message)
            result, decision = None, replace(decision, need=Need.SCAN)
        except OutputError as error:
            claim.release(delete=False)
            return _unwritten(unit, error)
        if result is not None:
            claim.release(delete=True)
            return result
        checkpoint = None
        if resume and not self.job.force:
            checkpoint = usable_checkpoint(claim, decision.fingerprint, self.job, unit.video)
        return Task(unit, claim, decision, model, checkpoint)

    def take(self, units: Iterable[WorkUnit], model: CameraModel | None) -> Iterator[Task | VideoResult]:
        """Yield one task or result per video. Each video is claimed when the caller asks for the next item."""
        for unit in units:
            if self.stopped():
                return
            claim = self.claim(unit)
            yield claim if isinstance(claim, VideoResult) else self.task(unit, claim, model, resume=True)

    def request_of(self, task: Task) -> ClipRequest:
        """Return a request to read the task's video from the first clip that is not scored yet."""
        return replace(self.request(task.unit), start_clip=task.start_clip(self.job), damaged=task.has_damage)

    def _without_scan(self, unit: WorkUnit, decision: Decision) -> VideoResult | None:
        """Return the result of a video that needs no scan; None if the video must be scanned.

        If only the rules for events changed, the events of the video are made again here.

        Raises:
            DocumentError: the stored results of the video are damaged.
            OutputError: the new events can't be written.
        """
        if decision.need is Need.SCAN:
            return None
        events, rules = decision.events, self.job.rules
        if decision.need is Need.RECUT:
            document = recut(
                self.job.layout,
                self.job.scratch,
                unit.video,
                rules.of_video(unit.video),
                reviews=rules.reviews,
                judge=rules.judge,
                times=self.job.times,
            )
            events = len(document.events)
        if decision.need is Need.TAKEN:
            reason = decision.reason
        elif decision.status is Status.DONE:
            reason = "done"
        else:
            reason = f"{decision.status} in an earlier run (--retry-failed tries again): {decision.reason}"
        return VideoResult(
            video=unit.video,
            status=Status.FAILED if decision.need is Need.TAKEN else Status.SKIPPED,
            stage=decision.stage if decision.status in (Status.FAILED, Status.PARTIAL) else "",
            reason=reason,
            camera=unit.camera,
            events=events,
        )


def _unwritten(unit: WorkUnit, error: OutputError) -> VideoResult:
    return VideoResult(unit.video, Status.FAILED, stage="write", reason=str(error), camera=unit.camera)
