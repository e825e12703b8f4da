"""Is there room for a model's weights? Counted before any is drawn: the system's own answer is to kill the process."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import torch

from vadcli.detectors.lavida.checkpoint import random_model
from vadcli.detectors.lavida.config import LavidaConfig, load_preset, preset_names
from vadcli.detectors.lavida.detector import LavidaDetector
from vadcli.detectors.lavida.running import devices_for, dtype_for
from vadcli.errors import DeviceError

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
HALVES = (torch.float16, torch.bfloat16)


def need_memory(detector: LavidaDetector) -> None:
    """Refuse a detector whose drawn weights alone are larger than what is free on one of its devices. Takes under a second.

    Raises:
        DeviceError: they are; the hint names what would fit.
    """
    if detector.folder is not None:
        return
    precision = detector.options.precision
    for device in devices_for(detector.options.device):
        dtype, free = dtype_for(precision, device), free_bytes(device)
        wanted = weights_bytes(detector.config, dtype)
        if wanted <= free:
            continue
        number = str(dtype).removeprefix("torch.")
        message = f"{detector.config.name}: its weights take {_gb(wanted)} in {number}, and {device} has {_gb(free)} free"
        raise DeviceError(message, hint=_what_fits(detector.config, dtype, free))


def weights_bytes(config: LavidaConfig, dtype: torch.dtype) -> int:
    """What a preset's parameters and buffers take; counted on a model without memory."""
    model = random_model(config, device="meta", dtype=dtype)
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; for a CPU the host's, at most what this process's container may have."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = int(psutil.virtual_memory().available)
    for path in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # absent, or `max`
            free = min(free, int(path.read_text()) - int(psutil.Process().memory_info().rss))
    return max(0, free)


def _what_fits(config: LavidaConfig, dtype: torch.dtype, free: int) -> str:
    """The same model in half precision and smaller presets, the largest first, with their sizes."""
    fitting = []
    half = weights_bytes(config, torch.bfloat16)
    if dtype not in HALVES and half <= free:
        fitting.append(f"--precision bf16 ({_gb(half)})")
    sizes = {name: weights_bytes(load_preset(name), dtype) for name in preset_names() if name != config.name}
    smaller = sorted((size, name) for name, size in sizes.items() if size <= free)
    fitting += [f"--model {name} ({_gb(size)})" for size, name in reversed(smaller)]
    return f"what fits: {', '.join(fitting)}" if fitting else "end other programs, or use a machine with more memory"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
