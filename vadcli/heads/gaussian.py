"""Multiple-instance learning (MIL) with pseudo labels: Gaussian kernels around the peaks of the score.

With these labels, the head learns from more than one segment per video. GS-MoE (D'Amicantonio et al., "Mixture of Experts
Guided by Gaussian Splatters Matters: A new Approach to Weakly-Supervised Video Anomaly Detection", ICCV 2025). Left out: the
mixture of experts, one per category, and its gate; the UR-DMU encoder on I3D features. This file implements the temporal
Gaussian loss on a scorer of single segments.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vadcli.heads.mil import Scorer
from vadcli.heads.networks import STEPS, Bags, NetworkHead, top_mean
from vadcli.types import FloatArray

WARM_UP = STEPS // 4
"""Steps without pseudo labels, until the peaks mean something."""
LOWEST_WIDTH = 0.5


class GaussianHead(NetworkHead):
    """The head that the top of this file describes."""

    @classmethod
    def build(cls, widths: tuple[int, ...], texts: FloatArray) -> nn.Module:
        """See `NetworkHead`."""
        return Scorer(widths[0])

    @classmethod
    def loss(cls, network: nn.Module, bags: Bags, step: int) -> Tensor:
        """See `NetworkHead`."""
        logit = network(bags.x, bags.real)
        video = F.binary_cross_entropy_with_logits(top_mean(logit, bags.real), bags.positive)
        if step < WARM_UP:
            return video
        network.eval()
        with torch.no_grad():
            score = torch.sigmoid(network(bags.x, bags.real)) * bags.real
            target = torch.stack([splat(one) for one in score]) * bags.positive[:, None]
        network.train()
        each = F.binary_cross_entropy_with_logits(logit, target, reduction="none") * bags.real
        return video + (each.sum(dim=1) / bags.real.sum(dim=1)).mean()


def splat(score: Tensor) -> Tensor:
    """Return (N,) pseudo labels in [0, 1]: the highest of the Gaussian kernels around the peaks of the score.

    A peak is a local maximum above the mean of the video's mean and its maximum. Its kernel has the height 1 and the width of
    the run of segments around it that score at least half as high.

    Args:
        score: (N,) in [0, 1].
    """
    padded = F.pad(score, (1, 1), value=-1.0)
    is_peak = (score >= padded[:-2]) & (score > padded[2:]) & (score >= 0.5 * (score.mean() + score.max())) & (score > 0)
    place = torch.arange(len(score))
    label = torch.zeros_like(score)
    for peak in torch.nonzero(is_peak)[:, 0]:
        low = torch.nonzero(score < 0.5 * score[peak])[:, 0]
        left, right = low[low < peak], low[low > peak]
        first = int(left[-1]) + 1 if len(left) else 0
        last = int(right[0]) if len(right) else len(score)
        sigma = max((last - first) / 2.355, LOWEST_WIDTH)  # a kernel is 2.355 sigma wide at half its height
        label = torch.maximum(label, torch.exp(-0.5 * ((place - peak) / sigma) ** 2))
    return label
