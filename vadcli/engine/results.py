"""Writes the files of a video when its scan ends: vectors, masks, events and scores, or why the scan failed.

The Parquet file of the scores is written last. If this file exists, all files of the video exist.

If only the categories changed since the last scan, `rescore` makes scores and events from the stored vectors of the video.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadcli import __version__
from vadcli.cutting import EventBoxes, categorised
from vadcli.detectors import Embedder, digest
from vadcli.engine.job import Decision, ScanJob, Task
from vadcli.engine.plan import WorkUnit
from vadcli.engine.second_pass import MaskSpans, rows_of, spans_of
from vadcli.errors import DocumentError, NotFinished, VideoError
from vadcli.store import OutputLayout
from vadcli.store.atomic import remove
from vadcli.store.checkpoint import Checkpoint
from vadcli.store.events import EventsDocument, Failure, ScanState, describe_video, read_events, timed, write_events
from vadcli.store.masks import MaskFiles, upsample_mask
from vadcli.store.scores import (
    EmbeddingsMetadata,
    ScoresMetadata,
    StoredEmbeddings,
    read_embeddings,
    read_embeddings_metadata,
    read_scores,
    shown_s,
    write_embeddings,
    write_scores,
)
from vadcli.types import (
    NOT_FINISHED,
    BoolArray,
    ByteArray,
    CameraModel,
    Embeddings,
    Event,
    FloatArray,
    FrameScores,
    IndexArray,
    MaskRows,
    MaskScale,
    RawTrack,
    ScoreTable,
    Status,
    VideoInfo,
    VideoResult,
)
from vadcli.video.loader import ClipRequest, Finished
from vadcli.video.sampling import SamplingPlan, can_seek

COMPLAINT_CHARACTERS = 160
_TAGS = re.compile(r"^(?:\[[^\]]*\]\s*)+")  # ffmpeg puts [the decoder] and [the level] before each message


@dataclass(frozen=True)
class Columns:
    """All rows of a checkpoint, one array per column. Masks and vectors are left out."""

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


def score_columns(scores: FrameScores, names: Sequence[str], sampled: BoolArray) -> dict[str, Any]:
    """Return the scores of all N rows as fields of `ScoreTable`.

    The score of a sampled row is carried forward to the rows before the next sampled row. Rows before the first sampled row get
    the score of the first sampled row.

    Args:
        scores: the scores of the S sampled rows.
        names: the detector's categories.
        sampled: (N,) True for the sampled rows.
    """

    def carried(logit: FloatArray) -> FloatArray:
        """Repeat each logit (S,) until the next sampled frame; return (N,)."""
        rows = np.maximum(np.cumsum(sampled) - 1, 0)
        return logit.astype(np.float32)[rows] if len(logit) else np.zeros(len(sampled), np.float32)

    def score_of(logit: FloatArray) -> FloatArray:
        """Return the scores in [0, 1] of these logits."""
        return np.asarray(1.0 / (1.0 + np.exp(-logit.astype(np.float64))), np.float32)

    logit = carried(scores.logit)
    fields: dict[str, Any] = {"score": score_of(logit), "logit": logit, "category_names": (), "category_scores": None}
    if scores.by_category is not None:
        fields["category_names"] = tuple(names)
        fields["category_scores"] = np.stack([score_of(carried(column)) for column in scores.by_category.T], axis=1)
    return fields


def first_complaint(end: Finished) -> str:
    """Return the decoder's first error message; "" without error messages.

    Later messages mostly repeat the first message.
    """
    messages = [" ".join(part.split()) for part in end.complaints.split(";")]
    line = next((part for part in messages if "muxer" not in part), "")  # the muxer only repeats the messages of the decoder
    line = _TAGS.sub("", line).rstrip(".")
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
    """Write the events and then the scores of a scanned video. The masks must already be written.

    Raises:
        OutputError: a file can't be written. The files that are already written stay, and the next run writes them again.
    """
    calibration = job.detector.calibration
    metadata = ScoresMetadata(
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
            "interval": stored.header.interval,
            "decode": "all" if SamplingPlan.of(job.needs, info).rows is None else job.needs.decode,
            "stage": result.stage,
            "reason": result.reason,
            "missing": info.missing,
            "note": result.note,
        }
        | ({"refined": job.refined} if job.refined else {}),
        masks=job.masked_rows if job.keeps_masks else MaskRows.SAMPLED,
    )
    _write_both(job, _events_document(job, task, info, events, result, frames=len(table)), table, metadata)


def _write_both(job: ScanJob, document: EventsDocument, table: ScoreTable, metadata: ScoresMetadata) -> None:
    """Write the events of a video, and then its scores. If the scores exist, all files of the video exist."""
    with job.scratch.replace(job.layout.events(table.video)) as path:
        write_events(path, document)
    with job.scratch.replace(job.layout.scores(table.video)) as path:
        write_scores(path, table, metadata)


def _events_document(
    job: ScanJob, task: Task, info: VideoInfo | None, events: list[Event], result: VideoResult, *, frames: int | None = None
) -> EventsDocument:
    """Return the events document of a video that was scanned or has failed.

    `info` is None if the video could not be opened.
    """
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


def write_failure(
    job: ScanJob,
    task: Task,
    error: VideoError,
    *,
    decoder: str = "",
    info: VideoInfo | None = None,
    started: float | None = None,
) -> VideoResult:
    """Store that the scan of a video failed, and return a result with the failure.

    Older results of the video are removed, and its lock is released. There is one exception: if the machine caused the error
    (`NotFinished`), nothing is stored and older results stay, so that the next run tries again.

    Args:
        job, task: the scan and the video.
        error: why the scan failed.
        decoder: the decoder that read the video.
        info: what the probe found out about the video; None if the video could not be opened.
        started: `time.monotonic()` at the start of the scan of this video.

    Raises:
        OutputError: the failure can't be written, or an older file can't be removed.
    """
    if isinstance(error, NotFinished):
        task.claim.release(delete=True)  # the checkpoint is deleted, because it may contain wrong rows
        reason = f"{NOT_FINISHED}: {error}"
        return VideoResult(task.unit.video, Status.FAILED, stage=error.stage, reason=reason, camera=task.unit.camera)
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


def write_vectors(job: ScanJob, task: Task, *, stored: Checkpoint, table: ScoreTable) -> None:
    """Write the vectors of the sampled frames.

    If the scan makes no vectors, the stored vectors of the video are removed. There is one exception: the vectors of an
    unchanged video are kept if this detector can't make vectors: `vadcli embed` or another detector made them.

    Raises:
        OutputError: the file can't be written or removed.
    """
    path, embedder = job.layout.embeddings(task.unit.video), job.embedder
    if embedder is None or not stored.header.embedding_bytes:
        old = read_embeddings_metadata(path)
        # Keep the vectors of an unchanged video if this detector can't have made them.
        if isinstance(job.detector, Embedder) or old is None or old.content != task.decision.source["content"]:
            remove(path)
        return
    blocks = [block.embedding[block.sampled] for block in stored.blocks(embeddings=True) if block.embedding is not None]
    rows = np.flatnonzero(table.sampled)
    metadata = EmbeddingsMetadata(
        video=task.unit.video,
        camera=task.unit.camera,
        encoder=embedder.encoder_name,
        encoder_key=embedder.encoder_key,
        key=embedding_key(job, task.unit),
        content=str(task.decision.source["content"]),
    )
    vectors = StoredEmbeddings(
        metadata, table.frame_index[rows], table.timestamp[rows], Embeddings.unpack(np.concatenate(blocks))
    )
    with job.scratch.replace(path) as temporary:
        write_embeddings(temporary, vectors)


def embedding_key(job: ScanJob, unit: WorkUnit) -> str:
    """Return a hash of all settings that change the vectors of a video.

    The content of the video is not part of the hash.
    """
    assert job.embedder is not None
    regions = job.regions.of(unit.camera)
    hidden = [regions.sha256] if regions else []
    parts = [job.embedder.embedding_key, job.identity.needs, job.identity.decoder, job.identity.fps, *hidden]
    return digest(parts)


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
    """Write the masks that the options ask for, and remove other mask files of the video.

    Return the boxes around the masks.

    Args:
        job, task, info: the scan and the video.
        stored: the video's checkpoint; it has masks if the options ask for masks.
        columns: the checkpoint's rows.
        table: the scores.
        events: the events in which masks are propagated or refined, if the options ask for this.

    Raises:
        OutputError: a file can't be written. The files that are already written stay, and the next run writes them again.
        Interrupted: the scan must end before the masks are complete. No file is written.
    """
    if not job.keeps_masks:
        _remove_earlier(job, task.unit.video)
        return columns.boxes()
    unit, request = task.unit, request_of(job, task, info)
    hidden, thresholds = hidden_pixels(job, task, info), job.rules.of_video(unit.video)
    enlarge = _Enlarger(info, job.detector.mask_scale, hidden)
    own_masks = _detector_masks(job, request, stored, columns.sampled, events)
    masks: Iterator[tuple[int, ByteArray]] = ((row, enlarge(mask)) for row, mask in own_masks)
    spans = tuple((event.start_frame, event.end_frame) for event in events)
    if job.refinement is not None:
        rows = rows_of(job.masked_rows.of(columns.sampled), spans, len(table))
        parts = spans_of(rows, spans, may_seek=unit.is_frames or can_seek(info))
        masks = job.refinement.refined(masks, rows, replace(request, spans=parts), level=thresholds.mask_level, hidden=hidden)
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


def _detector_masks(
    job: ScanJob, request: ClipRequest, stored: Checkpoint, sampled: BoolArray, events: list[Event]
) -> Iterator[tuple[int, ByteArray]]:
    """Yield each row that gets a mask, with its mask (h, w) in the detector's size and range of values."""
    if job.masked_rows is MaskRows.SAMPLED:
        return zip(np.flatnonzero(sampled).tolist(), _sampled_masks(stored), strict=True)
    assert job.propagation is not None
    assert stored.header.mask_shape is not None
    mask_spans, empty = MaskSpans.of(sampled, events), np.zeros(stored.header.mask_shape, np.uint8)
    before = ((row, empty) for row in range(int(mask_spans.starts[0])))  # the rows before the first sampled row
    return chain(before, job.propagation.every_row(mask_spans, _sampled_masks(stored), request))


class _Enlarger:
    """Converts masks (h, w) on a detector's scale into pixel scores (height, width) uint8 at display size.

    Hidden pixels get the score 0. Propagation repeats the same array for many rows, so the last result is kept and reused.
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


def request_of(job: ScanJob, task: Task, info: VideoInfo) -> ClipRequest:
    """Return a request for the loader to read a video again after all its clips are scored."""
    unit = task.unit
    fps = info.fps if unit.is_frames else None
    return ClipRequest(unit.video, unit.path, fps=fps, regions=job.regions.of(unit.camera))


def hidden_pixels(job: ScanJob, task: Task, info: VideoInfo) -> BoolArray | None:
    """Return (height, width) bool at display size, True for hidden pixels; None if no pixel is hidden."""
    regions = job.regions.of(task.unit.camera)
    return regions.hidden(info.width, info.height) if regions else None


def _sampled_masks(stored: Checkpoint) -> Iterator[ByteArray]:
    """Yield the masks (h, w) of the sampled rows, on the detector's scale.

    The checkpoint is read block by block.
    """
    for block in stored.blocks(masks=True):
        assert block.mask is not None
        yield from (block.mask[row] for row in np.flatnonzero(block.sampled))


def _remove_earlier(job: ScanJob, video: str) -> None:
    """Remove the mask files of an earlier scan that this scan does not replace."""
    if not job.mask_video:
        remove(job.layout.mask_video(video))
    if not job.mask_rle:
        remove(job.layout.mask_rle(video))


def can_rescore(job: ScanJob, unit: WorkUnit, decision: Decision) -> bool:
    """True if a video can be scored from its stored vectors.

    False if the options ask for masks, because masks can't be made from vectors.
    """
    if job.embedder is None or job.force or job.keeps_masks:
        return False
    stored = read_embeddings_metadata(job.layout.embeddings(unit.video))
    key = embedding_key(job, unit)
    return stored is not None and stored.key == key and stored.content == decision.source["content"]


@dataclass(frozen=True)
class _StoredScan:
    """The results of an earlier scan of a video, from which the video can be scored again."""

    info: VideoInfo
    document: EventsDocument
    state: ScanState  # the scan state in `document`
    table: ScoreTable
    metadata: ScoresMetadata
    embeddings: Embeddings  # one vector per sampled row of the table

    @classmethod
    def read(cls, layout: OutputLayout, unit: WorkUnit) -> _StoredScan | None:
        """Read the results of a video; None if a file can't be used."""
        try:
            table, metadata = read_scores(layout.scores(unit.video))
            document = read_events(layout.events(unit.video))
            vectors = read_embeddings(layout.embeddings(unit.video))
            info = VideoInfo.from_json(metadata.video, unit.path, table.pts)
        except (DocumentError, KeyError, TypeError, ValueError):
            return None
        if document.scan is None or not np.array_equal(table.frame_index[table.sampled], vectors.frame_index):
            return None
        return cls(info, document, document.scan, table, metadata, vectors.embeddings)


def rescore(job: ScanJob, unit: WorkUnit, decision: Decision, model: CameraModel | None) -> VideoResult | None:
    """Score a video from its stored vectors, and write its events and scores.

    The caller must have the lock of the video.

    Returns None if a stored file can't be used.

    Raises:
        OutputError: a file can't be written.
    """
    started = time.monotonic()
    assert job.embedder is not None
    stored = _StoredScan.read(job.layout, unit)
    if stored is None:
        return None
    table = stored.table
    raw = job.embedder.score_embeddings(stored.embeddings, model)
    scores = job.detector.finish(RawTrack(stored.info, table.timestamp[table.sampled], raw, model))
    table = replace(table, **score_columns(scores, job.detector.categories, table.sampled))
    duration_s = shown_s(table, stored.metadata.video)
    document = replace(
        timed(stored.document, job.times),
        detector=job.detector.name,
        categories=job.categories,
        own_categories=job.own_categories,
        thresholds=job.rules.of_video(unit.video),
        events=tuple(categorised(job.rules.events(unit.video, table, duration_s=duration_s), table)),
        head=job.rules.head_of(unit.video),
        scan=ScanState(stored.state.status, decision.fingerprint, decision.source),
        generator=f"vadcli {__version__}",
        caveats=job.caveats(model),
        scan_events=None,
    )
    calibration = job.detector.calibration
    metadata = replace(
        stored.metadata,
        version=__version__,
        fingerprint=decision.fingerprint,
        source=decision.source,
        categories=job.categories,
        detector=job.detector.name,
        calibration=calibration.to_json() if calibration else None,
        masks=MaskRows.SAMPLED,
    )
    _write_both(job, document, table, metadata)
    return replace(
        _earlier_result(unit, stored),
        moving_camera=scores.moving_camera,
        seconds=time.monotonic() - started,
        events=len(document.events),
        caveats=document.caveats,
    )


def _earlier_result(unit: WorkUnit, stored: _StoredScan) -> VideoResult:
    """Return the result of the earlier scan: the status of the video, and facts about its frames."""
    extra, partial = stored.metadata.extra, stored.state.status is Status.PARTIAL
    return VideoResult(
        video=unit.video,
        status=stored.state.status,
        stage=str(extra.get("stage", "")) if partial else "",
        reason=str(extra.get("reason", "")) if partial else "",
        camera=unit.camera,
        decoder=str(extra.get("decoder", "")),
        expected_frames=int(stored.metadata.video["frames"]) + int(extra.get("missing", 0)),
        decoded_frames=int(stored.table.decode_ok.sum()),
        note=str(extra.get("note", "")),
    )
