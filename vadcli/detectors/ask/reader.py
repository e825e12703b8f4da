"""Qwen2-VL and Qwen3-VL read a clip once and answer any number of questions about it.

The answer to a question is a number: the logit of "yes" as the next token, minus the logit of "no". The first part of the
prompt is called prefix. It contains the clip, and the model reads it only once. For each question, the model then reads only
the few tokens after the prefix:

    system turn, <|vision_start|>, M visual tokens ─┬─ <|vision_end|>, question 1, start of the answer ─ logits of yes and no
                                                    ├─ <|vision_end|>, question 2, start of the answer ─ logits of yes and no
                                                    └─ …

Letters in shapes: B clips, T frames per clip, Q questions, D width of the language model, S tokens of a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from vadcli.detectors.ask import CLIP_FRAMES, CLIP_S, MAX_PX, MIN_PX, Question
from vadcli.detectors.mllm.compress import CompressionOptions
from vadcli.detectors.mllm.qwen import CACHE, VIDEO, MultimodalLM, Prefix, PromptTokens, VisualTokens, qwen_patches

SYSTEM = "You watch the videos of cameras. Judge only what is visible."
ANSWER_SO = " Answer with one word in lower case: yes or no."
DESCRIBE = "Describe in one short sentence what happens in this video clip. Mention only what is visible."
ANSWERS = ("yes", "no")
TURN_END = "<|im_end|>"
MOST_TOKENS = 48
"""The largest number of tokens in a description of a clip."""
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation of the RGB channels for Qwen3-VL, for pixel values from 0 to 1."""
FRAME_S = CLIP_S / CLIP_FRAMES
"""Seconds from one frame of a clip to the next frame."""


class Reader(nn.Module):
    """One Qwen2-VL with its tokenizer.

    Args:
        qwen: a Qwen2VLForConditionalGeneration of the library `transformers`.
        tokenizer: the tokenizer of this model, with a chat template.
        compression: how the visual tokens are compressed before the language model reads them.

    Raises:
        ValueError: "yes" or "no" is not one token of this tokenizer, or the chat template has no place for a video.
    """

    def __init__(self, qwen: Any, tokenizer: Any, *, compression: CompressionOptions) -> None:
        super().__init__()
        self.lm = MultimodalLM(qwen)
        self.tokenizer = tokenizer
        self.compression = compression
        self.answers = answer_tokens(tokenizer)
        self._prompts: dict[str, PromptTokens] = {}
        self.prompt(DESCRIBE)  # raises ValueError now if the chat template is unsuitable

    def prompt(self, text: str) -> PromptTokens:
        """Return the token ids of a question. They are kept, so a second call for this question is fast."""
        if text not in self._prompts:
            self._prompts[text] = self.branch(text)
        return self._prompts[text]

    def branch(self, text: str) -> PromptTokens:
        """Return the token ids of a question. The ids before the video are the same for all questions.

        Raises:
            ValueError: the chat template does not contain the video exactly once.
        """
        conversation = chat_text(self.tokenizer, text)
        ids = self.tokenizer(conversation, add_special_tokens=False)["input_ids"]
        video = self.tokenizer.convert_tokens_to_ids(VIDEO)
        if ids.count(video) != 1:
            raise ValueError(f"the chat template must contain the video once, not {ids.count(video)} times: {conversation!r}")
        place = ids.index(video)
        after = tuple(ids[place + 1 :])
        return PromptTokens(tuple(ids[:place]), after, len(after) - 1)

    def prefixes(self, frames: Tensor) -> list[Prefix]:
        """Return the prefix of each clip: the system prompt and the clip. All questions continue this prefix.

        Args:
            frames: (B, T, H, W, 3) uint8, T even.
        """
        return self.lm.prefixes(self.read(frames), self.prompt(DESCRIBE))

    def read(self, frames: Tensor) -> list[VisualTokens]:
        """Return the visual tokens of clips (B, T, H, W, 3) uint8, T even."""
        dtype = next(self.lm.parameters()).dtype
        patches, grid = qwen_patches(
            frames, min_px=MIN_PX, max_px=MAX_PX, patch_px=self.lm.patch_px, merge=self.lm.merge, dtype=dtype
        )
        return [self.lm.compressed(clip, grid, self.compression) for clip in self.lm.encode_patches(patches, grid)]

    def log_odds(self, frames: Tensor, questions: Sequence[Question]) -> Tensor:
        """Return log-odds (B, Q) float32; see `Asker.ask`."""
        texts = dict.fromkeys(text for question in questions for text in (question.text, question.look_alike) if text)
        prefixes = self.prefixes(frames)
        head, rows = self.lm.qwen.lm_head, list(self.answers)  # only the logits of "yes" and "no" are computed
        weight, bias = head.weight[rows].float(), None if head.bias is None else head.bias[rows].float()
        by_text = {}
        for text in texts:
            hidden = self.lm.hidden_after(prefixes, self.prompt(text))  # (B, D)
            yes, no = F.linear(hidden.float(), weight, bias).unbind(1)
            by_text[text] = yes - no
        columns = []
        for question in questions:
            look_alike = by_text[question.look_alike].clamp(min=0) if question.look_alike else 0.0
            columns.append(by_text[question.text] - look_alike)
        return torch.stack(columns, dim=1)

    def describe(self, frames: Tensor) -> str:
        """Return one sentence about a clip (1, T, H, W, 3), made of the most probable token at each step."""
        prompt = self.prompt(DESCRIBE)
        (prefix,) = self.prefixes(frames)
        stop = {self.tokenizer.convert_tokens_to_ids(TURN_END), self.tokenizer.eos_token_id}
        ids = self.lm.continued(prefix, prompt, most=MOST_TOKENS, stop=stop)
        return first_sentence(self.tokenizer.decode(ids, skip_special_tokens=True))


class Qwen3Reader(Reader):
    """One Qwen3-VL with its tokenizer; see `Reader`.

    Three things differ from Qwen2-VL. Before each pair of frames, the prompt contains the time of the pair, in seconds.
    Features from the vision tower are also added in the first layers of the language model. A patch has 16 × 16 px.

    The library `transformers` computes the prefix. The questions use the cached keys and values of the prefix. Visual tokens
    cannot be compressed, because the first layers of the language model need every token.
    """

    def prefixes(self, frames: Tensor) -> list[Prefix]:
        """Return a list with one prefix for all clips (B, T, H, W, 3) uint8; see `Reader.prefixes`."""
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
        """Return the token ids of a prompt up to the end of the video.

        Args:
            pairs: the number of pairs of frames.
            tokens: the number of visual tokens per pair.
        """
        times_s = ((2 * pair + 0.5) * FRAME_S for pair in range(pairs))  # the middle of each pair
        video = "".join(f"<{time_s:.1f} seconds>{VISION_START}{VIDEO * tokens}{VISION_END}" for time_s in times_s)
        text = chat_text(self.tokenizer, DESCRIBE).partition(VISION_START)[0]
        ids: list[int] = self.tokenizer(text + video, add_special_tokens=False)["input_ids"]
        return ids

    def branch(self, text: str) -> PromptTokens:
        """Return the token ids of a question, without <|vision_end|>. Here, the prefix contains this token."""
        prompt = super().branch(text)
        return PromptTokens(prompt.before, prompt.after[1:], prompt.seg - 1)


def answer_tokens(tokenizer: Any) -> tuple[int, int]:
    """Return the token ids of "yes" and "no".

    Raises:
        ValueError: "yes" or "no" is not exactly one token of this tokenizer.
    """
    tokens = []
    for word in ANSWERS:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"{word!r} is {len(ids)} tokens in this tokenizer, but an answer must be one token")
        tokens.append(int(ids[0]))
    return tokens[0], tokens[1]


def chat_text(tokenizer: Any, text: str) -> str:
    """Return a conversation with one question about a video, up to the start of the answer."""
    request = text if text == DESCRIBE else text + ANSWER_SO
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": request}]},
    ]
    conversation: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return conversation


def first_sentence(text: str) -> str:
    """Return the first sentence of a text, on one line."""
    words = " ".join(text.split())
    end = min((place + 1 for mark in ".!?" if (place := (words + " ").find(f"{mark} ")) >= 0), default=len(words))
    return words[:end]
