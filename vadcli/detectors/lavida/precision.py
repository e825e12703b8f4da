"""Buffers that keep their number format when a model is narrowed."""

from __future__ import annotations

from torch import Tensor, nn


def restore_precision(model: nn.Module, exact: dict[str, Tensor]) -> None:
    """Put back, as `exact` has them, the buffers of `model` that were cast on their way to another device or dtype.

    The only buffers of Qwen2-VL and SAM2 are frequencies of position encodings. They are multiplied by places and go into a
    sine, so a cast to half precision would move every position: in bf16 by tenths of a radian.
    """
    for name, buffer in list(model.named_buffers()):
        if buffer.dtype != exact[name].dtype:
            owner, _, own = name.rpartition(".")
            setattr(model.get_submodule(owner), own, exact[name].to(buffer.device))
