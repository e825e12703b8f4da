"""SigLIP (Zhai et al. 2023) and the models of SigLIP 2 (Tschannen et al. 2025) with a fixed picture size: one architecture.

SigLIP 2 has another tokenizer (Gemma's) and another filter for the resize (bilinear); both come from the folder.

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
from vadcli.detectors.encoders.base import TransformersEncoder
from vadcli.detectors.encoders.pixels import PixelRules
from vadcli.errors import WeightsError


class SiglipEncoder(TransformersEncoder):
    """SigLIP behind `vadcli.detectors.encoders.Encoder`."""

    # Cosines of SigLIP are smaller than those of CLIP. This is a guess, not a measurement: nothing depends on it as long as the
    # detector divides by the spread of the camera's own pictures.
    temperature = 0.01
    defaults = PixelRules(224, "bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    # Trained on sentences padded to 64 tokens, without a mask; the vector is read at the last token, which may be padding.
    text_step = 0

    def __init__(self, name: str, folder: Path, *, device: str, precision: str) -> None:
        super().__init__(name, folder, device=device, precision=precision)
        self.width = int(self.config.text_config.projection_size)
        vision = self.config.vision_config
        if not vision.vision_use_head or vision.hidden_size != self.width:
            what = "its pictures and its sentences do not share vectors of one width"
            raise WeightsError(f"{folder}: not an encoder: {what}", hint=NOT_WHOLE)

    def image_vectors(self, pixels: Tensor) -> Tensor:
        """Returns (N, D) for (N, 3, S, S)."""
        vectors: Tensor = self.vision(pixel_values=pixels).pooler_output
        return vectors

    def patch_vectors(self, pixels: Tensor) -> Tensor:
        """Returns (N, P, D) for (N, 3, S, S): what the pooling head would return if it attended to that patch only.

        The weights of an attention sum to 1, so that this is the head's value path without its mixing.
        """
        patches = self.vision(pixel_values=pixels).last_hidden_state  # (N, P, D)
        head = self.vision.head
        pooling = head.attention
        values = F.linear(patches, pooling.in_proj_weight[-self.width :], pooling.in_proj_bias[-self.width :])
        read = pooling.out_proj(values)
        vectors: Tensor = read + head.mlp(head.layernorm(read))
        return vectors

    def text_vectors(self, ids: Tensor) -> Tensor:
        """Returns (M, D) for (M, L) token ids."""
        vectors: Tensor = self.text(input_ids=ids).pooler_output
        return vectors

    def token_ids(self, text: str) -> list[int]:
        """Returns the ids of a sentence in lower case, as in training, with the end token, neither padded nor cut off.

        transformers' Siglip2Tokenizer lowers the case, letter by letter. Folders with a fixed picture size are loaded with
        GemmaTokenizer, which does not (transformers 5.24, pull request 43101), so it is done here; twice does no harm.
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
