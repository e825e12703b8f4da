"""Loads a model onto a device, and runs it there: copies data while the model computes, and splits too large batches.

The functions import transformers only when they need it, because that takes seconds.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vadcli.errors import DeviceError, VadcliError, WeightsError
from vadcli.types import ByteArray, FloatArray

log = logging.getLogger("vadcli")

VERIFY = "find damaged files with `vadcli weights verify`, or fetch or build the folder again"

NOT_WHOLE = "its files are incomplete or belong to another model: fetch the folder again"
MEMORY_SHARE = 0.85
"""Share of a device's free memory that batches may use."""
MOST_CLIPS = 32
MOST_SPANS = 8
"""Masks are propagated through at most this many spans in parallel."""
CPU_CLIPS = 2


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


def read_whole(
    kind: Any,
    folder: Path,
    *,
    may_lack: Callable[[Any], set[str]] | None = None,
    extras_matter: bool = True,
    **options: Any,
) -> tuple[Any, bool]:
    """Return the model of a folder of safetensors, and True if the optional tensors are missing.

    If other tensors are missing, transformers would fill them with random numbers and only warn.

    Args:
        kind: a model class of transformers.
        folder: a transformers folder.
        may_lack: returns the names of the model's optional tensors. Either all of them are missing or none.
        extras_matter: False if the files may contain more tensors than this model has, because they are from a larger model.
        options: passed on to from_pretrained.

    Raises:
        WeightsError: the files can't be read, or a tensor is missing, is unknown or has the wrong shape.
    """
    with quiet(), as_weights_error(folder):
        model, info = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # tensors of the wrong shape are refused below, by name
            **options,
        )
    missing = set(info["missing_keys"])
    optional = may_lack(model) if may_lack else set()
    lacks = bool(optional) and optional <= missing
    missing -= optional if lacks else set()
    wrong = sorted(info["mismatched_keys"])
    strange = sorted(info["unexpected_keys"]) if extras_matter else []
    faults = {
        "tensors are missing": [f"{name} is missing" for name in sorted(missing)],
        "tensors have the wrong shape": [f"{name} has shape {tuple(own)}, not {tuple(shape)}" for name, own, shape in wrong],
        "tensors are not part of it": [f"{name!r} is not part of this model" for name in strange],
    }
    for what, found in faults.items():
        if found:
            count = f" ({len(found)} {what})" if len(found) > 1 else ""
            raise WeightsError(f"{folder}: {found[0]}{count}", hint=NOT_WHOLE)
    return model, lacks


def attention_for(device: torch.device, dtype: torch.dtype) -> str:
    """Return FlashAttention if it is installed and can run, otherwise torch's own attention."""
    from transformers.utils import is_flash_attn_2_available

    usable = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and is_flash_attn_2_available()
    return "flash_attention_2" if usable else "sdpa"


@contextmanager
def as_weights_error(folder: Path, hint: str = VERIFY) -> Iterator[None]:
    """Turn the libraries' errors for damaged or missing files into a WeightsError of one line."""
    try:
        yield
    except (VadcliError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # libraries raise many types of errors; tokenizers raises a plain Exception
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        words = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{folder}: can't be loaded: {words[:300]}", hint=hint) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars and the advice of transformers off stderr."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


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
