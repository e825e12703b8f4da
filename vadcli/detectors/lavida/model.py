"""LAVIDA put together: one clip in, one score and one mask a frame out (paper, Figure 2).

    frames ─┬─ patches ─ vision tower ─ compression ─┐
            │                     prompt with <SEG> ─┴─ prefill ─ h_seg ─┐
            │                 categories ─ CLIP text ─────────── f_txt ─┤
            └─ SAM2 image encoder ─ F ────────────────────────────────── projector ─ one prompt a frame ─┐
                                  └─ F_s0, F_s1 ───────────────────────────────────────────────────────── mask decoder

B clips, T frames a clip, C categories, (h, w) SAM2's mask size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vadcli.detectors.lavida.config import LavidaConfig
from vadcli.detectors.lavida.masks import ImageFeatures, MaskModel, MaskOutput, TransformersMasks, gate
from vadcli.detectors.lavida.mllm import MultimodalLM, Prefix, VisualTokens
from vadcli.detectors.lavida.pixels import PatchGrid, qwen_patches, sam_pixels
from vadcli.detectors.lavida.projector import Prompts
from vadcli.detectors.lavida.prompts import PromptTokens, build_prompt, split_categories
from vadcli.detectors.lavida.propagate import propagate
from vadcli.detectors.lavida.text import TextEncoder

ENCODED_FRAMES = 16
"""Frames that go through SAM2's encoder at once: enough to fill a GPU, and its memory doesn't grow with the batch."""

Clock = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Question:
    """One prompt's worth of categories, ready for any number of clips.

    Attributes:
        categories: C names.
        tokens: the prompt.
        features: (C, D_txt) CLIP's.
    """

    categories: tuple[str, ...]
    tokens: PromptTokens
    features: Tensor


@dataclass(frozen=True)
class Seen:
    """The vision side of a batch, which no category changes.

    Attributes:
        visual: B clips' compressed visual tokens.
        image: SAM2's features of B·T frames.
        frames: T.
    """

    visual: list[VisualTokens]
    image: ImageFeatures
    frames: int


@dataclass(frozen=True)
class Verdict:
    """What LAVIDA says of a batch.

    Attributes:
        object_logit: (B, T) float32; frame score = sigmoid.
        mask_logit: (B, T, h, w) float32, gated; pixel score = sigmoid.
    """

    object_logit: Tensor
    mask_logit: Tensor


class Lavida(nn.Module):
    """The whole detector as one module.

    Args:
        config: what the weights don't say.
        mllm, text, masks, projector: the boxes.
        tokenizer: of the language model, with `<SEG>`.
    """

    def __init__(
        self,
        config: LavidaConfig,
        *,
        mllm: MultimodalLM,
        text: TextEncoder,
        masks: MaskModel,
        projector: nn.Module,
        tokenizer: Any,
    ) -> None:
        super().__init__()
        self.config = config
        self.mllm = mllm
        self.text = text
        self.masks = masks
        self.projector = projector
        self.tokenizer = tokenizer
        self.clock: Clock = lambda stage: nullcontext()

    @property
    def dtype(self) -> torch.dtype:
        """What the large parts compute in."""
        return next(self.mllm.parameters()).dtype

    def compile_parts(self) -> None:
        """Let torch.compile rewrite the parts that take the time: both encoders' and the language model's layers."""
        qwen = self.mllm.qwen.model
        for layer in (*qwen.language_model.layers, *(block.mlp for block in qwen.visual.blocks)):
            layer.compile(dynamic=True)
        encoder = getattr(getattr(self.masks, "sam2", None), "vision_encoder", None)
        if encoder is not None:
            encoder.compile()

    def questions(self, categories: Sequence[str]) -> list[Question]:
        """The categories as prompts; a list longer than a prompt should be is split."""
        with self.clock("text"):
            return [
                Question(names, build_prompt(self.tokenizer, names, self.config.prompt), self.text(names))
                for names in split_categories(categories, self.config.prompt.max_categories)
            ]

    def watch(self, frames: Tensor, *, training: bool = False) -> Seen:
        """The vision side of (B, T, H, W, 3) uint8 frames (paper 3.4 and 3.6).

        Args:
            frames: for Qwen2-VL, which pairs them in time, an odd number repeats its last one: an image is T = 1.
            training: with the frame areas of training.
        """
        if self.mllm.sight is not None:
            image = self.see(frames)
            return Seen(self.visual_from(image, frames.shape[1]), image, frames.shape[1])
        pixels = self.config.pixels
        with self.clock("pixels"):
            patches, grid = qwen_patches(
                torch.cat([frames, frames[:, -1:]], dim=1) if frames.shape[1] % 2 else frames,
                min_px=pixels.train_min_px if training else pixels.min_px,
                max_px=pixels.train_max_px if training else pixels.max_px,
                patch_px=self.mllm.patch_px,
                merge=self.mllm.merge,
                dtype=self.dtype,
            )
            squares = sam_pixels(frames.flatten(0, 1), self.masks.image_size, self.dtype)
        with self.clock("vision tower"):
            clips = self.mllm.look(patches, grid, pixels.static_threshold)
        with self.clock("compression"):
            visual = [self.mllm.compressed(clip, grid, self.config.compression) for clip in clips]
        with self.clock("sam2 encoder"):
            image = self.masks.encode(squares, chunk=ENCODED_FRAMES)
        return Seen(visual, image, frames.shape[1])

    def see(self, frames: Tensor) -> ImageFeatures:
        """What SAM2's encoder sees in (B, T, H, W, 3) uint8 frames: features of B·T."""
        with self.clock("pixels"):
            squares = sam_pixels(frames.flatten(0, 1), self.masks.image_size, self.dtype)
        with self.clock("sam2 encoder"):
            return self.masks.encode(squares, chunk=ENCODED_FRAMES)

    def visual_from(self, image: ImageFeatures, frames: int) -> list[VisualTokens]:
        """Compressed tokens of clips of T frames from what SAM2's encoder saw, where the model has a shared sight."""
        assert self.mllm.sight is not None
        maps = image.embedding.view(-1, frames, *image.embedding.shape[1:])  # (B, T, C, h, w)
        with self.clock("vision tower"):
            tokens = self.mllm.sight(maps)
        return self.compress(tokens, (frames, maps.shape[3], maps.shape[4]))

    def compress(self, tokens: Tensor, grid: tuple[int, int, int]) -> list[VisualTokens]:
        """Compressed tokens of each clip, of (B, L, D) that lie in a grid of frames, rows and columns."""
        everything = torch.arange(tokens.shape[1], device=tokens.device)
        placed = PatchGrid(*grid, merge=1)
        with self.clock("compression"):
            return [self.mllm.compressed((clip, everything), placed, self.config.compression) for clip in tokens]

    def forward(self, frames: Tensor, questions: Sequence[Question]) -> Verdict:
        """Scores and masks of (B, T, H, W, 3) uint8 frames under one list of categories."""
        seen = self.watch(frames)
        if len(questions) == 1:
            with self.clock("llm"):
                hidden = self.mllm.hidden_at_seg(seen.visual, questions[0].tokens)
            return self.judge(seen, questions[0], hidden)
        return _strongest(self.each(seen, questions))

    def each(self, seen: Seen, questions: Sequence[Question]) -> list[Verdict]:
        """One verdict a question; the language model reads the video once for all of them."""
        with self.clock("llm"):
            prefixes = self.mllm.prefixes(seen.visual, questions[0].tokens)
        return [self.judge(seen, question, self._hidden(prefixes, question)) for question in questions]

    def judge(self, seen: Seen, question: Question, hidden: Tensor) -> Verdict:
        """Project what was understood into one prompt a frame, and decode it (paper 3.7 and 3.8)."""
        output = self.decode(seen, question, hidden)
        mask = gate(output, self.config.mask_gate)[:, 0]  # (B·T, h, w)
        b, t = len(seen.visual), seen.frames
        return Verdict(output.object_logit.view(b, t), mask.view(b, t, *mask.shape[1:]))

    def decode(self, seen: Seen, question: Question, hidden: Tensor, *, multimask: bool = False) -> MaskOutput:
        """The mask decoder's own answer of B·T frames, before any gate.

        Args:
            seen: the vision side.
            question: C categories.
            hidden: (B, D_llm) hidden states at `<SEG>`.
            multimask: three masks a frame, as in training.
        """
        return self.answer(seen, self.prompts(seen, hidden, question.features), multimask=multimask)

    def answer(self, seen: Seen, prompts: Prompts, *, multimask: bool = False) -> MaskOutput:
        """The mask decoder's answer to prompts, what the projector says of presence added to its object score."""
        with self.clock("sam2 decoder"):
            dense = None if prompts.dense is None else prompts.dense.flatten(0, 1)
            output = self.masks.decode(seen.image, prompts.sparse.flatten(0, 1), multimask=multimask, dense=dense)
        if prompts.presence is None:
            return output
        return replace(output, object_logit=output.object_logit + prompts.presence.flatten().float())

    def prompts(self, seen: Seen, hidden: Tensor, text: Tensor, text_mask: Tensor | None = None) -> Prompts:
        """One sparse prompt a frame; the arguments as in `Projector.forward`."""
        image = seen.image
        with self.clock("projector"):
            maps = image.embedding.view(-1, seen.frames, *image.embedding.shape[1:])  # (B, T, 256, h/4, w/4)
            found: Prompts = self.projector(hidden, text, maps, image.position, text_mask)
        return found

    def carry(self, frames: Tensor, known: Mapping[int, Tensor], *, batch: int) -> Tensor:
        """Mask logits of frames in order of time, carried by SAM2's video memory from those that are known.

        Args:
            frames: (N, H, W, 3) uint8.
            known: frame number -> mask logits (h, w), 0 among them; each begins a stretch of its own.
            batch: stretches side by side; the result doesn't depend on it.

        Returns:
            (N, h, w) float32.
        """
        if not isinstance(self.masks, TransformersMasks):
            raise ValueError("only transformers' SAM2 propagates masks")
        with self.clock("pixels"):
            squares = sam_pixels(frames, self.masks.image_size, self.dtype)
        with self.clock("sam2 memory"):
            return propagate(self.masks, squares, known, batch=batch)

    def _hidden(self, prefixes: list[Prefix], question: Question) -> Tensor:
        with self.clock("llm"):
            return self.mllm.hidden_after(prefixes, question.tokens)


def _strongest(verdicts: Sequence[Verdict]) -> Verdict:
    """A frame's highest score over several prompts, with the mask that goes with it; of equals the first."""
    scores = torch.stack([verdict.object_logit for verdict in verdicts])  # (Q, B, T)
    best = scores.argmax(dim=0)
    masks = verdicts[0].mask_logit.clone()
    for number, verdict in enumerate(verdicts):
        masks[best == number] = verdict.mask_logit[best == number]
    return Verdict(scores.amax(dim=0), masks)
