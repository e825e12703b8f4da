"""Multi-scale semantic projector (paper 3.7): what the clip means and what each frame shows become one prompt a frame.

    h_seg (B, D_llm) ───────────────────────────────────────────────┐
    text (C, D_txt) ─┐                                              ├─> K (1 + C) ─┐
    image, position ─┴─> frame semantics E (C a frame) ─────────────┘              ├─> blocks ─> flatten, linear ─> prompt
    learnable queries P (48) ──────────────────────────────────────────────────────┘

Three kinds, to repeat the paper's Table 4: `two_way` (the paper's; queries and keys update one another, as in SAM's decoder),
`qformer` (only the queries are updated) and `mlp` (h_seg alone). Frames of a batch don't see one another: N = B · T below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

Kind = Literal["two_way", "qformer", "mlp"]
ODDS = 8.0  # log odds beyond this say nothing more
NULL_STD = 0.1  # of the key for "nowhere" at the start


@dataclass(frozen=True)
class ProjectorOptions:
    """Sizes of the projector; the defaults are the base preset's.

    Args:
        kind: which of the three projectors.
        width: d of queries and keys.
        queries: learnable queries.
        blocks: transformer blocks.
        heads: heads of their attentions.
        mlp: hidden width of their MLPs.
        downsample: how many times narrower than `width` the cross-attentions of two_way and of the frame semantics are inside.
        category_heads: heads of the frame semantics' attention.
        null_key: a category's attention may also go to a learned key that stands for "nowhere in this frame". Not the paper's.
        presence: two logits are added to the mask decoder's object score: one read from the updated queries, and, with
            `null_key`, the odds of the likeliest category to be anywhere rather than nowhere, scaled. Not the paper's.
        mask_prompt: with `null_key`, the place of the likeliest category is the mask decoder's mask prompt. Not the paper's.
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
    """What a projector asks the mask decoder.

    Attributes:
        sparse: (B, T, 1, C_img), one sparse prompt a frame.
        presence: (B, T) to be added to the decoder's object logit; None where the projector has no such output.
        dense: (B, T, C_img, h, w) to be added to SAM2's embedding of "no mask"; None likewise.
    """

    sparse: Tensor
    presence: Tensor | None = None
    dense: Tensor | None = None


def build_projector(options: ProjectorOptions, *, llm_width: int, text_width: int, image_width: int) -> nn.Module:
    """The projector of `options.kind` with random weights; call it as Projector.forward says.

    Args:
        options: kind and sizes.
        llm_width: D_llm of h_seg.
        text_width: D_txt of the category features.
        image_width: C_img of the image embedding, and the prompt's width.
    """
    if options.kind == "mlp":
        return MlpProjector(llm_width=llm_width, image_width=image_width)
    return Projector(options, llm_width=llm_width, text_width=text_width, image_width=image_width)


class Projector(nn.Module):
    """The two_way and the qformer projector: learnable queries read the clip's and the frame's semantics."""

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
        """One sparse prompt a frame.

        Args:
            seg: (B, D_llm) h_seg, the clip's meaning.
            text: (C, D_txt) category features of all clips, or (B, C, D_txt) of each.
            image: (B, T, C_img, h, w) image embedding.
            position: (1, C_img, h, w) its position encoding.
            text_mask: (B, C) bool, True where a clip has that category; the others have no influence. All, where None.
        """
        clips, frames = image.shape[:2]
        text = text.expand(clips, -1, -1)  # (B, C, D_txt)
        if text_mask is not None:
            text = text.masked_fill(~text_mask[:, :, None], 0)  # lest what is not a number get through a weight of 0
        clip = self.clip_semantics(seg)[:, None].repeat_interleave(frames, dim=0)  # (N, 1, d)
        frame = self.frame_semantics(text, image, position)  # (N, C, d)
        keys = torch.cat([clip, frame], dim=1)  # (N, 1 + C, d)
        mask = None if text_mask is None else _key_mask(text_mask, frames)
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
        absent = None if text_mask is None else ~text_mask.repeat_interleave(frames, dim=0)
        if presence is not None and self.odds_scale is not None:
            presence = presence + self.odds_scale * _likeliest(anywhere(where), absent).view(clips, frames)
        dense = None
        if self.mask_prompt is not None:
            odds = where[..., :-1] - where[..., -1:]  # (N, C, h · w)
            strongest = _likeliest(odds, absent).view(clips, frames, 1, *image.shape[-2:])
            dense = strongest / ODDS * self.mask_prompt[:, None, None]
        return Prompts(sparse, presence, dense)


class MlpProjector(nn.Module):
    """The mlp projector: h_seg alone through two layers (LISA's), the same prompt for every frame of a clip."""

    def __init__(self, *, llm_width: int, image_width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(llm_width, llm_width), nn.ReLU(), nn.Linear(llm_width, image_width))

    def forward(self, seg: Tensor, text: Tensor, image: Tensor, position: Tensor, text_mask: Tensor | None = None) -> Prompts:
        """As Projector.forward, but text and what the image shows don't matter."""
        prompt: Tensor = self.layers(seg)  # (B, C_img)
        return Prompts(prompt[:, None, None].expand(-1, image.shape[1], -1, -1))


class FrameSemantics(nn.Module):
    """E: each category looks at one frame, E = Linear(LayerNorm(Q + CrossAttn(Q, V, V))).

    With `null_key` one more key stands for "nowhere": what a category's attention leaves to it, says that it isn't there.
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
        """(B, C, D_txt), (B, T, C_img, h, w), (1, C_img, h, w) -> (N, C, d)."""
        queries, values = self._sides(text, image, position)
        semantics: Tensor = self.out(self.norm(queries + self.attention(queries, values, values)))
        return semantics

    def where(self, text: Tensor, image: Tensor, position: Tensor) -> Tensor:
        """How much each category attends to each place, before the softmax, meaned over the heads: (N, C, h · w), and one more
        column with `null_key`; the arguments as above.
        """
        queries, values = self._sides(text, image, position)
        return self.attention.logits(queries, values).mean(dim=1)

    def _sides(self, text: Tensor, image: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (N, C, d) and keys, which are the values too, (N, h · w (+ 1), d)."""
        pixels = (image + position.to(image.dtype)).flatten(0, 1).flatten(2).transpose(1, 2)  # (N, h · w, C_img)
        values = self.image(pixels)  # (N, h · w, d)
        if self.null is not None:
            values = torch.cat([values, self.null.to(values.dtype).expand(len(values), -1, -1)], dim=1)
        return self.text(text).repeat_interleave(image.shape[1], dim=0), values


class TwoWayBlock(nn.Module):
    """SAM's two-way block: self-attention of the queries; queries read keys; MLP; keys read queries.

    Every block, the first too, adds the position encodings: the learnable queries, and the keys as they were at first. Nothing
    reads the keys after the last block, so that one doesn't update them and has no weights for it.
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
        """(N, Q, d) queries, (N, K, d) keys, the same of positions, (N, 1, 1, K) bool -> queries, keys."""
        placed = queries + query_position
        queries = self.norm1(queries + self.self_attention(placed, placed, queries))
        placed, placed_keys = queries + query_position, keys + key_position
        queries = self.norm2(queries + self.queries_to_keys(placed, placed_keys, keys, key_mask))
        queries = self.norm3(queries + self.mlp(queries))
        if self.keys_to_queries is not None and self.norm4 is not None:
            keys = self.norm4(keys + self.keys_to_queries(placed_keys, queries + query_position, queries))
        return queries, keys


class QFormerBlock(nn.Module):
    """A Q-Former's block: self-attention of the queries; queries read keys; MLP. Keys stay as they are, no positions."""

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
        """As TwoWayBlock.forward; the positions are not used."""
        queries = self.norm1(queries + self.self_attention(queries, queries, queries))
        queries = self.norm2(queries + self.queries_to_keys(queries, keys, keys, key_mask))
        queries = self.norm3(queries + self.mlp(queries))
        return queries, keys


class Attention(nn.Module):
    """Multi-head attention, `downsample` times narrower inside."""

    def __init__(self, width: int, heads: int, *, downsample: int = 1) -> None:
        super().__init__()
        inside = width // downsample
        self.heads = heads
        self.q = nn.Linear(width, inside)
        self.k = nn.Linear(width, inside)
        self.v = nn.Linear(width, inside)
        self.out = nn.Linear(inside, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, Q, d), (N, K, d), (N, K, d), mask (N, 1, 1, K) bool, True where a key counts -> (N, Q, d)."""
        q, k, v = self._split(self.q(queries)), self._split(self.k(keys)), self._split(self.v(values))
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (N, heads, Q, inside / heads)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))  # (N, Q, d)
        return out

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """What the softmax is taken of: (N, Q, d), (N, K, d) -> (N, heads, Q, K)."""
        q, k = self._split(self.q(queries)), self._split(self.k(keys))
        found: Tensor = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        return found

    def _split(self, tokens: Tensor) -> Tensor:
        """(N, K, inside) -> (N, heads, K, inside / heads)."""
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


def anywhere(where: Tensor) -> Tensor:
    """The log odds that a category is anywhere rather than nowhere, of `FrameSemantics.where` with a null key: (N, C)."""
    return where[..., :-1].logsumexp(dim=-1) - where[..., -1]


def _likeliest(odds: Tensor, absent: Tensor | None) -> Tensor:
    """The highest log odds over the categories, (N, C, …) -> (N, …); `absent` (N, C) names those that don't count."""
    odds = odds.clamp(-ODDS, ODDS)
    if absent is not None:
        odds = odds.masked_fill(absent.view(*absent.shape, *[1] * (odds.dim() - 2)), -ODDS)
    return odds.amax(dim=1)


def _key_mask(text_mask: Tensor, frames: int) -> Tensor:
    """(B, C) -> (N, 1, 1, 1 + C): the clip's semantics always count."""
    counts = torch.cat([text_mask.new_ones(len(text_mask), 1), text_mask], dim=1)
    return counts.repeat_interleave(frames, dim=0)[:, None, None]
