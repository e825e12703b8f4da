"""Loads models with transformers, without advice on stderr and without random tensors."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from vadcli.errors import VadcliError, WeightsError

VERIFY = "find damaged files with `vadcli weights verify`, or fetch or build the folder again"

NOT_WHOLE = "its files are incomplete or belong to another model: fetch the folder again"


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
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
