"""Makes encoders and Qwen2-VL in real sizes with random weights.

They are folders in the layout of the Hugging Face hub. They show speed and memory. Their scores mean nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
)

from vadcli.detectors.lavida.checkpoint import load_preset
from vadcli.detectors.lavida.text import CLIP_SPECIALS, QWEN_SPECIALS, small_tokenizer
from vadcli.options.categories import read_categories

REAL_SIZES = {"clip-b32": 512, "siglip2-b32": 768}
"""The encoders that can be made, and the width of their vectors."""
LANGUAGE_MODELS = {"qwen2-vl-2b": "lavida-2b", "qwen2-vl-7b": "lavida-7b", "qwen2-vl-small": "lavida-tiny-scratch"}
"""The language models that can be made, and the preset that has their sizes. The small model is only for rehearsals."""
PRESETS = ("@general", "@ucf-crime", "@xd-violence", "@home", "@traffic")
WORDS = 2000
"""Size of the vocabularies, which are trained on the sentences that vadcli ships.

So a word is about one token, as in the real vocabularies. The embedding tables of the models have real sizes.
"""


def real_size_folder(path: Path, name: str) -> Path:
    """Return a transformers folder with a model in the sizes of `name`, which is made only once.

    siglip2-b32 takes 1.5 GB and half a minute.
    """
    if (path / "preprocessor_config.json").exists():
        return path
    path.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if name in LANGUAGE_MODELS:
        _qwen(path, LANGUAGE_MODELS[name])
        (path / "preprocessor_config.json").write_text("{}")
        return path
    model: Any
    if name == "clip-b32":
        end = _clip_tokenizer(path)
        text = {"eos_token_id": end, "bos_token_id": end, "pad_token_id": end}
        model = CLIPModel(CLIPConfig(text_config=text))  # transformers' defaults are the sizes of ViT-B/32
        rules: dict[str, Any] = {"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3}
    else:
        _gemma_tokenizer(path)
        text = {"vocab_size": 256_000, "eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0}
        model = SiglipModel(SiglipConfig(text_config=text, vision_config={"image_size": 256, "patch_size": 32}))
        rules = {"size": {"height": 256, "width": 256}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    model.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(rules))
    return path


def _qwen(path: Path, preset: str) -> None:
    """Write a Qwen2-VL in bf16 (as published), with a small tokenizer that has the tokens yes and no.

    The random weights are drawn on a GPU if the machine has one.
    """
    sizes = load_preset(preset).parts.mllm
    tokenizer = small_tokenizer(600)
    tokenizer.add_tokens(["yes", "no"])
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in QWEN_SPECIALS}
    names = ("video_token_id", "image_token_id", "vision_start_token_id", "vision_end_token_id")
    tokens = ("<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>")
    text = {**sizes["text_config"], "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]}
    config = Qwen2VLConfig(
        **{**sizes, "text_config": text, **{name: ids[token] for name, token in zip(names, tokens, strict=True)}}
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def sentences() -> list[str]:
    """Return the sentences of the categories that vadcli ships, each once."""
    books = [read_categories(preset) for preset in PRESETS]
    texts = [text for book in books for category in book.categories for text in (*category.means, *category.looks_like)]
    return list(dict.fromkeys([*texts, *(text for book in books for text in book.normal)]))


def _clip_tokenizer(path: Path) -> int:
    """Write a tokenizer of CLIP's kind, and return the id of the token that ends a sentence."""
    suffix = "</w>"
    raw = Tokenizer(models.BPE(end_of_word_suffix=suffix))
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(False)])
    trainer = trainers.BpeTrainer(vocab_size=WORDS, min_frequency=1, end_of_word_suffix=suffix, show_progress=False)
    raw.train_from_iterator([text.lower() for text in sentences()], trainer)
    merges = [tuple(pair) for pair in json.loads(raw.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + suffix for letter in letters), *("".join(pair) for pair in merges), *CLIP_SPECIALS]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77).save_pretrained(path)
    return vocabulary[CLIP_SPECIALS[1]]


def _gemma_tokenizer(path: Path) -> None:
    """Write a tokenizer of SigLIP 2's kind."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=WORDS, min_frequency=1, special_tokens=specials, show_progress=False)
    raw.train_from_iterator([text.lower() for text in sentences()], trainer)
    raw.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    raw.save(str(path / "tokenizer.json"))
    names = {f"{kind}_token": f"<{kind}>" for kind in ("bos", "eos", "pad", "unk")}
    settings = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True, "model_max_length": 64}
    (path / "tokenizer_config.json").write_text(json.dumps({**names, **settings, "padding_side": "right"}))
