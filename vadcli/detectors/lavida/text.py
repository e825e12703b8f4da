"""CLIP's text model: one pooled embedding per category (the text branch of paper 3.7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class TextEncoder(nn.Module):
    """CLIP's text model and its tokenizer.

    Args:
        clip: transformers' CLIPTextModel.
        tokenizer: its tokenizer.
    """

    def __init__(self, clip: Any, tokenizer: Any) -> None:
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer

    @property
    def width(self) -> int:
        """Width of an embedding; 512 for ViT-B/32."""
        return int(self.clip.config.hidden_size)

    def forward(self, categories: Sequence[str]) -> Tensor:
        """Returns pooled embeddings (C, width) without gradients.

        A category that is too long for CLIP is cut off; it keeps its end token.
        """
        with torch.no_grad():
            return self.pooled(categories)

    def pooled(self, categories: Sequence[str]) -> Tensor:
        """Returns the same as `forward`, with gradients if the weights require them."""
        ids = self.tokenizer(
            list(categories),
            padding=True,
            truncation=True,
            max_length=self.clip.config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.clip.device)
        pooled: Tensor = self.clip(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).pooler_output
        return pooled
