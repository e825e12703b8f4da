"""Small Qwen2-VL folders with random weights, in the layout of the hub's folders."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

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


def tiny_qwen_folder(path: Path, *, answers: tuple[str, ...] = ("yes", "no"), seed: int = 0) -> Path:
    """A transformers folder of a two-layer Qwen2-VL whose tokenizer has `answers` as tokens; same seed, same weights."""
    tokenizer = small_tokenizer(640)
    tokenizer.add_tokens(list(answers))
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in QWEN_SPECIALS}
    config = Qwen2VLConfig(
        text_config={**TEXT, "vocab_size": 656, "eos_token_id": ids["<|im_end|>"], "bos_token_id": ids["<|endoftext|>"]},
        vision_config=VISION,
        tie_word_embeddings=False,
        video_token_id=ids[VIDEO],
        image_token_id=ids["<|image_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration(config)
        for values in model.parameters():  # larger than the library's own, so that pictures and words change the answers
            values.data = torch.randn_like(values) * (0.2 if values.dim() > 1 else 0.1) + (values.dim() == 1)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
