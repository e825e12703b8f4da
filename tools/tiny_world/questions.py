"""The task `questions`: trains a language model to say whether a clip shows each name of a list.

The image encoder is already trained and stays frozen; its features are kept in memory.

    SAM2 features ─ sight ─┬─ colour, shape, motion of each cell, in the model's words ─ loss tokens
                           └─ compression ─ prompt with names ─ answer after each name ─ loss names
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.tiny_world.naming import NameList, Naming
from tools.tiny_world.recipe import BaseChoice, TinyLossWeights
from tools.tiny_world.words import COLOURS, MOTIONS, SHAPES
from tools.tiny_world.world import SyntheticWorld
from vadcli.detectors.lavida.model import Lavida
from vadcli.detectors.lavida.text import build_prompt
from vadcli.train.step import FeatureMemory, names_loss
from vadcli.types import BoolArray, ByteArray

LOSS_NAMES = ("tokens", "names", "total")
VOCABULARIES = (tuple(COLOURS), SHAPES, MOTIONS)
"""Colours, shapes and motions: each filled cell is labelled with one word or phrase of each kind."""
FILLED = 0.4


@dataclass(frozen=True, eq=False)
class QuestionSample:
    """A clip and the questions about it.

    Attributes:
        key: key of the clip in the memory of features.
        frames: (T, H, W, 3) uint8.
        masks: (K, T, H, W) bool, the masks of its objects.
        labels: per object, the indices of its colour, shape and motion in `VOCABULARIES`.
        lists: the lists of names.
    """

    key: str
    frames: ByteArray
    masks: BoolArray
    labels: tuple[tuple[int, int, int], ...]
    lists: tuple[NameList, ...]


class QuestionSamples(Sequence[QuestionSample]):
    """Clips of a world with random lists of names; a sample depends only on seed and number.

    Args:
        world, seed, total, chosen: as in `pictures.PictureSamples`.
    """

    def __init__(self, world: SyntheticWorld, *, seed: int, total: int, chosen: BaseChoice) -> None:
        self.world, self.seed, self.total, self.chosen = world, seed, total, chosen
        self.naming = Naming(world, patterns=chosen.patterns, hard=chosen.hard)

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, number: int) -> QuestionSample:  # type: ignore[override]
        epoch, place = divmod(number, len(self.world))
        index = int(np.random.default_rng([self.seed, 2, epoch]).permutation(len(self.world))[place])
        rng = np.random.default_rng([self.seed, 3, number])
        facts = self.world.facts(index)
        labels = tuple(
            (list(COLOURS).index(role.pair[0]), SHAPES.index(role.pair[1]), MOTIONS.index(role.motion)) for role in facts.roles
        )
        drawn = []
        for _ in range(self.chosen.lists):
            length = int(rng.integers(1, self.chosen.longest + 1))
            true = int(rng.binomial(length, self.chosen.probability))
            drawn.append(self.naming.listing(facts, rng, length=length, true=true))
        key = f"{self.world.split}/{self.world.seed}/{index}"
        return QuestionSample(key, self.world.frames(index), self.world.masks(index), labels, tuple(drawn))


class QuestionStep(nn.Module):
    """Computes the losses of a batch of clips of equal size.

    Args:
        model: prepared for training, with sight and pooling, and with a frozen image encoder.
        weights: weights of the losses.
        memory: keeps the features of the image encoder.
    """

    def __init__(self, model: Lavida, weights: TinyLossWeights, *, memory: FeatureMemory) -> None:
        super().__init__()
        self.model, self.weights, self.memory = model, weights, memory

    def forward(self, samples: Sequence[QuestionSample]) -> dict[str, Tensor]:
        """Return the losses; the keys are `LOSS_NAMES`."""
        model = self.model
        sight = model.mllm.sight
        assert sight is not None
        image = self.memory.recall([(sample.key, sample.frames) for sample in samples])
        frames = len(samples[0].frames)
        maps = image.embedding.view(len(samples), frames, *image.embedding.shape[1:])
        tokens = sight(maps)  # (B, L, D)
        cells = self._cells(tokens, samples, (maps.shape[3], maps.shape[4]))
        visual = model.compress(tokens, (frames, maps.shape[3], maps.shape[4]))
        clips, prompts, truth = [], [], []
        for clip, sample in zip(visual, samples, strict=True):
            for listed in sample.lists:
                if listed.names:
                    clips.append(clip)
                    prompts.append(build_prompt(model.tokenizer, listed.names, model.config.prompt))
                    truth.append(listed.true)
        names = names_loss(model.mllm.answers(clips, prompts, 1).names, truth)
        return {"tokens": cells, "names": names, "total": self.weights.tokens * cells + self.weights.names * names}

    def _cells(self, tokens: Tensor, samples: Sequence[QuestionSample], size: tuple[int, int]) -> Tensor:
        """Return the cross-entropy of the colour, shape and motion of each filled cell.

        The logits are the products of the cell's token and the embeddings of the words.
        """
        table = self.model.mllm.qwen.model.language_model.embed_tokens
        labels = torch.from_numpy(np.stack([_labels(sample, size) for sample in samples]))  # (B, L, 3)
        filled = labels[..., 0] >= 0
        cells, labels = tokens[filled].float(), labels[filled]
        loss = cells.new_zeros(())
        for column, words in enumerate(VOCABULARIES):
            if len(cells):
                ids = [self.model.tokenizer(f" {phrase}", add_special_tokens=False)["input_ids"] for phrase in words]
                means = [table(torch.tensor(tokens_of, device=table.weight.device)).mean(dim=0) for tokens_of in ids]
                logits = cells @ torch.stack(means).float().T / cells.shape[1] ** 0.5
                loss = loss + F.cross_entropy(logits, labels[:, column])
        return loss


def _labels(sample: QuestionSample, size: tuple[int, int]) -> np.ndarray:
    """Return (L, 3) int64: the words of each cell, or -1 if no object covers more than `FILLED` of it."""
    k, t = sample.masks.shape[:2]
    high, wide = sample.masks.shape[2] // size[0], sample.masks.shape[3] // size[1]
    cover = sample.masks.reshape(k, t, size[0], high, size[1], wide).mean(axis=(3, 5), dtype=np.float32).reshape(k, -1)
    labels = np.full((cover.shape[1], 3), -1, np.int64)
    if k:
        filled = cover.max(axis=0) > FILLED
        labels[filled] = np.array(sample.labels, np.int64)[cover.argmax(axis=0)[filled]]
    return labels
