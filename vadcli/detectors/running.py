"""Runs a model on one device: copies data while the model computes, and splits too large batches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vadcli.errors import DeviceError
from vadcli.types import ByteArray, FloatArray

log = logging.getLogger("vadcli")

MEMORY_SHARE = 0.85
"""Share of a device's free memory that batches may use."""
MOST_CLIPS = 32
MOST_SPANS = 8
"""Masks are propagated through at most this many spans in parallel."""
CPU_CLIPS = 2

Step = Callable[[Tensor], tuple[Tensor, ...]]
WholeStep = Callable[[Tensor, int], Tensor]
Clock = Callable[[str], AbstractContextManager[Any]]
"""A function that gets the name of a stage. The stage runs in the returned context, which can measure its time."""


def untimed(stage: str) -> AbstractContextManager[Any]:
    """Measure nothing: the clock that a `Runner` has at first."""
    return nullcontext()


class Runner:
    """Runs steps on batches of frames on one device.

    Any number of threads may call it, but only one step runs at a time. While a step runs, the batch of
    another thread is copied to the device from pinned memory, on a separate CUDA stream.

    Attributes:
        device: where the steps run.
        limit: the largest number of clips that are computed at a time.
        spans: the largest number of spans through which masks are propagated in parallel.
        calls: how many threads should call it: two for a GPU, because one of them copies frames.
        clock: times the stages `copy` (frames to the device) and `fetch` (results from the device).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.calls = 2 if device.type == "cuda" else 1
        self.limit = MOST_CLIPS
        self.spans = MOST_SPANS
        self.clock: Clock = untimed
        self._lock = threading.Lock()
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, step: Step, frames: ByteArray | FloatArray) -> tuple[np.ndarray, ...]:
        """Return the step's outputs for (B, …) frames or prompts, as arrays with B rows.

        If the device runs out of memory, this batch and all later ones are halved.

        Raises:
            DeviceError: not even one clip fits into memory.
        """
        done: list[tuple[np.ndarray, ...]] = []
        start = 0
        while start < len(frames):
            part = frames[start : start + self.limit]
            try:
                done.append(self._run(step, part))
                start += len(part)
            except RuntimeError as error:
                self.limit = self._halved(len(part), "clip", error)
        return tuple(np.concatenate(parts) for parts in zip(*done, strict=True))

    def _run(self, step: Step, frames: ByteArray | FloatArray) -> tuple[np.ndarray, ...]:
        with self.clock("copy"):
            clips, ready = self._upload(frames)
        with self._lock, torch.inference_mode():
            if ready is not None:
                torch.cuda.current_stream(self.device).wait_event(ready)
                clips.record_stream(torch.cuda.current_stream(self.device))
            outputs = step(clips)
        with self.clock("fetch"):
            return tuple(output.cpu().numpy() for output in outputs)

    def run_whole(self, step: WholeStep, frames: ByteArray) -> np.ndarray:
        """Return the step's output for (N, …) uint8 frames, which are not split.

        The step gets the frames and the number of spans to compute in parallel. If the device runs
        out of memory, that number is halved, also for later calls.

        Raises:
            DeviceError: not even one span fits into memory.
        """
        while True:
            try:
                return self._run(lambda pixels: (step(pixels, self.spans),), frames)[0]
            except RuntimeError as error:
                self.spans = self._halved(self.spans, "frame", error)

    def reset_limit(self) -> None:
        """Reset the limits, for work that may need less memory than the work before."""
        self.limit, self.spans = MOST_CLIPS, MOST_SPANS

    def find_batch_size(self, step: Step, clip: ByteArray) -> int:
        """Return how many clips like `clip`, (T, H, W, 3), fit into memory; always CPU_CLIPS on a CPU."""
        if self.device.type != "cuda":
            return CPU_CLIPS
        needed = []  # bytes that one clip and two clips need
        for count in (1, 2):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.run(step, np.stack([clip] * count))
            needed.append(torch.cuda.max_memory_allocated(self.device) - before)
            torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        return batch_for(free * MEMORY_SHARE, first=needed[0], further=needed[1] - needed[0])

    def _upload(self, frames: ByteArray | FloatArray) -> tuple[Tensor, torch.cuda.Event | None]:
        clips = torch.from_numpy(frames if frames.flags.writeable else frames.copy())
        if self._copies is None:
            return clips.to(self.device), None
        with torch.cuda.stream(self._copies):
            moved = clips.pin_memory().to(self.device, non_blocking=True)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(self._copies)
        return moved, ready

    def _halved(self, count: int, what: str, error: RuntimeError) -> int:
        """Return half of `count` if memory ran out; raise any other error again."""
        # Libraries such as cuBLAS raise a plain RuntimeError when they get no memory.
        if not (isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)):
            raise error
        if count == 1:
            raise DeviceError(
                f"{self.device}: one {what} does not fit into memory",
                hint="lower --compression, use --precision fp16 or a smaller --model, or free device memory",
            ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("%s is out of memory with %d %ss; continuing with %d", self.device, count, what, count // 2)
        return count // 2


def batch_for(budget: float, *, first: float, further: float) -> int:
    """Return how many clips fit into `budget` bytes, from 1 to MOST_CLIPS.

    The first clip needs `first` bytes, and each further clip needs `further` bytes.
    """
    if further <= 0:
        return MOST_CLIPS
    return int(min(MOST_CLIPS, max(1, 1 + (budget - first) // further)))


def devices_for(name: str) -> list[torch.device]:
    """Return the devices of a name: `auto`, `cpu`, `cuda` (all GPUs) or `cuda:N`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [torch.device(name)]


def dtype_for(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a precision (`auto`, `fp16`, `bf16` or `fp32`) on a device."""
    if precision == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
