"""Stores the scores of a video: each clip in the checkpoint, and at the end the video's files."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vadcli.cutting import categorised
from vadcli.engine.job import ScanJob, Task
from vadcli.engine.results import (
    Columns,
    first_complaint,
    hidden_pixels,
    request_of,
    score_columns,
    write_failure,
    write_files,
    write_masks,
    write_vectors,
)
from vadcli.errors import VideoError
from vadcli.store.checkpoint import Checkpoint, CheckpointBlock, CheckpointHeader, CheckpointWriter, read_checkpoint
from vadcli.store.masks import enlarged_box, mask_box, upsample_mask
from vadcli.store.scores import shown_s
from vadcli.types import (
    BoolArray,
    ByteArray,
    Clip,
    Embeddings,
    FloatArray,
    RawTrack,
    ScoreTable,
    Status,
    VideoInfo,
    VideoResult,
)
from vadcli.types.text import how_many
from vadcli.video.loader import Finished
from vadcli.video.sampling import Rows, SamplingPlan


class VideoWriter:
    """Collects the scores of one video and writes them."""

    def __init__(self, job: ScanJob, task: Task, info: VideoInfo) -> None:
        self.job = job
        self.task = task
        self.info = info
        self.started = time.monotonic()
        self.interval = SamplingPlan.of(job.needs, info).interval
        self._box_level = 0
        self._checkpoint: CheckpointWriter | None = None
        self._stored = -1  # the last row in the checkpoint
        self._hidden = hidden_pixels(job, task, info)
        if task.resume:
            self._open(task.resume.header, task.resume)

    def _open(self, header: CheckpointHeader, resume: Checkpoint | None) -> CheckpointWriter:
        self._checkpoint = CheckpointWriter(self.task.claim, header, resume=resume, fsync_every_s=self.job.checkpoint_s)
        self._stored = resume.last_row if resume else -1
        return self._checkpoint

    def add(
        self, clip: Clip, rows: Rows, raw: FloatArray, mask: FloatArray | None, embedding: Embeddings | None = None
    ) -> None:
        """Store a scored clip.

        Args:
            clip: (T,) frames; only the valid ones are stored.
            rows: all rows after those of the previous clip.
            raw: (T, K) raw scores.
            mask: (T, h, w) pixel scores; None if the detector makes no masks.
            embedding: T vectors; None if the detector makes no vectors.

        Raises:
            OutputError: the checkpoint can't be written.
        """
        here = np.flatnonzero(clip.valid & (clip.frame_index >= rows.first))
        at = clip.frame_index[here] - rows.first
        vectors = embedding[here].pack() if embedding is not None and self.job.embedder is not None else None
        block = _unsampled(
            rows,
            channels=raw.shape[1],
            mask_shape=(mask.shape[1], mask.shape[2]) if mask is not None and self.job.keeps_masks else None,
            embedding_bytes=0 if vectors is None else vectors.shape[1],
        )
        block.sampled[at] = True
        block.raw[at] = raw[here]
        if block.embedding is not None and vectors is not None:
            block.embedding[at] = vectors
        if mask is not None:
            pixels = np.rint(mask[here] * 255).astype(np.uint8)
            if block.mask is not None:
                block.mask[at] = pixels
            else:  # otherwise `write_masks` makes the boxes from the masks
                self._box_level = self.job.rules.of_video(self.task.unit.video).mask_level
                lowest = self.job.detector.mask_scale.lowest(self._box_level)
                block.bbox[at] = _boxes(pixels, self.info.width, self.info.height, lowest, self._hidden)
        self._append(block)

    def _append(self, block: CheckpointBlock) -> None:
        """Append the rows that are not in the checkpoint yet; a resumed scan reads the last clip again."""
        checkpoint = self._checkpoint
        if checkpoint is None:
            header = CheckpointHeader(
                fingerprint=self.task.decision.fingerprint,
                interval=self.interval,
                channels=block.raw.shape[1],
                mask_shape=None if block.mask is None else (int(block.mask.shape[1]), int(block.mask.shape[2])),
                video=self.info.to_json(),
                box_level=self._box_level,
                embedding_bytes=0 if block.embedding is None else block.embedding.shape[1],
            )
            checkpoint = self._open(header, None)
        if len(block) and block.frame_index[0] <= self._stored:
            block = block[block.frame_index > self._stored]
        if len(block):
            checkpoint.append(block)
            checkpoint.flush()
            self._stored = int(block.frame_index[-1])

    def suspend(self) -> None:
        """Save the checkpoint and release the lock, so that the next run can continue the video."""
        if self._checkpoint is not None:
            self._checkpoint.flush(force=True)
        self.task.claim.release(delete=False)

    def finish(self, end: Finished) -> VideoResult:
        """Write every file of the video, or the reason why it failed.

        Raises:
            OutputError: a file can't be written; the checkpoint is kept.
            Interrupted: the scan must end before the masks are complete; the checkpoint is kept.
        """
        if self._checkpoint is not None and len(end.rows):
            header = self._checkpoint.header
            sizes = {"channels": header.channels, "embedding_bytes": header.embedding_bytes}
            self._append(_unsampled(end.rows, mask_shape=header.mask_shape, **sizes))  # the rows after the last clip
        stored = read_checkpoint(self.task.claim.path) if self._checkpoint is not None else None
        columns = Columns.read(stored) if stored is not None and stored.rows else None
        if stored is None or columns is None or not columns.sampled.any():
            error = end.error or VideoError(f"{self.task.unit.path}: no frame could be decoded", hint=first_complaint(end))
            return write_failure(self.job, self.task, error, decoder=end.decoder, info=self.info, started=self.started)
        timestamp, sampled = self.info.timestamps(columns.pts), np.flatnonzero(columns.sampled)
        scores = self.job.detector.finish(RawTrack(self.info, timestamp[sampled], columns.raw[sampled], self.task.model))
        rules, unit = self.job.rules, self.task.unit
        table = ScoreTable(
            video=unit.video,
            frame_index=columns.frame_index,
            pts=columns.pts,
            timestamp=timestamp,
            sampled=columns.sampled,
            decode_ok=columns.decode_ok,
            **score_columns(scores, self.job.detector.categories, columns.sampled),
        )
        duration_s = shown_s(table, self.info.to_json())
        write_vectors(self.job, self.task, stored=stored, table=table)  # before the events, because a head reads the vectors
        events = rules.events(unit.video, table, duration_s=duration_s)
        boxes = write_masks(self.job, self.task, self.info, stored=stored, columns=columns, table=table, events=events)
        events = rules.events(unit.video, table, duration_s=duration_s, boxes=boxes)
        if table.category_scores is not None:
            events = categorised(events, table)
        elif self.job.attribution is not None and events:
            plan, request = SamplingPlan.of(self.job.needs, self.info), request_of(self.job, self.task, self.info)
            events = self.job.attribution.fill(events, table, plan, request, frames=self.info.frames)
        result = replace(self._result(end, columns, scores.moving_camera), events=len(events))
        write_files(self.job, self.task, self.info, stored=stored, table=table, events=events, result=result)
        self.task.claim.release(delete=True)
        return result

    def _result(self, end: Finished, columns: Columns, moving_camera: bool | None) -> VideoResult:
        """Return the result of a scored video, without its events. It is partial if frames are missing."""
        there, missing = max(self.info.frames, len(columns.pts)), self.info.missing
        decoded, expected = int(columns.decode_ok.sum()), there + missing
        status, stage, reason = Status.DONE, "", ""
        if end.error is not None:
            status, stage, reason = Status.PARTIAL, end.error.stage, str(end.error)
        elif decoded < expected:
            status, stage = Status.PARTIAL, "decode"
            lost = "missing" if decoded == there else "lost or damaged"
            reason = f"{expected - decoded} of {how_many(expected, 'frame')} {lost}"
            complaint = first_complaint(end) if decoded < there else ""
            reason = "; ".join(filter(None, [reason, self.info.missing_reason, complaint]))
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
            note="; ".join(filter(None, [end.note, self.info.note])),
            caveats=self.job.caveats(self.task.model),
        )


def _unsampled(rows: Rows, *, channels: int, mask_shape: tuple[int, int] | None, embedding_bytes: int) -> CheckpointBlock:
    """Return a block of rows that were not sampled."""
    count = len(rows)
    return CheckpointBlock(
        frame_index=np.arange(rows.first, rows.first + count, dtype=np.int64),
        pts=rows.pts,
        decode_ok=rows.decode_ok,
        sampled=np.zeros(count, np.bool_),
        raw=np.zeros((count, channels), np.float32),
        bbox=np.zeros((count, 4), np.int32),
        mask=np.zeros((count, *mask_shape), np.uint8) if mask_shape else None,
        embedding=np.zeros((count, embedding_bytes), np.uint8) if embedding_bytes else None,
    )


def _boxes(masks: ByteArray, width: int, height: int, lowest: int, hidden: BoolArray | None) -> NDArray[np.int32]:
    """Return boxes (S, 4) around the pixels >= `lowest` of masks: x, y, width, height at display size.

    A mask without such pixels gets a box of zeros.
    """
    boxes = np.zeros((len(masks), 4), np.int32)
    for row in np.flatnonzero((masks >= lowest).any(axis=(1, 2))):
        if hidden is None:
            boxes[row] = enlarged_box(masks[row], width, height, lowest) or 0
        else:
            boxes[row] = mask_box(np.where(hidden, np.uint8(0), upsample_mask(masks[row], width, height)), lowest) or 0
    return boxes
