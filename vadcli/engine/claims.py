"""Which videos this process may scan: judged by what is stored, claimed by a lock, judged again under the lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from vadcli.engine.job import Need, ScanJob, Task, Verdict, judge, usable_checkpoint
from vadcli.engine.plan import WorkUnit
from vadcli.engine.recut import recut
from vadcli.engine.results import write_failure
from vadcli.errors import OutputError, VideoError
from vadcli.store.checkpoint import Claim
from vadcli.types import CameraModel, Status, VideoResult
from vadcli.video.loader import ClipRequest

UNKNOWN = Verdict(Need.SCAN, "", {})


class Claims:
    """Hands out tasks; what becomes of the other videos is collected in `results`.

    Args:
        job: the scan's settings.
        request: how a unit is asked for.
        stopped: no more claims are made once this is True.
    """

    def __init__(self, job: ScanJob, request: Callable[[WorkUnit], ClipRequest], stopped: Callable[[], bool]) -> None:
        self.job = job
        self.request = request
        self.stopped = stopped
        self.results: list[VideoResult] = []

    def sift(self, units: Iterable[WorkUnit], model: CameraModel | None) -> Iterator[WorkUnit | VideoResult]:
        """The units that need scanning; for the others a result, events cut anew where the thresholds changed."""
        for unit in units:
            if self.stopped():
                return
            try:
                verdict = judge(self.job, unit, model)
            except VideoError:
                yield unit
                continue
            result = self._without_scan(unit, verdict)
            yield unit if result is None else result

    def claim(self, unit: WorkUnit) -> Claim | None:
        """The right to write a unit's files; None where another process has it or OUT can't be written."""
        try:
            claim = Claim.acquire(self.job.layout.checkpoint(unit.video))
        except OutputError as error:
            self.results.append(VideoResult(unit.video, Status.FAILED, stage="write", reason=str(error), camera=unit.camera))
            return None
        if claim is None:
            self._skip(unit, "another scan is working on it")
        return claim

    def task(self, unit: WorkUnit, claim: Claim, model: CameraModel | None, *, resume: bool) -> Task | None:
        """The claimed unit as a task; None, with the claim given back, where it needs no scan after all.

        Args:
            unit: the video.
            claim: of this unit.
            model: its camera's model.
            resume: go on from a checkpoint where there is one.
        """
        try:
            verdict = judge(self.job, unit, model)
        except VideoError as error:
            self._fail(Task(unit, claim, UNKNOWN, model), error)
            return None
        result = self._without_scan(unit, verdict)
        if result is not None:
            claim.release(delete=True)
            self.results.append(result)
            return None
        checkpoint = usable_checkpoint(claim, verdict.fingerprint, self.job) if resume and not self.job.force else None
        return Task(unit, claim, verdict, model, checkpoint)

    def requests(
        self, units: Iterable[WorkUnit], model: CameraModel | None, expect: Callable[[Task], None]
    ) -> Iterator[ClipRequest]:
        """Claim the units one by one as the loader asks for work; each task is announced before its request."""
        for unit in units:
            if self.stopped():
                return
            claim = self.claim(unit)
            task = self.task(unit, claim, model, resume=True) if claim else None
            if task is not None:
                expect(task)
                yield self._from(task)

    def _from(self, task: Task) -> ClipRequest:
        request = self.request(task.unit)
        start = task.start_clip(self.job)
        return ClipRequest(request.video, request.path, request.fps, start_clip=start)

    def _without_scan(self, unit: WorkUnit, verdict: Verdict) -> VideoResult | None:
        """The result of a video that is not scanned; None where it must be."""
        if verdict.need is Need.SCAN:
            return None
        events = (
            recut(self.job.layout, self.job.scratch, unit.video, self.job.thresholds) if verdict.need is Need.RECUT else None
        )
        lost = verdict.status in (Status.FAILED, Status.PARTIAL)
        why = (
            "done"
            if verdict.status is Status.DONE
            else f"{verdict.status} before, --retry-failed tries again: {verdict.reason}"
        )
        return VideoResult(
            video=unit.video,
            status=Status.FAILED if verdict.need is Need.TAKEN else Status.SKIPPED,
            stage=verdict.stage if lost else "",
            reason=verdict.reason if verdict.need is Need.TAKEN else why,
            camera=unit.camera,
            events=verdict.events if events is None else len(events.events),
        )

    def _skip(self, unit: WorkUnit, reason: str) -> None:
        self.results.append(VideoResult(unit.video, Status.SKIPPED, reason=reason, camera=unit.camera))

    def _fail(self, task: Task, error: VideoError) -> None:
        try:
            self.results.append(write_failure(self.job, task, error))
        except OutputError as trouble:
            task.claim.release(delete=False)
            result = VideoResult(task.unit.video, Status.FAILED, stage="write", reason=str(trouble), camera=task.unit.camera)
            self.results.append(result)
