"""Models with random weights that are large enough to keep a GPU busy, and clips for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tests.detectors.lavida.models import films
from vadcli.detectors.lavida import LavidaOptions, checkpoint
from vadcli.detectors.lavida.checkpoint import load_preset
from vadcli.detectors.lavida.detector import LavidaDetector
from vadcli.detectors.lavida.model import Lavida, LavidaConfig
from vadcli.types import ClipBatch

CATEGORIES = ("fight", "fire")


def mid(**changes: Any) -> LavidaConfig:
    """Return lavida-2b in its real width, with 4 layers per tower, and SAM2 hiera-small at 512 px."""
    config = load_preset("lavida-2b")
    mllm = dict(config.parts.mllm)
    mllm["text_config"] = {**mllm["text_config"], "num_hidden_layers": 4, "vocab_size": 2048}
    mllm["vision_config"] = {**mllm["vision_config"], "depth": 4}
    parts = replace(config.parts, mllm=mllm, sam2={"image_size": 512})
    return replace(config, name="mid", parts=parts, random_gain=1.0, mask_gate="off", **changes)


def with_ratio(config: LavidaConfig, ratio: float) -> LavidaConfig:
    return replace(config, compression=replace(config.compression, ratio=ratio))


def built(config: LavidaConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> Lavida:
    """Return a model whose weights are drawn on the device.

    This is fast, but the weights depend on device and precision.
    """
    return checkpoint.random_model(config, seed=1, device=device, dtype=dtype)


def converted(config: LavidaConfig, device: torch.device, dtype: torch.dtype) -> Lavida:
    """Return a model with weights that do not depend on device and precision: drawn on the CPU in fp32."""
    return checkpoint.random_model(config, seed=1).to(device=device, dtype=dtype)


def tiny_detector(device: torch.device | str, **options: object) -> LavidaDetector:
    given = {"categories": ", ".join(CATEGORIES), "model": "preset:lavida-tiny", "allow_untrained": True, "mask_gate": "off"}
    return LavidaDetector(LavidaOptions(device=str(device), **{**given, **options}))  # type: ignore[arg-type]


def clips(count: int, *, size: tuple[int, int] = (192, 256), seed: int = 0) -> np.ndarray:
    return films(count, size=size, seed=seed).numpy()


def batch_of(frames: np.ndarray) -> ClipBatch:
    count, length = frames.shape[:2]
    names = tuple(f"{number}.mp4" for number in range(count))
    times = np.tile(np.arange(length) / 7.5, (count, 1))
    return ClipBatch(frames, times, np.ones((count, length), np.bool_), names, (None,) * count, np.full(count, 4, np.int64))
