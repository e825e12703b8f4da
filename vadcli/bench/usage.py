"""What measuring sees of the machine: time and memory of each stage, memory of the family, how busy the device is."""

from __future__ import annotations

import gc
import os
import platform
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from vadcli.video.ffmpeg import families

LOOK_EVERY_S = 0.5


class StageClock:
    """Times the stages that run inside it, waiting for the devices after each, and notes what memory each adds.

    Waiting keeps stages from overlapping, so that what runs under this clock is slower than it would be without.

    Args:
        devices: where the stages compute.

    Attributes:
        seconds: by stage, all its calls.
        added_bytes: by stage, the most device memory that a call of it took over what was there when it began; empty without
            a CUDA device.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._cuda = cuda_of(devices)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.added_bytes: dict[str, int] = defaultdict(int)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time what runs inside."""
        before = self._begin()
        started = time.perf_counter()
        yield
        wait_for(self._cuda)
        self.seconds[stage] += time.perf_counter() - started
        for device, held in before.items():
            added = torch.cuda.max_memory_allocated(device) - held
            self.added_bytes[stage] = max(self.added_bytes[stage], added)

    def _begin(self) -> dict[torch.device, int]:
        wait_for(self._cuda)
        for device in self._cuda:
            torch.cuda.reset_peak_memory_stats(device)
        return {device: torch.cuda.memory_allocated(device) for device in self._cuda}


class HostMemory:
    """The most resident memory that this process and its descendants hold while the context lasts.

    Memory that they share counts once for each of them.

    Attributes:
        peak_bytes: so far.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> HostMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        me = psutil.Process()
        while True:
            self.peak_bytes = max(self.peak_bytes, sum(map(_resident, families([me])[0])))
            if self._over.wait(LOOK_EVERY_S):
                return


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


class BusyMeter:
    """How much of its time a CUDA device spends in kernels and copies, as its own profiler records them. A context manager.

    Args:
        devices: those that work; without a CUDA one among them nothing is recorded.

    Attributes:
        share: mean over the devices, in [0, 1]; None without a CUDA device.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self.share: float | None = None
        self._cuda = cuda_of(devices)

    def __enter__(self) -> BusyMeter:
        if self._cuda:
            self._profile = _profiler()
            self._profile.start()
            wait_for(self._cuda)
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._cuda:
            return
        wait_for(self._cuda)
        elapsed_us = (time.perf_counter() - self._started) * 1e6
        self._profile.stop()
        spans: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for event in self._profile.events() or ():
            if event.device_type.name == "CUDA":
                spans[event.device_index].append((event.time_range.start, event.time_range.end))
        self.share = sum(covered(found) for found in spans.values()) / elapsed_us / len(self._cuda)


def _profiler() -> Any:
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def cuda_of(devices: Sequence[torch.device]) -> list[torch.device]:
    """The CUDA devices among them."""
    return [device for device in devices if device.type == "cuda"]


def wait_for(devices: Sequence[torch.device]) -> None:
    """Let CUDA devices come to the end of their work."""
    for device in cuda_of(devices):
        torch.cuda.synchronize(device)


def held_bytes(devices: Sequence[torch.device]) -> dict[torch.device, int]:
    """Device memory that is in use now; empty without a CUDA device."""
    gc.collect()
    return {device: torch.cuda.memory_allocated(device) for device in cuda_of(devices)}


def forget_peak(devices: Sequence[torch.device]) -> None:
    """Begin a new peak; what the allocator holds for later use doesn't count, and stays."""
    for device in cuda_of(devices):
        torch.cuda.reset_peak_memory_stats(device)


def peak_over(held: dict[torch.device, int]) -> int | None:
    """The most memory that a device has used over what it held; None without a CUDA device."""
    return max((torch.cuda.max_memory_allocated(device) - before for device, before in held.items()), default=None)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(devices: Sequence[torch.device]) -> str:
    """What it is measured on, as far as it matters."""
    names = [torch.cuda.get_device_name(device) for device in cuda_of(devices)]
    where = ", ".join(dict.fromkeys(f"{names.count(name)} x {name}" for name in names)) or "no GPU"
    return f"{where}; {cores()} cores of {_processor()}; Python {platform.python_version()}, torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
