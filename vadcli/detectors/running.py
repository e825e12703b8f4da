"""Functions that load a transformers model, and `DeviceRunner`, which runs a model on one device.

While the model computes, the next batch is copied to the device. If a batch does not fit into memory, it is split.

The functions import the library `transformers` only when they need it, because the import takes seconds.
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
"""A model computes at most this many clips at a time."""
MOST_SPANS = 8
"""A model propagates masks through at most this many spans in parallel."""
CPU_CLIPS = 2
"""The number of clips per batch for a model on a CPU."""


def devices_for(name: str) -> list[torch.device]:
    """Return the devices for `auto` (all GPUs, or else the CPU), `cpu`, `cuda` (all GPUs) or `cuda:N`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [torch.device(name)]


def dtype_for(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype for `auto` (fp16 on a GPU, fp32 on a CPU), `fp16`, `bf16` or `fp32`."""
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
    """Return the model in a transformers folder, and True if its optional tensors are missing.

    The library `transformers` alone would only warn about a missing tensor, and fill it with random numbers.

    Args:
        kind: a model class of transformers.
        folder: a transformers folder with safetensors.
        may_lack: returns the names of the model's optional tensors. Either all or none of these tensors may be missing.
        extras_matter: False if the files may contain tensors that this model does not have.
        options: more arguments for from_pretrained.

    Raises:
        WeightsError: the files can't be read, or a tensor is missing, is unknown or has the wrong shape.
    """
    with quiet(), as_weights_error(folder):
        model, info = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the error below names the tensors of the wrong shape
            **options,
        )
    missing = set(info["missing_keys"])
    optional = may_lack(model) if may_lack else set()
    lacks_optional = bool(optional) and optional <= missing
    missing -= optional if lacks_optional else set()
    wrong = sorted(info["mismatched_keys"])
    unknown = sorted(info["unexpected_keys"]) if extras_matter else []
    faults = {
        "tensors are missing": [f"{name} is missing" for name in sorted(missing)],
        "tensors have the wrong shape": [
            f"{name} has shape {tuple(found)}, not {tuple(shape)}" for name, found, shape in wrong
        ],
        "tensors are not part of it": [f"{name!r} is not part of this model" for name in unknown],
    }
    for summary, messages in faults.items():
        if messages:
            count = f" ({len(messages)} {summary})" if len(messages) > 1 else ""
            raise WeightsError(f"{folder}: {messages[0]}{count}", hint=NOT_WHOLE)
    return model, lacks_optional


def attention_for(device: torch.device, dtype: torch.dtype) -> str:
    """Return the name of the fastest usable attention.

    It is a name from the library `transformers`, for FlashAttention or for torch's own attention.
    """
    from transformers.utils import is_flash_attn_2_available

    usable = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and is_flash_attn_2_available()
    return "flash_attention_2" if usable else "sdpa"


@contextmanager
def as_weights_error(folder: Path, hint: str = VERIFY) -> Iterator[None]:
    """Turn a library's error about damaged or missing files into a WeightsError of one line."""
    try:
        yield
    except (VadcliError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # libraries raise many types of errors; the library `tokenizers` raises a plain Exception
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):  # the disk is full, so the files are not damaged
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{folder}: can't be loaded: {reason[:300]}", hint=hint) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Stop the library `transformers` from printing progress bars and advice."""
    from transformers.utils import logging as transformers_logging

    level, shows_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shows_bars:
            transformers_logging.enable_progress_bar()


Step = Callable[[Tensor], tuple[Tensor, ...]]
"""Gets frames (B, …) on the device, and returns outputs. Each output has B rows."""
WholeStep = Callable[[Tensor, int], Tensor]
"""Gets frames (N, …) on the device, and the number of spans to compute in parallel. Returns one tensor."""
Clock = Callable[[str], AbstractContextManager[Any]]
"""Gets the name of a stage, and returns a context. The stage runs in this context, which can measure its time."""


def untimed(stage: str) -> AbstractContextManager[Any]:
    """Return a context that does nothing. A new `DeviceRunner` uses this function as its clock."""
    return nullcontext()


class DeviceRunner:
    """Runs steps on batches of frames on one device.

    Any number of threads may call a runner, but only one step runs at a time. While a step runs, the batch of another thread is
    copied to the device from pinned memory, on a separate CUDA stream.

    Attributes:
        device: the device on which the steps run.
        limit: a step gets at most this many clips at a time.
        spans: a step propagates masks through at most this many spans in parallel.
        calls: the number of threads that should call the runner: 1 for a CPU, 2 for a GPU. With a GPU, one thread copies the
            next frames while the other thread computes.
        clock: measures the stages `copy` (frames to the device) and `fetch` (results from the device).
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
        """Run the step on frames or prompts (B, …). Return the outputs as arrays with B rows.

        If the device runs out of memory, the step gets only half as many clips at a time, also in later calls.

        Raises:
            DeviceError: not even one clip fits into memory.
        """
        outputs: list[tuple[np.ndarray, ...]] = []
        start = 0
        while start < len(frames):
            part = frames[start : start + self.limit]
            try:
                outputs.append(self._run(step, part))
                start += len(part)
            except RuntimeError as error:
                self.limit = self._halved(len(part), "clip", error)
        return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))

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
        """Run the step on all frames (N, …) uint8 together, and return the output.

        If the device runs out of memory, the step computes only half as many spans in parallel, also in later calls.

        Raises:
            DeviceError: not even one span fits into memory.
        """
        while True:
            try:
                return self._run(lambda pixels: (step(pixels, self.spans),), frames)[0]
            except RuntimeError as error:
                self.spans = self._halved(self.spans, "frame", error)

    def reset_limit(self) -> None:
        """Allow full batches again. Call this before work that may need less memory."""
        self.limit, self.spans = MOST_CLIPS, MOST_SPANS

    def find_batch_size(self, step: Step, clip: ByteArray) -> int:
        """Return how many clips like `clip` (T, H, W, 3) fit into memory. On a CPU, return CPU_CLIPS."""
        if self.device.type != "cuda":
            return CPU_CLIPS
        needed = []  # the bytes that one clip needs, and the bytes that two clips need
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
        """Start to copy frames to the device. Return the copy, and a CUDA event for the end of the copying."""
        clips = torch.from_numpy(frames if frames.flags.writeable else frames.copy())
        if self._copies is None:
            return clips.to(self.device), None
        with torch.cuda.stream(self._copies):
            on_device = clips.pin_memory().to(self.device, non_blocking=True)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(self._copies)
        return on_device, ready

    def _halved(self, count: int, unit: str, error: RuntimeError) -> int:
        """Return half of `count` if `error` means that the device ran out of memory. Raise other errors."""
        # Libraries such as cuBLAS raise a plain RuntimeError when they get no memory.
        if not (isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)):
            raise error
        if count == 1:
            raise DeviceError(
                f"{self.device}: one {unit} does not fit into memory",
                hint="end other programs that use the device, or use a smaller model, more compression or the precision fp16",
            ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("%s is out of memory with %d %ss; continuing with %d", self.device, count, unit, count // 2)
        return count // 2


def batch_for(budget: float, *, first: float, further: float) -> int:
    """Return how many clips fit into `budget` bytes: at least 1, at most `MOST_CLIPS`.

    Args:
        budget: bytes for all clips.
        first: bytes that the first clip needs.
        further: bytes that each further clip needs.
    """
    if further <= 0:
        return MOST_CLIPS
    return int(min(MOST_CLIPS, max(1, 1 + (budget - first) // further)))
