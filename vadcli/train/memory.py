"""What a frozen image encoder saw, remembered by clip, so that it looks at each clip of a training once.

Kept in half precision. Each clip is looked at by itself and rounded before its first use, so what comes back doesn't depend on
what was remembered, nor on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vadcli.detectors.lavida.masks import ImageFeatures
from vadcli.detectors.lavida.mllm import VisualTokens
from vadcli.detectors.lavida.model import Lavida
from vadcli.errors import UsageError
from vadcli.train.parts import part_of
from vadcli.types import ByteArray

PROJECTIONS = ("masks.sam2.mask_decoder.conv_s0.", "masks.sam2.mask_decoder.conv_s1.")


class FeatureMemory:
    """Features of clips by their keys.

    Args:
        model: whose encoder looks. The projections of the high-resolution features belong to what is remembered and are frozen.
        most_bytes: what is kept at most; clips beyond it are looked at every time.

    Raises:
        UsageError: the image encoder is trained.
    """

    def __init__(self, model: Lavida, *, most_bytes: int = 8 << 30) -> None:
        if any(value.requires_grad and part_of(name) == "image_encoder" for name, value in model.named_parameters()):
            raise UsageError("what a trained image encoder saw can't be remembered", hint="leave image_encoder out of `train`")
        for name, value in model.named_parameters():
            if name.startswith(PROJECTIONS):
                value.requires_grad_(False)
        self.model, self.most_bytes = model, most_bytes
        self.bytes = 0
        self._kept: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._read: dict[str, VisualTokens] = {}
        self._position: Tensor | None = None

    def recall(self, clips: Sequence[tuple[str, ByteArray]]) -> ImageFeatures:
        """Features of (key, frames (T, H, W, 3) uint8), one behind the other."""
        found = [self._of(key, frames) for key, frames in clips]
        embedding, fine, middle = (torch.cat([part.float() for part in parts]) for parts in zip(*found, strict=True))
        assert self._position is not None
        return ImageFeatures(embedding, self._position, (fine, middle))

    def read(self, keys: Sequence[str], image: ImageFeatures, frames: int) -> list[VisualTokens]:
        """Compressed visual tokens of clips of T frames, of what `recall` gave; remembered where the shared sight is frozen."""
        sight = self.model.mllm.sight
        assert sight is not None
        if any(value.requires_grad for value in sight.parameters()):
            return self.model.visual_from(image, frames)
        for row, key in enumerate(keys):
            if key not in self._read:
                (self._read[key],) = self.model.visual_from(image[row * frames : (row + 1) * frames], frames)
        return [self._read[key] for key in keys]

    @torch.no_grad()
    def _of(self, key: str, frames: ByteArray) -> tuple[Tensor, Tensor, Tensor]:
        if key not in self._kept:
            device = next(self.model.parameters()).device
            image = self.model.see(torch.from_numpy(frames)[None].to(device))
            self._position = image.position
            parts = (image.embedding.half(), image.high[0].half(), image.high[1].half())
            size = sum(part.numel() * part.element_size() for part in parts)
            if self.bytes + size > self.most_bytes:
                return parts
            self.bytes += size
            self._kept[key] = parts
        return self._kept[key]
