"""The common parts of the heads that learn from one label per video: segments and training.

Such a head is a network on (B, N, D) segments: B videos, N segments, D numbers. A segment is the mean of the vectors of about
two seconds. Papers cut every video into 32 segments. But an archive has videos of ten seconds and of an hour, so its segments
would have very different lengths.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from vadcli.heads import Examples, Labels, Sample, centred
from vadcli.types import FloatArray, IndexArray
from vadcli.types.text import error_text

SEGMENT_S = 2.0
MOST_SEGMENTS = 256
"""If a video would have more segments than this, its segments become longer."""
STEPS = 200
VIDEOS_PER_STEP = 16
"""Half of these videos are abnormal and half are normal. If fewer are known of one kind, all videos of this kind are used."""
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-3
TOP_SHARE = 8
"""The top-k heads look at the N / TOP_SHARE segments with the highest scores, at least one."""


@dataclass(frozen=True)
class Bags:
    """A batch of videos.

    Attributes:
        x: (B, N, D) segments; rows beyond the end of a video are 0.
        real: (B, N) bool, True for the segments of a video.
        positive: (B,) float, 1 if something happens in the video.
        category: (B,) int64; -1 for a video without a category.
    """

    x: Tensor
    real: Tensor
    positive: Tensor
    category: Tensor


class NetworkHead(ABC):
    """The base of heads that are networks. A subclass defines the network and its loss.

    Args:
        network: maps (B, N, D) segments and the (B, N) mask of real segments to (B, N) logits.
        mean: per encoder, the (D,) vector that is subtracted first.
    """

    labels: ClassVar[Labels] = Labels.VIDEOS
    encoders: ClassVar[int] = 1

    def __init__(self, network: nn.Module, mean: tuple[FloatArray, ...]) -> None:
        self.network, self.mean = network.eval(), mean

    @classmethod
    @abstractmethod
    def build(cls, widths: tuple[int, ...], texts: FloatArray) -> nn.Module:
        """Return the network before training.

        Args:
            widths: the width of each encoder's vectors.
            texts: (C, D) vectors of the categories; (0, 0) if the head needs none.
        """

    @classmethod
    @abstractmethod
    def loss(cls, network: nn.Module, bags: Bags, step: int) -> Tensor:
        """Return the loss of one step."""

    @classmethod
    def fit(cls, examples: Examples, *, seed: int) -> Self:
        """See `Head`."""
        segments = [torch.from_numpy(segments_of(sample, examples.mean)[0]) for sample in examples.samples]
        category = examples.category if len(examples.category) else np.full(len(examples), -1)
        sides = [np.flatnonzero(examples.positive), np.flatnonzero(~examples.positive)]
        draw = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            network = cls.build(tuple(map(len, examples.mean)), examples.texts).train()
            optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            for step in range(STEPS):
                rows = np.concatenate([draw.permutation(side)[: VIDEOS_PER_STEP // 2] for side in sides])
                x = nn.utils.rnn.pad_sequence([segments[row] for row in rows], batch_first=True)
                real = torch.arange(x.shape[1]) < torch.tensor([len(segments[row]) for row in rows])[:, None]
                positive = torch.from_numpy(examples.positive[rows]).float()
                loss = cls.loss(network, Bags(x, real, positive, torch.from_numpy(category[rows]).long()), step)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        return cls(network, examples.mean)

    def score(self, sample: Sample) -> FloatArray:
        """See `Head`."""
        x, rows = segments_of(sample, self.mean)
        with torch.inference_mode():
            logit = self.network(torch.from_numpy(x)[None], torch.ones(1, len(x), dtype=torch.bool))[0]
        return np.asarray(logit.numpy()[rows], np.float32)

    def state(self) -> dict[str, FloatArray]:
        """See `Head`."""
        arrays = {f"network.{name}": value.numpy() for name, value in self.network.state_dict().items()}
        return arrays | {f"mean.{number}": mean for number, mean in enumerate(self.mean)}

    @classmethod
    def of(cls, state: Mapping[str, FloatArray]) -> Self:
        """See `Head`."""
        mean = tuple(state[f"mean.{number}"] for number in range(cls.encoders))
        network = cls.build(tuple(map(len, mean)), state.get("network.texts", np.zeros((0, 0), np.float32)))
        weights = {
            name.removeprefix("network."): torch.from_numpy(value) for name, value in state.items() if "network." in name
        }
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(error_text(error)) from error
        return cls(network, mean)


def segments_of(sample: Sample, mean: tuple[FloatArray, ...]) -> tuple[FloatArray, IndexArray]:
    """Return the segments (N, D) of a sample with all encoders, and the segment (S,) of each frame."""
    vectors = np.concatenate([centred(one, centre) for one, centre in zip(sample.vectors, mean, strict=True)], axis=1)
    place = (sample.timestamp - sample.timestamp[0]) / SEGMENT_S
    place = place * min(1.0, (MOST_SEGMENTS - 1) / max(float(place[-1]), 1.0))
    starts = np.unique(np.floor(place), return_index=True)[1]
    lengths = np.diff(np.append(starts, len(vectors)))
    rows = np.repeat(np.arange(len(starts)), lengths)
    return np.asarray(np.add.reduceat(vectors, starts, axis=0) / lengths[:, None], np.float32), rows


def perceptron(width: int) -> nn.Sequential:
    """Return the scorer of Sultani et al. with fewer units: D -> 128 -> 32 -> 1, with dropout."""
    return nn.Sequential(
        nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.6), nn.Linear(128, 32), nn.Dropout(0.6), nn.Linear(32, 1)
    )


def top_mean(values: Tensor, real: Tensor, by: Tensor | None = None) -> Tensor:
    """Return the mean (B,) of the values of each video's top segments.

    Args:
        values: (B, N).
        real: (B, N) bool.
        by: (B, N). The top segments are the ones with the highest `by`. None: the ones with the highest values.
    """
    count = (real.sum(dim=1) / TOP_SHARE).ceil().long()
    by = (values if by is None else by).masked_fill(~real, float("-inf"))
    rows = by.topk(int(count.max()), dim=1).indices  # (B, K); K fits the longest video
    counts = torch.arange(rows.shape[1]) < count[:, None]  # fewer segments count in shorter videos
    return (values.gather(1, rows) * counts).sum(dim=1) / counts.sum(dim=1)


def smooth_and_sparse(score: Tensor, bags: Bags) -> Tensor:
    """Return Sultani's terms for abnormal videos: few segments score high, and neighbours score alike."""
    both = bags.real[:, 1:] & bags.real[:, :-1]
    steps = ((score[:, 1:] - score[:, :-1]).square() * both).sum(dim=1)
    return ((steps + (score * bags.real).sum(dim=1)) * bags.positive).sum() / bags.positive.sum().clamp(min=1)
