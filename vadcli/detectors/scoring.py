"""Batches through the detector in threads of their own, so that devices compute while the caller reads and writes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

from vadcli.detectors.base import Detector
from vadcli.types import ClipBatch, ClipScores

Ticket = TypeVar("Ticket")


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
