"""Small Qwen2-VL and Qwen3-VL folders with random weights, in the layout of the hub's folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from vadcli.detectors.lavida.text import QWEN_SPECIALS, small_tokenizer
from vadcli.detectors.mllm.qwen import VIDEO

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 3, 3]},
}
VISION = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
VISION3 = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],
}


def tiny_qwen_folder(path: Path, *, answers: tuple[str, ...] = ("yes", "no"), seed: int = 0, family: str = "qwen2_vl") -> Path:
    """A transformers folder of a two-layer Qwen-VL whose tokenizer has `answers` as tokens; same seed, same weights."""
    tokenizer = small_tokenizer(640)
    tokenizer.add_tokens(list(answers))
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in QWEN_SPECIALS}
    text = {**TEXT, "vocab_size": 656, "eos_token_id": ids["<|im_end|>"], "bos_token_id": ids["<|endoftext|>"]}
    places = {
        "video_token_id": ids[VIDEO],
        "image_token_id": ids["<|image_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any
        if family == "qwen2_vl":
            model = Qwen2VLForConditionalGeneration(
                Qwen2VLConfig(text_config=text, vision_config=VISION, tie_word_embeddings=False, **places)
            )
        else:
            text["head_dim"] = 16
            config = Qwen3VLConfig(text_config=text, vision_config=VISION3, tie_word_embeddings=False, **places)
            model = Qwen3VLForConditionalGeneration(config)
        for values in model.parameters():  # larger than the library's own, so that pictures and words change the answers
            values.data = torch.randn_like(values) * (0.2 if values.dim() > 1 else 0.1) + (values.dim() == 1)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
