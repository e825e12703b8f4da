"""Small LAVIDA models with random weights, created once per test process."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from vadcli.detectors.lavida import checkpoint
from vadcli.detectors.lavida.checkpoint import load_preset
from vadcli.detectors.lavida.model import Lavida

PRESET = "lavida-tiny"


@lru_cache
def tiny() -> Lavida:
    """Return lavida-tiny with random weights. Tests share it, so no test may change it."""
    return checkpoint.random_model(load_preset(PRESET), seed=1)


def tiny_folder(folder: Path) -> Path:
    """Return a lavida-tiny folder with random weights."""
    checkpoint.create(PRESET, folder, seed=1)
    return folder


def films(clips: int, frames: int = 8, size: tuple[int, int] = (48, 64), seed: int = 0) -> torch.Tensor:
    """Return clips (B, T, H, W, 3) uint8 with a texture and a moving block."""
    rng = np.random.default_rng(seed)
    height, width = size
    found = np.empty((clips, frames, height, width, 3), np.uint8)
    for clip in range(clips):
        scene = rng.integers(0, 200, (height, width, 3), dtype=np.uint8)
        colour = rng.integers(0, 256, 3)
        for frame in range(frames):
            found[clip, frame] = scene
            x = (4 * frame + 7 * clip) % width
            found[clip, frame, height // 4 : height // 2, x : x + width // 6] = colour
    return torch.from_numpy(found)
