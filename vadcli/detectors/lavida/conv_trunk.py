"""A small convolutional trunk for SAM2's image encoder, in place of Hiera, for a model made from nothing.

Published SAM2 variants for small devices do the same with trunks of their own. Hiera from random weights doesn't learn shapes
from a few thousand clips; convolutions do. Everything behind it, from the feature pyramid on, is SAM2's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModelOutput

GROUPS = 8


class ConvTrunkConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of a ConvTrunk.

    Attributes:
        widths: channels of the four stages, at strides 4, 8, 16 and 32; multiples of 8.
        depths: convolutions a stage, the one that halves the picture included.
    """

    model_type = "vadcli_conv_trunk"

    def __init__(
        self, widths: tuple[int, ...] = (16, 32, 64, 128), depths: tuple[int, ...] = (1, 2, 3, 2), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.widths, self.depths = list(widths), list(depths)
        self.image_size = kwargs.get("image_size")


class ConvTrunk(PreTrainedModel):  # type: ignore[misc]
    """Four stages of 3 × 3 convolutions, all but each stage's first with a bridge over them."""

    config_class = ConvTrunkConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ConvTrunkConfig) -> None:
        super().__init__(config)
        widths = config.widths
        self.stem = Convolution(3, widths[0], stride=2)
        ends = zip([widths[0], *widths[:-1]], widths, config.depths, strict=True)
        self.stages = nn.ModuleList(
            nn.Sequential(Convolution(before, width, stride=2), *(Convolution(width, width) for _ in range(depth - 1)))
            for before, width, depth in ends
        )
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """(N, 3, S, S) -> the stages' outputs, (N, S/4, S/4, C1) to (N, S/32, S/32, C4), channels last as Hiera gives them."""
        states = self.stem(pixel_values)
        outputs = []
        for stage in self.stages:
            states = stage(states)
            outputs.append(states.permute(0, 2, 3, 1))
        return Sam2HieraDetModelOutput(last_hidden_state=outputs[-1], intermediate_hidden_states=tuple(outputs))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Convolution(nn.Module):
    """Convolution, group norm, GELU; what came in is added where it has the same shape."""

    def __init__(self, before: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        self.bridged = stride == 1 and before == width
        self.conv = nn.Conv2d(before, width, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(min(GROUPS, width), width)

    def forward(self, states: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', h / stride, w / stride)."""
        changed: Tensor = nn.functional.gelu(self.norm(self.conv(states)), approximate="tanh")
        return states + changed if self.bridged else changed


AutoConfig.register(ConvTrunkConfig.model_type, ConvTrunkConfig)
AutoModel.register(ConvTrunkConfig, ConvTrunk)
