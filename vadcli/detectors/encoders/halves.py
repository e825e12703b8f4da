"""The common parts of the image half and the text half of CLIP and SigLIP.

The parts have the same names as in a transformers folder. transformers' own classes compute the same, but their import takes
seconds and over 100 MB.

Letters in shapes: N pictures, M sentences of L tokens, T tokens of a picture or sentence, W width of a half.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
