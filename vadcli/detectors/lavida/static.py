"""Static-patch drop: what stands still through a clip need not go through the vision tower more than once. Optional.

Says which merge groups of patches move; leaving out the others, and their positions with them, is the caller's part.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

STATIC_DISTANCE = 0.01


@torch.no_grad()
def moving_groups(patches: Tensor, threshold: float = STATIC_DISTANCE) -> Tensor:
    """Which merge groups to keep: all of the first temporal step, of later steps those that move during the clip.

    A group moves if the cosine distance of its patches to the same patches in the first step, meaned over its patches and all
    later steps, is at least the threshold. A static group is dropped at every later step.

    Args:
        patches: (T, G, P, D) patch embeddings of one clip: temporal steps, merge groups, patches of a group (4), width.
        threshold: mean cosine distance, in [0, 2]; 0 keeps everything.

    Returns:
        (T, G) bool, True where kept.

    Raises:
        ValueError: a threshold outside [0, 2], or patches of another shape.
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
        # Half the squared chord is the cosine distance, precise where it is small, and 0 for equal patches, zeros too.
        chord = normalize(step.double(), dim=-1) - first
        distance += chord.square().sum(dim=-1).mean(dim=-1) / 2
    keep[1:] = distance / (steps - 1) >= threshold
    return keep
