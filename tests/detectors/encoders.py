"""Small CLIP and SigLIP folders with random weights, in the layout of the hub's folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, SiglipConfig, SiglipModel

from vadcli.detectors.lavida.text import CLIP_SPECIALS, CORPUS
from vadcli.types import ByteArray

SIDE_PX, PATCH_PX, WIDTH, VECTOR = 32, 8, 32, 24
"""Both families read pictures of 32 px in 4 × 4 patches. A vector of CLIP has 24 numbers. One of SigLIP has 32, its width."""
CLIP_RULES = {
    "crop_size": SIDE_PX,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": SIDE_PX,
}
SIGLIP_RULES = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "SiglipProcessor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": SIDE_PX, "width": SIDE_PX},
}


def tiny_encoder_folder(path: Path, family: str = "clip", seed: int = 0) -> Path:
    """Make a transformers folder of a CLIP or SigLIP with two layers, for up to 77 or 64 tokens.

    The same family and seed always make the same weights.
    """
    path.mkdir(parents=True, exist_ok=True)
    vocabulary, eos, pad = (_clip_tokenizer if family == "clip" else _gemma_tokenizer)(path)
    layers = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {**layers, "image_size": SIDE_PX, "patch_size": PATCH_PX}
    text = {**layers, "vocab_size": vocabulary, "eos_token_id": eos, "bos_token_id": eos, "pad_token_id": pad}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any
        if family == "clip":
            model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=VECTOR))
        else:
            model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        for values in model.parameters():  # biases are zero at first, and would hide mistakes
            if values.dim() == 1:
                values.data += 0.1 * torch.randn_like(values)
    model.save_pretrained(path)
    _write(path / "preprocessor_config.json", CLIP_RULES if family == "clip" else SIGLIP_RULES)
    return path


def pictures(count: int, size: tuple[int, int] = (45, 80), seed: int = 0) -> ByteArray:
    """Return colour gradients (N, H, W, 3) uint8 with sharp edges, at which filters overshoot."""
    rng = np.random.default_rng(seed)
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    found = np.empty((count, height, width, 3), np.uint8)
    for number in range(count):
        waves = rng.uniform(0.02, 0.5, (2, 3))
        found[number] = 127.5 + 127.5 * np.sin(rows[..., None] * waves[0] + columns[..., None] * waves[1] + number)
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        found[number, top : top + height // 4, left : left + width // 4] = 255 * (number % 2)
        found[number, top + 2 : top + 4, left : left + width // 3] = rng.integers(0, 256, 3)
    return found


def _clip_tokenizer(path: Path) -> tuple[int, int, int]:
    """Write a tokenizer of CLIP's kind.

    Return the size of its vocabulary, its end token and its padding token.
    """
    suffix = "</w>"
    raw = Tokenizer(models.BPE(end_of_word_suffix=suffix))
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(False)])
    trainer = trainers.BpeTrainer(vocab_size=900, min_frequency=1, end_of_word_suffix=suffix, show_progress=False)
    raw.train_from_iterator([CORPUS.lower()], trainer)
    merges = [tuple(pair) for pair in json.loads(raw.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + suffix for letter in letters), *("".join(pair) for pair in merges), *CLIP_SPECIALS]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77).save_pretrained(path)
    return len(vocabulary), vocabulary[CLIP_SPECIALS[1]], vocabulary[CLIP_SPECIALS[1]]


def _gemma_tokenizer(path: Path) -> tuple[int, int, int]:
    """Write a tokenizer of SigLIP 2's kind; return the same as `_clip_tokenizer`."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    raw.train_from_iterator(
        [CORPUS, CORPUS.lower()],
        trainers.BpeTrainer(vocab_size=900, min_frequency=1, special_tokens=specials, show_progress=False),
    )
    raw.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    raw.enable_truncation(64)
    raw.enable_padding(length=64, pad_id=0, pad_token="<pad>")
    raw.save(str(path / "tokenizer.json"))
    names = {f"{kind}_token": f"<{kind}>" for kind in ("bos", "eos", "pad", "unk")}
    settings = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True, "model_max_length": 64}
    _write(path / "tokenizer_config.json", {**names, **settings, "padding_side": "right", "model_input_names": ["input_ids"]})
    return raw.get_vocab_size(), 1, 0


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")
