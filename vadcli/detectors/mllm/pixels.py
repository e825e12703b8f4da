"""Turns frames into the inputs of Qwen2-VL and SAM2, on the device of the frames.

Letters in shapes: B clips, T frames per clip, (H, W) frame size, (h, w) size in patches, p = 14 px
per patch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

STATIC_DISTANCE = 0.01
"""A patch is static if its mean cosine distance is below this value, as in the code of the paper's authors."""
QWEN_PX = 28
"""The sides of a frame for Qwen2-VL are multiples of this, because 2 × 2 patches of 14 px are merged."""


class ExactBuffers(nn.Module):
    """A module whose buffers keep their dtype and their values when the module is cast.

    The only buffers of Qwen2-VL and SAM2 are frequencies of position encodings. They are multiplied
    by positions and become the arguments of sines. A cast to half precision would therefore shift every
    position: in bfloat16 by tenths of a radian.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in list(self.named_buffers()):
            if buffer.dtype != exact[name].dtype:
                owner, _, own = name.rpartition(".")
                setattr(self.get_submodule(owner), own, exact[name].to(buffer.device))
        return self


@torch.no_grad()
def moving_groups(patches: Tensor, threshold: float = STATIC_DISTANCE) -> Tensor:
    """Return which merge groups to keep: all groups of the first time step, and later the moving ones.

    A merge group is the four patches that become one visual token. At each later step, they are compared with the same patches
    in the first step. A group moves if the mean cosine distance of its patches over all steps is at least the threshold.
    The caller drops the patches of the other groups, and their positions.

    Args:
        patches: (T, G, P, D) patch embeddings of one clip: time steps, merge groups, patches per
            group (4), width.
        threshold: mean cosine distance, in [0, 2]; 0 keeps all groups.

    Returns:
        (T, G) bool, True if the group is kept.

    Raises:
        ValueError: the threshold is outside [0, 2], or `patches` has another shape.
    """
    if not 0 <= threshold <= 2:
        raise ValueError(f"static-patch threshold is {threshold}; give a cosine distance in [0, 2]")
    if patches.dim() != 4 or patches.shape[0] < 1:
        raise ValueError(f"patches have the shape {tuple(patches.shape)}; give (T, G, 4, D) with T ≥ 1")
    steps, groups = patches.shape[:2]
    keep = torch.ones(steps, groups, dtype=torch.bool, device=patches.device)
    if steps == 1 or threshold == 0:
        return keep
    first = normalize(patches[0].double(), dim=-1)  # (G, P, D)
    distance = torch.zeros(groups, dtype=torch.float64, device=patches.device)
    for step in patches[1:]:
        # Half the squared distance of two unit vectors is their cosine distance. Computed in this way, small distances
        # are precise, and equal patches have distance 0, even if they are all zeros.
        chord = normalize(step.double(), dim=-1) - first
        distance += chord.square().sum(dim=-1).mean(dim=-1) / 2
    keep[1:] = distance / (steps - 1) >= threshold
    return keep


Channels = tuple[float, float, float]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LONGEST_ASPECT = 200


@dataclass(frozen=True)
class PatchGrid:
    """Layout of the patches of one clip: pairs of frames × rows × columns.

    Attributes:
        pairs: T / 2.
        rows, columns: h and w, multiples of `merge`.
        merge: side, in patches, of the square that the vision tower merges into one token.
    """

    pairs: int
    rows: int
    columns: int
    merge: int = 2

    @property
    def patches(self) -> int:
        """Patches per clip."""
        return self.pairs * self.rows * self.columns

    @property
    def tokens(self) -> int:
        """L, visual tokens per clip after merging."""
        return self.patches // self.merge**2


def qwen_patches(
    frames: Tensor,
    *,
    min_px: int,
    max_px: int,
    patch_px: int = 14,
    merge: int = 2,
    mean: Channels = CLIP_MEAN,
    std: Channels = CLIP_STD,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, PatchGrid]:
    """Return Qwen2-VL's patches, as its image processor makes them: resize, normalise, pair frames, cut.

    Patches are in the order in which the vision tower merges them: the four patches of a 2 × 2
    group are adjacent.

    Args:
        frames: (B, T, H, W, 3) uint8, T even.
        min_px, max_px: limits of the area of a resized frame, in pixels.
        patch_px, merge: the vision tower's patch side in pixels, and its merge side in patches.
        mean, std: per channel, for pixel values of 0 to 1.
        dtype: dtype of the result.

    Returns:
        (B, P, 3·2·p·p) patches and their grid.
    """
    b, t, height, width, _ = frames.shape
    factor = patch_px * merge
    # `smart_resize` refuses an aspect ratio over 200, so the shorter side of such a frame is enlarged.
    tall, wide = max(height, -(-width // LONGEST_ASPECT)), max(width, -(-height // LONGEST_ASPECT))
    new_h, new_w = smart_resize(tall, wide, factor=factor, min_pixels=min_px, max_pixels=max_px)
    pixels = resize(frames.flatten(0, 1), new_h, new_w, mode="bicubic")  # (B·T, 3, h·p, w·p), 0-255
    pixels = normalise(pixels, mean, std).to(dtype)
    grid = PatchGrid(t // 2, new_h // patch_px, new_w // patch_px, merge)
    pixels = pixels.view(
        b, grid.pairs, 2, 3, grid.rows // merge, merge, patch_px, grid.columns // merge, merge, patch_px
    )  # (B, pairs, 2, 3, h/2, 2, p, w/2, 2, p)
    pixels = pixels.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)  # (B, pairs, h/2, w/2, 2, 2, 3, 2, p, p)
    return pixels.reshape(b, grid.patches, -1), grid


def sam_pixels(frames: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return frames as normalised squares for SAM2; the aspect ratio is not kept.

    Args:
        frames: (N, H, W, 3) uint8.
        size: side of the square in pixels.
        dtype: dtype of the result.

    Returns:
        (N, 3, size, size).
    """
    pixels = resize(frames, size, size, mode="bilinear")
    return normalise(pixels, IMAGENET_MEAN, IMAGENET_STD).to(dtype)


def resize(frames: Tensor, height: int, width: int, *, mode: str) -> Tensor:
    """Resize frames (N, H, W, 3) uint8 to (N, 3, height, width) float32, whole numbers in 0-255."""
    pixels = frames.permute(0, 3, 1, 2).float()  # (N, 3, H, W)
    if pixels.shape[-2:] != (height, width):
        pixels = F.interpolate(pixels, size=(height, width), mode=mode, antialias=True, align_corners=False)
        pixels = pixels.round().clamp(0, 255)
    return pixels


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Scale pixels (…, 3, H, W) from 0-255 to 0-1, subtract `mean` and divide by `std` per channel."""
    shift = torch.tensor(mean, device=pixels.device)[:, None, None]
    scale = torch.tensor(std, device=pixels.device)[:, None, None]
    return (pixels / 255 - shift) / scale
