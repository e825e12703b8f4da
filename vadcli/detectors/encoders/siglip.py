"""SigLIP (Zhai et al. 2023) and the models of SigLIP 2 (Tschannen et al. 2025) with a fixed picture size: one architecture.

SigLIP 2 has another tokenizer (that of Gemma) and another resize filter (bilinear). The folder says which ones to use.

Letters in shapes: N pictures, P = h·w patches, D width of a patch and of a vector.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import SiglipTextModel, SiglipVisionModel

from vadcli.detectors.encoders import NOT_WHOLE
from vadcli.detectors.encoders.base import TransformersEncoder, read_values, split_heads
from vadcli.detectors.encoders.pixels import PixelRules
from vadcli.errors import WeightsError


class SiglipEncoder(TransformersEncoder):
    """SigLIP as an implementation of `vadcli.detectors.encoders.Encoder`."""

    # Cosines of SigLIP are smaller than those of CLIP. This value is a guess, not a measurement. It changes nothing as long as
    # the detector divides by the spread of the camera's own frames.
    temperature = 0.01
    defaults = PixelRules(224, "bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    # SigLIP was trained on sentences padded to 64 tokens, without a mask. The last token, often padding, gives the vector.
    text_step = 0

    def __init__(self, name: str, folder: Path, *, device: str, precision: str) -> None:
        super().__init__(name, folder, device=device, precision=precision)
        self.width = int(self.config.text_config.projection_size)
        vision = self.config.vision_config
        if not vision.vision_use_head or vision.hidden_size != self.width:
            what = "its pictures and its sentences do not share vectors of one width"
            raise WeightsError(f"{folder}: not an encoder: {what}", hint=NOT_WHOLE)

    def image_vectors(self, pixels: Tensor) -> Tensor:
        """Returns (N, D) for (N, 3, S, S). The pooling head has one query, which reads from all patches."""
        pooling = self.vision.head.attention
        weight, bias = pooling.in_proj_weight, pooling.in_proj_bias  # of queries, keys and values
        query = F.linear(self.vision.head.probe, weight[: self.width], bias[: self.width])  # (1, 1, D)
        key, value = F.linear(self._patches(pixels), weight[self.width :], bias[self.width :]).chunk(2, dim=-1)  # (N, P, D)
        asking = query.repeat(len(pixels), 1, 1)
        parts = (split_heads(part, pooling.num_heads) for part in (asking, key, value))
        return self._after_pooling(read_values(*parts).transpose(1, 2).flatten(2))[:, 0]

    def patch_vectors(self, pixels: Tensor) -> Tensor:
        """Returns (N, P, D) for (N, 3, S, S): for each patch, the output of the pooling head if it read only from this patch.

        The attention weights then are a single 1. So it is enough to compute the values of the head; queries and keys are not
        needed.
        """
        pooling = self.vision.head.attention
        values = F.linear(self._patches(pixels), pooling.in_proj_weight[-self.width :], pooling.in_proj_bias[-self.width :])
        return self._after_pooling(values)

    def _patches(self, pixels: Tensor) -> Tensor:
        """Returns the patches (N, P, D) that the pooling head reads."""
        half = self.vision
        patches: Tensor = half.post_layernorm(half.encoder(inputs_embeds=half.embeddings(pixels)).last_hidden_state)
        return patches

    def _after_pooling(self, values: Tensor) -> Tensor:
        """Returns the output of the pooling head for values (…, D) that its attention has read."""
        head = self.vision.head
        read = head.attention.out_proj(values)
        vectors: Tensor = read + head.mlp(head.layernorm(read))
        return vectors

    def text_vectors(self, ids: Tensor) -> Tensor:
        """Returns (M, D) for (M, L) token ids."""
        vectors: Tensor = self.text(input_ids=ids).pooler_output
        return vectors

    def token_ids(self, text: str) -> list[int]:
        """Returns the token ids of a sentence in lower case, with the end token. They are not padded and not cut off.

        SigLIP 2 was trained on lower-case text. transformers' Siglip2Tokenizer changes each letter to lower case. But folders
        with a fixed picture size are loaded with GemmaTokenizer, which does not (transformers 5.24, pull request 43101). So
        this method does it. If the tokenizer does it again, nothing changes.
        """
        return super().token_ids("".join(letter.lower() for letter in text))

    @cached_property
    def vision(self) -> Any:
        """The image half."""
        return self.read_half(SiglipVisionModel, self.config.vision_config)

    @cached_property
    def text(self) -> Any:
        """The text half."""
        return self.read_half(SiglipTextModel, self.config.text_config)
