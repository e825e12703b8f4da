"""The detector `ask`: a public multimodal language model answers yes or no to one question per category.

This file holds the detector's options, which the command line shows without loading a model.
"""

from __future__ import annotations

from dataclasses import dataclass

from vadcli.detectors.mllm import CompressionOption, is_mllm
from vadcli.options.groups import AUTO_MODEL

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
