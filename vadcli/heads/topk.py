"""Scores the vectors of two encoders together. The score of a video is the mean of its top segments.

Tsfaty et al., "Recognition of Abnormal Events in Surveillance Videos using Weakly Supervised Dual-Encoder Models" (2025),
combine a convolutional and a transformer backbone (I3D and TimeSformer). Left out: these two backbones, since any two encoders
with stored embeddings take their place. The length of a segment also differs from the paper (see `networks`).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vadcli.heads.networks import Bags, NetworkHead, perceptron, top_mean
from vadcli.types import FloatArray

WIDTH = 64


class TwoEncoders(nn.Module):
    """Projects the vectors of each encoder to the same width, and scores both together."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = widths
        self.project = nn.ModuleList(nn.Sequential(nn.Linear(width, WIDTH), nn.LayerNorm(WIDTH)) for width in widths)
        self.scorer = perceptron(WIDTH * len(widths))

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """(B, N, D + D') -> (B, N) logits."""
        parts = torch.split(x, list(self.widths), dim=-1)
        joined = torch.cat([project(part) for project, part in zip(self.project, parts, strict=True)], dim=-1)
        logit: Tensor = self.scorer(joined)[..., 0]
        return logit


class TopkHead(NetworkHead):
    """The head that the top of this file describes."""

    encoders: ClassVar[int] = 2

    @classmethod
    def build(cls, widths: tuple[int, ...], texts: FloatArray) -> nn.Module:
        """See `NetworkHead`."""
        return TwoEncoders(widths)

    @classmethod
    def loss(cls, network: nn.Module, bags: Bags, step: int) -> Tensor:
        """See `NetworkHead`."""
        return F.binary_cross_entropy_with_logits(top_mean(network(bags.x, bags.real), bags.real), bags.positive)
