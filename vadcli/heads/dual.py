"""A binary branch and a category branch that teach each other with pseudo labels of segments.

CPL-VAD (Lee et al., "Cross Pseudo Labeling for Weakly Supervised Video Anomaly Detection", 2026): the binary branch learns when
something happens. The category branch compares segments with the vectors of the categories' names, and learns what happens.
After a warm-up, each branch labels segments of abnormal videos for the other one. The binary branch's labels are the video's
category or normal; the category branch's labels are abnormal or normal. Left out: the ActionFormer encoder (here a convolution
over time), and the consistency-aware refinement of the pseudo labels (here smoothing over three segments).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vadcli.heads import Labels
from vadcli.heads.networks import STEPS, Bags, NetworkHead, perceptron, top_mean
from vadcli.types import FloatArray

WIDTH = 128
WARM_UP = STEPS // 4
TEMPERATURE = 0.07
HIGH, LOW = 0.7, 0.3
"""A segment gets a pseudo label if the other branch scores it above HIGH or below LOW."""


class TwoBranches(nn.Module):
    """The two branches on a shared encoder.

    Args:
        width: D of the segments.
        texts: (C, D) vectors of the categories.
    """

    texts: Tensor

    def __init__(self, width: int, texts: FloatArray) -> None:
        super().__init__()
        self.register_buffer("texts", torch.from_numpy(texts).float())
        self.encode = nn.Conv1d(width, WIDTH, 3, padding=1)
        self.binary = perceptron(WIDTH)
        self.project = nn.Linear(WIDTH, width)
        self.normal = nn.Parameter(torch.randn(1, width) / width**0.5)

    def branches(self, x: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D) -> (B, N) logits of "abnormal", and (B, N, 1 + C) logits of normal and of the categories."""
        inside = F.relu(self.encode((x * real[..., None]).mT)).mT  # (B, N, 128)
        vectors = F.normalize(x + self.project(inside), dim=-1)
        classes = F.normalize(torch.cat([self.normal, self.texts]), dim=-1)
        return self.binary(inside)[..., 0], vectors @ classes.T / TEMPERATURE

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """(B, N, D) -> (B, N) logits: the mean of the two branches' logits of "abnormal"."""
        binary, categories = self.branches(x, real)
        return 0.5 * (binary + not_normal(categories))


def not_normal(categories: Tensor) -> Tensor:
    """(…, 1 + C) -> (…) the logit of any category against normal."""
    return categories[..., 1:].logsumexp(dim=-1) - categories[..., 0]


class DualHead(NetworkHead):
    """The head that the top of this file describes."""

    labels: ClassVar[Labels] = Labels.CATEGORIES

    @classmethod
    def build(cls, widths: tuple[int, ...], texts: FloatArray) -> nn.Module:
        """See `NetworkHead`."""
        return TwoBranches(widths[0], texts)

    @classmethod
    def loss(cls, network: nn.Module, bags: Bags, step: int) -> Tensor:
        """See `NetworkHead`."""
        assert isinstance(network, TwoBranches)
        binary, categories = network.branches(bags.x, bags.real)
        video = torch.stack([top_mean(part, bags.real) for part in categories.unbind(-1)], dim=-1)  # (B, 1 + C)
        wanted = torch.where(bags.positive > 0, bags.category + 1, 0)
        loss = F.binary_cross_entropy_with_logits(top_mean(binary, bags.real), bags.positive)
        loss = loss + F.cross_entropy(video[wanted > 0], wanted[wanted > 0])
        quiet = categories[(bags.positive == 0)[:, None] & bags.real]  # (M, 1 + C) all segments of normal videos
        loss = loss + F.cross_entropy(quiet, torch.zeros(len(quiet), dtype=torch.long))
        return loss if step < WARM_UP else loss + cls._exchange(network, bags, binary, categories, wanted)

    @classmethod
    def _exchange(cls, network: TwoBranches, bags: Bags, binary: Tensor, categories: Tensor, wanted: Tensor) -> Tensor:
        """Return the loss of each branch on the pseudo labels of the other one."""
        network.eval()
        with torch.no_grad():
            said = network.branches(bags.x, bags.real)
            when, what = (_smooth(torch.sigmoid(one), bags.real) for one in (said[0], not_normal(said[1])))
        network.train()
        abnormal = (bags.positive > 0)[:, None] & bags.real
        sure = abnormal & ((when > HIGH) | (when < LOW))
        loss = binary.new_zeros(())
        if sure.any():
            labels = torch.where(when > HIGH, wanted[:, None], 0)
            loss = loss + F.cross_entropy(categories[sure], labels[sure])
        sure = abnormal & ((what > HIGH) | (what < LOW))
        if sure.any():
            loss = loss + F.binary_cross_entropy_with_logits(binary[sure], (what[sure] > HIGH).float())
        return loss


def _smooth(score: Tensor, real: Tensor) -> Tensor:
    """Return (B, N) the mean over three segments."""
    total = F.avg_pool1d((score * real)[:, None], 3, 1, 1)[:, 0]
    return total / F.avg_pool1d(real.float()[:, None], 3, 1, 1)[:, 0].clamp(min=1e-6)
