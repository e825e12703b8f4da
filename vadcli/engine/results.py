"""Writes the files of a video when its scan ends: masks, events and scores, or the reason why the scan failed.

The Parquet file of the scores is renamed into place last. If it exists, all files of the video exist.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadcli import __version__
from vadcli.cutting import EventBoxes
from vadcli.engine.job import ScanJob, Task
from vadcli.engine.refining import rows_of, spans_of
from vadcli.engine.second_pass import MaskSpans
from vadcli.errors import NotFinished, VideoError
from vadcli.store.atomic import remove
from vadcli.store.checkpoint import Checkpoint
from vadcli.store.events import EventsDocument, Failure, ScanState, describe_video, write_events
from vadcli.store.mask_video import upsample_mask
from vadcli.store.masks import MaskFiles
from vadcli.store.scores import ScoresMetadata, write_scores
from vadcli.types import (
    NOT_FINISHED,
    BoolArray,
    ByteArray,
    Event,
    FloatArray,
    FrameScores,
    IndexArray,
    MaskRows,
    MaskScale,
    ScoreTable,
    Status,
    VideoInfo,
    VideoResult,
)
from vadcli.video.loader import ClipRequest, Finished
from vadcli.video.sampling import SamplingPlan

COMPLAINT_CHARACTERS = 160
_TAGS = re.compile(r"^(?:\[[^\]]*\]\s*)+")  # ffmpeg puts [the decoder] and [the level] before each message


@dataclass(frozen=True)
class Columns:
    """The rows of a checkpoint, without its masks."""

    frame_index: IndexArray
    pts: IndexArray
    decode_ok: NDArray[np.bool_]
    sampled: NDArray[np.bool_]
    raw: FloatArray
    bbox: NDArray[np.int32]

    @classmethod
    def read(cls, stored: Checkpoint) -> Columns:
        """Read all rows of a checkpoint. The checkpoint must not be empty."""
        blocks = list(stored.blocks())
        return cls(*(np.concatenate([getattr(block, name) for block in blocks]) for name in cls.__dataclass_fields__))

    def boxes(self) -> EventBoxes:
        """Return the boxes of the sampled rows."""
        rows = np.flatnonzero(self.sampled).astype(np.int64)
        return EventBoxes(rows, self.bbox[rows])


def every_row(logit: FloatArray, sampled: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return the scores (N,) and logits (N,) of all rows, from the logits (S,) of the sampled rows."""
    spread = carry_forward(logit.astype(np.float32), sampled)
    score = (1.0 / (1.0 + np.exp(-spread.astype(np.float64)))).astype(np.float32)
    return score, spread


def category_columns(scores: FrameScores, names: Sequence[str], sampled: BoolArray) -> dict[str, Any]:
    """Return the fields of `ScoreTable` that have scores per category. They are empty if the detector gives no such scores.

    Args:
        scores: the scores of the sampled frames.
        names: the detector's categories.
        sampled: (N,) bool, True in the sampled rows.
    """
    if scores.by_category is None:
        return {"category_names": (), "category_scores": None}
    columns = [every_row(logit, sampled)[0] for logit in scores.by_category.T]
    return {"category_names": tuple(names), "category_scores": np.stack(columns, axis=1)}


def carry_forward(values: FloatArray, sampled: NDArray[np.bool_]) -> FloatArray:
    """Carry the values (S,) of the sampled rows forward to all N rows. Rows before the first sampled row get its value.

    A video without a sampled row gets zeros.
    """
    if not len(values):
        return np.zeros(len(sampled), np.float32)
    spread: FloatArray = values[np.maximum(np.cumsum(sampled) - 1, 0)]
    return spread


def first_complaint(end: Finished) -> str:
    """Return a sentence with the decoder's first error message, on one line. Later messages mostly repeat the first."""
    said = [" ".join(part.split()) for part in end.complaints.split(";")]
    line = next((part for part in said if "muxer" not in part), "")  # the muxer only repeats what the decoder reported
    line = _TAGS.sub("", line)
    if not line:
        return ""
    return f"the decoder reports: {line if len(line) <= COMPLAINT_CHARACTERS else line[:COMPLAINT_CHARACTERS] + '…'}"


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
    """Write events, then scores. The masks must already be written.

    Raises:
        OutputError: a file can't be written. The files before it are in place, and the next run writes them again.
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
        fingerprint=task.decision.fingerprint,
        source=task.decision.source,
        video=info.to_json(),
        categories=job.categories,
        time_base=str(info.time_base),
        detector=job.detector.name,
        camera=task.unit.camera,
        calibration=calibration.to_json() if calibration else None,
        extra={
            "decoder": result.decoder,
            "interval": interval,
            "decode": "all" if SamplingPlan.of(job.needs, info).rows is None else job.needs.decode,
            "stage": result.stage,
            "reason": result.reason,
            "missing": info.missing,
            "note": result.note,
        }
        | ({"refined": job.refined} if job.refined else {}),
        masks=job.masked_rows if job.keeps_masks else MaskRows.SAMPLED,
    )


def _events_document(
    job: ScanJob, task: Task, info: VideoInfo | None, events: list[Event], result: VideoResult, *, frames: int | None = None
) -> EventsDocument:
    """Return the events document of a video, with its events or the reason why its scan failed."""
    unit, decision = task.unit, task.decision
    created = info.created if info else ""
    start = job.times.start_of(
        unit.path.as_posix(),
        created=created,
        modified_s=unit.mtime_ns / 1e9,
        duration_s=info.duration_s if info else None,
    )
    return EventsDocument(
        video=describe_video(unit.video, unit.camera, info, frames=frames, moving_camera=result.moving_camera),
        detector=job.detector.name,
        categories=job.categories,
        own_categories=job.own_categories,
        thresholds=job.rules.of_video(unit.video),
        events=tuple(events),
        failure=Failure(result.stage, result.reason) if result.status is Status.FAILED else None,
        scan=ScanState(result.status, decision.fingerprint, decision.source),
        start=start,
        created=created,
        caveats=result.caveats,
        regions=job.regions.of(unit.camera),
        head=job.rules.head_of(unit.video),
    )


def not_finished(task: Task, error: NotFinished) -> VideoResult:
    """Return the result of a video that the machine failed to read, and release its lock. Nothing is stored."""
    task.claim.release(delete=True)  # the checkpoint is deleted, because its rows may be wrong
    reason = f"{NOT_FINISHED}: {error}"
    return VideoResult(task.unit.video, Status.FAILED, stage=error.stage, reason=reason, camera=task.unit.camera)


def write_failure(
    job: ScanJob,
    task: Task,
    error: VideoError,
    *,
    decoder: str = "",
    info: VideoInfo | None = None,
    started: float | None = None,
) -> VideoResult:
    """Remove the older results of a video, store that it failed, and release its lock. If the machine failed, store nothing.

    Raises:
        OutputError: the failure can't be written, or an older file can't be removed.
    """
    if isinstance(error, NotFinished):
        return not_finished(task, error)
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
    for old in (job.layout.scores, job.layout.embeddings, job.layout.answers, job.layout.mask_video, job.layout.mask_rle):
        remove(old(task.unit.video))
    with job.scratch.replace(job.layout.events(task.unit.video)) as path:
        write_events(path, _events_document(job, task, info, [], result))
    task.claim.release(delete=True)
    return result


def write_masks(
    job: ScanJob,
    task: Task,
    info: VideoInfo,
    *,
    stored: Checkpoint,
    columns: Columns,
    table: ScoreTable,
    events: list[Event],
) -> EventBoxes:
    """Write the masks that the options ask for, and remove mask files of an earlier scan.

    Args:
        job, task, info: the scan and the video.
        stored: the video's checkpoint; it has masks if the options ask for masks.
        columns: the checkpoint's rows.
        table: the scores.
        events: the events in which masks are propagated or refined, if the options ask for this.

    Returns:
        The boxes of the rows that have masks.

    Raises:
        OutputError: a file can't be written. The files before it are in place, and the next run writes them again.
        Interrupted: the scan ends before the masks are complete. No file was written.
    """
    if not job.keeps_masks:
        _remove_earlier(job, task.unit.video)
        return columns.boxes()
    masks: Iterator[tuple[int, ByteArray]]
    if job.masked_rows is MaskRows.EVERY:
        masks = _every_row(job, task, info, stored=stored, mask_spans=MaskSpans.of(columns.sampled, events))
    else:
        masks = zip(np.flatnonzero(columns.sampled).tolist(), _sampled_masks(stored), strict=True)
    hidden, thresholds = hidden_pixels(job, task, info), job.rules.of_video(task.unit.video)
    enlarge = _Enlarger(info, job.detector.mask_scale, hidden)
    masks = ((row, enlarge(mask)) for row, mask in masks)
    spans = tuple((event.start_frame, event.end_frame) for event in events)
    if job.refinement is not None:
        from vadcli.video.container import can_seek  # it imports PyAV, which takes time that other scans can save

        rows = rows_of(job.masked_rows.of(columns.sampled), spans, len(table))
        request = _request(job, task, info, spans_of(rows, spans, may_seek=task.unit.is_frames or can_seek(info)))
        masks = job.refinement.refined(masks, rows, request, level=thresholds.mask_level, hidden=hidden)
    files = MaskFiles(
        job.layout,
        job.scratch,
        info.width,
        info.height,
        fps=info.fps if job.masked_rows is MaskRows.EVERY else info.fps / stored.header.interval,
        rows=job.masked_rows,
        threshold=thresholds.high,
        as_video=job.mask_video,
        as_rle=job.mask_rle,
        refined=spans if job.refinement else (),
    )
    boxes = files.write(masks, table, level=thresholds.mask_level)
    _remove_earlier(job, task.unit.video)
    return EventBoxes(job.masked_rows.of(columns.sampled), boxes)


class _Enlarger:
    """Turns masks on a detector's scale into pixel scores (height, width) uint8 at the video's display size.

    Hidden pixels get the score 0. If the same array comes twice in a row, the same result is returned.
    """

    def __init__(self, info: VideoInfo, scale: MaskScale, hidden: BoolArray | None) -> None:
        self._size = info.width, info.height
        self._scores = None if scale is MaskScale.SCORE else scale.pixel_scores()
        self._hidden = hidden
        self._last: ByteArray | None = None
        self._made: ByteArray = np.zeros((0, 0), np.uint8)

    def __call__(self, mask: ByteArray) -> ByteArray:
        if mask is not self._last:
            large = upsample_mask(mask, *self._size)
            scores = large if self._scores is None else self._scores[large]
            self._last, self._made = mask, scores if self._hidden is None else np.where(self._hidden, np.uint8(0), scores)
        return self._made


def _request(job: ScanJob, task: Task, info: VideoInfo, spans: tuple[tuple[int, int], ...]) -> ClipRequest:
    """Return the loader's request for some parts of the video."""
    unit = task.unit
    fps = info.fps if unit.is_frames else None
    return ClipRequest(unit.video, unit.path, fps=fps, spans=spans, regions=job.regions.of(unit.camera))


def hidden_pixels(job: ScanJob, task: Task, info: VideoInfo) -> BoolArray | None:
    """Return flags (height, width), True for hidden pixels at display size; None if there are no regions."""
    regions = job.regions.of(task.unit.camera)
    return regions.hidden(info.width, info.height) if regions else None


def _sampled_masks(stored: Checkpoint) -> Iterator[ByteArray]:
    """Yield the masks (h, w) of the sampled rows, on the detector's scale. One block is in memory at a time."""
    for block in stored.blocks(masks=True):
        assert block.mask is not None
        yield from (block.mask[row] for row in np.flatnonzero(block.sampled))


def _every_row(
    job: ScanJob, task: Task, info: VideoInfo, *, stored: Checkpoint, mask_spans: MaskSpans
) -> Iterator[tuple[int, ByteArray]]:
    """Yield every row with its mask. Rows before the first sampled row have empty masks."""
    assert job.propagation is not None
    assert stored.header.mask_shape is not None
    unit = task.unit
    empty = np.zeros(stored.header.mask_shape, np.uint8)
    yield from ((row, empty) for row in range(int(mask_spans.starts[0])))
    fps = info.fps if unit.is_frames else None
    regions = job.regions.of(unit.camera)
    yield from job.propagation.every_row(mask_spans, _sampled_masks(stored), path=unit.path, fps=fps, regions=regions)


def _remove_earlier(job: ScanJob, video: str) -> None:
    """Remove the mask files of formats that this scan does not write. They belong to an earlier scan with other scores."""
    if not job.mask_video:
        remove(job.layout.mask_video(video))
    if not job.mask_rle:
        remove(job.layout.mask_rle(video))
