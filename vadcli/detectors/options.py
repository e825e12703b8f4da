"""The options of the detectors `concept` and `ask`, for the command line. This file loads no model."""

from __future__ import annotations

from dataclasses import dataclass

from vadcli import weights
from vadcli.detectors.mllm import CompressionOption, is_mllm
from vadcli.options.groups import AUTO_MODEL, HOW, OUTPUT, DetectorOptions, option

DEFAULT_ENCODER = "siglip2-b32"
DEFAULT_ASK_MODEL = "qwen2-vl-2b"


@dataclass(frozen=True)
class ConceptOptions(DetectorOptions):
    """The options of the detector `concept`."""

    model_option = "encoder"

    encoder: str = option(
        DEFAULT_ENCODER,
        "Image-text encoder of the concept detector: a name of `vadcli weights list`, or a transformers folder.",
        panel=HOW,
        metavar="NAME|DIR",
    )
    keep_embeddings: bool = option(
        True,
        "With the concept detector, store a vector per sampled frame, so that new categories and searches need no decoding.",
        panel=OUTPUT,
    )

    def is_ready(self) -> bool:
        """Return True if the user named an encoder, or if the default encoder is on this machine."""
        return self.encoder != DEFAULT_ENCODER or weights.base_folder(self.encoder) is not None

    @staticmethod
    def encoder_download() -> str:
        """Return the command that downloads the default encoder, with the size of the download."""
        return f"vadcli weights pull {DEFAULT_ENCODER} ({weights.entry(DEFAULT_ENCODER).download_gb:g} GB)"


@dataclass(frozen=True)
class AskOptions(CompressionOption):
    """The options of the detector `ask`. LAVIDA has these options too."""

    @property
    def ask_model(self) -> str:
        """The name of the model that answers: --model, or DEFAULT_ASK_MODEL if --model is `auto`."""
        return DEFAULT_ASK_MODEL if self.model == AUTO_MODEL else self.model

    def is_ready(self) -> bool:
        """Return True if the user named a usable model, or if this machine has the default model and a GPU.

        If the result is True, `--detector auto` can choose `ask`. A GPU is required, because a scan on a CPU would take many
        times as long as the footage lasts.
        """
        if self.model != AUTO_MODEL:
            return is_mllm(self.model)
        if self.device == "cpu" or weights.base_folder(DEFAULT_ASK_MODEL) is None:
            return False
        import torch

        return torch.cuda.is_available()
