"""Tests of running batches on a device: smaller batches after memory ran out, order, threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vadcli.detectors.running import MOST_CLIPS, DeviceRunner, batch_for, devices_for, dtype_for
from vadcli.errors import DeviceError

CPU = torch.device("cpu")


class Small:
    """A model whose device has memory for a limited number of clips."""

    def __init__(self, holds: int) -> None:
        self.holds = holds
        self.sizes: list[int] = []

    def __call__(self, clips: Tensor) -> tuple[Tensor, ...]:
        self.sizes.append(len(clips))
        if len(clips) > self.holds:
            raise torch.OutOfMemoryError("out of memory")
        return clips.sum(dim=(1, 2, 3, 4), dtype=torch.float32), clips[:, 0, 0, 0, 0]


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 2, 3, 4, 3), dtype=np.uint8)


@given(st.integers(1, 20), st.integers(1, 20))
def test_every_clip_is_computed_once_and_in_order_however_little_fits(count: int, holds: int) -> None:
    step, clips = Small(holds), frames(count)
    total, first = DeviceRunner(CPU).run(step, clips)
    np.testing.assert_array_equal(total, clips.sum(axis=(1, 2, 3, 4), dtype=np.float32))
    np.testing.assert_array_equal(first, clips[:, 0, 0, 0, 0])
    assert sum(size for size in step.sizes if size <= holds) == count


@pytest.mark.parametrize(("holds", "tried"), [(99, [8]), (3, [8, 4, 2]), (1, [8, 4, 2, 1])])
def test_what_belongs_together_stays_together(holds: int, tried: list[int]) -> None:
    asked: list[int] = []

    def step(film: Tensor, parts: int) -> Tensor:
        asked.append(parts)
        if parts > holds:
            raise torch.OutOfMemoryError("out of memory")
        return film.flatten(1).sum(dim=1, dtype=torch.float32).cumsum(0)

    runner, film = DeviceRunner(CPU), frames(5)
    wanted = film.reshape(5, -1).sum(axis=1, dtype=np.float32).cumsum()
    np.testing.assert_array_equal(runner.run_whole(step, film), wanted)
    runner.run_whole(step, film)
    assert asked == [*tried, tried[-1]]
    runner.reset_limit()
    asked.clear()
    runner.run_whole(step, film)
    assert asked == tried


def test_what_did_not_fit_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    step, runner = Small(3), DeviceRunner(CPU)
    runner.run(step, frames(8))
    assert step.sizes == [8, 4, 2, 2, 2, 2]
    step.sizes.clear()
    runner.run(step, frames(8))
    assert step.sizes == [2, 2, 2, 2]
    step.sizes.clear()
    runner.reset_limit()
    runner.run(step, frames(4))
    assert step.sizes == [4, 2, 2]
    assert "out of memory with 8 clips; continuing with 4" in caplog.text


@pytest.mark.parametrize("words", ["CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", None])
def test_memory_may_run_out_in_the_copy_or_in_a_library_too(words: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, upload = DeviceRunner(CPU), DeviceRunner._upload

    def small(self: DeviceRunner, part: np.ndarray) -> object:
        if len(part) > 2:
            raise torch.OutOfMemoryError("pinned") if words is None else RuntimeError(words)
        return upload(self, part)

    monkeypatch.setattr(DeviceRunner, "_upload", small)
    clips = frames(5)
    total, _ = runner.run(Small(9), clips)
    np.testing.assert_array_equal(total, clips.sum(axis=(1, 2, 3, 4), dtype=np.float32))


def test_another_error_is_not_taken_for_lack_of_memory() -> None:
    def step(clips: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        DeviceRunner(CPU).run(step, frames(4))


def test_one_clip_that_does_not_fit_says_what_to_do() -> None:
    with pytest.raises(DeviceError, match=r"one clip does not fit.*smaller model, more compression"):
        DeviceRunner(CPU).run(Small(0), frames(2))


def test_steps_run_one_after_the_other_whoever_calls() -> None:
    busy, most = 0, 0

    def step(clips: Tensor) -> tuple[Tensor, ...]:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        threading.Event().wait(0.01)
        busy -= 1
        return (clips[:, 0, 0, 0, 0],)

    runner = DeviceRunner(CPU)
    threads = [threading.Thread(target=runner.run, args=(step, frames(2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@given(st.floats(0, 1e12), st.floats(0, 1e10), st.floats(1, 1e10))
def test_a_found_batch_fits_and_one_more_would_not(budget: float, first: float, further: float) -> None:
    clips = batch_for(budget, first=first, further=further)
    assert 1 <= clips <= MOST_CLIPS
    if clips > 1:
        assert first + (clips - 1) * further <= budget * (1 + 1e-9)
    if clips < MOST_CLIPS:
        assert first + clips * further > budget * (1 - 1e-9)


def test_number_formats() -> None:
    assert dtype_for("auto", CPU) is torch.float32
    assert dtype_for("auto", torch.device("cuda")) is torch.float16
    assert dtype_for("bf16", CPU) is torch.bfloat16
    assert devices_for("cpu") == [CPU]
