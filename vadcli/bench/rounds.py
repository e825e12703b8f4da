"""Times one round from video files to stored scores, of a scan or of a simple loop.

The loop is the baseline: it decodes in this process and scores one clip at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import av
import numpy as np

from vadcli.bench.usage import BenchVideos
from vadcli.detectors import Detector
from vadcli.detectors.batching import ClipBatcher, GatheredBatch, ScoringPool
from vadcli.errors import DecodeError
from vadcli.store.atomic import Claim
from vadcli.store.checkpoint import CheckpointBlock, CheckpointHeader, CheckpointWriter
from vadcli.types import ByteArray, Clip, ClipBatch, ClipNeeds, ClipScores
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, Finished, Item, Opened

NAIVE_FPS = 25.0
"""Frame rate of files that do not state one."""


def naive_clips(video: str, path: Path, needs: ClipNeeds) -> Iterator[tuple[Clip, float]]:
    """Yield each clip of a video with the video's frame rate; clips do not overlap.

    The last clip repeats its last frame until it is full. Only sampled frames are converted and
    scaled, by the library that decodes them. So the baseline is faster than most such loops.

    Raises:
        DecodeError: the video cannot be read.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            fps = float(stream.average_rate or NAIVE_FPS)
            interval = needs.interval_for(fps)
            frames: list[ByteArray] = []
            number = 0
            for index, frame in enumerate(container.decode(stream)):
                if index % interval:
                    continue
                width, height = needs.size.apply(frame.width, frame.height)
                picture = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
                frames.append(picture.astype(np.uint8, copy=False))
                if len(frames) == needs.frames:
                    yield _clip(video, number, frames, interval, fps), fps
                    frames, number = [], number + 1
            if frames:
                yield _clip(video, number, frames + frames[-1:] * (needs.frames - len(frames)), interval, fps), fps
    except (av.FFmpegError, IndexError) as error:
        raise DecodeError(f"{path}: {error}", hint="name other footage") from error


def _clip(video: str, number: int, frames: list[ByteArray], interval: int, fps: float) -> Clip:
    count = len(frames)
    index = np.arange(number * count, (number + 1) * count, dtype=np.int64) * interval
    return Clip(video, number, np.stack(frames), index, index / fps, np.ones(count, np.bool_), interval)


@dataclass(frozen=True)
class Bound:
    """The end of a round. No clip is taken after this time, or after this number of clips.

    Attributes:
        seconds: time since the start of the round.
        clips: largest number of clips; None for no limit.
    """

    seconds: float
    clips: int | None = None

    def reached(self, clips: int, started: float) -> bool:
        """Return True if the round takes no more clips.

        Args:
            clips: number of clips taken so far.
            started: time.perf_counter() when the round began.
        """
        return time.perf_counter() - started >= self.seconds or (self.clips is not None and clips >= self.clips)


@dataclass(frozen=True)
class Round:
    """The amount of footage that one round scored, and the time that it took.

    Attributes:
        clips: number of clips scored and stored.
        rows: frames in the spans of these clips, sampled or not.
        video_s: seconds of footage.
        seconds: from the first request for a clip to the last stored score.
    """

    clips: int
    rows: int
    video_s: float
    seconds: float


@dataclass
class _Tally:
    clips: int = 0
    rows: int = 0
    video_s: float = 0.0

    def add(self, rows: int, fps: float) -> None:
        self.clips += 1
        self.rows += rows
        self.video_s += rows / fps

    def after(self, seconds: float) -> Round:
        return Round(self.clips, self.rows, self.video_s, seconds)


class ScoreStore:
    """Stores scores and masks in a checkpoint as a scan does, and deletes it on exit.

    Args:
        folder: where the checkpoint is written.
        channels: K, the detector's score channels.
    """

    def __init__(self, folder: Path, *, channels: int) -> None:
        self._channels = channels
        claim = Claim.acquire(folder / "scores.arrows")
        assert claim is not None
        self._claim = claim
        self._writer: CheckpointWriter | None = None
        self._next = 0

    def __enter__(self) -> ScoreStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._claim.release(delete=True)

    def add(self, scores: ClipScores) -> None:
        """Append the scores and masks of a batch of clips, with one row per frame."""
        for row, raw in enumerate(scores.raw):
            count = len(raw)
            mask = None if scores.mask is None else np.rint(scores.mask[row] * 255).astype(np.uint8)
            if self._writer is None:
                shape = None if mask is None else (int(mask.shape[1]), int(mask.shape[2]))
                header = CheckpointHeader(fingerprint="bench", interval=1, channels=self._channels, mask_shape=shape, video={})
                self._writer = CheckpointWriter(self._claim, header)
            index = np.arange(self._next, self._next + count, dtype=np.int64)
            self._next += count
            seen = np.ones(count, np.bool_)
            block = CheckpointBlock(index, index, seen, seen, raw.astype(np.float32), np.zeros((count, 4), np.int32), mask)
            self._writer.append(block)
            self._writer.flush()


def wake(loader: ClipLoader, footage: BenchVideos, workers: int) -> None:
    """Start every decoder process and wait until all are idle.

    Raises:
        VideoError: the warm-up video cannot be read.
    """
    for item in loader.run([ClipRequest(f"warm-up/{number}", footage.warm_up) for number in range(workers)]):
        if isinstance(item, Finished) and item.error is not None:
            raise item.error


def scan_round(
    detector: Detector,
    loader: ClipLoader,
    footage: BenchVideos,
    *,
    batch_size: int,
    bound: Bound,
    store: ScoreStore,
    steady: AbstractContextManager[object] | None = None,
) -> Round:
    """Return one round of a scan: decoder processes, batches across files, scoring in threads.

    Args:
        detector: scores the clips.
        loader: reads the clips.
        footage: the videos to read.
        batch_size: clips per batch.
        bound: the end of the round.
        store: stores the scores.
        steady: a context that measures the time of full speed, from the first scores to the bound.

    Raises:
        VideoError: a video cannot be read.
    """
    tally, started, ahead = _Tally(), time.perf_counter(), [steady or nullcontext()]
    batcher = ClipBatcher[None](batch_size)
    items = cast("Generator[Item, None, None]", loader.run(footage.requests()))
    with closing(items):
        with ScoringPool[GatheredBatch[None]](detector) as pool, ExitStack() as running:
            for batch in _batches(items, tally, batcher, is_over=lambda: bound.reached(tally.clips, started)):
                for done, scores in pool.submit(batch, batch.clip_batch()):
                    _keep(store, scores)
                    batcher.give_back(done)
                    if ahead:
                        running.enter_context(ahead.pop())
            running.close()
            for _, scores in pool.drain():
                _keep(store, scores)
        seconds = time.perf_counter() - started  # measured before the decoders stop, which does not count
    return tally.after(seconds)


def naive_round(detector: Detector, footage: BenchVideos, *, bound: Bound, store: ScoreStore) -> Round:
    """Return one round of the loop: decode, score and store one clip after another."""
    tally, started = _Tally(), time.perf_counter()
    for request in footage.requests():
        for clip, fps in naive_clips(request.video, request.path, detector.needs):
            store.add(detector.score(ClipBatch.of([clip])))
            tally.add(len(clip.frames) * clip.interval, fps)
            if bound.reached(tally.clips, started):
                return tally.after(time.perf_counter() - started)
    raise AssertionError("requests() never ends")


def _batches(
    items: Iterable[Item], tally: _Tally, batcher: ClipBatcher[None], *, is_over: Callable[[], bool]
) -> Iterator[GatheredBatch[None]]:
    """Yield full batches of clips of one frame size; the last batches may be incomplete."""
    fps: dict[str, float] = {}
    for item in items:
        if isinstance(item, Opened):
            fps[item.video] = item.info.fps
        elif isinstance(item, ClipReady):
            batch = batcher.add(item.clip, None)
            tally.add(len(item.rows), fps[item.video])
            if batch is not None:
                yield batch
            if is_over():
                yield from batcher.flush()
                return
        elif item.error is not None:
            raise item.error


def _keep(store: ScoreStore, scores: ClipScores | Exception) -> None:
    if isinstance(scores, Exception):
        raise scores
    store.add(scores)
