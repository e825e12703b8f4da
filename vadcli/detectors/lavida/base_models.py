"""The three base models, read from transformers folders: whole, or not at all.

Left to itself, transformers draws at random what a folder's files lack, and says so on stderr alone. Here every tensor that the
model has must be in the files with its size, and every one in the files must be the model's. One thing may be absent: SAM2's
video memory, as a whole, from a checkpoint published for images. Such a model marks single frames and can't propagate masks.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextModel, Qwen2VLForConditionalGeneration, Sam2VideoModel
from transformers.utils import is_accelerate_available
from transformers.utils import logging as transformers_logging

from vadcli.errors import VadcliError, WeightsError

MODELS: Mapping[str, Any] = {"mllm": Qwen2VLForConditionalGeneration, "text": CLIPTextModel, "sam2": Sam2VideoModel}
MEMORY = (
    "mask_downsample",
    "memory_attention",
    "memory_encoder",
    "memory_temporal_positional_encoding",
    "no_memory_positional_encoding",
    "no_object_pointer",
    "object_pointer_proj",
    "occlusion_spatial_embedding_parameter",
    "temporal_positional_encoding_projection_layer",
)
"""Parts of Sam2VideoModel that only propagation uses."""
NOT_WHOLE = "its files are incomplete or belong to another model: fetch the folder anew"


def read_model(part: str, folder: Path, *, extras_matter: bool = True, **options: Any) -> Any:
    """A base model with every tensor from its files.

    Args:
        part: mllm, text or sam2.
        folder: a transformers folder.
        extras_matter: False takes one part of a larger model out of its files.
        options: for from_pretrained.

    Raises:
        WeightsError: the files can't be read, or lack a tensor, hold one of another size or one that is not the model's.
    """
    with quiet(), as_weights_error(folder):
        model, info = MODELS[part].from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **options,
        )
    missing = set(info["missing_keys"])
    if part == "sam2":
        memory = memory_names(model)
        model.has_memory = not memory <= missing
        missing -= memory if not model.has_memory else set()
    _refuse(folder, [f"{name} is missing" for name in sorted(missing)], "tensors are missing")
    wrong = [
        f"{name} is {tuple(found)} where {tuple(wanted)} is wanted" for name, found, wanted in sorted(info["mismatched_keys"])
    ]
    _refuse(folder, wrong, "tensors are of another size")
    if extras_matter:
        strange = [f"{name!r} is no part of this model" for name in sorted(info["unexpected_keys"])]
        _refuse(folder, strange, "tensors are not its own")
    return model


def check_model(part: str, folder: Path) -> None:
    """Hold a folder's files against its configuration. No tensor is read where accelerate is installed.

    Raises:
        WeightsError: as `read_model`.
    """
    options: dict[str, Any] = {"device_map": "meta"} if is_accelerate_available() else {}
    read_model(part, folder, dtype="auto", **options)


def memory_names(sam2: Any) -> set[str]:
    """The tensors of a Sam2VideoModel that only propagation uses."""
    return {name for name in sam2.state_dict() if name.split(".", maxsplit=1)[0] in MEMORY}


def _refuse(folder: Path, faults: Collection[str], what: str) -> None:
    """Raise where there are faults: the first, and how many there are."""
    if faults:
        count = f" ({len(faults)} {what})" if len(faults) > 1 else ""
        raise WeightsError(f"{folder}: {next(iter(faults))}{count}", hint=NOT_WHOLE)


@contextmanager
def as_weights_error(folder: Path) -> Iterator[None]:
    """What the libraries raise over damaged or missing files, as one line. They raise anything, tokenizers bare Exceptions."""
    try:
        yield
    except (VadcliError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        words = " ".join(str(error).split()) or type(error).__name__
        hint = "`vadcli weights verify` names a LAVIDA folder's damaged files; else fetch or make it anew"
        raise WeightsError(f"{folder}: can't be loaded: {words[:300]}", hint=hint) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice from transformers on stderr."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
