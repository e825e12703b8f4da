"""The training loss and its parts as pure functions (paper 3.9; mask, IoU and score terms after SAM2's training loss).

N frames, M masks a frame, (h, w) the mask decoder's own size, B clips. Two rules hold for every part:

- Computed in float32, whatever comes in (float64 stays), also under autocast.
- A batch's loss is the mean of what each of its frames (or clips, for the language model) would give alone. A frame without
  an object gives 0 to the mask terms and still counts. So a frame weighs the same whatever else is in the batch, and equal
  micro-batches add up to the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0
IGNORED = -100
"""Label of a token that isn't part of the answer, as transformers marks it."""


@dataclass(frozen=True)
class LossWeights:
    """What each part counts in the total; the paper's."""

    focal: float = 20.0
    dice: float = 2.0
    iou: float = 1.0
    score: float = 2.0
    lm: float = 1.0


@dataclass(frozen=True)
class Losses:
    """Scalars: each part before its weight, and the weighted total to differentiate.

    Attributes:
        focal, dice, iou, score, lm: the parts.
        names: the names' own verdicts, where a model pools them; not the paper's.
        total: their sum by `LossWeights`.
    """

    focal: Tensor
    dice: Tensor
    iou: Tensor
    score: Tensor
    lm: Tensor
    names: Tensor
    total: Tensor

    def numbers(self) -> dict[str, float]:
        """For a log; waits for the device."""
        return {item.name: float(getattr(self, item.name).detach()) for item in fields(self)}


@dataclass(frozen=True)
class MaskLosses:
    """The mask terms of each frame that shows an object, P of them.

    Attributes:
        focal, dice: (P,) of the best mask alone.
        iou: (P,) mean over the heads of all M masks.
        best: (P,) int64, which mask that was.
    """

    focal: Tensor
    dice: Tensor
    iou: Tensor
    best: Tensor


def focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = FOCAL_ALPHA, gamma: float = FOCAL_GAMMA) -> Tensor:
    """Binary focal loss: α_t (1 − p_t)^γ · cross-entropy, the mean over a mask's pixels.

    Args:
        logits: (…, h, w).
        targets: (…, h, w) 0 to 1 or bool.
        alpha: what a positive pixel counts; a negative one counts 1 − alpha.
        gamma: how far pixels that are right already are left out.

    Returns:
        (…,), one value a mask.
    """
    logits, targets = _exact(logits), _exact(targets)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    positive = logits.sigmoid()
    missed = positive + targets - 2 * positive * targets  # 1 − p_t
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return (balance * missed**gamma * entropy).mean(dim=(-2, -1))


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 − (2 Σ p·t + 1) / (Σ p + Σ t + 1) over a mask's pixels, p = sigmoid(logits).

    Args:
        logits: (…, h, w).
        targets: (…, h, w) 0 to 1 or bool.

    Returns:
        (…,), one value a mask, 0 to 1.
    """
    positive, targets = _exact(logits).sigmoid(), _exact(targets)
    common = (positive * targets).sum(dim=(-2, -1))
    both = positive.sum(dim=(-2, -1)) + targets.sum(dim=(-2, -1))
    return 1 - (2 * common + 1) / (both + 1)


def mask_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """Intersection over union of what is predicted (logit > 0) and what is there (target > 0); no gradient.

    Returns:
        (…,) float32, 0 where both are empty.
    """
    predicted, there = logits.detach() > 0, targets > 0
    common = (predicted & there).sum(dim=(-2, -1))
    either = (predicted | there).sum(dim=(-2, -1))
    return common.float() / either.clamp(min=1).float()


def iou_loss(predicted: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """|predicted − actual IoU|; trains the IoU head alone, not the mask.

    Args:
        predicted: (…,) the head's estimate, 0 to 1.
        logits, targets: (…, h, w) the masks that it estimates.

    Returns:
        (…,).
    """
    return (_exact(predicted) - mask_iou(logits, targets)).abs()


def score_loss(logits: Tensor, present: Tensor) -> Tensor:
    """Binary cross-entropy of the object score, frame by frame.

    Args:
        logits: (N,) object-score logits.
        present: (N,) bool, whether the frame shows an anomaly.

    Returns:
        (N,).
    """
    return F.binary_cross_entropy_with_logits(_exact(logits), _exact(present), reduction="none")


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the language model at the answer's tokens, the mean over a clip's.

    Only the answer's rows are computed in float32: a vocabulary times a whole prompt would not fit.

    Args:
        logits: (B, L, V), at each place those of the token after it.
        labels: (B, L) int64 token ids, `IGNORED` outside the answer; label i is what logits i − 1 should say.

    Returns:
        (B,), 0 for a clip whose labels are all ignored.
    """
    labels = labels[:, 1:]
    clip, place = (labels != IGNORED).nonzero(as_tuple=True)
    entropy = F.cross_entropy(_exact(logits[clip, place]), labels[clip, place], reduction="none")  # (answer tokens,)
    sums = entropy.new_zeros(len(labels)).index_add(0, clip, entropy)
    return sums / (labels != IGNORED).sum(dim=1).clamp(min=1)


def names_loss(logits: Sequence[Tensor], truth: Sequence[Sequence[bool]]) -> Tensor:
    """Binary cross-entropy of whether a clip shows each name of its list; the mean over all names.

    Args:
        logits: of each list (C,).
        truth: which of its names hold.
    """
    wanted = torch.tensor([float(holds) for names in truth for holds in names], device=logits[0].device)
    return F.binary_cross_entropy_with_logits(_exact(torch.cat(list(logits))), wanted)


def mask_losses(logits: Tensor, iou: Tensor, targets: Tensor, *, weights: LossWeights | None = None) -> MaskLosses:
    """The mask terms of frames that all show an object.

    Of several masks only the one with the least weighted focal + dice is trained, of equals the first; all IoU heads are.

    Args:
        logits: (P, M, h, w).
        iou: (P, M).
        targets: (P, h, w).
        weights: how focal and dice are weighed against one another; the paper's where None.
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
    """All parts of a batch and their weighted sum.

    Args:
        mask_logits: (N, M, h, w), ungated.
        iou: (N, M) estimated IoU of each mask.
        score_logits: (N,) object-score logits.
        masks: (N, h, w) what should be seen, at the decoder's size; read only where `present`.
        present: (N,) bool, the frames' labels.
        answer: (B,) from `answer_loss`; its part is 0 where None.
        weights: what each part counts; the paper's where None.

    Raises:
        ValueError: shapes don't fit together.
    """
    weights = weights or LossWeights()
    count, heads = iou.shape
    shapes = [tuple(item.shape) for item in (mask_logits, score_logits, masks, present)]
    size = tuple(masks.shape[1:])
    if shapes != [(count, heads, *size), (count,), (count, *size), (count,)] or present.dtype != torch.bool:
        raise ValueError(f"shapes don't fit: masks {shapes[0]}, IoU {(count, heads)}, scores {shapes[1]}, targets {shapes[2:]}")
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
