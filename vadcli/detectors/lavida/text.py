"""Makes network inputs from text: token ids from the prompt, and CLIP embeddings from the categories.

The prompt ends with a forced answer that contains `<SEG>`. If the base models have random weights, two small tokenizers are
used instead of the tokenizers of the base models.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from vadcli.detectors.mllm.qwen import VIDEO, PromptTokens

SEG = "<SEG>"
TURN_END = "<|im_end|>"
QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", TURN_END, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", VIDEO)
CLIP_SPECIALS = ("<|startoftext|>", "<|endoftext|>")

# Qwen2-VL's conversation format, reduced to messages with one text and one video.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# The small tokenizers learn their tokens from these words, which occur in typical categories and in the prompt.
CORPUS = (
    "Detect the anomalies in this video. They may be: It is. You are a helpful assistant. system user assistant "
    "a person people man woman child crowd car truck bus bicycle motorcycle skateboard dog bag box knife gun "
    "running walking falling fighting jumping throwing climbing lying sitting pushing chasing loitering standing still "
    "fire smoke explosion accident crash robbery burglary stealing shoplifting shooting assault abuse arrest arson vandalism "
    "riot panic intrusion weapon fall fight theft traffic road wrong way direction pedestrian area driving riding "
    "red green blue yellow orange purple cyan white black gray circle square triangle star cross ring diamond heart "
    "left right up down in out fast slow moving turning growing shrinking blinking shaking "
    "something orange pink crescent small large slowly circling appearing disappearing showing briefly touching front before "
    "the"
)


@dataclass(frozen=True)
class PromptOptions:
    """The texts of the prompt (section 3.5 of the paper).

    Attributes:
        question: the question about a clip. In it, {categories} is replaced by the categories, which are joined by commas.
        answer: the forced answer at the end of the prompt. It contains `<SEG>` once. The model does not generate an answer
            itself.
        max_categories: the largest number of categories in one prompt. Longer lists are split into several prompts. The limit
            in the paper is 30 (Table 3).
    """

    question: str = "Detect the anomalies in this video. They may be: {categories}"
    answer: str = f"It is {SEG}."
    max_categories: int = 30

    def __post_init__(self) -> None:
        if "{categories}" not in self.question:
            raise ValueError(f"the question {self.question!r} must contain {{categories}}")
        if self.answer.count(SEG) != 1:
            raise ValueError(f"the answer {self.answer!r} must contain {SEG} exactly once")
        if self.max_categories < 1:
            raise ValueError(f"max_categories {self.max_categories} must be at least 1")


def messages(categories: Sequence[str], options: PromptOptions) -> list[dict[str, Any]]:
    """Return the conversation: one message with the video and the question."""
    question = options.question.format(categories=", ".join(categories))
    return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]


def build_prompt(tokenizer: Any, categories: Sequence[str], options: PromptOptions) -> PromptTokens:
    """Return the token ids of the prompt, which ends with the forced answer (section 3.5 of the paper).

    Args:
        tokenizer: Qwen2-VL's tokenizer with the token `<SEG>`. The prompt follows the chat template of the tokenizer.
        categories: 1 to `options.max_categories` categories.
        options: the texts around the categories.

    Raises:
        ValueError: a category contains a control token such as <|im_end|>, or the prompt does not contain the video and
            `<SEG>` exactly once.
    """
    for name in categories:
        forged = next((token for token in tokenizer.get_added_vocab() if token in name), None)
        if forged is not None:
            raise ValueError(f"the category {name!r} contains the control token {forged!r}; remove it")
    text = tokenizer.apply_chat_template(messages(categories, options), tokenize=False, add_generation_prompt=True)
    encoded = tokenizer(text + options.answer, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    video, seg = tokenizer.convert_tokens_to_ids(VIDEO), tokenizer.convert_tokens_to_ids(SEG)
    if ids.count(video) != 1:
        raise ValueError(f"the prompt must contain the video once, not {ids.count(video)} times: {text!r}")
    if seg == tokenizer.unk_token_id or ids.count(seg) != 1:
        raise ValueError(f"the prompt must contain {SEG} once: {text + options.answer!r}")
    video_place = ids.index(video)
    after = tuple(ids[video_place + 1 :])
    lead = options.question.partition("{categories}")[0]
    start = text.find(lead + ", ".join(categories))
    ends: list[int] = []  # for each category, the index in `text` of the character at which the category ends
    if start >= 0:  # otherwise the chat template changed the question
        lengths = (len(name) + 2 for name in categories)
        ends = [start + len(lead) + end for end in accumulate(lengths, initial=-2)][1:]
    last = [bisect_left(encoded["offset_mapping"], end, key=itemgetter(1)) - video_place - 1 for end in ends]
    return PromptTokens(tuple(ids[:video_place]), after, after.index(seg), tuple(last))


def split_categories(categories: Sequence[str], limit: int) -> list[tuple[str, ...]]:
    """Split categories into the fewest lists of at most `limit` names. The lengths differ by at most 1."""
    lists = -(-len(categories) // limit)
    edges = [round(number * len(categories) / lists) for number in range(lists + 1)] if lists else [0]
    return [tuple(categories[start:end]) for start, end in pairwise(edges)]


def add_seg(tokenizer: Any) -> int:
    """Add `<SEG>` to the tokenizer as one token. Return the id of this token."""
    tokenizer.add_special_tokens({"additional_special_tokens": [SEG]}, replace_extra_special_tokens=False)
    return int(tokenizer.convert_tokens_to_ids(SEG))


def small_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer for a small Qwen2-VL. Deterministic.

    The tokenizer can encode any text, and has at most `vocab_size` ids, including the id of `<SEG>`.
    """
    raw = _byte_pairs(vocab_size, (*QWEN_SPECIALS, SEG))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=TURN_END,
        pad_token=QWEN_SPECIALS[0],
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    add_seg(tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def small_text_tokenizer(vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer for a small CLIP text model. Deterministic.

    Like CLIP's tokenizer, it converts text to lower case, and adds a start token and an end token.
    """
    start, end = CLIP_SPECIALS
    raw = _byte_pairs(vocab_size, CLIP_SPECIALS)
    # A space is added before the text, so that a word gets the same tokens at the start of a category and inside a category.
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.normalizer = normalizers.Lowercase()
    raw.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(name, raw.token_to_id(name)) for name in CLIP_SPECIALS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=start,
        eos_token=end,
        pad_token=end,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def _byte_pairs(vocab_size: int, specials: Sequence[str]) -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = CORPUS.split()
    raw.train_from_iterator([" ".join(words), ", ".join(words), CORPUS.lower()], trainer)
    return raw


class TextEncoder(nn.Module):
    """CLIP's text model and tokenizer: one pooled embedding per category.

    This is the text branch in section 3.7 of the paper.

    Args:
        clip: a CLIPTextModel of the library `transformers`.
        tokenizer: the tokenizer of this model.
    """

    def __init__(self, clip: Any, tokenizer: Any) -> None:
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer

    @property
    def width(self) -> int:
        """Width of an embedding: 512 for CLIP ViT-B/32."""
        return int(self.clip.config.hidden_size)

    def forward(self, categories: Sequence[str]) -> Tensor:
        """Return pooled embeddings (C, width) without gradients.

        If a category is too long, its end is cut off.
        """
        with torch.no_grad():
            return self.pooled(categories)

    def pooled(self, categories: Sequence[str]) -> Tensor:
        """Return the same as `forward`, but with gradients if the weights require gradients."""
        ids = self.tokenizer(
            list(categories),
            padding=True,
            truncation=True,
            max_length=self.clip.config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.clip.device)
        pooled: Tensor = self.clip(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).pooler_output
        return pooled
