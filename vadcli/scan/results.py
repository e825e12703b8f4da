"""A video's files, once it has ended: events and scores, or why there are none (its masks: `mask_files`).

The Parquet file is renamed into place last: where it is, everything of the video is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vadcli import __version__
from vadcli.errors import VideoError
from vadcli.events import EventBoxes
from vadcli.outputs.checkpoint import Checkpoint
from vadcli.outputs.event_json import EventsDocument, Failure, ScanState, describe_video, write_events
from vadcli.outputs.scores import ScoresMetadata, write_scores
from vadcli.scan.job import ScanJob
from vadcli.scan.task import Task
from vadcli.types import Event, FloatArray, IndexArray, MaskRows, ScoreTable, Status, VideoInfo, VideoResult
from vadcli.video.loader import Finished

COMPLAINT_CHARACTERS = 160


@dataclass(frozen=True)
class Columns:
    """A checkpoint's rows without its masks."""

    frame_index: IndexArray
    pts: IndexArray
    decode_ok: NDArray[np.bool_]
    sampled: NDArray[np.bool_]
    raw: FloatArray
    bbox: NDArray[np.int32]

    @classmethod
    def read(cls, stored: Checkpoint) -> Columns:
        """All rows of a checkpoint that holds some."""
        blocks = list(stored.blocks())
        return cls(*(np.concatenate([getattr(block, name) for block in blocks]) for name in cls.__dataclass_fields__))

    def boxes(self) -> EventBoxes:
        """The boxes of the sampled rows."""
        rows = np.flatnonzero(self.sampled).astype(np.int64)
        return EventBoxes(rows, self.bbox[rows])


def carry(values: FloatArray, sampled: NDArray[np.bool_]) -> FloatArray:
    """(S,) values of the sampled rows spread over all N rows: each holds until the next, the first also before it.

    A video in which nothing was sampled gets zeros.
    """
    if not len(values):
        return np.zeros(len(sampled), np.float32)
    spread: FloatArray = values[np.maximum(np.cumsum(sampled) - 1, 0)]
    return spread


def first_complaint(end: Finished) -> str:
    """What the decoder said first, on one line: what follows is mostly its echo."""
    said = [" ".join(part.split()) for part in end.complaints.split(";")]
    line = next((part for part in said if "muxer" not in part), "")  # the muxer only echoes what the decoder left out
    return line if len(line) <= COMPLAINT_CHARACTERS else f"{line[:COMPLAINT_CHARACTERS]}…"


def write_files(
    job: ScanJob,
    task: Task,
    info: VideoInfo,
    *,
    stored: Checkpoint,
    table: ScoreTable,
    events: list[Event],
    result: VideoResult,
) -> None:
    """Write events and scores, the scores last; the masks are there by now.

    Raises:
        OutputError: one can't be written; those before it are in place and are written again by the next run.
    """
    layout, video = job.layout, task.unit.video
    with job.scratch.replace(layout.events(video)) as path:
        write_events(path, _events_document(job, task, info, events, result, frames=len(table)))
    with job.scratch.replace(layout.scores(video)) as path:
        write_scores(path, table, _metadata(job, task, info, result, interval=stored.header.interval))


def _metadata(job: ScanJob, task: Task, info: VideoInfo, result: VideoResult, *, interval: int) -> ScoresMetadata:
    calibration = job.detector.calibration
    return ScoresMetadata(
        version=__version__,
        fingerprint=task.verdict.fingerprint,
        source=task.verdict.source,
        video=info.to_json(),
        categories=job.categories,
        time_base=str(info.time_base),
        detector=job.detector.name,
        camera=task.unit.camera,
        calibration=calibration.to_json() if calibration else None,
        extra={"decoder": result.decoder, "interval": interval, "stage": result.stage, "reason": result.reason},
        masks=job.masked_rows if job.keeps_masks else MaskRows.SAMPLED,
    )


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
