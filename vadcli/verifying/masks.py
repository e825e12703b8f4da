"""`vadcli verify --refine-masks`: refined masks replace the stored masks of confirmed events."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vadcli.engine.refining import Refinement, rows_of, spans_of
from vadcli.errors import DocumentError
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch
from vadcli.store.mask_video import masked_rows
from vadcli.store.masks import MaskFiles, MaskTrack, Spans, refined_spans, rle_rows, rle_threshold
from vadcli.store.scores import read_scores
from vadcli.types import Answer, ByteArray, IndexArray, MaskRows
from vadcli.verifying.asking import VideoJob
from vadcli.verifying.survey import Surveyed
from vadcli.video.loader import ClipRequest


def has_masks(layout: OutputLayout, video: str) -> bool:
    """True if masks of the video are stored."""
    return layout.mask_video(video).exists() or layout.mask_rle(video).exists()


def unrefined_rows(layout: OutputLayout, video: Surveyed) -> IndexArray:
    """Return the rows whose stored masks belong to confirmed events and are not refined yet."""
    confirmed = _confirmed(video)
    if not confirmed or not has_masks(layout, video.video):
        return np.zeros(0, np.int64)
    table, _ = read_scores(layout.scores(video.video))
    masked, done = _rows(layout, video.video).of(table.sampled), refined_spans(layout, video.video)
    return np.setdiff1d(rows_of(masked, confirmed, len(table)), rows_of(masked, done, len(table)))


def refine_stored(layout: OutputLayout, scratch: Scratch, video: Surveyed, job: VideoJob, refinement: Refinement) -> None:
    """Replace the masks of `unrefined_rows` by refined masks. The caller must hold the lock of the video.

    Raises:
        DocumentError: the stored masks cannot be read.
        Interrupted: the run must end; the stored masks stay as they are.
        OutputError: a file cannot be written.
    """
    table, metadata = read_scores(layout.scores(video.video))
    rows, document = unrefined_rows(layout, video), video.document
    as_video, as_rle = layout.mask_video(video.video).exists(), layout.mask_rle(video.video).exists()
    width, height = int(metadata.video["width"]), int(metadata.video["height"])
    kept, fps, level = _rows(layout, video.video), float(metadata.video["fps"]), document.thresholds.mask_level
    files = MaskFiles(
        layout,
        scratch,
        width,
        height,
        fps=fps if kept is MaskRows.EVERY else fps / int(metadata.extra.get("interval", 1)),
        rows=kept,
        threshold=rle_threshold(layout.mask_rle(video.video)) if as_rle else document.thresholds.high,
        as_video=as_video,
        as_rle=as_rle,
        refined=tuple(sorted({*refined_spans(layout, video.video), *_confirmed(video)})),
    )
    request = ClipRequest(
        job.video,
        job.path,
        fps=job.fps,
        spans=spans_of(rows, _confirmed(video), may_seek=job.may_seek),
        regions=job.regions,
    )
    hidden = job.regions.hidden(width, height) if job.regions else None
    masks = _stored(MaskTrack(table, layout), len(table), binary=not as_video)
    files.write(refinement.refined(masks, rows, request, level=level, hidden=hidden), table, level=level)


def _confirmed(video: Surveyed) -> Spans:
    events = video.document.events
    return tuple(
        (one.start_frame, one.end_frame)
        for one in events
        if one.verification is not None and one.verification.answer is Answer.CONFIRMED
    )


def _rows(layout: OutputLayout, video: str) -> MaskRows:
    """Return the rows that have a stored mask."""
    path = layout.mask_video(video)
    return masked_rows(path) if path.exists() else rle_rows(layout.mask_rle(video))


def _stored(track: MaskTrack, frames: int, *, binary: bool) -> Iterator[tuple[int, ByteArray]]:
    """Yield each row with its mask. In masks of run lengths (`binary`), marked pixels get 255, to reach every threshold."""
    for row, mask in track.between(0, frames):
        yield row, (np.minimum(mask, 1) * np.uint8(255) if binary else mask)
    for problem in track.problems:
        raise DocumentError(problem)
