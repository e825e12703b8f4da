"""Multi-scale semantic projector (section 3.7 of the paper): makes the prompts for the mask decoder.

Its inputs are clip semantics and frame semantics. The clip semantics are h_seg, the language model's hidden state at `<SEG>`.
The frame semantics are one vector per category and frame: each category attends to the image features of the frame.

    h_seg (B, D_llm) ────────────────────────────┐
    text (C, D_txt) ─┐                           ├─> keys (1 + C) ─┐
    image, position ─┴─> frame semantics E (C) ──┘                 ├─> blocks ─> linear ─> prompt
    learnable queries (48) ────────────────────────────────────────┘

There are three kinds of projectors, as in Table 4 of the paper. The paper chose `two_way`, in which the blocks update queries
and keys, as in SAM's decoder. In `qformer`, the blocks update only queries. `mlp` uses only h_seg. The prompt of a frame does
not depend on the other frames of the batch.

Letters in shapes: B clips, T frames per clip, N = B · T, C categories, Q queries, d width of queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

Kind = Literal["two_way", "qformer", "mlp"]
ODDS = 8.0  # log odds are limited to ±ODDS, because larger values add no information
NULL_STD = 0.1  # initial standard deviation of the "nowhere" key


@dataclass(frozen=True)
class ProjectorOptions:
    """The kind and the sizes of the projector.

    The presets lavida-2b and lavida-7b use the defaults.

    Args:
        kind: one of the three kinds at the top of this file.
        width: d, the width of queries and keys.
        queries: number of learnable queries.
        blocks: number of transformer blocks.
        heads: attention heads in the blocks.
        mlp: width of the hidden layer of the MLPs in the blocks.
        downsample: `width` is divided by this number inside the cross-attention of `two_way` and inside the attention of the
            frame semantics.
        category_heads: attention heads of the frame semantics.
        null_key: True if each category can also attend to a learned key that means "nowhere in this frame". Not in the paper.
        presence: True to compute a logit from the updated queries, and to add this logit to the object logit of the mask
            decoder. With `null_key`, a second number is added: the scaled log odds that the frame shows the most probable
            category. Not in the paper.
        mask_prompt: True to give the mask decoder a mask prompt that shows where the most probable category is. Needs
            `null_key`. Not in the paper.
    """

    kind: Kind = "two_way"
    width: int = 768
    queries: int = 48
    blocks: int = 5
    heads: int = 12
    mlp: int = 2048
    downsample: int = 2
    category_heads: int = 8
    null_key: bool = False
    presence: bool = False
    mask_prompt: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"projector kind is {self.kind!r}; give one of {', '.join(get_args(Kind))}")
        for name in ("width", "queries", "blocks", "heads", "mlp", "downsample", "category_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"projector {name} is {getattr(self, name)}; give 1 or more")
        for name in ("heads", "category_heads"):
            if self.width % (self.downsample * getattr(self, name)):
                raise ValueError(
                    f"projector width is {self.width}; give a multiple of downsample · {name} = "
                    f"{self.downsample * getattr(self, name)}"
                )


@dataclass(frozen=True)
class Prompts:
    """The projector's output and the mask decoder's input.

    Attributes:
        sparse: (B, T, 1, C_img), one sparse prompt per frame.
        presence: (B, T), numbers to add to the object logit of the mask decoder; None without `ProjectorOptions.presence`.
        dense: (B, T, C_img, h, w), numbers to add to SAM2's embedding for "no mask"; None without `mask_prompt`.
    """

    sparse: Tensor
    presence: Tensor | None = None
    dense: Tensor | None = None


def build_projector(options: ProjectorOptions, *, llm_width: int, text_width: int, image_width: int) -> nn.Module:
    """Return the projector of `options.kind` with random weights; see `Projector.forward`.

    Args:
        options: the kind and the sizes of the projector.
        llm_width: D_llm, the width of h_seg.
        text_width: D_txt, the width of the category features.
        image_width: C_img, the width of the image embedding and of the prompt.
    """
    if options.kind == "mlp":
        return MlpProjector(llm_width=llm_width, image_width=image_width)
    return Projector(options, llm_width=llm_width, text_width=text_width, image_width=image_width)


class Projector(nn.Module):
    """The projectors `two_way` and `qformer`: learnable queries attend to clip and frame semantics."""

    def __init__(self, options: ProjectorOptions, *, llm_width: int, text_width: int, image_width: int) -> None:
        super().__init__()
        width = options.width
        self.frame_semantics = FrameSemantics(options, text_width=text_width, image_width=image_width)
        self.clip_semantics = nn.Linear(llm_width, width)
        self.queries = nn.Parameter(torch.randn(options.queries, width))
        self.blocks = nn.ModuleList(
            QFormerBlock(options) if options.kind == "qformer" else TwoWayBlock(options, last=index == options.blocks - 1)
            for index in range(options.blocks)
        )
        self.prompt = nn.Linear(options.queries * width, image_width)
        self.presence = nn.Linear(options.queries * width, 1) if options.presence else None
        self.odds_scale = nn.Parameter(torch.tensor(0.5)) if options.presence and options.null_key else None
        self.mask_prompt = nn.Parameter(torch.zeros(image_width)) if options.mask_prompt and options.null_key else None

    def forward(self, seg: Tensor, text: Tensor, image: Tensor, position: Tensor, text_mask: Tensor | None = None) -> Prompts:
        """Return one sparse prompt per frame, and the other outputs for which the options ask.

        Args:
            seg: (B, D_llm) h_seg, the clip semantics.
            text: category features, (C, D_txt) for all clips or (B, C, D_txt) for each clip.
            image: (B, T, C_img, h, w) image embedding.
            position: (1, C_img, h, w), the position encoding of the image embedding.
            text_mask: (B, C) bool, True for the categories that a clip uses. All other categories have no influence on the
                clip. None means that every clip uses all categories.
        """
        clips, frames = image.shape[:2]
        text = text.expand(clips, -1, -1)  # (B, C, D_txt)
        mask = unused = None
        if text_mask is not None:
            # An attention weight of 0 is not enough for an unused category: if its features are NaN, 0 · NaN is NaN.
            text = text.masked_fill(~text_mask[:, :, None], 0)
            counts = torch.cat([text_mask.new_ones(clips, 1), text_mask], dim=1)  # the first key, from h_seg, always counts
            mask = counts.repeat_interleave(frames, dim=0)[:, None, None]  # (N, 1, 1, 1 + C)
            unused = ~text_mask.repeat_interleave(frames, dim=0)  # (N, C)
        clip = self.clip_semantics(seg)[:, None].repeat_interleave(frames, dim=0)  # (N, 1, d)
        frame = self.frame_semantics(text, image, position)  # (N, C, d)
        keys = torch.cat([clip, frame], dim=1)  # (N, 1 + C, d)
        queries = self.queries.to(keys.dtype).expand(len(keys), -1, -1)  # (N, Q, d)
        query_position, key_position = queries, keys
        for block in self.blocks:
            queries, keys = block(queries, keys, query_position, key_position, mask)
        flat = queries.flatten(1)
        presence = None if self.presence is None else self.presence(flat).view(clips, frames)
        sparse = self.prompt(flat).reshape(clips, frames, 1, -1)
        if self.odds_scale is None and self.mask_prompt is None:
            return Prompts(sparse, presence)
        where = self.frame_semantics.where(text, image, position)  # (N, C, h · w + 1)
        if presence is not None and self.odds_scale is not None:
            presence = presence + self.odds_scale * _likeliest(anywhere(where), unused).view(clips, frames)
        dense = None
        if self.mask_prompt is not None:
            odds = where[..., :-1] - where[..., -1:]  # (N, C, h · w)
            strongest = _likeliest(odds, unused).view(clips, frames, 1, *image.shape[-2:])
            dense = strongest / ODDS * self.mask_prompt[:, None, None]
        return Prompts(sparse, presence, dense)


class MlpProjector(nn.Module):
    """The projector `mlp`: two layers turn h_seg into one prompt for all frames of a clip (as in LISA)."""

    def __init__(self, *, llm_width: int, image_width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(llm_width, llm_width), nn.ReLU(), nn.Linear(llm_width, image_width))

    def forward(self, seg: Tensor, text: Tensor, image: Tensor, position: Tensor, text_mask: Tensor | None = None) -> Prompts:
        """See `Projector.forward`; only `seg` and the number of frames are used."""
        prompt: Tensor = self.layers(seg)  # (B, C_img)
        return Prompts(prompt[:, None, None].expand(-1, image.shape[1], -1, -1))


class FrameSemantics(nn.Module):
    """Each category attends to one frame: E = Linear(LayerNorm(Q + CrossAttn(Q, V, V))).

    V are the image features, Q are the categories. With `null_key`, one more key means "nowhere in this frame". A category
    that attends to this key is probably absent.
    """

    def __init__(self, options: ProjectorOptions, *, text_width: int, image_width: int) -> None:
        super().__init__()
        width = options.width
        self.image = nn.Linear(image_width, width)
        self.text = nn.Linear(text_width, width)
        self.attention = Attention(width, options.category_heads, downsample=options.downsample)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.null = nn.Parameter(NULL_STD * torch.randn(1, 1, width)) if options.null_key else None

    def forward(self, text: Tensor, image: Tensor, position: Tensor) -> Tensor:
        """Return E (N, C, d). The arguments are those of `Projector.forward`; `text` is (B, C, D_txt)."""
        queries, values = self._sides(text, image, position)
        semantics: Tensor = self.out(self.norm(queries + self.attention(queries, values, values)))
        return semantics

    def where(self, text: Tensor, image: Tensor, position: Tensor) -> Tensor:
        """Return attention logits (N, C, h · w), averaged over the heads. The arguments are as in `forward`.

        With `null_key`, the result has one more column at the end: the logit of the key "nowhere".
        """
        queries, values = self._sides(text, image, position)
        return self.attention.logits(queries, values).mean(dim=1)

    def _sides(self, text: Tensor, image: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries (N, C, d) and keys (N, h · w or h · w + 1, d). The keys are also the values."""
        # (N, h · w, C_img)
        pixels = (image + position.to(image.dtype)).flatten(0, 1).flatten(2).transpose(1, 2)
        values = self.image(pixels)  # (N, h · w, d)
        if self.null is not None:
            values = torch.cat([values, self.null.to(values.dtype).expand(len(values), -1, -1)], dim=1)
        return self.text(text).repeat_interleave(image.shape[1], dim=0), values


class TwoWayBlock(nn.Module):
    """SAM's two-way block. It has four steps.

    The queries attend to the queries, then to the keys. An MLP changes the queries. At the end, the keys attend to the
    queries. Only the last block leaves out this fourth step, because no later block uses the keys.

    The learnable queries and the initial keys are used as position encodings: every block adds them to its queries and keys.
    """

    def __init__(self, options: ProjectorOptions, *, last: bool) -> None:
        super().__init__()
        width = options.width
        self.self_attention = Attention(width, options.heads)
        self.norm1 = nn.LayerNorm(width)
        self.queries_to_keys = Attention(width, options.heads, downsample=options.downsample)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, options.mlp), nn.ReLU(), nn.Linear(options.mlp, width))
        self.norm3 = nn.LayerNorm(width)
        self.keys_to_queries = None if last else Attention(width, options.heads, downsample=options.downsample)
        self.norm4 = None if last else nn.LayerNorm(width)

    def forward(
        self, queries: Tensor, keys: Tensor, query_position: Tensor, key_position: Tensor, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the updated queries and keys.

        Args:
            queries: (N, Q, d), the queries of N frames.
            keys: (N, K, d), the keys of N frames.
            query_position: (N, Q, d), numbers to add to the queries before attention.
            key_position: (N, K, d), numbers to add to the keys before attention.
            key_mask: (N, 1, 1, K) bool, True for keys that count; None if all keys count.
        """
        placed = queries + query_position
        queries = self.norm1(queries + self.self_attention(placed, placed, queries))
        placed, placed_keys = queries + query_position, keys + key_position
        queries = self.norm2(queries + self.queries_to_keys(placed, placed_keys, keys, key_mask))
        queries = self.norm3(queries + self.mlp(queries))
        if self.keys_to_queries is not None and self.norm4 is not None:
            keys = self.norm4(keys + self.keys_to_queries(placed_keys, queries + query_position, queries))
        return queries, keys


class QFormerBlock(nn.Module):
    """The block of a Q-Former. It does not change the keys.

    The queries attend to the queries, then to the keys. At the end, an MLP changes the queries.
    """

    def __init__(self, options: ProjectorOptions) -> None:
        super().__init__()
        width = options.width
        self.self_attention = Attention(width, options.heads)
        self.norm1 = nn.LayerNorm(width)
        self.queries_to_keys = Attention(width, options.heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, options.mlp), nn.GELU(), nn.Linear(options.mlp, width))
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self, queries: Tensor, keys: Tensor, query_position: Tensor, key_position: Tensor, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `TwoWayBlock.forward`. `query_position` and `key_position` are not used."""
        queries = self.norm1(queries + self.self_attention(queries, queries, queries))
        queries = self.norm2(queries + self.queries_to_keys(queries, keys, keys, key_mask))
        queries = self.norm3(queries + self.mlp(queries))
        return queries, keys


class Attention(nn.Module):
    """Multi-head attention. Queries, keys and values are reduced to the width `width // downsample`."""

    def __init__(self, width: int, heads: int, *, downsample: int = 1) -> None:
        super().__init__()
        inside = width // downsample
        self.heads = heads
        self.q = nn.Linear(width, inside)
        self.k = nn.Linear(width, inside)
        self.v = nn.Linear(width, inside)
        self.out = nn.Linear(inside, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the output (N, Q, d) of attention from `queries` (N, Q, d) to `keys` and `values` (N, K, d).

        `mask` is (N, 1, 1, K) bool, True for keys that count.
        """
        q, k, v = self._split(self.q(queries)), self._split(self.k(keys)), self._split(self.v(values))
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (N, heads, Q, d / heads)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))  # (N, Q, d)
        return out

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the logits (N, heads, Q, K) before the softmax of `queries` (N, Q, d) and `keys` (N, K, d)."""
        q, k = self._split(self.q(queries)), self._split(self.k(keys))
        logits: Tensor = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        return logits

    def _split(self, tokens: Tensor) -> Tensor:
        """Return tokens (N, K, inside) split into heads: (N, heads, K, inside / heads)."""
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


def anywhere(where: Tensor) -> Tensor:
    """Return for each category the log odds (N, C) that it is somewhere in the frame.

    `where` is the result of `FrameSemantics.where` with `null_key`.
    """
    return where[..., :-1].logsumexp(dim=-1) - where[..., -1]


def _likeliest(odds: Tensor, unused: Tensor | None) -> Tensor:
    """Return for each place the highest log odds of the C categories, (N, …).

    Args:
        odds: (N, C, …) log odds of the categories.
        unused: (N, C) bool, True for categories that are ignored. None ignores no category.
    """
    odds = odds.clamp(-ODDS, ODDS)
    if unused is not None:
        odds = odds.masked_fill(unused.view(*unused.shape, *[1] * (odds.dim() - 2)), -ODDS)
    return odds.amax(dim=1)
