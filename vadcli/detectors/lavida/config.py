"""The config of a LAVIDA model (sizes, prompt, sampling, gates), which is stored next to its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any, Literal, get_args

from vadcli.detectors.lavida.projector import ProjectorOptions
from vadcli.detectors.mllm.compress import CompressionOptions
from vadcli.detectors.mllm.pixels import QWEN_PX
from vadcli.types.text import structure

FORMAT_VERSION = 1
SEG = "<SEG>"
MaskGate = Literal["hard", "soft", "off"]


@dataclass(frozen=True)
class PromptOptions:
    """The prompt, the same in all runs (paper 3.5).

    Attributes:
        question: {categories} is replaced by the categories, joined by commas.
        answer: the answer, which is a part of the prompt and not generated; contains `<SEG>` once.
        max_categories: categories per prompt; longer lists are split into several prompts. The
            paper's limit is 30 (Table 3).
    """

    question: str = "Detect the anomalies in this video. They may be: {categories}"
    answer: str = f"It is {SEG}."
    max_categories: int = 30

    def __post_init__(self) -> None:
        if "{categories}" not in self.question:
            raise ValueError(f"the question {self.question!r} must contain {{categories}}")
        if self.answer.count(SEG) != 1:
            raise ValueError(f"the answer {self.answer!r} must contain {SEG} exactly once")
        if self.max_categories < 1:
            raise ValueError(f"max_categories {self.max_categories} must be at least 1")


@dataclass(frozen=True)
class SamplingOptions:
    """How the frames of a clip are sampled.

    Attributes:
        frames: T, sampled frames per clip; even, because Qwen2-VL reads frames in pairs.
        rate_hz: sampled frames per second; the interval is round(fps / rate_hz) frames.
    """

    frames: int = 8
    rate_hz: float = 7.5

    def __post_init__(self) -> None:
        if self.frames < 2 or self.frames % 2:
            raise ValueError(f"{self.frames} frames per clip can't be paired in time: give an even number")
        if not self.rate_hz > 0:
            raise ValueError(f"rate_hz {self.rate_hz} must be above 0")


@dataclass(frozen=True)
class PixelOptions:
    """How large a frame is for each of the two encoders.

    Attributes:
        min_px, max_px: limits of a frame's area for Qwen2-VL at inference; its sides become multiples of 28.
        train_min_px, train_max_px: the same limits in training.
        static_threshold: the vision tower drops patches that change less than this (see `moving_groups`); None keeps all.
    """

    min_px: int = 160 * QWEN_PX**2
    max_px: int = 192 * QWEN_PX**2
    train_min_px: int = 32 * QWEN_PX**2
    train_max_px: int = 64 * QWEN_PX**2
    static_threshold: float | None = None

    def __post_init__(self) -> None:
        for low, high in ((self.min_px, self.max_px), (self.train_min_px, self.train_max_px)):
            if not QWEN_PX**2 <= low <= high:
                raise ValueError(f"frame areas {low} to {high} px: give at least {QWEN_PX**2}, the smaller one first")


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters. They are merged into the language model when it is loaded."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")


@dataclass(frozen=True)
class AdditionOptions:
    """Parts that are not in the paper, for small models that start with random weights.

    Attributes:
        sight: True if the language model reads SAM2's image features and not those of the vision tower (`SharedSight`).
        motion_width: number of channels that describe how these features change over time.
        pooling: True if the hidden states of the categories are added to that of `<SEG>` (`NamePooling`).
    """

    sight: bool = False
    motion_width: int = 32
    pooling: bool = False


@dataclass(frozen=True)
class PartSizes:
    """Sizes of the three base models, as fields of their transformers configs; only for a preset."""

    mllm: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    sam2: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LavidaConfig:
    """One LAVIDA model.

    Attributes:
        name: the preset from which the model was made.
        projector, compression, prompt, sampling, pixels, lora, additions: see their classes.
        mask_gate: how the object score of a frame changes its mask; see `gate`.
        trained: True if LAVIDA's own part (projector, mask decoder, `<SEG>`) was trained.
        seed: seed for the random weights of LAVIDA's own part if it was not trained.
        random_gain: gain of the Xavier-normal weights of a random model. With a small gain, frames and words
            would hardly affect the scores. None keeps each part's own initialisation, as training needs it.
        parts: sizes of the base models. A LAVIDA folder has none, because each base model has its own config.json.
        sources: the sources of the parts; only for information.
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
        """Return the names of the data sets in `sources` from all training stages; may be empty."""
        try:
            return frozenset(str(item["name"]) for stage in self.sources["training"] for item in stage["recipe"]["data"])
        except (KeyError, TypeError, IndexError):
            return frozenset()

    def to_json(self) -> dict[str, Any]:
        """Return the document that is stored in config.json."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LavidaConfig:
        """Return the config of a `to_json` document; missing groups and fields get their defaults.

        Raises:
            ValueError: wrong format version, unknown field, or a value of the wrong type or range.
        """
        if not isinstance(document, Mapping):
            raise ValueError("the file is not a JSON object")
        version = document.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"format_version {version!r} is not {FORMAT_VERSION}")
        return structure(cls, {key: value for key, value in document.items() if key != "format_version"})


def preset_names() -> list[str]:
    """Return the names of the presets that come with vadcli."""
    folder = resources.files("vadcli.detectors.lavida").joinpath("presets")
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_preset(name: str) -> LavidaConfig:
    """Return the preset with this name.

    Raises:
        ValueError: no preset has this name.
    """
    if name not in preset_names():
        raise ValueError(f"no preset is called {name!r}; choose from {', '.join(preset_names())}")
    text = resources.files("vadcli.detectors.lavida").joinpath("presets").joinpath(f"{name}.json").read_text(encoding="utf-8")
    return LavidaConfig.from_json(json.loads(text))
