"""The detector `ask`: a public multimodal language model answers yes or no to one question per category.

This file holds the detector's options, which the command line shows without loading a model, and the function that loads one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vadcli.detectors.mllm import CompressionOption, is_mllm
from vadcli.options.groups import AUTO_MODEL

if TYPE_CHECKING:
    from vadcli.detectors.ask.asker import Asker

DEFAULT_ASK_MODEL = "qwen2-vl-2b"


@dataclass(frozen=True)
class AskOptions(CompressionOption):
    """The options of the detector `ask`. It has no options of its own, but shares --compression with LAVIDA."""

    @property
    def ask_model(self) -> str:
        """The name of the model that answers: the value of --model, or DEFAULT_ASK_MODEL if that value is `auto`."""
        return DEFAULT_ASK_MODEL if self.model == AUTO_MODEL else self.model

    def is_ready(self) -> bool:
        """True if the user named a model that can answer, or the default model is installed and the machine has a GPU.

        `--detector auto` then chooses `ask`. Without a GPU, a scan would take many times longer than the footage.
        """
        from vadcli import weights

        if self.model != AUTO_MODEL:
            return is_mllm(self.model)
        if self.device == "cpu" or weights.base_folder(DEFAULT_ASK_MODEL) is None:
            return False
        import torch

        return torch.cuda.is_available()


def load_asker(
    model: str,
    *,
    device: str = "auto",
    precision: str = "auto",
    compression: float | None = None,
    batch_size: int | None = None,
    compile: bool = False,
) -> Asker:
    """Return the model of a name or of a transformers folder. `prepare` reads its weights.

    Raises:
        UsageError: the name or folder does not exist.
        WeightsError: the model is not on this machine, or it is of another kind.
    """
    from vadcli.detectors import keep_compiler_cache

    keep_compiler_cache()
    from vadcli.detectors.ask.qwen import QwenAsker

    return QwenAsker(model, device=device, precision=precision, compression=compression, batch_size=batch_size, compile=compile)
