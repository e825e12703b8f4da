"""The queue of a scan: a video that needs scanning becomes a task with its lock, and any other video becomes a result at once.

The stored results decide whether a video needs scanning. If it does, the video is locked, and then the decision is made again,
because another scan may have finished the video in the meantime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from vadcli.engine.job import Decision, Need, ScanJob, Task, decide, usable_checkpoint
from vadcli.engine.plan import WorkUnit
from vadcli.engine.recut import recut
from vadcli.engine.rescore import can_rescore, rescore
from vadcli.engine.results import write_failure
from vadcli.errors import OutputError, VideoError
from vadcli.store.atomic import Claim
from vadcli.types import CameraModel, Status, VideoResult
from vadcli.video.loader import ClipRequest

UNKNOWN = Decision(Need.SCAN, "", {})


class ClaimQueue:
    """Turns each video into a task, or into a result if it needs no scan.

    Args:
        job: the scan's settings.
        request: makes the loader's request for a video.
        stopped: after it has returned True, no video is claimed.
    """

    def __init__(self, job: ScanJob, request: Callable[[WorkUnit], ClipRequest], stopped: Callable[[], bool]) -> None:
        self.job = job
        self.request = request
        self.stopped = stopped

    def sift(self, units: Iterable[WorkUnit], model: CameraModel | None) -> Iterator[WorkUnit | VideoResult]:
        """Yield each video that needs scanning, and a result for every other video. Makes events again if this is needed."""
        for unit in units:
            if self.stopped():
                return
            try:
                decision = decide(self.job, unit, model)
            except VideoError:
                yield unit
                continue
            result = self._without_scan(unit, decision)
            yield unit if result is None else result

    def claim(self, unit: WorkUnit) -> Claim | VideoResult:
        """Return the lock on a video's files, or a result if another process has the lock or OUT can't be written."""
        try:
            claim = Claim.acquire(self.job.layout.checkpoint(unit.video))
        except OutputError as error:
            return VideoResult(unit.video, Status.FAILED, stage="write", reason=str(error), camera=unit.camera)
        if claim is None:
            reason = "another scan is working on it"
            return VideoResult(unit.video, Status.SKIPPED, reason=reason, camera=unit.camera)
        return claim

    def task(self, unit: WorkUnit, claim: Claim, model: CameraModel | None, *, resume: bool) -> Task | VideoResult:
        """Return a claimed video as a task. If it does not need a scan any more, release the lock and return a result.

        Args:
            unit: the video.
            claim: its lock.
            model: its camera's model.
            resume: True to continue from a checkpoint if one is stored.
        """
        try:
            decision = decide(self.job, unit, model)
        except VideoError as error:
            return self._failed(Task(unit, claim, UNKNOWN, model), error)
        result = self._without_scan(unit, decision)
        if result is not None:
            claim.release(delete=True)
            return result
        try:
            rescored = rescore(self.job, unit, decision, model) if can_rescore(self.job, unit, decision) else None
        except OutputError as error:
            claim.release(delete=False)
            return VideoResult(unit.video, Status.FAILED, stage="write", reason=str(error), camera=unit.camera)
        if rescored is not None:
            claim.release(delete=True)
            return rescored
        checkpoint = None
        if resume and not self.job.force:
            checkpoint = usable_checkpoint(claim, decision.fingerprint, self.job, unit.video)
        return Task(unit, claim, decision, model, checkpoint)

    def take(self, units: Iterable[WorkUnit], model: CameraModel | None) -> Iterator[Task | VideoResult]:
        """Yield one task or result per video. A video is claimed when the caller asks for it."""
        for unit in units:
            if self.stopped():
                return
            claim = self.claim(unit)
            yield claim if isinstance(claim, VideoResult) else self.task(unit, claim, model, resume=True)

    def request_of(self, task: Task) -> ClipRequest:
        """Return the loader's request for a task. It starts at the clip at which the scan of the video continues."""
        return replace(self.request(task.unit), start_clip=task.start_clip(self.job), damaged=task.has_damage)

    def _without_scan(self, unit: WorkUnit, decision: Decision) -> VideoResult | None:
        """Return the result of a video that needs no scan; None if it must be scanned."""
        if decision.need is Need.SCAN:
            return None
        events = (
            recut(
                self.job.layout,
                self.job.scratch,
                unit.video,
                self.job.rules.of_video(unit.video),
                review=self.job.rules.reviews,
                judge=self.job.rules.judge,
                times=self.job.times,
            )
            if decision.need is Need.RECUT
            else None
        )
        lost = decision.status in (Status.FAILED, Status.PARTIAL)
        why = (
            "done"
            if decision.status is Status.DONE
            else f"{decision.status} in an earlier run (--retry-failed tries again): {decision.reason}"
        )
        return VideoResult(
            video=unit.video,
            status=Status.FAILED if decision.need is Need.TAKEN else Status.SKIPPED,
            stage=decision.stage if lost else "",
            reason=decision.reason if decision.need is Need.TAKEN else why,
            camera=unit.camera,
            events=decision.events if events is None else len(events.events),
        )

    def _failed(self, task: Task, error: VideoError) -> VideoResult:
        try:
            return write_failure(self.job, task, error)
        except OutputError as trouble:
            task.claim.release(delete=False)
            return VideoResult(task.unit.video, Status.FAILED, stage="write", reason=str(trouble), camera=task.unit.camera)
