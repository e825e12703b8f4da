"""CLIP (Radford et al. 2021), with SCLIP's patch vectors (Wang et al. 2023, arXiv 2312.01597).

Letters in shapes: N pictures, T = 1 + h·w tokens (the first token describes the whole picture), W width of the image half, D
width of a vector.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vadcli.detectors.encoders.base import PixelRules, TransformersEncoder
from vadcli.detectors.encoders.halves import (
    Attention,
    Block,
    Blocks,
    TextModel,
    join_heads,
    layer_norm,
    patch_embedding,
    read_values,
    split_heads,
    table,
)


class ClipEncoder(TransformersEncoder):
    """CLIP as an implementation of `vadcli.detectors.encoders.Encoder`."""

    temperature = 0.03
    defaults = PixelRules(224, "bicubic", mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
    # The vector is read at the end token, which depends only on the tokens before it. So padding after this token changes
    # nothing. A sentence of a few words that is padded to 77 tokens takes five times as long.
    text_step = 16

    def __init__(self, name: str, folder: Path, *, device: str, precision: str) -> None:
        super().__init__(name, folder, device=device, precision=precision)
        self.width = int(self.config.projection_dim)

    def image_vectors(self, pixels: Tensor) -> Tensor:
        """Return the vectors (N, D) of pixels (N, 3, S, S)."""
        tokens, last = self._before_last(pixels)
        # After the last block only the first token is used, so the last block computes only this token.
        normed = last.layer_norm1(tokens)
        first = last.add_mlp(tokens[:, :1] + last.self_attn(normed[:, :1], normed))  # (N, 1, W)
        return self._project(first)[:, 0]

    def patch_vectors(self, pixels: Tensor) -> Tensor:
        """Return the patch vectors (N, h·w, D) of pixels (N, 3, S, S), as in SCLIP (section 3.2)."""
        tokens, last = self._before_last(pixels)
        tokens = tokens + correlate(last.self_attn, last.layer_norm1(tokens))
        return self._project(last.add_mlp(tokens)[:, 1:])

    def text_vectors(self, ids: Tensor) -> Tensor:
        """Return the vectors (M, D) of token ids (M, L) on the CPU."""
        tokens = self.text.text_model(ids)  # (M, L, W)
        end = self.config.text_config.eos_token_id
        # The configs of the first CLIP folders wrongly have a 2 here. In these folders, the end token has the highest id.
        places = (ids if end == 2 else (ids == end).int()).argmax(dim=-1)
        vectors: Tensor = self.text.text_projection(tokens[torch.arange(len(ids)), places])
        return vectors

    def _before_last(self, pixels: Tensor) -> tuple[Tensor, Block]:
        """Return the tokens (N, T, W) that the last block gets, and the last block."""
        half = self.vision.vision_model
        tokens = half.pre_layrnorm(half.embeddings(pixels))
        *blocks, last = half.encoder.layers
        for block in blocks:
            tokens = block(tokens)
        return tokens, last

    def _project(self, tokens: Tensor) -> Tensor:
        vectors: Tensor = self.vision.visual_projection(self.vision.vision_model.post_layernorm(tokens))
        return vectors

    def make_vision(self) -> nn.Module:
        """Return the image half without weights."""
        return ClipVision(self.config.vision_config, self.config.projection_dim)

    def make_text(self) -> nn.Module:
        """Return the text half without weights."""
        return ClipText(self.config.text_config, self.config.projection_dim)


class ClipText(nn.Module):
    """The layers of the text half and its projection. `ClipEncoder` calls them."""

    def __init__(self, sizes: Any, width: int) -> None:
        super().__init__()
        self.text_model = TextModel(sizes, causal=True)
        self.text_projection = nn.Linear(sizes.hidden_size, width, bias=False)


class ClipVision(nn.Module):
    """The layers of the image half and its projection. `ClipEncoder` calls them."""

    def __init__(self, sizes: Any, width: int) -> None:
        super().__init__()
        self.vision_model = VisionModel(sizes)
        self.visual_projection = nn.Linear(sizes.hidden_size, width, bias=False)


class VisionModel(nn.Module):
    """The layers that turn images into one vector per token. `ClipEncoder` calls them one by one."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(sizes)
        self.pre_layrnorm = layer_norm(sizes)  # transformers spells `layernorm` like this
        self.encoder = Blocks(sizes)
        self.post_layernorm = layer_norm(sizes)


class VisionEmbeddings(nn.Module):
    """The vectors of patches, after one vector that describes the whole picture."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(sizes.hidden_size))
        self.patch_embedding = patch_embedding(sizes, bias=False)
        self.position_embedding = table((sizes.image_size // sizes.patch_size) ** 2 + 1, sizes.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the tokens (N, T, W) of pixels (N, 3, S, S)."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (N, h·w, W)
        return torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], dim=1) + self.position_embedding.weight


def correlate(block: Attention, tokens: Tensor) -> Tensor:
    """Return SCLIP's attention (softmax(q·qᵀ/√d) + softmax(k·kᵀ/√d))·v.

    Each token reads from similar tokens.

    Args:
        block: CLIP's attention block.
        tokens: (N, T, W), normalised.
    """
    query, key, value = (split_heads(part(tokens), block.num_heads) for part in (block.q_proj, block.k_proj, block.v_proj))
    read = read_values(query, query, value) + read_values(key, key, value)
    mixed: Tensor = block.out_proj(join_heads(read))
    return mixed
