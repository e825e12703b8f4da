"""CLIP (Radford et al. 2021). Vectors of single patches are computed as in SCLIP (Wang et al. 2023, arXiv 2312.01597).

Letters in shapes: N pictures, T = 1 + h·w tokens (the first one stands for the whole picture), W width of the image half, D
width of a vector.
"""

from __future__ import annotations

from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from vadcli.detectors.encoders.base import TransformersEncoder, read_values, split_heads
from vadcli.detectors.encoders.pixels import PixelRules
from vadcli.detectors.lavida.pixels import CLIP_MEAN, CLIP_STD


class ClipEncoder(TransformersEncoder):
    """CLIP as an implementation of `vadcli.detectors.encoders.Encoder`."""

    temperature = 0.03
    defaults = PixelRules(224, "bicubic", CLIP_MEAN, CLIP_STD)
    # The vector is read at the end token, which depends only on the tokens before it. So the padding after it changes nothing.
    # If a sentence of a few words were padded to 77 tokens, it would take five times as long.
    text_step = 16

    def __init__(self, name: str, folder: Path, *, device: str, precision: str) -> None:
        super().__init__(name, folder, device=device, precision=precision)
        self.width = int(self.config.projection_dim)

    def image_vectors(self, pixels: Tensor) -> Tensor:
        """Returns (N, D) for (N, 3, S, S)."""
        tokens, last = self._before_last(pixels)
        # After the last block only the first token is used, so the last block computes only this token.
        normed = last.layer_norm1(tokens)
        first = tokens[:, :1] + attend(last.self_attn, normed[:, :1], normed)  # (N, 1, W)
        return self._project(first + last.mlp(last.layer_norm2(first)))[:, 0]

    def patch_vectors(self, pixels: Tensor) -> Tensor:
        """Returns (N, h·w, D) for (N, 3, S, S). The last block uses the attention of SCLIP (section 3.2 of its paper)."""
        tokens, last = self._before_last(pixels)
        tokens = tokens + correlate(last.self_attn, last.layer_norm1(tokens))
        return self._project((tokens + last.mlp(last.layer_norm2(tokens)))[:, 1:])

    def text_vectors(self, ids: Tensor) -> Tensor:
        """Returns (M, D) for (M, L) token ids."""
        vectors: Tensor = self.text(input_ids=ids).text_embeds
        return vectors

    def _before_last(self, pixels: Tensor) -> tuple[Tensor, Any]:
        """Returns the tokens (N, T, W) that the last block gets, and the last block."""
        half = self.vision.vision_model
        tokens = half.pre_layrnorm(half.embeddings(pixels))  # transformers spells `layernorm` like this
        *blocks, last = half.encoder.layers
        for block in blocks:
            tokens = block(tokens, None)
        return tokens, last

    def _project(self, tokens: Tensor) -> Tensor:
        vectors: Tensor = self.vision.visual_projection(self.vision.vision_model.post_layernorm(tokens))
        return vectors

    @cached_property
    def vision(self) -> Any:
        """The image half."""
        return self.read_half(CLIPVisionModelWithProjection, self._half(self.config.vision_config))

    @cached_property
    def text(self) -> Any:
        """The text half."""
        return self.read_half(CLIPTextModelWithProjection, self._half(self.config.text_config))

    def _half(self, config: Any) -> Any:
        """Returns the config of a half, with the vector width of the whole model. Its own width may be absent or wrong."""
        config = copy(config)
        config.projection_dim = self.config.projection_dim
        return config


def attend(block: Any, asking: Tensor, tokens: Tensor) -> Tensor:
    """Returns the output (N, A, W) of an attention block if the tokens `asking` (N, A, W) read from all `tokens` (N, T, W)."""
    query, key, value = block.q_proj(asking), block.k_proj(tokens), block.v_proj(tokens)
    read = read_values(*(split_heads(part, block.num_heads) for part in (query, key, value)))
    mixed: Tensor = block.out_proj(read.transpose(1, 2).flatten(2))
    return mixed


def correlate(block: Any, tokens: Tensor) -> Tensor:
    """Returns SCLIP's attention: (softmax(q·qᵀ/√d) + softmax(k·kᵀ/√d))·v. So a token reads from similar tokens.

    Args:
        block: CLIP's attention block.
        tokens: (N, T, W), normalised.
    """
    query, key, value = (split_heads(part(tokens), block.num_heads) for part in (block.q_proj, block.k_proj, block.v_proj))
    read = read_values(query, query, value) + read_values(key, key, value)
    mixed: Tensor = block.out_proj(read.transpose(1, 2).flatten(2))
    return mixed
