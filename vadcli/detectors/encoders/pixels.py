"""Turns frames into the pixels that an encoder reads. Runs on the device of the frames, without PIL.

The results are like those of transformers' image processor if it is set to squash (to stretch a picture to a square). Its
default for CLIP is to cut off both sides of a wide picture, but things can happen there too.

Before normalisation, values differ from PIL's by at most one gray level if a picture is made smaller (in an HD frame, 3 in
1,000 values differ), and by at most two if it is enlarged. This code resizes the width before the height. Recent
versions of PIL resize some tall pictures in the other order, which rounds sharp edges differently.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vadcli.errors import WeightsError
from vadcli.weights.checksums import read_json

MODES = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers of the filters that CLIP and SigLIP use."""
GPU_PICTURES = 8
"""How many pictures a GPU resizes at a time: 8 HD frames in float32 have 200 MB."""


@dataclass(frozen=True)
class PixelRules:
    """How pictures become pixels.

    Attributes:
        side_px: S, side of the square.
        mode: filter for the resize, bilinear or bicubic, antialiased.
        mean, std: normalisation per RGB channel, applied after `scale`.
        scale: factor for values in 0-255.
    """

    side_px: int
    mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        if self.mode not in MODES.values() or len(self.mean) != 3 or len(self.std) != 3 or 0 in self.std:
            raise ValueError(f"not rules for pixels: {self}")

    def apply(self, frames: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the pixels (N, 3, S, S) of frames (N, H, W, 3) uint8, squashed and normalised."""
        pixels = squash(frames, self.side_px, self.mode).float()
        factor = torch.tensor([self.scale / std for std in self.std], device=pixels.device)[:, None, None]
        shift = torch.tensor([-mean / std for mean, std in zip(self.mean, self.std, strict=True)], device=pixels.device)
        return pixels.mul_(factor).add_(shift[:, None, None]).to(dtype)


def squash(frames: Tensor, side_px: int, mode: str) -> Tensor:
    """Stretch frames (N, H, W, 3) uint8 to squares (N, 3, S, S). The values are whole numbers in 0-255."""
    pictures = frames.permute(0, 3, 1, 2)  # (N, 3, H, W), channels last in memory
    if pictures.shape[-2:] == (side_px, side_px):
        return pictures.contiguous()
    if frames.device.type == "cpu":
        # If the pixels are bytes with the channels last, torch uses whole numbers like PIL. This is 20 times as fast as floats.
        return F.interpolate(pictures, size=(side_px, side_px), mode=mode, antialias=True)
    parts = (pictures[start : start + GPU_PICTURES] for start in range(0, len(pictures), GPU_PICTURES))
    return torch.cat([_in_two_steps(part.float(), side_px, mode) for part in parts])


def _in_two_steps(pictures: Tensor, side_px: int, mode: str) -> Tensor:
    """Resize the width and then the height of pictures (N, 3, H, W). Rounds after each step, as PIL does."""
    for size in ((pictures.shape[-2], side_px), (side_px, side_px)):
        pictures = F.interpolate(pictures, size=size, mode=mode, antialias=True).round_().clamp_(0, 255)
    return pictures


def read_rules(folder: Path, defaults: PixelRules) -> PixelRules:
    """Return the rules of a model's folder. Values that its preprocessor_config.json does not contain come from `defaults`.

    Raises:
        WeightsError: the file is damaged, or names a filter that vadcli does not have.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        path = folder / "processor_config.json"  # where transformers 5 stores the rules
    if not path.is_file():
        return defaults
    try:
        document: dict[str, Any] = read_json(path)
        document = document.get("image_processor", document)
        changes: dict[str, Any] = {}
        if "resample" in document:
            changes["mode"] = MODES[document["resample"]]
        for key, ours in (("image_mean", "mean"), ("image_std", "std")):
            if document.get(key) is not None:
                changes[ours] = tuple(float(value) for value in document[key])
        if document.get("do_normalize") is False:
            changes.update(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        scale = document.get("rescale_factor", defaults.scale)
        changes["scale"] = 1.0 if document.get("do_rescale") is False else float(scale)
        return replace(defaults, **changes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "fetch the folder again; the filters 2 (bilinear) and 3 (bicubic) are known"
        raise WeightsError(f"{path}: vadcli cannot follow these rules for pixels: {error!r}", hint=hint) from error
