"""A LAVIDA smaller than the smallest preset, and samples for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vadcli.detectors.lavida import checkpoint
from vadcli.detectors.lavida.checkpoint import load_preset
from vadcli.detectors.lavida.model import Lavida, LavidaConfig, PartSizes, PixelOptions
from vadcli.detectors.lavida.projector import ProjectorOptions
from vadcli.train.samples import ExposureSample
from vadcli.train.state import OPTIONAL_PARTS, PARTS

torch.set_num_threads(1)

PX = 28 * 28
WHOLE = tuple(part for part in PARTS if part not in OPTIONAL_PARTS)
"""All parts of the paper's model that scoring uses."""
PAPER_MIX = {
    "youtube-vos": 0.05,
    "ref-youtube-vos": 0.20,
    "mevis": 0.25,
    "ref-davis": 0.20,
    "cityscapes": 0.05,
    "refcoco": 0.10,
    "ade20k": 0.10,
    "mapillary": 0.05,
}
"""The paper's training mix, by the names of the data sets."""


def small_config() -> LavidaConfig:
    """Return the configuration of lavida-tiny with narrower and fewer layers."""
    tiny = load_preset("lavida-tiny")
    text = {**tiny.parts.mllm["text_config"], "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    tower = {**tiny.parts.mllm["vision_config"], "depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}
    parts = PartSizes(
        mllm={**tiny.parts.mllm, "text_config": text, "vision_config": tower},
        text={**tiny.parts.text, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2},
        sam2={**tiny.parts.sam2, "image_size": 64, "embed_dim": 8, "decoder_heads": 2, "decoder_mlp": 48},
    )
    return replace(
        tiny,
        name="small",
        random_gain=None,
        projector=ProjectorOptions(width=32, queries=4, blocks=2, heads=2, mlp=48, category_heads=2),
        pixels=PixelOptions(min_px=4 * PX, max_px=6 * PX, train_min_px=4 * PX, train_max_px=6 * PX),
        parts=parts,
    )


def small_model(*, seed: int = 0) -> Lavida:
    """Return a model of `small_config` with random weights."""
    return checkpoint.random_model(small_config(), seed=seed)


def sample(
    *categories: str, anomalous: bool = True, frames: int = 2, size: tuple[int, int] = (48, 64), seed: int = 0
) -> ExposureSample:
    """Return a clip of noise. If `anomalous`, it has a bright block as the anomaly."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 120, (frames, *size, 3), dtype=np.uint8)
    masks = np.zeros((frames, *size), np.bool_)
    if anomalous:
        masks[:, 8:32, 8:40] = True
        pictures[masks] = (240, 40, 40)
    return ExposureSample(
        f"clip{seed}", pictures, categories or ("red block", "dog"), masks, np.asarray(masks.any(axis=(1, 2))), anomalous
    )


def scratch_folder(folder: Path) -> Path:
    """Write weights that a training can start from, with all parts of lavida-tiny-scratch."""
    whole = load_preset("lavida-tiny-scratch")
    small = small_config()
    parts = replace(
        small.parts, sam2={**whole.parts.sam2, "embed_dim": 8, "blocks": [1, 1, 1, 1], "width": 64, "image_size": 64}
    )
    projector = replace(small.projector, null_key=True, presence=True)
    checkpoint.save(
        checkpoint.random_model(replace(small, projector=projector, additions=whole.additions, parts=parts), seed=0),
        folder,
        trained=False,
    )
    return folder
