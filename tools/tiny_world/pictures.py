"""The task `pictures`: trains image encoder, mask decoder and words on single frames (stills).

    still ─ SAM2 encoder ─ F ─┬─ where each asked name is, or nowhere ─ losses align, cells
                              └─ lists of names ─ projector (no h_seg) ─ mask decoder
                                                                       ─ mask, IoU, score losses

Colours, shapes and pairs are asked separately. So the meaning of a pair follows from its two words,
and the model can find pairs that were never shown. Some names get a random deed, which does not change
the answer, because a still cannot show deeds. The task `questions` trains deeds later.
"""

from __future__ import annotations

import colorsys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.tiny_world.naming import NameList, Naming
from tools.tiny_world.recipe import BaseChoice, TinyLossWeights
from tools.tiny_world.truth import Facts
from tools.tiny_world.words import COLOURS, DEEDS, SHAPES, Pair
from tools.tiny_world.world import SyntheticWorld
from vadcli.detectors.lavida.model import EncodedClips, Lavida
from vadcli.train.step import anomaly_loss, decoder_masks, texts_of
from vadcli.types import BoolArray, ByteArray, FloatArray

LOSS_NAMES = ("align", "cells", "focal", "dice", "iou", "score", "total")
WORDS = (*(f"something {colour}" for colour in COLOURS), *SHAPES)
"""The names whose position is asked for every still."""
COVERED = 0.15
"""A name is in a cell if its objects cover more than this share of the cell."""
FILLED = 0.4
"""An object fills a cell if it covers more than this share of the cell."""
GAIN, LIFT = (0.7, 1.25), 20.0  # random brightness of a still: a factor, and the most grey levels to add or subtract
DEED_SHARE = 0.3
TURNS_TRIED = 20
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class PictureSample:
    """A still and the questions about it.

    Attributes:
        frame: (H, W, 3) uint8.
        masks: (K, H, W) bool, the masks of its objects.
        words: for each of `WORDS`, the indices of the objects that the word means.
        asked: other names whose position is asked.
        lists: lists of names whose masks and presence are asked.
        shapes_only: True if the colours of the still were changed, so that only shapes are asked.
    """

    frame: ByteArray
    masks: BoolArray
    words: tuple[tuple[int, ...], ...]
    asked: NameList
    lists: tuple[NameList, ...]
    shapes_only: bool = False


class PictureSamples(Sequence[PictureSample]):
    """Random stills of a world; a sample depends only on seed and number.

    Args:
        world: the source of the clips.
        seed: 0 or more.
        total: number of samples.
        chosen: lists per still, their lengths, and shares of grey and recoloured stills.
    """

    def __init__(self, world: SyntheticWorld, *, seed: int, total: int, chosen: BaseChoice) -> None:
        self.world, self.seed, self.total, self.chosen = world, seed, total, chosen
        self.naming = Naming(world, patterns=chosen.patterns, hard=chosen.hard)
        self._asking = Naming(world, patterns=("pair",), hard=0.7)

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, number: int) -> PictureSample:  # type: ignore[override]
        chosen, rng = self.chosen, np.random.default_rng([self.seed, 1, number])
        index = int(rng.integers(len(self.world)))
        at = int(rng.integers(self.world.options.frames))
        facts = self.world.facts(index)
        frame, masks = self.world.frames(index)[at], self.world.masks(index)[:, at]
        if rng.random() < 0.5:
            frame, masks = frame[:, ::-1], masks[..., ::-1]
        frame = np.clip(frame * rng.uniform(*GAIN) + rng.uniform(-LIFT, LIFT), 0, 255).astype(np.uint8)
        chance = rng.random()
        changed = self._changed(frame, facts, chance, rng) if number >= self.chosen.colours_first * self.total else None
        if changed is not None:
            words = [tuple(k for k, role in enumerate(facts.roles) if word == role.pair[1]) for word in WORDS]
            return PictureSample(changed, np.ascontiguousarray(masks), tuple(words), NameList((), ()), (), shapes_only=True)
        asked = self._asking.listing(facts, rng, length=8, true=4)
        words = [tuple(k for k, role in enumerate(facts.roles) if word.split()[-1] in role.pair) for word in WORDS]
        lists = tuple(
            self.naming.listing(
                facts, rng, length=int(rng.integers(1, chosen.longest + 1)), true=int(rng.random() < chosen.probability)
            )
            for _ in range(chosen.lists)
        )
        texts = tuple(
            f"{name} {DEEDS[int(rng.integers(len(DEEDS)))]}" if rng.random() < DEED_SHARE else name for name in asked.names
        )
        asked = NameList(texts, asked.meant)
        return PictureSample(frame, np.ascontiguousarray(masks), tuple(words), asked, lists)

    def _changed(self, frame: ByteArray, facts: Facts, chance: float, rng: np.random.Generator) -> ByteArray | None:
        """Return the still in grey or in other colours; None if its colours stay. `chance` (0 to 1) decides."""
        if chance < self.chosen.grey:
            grey: ByteArray = np.rint(frame @ LUMA).astype(np.uint8)[..., None].repeat(3, axis=-1)
            return grey
        if chance < self.chosen.grey + self.chosen.recoloured:
            options = self.world.options
            matrix = recolouring(facts, {*options.held_out_pairs, *options.validation_pairs}, rng)
            return None if matrix is None else np.clip(frame @ matrix.T, 0, 255).astype(np.uint8)
        return None


def recolouring(facts: Facts, held_out: Collection[Pair], rng: np.random.Generator) -> FloatArray | None:
    """Return a (3, 3) rotation of colours about the grey axis; None if no suitable rotation was found.

    After the rotation, no object looks like a pair in `held_out`.
    """
    for _ in range(TURNS_TRIED):
        angle = float(rng.uniform(0.1, 0.9)) * 2 * np.pi
        third, side = (1 - np.cos(angle)) / 3, np.sin(angle) / np.sqrt(3)
        same, before, after = np.cos(angle) + third, third - side, third + side
        matrix: FloatArray = np.array([[same, before, after], [after, same, before], [before, after, same]], np.float32)
        looks = ((_called(matrix @ np.array(COLOURS[role.pair[0]])), role.pair[1]) for role in facts.roles)
        if not any(pair in held_out for pair in looks):
            return matrix
    return None


def _called(colour: FloatArray) -> str:
    """Return the name of the world's colour with the nearest hue."""
    hue = _hue(colour)
    return min(COLOURS, key=lambda name: abs((hue - _hue(np.array(COLOURS[name])) + 0.5) % 1 - 0.5))


def _hue(colour: FloatArray) -> float:
    red, green, blue = (float(part) for part in np.clip(colour, 0, 255) / 255)
    return colorsys.rgb_to_hsv(red, green, blue)[0]


class PictureStep(nn.Module):
    """Computes the losses of a batch of stills.

    Args:
        model: prepared for training.
        weights: weights of the losses.
    """

    def __init__(self, model: Lavida, weights: TinyLossWeights) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, samples: Sequence[PictureSample]) -> dict[str, Tensor]:
        """Return the losses; the keys are `LOSS_NAMES`."""
        model = self.model
        frames = torch.stack([torch.from_numpy(sample.frame) for sample in samples])[:, None]  # (B, 1, H, W, 3)
        image = model.encode_images(frames)
        h, w = image.embedding.shape[-2:]
        names = [(*WORDS, *sample.asked.names) for sample in samples]
        text, counts = texts_of(model.text, names)
        semantics: Any = model.projector.frame_semantics
        where: Tensor = semantics.where(text, image.embedding[:, None], image.position).float()  # (B, A, h·w + 1)
        counts[torch.tensor([sample.shapes_only for sample in samples]), : len(COLOURS)] = False
        wanted = torch.from_numpy(np.stack([_wanted(sample, (h, w), text.shape[1]) for sample in samples]))
        align = align_loss(where, wanted, counts)
        cells = cells_loss(where[:, : len(WORDS), :-1], wanted[:, : len(WORDS)])
        masks = self._lists(samples, EncodedClips([], image, 1))
        total = self.weights.align * align + self.weights.cells * cells + masks["total"]
        return {"align": align, "cells": cells, **masks, "total": total}

    def _lists(self, samples: Sequence[PictureSample], encoded: EncodedClips) -> dict[str, Tensor]:
        """Return the mask, IoU and score losses over all lists; `h_seg` is all zeros."""
        model = self.model
        listed = [(row, names) for row, sample in enumerate(samples) for names in sample.lists if names.names]
        if not listed:  # the colours of all stills were changed
            zero = encoded.image.embedding.sum() * 0
            return dict.fromkeys(("focal", "dice", "iou", "score", "total"), zero)
        text, counts = texts_of(model.text, [names.names for _, names in listed])
        repeated = EncodedClips([], encoded.image[torch.tensor([row for row, _ in listed])], 1)  # one still per list
        h_seg = torch.zeros(len(listed), model.mllm.width, dtype=text.dtype)
        output = model.answer(repeated, model.prompts(repeated, h_seg, text, counts))
        masks = torch.from_numpy(np.stack([samples[row].masks[list(names.objects)].any(axis=0) for row, names in listed]))
        size = output.mask_logit.shape[-2:]
        losses = anomaly_loss(
            mask_logits=output.mask_logit,
            iou=output.iou,
            score_logits=output.object_logit,
            masks=decoder_masks(masks, (size[0], size[1])),
            present=masks.flatten(1).any(dim=1),
            weights=self.weights,
        )
        return {name: getattr(losses, name) for name in ("focal", "dice", "iou", "score", "total")}


def align_loss(where: Tensor, wanted: Tensor, counts: Tensor) -> Tensor:
    """Return the cross-entropy between the predicted and the true position of each name.

    The target is the cells of which the name covers more than `COVERED`, each with its covered share, or "nowhere".
    A visible name that covers too little of every cell is left out.

    Args:
        where: (B, A, cells + 1) logits, the last for "nowhere".
        wanted: (B, A, cells) share of each cell that the name covers.
        counts: (B, A) bool, whether each name is asked.
    """
    spread = torch.where(wanted > COVERED, wanted, torch.zeros(()))
    total = spread.sum(dim=-1, keepdim=True)
    target = torch.cat([spread / total.clamp(min=1e-6), (total == 0).to(spread.dtype)], dim=-1)
    clear = ((total[..., 0] > 0) | (wanted.amax(dim=-1) == 0)) & counts
    entropy = -(target * where.log_softmax(dim=-1)).sum(dim=-1)  # (B, A)
    return (entropy * clear).sum() / clear.sum().clamp(min=1)


def cells_loss(where: Tensor, wanted: Tensor) -> Tensor:
    """Return the cross-entropy of colours and of shapes, over cells that one colour or shape fills.

    Args:
        where: (B, words, cells) logits of `WORDS`.
        wanted: (B, words, cells) share of each cell that each word covers.
    """
    loss = where.new_zeros(())
    for words in (slice(len(COLOURS)), slice(len(COLOURS), len(WORDS))):
        cover = wanted[:, words]
        most = cover.amax(dim=1)
        filled = (most > FILLED) & (cover.sum(dim=1) - most < COVERED)  # (B, cells)
        logits = where[:, words].transpose(1, 2)[filled]
        if len(logits):
            loss = loss + F.cross_entropy(logits, cover.argmax(dim=1)[filled])
    return loss


def _wanted(sample: PictureSample, size: tuple[int, int], names: int) -> FloatArray:
    """Return (A, cells): the share of each cell that each asked name covers, padded with zeros."""
    masks = sample.masks
    blocks = masks.reshape(len(masks), size[0], masks.shape[1] // size[0], size[1], masks.shape[2] // size[1])
    cover = blocks.mean(axis=(2, 4), dtype=np.float32).reshape(len(masks), -1)  # (K, cells)
    wanted = np.zeros((names, cover.shape[1]), np.float32)
    for row, objects in enumerate((*sample.words, *sample.asked.meant)):
        if objects:
            wanted[row] = cover[list(objects)].max(axis=0)
    return wanted
