"""Collects clips into batches, and scores the batches in threads while the caller does other work.

Each pixel is copied once, from the loader's memory into the array of a batch. Allocating a new array is slow: the system clears
its memory page by page, and a clip of eight HD frames has 22 MB. So the array of a scored batch is used again for a later
batch.
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

    from vadcli.detectors.running import DeviceRunner

Ticket = TypeVar("Ticket")

Result = TypeVar("Result")

MOST_CAMERAS = 32
"""A detector keeps its results for the last MOST_CAMERAS camera models that it used."""

SPARES = 4
"""At most this many pixel arrays are kept for later batches."""


class PerCamera(Generic[Result]):
    """A function of a camera model. It keeps the results for the camera models that were used last.

    Args:
        make: computes the result for a camera model.
    """

    def __init__(self, make: Callable[[CameraModel | None], Result]) -> None:
        self._make = make
        self._results: dict[int, tuple[CameraModel | None, Result]] = {}

    def __call__(self, model: CameraModel | None) -> Result:
        """Return the result for this model."""
        entry = self._results.pop(id(model), None)
        if entry is None or entry[0] is not model:  # Python may give the id of a deleted object to a new object
            entry = model, self._make(model)
        self._results[id(model)] = entry  # the last entry is the model that was used last
        while len(self._results) > MOST_CAMERAS:
            del self._results[next(iter(self._results))]
        return entry[1]


class ModelCopy(Protocol):
    """A copy of a model on one device."""

    @property
    def runner(self) -> DeviceRunner:
        """The runner that runs the steps of the model on the device."""


W = TypeVar("W", bound=ModelCopy)


class ModelCopies(Generic[W]):
    """The copies of a detector's model, one per device. Each call of the model first reserves an idle copy.

    Attributes:
        all: the copies; empty before `start`.
    """

    def __init__(self) -> None:
        self.all: tuple[W, ...] = ()
        self._idle: SimpleQueue[W] = SimpleQueue()

    def start(self, copies: Iterable[W]) -> None:
        """Set the copies. At most `runner.calls` threads can reserve the same copy at the same time."""
        self.all = tuple(copies)
        for copy in self.all:
            for _ in range(copy.runner.calls):
                self._idle.put(copy)

    @property
    def parallel(self) -> int:
        """The number of threads that can reserve a copy at the same time; 1 before `start`."""
        return max(1, sum(copy.runner.calls for copy in self.all))

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices of the copies."""
        return tuple(copy.runner.device for copy in self.all)

    @contextmanager
    def idle(self) -> Iterator[W]:
        """Wait for an idle copy, and reserve it until the end of a `with` block."""
        copy = self._idle.get()
        try:
            yield copy
        finally:
            self._idle.put(copy)


@dataclass
class GatheredBatch(Generic[Ticket]):
    """A batch that is being filled. It has memory for N clips of one size.

    Attributes:
        pixels: (N, T, H, W, C) uint8; clip i is stored in `pixels[i]`.
        clips: the clips that were added, at most N. The frames of clip i are a view of `pixels[i]`.
        tickets: one object per clip. The caller chooses this object, to recognise the clip later.
    """

    pixels: ByteArray
    clips: list[Clip]
    tickets: list[Ticket]

    def __len__(self) -> int:
        return len(self.clips)

    def add(self, clip: Clip, ticket: Ticket) -> None:
        """Copy a clip into the batch."""
        frames = self.pixels[len(self.clips)]
        frames[...] = clip.frames
        self.clips.append(replace(clip, frames=frames))
        self.tickets.append(ticket)

    def without(self, dropped: Callable[[Clip], bool]) -> GatheredBatch[Ticket]:
        """Return a batch without the clips for which `dropped` returns True.

        The new batch uses the memory of this batch.
        """
        rest = GatheredBatch[Ticket](self.pixels, [], [])
        for clip, ticket in zip(self.clips, self.tickets, strict=True):
            if not dropped(clip):
                rest.add(clip, ticket)
        return rest

    def clip_batch(self, models: Callable[[Clip], CameraModel | None] = lambda clip: None) -> ClipBatch:
        """Return the batch in the form that a detector expects. The pixels are not copied.

        Args:
            models: returns the camera model of a clip.
        """
        return ClipBatch.of(self.clips, [models(clip) for clip in self.clips], frames=self.pixels[: len(self.clips)])


class ClipBatcher(Generic[Ticket]):
    """Collects clips into batches. All clips of a batch have the same size.

    Args:
        batch_size: clips per batch, at least 1.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._waiting: dict[tuple[int, ...], GatheredBatch[Ticket]] = {}
        self._spare: deque[ByteArray] = deque(maxlen=SPARES)

    def add(self, clip: Clip, ticket: Ticket) -> GatheredBatch[Ticket] | None:
        """Copy a clip into the batch for clips of this shape. Return this batch if it is now full, else None.

        After the call, the caller may use the memory of the clip for other data.
        """
        shape = clip.frames.shape
        if shape not in self._waiting:
            spare = next((number for number, pixels in enumerate(self._spare) if pixels.shape[1:] == shape), None)
            if spare is None:
                pixels = np.empty((self.batch_size, *shape), np.uint8)
            else:
                pixels = self._spare[spare]
                del self._spare[spare]
            self._waiting[shape] = GatheredBatch(pixels, [], [])
        self._waiting[shape].add(clip, ticket)
        return self._waiting.pop(shape) if len(self._waiting[shape]) >= self.batch_size else None

    def flush(self, video: str | None = None) -> list[GatheredBatch[Ticket]]:
        """Remove and return the batches that are not full.

        Args:
            video: return only the batches that contain clips of this video; None means all batches.
        """
        shapes = [
            shape for shape, batch in self._waiting.items() if video is None or any(clip.video == video for clip in batch.clips)
        ]
        return [self._waiting.pop(shape) for shape in shapes]

    def give_back(self, batch: GatheredBatch[Ticket]) -> None:
        """Let later batches use the pixel array of this batch. Afterwards, the caller must not use the batch."""
        self._spare.append(batch.pixels)


class _Pool:
    """Threads that call a detector. When a `with` block ends, calls that have not started are cancelled."""

    def __init__(self, detector: Detector, name: str) -> None:
        self._threads = ThreadPoolExecutor(detector.parallel, thread_name_prefix=name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


class ScoringPool(_Pool, Generic[Ticket]):
    """Scores batches in threads, and returns the scores in the order of the batches. A context manager.

    The pool scores `detector.parallel` batches at the same time. The same number of further batches can wait in the pool, so
    that each device starts its next batch without a pause.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector, "score")
        self._detector = detector
        self._running: deque[tuple[Ticket, Future[ClipScores]]] = deque()
        self._most = 2 * detector.parallel

    def submit(self, ticket: Ticket, batch: ClipBatch) -> Iterator[tuple[Ticket, ClipScores | Exception]]:
        """Submit a batch. Yield the results that are ready, in the order in which the batches were submitted.

        If more than 2 × `detector.parallel` batches are in the pool, this method waits for the oldest batch. The method is a
        generator: the batch is submitted only when the caller starts to iterate.

        A result is a ticket and its scores. If scoring raised an exception, the result has the exception instead of the scores.
        """
        self._running.append((ticket, self._threads.submit(self._detector.score, batch)))
        while self._running and (len(self._running) > self._most or self._running[0][1].done()):
            yield self._first()

    def drain(self) -> Iterator[tuple[Ticket, ClipScores | Exception]]:
        """Wait for all submitted batches. Yield their results, as `submit` does."""
        while self._running:
            yield self._first()

    def _first(self) -> tuple[Ticket, ClipScores | Exception]:
        ticket, future = self._running.popleft()
        try:
            return ticket, future.result()
        except Exception as error:
            return ticket, error


class PreparingPool(_Pool):
    """Lets a detector begin the work on clips while the caller reads more clips. A context manager.

    The work is done in threads. If the detector is not a `Preparer`, the pool does nothing. Errors are ignored, because the
    same errors occur when the detector later fits a model to the clip or scores the clip.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector, "prepare")
        self._prepare = detector.prepare_clip if isinstance(detector, Preparer) else None
        self._running: list[Future[None]] = []

    def add(self, clip: Clip) -> None:
        """Begin the work on a clip. The caller must not change the clip's memory before `wait` returns."""
        if self._prepare is not None:
            self._running.append(self._threads.submit(self._prepare, clip))

    def wait(self) -> None:
        """Wait until the work on all added clips is done."""
        wait(self._running)
        self._running.clear()
