"""Deep MIL ranking: the highest segment of an abnormal video must score above the highest segment of a normal one.

Sultani, Chen and Shah, "Real-world Anomaly Detection in Surveillance Videos" (CVPR 2018). Left out: their C3D features, since
stored embeddings take their place. Changed: the length of a segment (see `networks`); the first layer has 128 units, not 512.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vadcli.heads.networks import Bags, NetworkHead, perceptron, smooth_and_sparse
from vadcli.types import FloatArray

REGULARISATION = 8e-5
"""Weight of smoothness and of sparsity, as in the paper."""


class Scorer(nn.Module):
    """Scores each segment by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = perceptron(width)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """(B, N, D) -> (B, N) logits."""
        logit: Tensor = self.layers(x)[..., 0]
        return logit


class MilHead(NetworkHead):
    """The head that the top of this file describes."""

    @classmethod
    def build(cls, widths: tuple[int, ...], texts: FloatArray) -> nn.Module:
        """See `NetworkHead`."""
        return Scorer(widths[0])

    @classmethod
    def loss(cls, network: nn.Module, bags: Bags, step: int) -> Tensor:
        """See `NetworkHead`."""
        score = torch.sigmoid(network(bags.x, bags.real))
        highest = score.masked_fill(~bags.real, 0.0).amax(dim=1)
        abnormal, normal = highest[bags.positive > 0], highest[bags.positive == 0]
        ranking = torch.relu(1.0 - abnormal[:, None] + normal[None]).mean()
        return ranking + REGULARISATION * smooth_and_sparse(score, bags)
