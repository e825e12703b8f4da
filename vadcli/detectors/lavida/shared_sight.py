"""What a model made from nothing has in place of, and beside, Qwen2-VL's own parts: none of it is the paper's.

A vision tower and a language model of a few million weights don't learn to see from a few thousand clips. So the small model's
language model reads what SAM2's image encoder sees (`SharedSight`), and each name's own verdict is gathered into `<SEG>`
(`NamePooling`). The base presets use neither.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

KERNEL = 3
CONVOLUTIONS = 3
WAVES = 4


class SharedSight(nn.Module):
    """Visual tokens from SAM2's embedding F: one a frame and cell, with how it changes and where it is.

    Change and place are part of a token before compression, so that they outlive the merging of tokens.

    Args:
        image_width: channels of F.
        llm_width: D.
        motion_width: channels of the convolutions over time and picture.
    """

    def __init__(self, *, image_width: int, llm_width: int, motion_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(image_width)
        self.narrow = nn.Linear(image_width, motion_width)
        self.changes = nn.ModuleList(nn.Conv3d(motion_width, motion_width, KERNEL, padding=1) for _ in range(CONVOLUTIONS))
        self.token = nn.Linear(image_width + motion_width + 6 * WAVES, llm_width)

    def forward(self, image: Tensor) -> Tensor:
        """(B, T, C_img, h, w) -> (B, T · h · w, D)."""
        pixels = self.norm(image.movedim(2, -1))  # (B, T, h, w, C_img)
        frames, rows, columns = pixels.shape[1:4]
        place = _waves(frames, rows, columns, image.device).to(pixels.dtype).expand(len(pixels), -1, -1, -1, -1)
        tokens: Tensor = self.token(torch.cat([pixels, self.motion(pixels), place], dim=-1))
        return tokens.flatten(1, 3)

    def motion(self, pixels: Tensor) -> Tensor:
        """How each cell changes: normed features (B, T, h, w, C_img) -> (B, T, h, w, motion_width)."""
        states = self.narrow(pixels).movedim(-1, 1)  # (B, m, T, h, w)
        for convolution in self.changes:
            states = states + nn.functional.gelu(convolution(states))
        moved: Tensor = states.movedim(1, -1)
        return moved


class NamePooling(nn.Module):
    """`<SEG>`'s hidden state and the sum of the names', each weighed by how likely the name is there by its own state.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.presence = nn.Linear(width, 1)

    def forward(self, seg: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D), (B, C, D) -> gathered (B, D), presence logits (B, C)."""
        logits = self.presence(names)[..., 0]
        return seg + (logits.sigmoid()[..., None] * names).sum(dim=1), logits


def _waves(frames: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """(T, h, w, 6 · WAVES): sines and cosines of time, row and column, each from half a wave to four over its length."""
    parts = []
    for axis, length in enumerate((frames, rows, columns)):
        at = (torch.arange(length, device=device) + 0.5) / length * torch.pi
        angles = at[:, None] * 2 ** torch.arange(WAVES, device=device)  # (length, WAVES)
        shape = [1, 1, 1, 2 * WAVES]
        shape[axis] = length
        parts.append(torch.cat([angles.sin(), angles.cos()], dim=1).view(shape).expand(frames, rows, columns, -1))
    return torch.cat(parts, dim=-1)
