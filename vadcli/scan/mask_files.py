"""A video's mask files, once it has ended: in one pass over its masks, whichever rows have one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vadcli.events import EventBoxes
from vadcli.outputs.checkpoint import Checkpoint
from vadcli.outputs.mask_rle import MaskRleWriter
from vadcli.outputs.mask_video import MaskVideoWriter, mask_box, upsample_mask
from vadcli.scan.job import ScanJob
from vadcli.scan.propagation import Stretches
from vadcli.scan.results import Columns
from vadcli.scan.task import Task
from vadcli.types import Box, ByteArray, Event, MaskRows, MaskScale, TimeArray, VideoInfo

NO_BOX: Box = (0, 0, 0, 0)


def write_masks(
    job: ScanJob, task: Task, info: VideoInfo, *, stored: Checkpoint, columns: Columns, events: list[Event]
) -> EventBoxes:
    """Write the masks that are wanted, if any, and remove those that an earlier scan left.

    Args:
        job, task, info: the scan and the video.
        stored: its checkpoint, with masks where some are wanted.
        columns: the checkpoint's rows.
        events: between whose sampled rows masks are propagated, where that is wanted.

    Returns:
        The boxes of the rows that have masks.

    Raises:
        OutputError: one can't be written; those before it are in place and are written again by the next run.
        Interrupted: the scan is to end before they are whole; nothing was written.
    """
    if not job.keeps_masks:
        _remove_earlier(job, task.unit.video)
        return columns.boxes()
    masks: Iterator[tuple[int, ByteArray]]
    if job.masked_rows is MaskRows.EVERY:
        masks = _every_row(job, task, info, stored=stored, stretches=Stretches.of(columns.sampled, events))
    else:
        masks = zip(np.flatnonzero(columns.sampled).tolist(), _sampled_masks(stored), strict=True)
    timestamp = info.timestamps(columns.pts)
    with ExitStack() as stack:
        sinks = _sinks(stack, job, task, info, interval=stored.header.interval)
        boxes = _write(masks, sinks, _Enlarger(info, job.detector.mask_scale), columns, timestamp)
    _remove_earlier(job, task.unit.video)
    return EventBoxes(job.masked_rows.of(columns.sampled), np.array(boxes, np.int32).reshape(-1, 4))


@dataclass(frozen=True)
class _Sinks:
    """The files that are written."""

    video: MaskVideoWriter | None
    rle: MaskRleWriter | None


def _sinks(stack: ExitStack, job: ScanJob, task: Task, info: VideoInfo, *, interval: int) -> _Sinks:
    video, rows = task.unit.video, job.masked_rows
    fps = info.fps if rows is MaskRows.EVERY else info.fps / interval

    def temporary(final: Path) -> Path:
        return stack.enter_context(job.scratch.replace(final))

    film = runs = None
    if job.mask_video:
        path = temporary(job.layout.mask_video(video))
        film = stack.enter_context(MaskVideoWriter(path, info.width, info.height, fps=fps, rows=rows))
    if job.mask_rle:
        path = temporary(job.layout.mask_rle(video))
        runs = stack.enter_context(MaskRleWriter(path, video, info.width, info.height, rows=rows))
    return _Sinks(film, runs)


def _write(
    masks: Iterable[tuple[int, ByteArray]], sinks: _Sinks, enlarge: _Enlarger, columns: Columns, timestamp: TimeArray
) -> list[Box]:
    """Write masks of rising rows; their boxes, in the same order."""
    boxes: list[Box] = []
    last, pixels, box = None, None, NO_BOX
    for row, mask in masks:
        if pixels is None or mask is not last:
            last, pixels = mask, enlarge(mask)
            box = mask_box(pixels) or NO_BOX
        if sinks.video:
            sinks.video.write(pixels, float(timestamp[row]))
        if sinks.rle:
            sinks.rle.write(pixels, row, int(columns.pts[row]))
        boxes.append(box)
    return boxes


class _Enlarger:
    """Masks on a detector's scale -> (height, width) uint8 pixel scores at the video's display size."""

    def __init__(self, info: VideoInfo, scale: MaskScale) -> None:
        self._size = info.width, info.height
        self._scores = None if scale is MaskScale.SCORE else scale.pixel_scores()

    def __call__(self, mask: ByteArray) -> ByteArray:
        large = upsample_mask(mask, *self._size)
        return large if self._scores is None else self._scores[large]


def _sampled_masks(stored: Checkpoint) -> Iterator[ByteArray]:
    """The (h, w) masks of the sampled rows, on the detector's scale; one block in memory at a time."""
    for block in stored.blocks(masks=True):
        assert block.mask is not None
        yield from (block.mask[row] for row in np.flatnonzero(block.sampled))


def _every_row(
    job: ScanJob, task: Task, info: VideoInfo, *, stored: Checkpoint, stretches: Stretches
) -> Iterator[tuple[int, ByteArray]]:
    """Every row with its mask; before the first sampled one nothing is known, and masks are empty."""
    assert job.propagation is not None
    assert stored.header.mask_shape is not None
    unit = task.unit
    empty = np.zeros(stored.header.mask_shape, np.uint8)
    yield from ((row, empty) for row in range(int(stretches.starts[0])))
    fps = info.fps if unit.is_frames else None
    yield from job.propagation.every_row(stretches, _sampled_masks(stored), path=unit.path, fps=fps)


def _remove_earlier(job: ScanJob, video: str) -> None:
    """Mask files that this scan doesn't write are an earlier one's, of other scores: nobody is to read them with these."""
    if not job.mask_video:
        job.layout.mask_video(video).unlink(missing_ok=True)
    if not job.mask_rle:
        job.layout.mask_rle(video).unlink(missing_ok=True)
