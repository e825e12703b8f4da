"""Batches in threads: order, how many at once, errors as values."""

from __future__ import annotations

import threading

import numpy as np

from tests.fakes import DifferenceDetector
from vadcli.detectors.batching import ScoringPool
from vadcli.types import ClipBatch, ClipScores


def batch(value: int) -> ClipBatch:
    return ClipBatch(
        np.full((1, 2, 4, 4, 1), value, np.uint8),
        np.zeros((1, 2)),
        np.ones((1, 2), np.bool_),
        ("v",),
        (None,),
        np.ones(1, np.int64),
    )


class Gated(DifferenceDetector):
    """Waits for leave; fails on value 3."""

    def __init__(self, parallel: int) -> None:
        super().__init__(fits_camera=False)
        self.parallel = parallel
        self.leave = threading.Event()
        self.busy = self.most = 0
        self.lock = threading.Lock()

    def score(self, batch: ClipBatch) -> ClipScores:
        with self.lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
        self.leave.wait(10)
        with self.lock:
            self.busy -= 1
        if batch.frames[0, 0, 0, 0, 0] == 3:
            raise RuntimeError("three")
        return super().score(batch)


def test_scores_come_back_in_order_and_errors_as_values() -> None:
    detector = Gated(parallel=2)
    detector.leave.set()
    with ScoringPool[int](detector) as pool:
        done = [pair for value in range(6) for pair in pool.submit(value, batch(value))]
        done += list(pool.drain())
    assert [ticket for ticket, _ in done] == list(range(6))
    assert [isinstance(scores, RuntimeError) for _, scores in done] == [value == 3 for value in range(6)]
    brightness = [scores.raw[0, 0, 1] for _, scores in done if isinstance(scores, ClipScores)]
    assert brightness == [0, 1, 2, 4, 5]


def test_no_more_run_at_once_than_the_detector_allows_and_no_more_wait_than_that() -> None:
    detector = Gated(parallel=2)
    with ScoringPool[int](detector) as pool:
        early = [pair for value in (0, 1, 2, 4) for pair in pool.submit(value, batch(value))]
        assert early == []
        detector.leave.set()
        later = [ticket for ticket, _ in pool.submit(5, batch(5))]
        assert later[0] == 0
        rest = [ticket for ticket, _ in pool.drain()]
    assert later + rest == [0, 1, 2, 4, 5]
    assert detector.most == 2


def test_leaving_early_waits_for_what_runs_and_drops_the_rest() -> None:
    detector = Gated(parallel=1)
    with ScoringPool[int](detector) as pool:
        list(pool.submit(0, batch(0)))
        list(pool.submit(1, batch(1)))
        detector.leave.set()
    assert detector.busy == 0
