"""Meta's SAM2.1 checkpoints as transformers folders: the same tensors under other names."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from transformers import Sam2VideoModel

from vadcli.detectors.lavida.key_map import transformers_state
from vadcli.detectors.lavida.sam2_sizes import sam2_config
from vadcli.errors import WeightsError

OLD_HINT = "is it a checkpoint of SAM2 before 2.1? fetch facebook/sam2.1-hiera-small"

# Meta's four sizes by (channels of the first stage, number of blocks), as the sam2 package's configurations have them.
META_SIZES: dict[tuple[int, int], dict[str, Any]] = {
    (96, 12): {"blocks": (1, 2, 7, 2), "global_blocks": (5, 7, 9)},
    (96, 16): {"blocks": (1, 2, 11, 2), "global_blocks": (7, 10, 13)},
    (112, 24): {"num_heads": 2, "blocks": (2, 3, 16, 3), "global_blocks": (12, 16, 20), "background": (14, 14)},
    (144, 48): {"num_heads": 2, "blocks": (2, 6, 36, 4), "windows": (8, 4, 16, 8), "global_blocks": (23, 33, 43)},
}


def convert_meta(path: Path, folder: Path) -> None:
    """Write Meta's SAM2.1 checkpoint as a folder of transformers' Sam2VideoModel.

    Raises:
        WeightsError: it is not one of Meta's SAM2.1 checkpoints.
    """
    tensors = _read_meta(path)
    blocks = {name.split(".")[3] for name in tensors if name.startswith("image_encoder.trunk.blocks.")}
    embed = tensors.get("image_encoder.trunk.patch_embed.proj.weight")
    size = META_SIZES.get((len(embed), len(blocks))) if embed is not None else None
    if embed is None or size is None:
        raise WeightsError(f"{path}: not one of Meta's four SAM2.1 sizes", hint="fetch facebook/sam2.1-hiera-small")
    with torch.device("meta"):
        model = Sam2VideoModel(sam2_config(embed_dim=len(embed), **size))
    try:
        converted = transformers_state(tensors)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}", hint=OLD_HINT) from error
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(wanted.keys() | converted.keys()):
        if wanted.get(name) != (tuple(converted[name].shape) if name in converted else None):
            raise WeightsError(f"{path}: {name} is missing or of another shape", hint=OLD_HINT)
    model.load_state_dict(converted, assign=True)
    model.save_pretrained(folder)


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        document = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        tensors = document["model"]
        if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise TypeError(path)
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        hint = "fetch Meta's file again; a pickle that holds more than tensors is refused"
        raise WeightsError(f"{path}: not Meta's SAM2.1 checkpoint", hint=hint) from error
    return dict(tensors)
