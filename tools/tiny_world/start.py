"""Draws the random weights with which a small model starts its training.

The default initial weights of the libraries are too small here: they are made for large models and
long trainings, and almost no gradient passes through several narrow layers. All random numbers come
from torch's current generator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vadcli.detectors.lavida.model import Lavida

PLACE_STD = 0.02
IMAGE_GAIN = 2.5  # an untrained image encoder returns small values
WORD_STD = 0.5


@torch.no_grad()
def draw(model: Lavida) -> None:
    """Draw the weights that `pictures` and `questions` train, for a model without any training."""
    _draw_words(model)
    _draw_comparison(model)
    _draw_language(model)


def _draw_words(model: Lavida) -> None:
    """Make the embedding of a name the sum of its words, with large values and equal weights.

    The meaning of a pair of words then follows from the two words, so that pairs which are never
    shown have a meaning from the start.
    """
    text, tokenizer = model.text.clip, model.text.tokenizer
    nn.init.normal_(text.embeddings.token_embedding.weight)
    text.embeddings.token_embedding.weight[[tokenizer.bos_token_id, tokenizer.eos_token_id]] = 0
    nn.init.normal_(text.embeddings.position_embedding.weight, std=PLACE_STD)
    attention = text.encoder.layers[0].self_attn
    for part in (attention.q_proj, attention.k_proj):
        nn.init.zeros_(part.weight)  # every token attends to all tokens equally
    for part in (attention.v_proj, attention.out_proj):
        nn.init.eye_(part.weight)


def _draw_comparison(model: Lavida) -> None:
    """Draw weights with which names and image positions get clearly different similarities."""
    look: Any = model.projector.frame_semantics
    for linear, gain in ((look.text, 1.0), (look.image, IMAGE_GAIN), (look.attention.q, 1.0), (look.attention.k, 1.0)):
        nn.init.normal_(linear.weight, std=gain / linear.in_features**0.5)


def _draw_language(model: Lavida) -> None:
    """Draw linear layers that keep the size of their input.

    What a block adds to the residual stream is scaled down by the number of blocks.
    """
    language = model.mllm.qwen.model.language_model
    nn.init.normal_(language.embed_tokens.weight, std=WORD_STD)
    for layer in language.layers:
        for name, linear in layer.named_modules():
            if isinstance(linear, nn.Linear):
                adds = name.endswith(("o_proj", "down_proj"))
                held = (2 * len(language.layers)) ** 0.5 if adds else 1.0
                nn.init.normal_(linear.weight, std=1 / (held * linear.in_features**0.5))
    if model.mllm.sight is not None:
        nn.init.normal_(model.mllm.sight.token.weight, std=1 / model.mllm.sight.token.in_features**0.5)
