"""The sizes of a SAM2 model, a small image encoder for SAM2, and Meta's implementation of SAM2.

- `sam2_config` makes a transformers config from a few sizes.
- ConvTrunk is a small convolutional trunk that can replace Hiera, SAM2's own trunk. ConvTrunk is for models whose training
  starts with random weights: convolutions learn shapes from a few thousand clips, but Hiera does not. All parts after the trunk
  are SAM2's own parts.
- RULES translates SAM2's parameter names. The library `transformers` (Sam2VideoModel) uses some names, Meta's package and
  checkpoints use others.
- PackageMasks implements the MaskModel of masks.py with Meta's `sam2` package, which is optional. The weights and the masks
  are the same as with the library `transformers`.
"""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, Sam2VideoConfig
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModelOutput

from vadcli.detectors.lavida.masks import (
    MEMORY_CHANNELS,
    STRIDE_PX,
    ImageFeatures,
    MaskOutput,
    Pyramid,
    SinePosition,
    with_padding_point,
)
from vadcli.detectors.mllm.qwen import ExactBuffers
from vadcli.errors import WeightsError

GROUPS = 8


class ConvTrunkConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of a ConvTrunk.

    Attributes:
        widths: channels of the four stages, at strides 4, 8, 16 and 32; multiples of 8.
        depths: convolutions per stage, including the first convolution, which halves the sides of the image.
    """

    model_type = "vadcli_conv_trunk"

    def __init__(
        self, widths: tuple[int, ...] = (16, 32, 64, 128), depths: tuple[int, ...] = (1, 2, 3, 2), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.widths, self.depths = list(widths), list(depths)
        self.image_size = kwargs.get("image_size")


class ConvTrunk(PreTrainedModel):  # type: ignore[misc]
    """Four stages of 3 × 3 convolutions.

    In each stage, all convolutions after the first add their input to their output.
    """

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
        """Return the outputs of the four stages in Hiera's format: (N, S/4, S/4, C1) to (N, S/32, S/32, C4)."""
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
    """A convolution, a group norm and a GELU.

    The input is added to the output if both have the same shape.
    """

    def __init__(self, before: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        self.bridged = stride == 1 and before == width
        self.conv = nn.Conv2d(before, width, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(min(GROUPS, width), width)

    def forward(self, states: Tensor) -> Tensor:
        """Return the output (N, C', h / stride, w / stride) for `states` (N, C, h, w)."""
        changed: Tensor = nn.functional.gelu(self.norm(self.conv(states)), approximate="tanh")
        return states + changed if self.bridged else changed


AutoConfig.register(ConvTrunkConfig.model_type, ConvTrunkConfig)
AutoModel.register(ConvTrunkConfig, ConvTrunk)


Trunk = Literal["hiera", "conv"]


@dataclass(frozen=True)
class Sam2Sizes:
    """The sizes of a SAM2 model. The defaults are the sizes of SAM2.1 hiera-small at 1024 × 1024 px.

    Attributes:
        image_size: side of the square image in pixels.
        trunk: `hiera` is SAM2's own trunk. `conv` is ConvTrunk, for which num_heads, windows, global_blocks and background have
            no effect.
        embed_dim: channels of the first stage. Each of the three later stages doubles the number.
        num_heads: attention heads of the first stage. Each later stage doubles the number.
        blocks: transformer blocks per stage.
        windows: for each stage, the side of an attention window in tokens of the stage.
        global_blocks: numbers of the blocks that attend to the whole image, counted over all stages.
        background: size of the grid of learned positions. The grid is stretched to the size of the image.
        width: channels of the FPN, the decoder, the prompts and the memory attention.
        decoder_heads: attention heads of the mask decoder.
        decoder_mlp: hidden channels of the mask decoder's feed-forward layers.
        iou_hidden: hidden channels of the head that predicts a mask's quality.
        memory_channels: channels of a memory. Masks can be propagated only if this is 64.
        memory_layers: layers of the memory attention.
        memory_mlp: hidden channels of the memory attention's feed-forward layers.

    Raises:
        ValueError: a size is wrong, or the sizes do not fit together.
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
    """Return the transformers config of a SAM2 model. The arguments are fields of Sam2Sizes.

    Raises:
        ValueError: a size is wrong, or the sizes do not fit together.
        TypeError: an argument is not a field of Sam2Sizes.
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


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


POINTS = "prompt_encoder.point_embed.weight"  # (4, 256)
PACKAGE_POINTS = tuple(f"sam_prompt_encoder.point_embeddings.{point}.weight" for point in range(4))  # (1, 256) each
MATRICES = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")
PACKAGE_MATRIX = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def _mlp(transformers: str, package: str, depth: int) -> list[tuple[str, str]]:
    """Return the pairs of RULES that translate the parameter names of a feed-forward network.

    Meta's package numbers all layers of the network. In the library `transformers`, the first and the last layer have names
    of their own.
    """
    names = ["proj_in", *(f"layers.{layer}" for layer in range(depth - 2)), "proj_out"]
    return [(f"{transformers}.{name}.{{}}", f"{package}.layers.{layer}.{{}}") for layer, name in enumerate(names)]


# Pairs (name in the library `transformers`, name in the sam2 package). {} is a text without dots that is the same in both
# names.
RULES: tuple[tuple[str, str], ...] = (
    # Image encoder
    ("vision_encoder.backbone.pos_embed", "image_encoder.trunk.pos_embed"),
    ("vision_encoder.backbone.pos_embed_window", "image_encoder.trunk.pos_embed_window"),
    ("vision_encoder.backbone.patch_embed.projection.{}", "image_encoder.trunk.patch_embed.proj.{}"),
    ("vision_encoder.backbone.blocks.{}.layer_norm{}.{}", "image_encoder.trunk.blocks.{}.norm{}.{}"),
    ("vision_encoder.backbone.blocks.{}.attn.{}.{}", "image_encoder.trunk.blocks.{}.attn.{}.{}"),
    ("vision_encoder.backbone.blocks.{}.proj.{}", "image_encoder.trunk.blocks.{}.proj.{}"),
    *_mlp("vision_encoder.backbone.blocks.{}.mlp", "image_encoder.trunk.blocks.{}.mlp", 2),
    ("vision_encoder.neck.convs.{}.{}", "image_encoder.neck.convs.{}.conv.{}"),
    # Prompt encoder
    ("prompt_encoder.not_a_point_embed.weight", "sam_prompt_encoder.not_a_point_embed.weight"),
    ("prompt_encoder.no_mask_embed.weight", "sam_prompt_encoder.no_mask_embed.weight"),
    ("prompt_encoder.mask_embed.conv1.{}", "sam_prompt_encoder.mask_downscaling.0.{}"),
    ("prompt_encoder.mask_embed.layer_norm1.{}", "sam_prompt_encoder.mask_downscaling.1.{}"),
    ("prompt_encoder.mask_embed.conv2.{}", "sam_prompt_encoder.mask_downscaling.3.{}"),
    ("prompt_encoder.mask_embed.layer_norm2.{}", "sam_prompt_encoder.mask_downscaling.4.{}"),
    ("prompt_encoder.mask_embed.conv3.{}", "sam_prompt_encoder.mask_downscaling.6.{}"),
    # Mask decoder
    ("mask_decoder.iou_token.weight", "sam_mask_decoder.iou_token.weight"),
    ("mask_decoder.mask_tokens.weight", "sam_mask_decoder.mask_tokens.weight"),
    ("mask_decoder.obj_score_token.weight", "sam_mask_decoder.obj_score_token.weight"),
    ("mask_decoder.transformer.layers.{}.layer_norm{}.{}", "sam_mask_decoder.transformer.layers.{}.norm{}.{}"),
    *(
        (f"mask_decoder.transformer.{attention}.{ours}.{{}}", f"sam_mask_decoder.transformer.{attention}.{theirs}.{{}}")
        for attention in (
            "layers.{}.self_attn",
            "layers.{}.cross_attn_token_to_image",
            "layers.{}.cross_attn_image_to_token",
            "final_attn_token_to_image",
        )
        for ours, theirs in (("q_proj", "q_proj"), ("k_proj", "k_proj"), ("v_proj", "v_proj"), ("o_proj", "out_proj"))
    ),
    *_mlp("mask_decoder.transformer.layers.{}.mlp", "sam_mask_decoder.transformer.layers.{}.mlp", 2),
    ("mask_decoder.transformer.layer_norm_final_attn.{}", "sam_mask_decoder.transformer.norm_final_attn.{}"),
    ("mask_decoder.upscale_conv1.{}", "sam_mask_decoder.output_upscaling.0.{}"),
    ("mask_decoder.upscale_layer_norm.{}", "sam_mask_decoder.output_upscaling.1.{}"),
    ("mask_decoder.upscale_conv2.{}", "sam_mask_decoder.output_upscaling.3.{}"),
    ("mask_decoder.conv_s{}.{}", "sam_mask_decoder.conv_s{}.{}"),
    *_mlp("mask_decoder.output_hypernetworks_mlps.{}", "sam_mask_decoder.output_hypernetworks_mlps.{}", 3),
    *_mlp("mask_decoder.iou_prediction_head", "sam_mask_decoder.iou_prediction_head", 3),
    *_mlp("mask_decoder.pred_obj_score_head", "sam_mask_decoder.pred_obj_score_head", 3),
    # Memory of earlier frames of a video
    ("no_memory_embedding", "no_mem_embed"),
    ("no_memory_positional_encoding", "no_mem_pos_enc"),
    ("memory_temporal_positional_encoding", "maskmem_tpos_enc"),
    ("no_object_pointer", "no_obj_ptr"),
    ("occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
    ("mask_downsample.{}", "mask_downsample.{}"),
    *_mlp("object_pointer_proj", "obj_ptr_proj", 3),
    ("temporal_positional_encoding_projection_layer.{}", "obj_ptr_tpos_proj.{}"),
    *(
        (f"memory_attention.layers.{{}}.{attention}.{ours}.{{}}", f"memory_attention.layers.{{}}.{attention}.{theirs}.{{}}")
        for attention in ("self_attn", "cross_attn_image")
        for ours, theirs in (("q_proj", "q_proj"), ("k_proj", "k_proj"), ("v_proj", "v_proj"), ("o_proj", "out_proj"))
    ),
    ("memory_attention.layers.{}.linear{}.{}", "memory_attention.layers.{}.linear{}.{}"),
    ("memory_attention.layers.{}.layer_norm{}.{}", "memory_attention.layers.{}.norm{}.{}"),
    ("memory_attention.layer_norm.{}", "memory_attention.norm.{}"),
    *(
        (
            f"memory_encoder.mask_downsampler.layers.{layer}.{name}.{{}}",
            f"memory_encoder.mask_downsampler.encoder.{number}.{{}}",
        )
        for layer in range(4)
        for name, number in (("conv", 3 * layer), ("layer_norm", 3 * layer + 1))
    ),
    ("memory_encoder.mask_downsampler.final_conv.{}", "memory_encoder.mask_downsampler.encoder.12.{}"),
    ("memory_encoder.feature_projection.{}", "memory_encoder.pix_feat_proj.{}"),
    ("memory_encoder.memory_fuser.layers.{}.scale", "memory_encoder.fuser.layers.{}.gamma"),
    ("memory_encoder.memory_fuser.layers.{}.depthwise_conv.{}", "memory_encoder.fuser.layers.{}.dwconv.{}"),
    ("memory_encoder.memory_fuser.layers.{}.layer_norm.{}", "memory_encoder.fuser.layers.{}.norm.{}"),
    ("memory_encoder.memory_fuser.layers.{}.pointwise_conv{}.{}", "memory_encoder.fuser.layers.{}.pwconv{}.{}"),
    ("memory_encoder.projection.{}", "memory_encoder.out_proj.{}"),
)


def to_package(name: str) -> tuple[str, ...]:
    """Return the names that a parameter of Sam2VideoModel has in the sam2 package.

    The sam2 package divides the point embeddings into four parameters, so they have four names. Every other parameter has one
    name.

    Raises:
        ValueError: SAM2 has no parameter with this name.
    """
    if name in MATRICES:
        return (PACKAGE_MATRIX,)
    if name == POINTS:
        return PACKAGE_POINTS
    return (_translate(name, 0),)


def package_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of Sam2VideoModel with the names of the package `sam2`.

    The state dict need not be complete.

    Raises:
        ValueError: `state` has a name that SAM2 doesn't have.
    """
    renamed: dict[str, Tensor] = {}
    for name in sorted(state, key=lambda name: name == MATRICES[0]):  # MATRICES[0] is for images and replaces MATRICES[1]
        names = to_package(name)
        renamed |= zip(names, torch.split(state[name], 1) if name == POINTS else [state[name]], strict=True)
    return renamed


def transformers_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of the sam2 package with the names of Sam2VideoModel.

    The state dict need not be complete. Meta's checkpoints contain such a state dict under `model`. If a tensor gets two names,
    the second name gets a copy, because safetensors can't write tensors that share memory.

    Raises:
        ValueError: `state` has a name that SAM2 doesn't have, or has one to three of the four point embeddings.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == PACKAGE_MATRIX:
            renamed |= dict(zip(MATRICES, (tensor, tensor.clone()), strict=True))
        elif name not in PACKAGE_POINTS:
            renamed[_translate(name, 1)] = tensor
    points = [state[name] for name in PACKAGE_POINTS if name in state]
    if points and len(points) < len(PACKAGE_POINTS):
        raise ValueError(f"found {len(points)} of SAM2's {len(PACKAGE_POINTS)} point embeddings: give all of them or none")
    return renamed | ({POINTS: torch.cat(points)} if points else {})


def _translate(name: str, side: int) -> str:
    for pattern, template in _patterns(side):
        if match := pattern.fullmatch(name):
            return template.format(*match.groups())
    raise ValueError(f"the SAM2 of {('transformers', 'the sam2 package')[side]} has no parameter {name!r}")


@cache
def _patterns(side: int) -> tuple[tuple[re.Pattern[str], str], ...]:
    joined = (r"([^.]+)".join(map(re.escape, rule[side].split("{}"))) for rule in RULES)
    return tuple((re.compile(pattern), rule[1 - side]) for pattern, rule in zip(joined, RULES, strict=True))


class PackageMasks(ExactBuffers):
    """SAM2 of Meta's package, without the video memory. The names in the state dict are Meta's.

    Everything is computed in the model's dtype, except position encodings, which are computed in float32 and then cast.

    Args:
        config: the sizes of the model. The weights are random until `load_transformers_state` is called.

    Raises:
        WeightsError: the sam2 package is not installed, or can't be imported.
        ValueError: the package can't build an encoder of these sizes.
    """

    def __init__(self, config: Sam2VideoConfig) -> None:
        super().__init__()
        parts: Any = config  # Any: the type hints of transformers say that nested configs may be dicts
        self.image_size = int(parts.image_size)
        self.width = int(parts.vision_config.fpn_hidden_size)
        self.image_encoder: Any = _image_encoder(parts.vision_config)
        prompt = parts.prompt_encoder_config
        grid = prompt.image_size // prompt.patch_size
        self.sam_prompt_encoder: Any = _part("modeling.sam.prompt_encoder").PromptEncoder(
            embed_dim=prompt.hidden_size,
            image_embedding_size=(grid, grid),
            input_image_size=(prompt.image_size, prompt.image_size),
            mask_in_chans=prompt.mask_input_channels,
        )
        self.sam_mask_decoder: Any = _mask_decoder(parts.mask_decoder_config)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, self.width))
        self.train(self.training)

    def load_transformers_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights from the state dict of a Sam2VideoModel, except the weights of the video memory.

        Raises:
            ValueError: `state` has a name that SAM2 doesn't have.
            RuntimeError: a parameter is missing or has another shape.
        """
        own = self.state_dict().keys()
        self.load_state_dict({name: tensor for name, tensor in package_state(state).items() if name in own})

    def train(self, mode: bool = True) -> PackageMasks:
        """Set the mode, but keep the mask decoder in evaluation mode; see `TransformersMasks.train`."""
        super().train(mode)
        self.sam_mask_decoder.training = False
        return self

    def encode(self, pixels: Tensor, *, chunk: int | None = None) -> ImageFeatures:
        """See MaskModel.encode."""
        parts = torch.split(pixels, chunk or max(1, len(pixels)))
        return ImageFeatures.cat([self.features(self.pyramid(part)) for part in parts])

    def pyramid(self, pixels: Tensor) -> Pyramid:
        """Turn (N, 3, S, S) normalised pixels into FPN levels at strides 4, 8 and 16, not yet projected."""
        dtype = self.no_mem_embed.dtype
        fine, middle, embedding = self.image_encoder(pixels.to(dtype))["backbone_fpn"]
        return fine, middle, embedding.to(dtype)  # the package's FPN returns its sums in float32

    def features(self, levels: Pyramid) -> ImageFeatures:
        """Turn FPN levels into the features that the mask decoder and the projector read."""
        fine, middle, embedding = levels
        high = (self.sam_mask_decoder.conv_s0(fine), self.sam_mask_decoder.conv_s1(middle))
        return ImageFeatures(embedding, self.image_encoder.neck.position_encoding(embedding[:1]), high)

    def decode(
        self, features: ImageFeatures, prompt: Tensor, *, multimask: bool = False, dense: Tensor | None = None
    ) -> MaskOutput:
        """See `TransformersMasks.decode`."""
        embedding = features.embedding + self.no_mem_embed.view(1, -1, 1, 1)
        no_mask = self.sam_prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        mask_logit, iou, _, object_logit = self.sam_mask_decoder(
            image_embeddings=embedding,
            image_pe=self.sam_prompt_encoder.get_dense_pe().to(embedding.dtype),
            sparse_prompt_embeddings=with_padding_point(
                prompt.to(embedding.dtype), self.sam_prompt_encoder.not_a_point_embed.weight
            ),
            dense_prompt_embeddings=no_mask if dense is None else no_mask + dense.to(embedding.dtype),
            multimask_output=multimask,
            repeat_image=False,  # one frame per prompt
            high_res_features=list(features.high),
        )
        return MaskOutput(object_logit[:, 0].float(), mask_logit.float(), iou.float())


class _NeckPosition(SinePosition):
    """SinePosition for the FPN of the sam2 package: the argument is the features instead of their shape."""

    def forward(self, features: Tensor) -> Tensor:  # type: ignore[override]
        """Return the position encoding for features of this shape."""
        return super().forward(features.shape, features.device, features.dtype)


def _image_encoder(vision: Any) -> nn.Module:
    hiera = vision.backbone_config
    image_encoder, hieradet = _part("modeling.backbones.image_encoder"), _part("modeling.backbones.hieradet")
    dims, heads = hiera.embed_dim_per_stage, hiera.num_attention_heads_per_stage
    for name, counts in (("embed_dim_per_stage", dims), ("num_attention_heads_per_stage", heads)):
        if any(2 * before != after for before, after in itertools.pairwise(counts)):
            raise ValueError(
                f"{name} {counts}: the sam2 package needs sizes that double at each stage; use --sam2 transformers"
            )
    trunk = hieradet.Hiera(
        embed_dim=dims[0],
        num_heads=heads[0],
        stages=tuple(hiera.blocks_per_stage),
        global_att_blocks=tuple(hiera.global_attention_blocks),
        window_pos_embed_bkg_spatial_size=tuple(hiera.window_positional_embedding_background_size),
        window_spec=tuple(hiera.window_size_per_stage),
    )
    neck = image_encoder.FpnNeck(
        position_encoding=_NeckPosition(vision.fpn_hidden_size, finest=vision.backbone_feature_sizes[-1][0]),
        d_model=vision.fpn_hidden_size,
        backbone_channel_list=list(vision.backbone_channel_list),
        fpn_top_down_levels=list(vision.fpn_top_down_levels),
        fpn_interp_model="nearest",
    )
    # `scalp` drops the coarsest level, because only the FPN itself needs this level.
    encoder: nn.Module = image_encoder.ImageEncoder(trunk, neck, scalp=1)
    return encoder


def _mask_decoder(decoder: Any) -> nn.Module:
    transformer = _part("modeling.sam.transformer").TwoWayTransformer(
        depth=decoder.num_hidden_layers,
        embedding_dim=decoder.hidden_size,
        num_heads=decoder.num_attention_heads,
        mlp_dim=decoder.mlp_dim,
        attention_downsample_rate=decoder.attention_downsample_rate,
    )
    masks: nn.Module = _part("modeling.sam.mask_decoder").MaskDecoder(
        transformer_dim=decoder.hidden_size,
        transformer=transformer,
        num_multimask_outputs=decoder.num_multimask_outputs,
        iou_head_depth=decoder.iou_head_depth,
        iou_head_hidden_dim=decoder.iou_head_hidden_dim,
        use_high_res_features=True,
        iou_prediction_use_sigmoid=True,
        dynamic_multimask_via_stability=decoder.dynamic_multimask_via_stability,
        dynamic_multimask_stability_delta=decoder.dynamic_multimask_stability_delta,
        dynamic_multimask_stability_thresh=decoder.dynamic_multimask_stability_thresh,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        use_multimask_token_for_obj_ptr=True,
    )
    return masks


def _part(module: str) -> Any:
    try:
        return importlib.import_module(f"sam2.{module}")
    except ImportError as error:
        raise WeightsError(
            f"the sam2 package can't be used: {error}",
            hint="install it with `make install`, or use --sam2 transformers, which gives the same masks",
        ) from error
