"""Stores the vectors of sampled frames. A later scan with other categories scores these vectors without decoding the video."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace

import numpy as np

from vadcli import __version__
from vadcli.cutting import categorised
from vadcli.detectors import Embedder
from vadcli.engine.job import Decision, ScanJob, Task
from vadcli.engine.plan import WorkUnit
from vadcli.engine.results import category_columns, every_row
from vadcli.errors import DocumentError
from vadcli.store.atomic import remove
from vadcli.store.checkpoint import Checkpoint
from vadcli.store.events import ScanState, read_events, write_events
from vadcli.store.footage import timed
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
    NO_REGIONS,
    CameraModel,
    Embeddings,
    MaskRows,
    RawTrack,
    Regions,
    ScoreTable,
    Status,
    VideoInfo,
    VideoResult,
)


def write_vectors(job: ScanJob, task: Task, *, stored: Checkpoint, table: ScoreTable) -> None:
    """Write the vectors of the sampled frames if the options ask for it; otherwise remove the vectors of an earlier scan.

    Raises:
        OutputError: the file can't be written or removed.
    """
    path, embedder = job.layout.embeddings(task.unit.video), job.embedder
    if embedder is None or not stored.header.embedding_bytes:
        old = read_embeddings_metadata(path)
        if isinstance(job.detector, Embedder) or old is None or old.content != task.decision.source["content"]:
            remove(path)  # otherwise `vadcli embed` stored them, and they are still right
        return
    blocks = [block.embedding[block.sampled] for block in stored.blocks(embeddings=True) if block.embedding is not None]
    rows = np.flatnonzero(table.sampled)
    metadata = EmbeddingsMetadata(
        video=task.unit.video,
        camera=task.unit.camera,
        encoder=embedder.encoder_name,
        encoder_key=embedder.encoder_key,
        key=embedding_key(job, job.regions.of(task.unit.camera)),
        content=str(task.decision.source["content"]),
    )
    vectors = StoredEmbeddings(
        metadata, table.frame_index[rows], table.timestamp[rows], Embeddings.unpack(np.concatenate(blocks))
    )
    with job.scratch.replace(path) as temporary:
        write_embeddings(temporary, vectors)


def embedding_key(job: ScanJob, regions: Regions = NO_REGIONS) -> str:
    """Return a hash of all settings that change the stored vectors. The content of the video is not part of it."""
    assert job.embedder is not None
    hidden = [regions.sha256] if regions else []
    parts = [job.embedder.embedding_key, job.identity.needs, job.identity.decoder, job.identity.fps, *hidden]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def can_rescore(job: ScanJob, unit: WorkUnit, decision: Decision) -> bool:
    """True if a video that needs scanning can be scored from stored vectors. This is not possible if masks are needed."""
    if job.embedder is None or job.force or job.keeps_masks:
        return False
    stored = read_embeddings_metadata(job.layout.embeddings(unit.video))
    key = embedding_key(job, job.regions.of(unit.camera))
    return stored is not None and stored.key == key and stored.content == decision.source["content"]


def rescore(job: ScanJob, unit: WorkUnit, decision: Decision, model: CameraModel | None) -> VideoResult | None:
    """Score a video from its stored vectors and write its events and scores. Returns None if a stored file can't be used.

    The caller must hold the claim on the video.

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
    score, logit = every_row(scores.logit, table.sampled)
    own = category_columns(scores, job.detector.categories, table.sampled)
    table = replace(table, score=score, logit=logit, **own)
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
    return _result(
        unit,
        metadata,
        state.status,
        moving=scores.moving_camera,
        decoded=int(table.decode_ok.sum()),
        events=len(events),
        seconds=time.monotonic() - started,
        caveats=document.caveats,
    )


def _result(
    unit: WorkUnit,
    metadata: ScoresMetadata,
    status: Status,
    *,
    moving: bool | None,
    decoded: int,
    events: int,
    seconds: float,
    caveats: tuple[str, ...],
) -> VideoResult:
    """Return the result of a video. If it is partial, the reason comes from the scan that decoded it."""
    partial = status is Status.PARTIAL
    return VideoResult(
        video=unit.video,
        status=status,
        stage=str(metadata.extra.get("stage", "")) if partial else "",
        reason=str(metadata.extra.get("reason", "")) if partial else "",
        camera=unit.camera,
        moving_camera=moving,
        decoder=str(metadata.extra.get("decoder", "")),
        expected_frames=int(metadata.video["frames"]) + int(metadata.extra.get("missing", 0)),
        decoded_frames=decoded,
        seconds=seconds,
        events=events,
        note=str(metadata.extra.get("note", "")),
        caveats=caveats,
    )
