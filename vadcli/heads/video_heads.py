"""The heads that learn from one label per video: small neural networks.

A network gets an array (B, N, D): B videos, N segments per video, D numbers per segment. A segment is the mean of the vectors
of about two seconds. The papers cut every video into 32 segments. But an archive can have videos of ten seconds and videos of
an hour: with 32 segments per video, the lengths of segments would be too different.

`NetworkHead` is the base class, which trains a network. After the base class come the parts that several heads share, and then
the heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vadcli.heads import Examples, Labels, Sample, centred
from vadcli.types import FloatArray, IndexArray
from vadcli.types.text import error_text

SEGMENT_S = 2.0
MOST_SEGMENTS = 256
"""A video has at most this many segments. In very long videos, segments are therefore longer than SEGMENT_S."""
STEPS = 200
"""The number of training steps."""
VIDEOS_PER_STEP = 16
"""Half of the videos of a step are abnormal. If fewer abnormal or normal videos exist, a step uses all that exist."""
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-3
TOP_SHARE = 8
"""A video of N segments has N / TOP_SHARE top segments, rounded up. The score of the video is computed from them."""


@dataclass(frozen=True)
class Bags:
    """The videos of one training step. The papers call the segments of a video a bag.

    Attributes:
        x: (B, N, D) segments. N is the length of the longest video; shorter videos are padded with zeros.
        real: (B, N) bool, False for padding.
        positive: (B,) float, 1 for an abnormal video, 0 for a normal video.
        category: (B,) int64, number of the video's category; -1 for a normal video, or if the head uses no categories.
    """

    x: Tensor
    real: Tensor
    positive: Tensor
    category: Tensor


class NetworkHead(ABC):
    """Base class of heads that are neural networks. A subclass defines the network and the loss.

    Args:
        network: takes `Bags.x` and `Bags.real`, and returns logits (B, N).
        mean: one vector (D,) per encoder, which is subtracted from all vectors of this encoder.
    """

    labels: ClassVar[Labels] = Labels.VIDEOS
    encoders: ClassVar[int] = 1

    def __init__(self, network: nn.Module, mean: tuple[FloatArray, ...]) -> None:
        self.network, self.mean = network.eval(), mean

    @classmethod
    @abstractmethod
    def build(cls, widths: tuple[int, ...], texts: FloatArray) -> nn.Module:
        """Return an untrained network.

        Args:
            widths: numbers per vector, for each encoder.
            texts: (C, D) vectors of the category names; (0, 0) if the head does not learn from categories.
        """

    @classmethod
    @abstractmethod
    def loss(cls, network: nn.Module, bags: Bags, step: int) -> Tensor:
        """Return the loss of the videos in one training step; `step` counts from 0."""

    @classmethod
    def fit(cls, examples: Examples, *, seed: int) -> Self:
        """Return a head that is trained on the examples."""
        segments = [torch.from_numpy(segments_of(sample, examples.mean)[0]) for sample in examples.samples]
        category = examples.category if len(examples.category) else np.full(len(examples), -1)
        sides = [np.flatnonzero(examples.positive), np.flatnonzero(~examples.positive)]
        generator = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            network = cls.build(tuple(map(len, examples.mean)), examples.texts).train()
            optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            for step in range(STEPS):
                rows = np.concatenate([generator.permutation(side)[: VIDEOS_PER_STEP // 2] for side in sides])
                x = nn.utils.rnn.pad_sequence([segments[row] for row in rows], batch_first=True)
                real = torch.arange(x.shape[1]) < torch.tensor([len(segments[row]) for row in rows])[:, None]
                positive = torch.from_numpy(examples.positive[rows]).float()
                loss = cls.loss(network, Bags(x, real, positive, torch.from_numpy(category[rows]).long()), step)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        return cls(network, examples.mean)

    def score(self, sample: Sample) -> FloatArray:
        """Return a logit per frame, (S,) float32."""
        x, rows = segments_of(sample, self.mean)
        with torch.inference_mode():
            logit = self.network(torch.from_numpy(x)[None], torch.ones(1, len(x), dtype=torch.bool))[0]
        return np.asarray(logit.numpy()[rows], np.float32)

    def state(self) -> dict[str, FloatArray]:
        """Return the arrays of the head by name."""
        arrays = {f"network.{name}": value.numpy() for name, value in self.network.state_dict().items()}
        return arrays | {f"mean.{number}": mean for number, mean in enumerate(self.mean)}

    @classmethod
    def of(cls, state: Mapping[str, FloatArray]) -> Self:
        """Return the head from the arrays of `state`."""
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
    """Return the segments of a sample, (N, D) float32, and the segment number of each frame, (S,) int64.

    The vectors of several encoders are concatenated, so D is the sum of their widths.
    """
    vectors = np.concatenate([centred(*pair) for pair in zip(sample.vectors, mean, strict=True)], axis=1)
    position = (sample.timestamp - sample.timestamp[0]) / SEGMENT_S
    position = position * min(1.0, (MOST_SEGMENTS - 1) / max(float(position[-1]), 1.0))
    starts = np.unique(np.floor(position), return_index=True)[1]
    lengths = np.diff(np.append(starts, len(vectors)))
    rows = np.repeat(np.arange(len(starts)), lengths)
    return np.asarray(np.add.reduceat(vectors, starts, axis=0) / lengths[:, None], np.float32), rows


def perceptron(width: int) -> nn.Sequential:
    """Return the network of Sultani et al. with fewer units per layer: D -> 128 -> 32 -> 1, with dropout."""
    return nn.Sequential(
        nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.6), nn.Linear(128, 32), nn.Dropout(0.6), nn.Linear(32, 1)
    )


def top_mean(values: Tensor, real: Tensor, by: Tensor | None = None) -> Tensor:
    """Return the mean value of the top segments of each video, (B,).

    A video with n segments has n / TOP_SHARE top segments, rounded up.

    Args:
        values: (B, N), one value per segment.
        real: (B, N) bool, False for padding.
        by: (B, N), one number per segment; the top segments are those with the highest numbers. None means `values`.
    """
    count = (real.sum(dim=1) / TOP_SHARE).ceil().long()
    by = (values if by is None else by).masked_fill(~real, float("-inf"))
    rows = by.topk(int(count.max()), dim=1).indices  # (B, K): K top segments in the longest video
    is_top = torch.arange(rows.shape[1]) < count[:, None]  # a shorter video has fewer top segments
    return (values.gather(1, rows) * is_top).sum(dim=1) / is_top.sum(dim=1)


def smooth_and_sparse(score: Tensor, bags: Bags) -> Tensor:
    """Return a loss on the scores (B, N) of abnormal videos, as in Sultani et al.

    The loss is small if only a few segments have high scores, and if neighbouring segments have similar scores.
    """
    both = bags.real[:, 1:] & bags.real[:, :-1]
    steps = ((score[:, 1:] - score[:, :-1]).square() * both).sum(dim=1)
    return ((steps + (score * bags.real).sum(dim=1)) * bags.positive).sum() / bags.positive.sum().clamp(min=1)


MIL_REGULARISATION = 8e-5
"""Weight of `smooth_and_sparse`, as in the paper."""


class Scorer(nn.Module):
    """A network that scores each segment independently of the other segments."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = perceptron(width)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Return the logits (B, N) of segments (B, N, D)."""
        logit: Tensor = self.layers(x)[..., 0]
        return logit


class MilHead(NetworkHead):
    """Multiple-instance learning: the maximum score must be higher in abnormal than in normal videos.

    Sultani, Chen and Shah, "Real-world Anomaly Detection in Surveillance Videos" (CVPR 2018). Differences from the paper:

    - stored embeddings instead of C3D features
    - segments of SEGMENT_S seconds instead of 32 segments per video
    - 128 units in the first layer instead of 512
    """

    @classmethod
    def build(cls, widths: tuple[int, ...], texts: FloatArray) -> nn.Module:
        """Return an untrained network."""
        return Scorer(widths[0])

    @classmethod
    def loss(cls, network: nn.Module, bags: Bags, step: int) -> Tensor:
        """Return the loss of one training step."""
        score = torch.sigmoid(network(bags.x, bags.real))
        highest = score.masked_fill(~bags.real, 0.0).amax(dim=1)
        abnormal, normal = highest[bags.positive > 0], highest[bags.positive == 0]
        ranking = torch.relu(1.0 - abnormal[:, None] + normal[None]).mean()
        return ranking + MIL_REGULARISATION * smooth_and_sparse(score, bags)


RTFM_WIDTH = 128
MARGIN = 10.0
MAGNITUDE = 1e-2
"""Weight of the loss on the length of vectors.

The paper has the weight 1e-4 and a margin of 100. At the start of a training, the loss is the same.
"""
RTFM_REGULARISATION = 8e-4
"""Weight of `smooth_and_sparse`."""


class TemporalNetwork(nn.Module):
    """The network of `RtfmHead`: a multi-scale temporal network, then a perceptron that gives the score."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(width, RTFM_WIDTH)
        self.near = nn.ModuleList(nn.Conv1d(RTFM_WIDTH, RTFM_WIDTH // 4, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.query, self.key, self.value = (nn.Linear(RTFM_WIDTH, RTFM_WIDTH // 4) for _ in range(3))
        self.join = nn.Linear(RTFM_WIDTH, RTFM_WIDTH)
        self.scorer = perceptron(RTFM_WIDTH)

    def features(self, x: Tensor, real: Tensor) -> Tensor:
        """Return the features (B, N, 128) of segments (B, N, D)."""
        x = self.narrow(x) * real[..., None]  # (B, N, 128)
        near = [F.relu(conv(x.mT)).mT for conv in self.near]  # three tensors (B, N, 32)
        weight = (self.query(x) @ self.key(x).mT / (RTFM_WIDTH // 4) ** 0.5).masked_fill(~real[:, None], float("-inf"))
        far = weight.softmax(dim=-1) @ self.value(x)  # (B, N, 32)
        return F.relu(x + self.join(torch.cat([*near, far], dim=-1))) * real[..., None]

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Return the logits (B, N) of segments (B, N, D)."""
        logit: Tensor = self.scorer(self.features(x, real))[..., 0]
        return logit


class RtfmHead(NetworkHead):
    """RTFM: the longest feature vectors of an abnormal video must be longer than those of a normal video.

    Tian et al., "Weakly-supervised Video Anomaly Detection with Robust Temporal Feature Magnitude Learning" (ICCV 2021). The
    multi-scale temporal network has three dilated convolutions (1, 2, 4 segments) and, in parallel, a self-attention.
    Differences from the paper:

    - stored embeddings instead of I3D features from ten crops per frame
    - segments of SEGMENT_S seconds instead of 32 segments per video
    - feature vectors with 128 numbers instead of 2,048 and 512
    - an eighth of the segments are top segments, instead of 3 of 32
    - the margin for the length of vectors is 10 instead of 100
    """

    @classmethod
    def build(cls, widths: tuple[int, ...], texts: FloatArray) -> nn.Module:
        """Return an untrained network."""
        return TemporalNetwork(widths[0])

    @classmethod
    def loss(cls, network: nn.Module, bags: Bags, step: int) -> Tensor:
        """Return the loss of one training step."""
        assert isinstance(network, TemporalNetwork)
        features = network.features(bags.x, bags.real)
        logit = network.scorer(features)[..., 0]
        score, length = torch.sigmoid(logit), features.norm(dim=-1)
        longest = top_mean(length, bags.real)
        abnormal, normal = longest[bags.positive > 0], longest[bags.positive == 0]
        pull = (torch.relu(MARGIN - abnormal)[:, None] + normal[None]).square().mean()
        classes = F.binary_cross_entropy(top_mean(score, bags.real, by=length).clamp(0.0, 1.0), bags.positive)
        return classes + MAGNITUDE * pull + RTFM_REGULARISATION * smooth_and_sparse(score, bags)


TOPK_WIDTH = 64


class TwoEncoders(nn.Module):
    """A network that projects the vectors of two encoders to the same width, and scores both together."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = widths
        self.project = nn.ModuleList(nn.Sequential(nn.Linear(width, TOPK_WIDTH), nn.LayerNorm(TOPK_WIDTH)) for width in widths)
        self.scorer = perceptron(TOPK_WIDTH * len(widths))

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Return the logits (B, N) of segments (B, N, D), where D is the sum of the widths of both encoders."""
        parts = torch.split(x, list(self.widths), dim=-1)
        joined = torch.cat([project(part) for project, part in zip(self.project, parts, strict=True)], dim=-1)
        logit: Tensor = self.scorer(joined)[..., 0]
        return logit


class TopkHead(NetworkHead):
    """Scores the vectors of two encoders together; learns from the mean score of a video's top segments.

    Tsfaty et al., "Recognition of Abnormal Events in Surveillance Videos using Weakly Supervised Dual-Encoder Models" (2025).
    Differences from the paper:

    - stored embeddings of any two encoders instead of I3D (convolutional) and TimeSformer (a transformer)
    - segments of SEGMENT_S seconds
    """

    encoders: ClassVar[int] = 2

    @classmethod
    def build(cls, widths: tuple[int, ...], texts: FloatArray) -> nn.Module:
        """Return an untrained network."""
        return TwoEncoders(widths)

    @classmethod
    def loss(cls, network: nn.Module, bags: Bags, step: int) -> Tensor:
        """Return the loss of one training step."""
        return F.binary_cross_entropy_with_logits(top_mean(network(bags.x, bags.real), bags.real), bags.positive)


WARM_UP = STEPS // 4
"""The number of steps before pseudo labels are used. Before that, the peaks of the score mean little."""
LOWEST_WIDTH = 0.5
"""The smallest standard deviation of a kernel of `splat`, in segments."""


class GaussianHead(NetworkHead):
    """Multiple-instance learning (MIL) with a pseudo label for each segment.

    The pseudo labels are Gaussian kernels around the peaks of the score (see `splat`). With them, the head learns from all
    segments, and not only from the top segments. The loss is the temporal Gaussian loss of GS-MoE (D'Amicantonio et al.,
    "Mixture of Experts Guided by Gaussian Splatters Matters: A new Approach to Weakly-Supervised Video Anomaly Detection", ICCV
    2025). Differences from the paper:

    - a single small network (`Scorer`) instead of a mixture of experts with one expert per category
    - stored embeddings instead of the UR-DMU encoder on I3D features
    """

    @classmethod
    def build(cls, widths: tuple[int, ...], texts: FloatArray) -> nn.Module:
        """Return an untrained network."""
        return Scorer(widths[0])

    @classmethod
    def loss(cls, network: nn.Module, bags: Bags, step: int) -> Tensor:
        """Return the loss of one training step."""
        logit = network(bags.x, bags.real)
        video = F.binary_cross_entropy_with_logits(top_mean(logit, bags.real), bags.positive)
        if step < WARM_UP:
            return video
        network.eval()
        with torch.no_grad():
            score = torch.sigmoid(network(bags.x, bags.real)) * bags.real
            target = torch.stack([splat(row) for row in score]) * bags.positive[:, None]
        network.train()
        segments = F.binary_cross_entropy_with_logits(logit, target, reduction="none") * bags.real
        return video + (segments.sum(dim=1) / bags.real.sum(dim=1)).mean()


def splat(score: Tensor) -> Tensor:
    """Return pseudo labels (N,) in [0, 1]: Gaussian kernels of height 1 around the peaks of the score.

    - A peak is a local maximum whose score is at least (mean score + highest score) / 2.
    - A kernel is as wide as the run of segments around the peak whose scores are at least half of the peak's score.
    - Where kernels overlap, the label is the highest of their values.

    Args:
        score: (N,), the scores of a video's segments, in [0, 1].
    """
    padded = F.pad(score, (1, 1), value=-1.0)
    is_peak = (score >= padded[:-2]) & (score > padded[2:]) & (score >= 0.5 * (score.mean() + score.max())) & (score > 0)
    position = torch.arange(len(score))
    label = torch.zeros_like(score)
    for peak in torch.nonzero(is_peak)[:, 0]:
        low = torch.nonzero(score < 0.5 * score[peak])[:, 0]
        before, after = low[low < peak], low[low > peak]
        start = int(before[-1]) + 1 if len(before) else 0
        stop = int(after[0]) if len(after) else len(score)
        sigma = max((stop - start) / 2.355, LOWEST_WIDTH)  # at half its height, a Gaussian is 2.355 sigma wide
        label = torch.maximum(label, torch.exp(-0.5 * ((position - peak) / sigma) ** 2))
    return label


DUAL_WIDTH = 128
TEMPERATURE = 0.07
HIGH, LOW = 0.7, 0.3
"""A branch gets a pseudo label for a segment if the other branch gives the segment a score above HIGH or below LOW."""


class TwoBranches(nn.Module):
    """The network of `DualHead`: an encoder with a binary branch and a category branch.

    Args:
        width: D, numbers per segment.
        texts: (C, D) vectors of the category names.
    """

    texts: Tensor

    def __init__(self, width: int, texts: FloatArray) -> None:
        super().__init__()
        self.register_buffer("texts", torch.from_numpy(texts).float())
        self.encode = nn.Conv1d(width, DUAL_WIDTH, 3, padding=1)
        self.binary = perceptron(DUAL_WIDTH)
        self.project = nn.Linear(DUAL_WIDTH, width)
        self.normal = nn.Parameter(torch.randn(1, width) / width**0.5)

    def branches(self, x: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the binary branch, (B, N), and of the category branch, (B, N, 1 + C).

        The binary branch has a logit for "abnormal". The category branch has a logit for "normal", then one per category.
        """
        encoded = F.relu(self.encode((x * real[..., None]).mT)).mT  # (B, N, 128)
        vectors = F.normalize(x + self.project(encoded), dim=-1)
        classes = F.normalize(torch.cat([self.normal, self.texts]), dim=-1)
        return self.binary(encoded)[..., 0], vectors @ classes.T / TEMPERATURE

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Return the logits (B, N) of segments (B, N, D): the mean of the logits of both branches."""
        binary, categories = self.branches(x, real)
        return 0.5 * (binary + not_normal(categories))


def not_normal(categories: Tensor) -> Tensor:
    """Return the logits (…) for "not normal" from the logits (…, 1 + C) of the category branch."""
    return categories[..., 1:].logsumexp(dim=-1) - categories[..., 0]


class DualHead(NetworkHead):
    """Learns when something happens (binary branch) and what happens (category branch).

    The method is CPL-VAD (Lee et al., "Cross Pseudo Labeling for Weakly Supervised Video Anomaly Detection", 2026). The
    category branch compares segments with the vectors of the category names.

    After a warm-up, each branch gives pseudo labels to segments of abnormal videos, and the other branch learns from them.
    Segments with a high score of the binary branch get the category of the video; segments with a low score become normal. In
    the same way, the category branch decides which segments are abnormal and which are normal. Differences from the paper:

    - a convolution over time instead of the ActionFormer encoder
    - pseudo labels from the mean score of three segments, instead of the consistency-aware refinement
    """

    labels: ClassVar[Labels] = Labels.CATEGORIES

    @classmethod
    def build(cls, widths: tuple[int, ...], texts: FloatArray) -> nn.Module:
        """Return an untrained network."""
        return TwoBranches(widths[0], texts)

    @classmethod
    def loss(cls, network: nn.Module, bags: Bags, step: int) -> Tensor:
        """Return the loss of one training step."""
        assert isinstance(network, TwoBranches)
        binary, categories = network.branches(bags.x, bags.real)
        video = torch.stack([top_mean(part, bags.real) for part in categories.unbind(-1)], dim=-1)  # (B, 1 + C)
        wanted = torch.where(bags.positive > 0, bags.category + 1, 0)
        loss = F.binary_cross_entropy_with_logits(top_mean(binary, bags.real), bags.positive)
        loss = loss + F.cross_entropy(video[wanted > 0], wanted[wanted > 0])
        normal = categories[(bags.positive == 0)[:, None] & bags.real]  # (M, 1 + C) all segments of normal videos
        loss = loss + F.cross_entropy(normal, torch.zeros(len(normal), dtype=torch.long))
        return loss if step < WARM_UP else loss + cls._exchange(network, bags, binary, categories, wanted)

    @classmethod
    def _exchange(cls, network: TwoBranches, bags: Bags, binary: Tensor, categories: Tensor, wanted: Tensor) -> Tensor:
        """Return the sum of two losses: the loss of each branch on the pseudo labels from the other branch."""
        network.eval()
        with torch.no_grad():
            by_binary, by_categories = network.branches(bags.x, bags.real)
            real = F.avg_pool1d(bags.real.float()[:, None], 3, 1, 1)[:, 0].clamp(min=1e-6)
            scores = [torch.sigmoid(logit) for logit in (by_binary, not_normal(by_categories))]  # two tensors (B, N)
            # Mean scores over a segment and its two neighbours: `when` from the binary branch, `what` from the category branch.
            when, what = (F.avg_pool1d((score * bags.real)[:, None], 3, 1, 1)[:, 0] / real for score in scores)
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
