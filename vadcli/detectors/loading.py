"""Loading with transformers: nothing but errors on stderr, and these in one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from vadcli.errors import VadcliError, WeightsError

VERIFY = "find damaged files with `vadcli weights verify`, or fetch or build the folder again"


@contextmanager
def as_weights_error(folder: Path, hint: str = VERIFY) -> Iterator[None]:
    """Turns the libraries' errors for damaged or missing files into a WeightsError of one line."""
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
    """Keeps the progress bars and the advice of transformers off stderr."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
