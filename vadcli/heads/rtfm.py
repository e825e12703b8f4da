"""RTFM: the top segments of abnormal videos must have longer feature vectors than those of normal videos.

Tian et al., "Weakly-supervised Video Anomaly Detection with Robust Temporal Feature Magnitude Learning" (ICCV 2021). The
multi-scale temporal network has three dilated convolutions (1, 2, 4 segments) and, in parallel, a self-attention. Left out: I3D
features and their ten crops. Changed: the length of a segment (see `networks`); the widths are 128 and not 2,048 and 512; k is
an eighth of the segments and not 3 of 32; the margin for long vectors is 10 and not 100.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vadcli.heads.networks import Bags, NetworkHead, perceptron, smooth_and_sparse, top
from vadcli.types import FloatArray

WIDTH = 128
MARGIN = 10.0
MAGNITUDE = 1e-2
"""Weight of the magnitude loss. The paper has 1e-4 for a margin of 100, which has the same effect at the start of training."""
REGULARISATION = 8e-4


class TemporalNetwork(nn.Module):
    """The multi-scale temporal network, and the scorer on top of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(width, WIDTH)
        self.near = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH // 4, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH // 4) for _ in range(3))
        self.join = nn.Linear(WIDTH, WIDTH)
        self.scorer = perceptron(WIDTH)

    def features(self, x: Tensor, real: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, 128)."""
        x = self.narrow(x) * real[..., None]  # (B, N, 128)
        near = [F.relu(conv(x.mT)).mT for conv in self.near]  # 3 of (B, N, 32)
        weight = (self.query(x) @ self.key(x).mT / (WIDTH // 4) ** 0.5).masked_fill(~real[:, None], float("-inf"))
        far = weight.softmax(dim=-1) @ self.value(x)  # (B, N, 32)
        return F.relu(x + self.join(torch.cat([*near, far], dim=-1))) * real[..., None]

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """(B, N, D) -> (B, N) logits."""
        logit: Tensor = self.scorer(self.features(x, real))[..., 0]
        return logit


class RtfmHead(NetworkHead):
    """The head that the top of this file describes."""

    @classmethod
    def build(cls, widths: tuple[int, ...], texts: FloatArray) -> nn.Module:
        """See `NetworkHead`."""
        return TemporalNetwork(widths[0])

    @classmethod
    def loss(cls, network: nn.Module, bags: Bags, step: int) -> Tensor:
        """See `NetworkHead`."""
        assert isinstance(network, TemporalNetwork)
        features = network.features(bags.x, bags.real)
        logit = network.scorer(features)[..., 0]
        length = features.norm(dim=-1)
        rows, counts = top(length, bags.real)  # the longest vectors choose the segments that are scored

        def mean(values: Tensor) -> Tensor:
            return (values.gather(1, rows) * counts).sum(dim=1) / counts.sum(dim=1)

        longest = mean(length)
        abnormal, normal = longest[bags.positive > 0], longest[bags.positive == 0]
        pull = (torch.relu(MARGIN - abnormal)[:, None] + normal[None]).square().mean()
        classes = F.binary_cross_entropy(mean(torch.sigmoid(logit)).clamp(0.0, 1.0), bags.positive)
        return classes + MAGNITUDE * pull + REGULARISATION * smooth_and_sparse(torch.sigmoid(logit), bags)
