"""Sends the clips of several videos through one detector, and the scores of each video to its writer.

The clips of a batch have the same size, and may come from several videos. The scores of a clip do not depend on the other clips
of its batch. So the batch size and the number of workers do not change a result.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vadcli.detectors.batching import ClipBatcher, GatheredBatch, ScoringPool
from vadcli.engine.job import ScanJob, Task
from vadcli.engine.results import write_failure
from vadcli.engine.second_pass import Interrupted
from vadcli.engine.writer import VideoWriter
from vadcli.errors import DeviceError, NotFinished, OutputError, ToolError, VideoError, WeightsError
from vadcli.types import ClipScores, Status, VideoResult
from vadcli.video.loader import ClipReady, Finished, Item, Opened
from vadcli.video.sampling import Rows

log = logging.getLogger("vadcli")

MOST_ENDED = 8
"""At most this many videos wait for their last clips to be scored."""


@dataclass(frozen=True)
class ClipsScored:
    """The frames of a video that were scored since its last update."""

    video: str
    frames: int  # number of rows that got a score
    video_s: float  # length of these rows in seconds
    size: float  # size of these rows in bytes; an estimate


Update = ClipsScored | VideoResult


_Batch = GatheredBatch[Rows]


class ScanStream:
    """Sends the loader's items through the detector, and the scores to the writers.

    The last clips of a video are in a batch with clips of the next videos, so that no device waits at the end of a file. The
    video stays open until these clips are scored. At most MOST_ENDED videos stay open in this way.
    """

    def __init__(self, job: ScanJob, *, batch_size: int) -> None:
        self.job = job
        self._batcher = ClipBatcher[Rows](batch_size)
        self._tasks: dict[str, Task] = {}
        self._writers: dict[str, VideoWriter] = {}
        self._broken: dict[str, OutputError | VideoError] = {}
        self._unscored: Counter[str] = Counter()
        self._ended: dict[str, Finished] = {}
        self._settled: deque[VideoResult] = deque()

    def expect(self, found: Task | VideoResult) -> None:
        """Announce a task before its items come, or hand over a result that `run` then yields."""
        if isinstance(found, Task):
            self._tasks[found.unit.video] = found
        else:
            self._settled.append(found)

    def run(self, items: Iterable[Item]) -> Iterator[Update]:
        """Score all items. At the end, suspend every announced video that is not complete.

        Yields:
            ClipsScored, and one result per video that ended.

        Raises:
            DeviceError, WeightsError, ToolError: no video can be scored or read. The scores so far are kept for the next run.
        """
        try:
            with ScoringPool[_Batch](self.job.detector) as pool:
                for item in items:
                    yield from self._results()
                    if item.video in self._tasks:
                        yield from self._take(item, pool)
                yield from self._results()
                for batch in self._batcher.flush():
                    yield from self._score(batch, pool)
                yield from self._store_all(pool.drain())
                yield from self._end_what_is_scored()
        finally:
            self._suspend()

    def _results(self) -> Iterator[VideoResult]:
        while self._settled:
            yield self._settled.popleft()

    def _take(self, item: Item, pool: ScoringPool[_Batch]) -> Iterator[Update]:
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
        """Submit a batch, and store the scores that have come back."""
        if any(clip.video in self._broken for clip in batch.clips):
            self._unscored.subtract(clip.video for clip in batch.clips if clip.video in self._broken)
            batch = batch.without(lambda clip: clip.video in self._broken)
        if len(batch):
            given = batch.clip_batch(lambda clip: self._tasks[clip.video].model)
            yield from self._store_all(pool.submit(batch, given))
        yield from self._end_what_is_scored()  # needed here, too: a batch is not submitted if all its videos are broken

    def _store_all(self, done: Iterable[tuple[_Batch, ClipScores | Exception]]) -> Iterator[Update]:
        for batch, scores in done:
            if isinstance(scores, DeviceError | WeightsError):  # the video is not the cause: the next one would fail, too
                raise scores
            if isinstance(scores, Exception):
                log.debug("the detector failed", exc_info=scores)
                self._broken |= {clip.video: _trouble("score", clip.video, scores) for clip in batch.clips}
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
        """Finish each ended video whose clips are all scored."""
        for video in [video for video in self._ended if not self._unscored[video]]:
            item, task, writer = self._ended.pop(video), self._tasks[video], self._writers.get(video)
            if writer is not None and len(item.rows):
                yield self._progress(writer, item.rows)
            try:
                result = self._result(task, writer, item)
            except OutputError as error:  # the video is not the cause, so its checkpoint is kept and the next run tries again
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
        share = len(rows) / max(1, writer.info.frames)
        unit = writer.task.unit
        return ClipsScored(unit.video, len(rows), share * writer.info.duration_s, share * unit.size)

    def _result(self, task: Task, writer: VideoWriter | None, item: Finished) -> VideoResult:
        """Write the files of an ended video. If this goes wrong, only this video fails."""
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
            return write_failure(self.job, task, _trouble("write", item.video, error), decoder=item.decoder)

    def _forget(self, video: str) -> None:
        del self._tasks[video]
        self._writers.pop(video, None)
        self._broken.pop(video, None)
        self._ended.pop(video, None)
        del self._unscored[video]

    def _suspend(self) -> None:
        for video, task in list(self._tasks.items()):
            writer = self._writers.get(video)
            try:
                writer.suspend() if writer is not None else task.claim.release(delete=False)
            except OutputError as error:
                log.error("%s: the checkpoint can't be written: %s", video, error)
            self._forget(video)


def _trouble(stage: str, video: str, error: Exception) -> VideoError:
    """Return an unexpected error as an error of one video, so that only this video fails."""
    words = " ".join(str(error).split())
    failure = VideoError(f"{video}: {type(error).__name__}: {words}", hint="run with --verbose to see where")
    failure.stage = stage
    return failure
