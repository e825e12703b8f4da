"""The networks of CLIP and SigLIP: first the parts that both have, then CLIP, then SigLIP.

An encoder has an image half and a text half. The layers have the names that they have in a transformers folder. The classes of
the library `transformers` compute the same results, but importing them takes seconds and over 100 MB of memory.

Letters in shapes: N pictures, M sentences of L tokens, T tokens of a picture or sentence, P = h·w patches of a picture, W width
of a token, D width of a vector.
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
"""Activations by the names in transformers. CLIP by OpenAI uses the first, other CLIP models the second, SigLIP the third."""


class SelfAttention(nn.Module):
    """Attention with several heads. With `causal`, a token attends only to itself and to earlier tokens."""

    def __init__(self, sizes: Any, *, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = sizes.num_attention_heads, causal
        if sizes.hidden_size % self.num_heads:
            raise ValueError(f"config.json: {self.num_heads} heads cannot share a hidden_size of {sizes.hidden_size}")
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(sizes.hidden_size, sizes.hidden_size) for _ in range(4)
        )

    def forward(self, readers: Tensor, tokens: Tensor) -> Tensor:
        """Return the output (N, A, W) of attention from `readers` (N, A, W) to `tokens` (N, T, W)."""
        projected = self.q_proj(readers), self.k_proj(tokens), self.v_proj(tokens)
        values = read_values(*(split_heads(part, self.num_heads) for part in projected), causal=self.causal)
        output: Tensor = self.out_proj(join_heads(values))
        return output


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
        output: Tensor = self.fc2(self.activation(self.fc1(tokens)))
        return output


class Block(nn.Module):
    """A transformer block: layer norm and attention, then layer norm and MLP."""

    def __init__(self, sizes: Any, *, causal: bool) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = layer_norm(sizes), layer_norm(sizes)
        self.self_attn = SelfAttention(sizes, causal=causal)
        self.mlp = Mlp(sizes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return new tokens in the shape (N, T, W) of `tokens`."""
        normed = self.layer_norm1(tokens)
        return self.add_mlp(tokens + self.self_attn(normed, normed))

    def add_mlp(self, tokens: Tensor) -> Tensor:
        """Do the second step of a block, after the attention: return the tokens plus the output of the MLP."""
        output: Tensor = tokens + self.mlp(self.layer_norm2(tokens))
        return output


class Blocks(nn.Module):
    """All transformer blocks of an image half or a text half."""

    def __init__(self, sizes: Any, *, causal: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(sizes, causal=causal) for _ in range(sizes.num_hidden_layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return new tokens in the shape (N, T, W) of `tokens`."""
        for block in self.layers:
            tokens = block(tokens)
        return tokens


class TextEmbeddings(nn.Module):
    """Two tables: one has a vector per token, the other has a vector per position in a sentence."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.token_embedding = table(sizes.vocab_size, sizes.hidden_size)
        self.position_embedding = table(sizes.max_position_embeddings, sizes.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors (M, L, W) of token ids (M, L) on the CPU, where the token table is."""
        positions = self.position_embedding.weight[: ids.shape[1]]
        vectors: Tensor = self.token_embedding(ids).to(positions) + positions
        return vectors


class TextModel(nn.Module):
    """The layers of the text half that compute one vector per token."""

    def __init__(self, sizes: Any, *, causal: bool) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(sizes)
        self.encoder = Blocks(sizes, causal=causal)
        self.final_layer_norm = layer_norm(sizes)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors (M, L, W) of token ids (M, L) on the CPU."""
        vectors: Tensor = self.final_layer_norm(self.encoder(self.embeddings(ids)))
        return vectors


def patch_embedding(sizes: Any, *, bias: bool) -> nn.Conv2d:
    """Return the layer that turns each patch of a picture into a vector."""
    return nn.Conv2d(sizes.num_channels, sizes.hidden_size, sizes.patch_size, stride=sizes.patch_size, bias=bias)


def table(rows: int, width: int) -> nn.Embedding:
    """Return a table of vectors. The numbers in the vectors are not set yet."""
    # By default, torch would fill the table with random numbers. On the device `meta`, torch imports sympy for this, which
    # takes time.
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


def layer_norm(sizes: Any) -> nn.LayerNorm:
    """Return a layer that normalises tokens."""
    return nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)


def read_values(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """Return the weighted sums of attention: softmax(q·kᵀ/√d)·v, (N, heads, A, d).

    Args:
        query: (N, heads, A, d).
        key, value: (N, heads, T, d).
        causal: True if a query may attend only to keys up to its own position.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    # On a CPU, each picture is computed separately. For several pictures at once, torch uses threads whose buffers are aligned
    # differently, so the vector of a picture would depend on its place in the chunk.
    rows = [slice(number, number + 1) for number in range(len(query))]
    return torch.cat([F.scaled_dot_product_attention(query[row], key[row], value[row], is_causal=causal) for row in rows])


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Return tokens (N, T, W) as (N, heads, T, W / heads)."""
    return tokens.view(*tokens.shape[:2], heads, -1).transpose(1, 2)


def join_heads(values: Tensor) -> Tensor:
    """Return (N, heads, T, W / heads) as tokens (N, T, W)."""
    return values.transpose(1, 2).flatten(2)


class ClipEncoder(TransformersEncoder):
    """CLIP (Radford et al. 2021) as an `Encoder`.

    A picture has T = 1 + h·w tokens: one token for the whole picture, then one token per patch. The vectors of patches are
    computed as in SCLIP (Wang et al. 2023, arXiv 2312.01597).
    """

    temperature = 0.03
    defaults = PixelRules(224, "bicubic", mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
    # The vector of a sentence is the vector of its end token, which attends only to earlier tokens. So padding after the end
    # token changes nothing. With padding to 77 tokens, a sentence of a few words would take five times as long.
    text_step = 16

    def __init__(self, name: str, folder: Path, *, device: str, precision: str) -> None:
        super().__init__(name, folder, device=device, precision=precision)
        self.width = int(self.config.projection_dim)

    def image_vectors(self, pixels: Tensor) -> Tensor:
        """Return the vectors (N, D) of pixels (N, 3, S, S)."""
        tokens, last = self._before_last(pixels)
        # After the last block, only the first token is used. So the last block computes only this token.
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
        # In the configs of the first CLIP folders, the end token has the wrong id 2. In the tokenizers of these folders, the
        # end token has the highest id.
        positions = (ids if end == 2 else (ids == end).int()).argmax(dim=-1)
        vectors: Tensor = self.text.text_projection(tokens[torch.arange(len(ids)), positions])
        return vectors

    def _before_last(self, pixels: Tensor) -> tuple[Tensor, Block]:
        """Return the tokens (N, T, W) before the last block, and the last block."""
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
        """Return the image half. Its weights are not set yet."""
        return ClipVision(self.config.vision_config, self.config.projection_dim)

    def make_text(self) -> nn.Module:
        """Return the text half. Its weights are not set yet."""
        return ClipText(self.config.text_config, self.config.projection_dim)


class ClipText(nn.Module):
    """The layers of the text half, and the projection after them. `ClipEncoder` calls them."""

    def __init__(self, sizes: Any, width: int) -> None:
        super().__init__()
        self.text_model = TextModel(sizes, causal=True)
        self.text_projection = nn.Linear(sizes.hidden_size, width, bias=False)


class ClipVision(nn.Module):
    """The layers of the image half, and the projection after them. `ClipEncoder` calls them."""

    def __init__(self, sizes: Any, width: int) -> None:
        super().__init__()
        self.vision_model = ClipVisionModel(sizes)
        self.visual_projection = nn.Linear(sizes.hidden_size, width, bias=False)


class ClipVisionModel(nn.Module):
    """The layers of the image half that compute one vector per token. `ClipEncoder` calls each layer."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.embeddings = ClipVisionEmbeddings(sizes)
        self.pre_layrnorm = layer_norm(sizes)  # the library `transformers` spells `layernorm` like this
        self.encoder = Blocks(sizes)
        self.post_layernorm = layer_norm(sizes)


class ClipVisionEmbeddings(nn.Module):
    """The first layers of the image half: one token for the whole picture, then one token per patch."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(sizes.hidden_size))
        self.patch_embedding = patch_embedding(sizes, bias=False)
        self.position_embedding = table((sizes.image_size // sizes.patch_size) ** 2 + 1, sizes.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the tokens (N, T, W) of pixels (N, 3, S, S)."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (N, h·w, W)
        return torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], dim=1) + self.position_embedding.weight


def correlate(block: SelfAttention, tokens: Tensor) -> Tensor:
    """Return the output of SCLIP's attention, (softmax(q·qᵀ/√d) + softmax(k·kᵀ/√d))·v, (N, T, W).

    In this attention, each token attends to similar tokens.

    Args:
        block: CLIP's attention block.
        tokens: (N, T, W), normalised.
    """
    query, key, value = (split_heads(part(tokens), block.num_heads) for part in (block.q_proj, block.k_proj, block.v_proj))
    values = read_values(query, query, value) + read_values(key, key, value)
    output: Tensor = block.out_proj(join_heads(values))
    return output


class SiglipEncoder(TransformersEncoder):
    """SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025) as an `Encoder`.

    Only models of SigLIP 2 with a fixed picture size can be used. SigLIP and SigLIP 2 have different tokenizers and resize
    filters, which are stored in the folder of a model.
    """

    # The temperature is smaller than CLIP's, because the cosines of SigLIP are smaller. The exact value is a guess. It has
    # little effect for a camera with a model, because evidence is divided by the spread of the camera's evidence.
    temperature = 0.01
    defaults = PixelRules(224, "bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    # Sentences are padded to all 64 tokens, because SigLIP was trained with padding and without a mask. The vector of a
    # sentence is the vector of the last of these tokens, which is often padding.
    text_step = 0

    def __init__(self, name: str, folder: Path, *, device: str, precision: str) -> None:
        super().__init__(name, folder, device=device, precision=precision)
        self.width = int(self.config.text_config.projection_size)
        vision = self.config.vision_config
        if not vision.vision_use_head or vision.hidden_size != self.width:
            reason = "its pictures and sentences do not have comparable vectors"
            raise WeightsError(f"{folder}: not an encoder: {reason}", hint=NOT_WHOLE)

    def image_vectors(self, pixels: Tensor) -> Tensor:
        """Return the vectors (N, D) of pixels (N, 3, S, S). A learned query attends to all patches."""
        head = self.vision.vision_model.head
        pooling = head.attention
        weight, bias = pooling.in_proj_weight, pooling.in_proj_bias  # for queries, keys and values
        query = F.linear(head.probe, weight[: self.width], bias[: self.width])  # (1, 1, D)
        key, value = F.linear(self._patches(pixels), weight[self.width :], bias[self.width :]).chunk(2, dim=-1)  # (N, P, D)
        queries = query.repeat(len(pixels), 1, 1)
        heads = (split_heads(part, pooling.num_heads) for part in (queries, key, value))
        return self._after_pooling(join_heads(read_values(*heads)))[:, 0]

    def patch_vectors(self, pixels: Tensor) -> Tensor:
        """Return the patch vectors (N, P, D) of pixels (N, 3, S, S)."""
        # The vector of a patch is the output of the pooling head for this patch alone. In this case, the attention weight of
        # the patch is 1, so queries and keys are not needed.
        pooling = self.vision.vision_model.head.attention
        values = F.linear(self._patches(pixels), pooling.in_proj_weight[-self.width :], pooling.in_proj_bias[-self.width :])
        return self._after_pooling(values)

    def _patches(self, pixels: Tensor) -> Tensor:
        """Return the vectors of the patches (N, P, D), the input of the pooling head."""
        half = self.vision.vision_model
        patches: Tensor = half.post_layernorm(half.encoder(half.embeddings(pixels)))
        return patches

    def _after_pooling(self, values: Tensor) -> Tensor:
        """Return the output of the pooling head for the weighted sums (…, D) of its attention."""
        head = self.vision.vision_model.head
        attended = head.attention.out_proj(values)
        vectors: Tensor = attended + head.mlp(head.layernorm(attended))
        return vectors

    def text_vectors(self, ids: Tensor) -> Tensor:
        """Return the vectors (M, D) of token ids (M, L) on the CPU."""
        half = self.text.text_model
        vectors: Tensor = half.head(half(ids)[:, -1])
        return vectors

    def token_ids(self, text: str) -> list[int]:
        """Return the token ids of a sentence in lower case, with the end token and without padding.

        SigLIP 2 was trained on lower-case text, and Siglip2Tokenizer changes each letter to lower case. But version 5.24 of
        the library `transformers` loads the tokenizers of these folders as GemmaTokenizer, which keeps upper case (see pull
        request 43101 of that library).
        """
        return super().token_ids("".join(letter.lower() for letter in text))

    def make_vision(self) -> nn.Module:
        """Return the image half. Its weights are not set yet."""
        half = nn.Module()
        half.vision_model = SiglipVisionModel(self.config.vision_config)
        return half

    def make_text(self) -> nn.Module:
        """Return the text half. Its weights are not set yet."""
        sizes, half = self.config.text_config, nn.Module()
        half.text_model = TextModel(sizes, causal=False)
        half.text_model.head = nn.Linear(sizes.hidden_size, sizes.projection_size)
        return half


class SiglipVisionModel(nn.Module):
    """The layers of the image half of SigLIP. `SiglipEncoder` calls them one by one."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.embeddings = SiglipVisionEmbeddings(sizes)
        self.encoder = Blocks(sizes)
        self.post_layernorm = layer_norm(sizes)
        self.head = PoolingHead(sizes)


class SiglipVisionEmbeddings(nn.Module):
    """The first layers of the image half: one token per patch."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.patch_embedding = patch_embedding(sizes, bias=True)
        self.position_embedding = table((sizes.image_size // sizes.patch_size) ** 2, sizes.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return one token per patch (N, P, D) of pixels (N, 3, S, S)."""
        patches: Tensor = self.patch_embedding(pixels).flatten(2).transpose(1, 2) + self.position_embedding.weight
        return patches


class PoolingHead(nn.Module):
    """The layers that turn the vectors of all patches into one vector. `SiglipEncoder` calls them."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, sizes.hidden_size))
        self.attention = nn.MultiheadAttention(sizes.hidden_size, sizes.num_attention_heads, batch_first=True)
        self.layernorm = layer_norm(sizes)
        self.mlp = Mlp(sizes)
