"""The sizes of a SAM2 model, and a small convolutional trunk that can replace Hiera in it.

`sam2_config` makes a transformers config from a few sizes. ConvTrunk is for models whose training starts with random weights:
convolutions learn shapes from a few thousand clips, but Hiera does not. All parts after the trunk, from the feature pyramid
on, are SAM2's own. Some SAM2 variants for small devices also replace only the trunk.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, Sam2VideoConfig
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModelOutput

GROUPS = 8


class ConvTrunkConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of a ConvTrunk.

    Attributes:
        widths: channels of the four stages, at strides 4, 8, 16 and 32; multiples of 8.
        depths: convolutions per stage, including the first, which halves the image.
    """

    model_type = "vadcli_conv_trunk"

    def __init__(
        self, widths: tuple[int, ...] = (16, 32, 64, 128), depths: tuple[int, ...] = (1, 2, 3, 2), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.widths, self.depths = list(widths), list(depths)
        self.image_size = kwargs.get("image_size")


class ConvTrunk(PreTrainedModel):  # type: ignore[misc]
    """Four stages of 3 × 3 convolutions; in each stage, all except the first are residual."""

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
        """Return the outputs of the four stages, (N, S/4, S/4, C1) to (N, S/32, S/32, C4), as in Hiera."""
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
    """A convolution, a group norm and a GELU; residual if input and output have the same shape."""

    def __init__(self, before: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        self.bridged = stride == 1 and before == width
        self.conv = nn.Conv2d(before, width, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(min(GROUPS, width), width)

    def forward(self, states: Tensor) -> Tensor:
        """Apply the layers: (N, C, h, w) -> (N, C', h / stride, w / stride)."""
        changed: Tensor = nn.functional.gelu(self.norm(self.conv(states)), approximate="tanh")
        return states + changed if self.bridged else changed


AutoConfig.register(ConvTrunkConfig.model_type, ConvTrunkConfig)
AutoModel.register(ConvTrunkConfig, ConvTrunk)


Trunk = Literal["hiera", "conv"]
STRIDE_PX = 16  # stride of the embedding F; the stride of the masks is a quarter of this
MEMORY_CHANNELS = 64  # transformers' memory attention always needs 64 channels; it ignores the config


@dataclass(frozen=True)
class Sam2Sizes:
    """The sizes of a SAM2 model; the defaults are those of SAM2.1 hiera-small at 1024 × 1024.

    Attributes:
        image_size: side of the square image in pixels.
        trunk: `hiera` is SAM2's own; `conv` is ConvTrunk. Of the next six sizes, a `conv` trunk uses
            only embed_dim and blocks.
        embed_dim: channels of the first of the four stages; each stage doubles them.
        num_heads: attention heads of the first stage; each stage doubles them.
        blocks: transformer blocks per stage.
        windows: window side per stage, in tokens of that stage.
        global_blocks: indices, over all stages, of the blocks that attend to the whole image.
        background: size of the learned position grid that is stretched over the image.
        width: channels of the FPN, the decoder, the prompts and the memory attention.
        decoder_heads: attention heads of the mask decoder.
        decoder_mlp: hidden channels of the mask decoder's feed-forward layers.
        iou_hidden: hidden channels of the head that predicts a mask's quality.
        memory_channels: channels of a memory; masks can only be propagated if it is 64.
        memory_layers: layers of the memory attention.
        memory_mlp: hidden channels of the memory attention's feed-forward layers.

    Raises:
        ValueError: no model has these sizes.
    """

    image_size: int = 1024
    trunk: Trunk = "hiera"
    embed_dim: int = 96
    num_heads: int = 1
    blocks: tuple[int, ...] = (1, 2, 11, 2)
    windows: tuple[int, ...] = (8, 4, 14, 7)
    global_blocks: tuple[int, ...] = (7, 10, 13)
    background: tuple[int, ...] = (7, 7)
    width: int = 256
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    iou_hidden: int = 256
    memory_channels: int = MEMORY_CHANNELS
    memory_layers: int = 4
    memory_mlp: int = 2048

    def __post_init__(self) -> None:
        _require(self.trunk in get_args(Trunk), f"trunk {self.trunk!r} is not one of {', '.join(get_args(Trunk))}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str):
                continue
            whole = tuple(value) if isinstance(value, list | tuple) else (value,)
            least = 0 if field.name == "global_blocks" else 1
            _require(
                all(type(n) is int and n >= least for n in whole), f"{field.name} {value}: must be whole numbers >= {least}"
            )
            if isinstance(value, list):  # sizes from JSON are lists
                object.__setattr__(self, field.name, whole)
        if self.trunk == "hiera":
            self._check_hiera()
        else:
            _require(len(self.blocks) == 4, f"blocks {self.blocks}: give 4 stages")
            _require(self.embed_dim % 8 == 0, f"embed_dim {self.embed_dim} is not a multiple of 8")
            _require(self.image_size % 32 == 0, f"image_size {self.image_size} is not a multiple of 32")
        heads, memory = self.decoder_heads, self.memory_channels
        _require(self.width % 8 == 0, f"width {self.width} is not a multiple of 8")
        _require(self.width % (2 * heads) == 0, f"width {self.width} is not a multiple of 2 × decoder_heads {heads}")
        _require(memory % 4 == 0, f"memory_channels {memory} is not a multiple of 4")
        _require(self.width % memory == 0, f"width {self.width} is not a multiple of memory_channels {memory}")

    def _check_hiera(self) -> None:
        stages = (len(self.blocks), len(self.windows), len(self.background))
        _require(
            stages == (4, 4, 2),
            f"blocks {self.blocks} and windows {self.windows}: give 4 each; background {self.background}: give 2",
        )
        _require(self.image_size % 32 == 0, f"image_size {self.image_size} is not a multiple of 32")
        tiles = self.image_size // 4 % self.windows[0] == 0
        _require(tiles, f"image_size {self.image_size} is not a multiple of 4 × the first window, {self.windows[0]}")
        for stage in (1, 2, 3):
            first, window = sum(self.blocks[:stage]), self.windows[stage - 1]
            _require(first not in self.global_blocks, f"block {first} is the first of a stage and can't attend globally")
            _require(window % 2 == 0, f"windows {self.windows}: {window} must be even, because the next stage halves it")
        depth = sum(self.blocks)
        within = max(self.global_blocks, default=0) < depth
        _require(within, f"global_blocks {self.global_blocks} must be below {depth}, the number of blocks")
        _require(
            self.embed_dim % self.num_heads == 0, f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}"
        )


def sam2_config(**sizes: Any) -> Sam2VideoConfig:
    """Return a transformers config; the arguments are fields of Sam2Sizes.

    Raises:
        ValueError: no model has these sizes.
        TypeError: Sam2Sizes has no field with this name.
    """
    size = Sam2Sizes(**sizes)
    dims = [size.embed_dim * 2**stage for stage in range(4)]
    grid = size.image_size // STRIDE_PX
    trunk: dict[str, Any] | ConvTrunkConfig
    if size.trunk == "hiera":
        trunk = {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": size.embed_dim,
            "num_attention_heads": size.num_heads,
            "image_size": [size.image_size] * 2,
            "blocks_per_stage": list(size.blocks),
            "embed_dim_per_stage": dims,
            "num_attention_heads_per_stage": [size.num_heads * 2**stage for stage in range(4)],
            "window_size_per_stage": list(size.windows),
            "window_positional_embedding_background_size": list(size.background),
            "global_attention_blocks": list(size.global_blocks),
        }
    else:
        trunk = ConvTrunkConfig(widths=tuple(dims), depths=size.blocks, image_size=[size.image_size] * 2)
    return Sam2VideoConfig(
        vision_config={
            "backbone_config": trunk,
            "backbone_channel_list": dims[::-1],
            "backbone_feature_sizes": [[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
            "fpn_hidden_size": size.width,
        },
        prompt_encoder_config={"hidden_size": size.width, "image_size": size.image_size, "patch_size": STRIDE_PX},
        mask_decoder_config={
            "hidden_size": size.width,
            "mlp_dim": size.decoder_mlp,
            "num_attention_heads": size.decoder_heads,
            "iou_head_hidden_dim": size.iou_hidden,
        },
        image_size=size.image_size,
        memory_attention_hidden_size=size.width,
        memory_attention_num_layers=size.memory_layers,
        memory_attention_feed_forward_hidden_size=size.memory_mlp,
        memory_attention_rope_feat_sizes=[grid, grid],
        memory_encoder_hidden_size=size.width,
        memory_encoder_output_channels=size.memory_channels,
        mask_downsampler_embed_dim=size.width,
        memory_fuser_embed_dim=size.width,
        memory_fuser_intermediate_dim=4 * size.width,
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
