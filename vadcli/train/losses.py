"""The training loss and its parts as pure functions (paper 3.9).

The mask, IoU and score terms follow SAM2's training loss. Shapes: B clips, N frames, M masks per
frame, (h, w) the output size of the mask decoder. Two rules hold for every part:

- It is computed in float32, or in float64 if its inputs are float64, also under autocast.
- The loss of a batch is the mean over its frames, or over its clips for the language model. A frame
  without an object adds 0 to the mask terms, but the mean counts it. So the weight of a frame does
  not depend on the other frames of the batch, and the loss of a batch is the mean of the losses of
  its micro-batches if they have equal sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vadcli.train.recipe import LossWeights

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0
IGNORED = -100
"""Label of a token that is not part of the answer; the same number as in transformers."""


@dataclass(frozen=True)
class Losses:
    """The losses of a batch as scalars. The parts are without their weights.

    Attributes:
        focal, dice, iou, score, lm: the parts in the paper.
        names: the result of `names_loss`, which is not in the paper; 0 if it is not used.
        total: sum of the parts weighted by `LossWeights`; training minimises the total.
    """

    focal: Tensor
    dice: Tensor
    iou: Tensor
    score: Tensor
    lm: Tensor
    names: Tensor
    total: Tensor


@dataclass(frozen=True)
class MaskLosses:
    """The mask terms of the P frames that show an object.

    Attributes:
        focal, dice: (P,) losses of the best mask only.
        iou: (P,) mean loss of the IoU heads of all M masks.
        best: (P,) int64, index of the best mask.
    """

    focal: Tensor
    dice: Tensor
    iou: Tensor
    best: Tensor


def focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = FOCAL_ALPHA, gamma: float = FOCAL_GAMMA) -> Tensor:
    """Return the binary focal loss: the mean of α_t (1 − p_t)^γ · cross-entropy over the pixels of a mask.

    Args:
        logits: (…, h, w).
        targets: (…, h, w) 0 to 1 or bool.
        alpha: weight of a positive pixel; a negative pixel has the weight 1 − alpha.
        gamma: the higher it is, the less weight have pixels that are already right.

    Returns:
        (…,), one value per mask.
    """
    logits, targets = _exact(logits), _exact(targets)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    positive = logits.sigmoid()
    missed = positive + targets - 2 * positive * targets  # 1 − p_t
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return (balance * missed**gamma * entropy).mean(dim=(-2, -1))


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the Dice loss: 1 − (2 Σ p·t + 1) / (Σ p + Σ t + 1) over the pixels, p = sigmoid(logits).

    Args:
        logits: (…, h, w).
        targets: (…, h, w) 0 to 1 or bool.

    Returns:
        (…,), one value per mask, 0 to 1.
    """
    positive, targets = _exact(logits).sigmoid(), _exact(targets)
    common = (positive * targets).sum(dim=(-2, -1))
    both = positive.sum(dim=(-2, -1)) + targets.sum(dim=(-2, -1))
    return 1 - (2 * common + 1) / (both + 1)


def mask_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the IoU of the prediction (logit > 0) and the target (value > 0), without a gradient.

    Returns:
        (…,) float32, 0 if both are empty.
    """
    predicted, there = logits.detach() > 0, targets > 0
    common = (predicted & there).sum(dim=(-2, -1))
    either = (predicted | there).sum(dim=(-2, -1))
    return common.float() / either.clamp(min=1).float()


def iou_loss(predicted: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the IoU loss: |predicted − actual IoU|. It trains only the IoU head, not the mask.

    Args:
        predicted: (…,) the estimate of the head, 0 to 1.
        logits, targets: (…, h, w) the masks whose IoU the head estimates.

    Returns:
        (…,), one value per mask.
    """
    return (_exact(predicted) - mask_iou(logits, targets)).abs()


def score_loss(logits: Tensor, present: Tensor) -> Tensor:
    """Return the binary cross-entropy of the object score of each frame.

    Args:
        logits: (N,) object-score logits.
        present: (N,) bool, whether the frame shows an anomaly.

    Returns:
        (N,), one value per frame.
    """
    return F.binary_cross_entropy_with_logits(_exact(logits), _exact(present), reduction="none")


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the language model, the mean over the answer tokens of each clip.

    Only the logits of the answer are converted to float32, because those of a whole prompt would not
    fit into memory.

    Args:
        logits: (B, L, V), at each position the logits of the next token.
        labels: (B, L) int64 token ids, `IGNORED` outside the answer; logits i − 1 predict label i.

    Returns:
        (B,), 0 for a clip whose labels are all ignored.
    """
    labels = labels[:, 1:]
    clip, place = (labels != IGNORED).nonzero(as_tuple=True)
    entropy = F.cross_entropy(_exact(logits[clip, place]), labels[clip, place], reduction="none")  # (answer tokens,)
    sums = entropy.new_zeros(len(labels)).index_add(0, clip, entropy)
    return sums / (labels != IGNORED).sum(dim=1).clamp(min=1)


def names_loss(logits: Sequence[Tensor], truth: Sequence[Sequence[bool]]) -> Tensor:
    """Return the mean binary cross-entropy over all names of all lists.

    Args:
        logits: one (C,) tensor per list, with one logit per name.
        truth: per list, whether the clip shows each name.
    """
    wanted = torch.tensor([float(holds) for names in truth for holds in names], device=logits[0].device)
    return F.binary_cross_entropy_with_logits(_exact(torch.cat(list(logits))), wanted)


def mask_losses(logits: Tensor, iou: Tensor, targets: Tensor, *, weights: LossWeights | None = None) -> MaskLosses:
    """Return the mask terms of frames that all show an object.

    Only one of the M masks is trained: the first with the lowest weighted sum of focal and Dice loss.
    All IoU heads are trained.

    Args:
        logits: (P, M, h, w).
        iou: (P, M) estimated IoU of each mask.
        targets: (P, h, w).
        weights: weights of the focal and Dice loss in this sum; the paper's if None.
    """
    weights = weights or LossWeights()
    wanted = targets.unsqueeze(1).expand_as(logits)  # (P, M, h, w)
    focal, dice = focal_loss(logits, wanted), dice_loss(logits, wanted)  # (P, M)
    best = (weights.focal * focal + weights.dice * dice).detach().argmin(dim=1, keepdim=True)  # (P, 1)
    heads = iou_loss(iou, logits, wanted).mean(dim=1)
    return MaskLosses(focal.gather(1, best)[:, 0], dice.gather(1, best)[:, 0], heads, best[:, 0])


def anomaly_loss(
    *,
    mask_logits: Tensor,
    iou: Tensor,
    score_logits: Tensor,
    masks: Tensor,
    present: Tensor,
    answer: Tensor | None = None,
    weights: LossWeights | None = None,
) -> Losses:
    """Return all parts of the loss of a batch and their weighted sum.

    Args:
        mask_logits: (N, M, h, w), without the mask gate.
        iou: (N, M) estimated IoU of each mask.
        score_logits: (N,) object-score logits.
        masks: (N, h, w) target masks at the decoder's size; read only where `present` is True.
        present: (N,) bool, the labels of the frames.
        answer: (B,) from `answer_loss`; if None, this part of the loss is 0.
        weights: weight of each part; the paper's if None.

    Raises:
        ValueError: the shapes do not fit together.
    """
    weights = weights or LossWeights()
    count, heads = iou.shape
    shapes = [tuple(item.shape) for item in (mask_logits, score_logits, masks, present)]
    size = tuple(masks.shape[1:])
    if shapes != [(count, heads, *size), (count,), (count, *size), (count,)] or present.dtype != torch.bool:
        raise ValueError(f"shapes do not fit: mask {shapes[0]}, IoU {(count, heads)}, score {shapes[1]}, targets {shapes[2:]}")
    seen = mask_losses(mask_logits[present], iou[present], masks[present], weights=weights)
    parts = {
        "focal": seen.focal.sum() / max(count, 1),
        "dice": seen.dice.sum() / max(count, 1),
        "iou": seen.iou.sum() / max(count, 1),
        "score": score_loss(score_logits, present).sum() / max(count, 1),
        "lm": _exact(score_logits).new_zeros(()) if answer is None else _exact(answer).sum() / max(len(answer), 1),
    }
    total = torch.stack([getattr(weights, name) * part for name, part in parts.items()]).sum()
    return Losses(**parts, total=total, names=total.new_zeros(()))


def _exact(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
