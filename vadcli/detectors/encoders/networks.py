"""The networks of CLIP and SigLIP: first the parts that both have, then CLIP, then SigLIP.

The parts have the same names as in a transformers folder. transformers' own classes compute the same, but their import takes
seconds and over 100 MB.

Letters in shapes: N pictures, M sentences of L tokens, T tokens of a picture or sentence, P = h·w patches, W width of a half
(the image half or the text half), D width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vadcli.detectors.encoders import NOT_WHOLE
from vadcli.detectors.encoders.base import PixelRules, TransformersEncoder
from vadcli.errors import WeightsError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": lambda values: values * torch.sigmoid(1.702 * values),
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}
"""Activations by transformers' names: of CLIP by OpenAI, of CLIP by others, and of SigLIP."""


class Attention(nn.Module):
    """Attention with several heads. With `causal`, a token does not read from later tokens."""

    def __init__(self, sizes: Any, *, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = sizes.num_attention_heads, causal
        if sizes.hidden_size % self.num_heads:
            raise ValueError(f"config.json: {self.num_heads} heads cannot share a hidden_size of {sizes.hidden_size}")
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(sizes.hidden_size, sizes.hidden_size) for _ in range(4)
        )

    def forward(self, asking: Tensor, tokens: Tensor) -> Tensor:
        """Return the result (N, A, W) of attention from `asking` (N, A, W) to `tokens` (N, T, W)."""
        parts = self.q_proj(asking), self.k_proj(tokens), self.v_proj(tokens)
        read = read_values(*(split_heads(part, self.num_heads) for part in parts), causal=self.causal)
        mixed: Tensor = self.out_proj(join_heads(read))
        return mixed


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        if sizes.hidden_act not in ACTIVATIONS:
            raise ValueError(f"config.json: hidden_act {sizes.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[sizes.hidden_act]
        self.fc1 = nn.Linear(sizes.hidden_size, sizes.intermediate_size)
        self.fc2 = nn.Linear(sizes.intermediate_size, sizes.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return new tokens in the shape (N, T, W) of `tokens`."""
        found: Tensor = self.fc2(self.activation(self.fc1(tokens)))
        return found


class Block(nn.Module):
    """A transformer block, normalised before attention and MLP."""

    def __init__(self, sizes: Any, *, causal: bool) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = layer_norm(sizes), layer_norm(sizes)
        self.self_attn = Attention(sizes, causal=causal)
        self.mlp = Mlp(sizes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return new tokens in the shape (N, T, W) of `tokens`."""
        normed = self.layer_norm1(tokens)
        return self.add_mlp(tokens + self.self_attn(normed, normed))

    def add_mlp(self, tokens: Tensor) -> Tensor:
        """Return the output of the block's second half: the tokens plus the output of the MLP for them."""
        found: Tensor = tokens + self.mlp(self.layer_norm2(tokens))
        return found


class Blocks(nn.Module):
    """All transformer blocks of a half."""

    def __init__(self, sizes: Any, *, causal: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(sizes, causal=causal) for _ in range(sizes.num_hidden_layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return new tokens in the shape (N, T, W) of `tokens`."""
        for block in self.layers:
            tokens = block(tokens)
        return tokens


class TextEmbeddings(nn.Module):
    """The vectors of tokens and of their places in a sentence."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.token_embedding = table(sizes.vocab_size, sizes.hidden_size)
        self.position_embedding = table(sizes.max_position_embeddings, sizes.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors (M, L, W) of token ids (M, L) on the CPU, where the token table is."""
        places = self.position_embedding.weight[: ids.shape[1]]
        found: Tensor = self.token_embedding(ids).to(places) + places
        return found


class TextModel(nn.Module):
    """The layers of the text half that give one vector per token."""

    def __init__(self, sizes: Any, *, causal: bool) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(sizes)
        self.encoder = Blocks(sizes, causal=causal)
        self.final_layer_norm = layer_norm(sizes)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors (M, L, W) of token ids (M, L) on the CPU."""
        found: Tensor = self.final_layer_norm(self.encoder(self.embeddings(ids)))
        return found


def patch_embedding(sizes: Any, *, bias: bool) -> nn.Conv2d:
    """Return the layer that turns each patch of a picture into a vector."""
    return nn.Conv2d(sizes.num_channels, sizes.hidden_size, sizes.patch_size, stride=sizes.patch_size, bias=bias)


def table(rows: int, width: int) -> nn.Embedding:
    """Return a table of vectors without values."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))  # torch imports sympy for random values on `meta`


def layer_norm(sizes: Any) -> nn.LayerNorm:
    """Return a normalisation of the width of a half."""
    return nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)


def read_values(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """Return softmax(q·kᵀ/√d)·v, (N, heads, A, d).

    The queries are (N, heads, A, d); the keys and values are (N, heads, T, d).
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    # On a CPU, each picture is computed separately. For several pictures at once, torch uses threads with differently aligned
    # buffers, and a picture's vector would depend on its place in the chunk.
    rows = [slice(number, number + 1) for number in range(len(query))]
    return torch.cat([F.scaled_dot_product_attention(query[row], key[row], value[row], is_causal=causal) for row in rows])


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Split the width of tokens (N, T, W) into heads: (N, heads, T, W / heads)."""
    return tokens.view(*tokens.shape[:2], heads, -1).transpose(1, 2)


def join_heads(read: Tensor) -> Tensor:
    """Join the heads of (N, heads, T, W / heads) to tokens (N, T, W)."""
    return read.transpose(1, 2).flatten(2)


class ClipEncoder(TransformersEncoder):
    """CLIP (Radford et al. 2021) as an `Encoder`, with SCLIP's patch vectors (Wang et al. 2023, arXiv 2312.01597).

    The first of the T = 1 + h·w tokens of a picture describes the whole picture.
    """

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
        self.vision_model = ClipVisionModel(sizes)
        self.visual_projection = nn.Linear(sizes.hidden_size, width, bias=False)


class ClipVisionModel(nn.Module):
    """The layers that turn images into one vector per token. `ClipEncoder` calls them one by one."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.embeddings = ClipVisionEmbeddings(sizes)
        self.pre_layrnorm = layer_norm(sizes)  # transformers spells `layernorm` like this
        self.encoder = Blocks(sizes)
        self.post_layernorm = layer_norm(sizes)


class ClipVisionEmbeddings(nn.Module):
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


class SiglipEncoder(TransformersEncoder):
    """SigLIP (Zhai et al. 2023), and SigLIP 2 (Tschannen et al. 2025) with a fixed picture size, as an `Encoder`.

    SigLIP 2 has another tokenizer (that of Gemma) and another resize filter (bilinear). The folder says which ones to use.
    """

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
        half.vision_model = SiglipVisionModel(self.config.vision_config)
        return half

    def make_text(self) -> nn.Module:
        """Return the text half without weights."""
        sizes, half = self.config.text_config, nn.Module()
        half.text_model = TextModel(sizes, causal=False)
        half.text_model.head = nn.Linear(sizes.hidden_size, sizes.projection_size)
        return half


class SiglipVisionModel(nn.Module):
    """The layers of the image half. `SiglipEncoder` calls them."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.embeddings = SiglipVisionEmbeddings(sizes)
        self.encoder = Blocks(sizes)
        self.post_layernorm = layer_norm(sizes)
        self.head = PoolingHead(sizes)


class SiglipVisionEmbeddings(nn.Module):
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
