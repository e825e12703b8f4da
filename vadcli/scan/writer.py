"""One video's way from raw scores to finished files: checkpoint while it runs, then scores, masks and events at once.

The Parquet file is renamed into place last: where it is, everything of the video is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadcli import __version__
from vadcli.errors import VideoError
from vadcli.events import EventBoxes, cut_events
from vadcli.outputs.checkpoint import (
    Checkpoint,
    CheckpointBlock,
    CheckpointHeader,
    CheckpointWriter,
    Claim,
    read_checkpoint,
)
from vadcli.outputs.event_json import EventsDocument, Failure, ScanState, describe_video, write_events
from vadcli.outputs.mask_rle import MaskRleWriter
from vadcli.outputs.mask_video import MASK_THRESHOLD, MaskVideoWriter, mask_box, upsample_mask
from vadcli.outputs.scores import ScoresMetadata, write_scores
from vadcli.scan.job import ScanJob, Verdict
from vadcli.scan.plan import WorkUnit
from vadcli.types import (
    ByteArray,
    CameraModel,
    Clip,
    Event,
    FloatArray,
    IndexArray,
    RawTrack,
    ScoreTable,
    Status,
    VideoInfo,
    VideoResult,
)
from vadcli.video.loader import Finished
from vadcli.video.sampling import Rows, SamplingPlan

COMPLAINT_CHARACTERS = 160


@dataclass(frozen=True)
class Task:
    """A claimed video on its way through the scan.

    Attributes:
        unit: the video.
        claim: the right to write it.
        verdict: its fingerprint and source.
        model: its camera's model.
        resume: the checkpoint to go on from, or None.
    """

    unit: WorkUnit
    claim: Claim
    verdict: Verdict
    model: CameraModel | None
    resume: Checkpoint | None = None

    def start_clip(self, job: ScanJob) -> int:
        """The first clip that the checkpoint does not hold."""
        return resume_clip(self.resume, job) if self.resume else 0


def resume_clip(checkpoint: Checkpoint, job: ScanJob) -> int:
    """The first clip that a checkpoint does not hold whole."""
    plan = SamplingPlan(job.needs.frames, job.needs.overlap, checkpoint.header.interval)
    return plan.whole_clips(checkpoint.last_row + 1)


def usable_checkpoint(claim: Claim, fingerprint: str, job: ScanJob) -> Checkpoint | None:
    """The claimed video's checkpoint where it belongs to this very scan and holds at least one clip."""
    checkpoint = read_checkpoint(claim.path)
    if checkpoint is None or checkpoint.header.fingerprint != fingerprint or not checkpoint.rows:
        return None
    has_masks = checkpoint.header.mask_shape is not None
    return checkpoint if has_masks or not job.keeps_masks else None


class VideoWriter:
    """Collects what is known of one video and writes it down.

    Args:
        job: the scan's settings.
        task: the claimed video.
        info: its probe.
    """

    def __init__(self, job: ScanJob, task: Task, info: VideoInfo) -> None:
        self.job = job
        self.task = task
        self.info = info
        self.started = time.monotonic()
        self.interval = job.needs.interval_for(info.fps)
        self._checkpoint: CheckpointWriter | None = None
        self._stored = -1
        if task.resume:
            self._go_on(task.resume.header, task.resume)

    def _go_on(self, header: CheckpointHeader, resume: Checkpoint | None) -> CheckpointWriter:
        self._checkpoint = CheckpointWriter(self.task.claim, header, resume=resume, fsync_every_s=self.job.checkpoint_s)
        self._stored = resume.last_row if resume else -1
        return self._checkpoint

    def add(self, clip: Clip, rows: Rows, raw: FloatArray, mask: FloatArray | None) -> None:
        """Store a scored clip.

        Args:
            clip: (T,) frames, of which the valid ones count.
            rows: every row since the clip before.
            raw: (T, K) scores.
            mask: (T, h, w) pixel scores or None.

        Raises:
            OutputError: the checkpoint can't be written.
        """
        count = len(rows)
        here = np.flatnonzero(clip.valid & (clip.frame_index >= rows.first))
        at = clip.frame_index[here] - rows.first
        sampled = np.zeros(count, np.bool_)
        sampled[at] = True
        values = np.zeros((count, raw.shape[1]), np.float32)
        values[at] = raw[here]
        boxes = np.zeros((count, 4), np.int32)
        kept = None
        if mask is not None:
            pixels = np.rint(mask[here] * 255).astype(np.uint8)
            boxes[at] = _boxes(pixels, self.info.width, self.info.height)
            if self.job.keeps_masks:
                kept = np.zeros((count, *mask.shape[1:]), np.uint8)
                kept[at] = pixels
        index = np.arange(rows.first, rows.first + count, dtype=np.int64)
        self._append(CheckpointBlock(index, rows.pts, rows.decode_ok, sampled, values, boxes, kept))

    def _append(self, block: CheckpointBlock) -> None:
        """Append what the checkpoint does not hold yet: a resumed scan brings the last clip's rows once more."""
        checkpoint = self._checkpoint or self._go_on(self._header_for(block), None)
        block = _after(block, self._stored)
        if len(block):
            checkpoint.append(block)
            checkpoint.flush()
            self._stored = int(block.frame_index[-1])

    def _header_for(self, block: CheckpointBlock) -> CheckpointHeader:
        return CheckpointHeader(
            fingerprint=self.task.verdict.fingerprint,
            interval=self.interval,
            channels=block.raw.shape[1],
            mask_shape=None if block.mask is None else (int(block.mask.shape[1]), int(block.mask.shape[2])),
            video=self.info.to_json(),
        )

    def suspend(self) -> None:
        """Leave the video as it is, for the next run to go on with."""
        if self._checkpoint is not None:
            self._checkpoint.flush(force=True)
        self.task.claim.release(delete=False)

    def finish(self, end: Finished) -> VideoResult:
        """Write every file of the video, or its failure.

        Raises:
            OutputError: a file can't be written; the checkpoint stays.
        """
        if self._checkpoint is not None and len(end.rows):
            self._append(_unsampled(end.rows, self._checkpoint.header))
        stored = read_checkpoint(self.task.claim.path) if self._checkpoint is not None else None
        columns = _Columns.read(stored) if stored is not None and stored.rows else None
        if stored is None or columns is None or not columns.sampled.any():
            error = end.error or VideoError(f"{self.task.unit.path}: no frame could be decoded", hint=first_complaint(end))
            return write_failure(self.job, self.task, error, decoder=end.decoder, info=self.info, started=self.started)
        table, moving_camera = self._score(columns)
        result = self._result(end, columns, moving_camera)
        events = cut_events(table, self.job.thresholds, duration_s=shown_s(table, self.info.to_json()), boxes=columns.boxes())
        result = replace(result, events=len(events))
        self._write(stored, columns, table, events, result)
        self.task.claim.release(delete=True)
        return result

    def _score(self, columns: _Columns) -> tuple[ScoreTable, bool | None]:
        timestamp = self.info.timestamps(columns.pts)
        sampled = np.flatnonzero(columns.sampled)
        track = RawTrack(self.info, timestamp[sampled], columns.raw[sampled], self.task.model)
        finished = self.job.detector.finish(track)
        logit = carry(finished.logit.astype(np.float32), columns.sampled)
        score = (1.0 / (1.0 + np.exp(-logit.astype(np.float64)))).astype(np.float32)
        table = ScoreTable(
            self.task.unit.video, columns.frame_index, columns.pts, timestamp, score, logit, columns.sampled, columns.decode_ok
        )
        return table, finished.moving_camera

    def _result(self, end: Finished, columns: _Columns, moving_camera: bool | None) -> VideoResult:
        decoded, expected = int(columns.decode_ok.sum()), max(self.info.frames, len(columns.pts))
        status, stage, reason = Status.DONE, "", ""
        if end.error is not None:
            status, stage, reason = Status.PARTIAL, end.error.stage, str(end.error)
        elif decoded < expected:
            status, stage = Status.PARTIAL, "decode"
            reason = f"{expected - decoded} of {expected} frames lost or damaged"
            reason += f": {first_complaint(end)}" if first_complaint(end) else ""
        return VideoResult(
            video=self.task.unit.video,
            status=status,
            stage=stage,
            reason=reason,
            camera=self.task.unit.camera,
            moving_camera=moving_camera,
            decoder=end.decoder,
            expected_frames=expected,
            decoded_frames=decoded,
            seconds=time.monotonic() - self.started,
        )

    def _write(
        self, stored: Checkpoint, columns: _Columns, table: ScoreTable, events: list[Event], result: VideoResult
    ) -> None:
        video, layout, scratch = self.task.unit.video, self.job.layout, self.job.scratch
        if self.job.mask_video:
            with scratch.replace(layout.mask_video(video)) as path:
                self._write_mask_video(path, stored)
        if self.job.mask_rle:
            with scratch.replace(layout.mask_rle(video)) as path:
                self._write_mask_rle(path, stored)
        with scratch.replace(layout.events(video)) as path:
            write_events(path, _events_document(self.job, self.task, self.info, events, result, frames=len(table)))
        with scratch.replace(layout.scores(video)) as path:
            write_scores(path, table, self._metadata(result))

    def _write_mask_video(self, path: Path, stored: Checkpoint) -> None:
        with MaskVideoWriter(path, self.info.width, self.info.height, fps=self.info.fps / self.interval) as writer:
            for _, pts, mask in _sampled_masks(stored, self.info):
                writer.write(mask, float(self.info.timestamps(np.array([pts]))[0]))

    def _write_mask_rle(self, path: Path, stored: Checkpoint) -> None:
        with MaskRleWriter(path, self.task.unit.video, self.info.width, self.info.height) as writer:
            for index, pts, mask in _sampled_masks(stored, self.info):
                writer.write(mask, index, pts)

    def _metadata(self, result: VideoResult) -> ScoresMetadata:
        calibration = self.job.detector.calibration
        return ScoresMetadata(
            version=__version__,
            fingerprint=self.task.verdict.fingerprint,
            source=self.task.verdict.source,
            video=self.info.to_json(),
            categories=self.job.categories,
            time_base=str(self.info.time_base),
            detector=self.job.detector.name,
            camera=self.task.unit.camera,
            calibration=calibration.to_json() if calibration else None,
            extra={"decoder": result.decoder, "interval": self.interval, "stage": result.stage, "reason": result.reason},
        )


@dataclass(frozen=True)
class _Columns:
    """A checkpoint's rows without its masks."""

    frame_index: IndexArray
    pts: IndexArray
    decode_ok: NDArray[np.bool_]
    sampled: NDArray[np.bool_]
    raw: FloatArray
    bbox: NDArray[np.int32]

    @classmethod
    def read(cls, stored: Checkpoint) -> _Columns:
        blocks = list(stored.blocks())
        return cls(*(np.concatenate([getattr(block, name) for block in blocks]) for name in cls.__dataclass_fields__))

    def boxes(self) -> EventBoxes:
        rows = np.flatnonzero(self.sampled).astype(np.int64)
        return EventBoxes(rows, self.bbox[rows])


def shown_s(table: ScoreTable, probe: Mapping[str, Any]) -> float:
    """Seconds from the first pts to the end of the last row; a truncated video ends where its rows do.

    Args:
        table: the video's rows, at least one.
        probe: `VideoInfo.to_json()`.
    """
    last_s = float(table.timestamp[-1])
    return max(last_s, float(probe["duration_s"])) if len(table) >= probe["frames"] else last_s + 1.0 / float(probe["fps"])


def first_complaint(end: Finished) -> str:
    """What the decoder said first, on one line: what follows is mostly its echo."""
    line = " ".join(end.complaints.split(";")[0].split())
    return line if len(line) <= COMPLAINT_CHARACTERS else f"{line[:COMPLAINT_CHARACTERS]}…"


def _unsampled(rows: Rows, header: CheckpointHeader) -> CheckpointBlock:
    """Rows after the last sampled one: nothing was seen in them."""
    count, shape = len(rows), header.mask_shape
    return CheckpointBlock(
        frame_index=np.arange(rows.first, rows.first + count, dtype=np.int64),
        pts=rows.pts,
        decode_ok=rows.decode_ok,
        sampled=np.zeros(count, np.bool_),
        raw=np.zeros((count, header.channels), np.float32),
        bbox=np.zeros((count, 4), np.int32),
        mask=np.zeros((count, *shape), np.uint8) if shape else None,
    )


def _after(block: CheckpointBlock, last_row: int) -> CheckpointBlock:
    if len(block) == 0 or block.frame_index[0] > last_row:
        return block
    new = block.frame_index > last_row
    return CheckpointBlock(
        frame_index=block.frame_index[new],
        pts=block.pts[new],
        decode_ok=block.decode_ok[new],
        sampled=block.sampled[new],
        raw=block.raw[new],
        bbox=block.bbox[new],
        mask=None if block.mask is None else block.mask[new],
    )


def _sampled_masks(stored: Checkpoint, info: VideoInfo) -> Iterator[tuple[int, int, ByteArray]]:
    """Row, pts and full-size mask of every sampled row; one in memory at a time."""
    for block in stored.blocks(masks=True):
        assert block.mask is not None
        for row in np.flatnonzero(block.sampled):
            yield int(block.frame_index[row]), int(block.pts[row]), upsample_mask(block.mask[row], info.width, info.height)


def carry(values: FloatArray, sampled: NDArray[np.bool_]) -> FloatArray:
    """(S,) values of the sampled rows spread over all N rows: each holds until the next, the first also before it.

    A video in which nothing was sampled gets zeros.
    """
    if not len(values):
        return np.zeros(len(sampled), np.float32)
    spread: FloatArray = values[np.maximum(np.cumsum(sampled) - 1, 0)]
    return spread


def _boxes(masks: ByteArray, width: int, height: int) -> NDArray[np.int32]:
    """(S, 4) x, y, width, height around what reaches 0.5 in (S, h, w) masks at display size; width 0 where nothing does."""
    boxes = np.zeros((len(masks), 4), np.int32)
    for row in np.flatnonzero((masks >= MASK_THRESHOLD).any(axis=(1, 2))):
        boxes[row] = mask_box(upsample_mask(masks[row], width, height)) or 0
    return boxes


def _events_document(
    job: ScanJob, task: Task, info: VideoInfo | None, events: list[Event], result: VideoResult, *, frames: int | None = None
) -> EventsDocument:
    """What is written for people: the video, its events, or why there are none."""
    unit, verdict = task.unit, task.verdict
    return EventsDocument(
        video=describe_video(unit.video, unit.camera, info, frames=frames, moving_camera=result.moving_camera),
        detector=job.detector.name,
        categories=job.categories,
        thresholds=job.thresholds,
        events=tuple(events),
        failure=Failure(result.stage, result.reason) if result.status is Status.FAILED else None,
        scan=ScanState(result.status, verdict.fingerprint, verdict.source),
    )


def write_failure(
    job: ScanJob,
    task: Task,
    error: VideoError,
    *,
    decoder: str = "",
    info: VideoInfo | None = None,
    started: float | None = None,
) -> VideoResult:
    """Write down that a video failed, take away older results of it, and give the claim back.

    Raises:
        OutputError: even that can't be written.
    """
    result = VideoResult(
        video=task.unit.video,
        status=Status.FAILED,
        stage=error.stage,
        reason=str(error),
        camera=task.unit.camera,
        decoder=decoder,
        expected_frames=info.frames if info else 0,
        seconds=time.monotonic() - started if started is not None else 0.0,
    )
    with job.scratch.replace(job.layout.events(task.unit.video)) as path:
        write_events(path, _events_document(job, task, info, [], result))
    for old in (job.layout.scores, job.layout.mask_video, job.layout.mask_rle):
        old(task.unit.video).unlink(missing_ok=True)
    task.claim.release(delete=True)
    return result
