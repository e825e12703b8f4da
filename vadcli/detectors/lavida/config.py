"""What a LAVIDA model is apart from its weights: sizes, prompt, sampling and gates, as data that is stored beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from math import isfinite
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vadcli.detectors.lavida.compress import CompressionOptions
from vadcli.detectors.lavida.projector import ProjectorOptions

FORMAT_VERSION = 1
SEG = "<SEG>"
MaskGate = Literal["hard", "soft", "off"]
QWEN_PX = 28
"""Qwen2-VL's sides are multiples of this: patches of 14 px, merged two by two."""


@dataclass(frozen=True)
class PromptOptions:
    """The one prompt of all runs (paper 3.5).

    Attributes:
        question: {categories} stands for the names, joined by commas.
        answer: forced, not generated; holds `<SEG>` once.
        max_categories: names a prompt; longer lists are split into several prompts (the paper's own limit, Table 3).
    """

    question: str = "Detect the anomalies in this video. They may be: {categories}"
    answer: str = f"It is {SEG}."
    max_categories: int = 30

    def __post_init__(self) -> None:
        if "{categories}" not in self.question:
            raise ValueError(f"the question {self.question!r} has no place for {{categories}}")
        if self.answer.count(SEG) != 1:
            raise ValueError(f"the answer {self.answer!r} must hold {SEG} once")
        if self.max_categories < 1:
            raise ValueError(f"max_categories {self.max_categories} must be at least 1")


@dataclass(frozen=True)
class SamplingOptions:
    """Which frames the model sees.

    Attributes:
        frames: T, sampled frames a clip; even, since Qwen2-VL pairs them in time.
        rate_hz: sampled frames a second; the interval is round(fps / rate_hz).
    """

    frames: int = 8
    rate_hz: float = 7.5

    def __post_init__(self) -> None:
        if self.frames < 2 or self.frames % 2:
            raise ValueError(f"{self.frames} frames a clip can't be paired in time: give an even number")
        if not self.rate_hz > 0:
            raise ValueError(f"rate_hz {self.rate_hz} must be above 0")


@dataclass(frozen=True)
class PixelOptions:
    """How large a frame is for each of the two encoders.

    Attributes:
        min_px, max_px: area of a frame for Qwen2-VL at inference; sides become multiples of 28.
        train_min_px, train_max_px: the same in training.
        static_threshold: drop patches that differ from the clip's first frame by less than this mean cosine distance before
            the vision tower's blocks; None keeps all.
    """

    min_px: int = 160 * QWEN_PX**2
    max_px: int = 192 * QWEN_PX**2
    train_min_px: int = 32 * QWEN_PX**2
    train_max_px: int = 64 * QWEN_PX**2
    static_threshold: float | None = None

    def __post_init__(self) -> None:
        for low, high in ((self.min_px, self.max_px), (self.train_min_px, self.train_max_px)):
            if not QWEN_PX**2 <= low <= high:
                raise ValueError(f"frame areas {low} to {high} px must ascend from {QWEN_PX**2}")


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters of the language model (trained; merged when a model is loaded)."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")


@dataclass(frozen=True)
class AdditionOptions:
    """What a model made from nothing has beside the paper's parts; the base presets have none of it.

    Attributes:
        sight: visual tokens are SAM2's features in place of the vision tower's; see `shared_sight.SharedSight`.
        motion_width: channels in which they tell change.
        pooling: the names' own hidden states are gathered into `<SEG>`'s; see `shared_sight.NamePooling`.
    """

    sight: bool = False
    motion_width: int = 32
    pooling: bool = False


@dataclass(frozen=True)
class PartSizes:
    """Sizes of the three base models as their own transformers configurations' fields.

    A LAVIDA folder doesn't repeat them: there each part's own config.json counts.
    """

    mllm: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    sam2: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LavidaConfig:
    """One LAVIDA model.

    Attributes:
        name: the preset it was made from.
        projector, compression, prompt, sampling, pixels, lora, additions: see there.
        mask_gate: what becomes of the mask where the frame's object score says that nothing is there.
        trained: True where the own part (projector, mask decoder, `<SEG>`) was trained.
        seed: of an own part that is drawn instead.
        random_gain: of the Xavier-normal weights of a model drawn whole, loud enough for pictures and words to reach its
            scores; None leaves each part's own start, which suits training.
        parts: sizes of the base models; empty in a folder.
        sources: where each part came from, for people.
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
            raise ValueError(f"mask_gate {self.mask_gate!r} is none of {', '.join(get_args(MaskGate))}")

    def data_sets(self) -> frozenset[str]:
        """Names of the data sets that its stages of training name in `sources`; none where nothing is said of them."""
        try:
            return frozenset(str(item["name"]) for stage in self.sources["training"] for item in stage["recipe"]["data"])
        except (KeyError, TypeError, IndexError):
            return frozenset()

    def to_json(self) -> dict[str, Any]:
        """As stored in config.json."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LavidaConfig:
        """The inverse of `to_json`; absent groups and fields have their defaults.

        Raises:
            ValueError: another format version, an unknown field, a value of another type or an impossible one.
        """
        document = _value(Mapping, "config", document)
        version = document.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"format_version {version!r} is not {FORMAT_VERSION}")
        values = {key: value for key, value in document.items() if key != "format_version"}
        for name, kind in GROUPS.items():
            if name in values:
                values[name] = _group(kind, name, values[name])
        config: LavidaConfig = _group(cls, "config", values)
        return config


GROUPS: dict[str, type[Any]] = {
    "projector": ProjectorOptions,
    "compression": CompressionOptions,
    "prompt": PromptOptions,
    "sampling": SamplingOptions,
    "pixels": PixelOptions,
    "lora": LoraOptions,
    "additions": AdditionOptions,
    "parts": PartSizes,
}
KINDS: dict[type[Any], str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list of texts",
    Mapping: "an object",
}
"""JSON's types for people."""


def _group(kind: type[Any], name: str, values: Any) -> Any:
    """A dataclass from a JSON object; ValueError with the field where it can't be one."""
    values = _value(Mapping, name, values)
    known = get_type_hints(kind)
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{name} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    try:
        return kind(**{key: _value(known[key], f"{name}: {key}", value) for key, value in values.items()})
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error


def _value(wanted: Any, name: str, value: Any) -> Any:
    """A JSON value as its field's annotation wants it: a float may come without a point, a tuple comes as a list."""
    choices = get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
    if value is None and type(None) in choices:
        return None
    kind = str if get_origin(choices[0]) is Literal else get_origin(choices[0]) or choices[0]
    if kind is float and type(value) is int:
        value = float(value)
    if kind is tuple and isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = tuple(value)
    is_one = type(value) is kind if kind in (bool, int, float) else isinstance(value, kind)
    if not is_one or (kind is float and not isfinite(value)):
        raise ValueError(f"{name} is {json.dumps(value, default=str)[:60]}, not {KINDS.get(kind, kind.__name__)}")
    return value


def preset_names() -> list[str]:
    """Names of the presets that come with vadcli."""
    folder = resources.files("vadcli.detectors.lavida").joinpath("presets")
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_preset(name: str) -> LavidaConfig:
    """The preset of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in preset_names():
        raise ValueError(f"no preset is called {name!r}; there are {', '.join(preset_names())}")
    text = resources.files("vadcli.detectors.lavida").joinpath("presets").joinpath(f"{name}.json").read_text(encoding="utf-8")
    return LavidaConfig.from_json(json.loads(text))
