"""Qwen3-VL reads a clip and answers questions about it, as `Reader` does with Qwen2-VL.

Three things differ from Qwen2-VL. Before each pair of frames, a text states its time. The vision tower also feeds the first
layers of the language model. A patch has 16 px. Here transformers' own forward pass reads the clip, and the questions continue
from its cache. Visual tokens cannot be compressed, because the first layers of the language model expect every token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache

from vadcli.detectors.ask.asker import CLIP_FRAMES, CLIP_S, MAX_PX, MIN_PX
from vadcli.detectors.ask.reader import DESCRIBE, Reader, chat_text
from vadcli.detectors.mllm.pixels import qwen_patches
from vadcli.detectors.mllm.qwen import CACHE, VIDEO, Prefix, PromptTokens

VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
HALF = (0.5, 0.5, 0.5)
"""Mean of the RGB channels, for pixel values of 0 to 1. It is also their standard deviation."""
FRAME_S = CLIP_S / CLIP_FRAMES


class Qwen3Reader(Reader):
    """One Qwen3-VL with its tokenizer; see `Reader`."""

    def prefixes(self, frames: Tensor) -> list[Prefix]:
        """Returns one prefix per clip (B, T, H, W, 3) uint8, which all questions about the clip share. T is even."""
        model, dtype = self.lm.qwen.model, next(self.lm.parameters()).dtype
        size = {"min_px": MIN_PX, "max_px": MAX_PX, "patch_px": self.lm.patch_px, "merge": self.lm.merge}
        patches, grid = qwen_patches(frames, **size, mean=HALF, std=HALF, dtype=dtype)
        before = self.before(grid.pairs, grid.tokens // grid.pairs)
        ids = torch.tensor([before] * len(frames), device=patches.device)  # (B, S)
        kinds = (ids == self.tokenizer.convert_tokens_to_ids(VIDEO)).int() * 2
        shape = torch.tensor([[grid.pairs, grid.rows, grid.columns]] * len(frames), device=patches.device)
        positions, _ = model.get_rope_index(ids, kinds, video_grid_thw=shape)  # (3, B, S)
        cache = DynamicCache(config=model.language_model.config)
        model(
            input_ids=ids,
            position_ids=positions,
            mm_token_type_ids=kinds,
            pixel_values_videos=patches.flatten(0, 1),
            video_grid_thw=shape,
            use_cache=True,
            **{CACHE: cache},
        )
        return [Prefix(list(range(len(frames))), cache, ids.shape[1], int(positions.max()) + 1)]

    def before(self, pairs: int, tokens: int) -> list[int]:
        """Returns the token ids of a prompt up to the end of its video, with `tokens` visual tokens per pair of frames."""
        times_s = ((2 * pair + 0.5) * FRAME_S for pair in range(pairs))  # the middle of each pair
        shown = "".join(f"<{time_s:.1f} seconds>{VISION_START}{VIDEO * tokens}{VISION_END}" for time_s in times_s)
        text = chat_text(self.tokenizer, DESCRIBE).partition(VISION_START)[0]
        ids: list[int] = self.tokenizer(text + shown, add_special_tokens=False)["input_ids"]
        return ids

    def branch(self, text: str) -> PromptTokens:
        """Returns the token ids of a question. They begin after <|vision_end|>, which is a part of the prefix here."""
        whole = super().branch(text)
        return PromptTokens(whole.before, whole.after[1:], whole.seg - 1)
