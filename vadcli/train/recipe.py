"""A training as data: what is trained, on which data, how, and for how long; and how it is read from a TOML file.

A file describes one stage or several. Unknown keys and values of a wrong type are errors. Loads no torch.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from vadcli.errors import UsageError
from vadcli.options.config import read_toml

PAPER_PARTS = ("lora", "tokens", "lm_head", "projector", "mask_decoder", "prompt_encoder")
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class ModelChoice:
    """What is trained.

    Attributes:
        preset: start from random weights of these sizes.
        folder: start from this LAVIDA folder; one of the two must be given.
        train: names of parts, as in `vadcli.train.state`; the paper's by default.
        freeze: modules within these parts that stay as they are, by their dotted names, such as `projector.frame_semantics`.
        masks: 3 trains the decoder's three masks, as the paper; 1 its single mask, for a decoder made from nothing.
        compression: the ratio to train and store; the authors train with .5.
        method: of compression, the paper's or one that it is compared with; see `CompressionOptions`.
        projector: its kind, and `queries` its learnable queries, where a new one is to be drawn; the start's where neither is
            said.
        train_px: least and greatest area of a frame for Qwen2-VL in training; the preset's or folder's where empty.
    """

    preset: str = ""
    folder: str = ""
    train: tuple[str, ...] = PAPER_PARTS
    freeze: tuple[str, ...] = ()
    masks: int = 3
    compression: float = 0.5
    method: Literal["reverse_attention", "mean", "densest", "least_dense", "random"] = "reverse_attention"
    projector: Literal["", "two_way", "qformer", "mlp"] = ""
    queries: int = 0
    train_px: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check(bool(self.preset) != bool(self.folder), "[model] needs a preset or a folder to start from, and one alone")
        check(bool(self.train), "[model] train is empty: name the parts to train")
        check(self.masks in (1, 3), f"[model] masks is {self.masks}: the decoder gives 3 masks a prompt or 1")
        check(self.queries >= 0, f"[model] queries is {self.queries}, below 0")
        check(0 < self.compression <= 1, f"[model] compression is {self.compression}: give a ratio above 0 and up to 1")
        check(len(self.train_px) in (0, 2), f"[model] train_px is {list(self.train_px)}: give the least and the greatest area")


@dataclass(frozen=True)
class LoraChoice:
    """Adapters of the language model, where `lora` is trained."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")


@dataclass(frozen=True)
class DataChoice:
    """One data set of the mixture.

    Attributes:
        name: one of `vadcli.train.datasets.DATA_SETS`.
        root: its folder.
        split: what is trained on.
        weight: its share of the mixture, in proportion to the others'.
        max_categories: N of this data set; 0 means the paper's N.
    """

    name: str
    root: str = ""
    split: str = "train"
    weight: float = 1.0
    max_categories: int = 0

    def __post_init__(self) -> None:
        self.check_root()
        check(self.weight > 0, f"data {self.name!r}: weight is {self.weight}, not above 0")

    def check_root(self) -> None:
        """Raise UsageError if `root` does not fit the data set."""
        check(bool(self.root), f"data {self.name!r}: root must be the folder of a data set on disk")


@dataclass(frozen=True)
class ExposureChoice:
    """How samples become anomalies; see `vadcli.train.exposure.ExposureOptions`.

    Attributes:
        probability, max_true, min_irrelevant, hard_share, held_out: see there.
        without_seg: share of the samples that train with nothing at `<SEG>`; see `vadcli.train.step.ExposureStep`.
    """

    probability: float = 0.5
    max_true: int = 2
    min_irrelevant: int = 1
    hard_share: float = 0.0
    held_out: tuple[str, ...] = ()
    without_seg: float = 0.0


@dataclass(frozen=True)
class ScheduleChoice:
    """How long and in what steps.

    Attributes:
        epochs, steps: epochs, and optimiser steps in each.
        batch: samples that a process looks at together.
        accumulation: batches a step.
        rate: AdamW's learning rate after warm-up.
        betas, decay: AdamW's. The authors' file says .9/.95 and 1e-5 but doesn't pass them: these took effect.
        warm_up_steps: over which the rate rises from 0; behind them it falls to 0 along a line.
        clip: largest norm of a step's gradient.
    """

    epochs: int = 8
    steps: int = 2000
    batch: int = 2
    accumulation: int = 2
    rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    decay: float = 0.01
    warm_up_steps: int = 100
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch", "accumulation", "rate", "clip"):
            check(getattr(self, name) > 0, f"[schedule] {name} is {getattr(self, name)}, not above 0")
        check(self.warm_up_steps >= 0 and self.decay >= 0, "[schedule] warm_up_steps and decay must not be negative")
        check(all(0 <= beta < 1 for beta in self.betas), f"[schedule] betas are {list(self.betas)}, not from 0 to below 1")

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * self.steps

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, the first being 0."""
        if step < self.warm_up_steps:
            return self.rate * (step + 1) / self.warm_up_steps
        return self.rate * (self.total_steps - step) / max(1, self.total_steps - self.warm_up_steps)


@dataclass(frozen=True)
class LossChoice:
    """What each part of the loss counts; see `vadcli.train.losses.LossWeights`.

    Attributes:
        focal, dice, iou, score, lm: the paper's.
        names: each name's own verdict, where the model pools them.
    """

    focal: float = 20.0
    dice: float = 2.0
    iou: float = 1.0
    score: float = 2.0
    lm: float = 1.0
    names: float = 0.0


@dataclass(frozen=True)
class ValidationChoice:
    """By what the checkpoint is chosen: frame AUC on samples of a split that is neither trained on nor a test set.

    Attributes:
        name, root, split: a data set, as in `DataChoice`.
        clips: how many of its samples, always the same ones.
        every: steps between validations; 0 never validates and keeps the last weights.
        patience: validations without a better one after which training ends; 0 goes on to the last step.
        batch: samples at a time.
    """

    name: str = ""
    root: str = ""
    split: str = "validation"
    clips: int = 200
    every: int = 0
    patience: int = 0
    batch: int = 4

    def __post_init__(self) -> None:
        check(
            not self.split.startswith("test"), f"[validation] split is {self.split!r}: a checkpoint isn't chosen on a test set"
        )
        self.check_root()
        check(self.clips > 0 and self.batch > 0, "[validation] clips and batch must be above 0")
        check(self.every >= 0 and self.patience >= 0, "[validation] every and patience must not be negative")

    def check_root(self) -> None:
        """Raise UsageError if `root` does not fit the data set."""
        check(bool(self.root) or not self.every, f"[validation] {self.name!r}: root must be the data set's folder")


@dataclass(frozen=True)
class RunningChoice:
    """How it is computed.

    Attributes:
        precision: of the products; what is trained is kept in fp32, what is frozen in this.
        gradient_checkpointing: compute the language model's activations again instead of keeping them.
        checkpoint_every: steps between checkpoints to go on from.
        keep: how many of them are kept.
        workers: processes that read samples beside each training process; 0 reads them in it.
        remember: keep what a frozen image encoder saw of each clip, in half precision.
    """

    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    checkpoint_every: int = 100
    keep: int = 2
    workers: int = 0
    remember: bool = False

    def __post_init__(self) -> None:
        check(self.checkpoint_every > 0 and self.keep > 0, "[running] checkpoint_every and keep must be above 0")
        check(self.workers >= 0, f"[running] workers is {self.workers}, below 0")


@dataclass(frozen=True)
class Recipe:
    """A whole training.

    Attributes:
        name: of what comes out.
        task: what is trained, `exposure` for the paper's training.
        seed: of the start's random weights, of the samples and their order.
        model, lora, data, exposure, schedule, loss, validation, running: see there.
    """

    name: str
    model: ModelChoice
    data: tuple[DataChoice, ...]
    task: Literal["exposure"] = "exposure"
    seed: int = 0
    lora: LoraChoice = field(default_factory=LoraChoice)
    exposure: ExposureChoice = field(default_factory=ExposureChoice)
    schedule: ScheduleChoice = field(default_factory=ScheduleChoice)
    loss: LossChoice = field(default_factory=LossChoice)
    validation: ValidationChoice = field(default_factory=ValidationChoice)
    running: RunningChoice = field(default_factory=RunningChoice)

    def __post_init__(self) -> None:
        check(self.seed >= 0, f"seed is {self.seed}, below 0")
        check(bool(self.data), "there is no [[data]] to train on")
        seen = self.validation
        for item in self.data:
            same = item.name == seen.name and item.split.removesuffix("ing") == seen.split.removesuffix("ing")
            check(not (seen.every and same), f"{item.name} is validated on the split it is trained on")
            check(not item.split.startswith("test"), f"data {item.name!r}: split is {item.split!r}: tests aren't trained on")

    def to_json(self) -> dict[str, Any]:
        """All of it, as stored beside what was trained."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document

    def told(self) -> dict[str, Any]:
        """As stored inside what was trained: all but where files lay."""
        document = self.to_json()
        for item in (*document["data"], document["validation"]):
            del item["root"]
        del document["model"]["folder"]
        return document

    def fingerprint(self) -> str:
        """Changes when what is computed does; not with where the files lie. Hexadecimal."""
        document = self.told()
        del document["running"]["keep"], document["running"]["workers"]
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def check(holds: bool, message: str) -> None:
    """Raise UsageError with the message unless it holds."""
    if not holds:
        raise UsageError(message)


R = TypeVar("R", bound=Recipe)


def read_recipe(path: Path, kind: type[R]) -> R:
    """Read the recipe of one stage from its file; see `read_recipes`."""
    recipes = read_recipes(path, kind)
    check(len(recipes) == 1, f"{path}: has {len(recipes)} stages")
    return recipes[0]


def read_recipes(path: Path, kind: type[R]) -> tuple[R, ...]:
    """Read the stages of a training from its file; a file without [[stage]] has one.

    Args:
        path: a TOML file.
        kind: the recipe's class, which says what tables and keys there are.

    Raises:
        UsageError: it can't be read, or holds a key or value that can't be used.
    """
    document = read_toml(path)
    try:
        return parse_stages(document, kind)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from error


def parse_stages(document: Mapping[str, Any], kind: type[R]) -> tuple[R, ...]:
    """One recipe a [[stage]]: the document with the stage's values over it, table by table.

    Each stage starts from what the one before it made; only the first one's `model` says where to start.

    Raises:
        UsageError: a key or value that can't be used.
    """
    common = {key: value for key, value in document.items() if key != "stage"}
    stages = document.get("stage", [{}])
    check(isinstance(stages, list) and bool(stages), "stage must be tables, [[stage]]")
    return tuple(parse_recipe(_over(common, stage), kind) for stage in stages)


def _over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Values of both, tables in tables merged; where both have one, `over`'s counts."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _over(merged[key], value) if both else value
    return merged


def parse_recipe(document: Mapping[str, Any], kind: type[R]) -> R:
    """A recipe from its tables.

    Raises:
        UsageError: a key or value that can't be used.
    """
    recipe: R = _table(kind, "", document)
    return recipe


def _table(kind: Any, name: str, values: Any) -> Any:
    """A dataclass from a TOML table."""
    where = f"[{name}]" if name else "the recipe"
    check(isinstance(values, Mapping), f"{name} must be a table, {where}")
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            raise UsageError(
                f"{where} has no key {key!r}", hint=f"did you mean {near[0]}?" if near else f"it has {', '.join(hints)}"
            )
    for item in fields(kind):
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise UsageError(f"{where} lacks {item.name}")
    found = {key: _value(hints[key], f"{name}.{key}" if name else key, value) for key, value in values.items()}
    return kind(**found)


def _value(hint: Any, name: str, value: Any) -> Any:
    """A TOML value as its field's annotation wants it."""
    origin, args = typing.get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        hint = next(part for part in args if part is not type(None))
        origin, args = typing.get_origin(hint), get_args(hint)
    if origin is Literal:
        check(value in args, f"{name} is {value!r}, none of {', '.join(map(str, args))}")
        return value
    if is_dataclass(hint):
        return _table(hint, name, value)
    if origin is tuple:
        check(isinstance(value, list), f"{name} is {value!r}, not a list")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        check(len(kinds) == len(value), f"{name} has {len(value)} values, not {len(kinds)}")
        return tuple(_value(kind, name, part) for kind, part in zip(kinds, value, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    check(type(value) is hint, f"{name} is {value!r}, not a value of type {hint.__name__}")
    return value
