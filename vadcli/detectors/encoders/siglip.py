"""SigLIP (Zhai et al. 2023), and SigLIP 2 (Tschannen et al. 2025) with a fixed picture size.

SigLIP 2 has another tokenizer (that of Gemma) and another resize filter (bilinear). The folder says which ones to use.

Letters in shapes: N pictures, P = h·w patches, D width of a patch and of a vector.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vadcli.detectors.encoders import NOT_WHOLE
from vadcli.detectors.encoders.base import PixelRules, TransformersEncoder
from vadcli.detectors.encoders.halves import (
    Blocks,
    Mlp,
    TextModel,
    join_heads,
    layer_norm,
    patch_embedding,
    read_values,
    split_heads,
    table,
)
from vadcli.errors import WeightsError


class SiglipEncoder(TransformersEncoder):
    """SigLIP as an implementation of `vadcli.detectors.encoders.Encoder`."""

    # Cosines of SigLIP are smaller than those of CLIP. This value was not measured. It does not matter as long as the detector
    # divides by the spread of the camera's own frames.
    temperature = 0.01
    defaults = PixelRules(224, "bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    # SigLIP was trained on sentences padded to 64 tokens, without a mask. The last token, often padding, gives the vector.
    text_step = 0

    def __init__(self, name: str, folder: Path, *, device: str, precision: str) -> None:
        super().__init__(name, folder, device=device, precision=precision)
        self.width = int(self.config.text_config.projection_size)
        vision = self.config.vision_config
        if not vision.vision_use_head or vision.hidden_size != self.width:
            what = "its pictures and its sentences do not share vectors of one width"
            raise WeightsError(f"{folder}: not an encoder: {what}", hint=NOT_WHOLE)

    def image_vectors(self, pixels: Tensor) -> Tensor:
        """Return the vectors (N, D) of pixels (N, 3, S, S). One query reads from all patches."""
        head = self.vision.vision_model.head
        pooling = head.attention
        weight, bias = pooling.in_proj_weight, pooling.in_proj_bias  # of queries, keys and values
        query = F.linear(head.probe, weight[: self.width], bias[: self.width])  # (1, 1, D)
        key, value = F.linear(self._patches(pixels), weight[self.width :], bias[self.width :]).chunk(2, dim=-1)  # (N, P, D)
        asking = query.repeat(len(pixels), 1, 1)
        parts = (split_heads(part, pooling.num_heads) for part in (asking, key, value))
        return self._after_pooling(join_heads(read_values(*parts)))[:, 0]

    def patch_vectors(self, pixels: Tensor) -> Tensor:
        """Return the patch vectors (N, P, D) of pixels (N, 3, S, S)."""
        # The pooling head's result if it reads only one patch: its attention weight is 1, so queries and keys are not needed.
        pooling = self.vision.vision_model.head.attention
        values = F.linear(self._patches(pixels), pooling.in_proj_weight[-self.width :], pooling.in_proj_bias[-self.width :])
        return self._after_pooling(values)

    def _patches(self, pixels: Tensor) -> Tensor:
        """Return the patches (N, P, D) that the pooling head reads."""
        half = self.vision.vision_model
        patches: Tensor = half.post_layernorm(half.encoder(half.embeddings(pixels)))
        return patches

    def _after_pooling(self, values: Tensor) -> Tensor:
        """Return the output of the pooling head for values (…, D) that its attention has read."""
        head = self.vision.vision_model.head
        read = head.attention.out_proj(values)
        vectors: Tensor = read + head.mlp(head.layernorm(read))
        return vectors

    def text_vectors(self, ids: Tensor) -> Tensor:
        """Return the vectors (M, D) of token ids (M, L) on the CPU."""
        half = self.text.text_model
        vectors: Tensor = half.head(half(ids)[:, -1])
        return vectors

    def token_ids(self, text: str) -> list[int]:
        """Return all token ids of a sentence in lower case, with the end token and without padding.

        SigLIP 2 was trained on lower-case text. Siglip2Tokenizer changes each letter to lower case. But folders with a fixed
        picture size are loaded with GemmaTokenizer, which does not (transformers 5.24, pull request 43101).
        """
        return super().token_ids("".join(letter.lower() for letter in text))

    def make_vision(self) -> nn.Module:
        """Return the image half without weights."""
        half = nn.Module()
        half.vision_model = VisionModel(self.config.vision_config)
        return half

    def make_text(self) -> nn.Module:
        """Return the text half without weights."""
        sizes, half = self.config.text_config, nn.Module()
        half.text_model = TextModel(sizes, causal=False)
        half.text_model.head = nn.Linear(sizes.hidden_size, sizes.projection_size)
        return half


class VisionModel(nn.Module):
    """The layers of the image half. `SiglipEncoder` calls them."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(sizes)
        self.encoder = Blocks(sizes)
        self.post_layernorm = layer_norm(sizes)
        self.head = PoolingHead(sizes)


class VisionEmbeddings(nn.Module):
    """The vectors of patches."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.patch_embedding = patch_embedding(sizes, bias=True)
        self.position_embedding = table((sizes.image_size // sizes.patch_size) ** 2, sizes.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the patches (N, P, D) of pixels (N, 3, S, S)."""
        found: Tensor = self.patch_embedding(pixels).flatten(2).transpose(1, 2) + self.position_embedding.weight
        return found


class PoolingHead(nn.Module):
    """The layers that turn the vectors of all patches into one. `SiglipEncoder` calls them."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, sizes.hidden_size))
        self.attention = nn.MultiheadAttention(sizes.hidden_size, sizes.num_attention_heads, batch_first=True)
        self.layernorm = layer_norm(sizes)
        self.mlp = Mlp(sizes)
