"""Collects clips into batches, and scores the batches in threads, while the caller reads and writes.

Each pixel is copied once, from the loader's memory into the array of a batch. New memory is slow:
the system clears it page by page, and a clip of eight HD frames has 22 MB. So the array of a scored batch is used again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

import numpy as np

from vadcli.detectors import Detector, Preparer
from vadcli.types import ByteArray, CameraModel, Clip, ClipBatch, ClipScores

if TYPE_CHECKING:
    import torch

    from vadcli.detectors.running import Runner

Ticket = TypeVar("Ticket")

Found = TypeVar("Found")

MOST_CAMERAS = 32
"""A detector keeps its results for this many camera models: the ones that it used last."""

SPARES = 4
"""At most this many pixel arrays are kept for later batches."""


class PerCamera(Generic[Found]):
    """Computes a result from a camera model, and keeps the results for the models that it used last."""

    def __init__(self, make: Callable[[CameraModel | None], Found]) -> None:
        self._make = make
        self._kept: dict[int, tuple[CameraModel | None, Found]] = {}

    def __call__(self, model: CameraModel | None) -> Found:
        """Return what `make` returns for this model."""
        kept = self._kept.pop(id(model), None)
        if kept is None or kept[0] is not model:  # Python may give the id of a deleted object to a new one
            kept = model, self._make(model)
        self._kept[id(model)] = kept
        while len(self._kept) > MOST_CAMERAS:
            del self._kept[next(iter(self._kept))]
        return kept[1]


class Worker(Protocol):
    """One device with a copy of a model."""

    @property
    def runner(self) -> Runner:
        """Runs the model's steps on the device."""


W = TypeVar("W", bound=Worker)


class Workers(Generic[W]):
    """The workers of a detector, one per device. Each thread that asks gets an idle one.

    Attributes:
        all: the workers; empty before `start`.
    """

    def __init__(self) -> None:
        self.all: tuple[W, ...] = ()
        self._idle: SimpleQueue[W] = SimpleQueue()

    def start(self, workers: Iterable[W]) -> None:
        """Add the workers."""
        self.all = tuple(workers)
        for worker in self.all:
            for _ in range(worker.runner.calls):
                self._idle.put(worker)

    @property
    def parallel(self) -> int:
        """The number of threads that can have a worker at the same time; 1 before `start`."""
        return max(1, sum(worker.runner.calls for worker in self.all))

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices that compute."""
        return tuple(worker.runner.device for worker in self.all)

    @contextmanager
    def idle(self) -> Iterator[W]:
        """Wait until a worker is idle, and reserve it during a `with` block."""
        worker = self._idle.get()
        try:
            yield worker
        finally:
            self._idle.put(worker)


@dataclass
class GatheredBatch(Generic[Ticket]):
    """A batch of up to N clips of one size, with room for all of them.

    Attributes:
        pixels: (N, T, H, W, C) uint8; the clips fill it from the start.
        clips: at most N; the frames of clip i are a view of `pixels[i]`.
        tickets: one object of the caller per clip.
    """

    pixels: ByteArray
    clips: list[Clip]
    tickets: list[Ticket]

    def __len__(self) -> int:
        return len(self.clips)

    def add(self, clip: Clip, ticket: Ticket) -> None:
        """Copy a clip into the batch."""
        row = self.pixels[len(self.clips)]
        row[...] = clip.frames
        self.clips.append(replace(clip, frames=row))
        self.tickets.append(ticket)

    def without(self, dropped: Callable[[Clip], bool]) -> GatheredBatch[Ticket]:
        """Return a batch without the clips for which `dropped` is True. It takes over this batch's memory."""
        kept = GatheredBatch[Ticket](self.pixels, [], [])
        for clip, ticket in zip(self.clips, self.tickets, strict=True):
            if not dropped(clip):
                kept.add(clip, ticket)
        return kept

    def clip_batch(self, models: Callable[[Clip], CameraModel | None] = lambda clip: None) -> ClipBatch:
        """Return the batch as a detector expects it. The pixels are not copied."""
        return ClipBatch.of(self.clips, [models(clip) for clip in self.clips], frames=self.pixels[: len(self.clips)])


class ClipBatcher(Generic[Ticket]):
    """Collects clips into batches; all clips of a batch have the same size.

    Args:
        batch_size: clips per batch, at least 1.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._waiting: dict[tuple[int, ...], GatheredBatch[Ticket]] = {}
        self._spare: deque[ByteArray] = deque(maxlen=SPARES)

    def add(self, clip: Clip, ticket: Ticket) -> GatheredBatch[Ticket] | None:
        """Copy a clip into the batch of its shape; return this batch if it is now full, else None.

        The caller may use the clip's memory again afterwards.
        """
        shape = clip.frames.shape
        if shape not in self._waiting:
            fitting = next((number for number, spare in enumerate(self._spare) if spare.shape[1:] == shape), None)
            if fitting is None:
                pixels = np.empty((self.batch_size, *shape), np.uint8)
            else:
                pixels = self._spare[fitting]
                del self._spare[fitting]
            self._waiting[shape] = GatheredBatch(pixels, [], [])
        self._waiting[shape].add(clip, ticket)
        return self._waiting.pop(shape) if len(self._waiting[shape]) >= self.batch_size else None

    def flush(self, video: str | None = None) -> list[GatheredBatch[Ticket]]:
        """Remove and return the unfinished batches that contain clips of `video`; None means all."""
        wanted = [
            shape for shape, batch in self._waiting.items() if video is None or any(clip.video == video for clip in batch.clips)
        ]
        return [self._waiting.pop(shape) for shape in wanted]

    def give_back(self, batch: GatheredBatch[Ticket]) -> None:
        """Let new clips overwrite the pixels of a batch that nobody needs any more."""
        self._spare.append(batch.pixels)


class _Pool:
    """Threads that call a detector. At the end of a `with` block, waiting calls are cancelled."""

    def __init__(self, detector: Detector, name: str) -> None:
        self._threads = ThreadPoolExecutor(detector.parallel, thread_name_prefix=name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


class ScoringPool(_Pool, Generic[Ticket]):
    """Scores batches in threads and returns the scores in the order of submission. A context manager.

    The pool scores as many batches at the same time as the detector allows. The same number of
    batches may wait, so that a device gets its next batch at once.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector, "score")
        self._detector = detector
        self._running: deque[tuple[Ticket, Future[ClipScores]]] = deque()
        self._most = 2 * detector.parallel

    def submit(self, ticket: Ticket, batch: ClipBatch) -> Iterator[tuple[Ticket, ClipScores | Exception]]:
        """Submit a batch; yield the results that are ready, in the order in which the batches were submitted.

        If more than 2 × `detector.parallel` batches are in the pool, this method waits for the oldest one. It is a generator:
        nothing is submitted before the caller iterates over it.

        A result is a ticket and its scores. If scoring raised an exception, the result has the exception instead of the scores.
        """
        self._running.append((ticket, self._threads.submit(self._detector.score, batch)))
        while self._running and (len(self._running) > self._most or self._running[0][1].done()):
            yield self._first()

    def drain(self) -> Iterator[tuple[Ticket, ClipScores | Exception]]:
        """Wait for all submitted batches; yield their results, as `submit` does."""
        while self._running:
            yield self._first()

    def _first(self) -> tuple[Ticket, ClipScores | Exception]:
        ticket, future = self._running.popleft()
        try:
            return ticket, future.result()
        except Exception as error:
            return ticket, error


class PreparingPool(_Pool):
    """Lets a detector begin the work on clips, in threads, while more clips are read. A context manager.

    It does nothing if the detector is not a `Preparer`. It ignores errors: they occur again when the detector needs the clip.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector, "prepare")
        self._prepare = detector.prepare_clip if isinstance(detector, Preparer) else None
        self._running: list[Future[None]] = []

    def add(self, clip: Clip) -> None:
        """Begin the work on a clip. Its memory must not be used again before `wait` returns."""
        if self._prepare is not None:
            self._running.append(self._threads.submit(self._prepare, clip))

    def wait(self) -> None:
        """Wait until the work on all added clips is done."""
        wait(self._running)
        self._running.clear()
