"""The queue of a scan: each video becomes a task with its lock, or a result if it needs no scan.

The stored results decide whether a video needs scanning. If it does, the video is locked, and then the decision is made again,
because another scan may have finished the video in the meantime. If only the categories changed, the stored vectors of the
video are scored again, and the video is not decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from vadcli import __version__
from vadcli.cutting import categorised
from vadcli.engine.job import Decision, Need, ScanJob, Task, decide, usable_checkpoint
from vadcli.engine.plan import WorkUnit
from vadcli.engine.recut import recut
from vadcli.engine.results import embedding_key, score_columns, write_failure
from vadcli.errors import DocumentError, OutputError, VideoError
from vadcli.store.atomic import Claim
from vadcli.store.events import ScanState, read_events, timed, write_events
from vadcli.store.scores import read_embeddings, read_embeddings_metadata, read_scores, shown_s, write_scores
from vadcli.types import CameraModel, MaskRows, RawTrack, Status, VideoInfo, VideoResult
from vadcli.video.loader import ClipRequest

UNKNOWN = Decision(Need.SCAN, "", {})


class ClaimQueue:
    """Turns each video into a task, or into a result if the video needs no scan.

    `request` makes the loader's request for a video. When `stopped` returns True, no more videos are claimed.
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
                decision = decide(self.job, unit, model)
            except VideoError:
                yield unit
                continue
            result = self._without_scan(unit, decision)
            yield unit if result is None else result

    def claim(self, unit: WorkUnit) -> Claim | VideoResult:
        """Return the lock on a video's files. If another process has the lock, or OUT can't be written, return a result."""
        try:
            claim = Claim.acquire(self.job.layout.checkpoint(unit.video))
        except OutputError as error:
            return _unwritten(unit, error)
        if claim is None:
            reason = "another scan is working on it"
            return VideoResult(unit.video, Status.SKIPPED, reason=reason, camera=unit.camera)
        return claim

    def task(self, unit: WorkUnit, claim: Claim, model: CameraModel | None, *, resume: bool) -> Task | VideoResult:
        """Return a claimed video as a task. If it needs no scan, release the lock and return a result.

        If `resume` is true and a checkpoint is stored, the scan continues from the checkpoint.
        """
        try:
            decision = decide(self.job, unit, model)
        except VideoError as error:
            try:
                return write_failure(self.job, Task(unit, claim, UNKNOWN, model), error)
            except OutputError as trouble:
                claim.release(delete=False)
                return _unwritten(unit, trouble)
        result = self._without_scan(unit, decision)
        if result is not None:
            claim.release(delete=True)
            return result
        try:
            rescored = rescore(self.job, unit, decision, model) if can_rescore(self.job, unit, decision) else None
        except OutputError as error:
            claim.release(delete=False)
            return _unwritten(unit, error)
        if rescored is not None:
            claim.release(delete=True)
            return rescored
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
        """Return the loader's request for a task, from the clip at which its scan continues."""
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


def _unwritten(unit: WorkUnit, error: OutputError) -> VideoResult:
    return VideoResult(unit.video, Status.FAILED, stage="write", reason=str(error), camera=unit.camera)


def can_rescore(job: ScanJob, unit: WorkUnit, decision: Decision) -> bool:
    """True if a video can be scored from stored vectors. This is not possible if masks are needed."""
    if job.embedder is None or job.force or job.keeps_masks:
        return False
    stored = read_embeddings_metadata(job.layout.embeddings(unit.video))
    key = embedding_key(job, job.regions.of(unit.camera))
    return stored is not None and stored.key == key and stored.content == decision.source["content"]


def rescore(job: ScanJob, unit: WorkUnit, decision: Decision, model: CameraModel | None) -> VideoResult | None:
    """Score a claimed video from its stored vectors, and write its events and scores.

    Returns None if a stored file can't be used.

    Raises:
        OutputError: a file can't be written.
    """
    started = time.monotonic()
    assert job.embedder is not None
    try:
        table, metadata = read_scores(job.layout.scores(unit.video))
        document = read_events(job.layout.events(unit.video))
        stored = read_embeddings(job.layout.embeddings(unit.video))
        info = VideoInfo.from_json(metadata.video, unit.path, table.pts)
    except (DocumentError, KeyError, TypeError, ValueError):
        return None
    rows = np.flatnonzero(table.sampled)
    if document.scan is None or not np.array_equal(table.frame_index[rows], stored.frame_index):
        return None
    raw = job.embedder.score_embeddings(stored.embeddings, model)
    scores = job.detector.finish(RawTrack(info, table.timestamp[rows], raw, model))
    table = replace(table, **score_columns(scores, job.detector.categories, table.sampled))
    thresholds = job.rules.of_video(unit.video)
    events = categorised(job.rules.events(unit.video, table, duration_s=shown_s(table, metadata.video)), table)
    calibration = job.detector.calibration
    state = ScanState(document.scan.status, decision.fingerprint, decision.source)
    document = replace(
        timed(document, job.times),
        detector=job.detector.name,
        categories=job.categories,
        own_categories=job.own_categories,
        thresholds=thresholds,
        events=tuple(events),
        head=job.rules.head_of(unit.video),
        scan=state,
        generator=f"vadcli {__version__}",
        caveats=job.caveats(model),
        scan_events=None,
    )
    metadata = replace(
        metadata,
        version=__version__,
        fingerprint=decision.fingerprint,
        source=decision.source,
        categories=job.categories,
        detector=job.detector.name,
        calibration=calibration.to_json() if calibration else None,
        masks=MaskRows.SAMPLED,
    )
    with job.scratch.replace(job.layout.events(unit.video)) as path:
        write_events(path, document)
    with job.scratch.replace(job.layout.scores(unit.video)) as path:
        write_scores(path, table, metadata)
    partial = state.status is Status.PARTIAL  # then the reason comes from the scan that decoded the video
    return VideoResult(
        video=unit.video,
        status=state.status,
        stage=str(metadata.extra.get("stage", "")) if partial else "",
        reason=str(metadata.extra.get("reason", "")) if partial else "",
        camera=unit.camera,
        moving_camera=scores.moving_camera,
        decoder=str(metadata.extra.get("decoder", "")),
        expected_frames=int(metadata.video["frames"]) + int(metadata.extra.get("missing", 0)),
        decoded_frames=int(table.decode_ok.sum()),
        seconds=time.monotonic() - started,
        events=len(events),
        note=str(metadata.extra.get("note", "")),
        caveats=document.caveats,
    )
