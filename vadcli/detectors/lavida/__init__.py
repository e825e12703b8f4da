"""LAVIDA: a multimodal language model and SAM2 give one score and one mask per frame.

This file has the options of the detector. Importing this file loads neither a model nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from vadcli.detectors.mllm import CompressionOption, is_mllm
from vadcli.errors import UsageError, WeightsError
from vadcli.options.groups import AUTO_MODEL, DEFAULT_MODEL, HOW, option


@dataclass(frozen=True)
class LoraOptions:
    """The low-rank adapters (LoRA) of the language model.

    When a model is loaded, the adapters are merged into the weights of the language model.

    Attributes:
        rank, alpha, dropout: the fields `r`, `lora_alpha` and `lora_dropout` of PEFT's LoraConfig.
        targets: names of the linear layers that get an adapter.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")


@dataclass(frozen=True)
class LavidaOptions(CompressionOption):
    """The options that only LAVIDA has."""

    mask_gate: str | None = option(
        None,
        "What to do with the mask of a frame in which nothing is found: hard clears it, soft weakens it, off keeps it.",
        panel=HOW,
        choices=("hard", "soft", "off"),
        default_text="the model's value, usually hard",
    )
    drop_static: bool = option(
        False, "Leave out image patches that do not change during a clip: faster, but only useful for fixed cameras.", panel=HOW
    )
    allow_untrained: bool = option(
        False, "Scan even if the model is untrained: parts of it have random weights, and its scores mean nothing.", panel=HOW
    )
    sam2: str = option(
        "transformers", "Implementation of SAM2; both give the same masks.", panel=HOW, choices=("transformers", "package")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # `getattr`, because only a scan has --propagate-masks. The class of a scan's options inherits from this class.
        if self.sam2 == "package" and getattr(self, "propagate_masks", False):
            raise UsageError("--propagate-masks: not supported with --sam2 package", hint="use --sam2 transformers")

    @property
    def lavida_model(self) -> str:
        """The name of the LAVIDA model: the value of --model, or DEFAULT_MODEL if that value is `auto`."""
        return DEFAULT_MODEL if self.model == AUTO_MODEL else self.model

    def is_ready(self) -> bool:
        """Return True if the user named a LAVIDA model, or if the default model is trained.

        If the result is True, `--detector auto` chooses LAVIDA.
        """
        from vadcli import weights

        if self.model != AUTO_MODEL:
            return not is_mllm(self.model)  # such a model is for `ask`
        try:
            return weights.is_trained(weights.locate(self.lavida_model))
        except WeightsError:
            return False
