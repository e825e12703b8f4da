"""Loads models with transformers. Writes no advice to stderr, turns errors into one line, and leaves no tensor random."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator
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
    """Return a model whose tensors were all read from a folder's safetensors, and whether it lacks the optional tensors.

    If tensors are missing, transformers fills them with random numbers and only warns. This function raises an error.

    Args:
        kind: a model class of transformers.
        folder: a transformers folder.
        may_lack: returns the names of tensors of the model that may all be missing together.
        extras_matter: if False, the files may also contain tensors that this model lacks, because they are from a larger model.
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
    _refuse(folder, [f"{name} is missing" for name in sorted(missing)], "tensors are missing")
    wrong = [f"{name} has shape {tuple(found)}, not {tuple(wanted)}" for name, found, wanted in sorted(info["mismatched_keys"])]
    _refuse(folder, wrong, "tensors have the wrong shape")
    if extras_matter:
        strange = [f"{name!r} is not part of this model" for name in sorted(info["unexpected_keys"])]
        _refuse(folder, strange, "tensors are not part of it")
    return model, lacks


def attention_for(device: torch.device, dtype: torch.dtype) -> str:
    """Return FlashAttention if it is installed and can run, otherwise torch's own attention."""
    usable = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and is_flash_attn_2_available()
    return "flash_attention_2" if usable else "sdpa"


def _refuse(folder: Path, faults: Collection[str], what: str) -> None:
    """Raise WeightsError with the first fault and the number of faults, if there are any."""
    if faults:
        count = f" ({len(faults)} {what})" if len(faults) > 1 else ""
        raise WeightsError(f"{folder}: {next(iter(faults))}{count}", hint=NOT_WHOLE)


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
