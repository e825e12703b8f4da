"""Which parts of LAVIDA a training changes, by name, and the low-rank adapters of its language model.

A part that isn't trained asks for no gradients, so nothing of it is recorded: frozen encoders run as under no_grad, and
gradients still reach what is trained behind them, such as the decoder's projections of the high-resolution features.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import nn

from vadcli.detectors.lavida.model import Lavida
from vadcli.errors import UsageError

LORA = "lora"
PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "vision_tower": ("mllm.qwen.model.visual.",),
        "tokens": ("mllm.qwen.model.language_model.embed_tokens.",),
        "lm_head": ("mllm.qwen.lm_head.",),
        "language_model": ("mllm.qwen.model.language_model.",),
        "text": ("text.clip.",),
        "image_encoder": ("masks.sam2.vision_encoder.", "masks.sam2.no_memory_embedding"),
        "mask_decoder": ("masks.sam2.mask_decoder.",),
        # Of the prompt encoder only these two are ever read: LAVIDA's prompt is neither points nor boxes nor a mask.
        "prompt_encoder": (
            "masks.sam2.prompt_encoder.not_a_point_embed.",
            "masks.sam2.prompt_encoder.no_mask_embed.",
        ),
        "projector": ("projector.",),
        "sight": ("mllm.sight.",),
        "pooling": ("mllm.pooling.",),
    }
)
"""Parts and the beginnings of their parameters' names; the first that fits counts. Adapters are a part of their own, `lora`."""
PAPER = (LORA, "tokens", "lm_head", "projector", "mask_decoder", "prompt_encoder")
"""What the paper trains (3.9)."""
ADDITIONS = ("sight", "pooling")
"""What only a model made from nothing may have."""
WHOLE = tuple(part for part in PARTS if part not in ADDITIONS)
"""Everything of the paper that takes part in scoring."""
REST = "rest"
"""Parameters of no part: SAM2's video memory and the prompts that LAVIDA doesn't give."""


def part_of(name: str) -> str:
    """The part that a parameter of Lavida belongs to, by its name."""
    if ".lora_" in name:
        return LORA
    return next((part for part, starts in PARTS.items() if name.startswith(starts)), REST)


def set_up(model: Lavida, trained: Collection[str], *, masks: int, freeze: Collection[str] = ()) -> None:
    """Make a model ready to train: adapters added, everything else frozen, the decoder's choice of mask settled.

    Args:
        model: changed in place; new adapters are drawn from torch's current generator.
        trained: names of parts.
        masks: 3 trains the decoder's three masks as the paper does, which suits a decoder whose single mask is trained already;
            1 trains the single one, and from then on it alone is read.
        freeze: dotted names of modules that stay as they are though their part is trained.

    Raises:
        UsageError: no such part or module, or both `lora` and the whole language model.
    """
    unknown = sorted(set(trained) - {*PARTS, LORA})
    if unknown:
        raise UsageError(f"LAVIDA has no part {unknown[0]!r} to train", hint=f"choose among {', '.join((*PARTS, LORA))}")
    if LORA in trained and "language_model" in trained:
        raise UsageError("lora and language_model can't both be trained", hint="leave one of them out of `train`")
    if LORA in trained:
        add_adapters(model)
    for name, value in model.named_parameters():
        value.requires_grad_(part_of(name) in trained)
    modules = dict(model.named_modules())
    for name in freeze:
        if name not in modules:
            raise UsageError(f"LAVIDA has no module {name!r} to freeze", hint="name one like projector.frame_semantics")
        modules[name].requires_grad_(False)
    if masks == 1:
        use_single_mask(model)


def set_precision(model: Lavida, dtype: torch.dtype) -> None:
    """Keep what is trained in fp32, and the rest of what scoring reads in `dtype`; buffers stay as they are."""
    for name, value in model.named_parameters():
        if value.requires_grad or part_of(name) != REST:
            value.data = value.data.to(torch.float32 if value.requires_grad else dtype)


def add_adapters(model: Lavida) -> None:
    """Give the language model low-rank adapters as its config's `lora` says, drawn from torch's current generator.

    Raises:
        UsageError: peft isn't installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UsageError("low-rank adapters need the peft package", hint="pip install 'vadcli[train]'") from error
    lora = model.config.lora
    rule = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=rf"model\.language_model\..*\.({'|'.join(map(re.escape, lora.targets))})",
    )
    inject_adapter_in_model(rule, model.mllm.qwen)


def use_single_mask(model: Lavida) -> None:
    """Let the decoder's single mask stand, stable or not: right where the other three were never trained."""
    sam2 = model.masks.sam2  # type: ignore[attr-defined]
    sam2.mask_decoder.dynamic_multimask_via_stability = False
    sam2.config.mask_decoder_config.dynamic_multimask_via_stability = False


def compress_by(model: Lavida, ratio: float) -> None:
    """Set the compression that a model is trained and stored with."""
    model.config = replace(model.config, compression=replace(model.config.compression, ratio=ratio))


def checkpoint_activations(model: Lavida) -> None:
    """Let the language model's layers compute their activations again on the way back instead of keeping them."""
    qwen, how = model.mllm.qwen, {"use_reentrant": False}
    if hasattr(qwen, "activation_checkpointing_enable"):  # its name since transformers 5.23
        qwen.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:
        qwen.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What is trained, in the model's order; a tensor that two names share comes once, by the first."""
    yield from ((name, value) for name, value in model.named_parameters() if value.requires_grad)
