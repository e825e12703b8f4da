"""The whole LAVIDA network: it turns clips into one score and one mask per frame (paper, Figure 2).

    frames ─┬─ vision tower ─ compression ─┐
            │           prompt with <SEG> ─┴─ prefill ─ h_seg ─┐
            │                  categories ─ CLIP text ─ f_txt ─┤
            └─ SAM2 encoder ─┬─ F ─────────────────────────────┴─ projector ─ prompts ─┐
                             └─ F, F_s0, F_s1 ─────────────────────────────────────────┴─ mask decoder

Letters in shapes: B clips, T frames per clip, C categories, (h, w) SAM2's mask size.
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
from vadcli.detectors.lavida.projector import Prompts
from vadcli.detectors.lavida.propagate import propagate
from vadcli.detectors.lavida.text import TextEncoder, build_prompt, split_categories
from vadcli.detectors.mllm.pixels import PatchGrid, qwen_patches, sam_pixels
from vadcli.detectors.mllm.qwen import MultimodalLM, PromptTokens, VisualTokens

ENCODED_FRAMES = 16
"""Frames per call of SAM2's encoder: enough to keep a GPU busy. A fixed number limits the memory use."""

Clock = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Question:
    """The categories of one prompt as tokens and as embeddings. It can be used for any number of clips.

    Attributes:
        categories: C categories.
        tokens: the prompt.
        features: (C, D_txt), the CLIP embeddings of the categories.
    """

    categories: tuple[str, ...]
    tokens: PromptTokens
    features: Tensor


@dataclass(frozen=True)
class EncodedClips:
    """The encoded frames of a batch, which do not depend on the categories.

    Attributes:
        visual: compressed visual tokens of B clips.
        image: SAM2's features of B·T frames.
        frames: T.
    """

    visual: list[VisualTokens]
    image: ImageFeatures
    frames: int


@dataclass(frozen=True)
class LavidaOutput:
    """LAVIDA's output for a batch.

    Attributes:
        object_logit: (B, T) float32; its sigmoid is the frame score.
        mask_logit: (B, T, h, w) float32, gated; its sigmoid is the pixel score.
    """

    object_logit: Tensor
    mask_logit: Tensor


class Lavida(nn.Module):
    """The whole network as one module.

    Args:
        config: the settings that the weights do not contain.
        mllm, text, masks, projector: the parts in the figure above.
        tokenizer: the tokenizer of the language model, with `<SEG>`.
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
        """The dtype in which the large parts compute."""
        return next(self.mllm.parameters()).dtype

    def compile_parts(self) -> None:
        """Compile the slow parts: the layers of both encoders and of the language model."""
        qwen = self.mllm.qwen.model
        for layer in (*qwen.language_model.layers, *(block.mlp for block in qwen.visual.blocks)):
            layer.compile(dynamic=True)
        encoder = getattr(getattr(self.masks, "sam2", None), "vision_encoder", None)
        if encoder is not None:
            encoder.compile()

    def questions(self, categories: Sequence[str]) -> list[Question]:
        """Turn the categories into one prompt, or into several if there are too many categories for one."""
        with self.clock("text"):
            return [
                Question(names, build_prompt(self.tokenizer, names, self.config.prompt), self.text(names))
                for names in split_categories(categories, self.config.prompt.max_categories)
            ]

    def encode(self, frames: Tensor, *, training: bool = False) -> EncodedClips:
        """Encode frames (B, T, H, W, 3) uint8 (paper 3.4 and 3.6).

        Args:
            frames: T = 1 for an image. Qwen2-VL needs pairs of frames, so if T is odd, it gets the
                last frame twice.
            training: resize the frames to the config's areas for training.
        """
        if self.mllm.sight is not None:
            image = self.encode_images(frames)
            return EncodedClips(self.visual_from(image, frames.shape[1]), image, frames.shape[1])
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
            clips = self.mllm.encode_patches(patches, grid, pixels.static_threshold)
        with self.clock("compression"):
            visual = [self.mllm.compressed(clip, grid, self.config.compression) for clip in clips]
        with self.clock("sam2 encoder"):
            image = self.masks.encode(squares, chunk=ENCODED_FRAMES)
        return EncodedClips(visual, image, frames.shape[1])

    def encode_images(self, frames: Tensor) -> ImageFeatures:
        """Encode frames (B, T, H, W, 3) uint8 with SAM2's encoder; return the features of B·T frames."""
        with self.clock("pixels"):
            squares = sam_pixels(frames.flatten(0, 1), self.masks.image_size, self.dtype)
        with self.clock("sam2 encoder"):
            return self.masks.encode(squares, chunk=ENCODED_FRAMES)

    def visual_from(self, image: ImageFeatures, frames: int) -> list[VisualTokens]:
        """Return compressed visual tokens from SAM2's features, for models with a `SharedSight`."""
        assert self.mllm.sight is not None
        maps = image.embedding.view(-1, frames, *image.embedding.shape[1:])  # (B, T, C, h, w)
        with self.clock("vision tower"):
            tokens = self.mllm.sight(maps)
        return self.compress(tokens, (frames, maps.shape[3], maps.shape[4]))

    def compress(self, tokens: Tensor, grid: tuple[int, int, int]) -> list[VisualTokens]:
        """Compress the tokens (B, L, D) of each clip; `grid` is frames, rows, columns."""
        everything = torch.arange(tokens.shape[1], device=tokens.device)
        placed = PatchGrid(*grid, merge=1)
        with self.clock("compression"):
            return [self.mllm.compressed((clip, everything), placed, self.config.compression) for clip in tokens]

    def forward(self, frames: Tensor, questions: Sequence[Question]) -> LavidaOutput:
        """Return the scores and masks of frames (B, T, H, W, 3) uint8 for one list of categories."""
        encoded = self.encode(frames)
        if len(questions) == 1:
            with self.clock("llm"):
                hidden = self.mllm.hidden_at_seg(encoded.visual, questions[0].tokens)
            return self.judge(encoded, questions[0], hidden)
        outputs = self.each(encoded, questions)
        # The highest score of each frame over all prompts, with the mask of that prompt; the first prompt wins ties.
        scores = torch.stack([output.object_logit for output in outputs])  # (Q, B, T)
        best = scores.argmax(dim=0)
        masks = outputs[0].mask_logit.clone()
        for number, output in enumerate(outputs):
            masks[best == number] = output.mask_logit[best == number]
        return LavidaOutput(scores.amax(dim=0), masks)

    def each(self, encoded: EncodedClips, questions: Sequence[Question]) -> list[LavidaOutput]:
        """Return one output per question; the language model reads the video only once."""
        with self.clock("llm"):
            prefixes = self.mllm.prefixes(encoded.visual, questions[0].tokens)
        outputs = []
        for question in questions:
            with self.clock("llm"):
                hidden = self.mllm.hidden_after(prefixes, question.tokens)
            outputs.append(self.judge(encoded, question, hidden))
        return outputs

    def judge(self, encoded: EncodedClips, question: Question, hidden: Tensor) -> LavidaOutput:
        """Return scores and masks from the hidden states (B, D_llm) at `<SEG>` (paper 3.7 and 3.8)."""
        output = self.answer(encoded, self.prompts(encoded, hidden, question.features))
        mask = gate(output, self.config.mask_gate)[:, 0]  # (B·T, h, w)
        b, t = len(encoded.visual), encoded.frames
        return LavidaOutput(output.object_logit.view(b, t), mask.view(b, t, *mask.shape[1:]))

    def answer(self, encoded: EncodedClips, prompts: Prompts, *, multimask: bool = False) -> MaskOutput:
        """Return the mask decoder's output before any gate; three masks per frame with `multimask`.

        If the projector gives presence logits, they are added to the object logits.
        """
        with self.clock("sam2 decoder"):
            dense = None if prompts.dense is None else prompts.dense.flatten(0, 1)
            output = self.masks.decode(encoded.image, prompts.sparse.flatten(0, 1), multimask=multimask, dense=dense)
        if prompts.presence is None:
            return output
        return replace(output, object_logit=output.object_logit + prompts.presence.flatten().float())

    def prompts(self, encoded: EncodedClips, hidden: Tensor, text: Tensor, text_mask: Tensor | None = None) -> Prompts:
        """Return the projector's prompts, one sparse prompt per frame; see `Projector.forward`."""
        image = encoded.image
        with self.clock("projector"):
            # (B, T, 256, h/4, w/4)
            maps = image.embedding.view(-1, encoded.frames, *image.embedding.shape[1:])
            found: Prompts = self.projector(hidden, text, maps, image.position, text_mask)
        return found

    def propagate(self, frames: Tensor, known: Mapping[int, Tensor], *, batch: int) -> Tensor:
        """Propagate known masks with SAM2's video memory; return mask logits (N, h, w) float32.

        Args:
            frames: (N, H, W, 3) uint8, in order of time.
            known: the known mask logits (h, w), by frame number. It must contain frame 0. Each known
                frame starts a new span.
            batch: number of spans that are processed in parallel; it does not change the result.
        """
        if not isinstance(self.masks, TransformersMasks):
            raise ValueError("only transformers' SAM2 can propagate masks")
        with self.clock("pixels"):
            squares = sam_pixels(frames, self.masks.image_size, self.dtype)
        with self.clock("sam2 memory"):
            return propagate(self.masks, squares, known, batch=batch)
