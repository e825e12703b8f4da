"""Clips of one size gathered into batches, each pixel copied once: from the loader's memory into the batch's own.

Fresh memory is dear: the system clears it page by page, and a clip of eight HD frames is 22 MB. So a batch's pixels are used
again when its scores are there.

Batches through the detector in threads of their own, so that devices compute while the caller reads and writes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Generic, Self, TypeVar

import numpy as np

from vadcli.detectors import Detector
from vadcli.types import ByteArray, CameraModel, Clip, ClipBatch, ClipScores

Ticket = TypeVar("Ticket")

SPARES = 4
"""Batches' worth of pixels that may wait to be used again."""


@dataclass
class GatheredBatch(Generic[Ticket]):
    """Clips of one size that belong together.

    Attributes:
        pixels: (N, T, H, W, C) uint8, of which the first rows are taken.
        clips: at most N; their frames are rows of `pixels`, in order.
        tickets: one a clip, whatever the caller wants back with it.
    """

    pixels: ByteArray
    clips: list[Clip]
    tickets: list[Ticket]

    def __len__(self) -> int:
        return len(self.clips)

    def add(self, clip: Clip, ticket: Ticket) -> None:
        """Copy a clip in."""
        row = self.pixels[len(self.clips)]
        row[...] = clip.frames
        self.clips.append(replace(clip, frames=row))
        self.tickets.append(ticket)

    def without(self, dropped: Callable[[Clip], bool]) -> GatheredBatch[Ticket]:
        """The clips that are not dropped, moved together; this batch is not to be used any more."""
        kept = GatheredBatch[Ticket](self.pixels, [], [])
        for clip, ticket in zip(self.clips, self.tickets, strict=True):
            if not dropped(clip):
                kept.add(clip, ticket)
        return kept

    def clip_batch(self, models: Callable[[Clip], CameraModel | None] = lambda clip: None) -> ClipBatch:
        """For a detector; the pixels are not copied."""
        return ClipBatch.of(self.clips, [models(clip) for clip in self.clips], frames=self.pixels[: len(self.clips)])


class ClipBatcher(Generic[Ticket]):
    """Gathers clips into batches of one size each.

    Args:
        batch_size: clips a batch, at least 1.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._waiting: dict[tuple[int, ...], GatheredBatch[Ticket]] = {}
        self._spare: deque[ByteArray] = deque(maxlen=SPARES)

    def add(self, clip: Clip, ticket: Ticket) -> GatheredBatch[Ticket] | None:
        """Take a clip, whose memory may be used again afterwards; the full batch where it completes one."""
        shape = clip.frames.shape
        if shape not in self._waiting:
            self._waiting[shape] = GatheredBatch(self._pixels(shape), [], [])
        self._waiting[shape].add(clip, ticket)
        return self._waiting.pop(shape) if len(self._waiting[shape]) >= self.batch_size else None

    def flush(self, video: str | None = None) -> list[GatheredBatch[Ticket]]:
        """The batches that hold clips of a video, or all of them."""
        wanted = [
            shape for shape, batch in self._waiting.items() if video is None or any(clip.video == video for clip in batch.clips)
        ]
        return [self._waiting.pop(shape) for shape in wanted]

    def give_back(self, batch: GatheredBatch[Ticket]) -> None:
        """Say that nobody will look at a batch's pixels any more: others may take their place."""
        self._spare.append(batch.pixels)

    def _pixels(self, shape: tuple[int, ...]) -> ByteArray:
        for spare in self._spare:
            if spare.shape[1:] == shape:
                self._spare = deque((each for each in self._spare if each is not spare), maxlen=SPARES)
                return spare
        return np.empty((self.batch_size, *shape), np.uint8)


class ScoringPool(Generic[Ticket]):
    """Scores batches and gives their scores back in the order in which they were submitted. A context manager.

    As many batches are scored at a time as the detector allows; one more waits for each, so that a device that is done has
    the next one at once. What was submitted is held until it is taken: `submit` gives back what must be taken first.

    Args:
        detector: what scores.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._threads = ThreadPoolExecutor(detector.parallel, thread_name_prefix="score")
        self._running: deque[tuple[Ticket, Future[ClipScores]]] = deque()
        self._most = 2 * detector.parallel

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def submit(self, ticket: Ticket, batch: ClipBatch) -> Iterator[tuple[Ticket, ClipScores | Exception]]:
        """Score a batch some time soon; yields older ones that are done, waiting where too many are on their way."""
        self._running.append((ticket, self._threads.submit(self._detector.score, batch)))
        while self._running and (len(self._running) > self._most or self._running[0][1].done()):
            yield self._first()

    def drain(self) -> Iterator[tuple[Ticket, ClipScores | Exception]]:
        """Wait for everything that is on its way."""
        while self._running:
            yield self._first()

    def _first(self) -> tuple[Ticket, ClipScores | Exception]:
        ticket, future = self._running.popleft()
        try:
            return ticket, future.result()
        except Exception as error:
            return ticket, error
