"""Sends the clips of several videos through one detector, and stores the scores of each video.

The clips of a batch have the same size, and may come from several videos. The scores of a clip do not depend on the other clips
of its batch. So the batch size and the number of workers do not change a result.

Each scored clip is stored in the checkpoint of its video. When all clips of a video are scored, `VideoWriter` writes its files.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vadcli.cutting import categorised
from vadcli.detectors.batching import ClipBatcher, GatheredBatch, ScoringPool
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
from vadcli.engine.second_pass import Interrupted
from vadcli.errors import DeviceError, NotFinished, OutputError, ToolError, VideoError, WeightsError
from vadcli.store.checkpoint import Checkpoint, CheckpointBlock, CheckpointHeader, CheckpointWriter
from vadcli.store.masks import enlarged_box, mask_box, upsample_mask
from vadcli.store.scores import shown_s
from vadcli.types import (
    BoolArray,
    ByteArray,
    Clip,
    ClipScores,
    Embeddings,
    FloatArray,
    RawTrack,
    ScoreTable,
    Status,
    VideoInfo,
    VideoResult,
)
from vadcli.types.text import how_many
from vadcli.video.loader import ClipReady, Finished, Item, Opened
from vadcli.video.sampling import Rows, SamplingPlan

log = logging.getLogger("vadcli")

MOST_ENDED = 8
"""At most this many videos wait for their last clips to be scored."""


@dataclass(frozen=True)
class ClipsScored:
    """An update about a video: how many of its frames were scored since the last update."""

    video: str
    frames: int  # number of rows that got a score
    video_s: float  # length of these rows in seconds
    size: float  # size of these rows in bytes; an estimate


Update = ClipsScored | VideoResult


_Batch = GatheredBatch[Rows]


class ScanStream:
    """Sends the loader's items through the detector, and the scores to the writers.

    The last clips of a video are scored in a batch with clips of the next videos, so that the device always has full batches.
    The video stays open until these clips are scored. The number of videos that stay open in this way is at most MOST_ENDED.
    """

    def __init__(self, job: ScanJob, *, batch_size: int) -> None:
        self.job = job
        self._batcher = ClipBatcher[Rows](batch_size)
        self._tasks: dict[str, Task] = {}  # the videos that have no result yet, by name
        self._writers: dict[str, VideoWriter] = {}  # for each video that was opened
        self._broken: dict[str, OutputError | VideoError] = {}  # the videos that failed, and why
        self._unscored: Counter[str] = Counter()  # number of clips that have no scores yet, by video
        self._ended: dict[str, Finished] = {}  # the videos that were read to the end
        self._results: deque[VideoResult] = deque()  # results of videos that need no scan

    def expect(self, task: Task | VideoResult) -> None:
        """Announce a task. Must be called before `run` gets the first item of this task.

        For a video that needs no scan, pass the result of the video in place of a task, and `run` yields this result.
        """
        if isinstance(task, Task):
            self._tasks[task.unit.video] = task
        else:
            self._results.append(task)

    def run(self, items: Iterable[Item]) -> Iterator[Update]:
        """Score the clips of all items.

        At the end, save the checkpoint of every announced video that is not complete.

        Yields:
            ClipsScored, and one result per video that ended.

        Raises:
            DeviceError, WeightsError, ToolError: no video can be scored or read. The next run continues from the checkpoints.
        """
        try:
            with ScoringPool[_Batch](self.job.detector) as pool:
                for item in items:
                    yield from self._take_results()
                    if item.video in self._tasks:
                        yield from self._take(item, pool)
                yield from self._take_results()
                for batch in self._batcher.flush():
                    yield from self._score(batch, pool)
                yield from self._store_all(pool.drain())
                yield from self._end_what_is_scored()
        finally:
            self._suspend()

    def _take_results(self) -> Iterator[VideoResult]:
        while self._results:
            yield self._results.popleft()

    def _take(self, item: Item, pool: ScoringPool[_Batch]) -> Iterator[Update]:
        """Use one item of the loader: open a writer, add a clip to a batch, or end a video."""
        if isinstance(item, Opened):
            self._writers[item.video] = VideoWriter(self.job, self._tasks[item.video], item.info)
        elif isinstance(item, ClipReady):
            self._unscored[item.video] += 1
            batch = self._batcher.add(item.clip, item.rows)
            if batch is not None:
                yield from self._score(batch, pool)
        elif isinstance(item.error, ToolError):  # the next video would fail, too
            raise item.error
        else:
            self._ended[item.video] = item
            yield from self._end_what_is_scored()
            while len(self._ended) > MOST_ENDED:
                for batch in self._batcher.flush(next(iter(self._ended))):
                    yield from self._score(batch, pool)
                yield from self._store_all(pool.drain())

    def _score(self, batch: _Batch, pool: ScoringPool[_Batch]) -> Iterator[Update]:
        """Give a batch to the detector. Store the scores of earlier batches if they are ready."""
        if any(clip.video in self._broken for clip in batch.clips):
            self._unscored.subtract(clip.video for clip in batch.clips if clip.video in self._broken)
            batch = batch.without(lambda clip: clip.video in self._broken)
        if len(batch):
            clip_batch = batch.clip_batch(lambda clip: self._tasks[clip.video].model)
            yield from self._store_all(pool.submit(batch, clip_batch))
        yield from self._end_what_is_scored()  # `_store_all` is not called if all videos of the batch are broken

    def _store_all(self, done: Iterable[tuple[_Batch, ClipScores | Exception]]) -> Iterator[Update]:
        """Store the scores of batches in the checkpoints of their videos."""
        for batch, scores in done:
            if isinstance(scores, DeviceError | WeightsError):  # the video is not the cause: the next video would fail, too
                raise scores
            if isinstance(scores, Exception):
                log.debug("the detector failed", exc_info=scores)
                self._broken |= {clip.video: _as_video_error("score", clip.video, scores) for clip in batch.clips}
            for row, (clip, rows) in enumerate(zip(batch.clips, batch.tickets, strict=True)):
                self._unscored[clip.video] -= 1
                if isinstance(scores, Exception):
                    continue
                writer = self._writers[clip.video]
                if clip.video not in self._broken:
                    try:
                        mask = None if scores.mask is None else scores.mask[row]
                        embedding = None if scores.embedding is None else scores.embedding[row]
                        writer.add(clip, rows, scores.raw[row], mask, embedding)
                    except OutputError as error:
                        self._broken[clip.video] = error
                yield self._progress(writer, rows)
            self._batcher.give_back(batch)
            yield from self._end_what_is_scored()

    def _end_what_is_scored(self) -> Iterator[Update]:
        """Finish each video that was read to its end and whose clips are all scored."""
        for video in [video for video in self._ended if not self._unscored[video]]:
            item, task, writer = self._ended.pop(video), self._tasks[video], self._writers.get(video)
            if writer is not None and len(item.rows):
                yield self._progress(writer, item.rows)
            try:
                result = self._result(task, writer, item)
            except OutputError as error:  # the video is not at fault, so its checkpoint is kept and the next run tries again
                try:
                    writer.suspend() if writer is not None else task.claim.release(delete=False)
                except OutputError:
                    log.debug("%s: the checkpoint can't be written either", video)
                result = VideoResult(video, Status.FAILED, stage="write", reason=str(error), camera=task.unit.camera)
            except Interrupted:
                continue  # `_suspend` releases this video later
            self._forget(video)
            yield result

    def _progress(self, writer: VideoWriter, rows: Rows) -> ClipsScored:
        """Return a progress update for rows of a video that were just scored."""
        share = len(rows) / max(1, writer.info.frames)
        unit = writer.task.unit
        return ClipsScored(unit.video, len(rows), share * writer.info.duration_s, share * unit.size)

    def _result(self, task: Task, writer: VideoWriter | None, item: Finished) -> VideoResult:
        """Write the files of an ended video and return its result.

        An error of the video becomes a result, too.
        """
        try:
            if item.video in self._broken:
                raise self._broken[item.video]
            if writer is None:
                raise item.error or VideoError(f"{task.unit.path}: could not be opened")
            if isinstance(item.error, NotFinished):
                raise item.error
            return writer.finish(item)
        except (OutputError, Interrupted, ToolError, DeviceError, WeightsError):
            raise
        except VideoError as error:
            return write_failure(self.job, task, error, decoder=item.decoder)
        except Exception as error:
            log.debug("%s: the results can't be made", item.video, exc_info=True)
            return write_failure(self.job, task, _as_video_error("write", item.video, error), decoder=item.decoder)

    def _forget(self, video: str) -> None:
        del self._tasks[video]
        self._writers.pop(video, None)
        self._broken.pop(video, None)
        self._ended.pop(video, None)
        del self._unscored[video]

    def _suspend(self) -> None:
        """Save the checkpoints of all videos that have no result, and release their locks."""
        for video, task in list(self._tasks.items()):
            writer = self._writers.get(video)
            try:
                writer.suspend() if writer is not None else task.claim.release(delete=False)
            except OutputError as error:
                log.error("%s: the checkpoint can't be written: %s", video, error)
            self._forget(video)


def _as_video_error(stage: str, video: str, error: Exception) -> VideoError:
    """Return an unexpected error as an error of one video, so that only this video fails."""
    words = " ".join(str(error).split())
    failure = VideoError(f"{video}: {type(error).__name__}: {words}", hint="run with --verbose to see where")
    failure.stage = stage
    return failure


class VideoWriter:
    """Stores the scores of one video in its checkpoint, and writes the files of the video at the end."""

    def __init__(self, job: ScanJob, task: Task, info: VideoInfo) -> None:
        self.job = job
        self.task = task
        self.info = info
        self.started = time.monotonic()
        self.interval = SamplingPlan.of(job.needs, info).interval
        self._box_level = 0  # the threshold of the boxes in the checkpoint; 0 if it has no boxes
        self._checkpoint: CheckpointWriter | None = None
        self._stored = -1  # the last row in the checkpoint
        self._hidden = hidden_pixels(job, task, info)
        if task.resume:
            self._open(task.resume.header, task.resume)

    def _open(self, header: CheckpointHeader, resume: Checkpoint | None) -> CheckpointWriter:
        """Open a new checkpoint, or continue the checkpoint of an earlier run."""
        self._checkpoint = CheckpointWriter(self.task.claim, header, resume=resume, fsync_every_s=self.job.checkpoint_s)
        self._stored = resume.last_row if resume else -1
        return self._checkpoint

    def add(
        self, clip: Clip, rows: Rows, raw: FloatArray, mask: FloatArray | None, embedding: Embeddings | None = None
    ) -> None:
        """Store a scored clip.

        Args:
            clip: T frames. A frame is stored if it is valid and no earlier clip has stored it.
            rows: the rows after the previous clip, up to the end of this clip.
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
            else:  # the masks are not stored, so `write_masks` can't make the boxes later
                self._box_level = self.job.rules.of_video(self.task.unit.video).mask_level
                lowest = self.job.detector.mask_scale.lowest(self._box_level)
                block.bbox[at] = _boxes(pixels, self.info.width, self.info.height, lowest, self._hidden)
        self._append(block)

    def _append(self, block: CheckpointBlock) -> None:
        """Append those rows that are not in the checkpoint yet.

        A resumed scan may read rows that are already stored.
        """
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
        """Save the checkpoint and release the lock, so that the next run can continue to score the video."""
        if self._checkpoint is not None:
            self._checkpoint.flush(force=True)
        self.task.claim.release(delete=False)

    def finish(self, end: Finished) -> VideoResult:
        """Write all files of the video, or store why it failed. Return the result.

        Raises:
            OutputError: a file can't be written; the checkpoint is kept.
            Interrupted: the scan must end before the masks are complete; the checkpoint is kept.
        """
        if self._checkpoint is not None and len(end.rows):
            header = self._checkpoint.header
            sizes = {"channels": header.channels, "embedding_bytes": header.embedding_bytes}
            self._append(_unsampled(end.rows, mask_shape=header.mask_shape, **sizes))  # the rows after the last clip
        stored = self._checkpoint.stored if self._checkpoint is not None else None
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
        """Return the result of a scored video, without its events. The video is partial if frames are missing."""
        in_file = max(self.info.frames, len(columns.pts))
        decoded, expected = int(columns.decode_ok.sum()), in_file + self.info.missing
        status, stage, reason = Status.DONE, "", ""
        if end.error is not None:
            status, stage, reason = Status.PARTIAL, end.error.stage, str(end.error)
        elif decoded < expected:
            status, stage = Status.PARTIAL, "decode"
            lost = "missing" if decoded == in_file else "lost or damaged"
            reason = f"{expected - decoded} of {how_many(expected, 'frame')} {lost}"
            complaint = first_complaint(end) if decoded < in_file else ""
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
    """Return a checkpoint block in which no row is sampled."""
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
    """Return the boxes (S, 4) around the pixels >= `lowest` of S masks.

    A box is x, y, width, height at display size. A mask without such pixels gets a box of zeros. `hidden` is (height, width),
    True for hidden pixels.
    """
    boxes = np.zeros((len(masks), 4), np.int32)
    for row in np.flatnonzero((masks >= lowest).any(axis=(1, 2))):
        if hidden is None:
            boxes[row] = enlarged_box(masks[row], width, height, lowest) or 0
        else:
            boxes[row] = mask_box(np.where(hidden, np.uint8(0), upsample_mask(masks[row], width, height)), lowest) or 0
    return boxes
