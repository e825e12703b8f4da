"""The whole LAVIDA network (Figure 2 of the paper) and its config.

Clips become one score and one mask per frame:

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
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from vadcli.detectors.lavida import LoraOptions
from vadcli.detectors.lavida.masks import (
    ImageFeatures,
    MaskGate,
    MaskModel,
    MaskOutput,
    TransformersMasks,
    gate,
    propagate,
    sam_pixels,
)
from vadcli.detectors.lavida.projector import ProjectorOptions, Prompts
from vadcli.detectors.lavida.text import PromptOptions, TextEncoder, build_prompt, split_categories
from vadcli.detectors.mllm.compress import CompressionOptions
from vadcli.detectors.mllm.qwen import QWEN_PX, MultimodalLM, PatchGrid, PromptTokens, VisualTokens, qwen_patches
from vadcli.types.text import structure

ENCODED_FRAMES = 16
"""Frames per call of SAM2's encoder: enough to keep a GPU busy. A fixed number limits the memory use."""

FORMAT_VERSION = 1

Clock = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class SamplingOptions:
    """How frames of a video are sampled for a clip.

    Attributes:
        frames: T, sampled frames per clip. T is even, because Qwen2-VL reads frames in pairs.
        rate_hz: sampled frames per second. In a video with `fps` frames per second, every round(fps / rate_hz)-th frame is
            sampled.
    """

    frames: int = 8
    rate_hz: float = 7.5

    def __post_init__(self) -> None:
        if self.frames < 2 or self.frames % 2:
            raise ValueError(f"{self.frames} frames per clip can't be divided into pairs: give an even number")
        if not self.rate_hz > 0:
            raise ValueError(f"rate_hz {self.rate_hz} must be above 0")


@dataclass(frozen=True)
class PixelOptions:
    """The size of frames for Qwen2-VL, and which patches of the frames are dropped.

    Attributes:
        min_px, max_px: smallest and largest area of a frame in pixels, except in training. The sides of a frame become
            multiples of 28 px.
        train_min_px, train_max_px: smallest and largest area of a frame in training.
        static_threshold: patches that change less than this during a clip are dropped (see `moving_groups`); None keeps all
            patches.
    """

    min_px: int = 160 * QWEN_PX**2
    max_px: int = 192 * QWEN_PX**2
    train_min_px: int = 32 * QWEN_PX**2
    train_max_px: int = 64 * QWEN_PX**2
    static_threshold: float | None = None

    def __post_init__(self) -> None:
        for low, high in ((self.min_px, self.max_px), (self.train_min_px, self.train_max_px)):
            if not QWEN_PX**2 <= low <= high:
                raise ValueError(f"frame areas {low}, {high} px: both must be at least {QWEN_PX**2} px, the smaller area first")


@dataclass(frozen=True)
class AdditionOptions:
    """Parts that are not in the paper, for small models whose training starts with random weights.

    Attributes:
        sight: True if the visual tokens come from SAM2's image features (`SharedSight`) and not from the vision tower.
        motion_width: number of channels of `SharedSight` that describe how the image features change over time.
        pooling: True if the hidden states of the categories are added to the hidden state at `<SEG>` (`NamePooling`).
    """

    sight: bool = False
    motion_width: int = 32
    pooling: bool = False


@dataclass(frozen=True)
class PartSizes:
    """Sizes of the three base models, as fields of their transformers configs. For presets only."""

    mllm: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    sam2: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LavidaConfig:
    """The settings of one LAVIDA model, which are stored beside its weights.

    Attributes:
        name: the preset from which the model was made.
        projector, compression, prompt, sampling, pixels, lora, additions: the settings of the parts; see the class of each.
        mask_gate: how the object score of a frame changes its mask; see `gate`.
        trained: True if LAVIDA's own part (projector, mask decoder, `<SEG>`) was trained.
        seed: seed for the random weights of LAVIDA's own part if it was not trained.
        random_gain: gain of the Xavier-normal weights of an untrained model. With a small gain, frames and words would hardly
            affect the scores. `None`: each part initialises its own weights, as training needs.
        parts: sizes of the base models. The sizes are empty in a LAVIDA folder, where each base model has its own config.json.
        sources: where the parts come from and how they were trained. This does not change the scores.
    """

    name: str
    projector: ProjectorOptions = field(default_factory=ProjectorOptions)
    compression: CompressionOptions = field(default_factory=CompressionOptions)
    prompt: PromptOptions = field(default_factory=PromptOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    pixels: PixelOptions = field(default_factory=PixelOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    additions: AdditionOptions = field(default_factory=AdditionOptions)
    mask_gate: MaskGate = "hard"
    trained: bool = False
    seed: int = 0
    random_gain: float | None = None
    parts: PartSizes = field(default_factory=PartSizes)
    sources: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mask_gate not in get_args(MaskGate):
            raise ValueError(f"mask_gate {self.mask_gate!r} is not one of {', '.join(get_args(MaskGate))}")

    def data_sets(self) -> frozenset[str]:
        """Return the names of the data sets of all training stages; empty if `sources` does not name them."""
        try:
            return frozenset(str(item["name"]) for stage in self.sources["training"] for item in stage["recipe"]["data"])
        except (KeyError, TypeError, IndexError):
            return frozenset()

    def to_json(self) -> dict[str, Any]:
        """Return the document that is stored in config.json."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LavidaConfig:
        """Return the config of a document from `to_json`. Missing fields get their defaults.

        Raises:
            ValueError: the format version is wrong, a field is unknown, or a value has the wrong type or is out of range.
        """
        if not isinstance(document, Mapping):
            raise ValueError("the file is not a JSON object")
        version = document.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"format_version {version!r} can't be read; this version of vadcli reads {FORMAT_VERSION}")
        return structure(cls, {key: value for key, value in document.items() if key != "format_version"})


@dataclass(frozen=True)
class EncodedQuestion:
    """The categories of one prompt, as tokens and as embeddings.

    A question can be used for any number of clips.

    Attributes:
        categories: C categories.
        tokens: the token ids of the prompt.
        features: (C, D_txt), the CLIP embeddings of the categories.
    """

    categories: tuple[str, ...]
    tokens: PromptTokens
    features: Tensor


@dataclass(frozen=True)
class EncodedClips:
    """The encoded frames of a batch. They do not depend on the categories.

    Attributes:
        visual: compressed visual tokens of B clips.
        image: SAM2's features of B·T frames.
        frames: T, the number of frames per clip.
    """

    visual: list[VisualTokens]
    image: ImageFeatures
    frames: int


@dataclass(frozen=True)
class LavidaOutput:
    """LAVIDA's output for a batch.

    Attributes:
        object_logit: (B, T) float32. Its sigmoid is the frame score.
        mask_logit: (B, T, h, w) float32, after the mask gate. Its sigmoid is the pixel score.
    """

    object_logit: Tensor
    mask_logit: Tensor


class Lavida(nn.Module):
    """The whole network as one module.

    Args:
        config: the settings of the model.
        mllm, text, masks, projector: the parts in the figure at the top of this file.
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
        """The dtype in which the large parts of the network compute."""
        return next(self.mllm.parameters()).dtype

    def compile_parts(self) -> None:
        """Compile the slow parts: layers of the vision tower, the image encoder and the language model."""
        qwen = self.mllm.qwen.model
        for layer in (*qwen.language_model.layers, *(block.mlp for block in qwen.visual.blocks)):
            layer.compile(dynamic=True)
        encoder = getattr(getattr(self.masks, "sam2", None), "vision_encoder", None)
        if encoder is not None:
            encoder.compile()

    def questions(self, categories: Sequence[str]) -> list[EncodedQuestion]:
        """Turn the categories into one prompt, or into several prompts if there are too many for one prompt."""
        with self.clock("text"):
            return [
                EncodedQuestion(names, build_prompt(self.tokenizer, names, self.config.prompt), self.text(names))
                for names in split_categories(categories, self.config.prompt.max_categories)
            ]

    def encode(self, frames: Tensor, *, training: bool = False) -> EncodedClips:
        """Encode frames (B, T, H, W, 3) uint8 (sections 3.4 and 3.6 of the paper).

        Args:
            frames: the frames; T = 1 for an image. Qwen2-VL needs pairs of frames. So if T is odd, Qwen2-VL gets the last frame
                twice.
            training: True to resize the frames to the config's areas for training (`train_min_px`, `train_max_px`).
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
        """Return the features of the B·T frames (B, T, H, W, 3) uint8 from SAM2's image encoder."""
        with self.clock("pixels"):
            squares = sam_pixels(frames.flatten(0, 1), self.masks.image_size, self.dtype)
        with self.clock("sam2 encoder"):
            return self.masks.encode(squares, chunk=ENCODED_FRAMES)

    def visual_from(self, image: ImageFeatures, frames: int) -> list[VisualTokens]:
        """Make visual tokens from SAM2's features and compress them, for models with a `SharedSight`."""
        assert self.mllm.sight is not None
        maps = image.embedding.view(-1, frames, *image.embedding.shape[1:])  # (B, T, C, h, w)
        with self.clock("vision tower"):
            tokens = self.mllm.sight(maps)
        return self.compress(tokens, (frames, maps.shape[3], maps.shape[4]))

    def compress(self, tokens: Tensor, grid: tuple[int, int, int]) -> list[VisualTokens]:
        """Compress the tokens (B, L, D) of each clip. `grid` is the number of frames, rows and columns."""
        everything = torch.arange(tokens.shape[1], device=tokens.device)
        placed = PatchGrid(*grid, merge=1)
        with self.clock("compression"):
            return [self.mllm.compressed((clip, everything), placed, self.config.compression) for clip in tokens]

    def forward(self, frames: Tensor, questions: Sequence[EncodedQuestion]) -> LavidaOutput:
        """Return the scores and masks of frames (B, T, H, W, 3) uint8 for one list of categories."""
        encoded = self.encode(frames)
        if len(questions) == 1:
            with self.clock("llm"):
                hidden = self.mllm.hidden_at_seg(encoded.visual, questions[0].tokens)
            return self.judge(encoded, questions[0], hidden)
        outputs = self.judge_each(encoded, questions)
        # Each frame gets the score and the mask of the prompt with the highest score. If scores are equal, the first prompt
        # counts.
        scores = torch.stack([output.object_logit for output in outputs])  # (Q, B, T)
        best = scores.argmax(dim=0)
        masks = outputs[0].mask_logit.clone()
        for number, output in enumerate(outputs):
            masks[best == number] = output.mask_logit[best == number]
        return LavidaOutput(scores.amax(dim=0), masks)

    def judge_each(self, encoded: EncodedClips, questions: Sequence[EncodedQuestion]) -> list[LavidaOutput]:
        """Return one output per question. The language model reads each clip only once for all questions."""
        with self.clock("llm"):
            prefixes = self.mllm.prefixes(encoded.visual, questions[0].tokens)
        outputs = []
        for question in questions:
            with self.clock("llm"):
                hidden = self.mllm.hidden_after(prefixes, question.tokens)
            outputs.append(self.judge(encoded, question, hidden))
        return outputs

    def judge(self, encoded: EncodedClips, question: EncodedQuestion, hidden: Tensor) -> LavidaOutput:
        """Return scores and masks from the hidden states (B, D_llm) at `<SEG>` (sections 3.7 and 3.8)."""
        output = self.answer(encoded, self.prompts(encoded, hidden, question.features))
        mask = gate(output, self.config.mask_gate)[:, 0]  # (B·T, h, w)
        b, t = len(encoded.visual), encoded.frames
        return LavidaOutput(output.object_logit.view(b, t), mask.view(b, t, *mask.shape[1:]))

    def answer(self, encoded: EncodedClips, prompts: Prompts, *, multimask: bool = False) -> MaskOutput:
        """Return the mask decoder's output before the mask gate; three masks per frame with `multimask`.

        If the projector returns presence logits, they are added to the object logits.
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
            prompts: Prompts = self.projector(hidden, text, maps, image.position, text_mask)
        return prompts

    def propagate(self, frames: Tensor, known: Mapping[int, Tensor], *, batch: int) -> Tensor:
        """Propagate known masks with SAM2's video memory. Return mask logits (N, h, w) float32.

        Args:
            frames: (N, H, W, 3) uint8, in order of time.
            known: the known mask logits (h, w), by frame number. The mask of frame 0 must be known. Each frame with a known
                mask starts a new span.
            batch: number of spans that are processed in parallel. The number does not change the result.
        """
        if not isinstance(self.masks, TransformersMasks):
            raise ValueError(f"a model with {type(self.masks).__name__} can't propagate masks; use TransformersMasks")
        with self.clock("pixels"):
            squares = sam_pixels(frames, self.masks.image_size, self.dtype)
        with self.clock("sam2 memory"):
            return propagate(self.masks, squares, known, batch=batch)
