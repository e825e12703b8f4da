"""SAM2's image encoder and mask decoder by Meta's `sam2` package: the contract of `masks.py`, the same weights, the same masks.

The package is optional and only this file knows it; nothing of it is imported before a PackageMasks is made. Its parts are
built from the transformers config of the model, so that hydra's configs and the package's image predictor, which needs
torchvision, stay unused.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Sam2VideoConfig

from vadcli.detectors.lavida.key_map import package_state
from vadcli.detectors.lavida.masks import (
    ImageFeatures,
    MaskOutput,
    Pyramid,
    SinePosition,
    with_padding_point,
)
from vadcli.detectors.lavida.precision import restore_precision
from vadcli.errors import WeightsError


class PackageMasks(nn.Module):
    """SAM2 by Meta's package. Its state dict has the names of Meta's checkpoints, without the video memory.

    Everything runs in the model's dtype, but for position encodings, which are computed in float32 and then cast.

    Args:
        config: the sizes; weights are random until `load_transformers_state`.

    Raises:
        WeightsError: the sam2 package is not installed, or can't be imported.
        ValueError: the package can't build an encoder of these sizes.
    """

    def __init__(self, config: Sam2VideoConfig) -> None:
        super().__init__()
        parts: Any = config  # transformers types its nested configs as dicts too, which they no longer are
        self.image_size = int(parts.image_size)
        self.width = int(parts.vision_config.fpn_hidden_size)
        self.image_encoder: Any = _image_encoder(parts.vision_config)
        self.sam_prompt_encoder: Any = _prompt_encoder(parts.prompt_encoder_config)
        self.sam_mask_decoder: Any = _mask_decoder(parts.mask_decoder_config)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, self.width))
        self.train(self.training)

    def load_transformers_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a Sam2VideoModel's state dict; those of the video memory are left out.

        Raises:
            ValueError: a name that SAM2 doesn't have.
            RuntimeError: a parameter is missing or has another shape.
        """
        own = self.state_dict().keys()
        self.load_state_dict({name: tensor for name, tensor in package_state(state).items() if name in own})

    def train(self, mode: bool = True) -> PackageMasks:
        """As usual; the decoder's own flag stays down, because all it does is to switch off the choice of the stable mask."""
        super().train(mode)
        self.sam_mask_decoder.training = False
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackageMasks:
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        restore_precision(self, exact)
        return self

    def encode(self, pixels: Tensor, *, chunk: int | None = None) -> ImageFeatures:
        """See MaskModel.encode."""
        parts = torch.split(pixels, chunk or max(1, len(pixels)))
        return ImageFeatures.cat([self.features(self.pyramid(part)) for part in parts])

    def pyramid(self, pixels: Tensor) -> Pyramid:
        """(N, 3, S, S) normalised pixels -> FPN levels at strides 4, 8 and 16, before the decoder's projections."""
        dtype = self.no_mem_embed.dtype
        fine, middle, embedding = self.image_encoder(pixels.to(dtype))["backbone_fpn"]
        return fine, middle, embedding.to(dtype)  # the package's FPN leaves its sums in float32

    def features(self, levels: Pyramid) -> ImageFeatures:
        """FPN levels -> what the decoder and the projector read; both projections belong to the decoder and train with it."""
        fine, middle, embedding = levels
        high = (self.sam_mask_decoder.conv_s0(fine), self.sam_mask_decoder.conv_s1(middle))
        return ImageFeatures(embedding, self.image_encoder.neck.position_encoding(embedding[:1]), high)

    def decode(
        self, features: ImageFeatures, prompt: Tensor, *, multimask: bool = False, dense: Tensor | None = None
    ) -> MaskOutput:
        """See MaskModel.decode; with one mask, SAM2's stability choice replaces an unstable one by the best of the three."""
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
            repeat_image=False,  # a frame a prompt
            high_res_features=list(features.high),
        )
        return MaskOutput(object_logit[:, 0].float(), mask_logit.float(), iou.float())


class _NeckPosition(SinePosition):
    """The same encoding, asked for as the package's FPN does: by the features."""

    def forward(self, features: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(features.shape, features.device, features.dtype)


def _image_encoder(vision: Any) -> nn.Module:
    hiera = vision.backbone_config
    image_encoder, hieradet = _part("modeling.backbones.image_encoder"), _part("modeling.backbones.hieradet")
    dims, heads = hiera.embed_dim_per_stage, hiera.num_attention_heads_per_stage
    for name, counts in (("embed_dim_per_stage", dims), ("num_attention_heads_per_stage", heads)):
        if any(2 * one != other for one, other in itertools.pairwise(counts)):
            raise ValueError(
                f"{name} {counts}: the sam2 package doubles it at each stage, other sizes need the transformers backend"
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
    encoder: nn.Module = image_encoder.ImageEncoder(trunk, neck, scalp=1)  # the coarsest level only feeds the others
    return encoder


def _prompt_encoder(prompt: Any) -> nn.Module:
    grid = prompt.image_size // prompt.patch_size
    encoder: nn.Module = _part("modeling.sam.prompt_encoder").PromptEncoder(
        embed_dim=prompt.hidden_size,
        image_embedding_size=(grid, grid),
        input_image_size=(prompt.image_size, prompt.image_size),
        mask_in_chans=prompt.mask_input_channels,
    )
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
            hint="install it with `make install`, or take the transformers backend, which gives the same masks",
        ) from error
