"""Qwen-VL models for `lavida` and `ask`. A model reads a clip once and then answers several prompts.

This file has the option that both detectors share, and finds the folder of a model. The file does not load torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vadcli import weights
from vadcli.errors import UsageError, WeightsError
from vadcli.options.groups import HOW, DetectorOptions, option
from vadcli.types.text import no_folder
from vadcli.weights.files import read_json

MODELS = ("qwen2-vl-2b", "qwen2-vl-7b", "qwen3-vl-2b")
"""Names of public models in the weights manifest."""
FAMILIES = ("qwen2_vl", "qwen3_vl")
"""The values of `model_type` in config.json of the models that can be used."""
CHOOSE = f"choose one of {', '.join(MODELS)}, or a transformers folder of Qwen2-VL or Qwen3-VL"


@dataclass(frozen=True)
class CompressionOption(DetectorOptions):
    """The option for the share of a clip's visual tokens that the language model reads."""

    compression: float | None = option(
        None,
        "Share of the visual tokens that the language model reads, 0-1.",
        panel=HOW,
        metavar="R",
        default_text="1 for ask; for lavida the model's value, usually 0.2",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compression is not None and not 0.0 < self.compression <= 1.0:
            raise UsageError(f"--compression {self.compression:g} is outside 0-1", hint="give a number above 0 and at most 1")


def is_mllm(model: str) -> bool:
    """Return True if `model` is one of MODELS, or a folder whose model belongs to one of FAMILIES."""
    folder = Path(model).expanduser()
    return mllm_family(folder) in FAMILIES if folder.is_dir() else model in MODELS


def mllm_family(folder: Path) -> str:
    """Return the `model_type` in the config.json of a folder; "" if the folder has no such config."""
    try:
        return str(read_json(folder / "config.json").get("model_type", ""))
    except (OSError, ValueError):
        return ""


def mllm_folder(model: str) -> Path:
    """Return the transformers folder of a model.

    Args:
        model: one of MODELS, or a folder.

    Raises:
        UsageError: the name or folder does not exist.
        WeightsError: the model is not on this machine, or the model in the folder does not belong to one of FAMILIES.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not is_mllm(model):
            raise WeightsError(
                f"{path}: not a model that `ask` can use: its config.json is not that of a Qwen-VL model", hint=CHOOSE
            )
        return path
    if os.sep in model or model.startswith("~"):
        raise UsageError(f"--model {model}: {no_folder(path)}", hint=CHOOSE)
    if model not in MODELS:
        raise UsageError(f"--model {model}: not a model that `ask` can use", hint=CHOOSE)
    return weights.pulled_folder(model)
