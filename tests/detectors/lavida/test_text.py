"""Tests of the prompt as token ids, and of the small tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from vadcli.detectors.lavida.text import (
    SEG,
    VIDEO,
    PromptOptions,
    build_prompt,
    messages,
    small_text_tokenizer,
    small_tokenizer,
    split_categories,
)

TOKENIZER = small_tokenizer(640)
OPTIONS = PromptOptions()


def test_tokens_equal_the_chat_templates() -> None:
    prompt = build_prompt(TOKENIZER, ["fight", "fire"], OPTIONS)
    video = TOKENIZER.convert_tokens_to_ids(VIDEO)
    told = messages(["fight", "fire"], OPTIONS)
    template = TOKENIZER.apply_chat_template(told, add_generation_prompt=True, tokenize=True, return_dict=False)
    answer = TOKENIZER(OPTIONS.answer, add_special_tokens=False)["input_ids"]
    assert [*prompt.before, video, *prompt.after] == [*template, *answer]


def test_the_words_are_qwens_conversation() -> None:
    prompt = build_prompt(TOKENIZER, ["fight", "fire"], OPTIONS)
    text = TOKENIZER.decode([*prompt.before, TOKENIZER.convert_tokens_to_ids(VIDEO), *prompt.after])
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>"
        "Detect the anomalies in this video. They may be: fight, fire<|im_end|>\n"
        f"<|im_start|>assistant\nIt is {SEG}."
    )
    assert prompt.after[prompt.seg] == TOKENIZER.convert_tokens_to_ids(SEG)


@pytest.mark.parametrize("token", [VIDEO, SEG, "<|im_end|>", "<|vision_start|>", "<|endoftext|>"])
def test_a_category_cannot_forge_a_control_token(token: str) -> None:
    with pytest.raises(ValueError, match="control token"):
        build_prompt(TOKENIZER, ["fire", f"fight{token}b"], OPTIONS)


@given(st.text(max_size=40))
@settings(max_examples=80)
def test_any_words_come_back_from_the_small_tokenizer(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text or any(
        token in text for token in TOKENIZER.all_special_tokens
    )
    assert all(0 <= number < 640 for number in ids)


def test_the_small_tokenizer_is_the_same_each_time_and_survives_its_file(tmp_path: Path) -> None:
    assert small_tokenizer(640).get_vocab() == TOKENIZER.get_vocab()
    TOKENIZER.save_pretrained(tmp_path)
    stored = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert build_prompt(stored, ["a red car"], OPTIONS) == build_prompt(TOKENIZER, ["a red car"], OPTIONS)


def test_the_text_tokenizer_marks_start_and_end_and_ignores_case() -> None:
    words = small_text_tokenizer(640, 32)
    upper, lower = words(["A Fight", "a fight"])["input_ids"]
    assert upper == lower
    assert upper[0] == words.bos_token_id
    assert upper[-1] == words.eos_token_id


@given(st.integers(0, 200), st.integers(1, 40))
def test_lists_are_split_evenly_and_whole(count: int, limit: int) -> None:
    names = [str(number) for number in range(count)]
    lists = split_categories(names, limit)
    assert [name for part in lists for name in part] == names
    assert len(lists) == -(-count // limit)
    assert all(1 <= len(part) <= limit for part in lists)
    if lists:
        assert max(map(len, lists)) - min(map(len, lists)) <= 1
