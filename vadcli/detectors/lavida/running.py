"""A model at work on one device: copies beside computing, batches that fit into memory, nothing lost when they don't.

Knows tensors and arrays; knows no file and no category.
"""

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
from vadcli.types import ByteArray

log = logging.getLogger("vadcli")

MEMORY_SHARE = 0.85
"""Of a device's free memory that batches may take."""
MOST_CLIPS = 32
MOST_STRETCHES = 8
"""Stretches of frames that masks are carried through side by side."""
CPU_CLIPS = 2

Step = Callable[[Tensor], tuple[Tensor, ...]]
WholeStep = Callable[[Tensor, int], Tensor]
Clock = Callable[[str], AbstractContextManager[Any]]
"""What a named stage of the work runs inside, so that somebody can time it."""


def untimed(stage: str) -> AbstractContextManager[Any]:
    """The clock that measures nothing."""
    return nullcontext()


class Runner:
    """Runs steps over batches of frames on one device. Any number of threads may call it; steps run one after the other.

    While one thread's batch is computed, another's is copied to the device from pinned memory, on a stream of its own.

    Args:
        device: where.

    Attributes:
        limit: clips that are computed at a time at most.
        stretches: stretches of frames that masks are carried through side by side at most.
        clock: what `copy` and `fetch` run inside: frames to the device, results from it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.limit = MOST_CLIPS
        self.stretches = MOST_STRETCHES
        self.clock: Clock = untimed
        self._lock = threading.Lock()
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, step: Step, frames: ByteArray) -> tuple[np.ndarray, ...]:
        """The step's outputs over (B, …) uint8 frames, as arrays with B rows.

        Where the device runs out of memory the batch is halved, and so are the ones that follow.

        Raises:
            DeviceError: not even one clip fits.
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

    def _run(self, step: Step, frames: ByteArray) -> tuple[np.ndarray, ...]:
        with self.clock("copy"):
            clips, ready = self._upload(frames)
        with self._lock, torch.inference_mode():
            self._await(clips, ready)
            outputs = step(clips)
        with self.clock("fetch"):
            return tuple(output.cpu().numpy() for output in outputs)

    def run_whole(self, step: WholeStep, frames: ByteArray) -> np.ndarray:
        """The step's output over (N, …) uint8 frames that belong together; it is told how many parts to compute at a time.

        Where the device runs out of memory that number is halved, and so it stays.

        Raises:
            DeviceError: not even one part fits.
        """
        while True:
            try:
                return self._run(lambda pixels: (step(pixels, self.stretches),), frames)[0]
            except RuntimeError as error:
                self.stretches = self._halved(self.stretches, "frame", error)

    def reset_limit(self) -> None:
        """Forget that memory once ran out: what is computed from now on may take less of it."""
        self.limit, self.stretches = MOST_CLIPS, MOST_STRETCHES

    def find_batch_size(self, step: Step, clip: ByteArray) -> int:
        """How many clips like `clip`, (T, H, W, 3), fit into the device's free memory; CPU_CLIPS on a CPU."""
        if self.device.type != "cuda":
            return CPU_CLIPS
        one, two = (self._peak(step, np.stack([clip] * count)) for count in (1, 2))
        free, _ = torch.cuda.mem_get_info(self.device)
        return batch_for(free * MEMORY_SHARE, first=one, further=two - one)

    def _peak(self, step: Step, frames: ByteArray) -> int:
        """Bytes that a batch takes over what is there before it."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self.run(step, frames)
        peak = torch.cuda.max_memory_allocated(self.device) - before
        torch.cuda.empty_cache()
        return peak

    def _upload(self, frames: ByteArray) -> tuple[Tensor, torch.cuda.Event | None]:
        clips = torch.from_numpy(frames if frames.flags.writeable else frames.copy())
        if self._copies is None:
            return clips.to(self.device), None
        with torch.cuda.stream(self._copies):
            moved = clips.pin_memory().to(self.device, non_blocking=True)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(self._copies)
        return moved, ready

    def _await(self, clips: Tensor, ready: torch.cuda.Event | None) -> None:
        if ready is not None:
            torch.cuda.current_stream(self.device).wait_event(ready)
            clips.record_stream(torch.cuda.current_stream(self.device))

    def _halved(self, count: int, what: str, error: RuntimeError) -> int:
        """Half of a number that did not fit; raises `error` again where it has another cause."""
        if not is_out_of_memory(error):
            raise error
        if count == 1:
            raise DeviceError(
                f"{self.device}: one {what} does not fit into memory",
                hint="give a lower --compression, --precision fp16, a smaller --model, or free the device",
            ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("%s is out of memory with %d %ss; going on with %d", self.device, count, what, count // 2)
        return count // 2


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device had too little memory: the allocator says so, or a library that asked it for room of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


def batch_for(budget: float, *, first: float, further: float) -> int:
    """Clips that fit into a budget where the first takes `first` bytes and each further one `further`."""
    if further <= 0:
        return MOST_CLIPS
    return int(min(MOST_CLIPS, max(1, 1 + (budget - first) // further)))


def devices_for(name: str) -> list[torch.device]:
    """The devices that `auto`, `cpu`, `cuda` (all of them) or `cuda:N` stand for."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [torch.device(name)]


def dtype_for(precision: str, device: torch.device) -> torch.dtype:
    """The number format that `auto`, `fp16`, `bf16` or `fp32` stands for on a device."""
    if precision == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
