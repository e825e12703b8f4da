"""Qwen2-VL for LAVIDA (section 3.5 of the paper) and `ask`: from frames to a hidden state.

Frames become patches, and patches become visual tokens. In one pass (a prefill), the language model reads a whole prompt with
the visual tokens. LAVIDA uses the hidden state at `<SEG>`, and `ask` uses the hidden state at the last token.

Letters in shapes: B clips, T frames per clip, (H, W) frame size, (h, w) frame size in patches, p = 14 px per patch, P patches
per clip, L visual tokens, M visual tokens after compression, S tokens in the sequence, D model width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, Qwen2VLTextModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from vadcli.detectors.mllm.compress import CompressionOptions, NamePooling, SharedSight, compress, moving_groups

CACHE = "cache" if "cache" in inspect.signature(Qwen2VLTextModel.forward).parameters else "past_key_values"
"""The name of the argument for cached keys and values. It depends on the version of transformers."""
VIDEO = "<|video_pad|>"
"""The token that marks the place of a video in a prompt."""
Channels = tuple[float, float, float]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
LONGEST_ASPECT = 200
QWEN_PX = 28
"""The sides of a frame for Qwen2-VL are multiples of this, because 2 × 2 patches of 14 × 14 px are merged."""


class ExactBuffers(nn.Module):
    """A module whose buffers keep their dtype and their values when the module is cast.

    The only buffers of Qwen2-VL and SAM2 are frequencies of position encodings. A position encoding is the sine of frequency
    times position. With frequencies in half precision, the argument of the sine would be wrong: in bfloat16, by tenths of a
    radian.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in list(self.named_buffers()):
            if buffer.dtype != exact[name].dtype:
                owner, _, own = name.rpartition(".")
                setattr(self.get_submodule(owner), own, exact[name].to(buffer.device))
        return self


@dataclass(frozen=True)
class PatchGrid:
    """The number of patches of one clip in each direction: pairs of frames × rows × columns.

    Attributes:
        pairs: T / 2, the number of pairs of frames.
        rows, columns: h and w, the size of a frame in patches; multiples of `merge`.
        merge: the vision tower merges squares of merge × merge patches into one token each.
    """

    pairs: int
    rows: int
    columns: int
    merge: int = 2

    @property
    def patches(self) -> int:
        """The number of patches per clip."""
        return self.pairs * self.rows * self.columns

    @property
    def tokens(self) -> int:
        """L, the number of visual tokens per clip after patches are merged."""
        return self.patches // self.merge**2


def qwen_patches(
    frames: Tensor,
    *,
    min_px: int,
    max_px: int,
    patch_px: int = 14,
    merge: int = 2,
    mean: Channels = CLIP_MEAN,
    std: Channels = CLIP_STD,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, PatchGrid]:
    """Resize, normalise and cut pairs of frames into patches, as Qwen2-VL's image processor does.

    Patches are in the order in which the vision tower merges them: the four patches of a 2 × 2
    group are adjacent.

    Args:
        frames: (B, T, H, W, 3) uint8, T even.
        min_px, max_px: limits of the area of a resized frame, in pixels.
        patch_px: side of a patch in pixels.
        merge: the vision tower merges squares of merge × merge patches.
        mean, std: mean and standard deviation of each channel, for pixel values of 0 to 1.
        dtype: dtype of the result.

    Returns:
        (B, P, 3·2·p·p) patches and their grid.
    """
    b, t, height, width, _ = frames.shape
    factor = patch_px * merge
    # `smart_resize` rejects frames with an aspect ratio over 200, so the shorter side of such a frame is enlarged.
    tall, wide = max(height, -(-width // LONGEST_ASPECT)), max(width, -(-height // LONGEST_ASPECT))
    new_h, new_w = smart_resize(tall, wide, factor=factor, min_pixels=min_px, max_pixels=max_px)
    pixels = resize(frames.flatten(0, 1), new_h, new_w, mode="bicubic")  # (B·T, 3, h·p, w·p), 0-255
    pixels = normalise(pixels, mean, std).to(dtype)
    grid = PatchGrid(t // 2, new_h // patch_px, new_w // patch_px, merge)
    pixels = pixels.view(
        b, grid.pairs, 2, 3, grid.rows // merge, merge, patch_px, grid.columns // merge, merge, patch_px
    )  # (B, pairs, 2, 3, h/2, 2, p, w/2, 2, p)
    pixels = pixels.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)  # (B, pairs, h/2, w/2, 2, 2, 3, 2, p, p)
    return pixels.reshape(b, grid.patches, -1), grid


def resize(frames: Tensor, height: int, width: int, *, mode: str) -> Tensor:
    """Resize frames (N, H, W, 3) uint8 to (N, 3, height, width) float32, whole numbers in 0-255."""
    pixels = frames.permute(0, 3, 1, 2).float()  # (N, 3, H, W)
    if pixels.shape[-2:] != (height, width):
        pixels = F.interpolate(pixels, size=(height, width), mode=mode, antialias=True, align_corners=False)
        pixels = pixels.round().clamp(0, 255)
    return pixels


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Scale pixels (…, 3, H, W) from 0-255 to 0-1, subtract `mean` and divide by `std` per channel."""
    shift = torch.tensor(mean, device=pixels.device)[:, None, None]
    scale = torch.tensor(std, device=pixels.device)[:, None, None]
    return (pixels / 255 - shift) / scale


@dataclass(frozen=True)
class PromptTokens:
    """The token ids of one prompt. The visual tokens go between `before` and `after`.

    Attributes:
        before: ids up to and including <|vision_start|>.
        after: ids from <|vision_end|> to the end of the prompt. A prompt for LAVIDA ends with the forced answer.
        seg: index in `after` of the token whose hidden state is used: `<SEG>` for LAVIDA, the last token for `ask`.
        names: for each category, the index in `after` of its last token; only LAVIDA uses this.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    seg: int
    names: tuple[int, ...] = ()


@dataclass(frozen=True)
class VisualTokens:
    """The compressed visual tokens of one clip, ready for the language model.

    Attributes:
        tokens: (M, D), the tokens after compression.
        positions: (3, M) int64: time, row and column of each token, counted from the start of the video.
        extent: the number of positions that the video needs. The text after the video starts this many positions after the
            start of the video.
        length: L, the number of visual tokens before compression.
    """

    tokens: Tensor
    positions: Tensor
    extent: int
    length: int


@dataclass(frozen=True)
class Prefix:
    """The state of the language model at the end of the video, for some clips of a batch.

    The model has read the text before the video, and the video.

    Attributes:
        rows: indices of these clips in the batch.
        cache: keys and values of the S tokens up to the end of the video.
        length: S, the number of these tokens.
        next_position: position of the first token of the text after the video.
    """

    rows: list[int]
    cache: Any
    length: int
    next_position: int


@dataclass(frozen=True)
class TrainingOutputs:
    """The outputs of the language model in training, for B clips and one prompt per clip.

    Attributes:
        seg: (B, D), the same as the result of `hidden_at_seg`.
        logits: (B, A + 1, V) for a vocabulary of V tokens, at the token before the answer and at its A tokens.
        names: B tensors (C,), one logit per category of the prompt; empty if the model has no `pooling`.
    """

    seg: Tensor
    logits: Tensor
    names: list[Tensor]


class MultimodalLM(ExactBuffers):
    """Qwen2-VL as one module. LAVIDA adds the token `<SEG>` to the vocabulary.

    Args:
        qwen: a Qwen2VLForConditionalGeneration of the library `transformers`.
        sight: makes the visual tokens from SAM2's features; None if the vision tower makes them.
        pooling: adds the hidden states of the categories to the hidden state at `<SEG>`; None to add nothing.
    """

    def __init__(self, qwen: Any, *, sight: SharedSight | None = None, pooling: NamePooling | None = None) -> None:
        super().__init__()
        self.qwen = qwen
        self.sight = sight
        self.pooling = pooling

    @property
    def width(self) -> int:
        """D, the width of the language model."""
        return int(self.qwen.config.text_config.hidden_size)

    @property
    def patch_px(self) -> int:
        """Side of a patch in pixels."""
        return int(self.qwen.config.vision_config.patch_size)

    @property
    def merge(self) -> int:
        """A square of `merge` x `merge` patches becomes one token."""
        return int(self.qwen.config.vision_config.spatial_merge_size)

    def encode_patches(
        self, patches: Tensor, grid: PatchGrid, static_threshold: float | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Run the vision tower. Return for each clip its visual tokens and their indices in the grid.

        Args:
            patches: (B, P, 3·2·p·p), the result of `qwen_patches`.
            grid: the number of patches in each direction.
            static_threshold: the threshold for `moving_groups`, which chooses the groups of patches to keep; None keeps all
                groups.

        Returns:
            B pairs: tokens (L, D), and for each token its index in the whole grid, (L,) int64, ascending.
        """
        b, group = len(patches), grid.merge**2
        embedded = self.qwen.model.visual.patch_embed(patches.flatten(0, 1)).view(b, grid.pairs, -1, group, self._tower_width)
        everything = torch.arange(grid.tokens, device=patches.device)
        if static_threshold is None:
            tokens = self._tower(embedded.view(b * grid.pairs, -1, self._tower_width), self._angles(grid))
            return [(clip, everything) for clip in tokens.view(b, grid.tokens, -1)]
        return [self._encode_moving(clip, grid, moving_groups(clip, static_threshold)) for clip in embedded]

    def _encode_moving(self, embedded: Tensor, grid: PatchGrid, moving: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the patches (pairs, G, 4, E) of one clip whose group is True in `moving` (pairs, G)."""
        cos, sin = (part.view(moving.shape[1], grid.merge**2, -1) for part in self._angles(grid))
        steps = []
        for step, kept in zip(embedded, moving, strict=True):
            angles = cos[kept].flatten(0, 1), sin[kept].flatten(0, 1)
            if bool(kept.any()):
                steps.append(self._tower(step[kept].flatten(0, 1)[None], angles))
        return torch.cat(steps, dim=1)[0], moving.flatten().nonzero()[:, 0]

    def compressed(self, clip: tuple[Tensor, Tensor], grid: PatchGrid, options: CompressionOptions) -> VisualTokens:
        """Return the compressed tokens of one clip and their positions (section 3.4 of the paper)."""
        tokens, index = clip
        compressed = compress(tokens, options)
        rows, columns = grid.rows // grid.merge, grid.columns // grid.merge
        kept = index[compressed.kept]
        if options.positions == "sequential":
            row = torch.arange(len(kept), device=kept.device)
            return VisualTokens(compressed.tokens, row.expand(3, -1), len(kept), len(tokens))
        positions = torch.stack([kept // (rows * columns), kept // columns % rows, kept % columns])
        return VisualTokens(compressed.tokens, positions, max(rows, columns), len(tokens))

    def hidden_at_seg(self, clips: list[VisualTokens], prompt: PromptTokens) -> Tensor:
        """Run one prefill per clip. Return the hidden states (B, D) at `<SEG>`, after the last norm.

        The tokens after `<SEG>` are left out. Attention is causal, so these tokens cannot change the state at `<SEG>`.
        """
        hidden = self._empty(len(clips))
        for rows, group in _equal_lengths(clips):
            embedded, positions = self._before(group, prompt)
            tail, tail_positions = self._after(prompt, _next_position(group, prompt), len(group))
            output = self.qwen.model.language_model(
                inputs_embeds=torch.cat([embedded, tail], dim=1),
                position_ids=torch.cat([positions, tail_positions], dim=2),
                use_cache=False,
            )
            states = output.last_hidden_state[:, embedded.shape[1] :]
            hidden[rows] = self._gathered(states, prompt)[0].to(hidden.dtype)
        return hidden

    def prefixes(self, clips: list[VisualTokens], prompt: PromptTokens) -> list[Prefix]:
        """Return the states at the end of the video.

        The states can be used for all prompts that have the same text before the video.
        """
        prefixes = []
        for rows, group in _equal_lengths(clips):
            embedded, positions = self._before(group, prompt)
            model = self.qwen.model.language_model
            cache = DynamicCache(config=model.config)
            model(inputs_embeds=embedded, position_ids=positions, use_cache=True, **{CACHE: cache})
            prefixes.append(Prefix(rows, cache, embedded.shape[1], _next_position(group, prompt)))
        return prefixes

    def hidden_after(self, prefixes: list[Prefix], prompt: PromptTokens) -> Tensor:
        """Return the same as `hidden_at_seg`, from prefixes. A prefix can be used several times."""
        hidden = self._empty(sum(len(prefix.rows) for prefix in prefixes))
        for prefix in prefixes:
            tail, positions = self._after(prompt, prefix.next_position, len(prefix.rows))
            with _growing(prefix):
                output = self.qwen.model.language_model(
                    inputs_embeds=tail, position_ids=positions, use_cache=True, **{CACHE: prefix.cache}
                )
            hidden[prefix.rows] = self._gathered(output.last_hidden_state, prompt)[0].to(hidden.dtype)
        return hidden

    def continued(self, prefix: Prefix, prompt: PromptTokens, *, most: int, stop: set[int]) -> list[int]:
        """Return the tokens of an answer. Each token is the most probable token after all earlier tokens.

        Args:
            prefix: the prefix of one clip. It can be used several times.
            prompt: the prompt; only its text after the video is used.
            most: the largest number of tokens.
            stop: ids of tokens that end the answer. Such a token is not returned.
        """
        states, positions = self._after(prompt, prefix.next_position, 1)
        answer: list[int] = []
        with _growing(prefix):
            while len(answer) < most:
                output = self.qwen.model.language_model(
                    inputs_embeds=states, position_ids=positions, use_cache=True, **{CACHE: prefix.cache}
                )
                token = int(self.qwen.lm_head(output.last_hidden_state[0, -1]).float().argmax())
                if token in stop:
                    break
                answer.append(token)
                states, positions = self._embed((token,))[None], positions[..., -1:] + 1
        return answer

    def answers(self, clips: list[VisualTokens], prompts: list[PromptTokens], length: int) -> TrainingOutputs:
        """Return the outputs of one pass over the prompts of all clips, one prompt per clip. For training.

        Shorter sequences are padded at their end. Attention is causal, so the padding changes nothing.

        Args:
            clips: the visual tokens of B clips.
            prompts: B prompts, one per clip; all end with the same forced answer.
            length: A, the number of tokens of the forced answer.
        """
        parts = []
        for clip, prompt in zip(clips, prompts, strict=True):
            before, before_at = self._before([clip], prompt)
            after, start = self._embed(prompt.after).to(before.dtype), _next_position([clip], prompt)
            after_at = torch.arange(start, start + len(after), device=after.device).expand(3, -1)
            # embeddings (S, D) and positions (3, S) of the whole sequence
            parts.append((torch.cat([before[0], after]), torch.cat([before_at[:, 0], after_at], dim=1)))
        longest = max(len(embedded) for embedded, _ in parts)
        output = self.qwen.model.language_model(
            inputs_embeds=torch.stack([F.pad(embedded, (0, 0, 0, longest - len(embedded))) for embedded, _ in parts]),
            position_ids=torch.stack([F.pad(place, (0, longest - place.shape[1])) for _, place in parts], dim=1),
            use_cache=False,
        )
        hidden = output.last_hidden_state  # (B, S, D)
        tails = [row[len(embedded) - length - 1 : len(embedded)] for row, (embedded, _) in zip(hidden, parts, strict=True)]
        starts = [len(prompt.before) + len(clip.tokens) for clip, prompt in zip(clips, prompts, strict=True)]
        read = [self._gathered(row[None, start:], prompt) for row, start, prompt in zip(hidden, starts, prompts, strict=True)]
        names = [logits[0] for _, logits in read if logits is not None]
        return TrainingOutputs(torch.cat([seg for seg, _ in read]), self.qwen.lm_head(torch.stack(tails)), names)

    def _gathered(self, states: Tensor, prompt: PromptTokens) -> tuple[Tensor, Tensor | None]:
        """Return the hidden state at `<SEG>` (B, D) and the logits (B, C) from `pooling`.

        `states` (B, S, D) start with the first token after the video. Without `pooling`, the logits are None.
        """
        seg = states[:, prompt.seg]
        if self.pooling is None:
            return seg, None
        gathered: tuple[Tensor, Tensor] = self.pooling(seg, states[:, list(prompt.names)])
        return gathered

    @property
    def _tower_width(self) -> int:
        return int(self.qwen.config.vision_config.embed_dim)

    def _angles(self, grid: PatchGrid) -> tuple[Tensor, Tensor]:
        """Return rotary cosines and sines (n, head width), one row per patch of a pair of frames."""
        visual, m = self.qwen.model.visual, grid.merge
        device = visual.patch_embed.proj.weight.device
        row = torch.arange(grid.rows, device=device)[:, None].expand(-1, grid.columns)
        column = torch.arange(grid.columns, device=device)[None].expand(grid.rows, -1)
        places = torch.stack([row, column]).view(2, grid.rows // m, m, grid.columns // m, m)
        # (n, 2); the four patches that become one token are adjacent
        places = places.transpose(2, 3).flatten(1).T
        cos, sin = visual.rotary_pos_emb(torch.empty(0, device=device), places)
        return cos, sin

    def _tower(self, hidden: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Return the visual tokens (N, n / 4, D) that the vision tower makes from embedded patches (N, n, E).

        This method runs the blocks and the merger of the tower. The patches of a pair of frames attend only to one another.
        The library `transformers` processes one pair after another, with the same result.
        """
        visual = self.qwen.model.visual
        for block in visual.blocks:
            hidden = hidden + _attend(block.attn, block.norm1(hidden), *angles)
            hidden = hidden + block.mlp(block.norm2(hidden))
        merged: Tensor = visual.merger(hidden)
        return merged.view(len(hidden), -1, merged.shape[-1])  # (N, n / 4, D)

    def _embed(self, ids: tuple[int, ...]) -> Tensor:
        """Return the embeddings (S, D) of token ids."""
        table = self.qwen.model.language_model.embed_tokens
        embedded: Tensor = table(torch.tensor(ids, device=table.weight.device))
        return embedded

    def _before(self, clips: list[VisualTokens], prompt: PromptTokens) -> tuple[Tensor, Tensor]:
        """Return embeddings (B, S, D) and positions (3, B, S) of the prompt up to the end of the video."""
        tokens = torch.stack([clip.tokens for clip in clips])
        text = self._embed(prompt.before).to(tokens.dtype).expand(len(clips), -1, -1)
        place = torch.stack([clip.positions for clip in clips], dim=1) + len(prompt.before)
        row = torch.arange(len(prompt.before), device=place.device).expand(3, len(clips), -1)
        return torch.cat([text, tokens], dim=1), torch.cat([row, place], dim=2)

    def _after(self, prompt: PromptTokens, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Return embeddings (B, S, D) and positions (3, B, S) of the prompt after the video, up to `<SEG>`."""
        embedded = self._embed(prompt.after[: prompt.seg + 1])
        row = torch.arange(start, start + len(embedded), device=embedded.device)
        return embedded.expand(count, -1, -1), row.expand(3, count, -1)

    def _empty(self, clips: int) -> Tensor:
        weight = self.qwen.model.language_model.norm.weight
        return torch.empty(clips, self.width, dtype=weight.dtype, device=weight.device)


def _attend(attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the output (N, n, E) of an attention layer. Patches attend only to their pair of frames."""
    n, length, _ = hidden.shape
    # (3, N, heads, n, e)
    qkv = attention.qkv(hidden).view(n, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    turned = []  # query and key with their positions, in float32 as in the library `transformers`
    for states in (qkv[0].float(), qkv[1].float()):
        half = states.shape[-1] // 2
        rotated = torch.cat([-states[..., half:], states[..., :half]], dim=-1)
        turned.append((states * cos.float() + rotated * sin.float()).to(qkv.dtype))
    mixed = F.scaled_dot_product_attention(turned[0], turned[1], qkv[2])
    projected: Tensor = attention.proj(mixed.transpose(1, 2).reshape(n, length, -1))
    return projected


def _next_position(clips: list[VisualTokens], prompt: PromptTokens) -> int:
    return len(prompt.before) + clips[0].extent


def _equal_lengths(clips: list[VisualTokens]) -> Iterator[tuple[list[int], list[VisualTokens]]]:
    """Yield the indices and clips of each group of clips with the same number of tokens."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row, clip in enumerate(clips):
        groups.setdefault((len(clip.tokens), clip.extent), []).append(row)
    for rows in groups.values():
        yield rows, [clips[row] for row in rows]


@contextmanager
def _growing(prefix: Prefix) -> Iterator[None]:
    """Let the cache of a prefix grow inside a `with` block.

    At the end of the block, cut the cache to its old length.
    """
    try:
        yield
    finally:
        # A negative number tells `crop` how many tokens to remove.
        prefix.cache.crop(prefix.length - prefix.cache.get_seq_length())
