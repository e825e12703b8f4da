"""What the parameters of SAM2 are called in transformers' Sam2VideoModel and in Meta's `sam2` package and checkpoints.

One table of names for both directions. The tensors are the same on both sides but for two: transformers keeps the four point
embeddings in one tensor, and the matrix of the position encoding twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

import torch
from torch import Tensor

POINTS = "prompt_encoder.point_embed.weight"  # (4, 256)
PACKAGE_POINTS = tuple(f"sam_prompt_encoder.point_embeddings.{point}.weight" for point in range(4))  # (1, 256) each
MATRICES = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")
PACKAGE_MATRIX = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def _mlp(transformers: str, package: str, depth: int) -> list[tuple[str, str]]:
    """The layers of a feed-forward network: transformers names the first and the last, the package counts."""
    names = ["proj_in", *(f"layers.{layer}" for layer in range(depth - 2)), "proj_out"]
    return [(f"{transformers}.{name}.{{}}", f"{package}.layers.{layer}.{{}}") for layer, name in enumerate(names)]


# (transformers, package); a {} stands for one part of a dotted name, the same on both sides, or for the number at its end.
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
    # Video memory
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
    """A parameter of Sam2VideoModel -> its names in the sam2 package: one, or four for the point embeddings.

    Raises:
        ValueError: SAM2 has no such parameter.
    """
    if name in MATRICES:
        return (PACKAGE_MATRIX,)
    if name == POINTS:
        return PACKAGE_POINTS
    return (_translate(name, 0),)


def to_transformers(name: str) -> tuple[str, ...]:
    """A parameter of the sam2 package -> its names in Sam2VideoModel: one, or two for the matrix of the position encoding.

    Raises:
        ValueError: SAM2 has no such parameter.
    """
    if name == PACKAGE_MATRIX:
        return MATRICES
    if name in PACKAGE_POINTS:
        return (POINTS,)
    return (_translate(name, 1),)


def package_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of Sam2VideoModel, whole or in part -> that of the sam2 package; tensors are shared, not copied.

    Raises:
        ValueError: a name that SAM2 doesn't have.
    """
    renamed: dict[str, Tensor] = {}
    for name in sorted(state, key=lambda name: name == MATRICES[0]):  # the image's matrix comes last and stays
        names = to_package(name)
        renamed |= zip(names, torch.split(state[name], 1) if name == POINTS else [state[name]], strict=True)
    return renamed


def transformers_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the sam2 package, whole or in part -> that of Sam2VideoModel.

    Meta's checkpoints hold such a state dict under `model`. Tensors are shared with `state` where they are the same, and no two
    of the result share their memory, so that safetensors can write them.

    Raises:
        ValueError: a name that SAM2 doesn't have, or only some of the four point embeddings.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == PACKAGE_MATRIX:
            renamed |= dict(zip(MATRICES, (tensor, tensor.clone()), strict=True))
        elif name not in PACKAGE_POINTS:
            renamed[_translate(name, 1)] = tensor
    points = [state[name] for name in PACKAGE_POINTS if name in state]
    if points and len(points) < len(PACKAGE_POINTS):
        raise ValueError(f"{len(points)} of SAM2's {len(PACKAGE_POINTS)} point embeddings: all or none are needed")
    return renamed | ({POINTS: torch.cat(points)} if points else {})


def _translate(name: str, side: int) -> str:
    for pattern, template in _patterns(side):
        if match := pattern.fullmatch(name):
            return template.format(*match.groups())
    raise ValueError(f"SAM2 has no parameter {name!r} in {('transformers', 'the sam2 package')[side]}")


@cache
def _patterns(side: int) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((_pattern(rule[side]), rule[1 - side]) for rule in RULES)


def _pattern(template: str) -> re.Pattern[str]:
    parts: Iterable[str] = (re.escape(part) for part in template.split("{}"))
    return re.compile(r"([^.]+)".join(parts))
