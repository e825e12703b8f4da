"""Tests of the methods for measuring LAVIDA: stages by name, other configs, numbers of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.detectors.lavida.models import films
from vadcli.detectors.lavida import LavidaOptions
from vadcli.detectors.lavida.detector import LavidaDetector
from vadcli.detectors.running import untimed
from vadcli.types import ClipBatch

STAGES = ["copy", "pixels", "vision tower", "compression", "sam2 encoder", "llm", "projector", "sam2 decoder", "fetch"]


@pytest.fixture(scope="module")
def detector() -> LavidaDetector:
    found = LavidaDetector(
        LavidaOptions(categories="fight, fire", model="preset:lavida-tiny", allow_untrained=True, device="cpu")
    )
    found.prepare()
    return found


def batch(count: int = 2) -> ClipBatch:
    frames = films(count).numpy()
    shape = frames.shape[:2]
    names = tuple(f"{number}.mp4" for number in range(count))
    return ClipBatch(
        frames, np.zeros(shape), np.ones(shape, np.bool_), names, (None,) * count, np.full(count, 4, np.int64)
    )  # fmt: skip


def test_every_stage_runs_inside_the_clock_once_a_batch(detector: LavidaDetector) -> None:
    seen: list[str] = []
    inside: list[str] = []

    @contextmanager
    def clock(stage: str) -> Iterator[None]:
        assert inside == [], "stages don't nest"
        inside.append(stage)
        seen.append(stage)
        yield
        inside.pop()

    plain = detector.score(batch())
    detector.time_stages(clock)
    timed = detector.score(batch())
    detector.time_stages(untimed)
    detector.score(batch())
    assert seen == STAGES
    np.testing.assert_array_equal(timed.raw, plain.raw)


def test_another_ratio_needs_no_other_weights(detector: LavidaDetector) -> None:
    before = detector.config
    length, kept = detector.count_tokens(batch())
    assert kept == max(1, round(before.compression.ratio * length))
    fifth = detector.score(batch()).raw
    detector.reconfigure(replace(before, compression=replace(before.compression, ratio=1.0)))
    assert detector.count_tokens(batch()) == (length, length)
    assert np.abs(detector.score(batch()).raw - fifth).max() > 1e-4
    detector.reconfigure(before)
    np.testing.assert_array_equal(detector.score(batch()).raw, fifth)


def test_single_precision_is_not_rounded_in_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    options = LavidaOptions(model="preset:lavida-tiny", allow_untrained=True, device="cpu", precision="fp32")
    LavidaDetector(options).load(torch.device("cpu"))
    assert not torch.backends.cudnn.allow_tf32
