"""Training of LAVIDA (paper 3.3 and 3.9). This file has the recipe, which is read from a TOML file.

    datasets   opens segmentation data sets
    samples    makes pseudo-anomalies from the clips of data sets, and mixes the data sets
    step       computes the losses of a batch
    state      chooses the trained parts; stores checkpoints
    training   provides the starting model, the samples and the validation; writes the trained model
    trainer    runs the training loop with its log; plans a training

A recipe names the starting model, the data sets, the options and the number of steps. A recipe file describes one training, or
several trainings (stages) that run one after the other. Unknown keys and values of a wrong type are errors. Importing this
package does not load torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from vadcli.detectors import digest
from vadcli.detectors.lavida import LoraOptions
from vadcli.errors import UsageError
from vadcli.options import read_toml
from vadcli.types.text import FieldError, structure

PAPER_PARTS = ("lora", "tokens", "lm_head", "projector", "mask_decoder", "prompt_encoder")
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class ModelChoice:
    """The model to train, and which of its parts are trained.

    Attributes:
        preset: name of a preset. Training starts from random weights; the preset has the sizes of the model.
        folder: LAVIDA folder. Training starts from the weights in it. Set either preset or folder.
        train: names of the parts to train. The names are the keys of `vadcli.train.state.PARTS`, and `lora` for
            low-rank adapters. The default is the parts that the paper trains.
        freeze: dotted names of modules that stay frozen although their part is trained, such as
            `projector.frame_semantics`.
        masks: number of masks per prompt that the decoder learns, 3 (as in the paper) or 1. A decoder with
            random weights needs 1.
        compression: the fraction of visual tokens that is kept, above 0 and at most 1. The config of the trained
            model gets this value. The authors use 0.5.
        method: method of token compression; see `CompressionOptions`. The default is the paper's method.
        projector: kind of a new projector with random weights; "" keeps the kind of the starting model.
        queries: number of learnable queries of a new projector; 0 keeps the number of the starting model.
        train_px: smallest and largest frame area for Qwen2-VL, in pixels; () keeps the areas of the
            starting model.
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
        check(bool(self.preset) != bool(self.folder), "[model] needs either a preset or a folder to start from, not both")
        check(bool(self.train), "[model] train is empty: give the parts to train")
        check(self.masks in (1, 3), f"[model] masks is {self.masks}: it must be 3 or 1")
        check(self.queries >= 0, f"[model] queries is {self.queries}; it must not be negative")
        check(0 < self.compression <= 1, f"[model] compression is {self.compression}; it must be above 0 and at most 1")
        check(len(self.train_px) in (0, 2), f"[model] train_px is {list(self.train_px)}: give the smallest and largest area")


@dataclass(frozen=True)
class DataChoice:
    """One data set of the mixture.

    Attributes:
        name: one of `vadcli.train.datasets.TRAINING_SETS`.
        root: folder of the data set.
        split: split to train on.
        weight: the data set's share of all samples is this weight divided by the sum of all weights.
        max_categories: N, the largest number of categories in a prompt; 0 means the paper's N.
    """

    name: str
    root: str = ""
    split: str = "train"
    weight: float = 1.0
    max_categories: int = 0

    def __post_init__(self) -> None:
        self.check_root()
        check(self.weight > 0, f"data {self.name!r}: weight is {self.weight}; it must be above 0")

    def check_root(self) -> None:
        """Raise UsageError if `root` is empty. A subclass may replace this check."""
        check(bool(self.root), f"data {self.name!r}: root is empty: give the folder of the data set")


@dataclass(frozen=True)
class ExposureOptions:
    """How clips become pseudo-anomalies.

    Each sample has a list of categories. A category that the clip shows is true; any other category is irrelevant.

    Attributes:
        probability: probability that a sample is an anomaly, 0 to 1. Only the list of an anomaly has true categories.
        max_true: largest number of true categories in the list of an anomaly. For each anomaly, the number of true
            categories is drawn uniformly from 1 to max_true. This number is reduced if the clip
            has fewer names, or if the list is too short.
        min_irrelevant: smallest number of irrelevant categories in the list of an anomaly.
        hard_share: probability that an irrelevant category is a hard negative, 0 to 1. A hard negative is
            similar to one of the clip's names.
        held_out: categories that must not be in any list. Upper and lower case and extra spaces do not matter.
        without_seg: share of the samples for which zeros replace the language model's output at the token
            `<SEG>`, 0 to 1.
    """

    probability: float = 0.5
    max_true: int = 2
    min_irrelevant: int = 1
    hard_share: float = 0.0
    held_out: tuple[str, ...] = ()
    without_seg: float = 0.0

    def __post_init__(self) -> None:
        for name in ("probability", "hard_share"):
            check(0 <= getattr(self, name) <= 1, f"[exposure] {name} is {getattr(self, name)}; it must be in 0-1")
        check(self.max_true >= 1, f"[exposure] max_true is {self.max_true}; it must be 1 or more")
        check(self.min_irrelevant >= 0, f"[exposure] min_irrelevant is {self.min_irrelevant}; it must not be negative")


@dataclass(frozen=True)
class ScheduleChoice:
    """The length of a training, and the settings of the optimiser.

    Attributes:
        epochs: number of epochs.
        steps: optimiser steps per epoch.
        batch: samples per batch and process.
        accumulation: batches per step.
        rate: AdamW's learning rate after the warm-up.
        betas, decay: AdamW's betas and weight decay. The defaults are the values that the authors' code uses.
            Their settings file has 0.9/0.95 and 1e-5, but their code does not read these values.
        warm_up_steps: the rate rises linearly during this number of steps, then falls linearly to 0.
        clip: largest norm of a step's gradient; a gradient with a larger norm is scaled down to this norm.
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
            check(getattr(self, name) > 0, f"[schedule] {name} is {getattr(self, name)}; it must be above 0")
        check(self.warm_up_steps >= 0 and self.decay >= 0, "[schedule] warm_up_steps and decay must not be negative")
        check(all(0 <= beta < 1 for beta in self.betas), f"[schedule] betas are {list(self.betas)}; they must be in [0, 1)")

    @property
    def total_steps(self) -> int:
        """The number of optimiser steps of the whole training."""
        return self.epochs * self.steps

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step; the first step has number 0."""
        if step < self.warm_up_steps:
            return self.rate * (step + 1) / self.warm_up_steps
        return self.rate * (self.total_steps - step) / max(1, self.total_steps - self.warm_up_steps)


@dataclass(frozen=True)
class LossWeights:
    """The weight of each part of the loss; the defaults are the weights in the paper.

    Attributes:
        focal, dice, iou, score, lm: weights of the parts in the paper.
        names: weight of `step.names_loss`. This loss is not in the paper; it needs a model that gives one
            logit per category name.
    """

    focal: float = 20.0
    dice: float = 2.0
    iou: float = 1.0
    score: float = 2.0
    lm: float = 1.0
    names: float = 0.0


@dataclass(frozen=True)
class ValidationChoice:
    """How the best weights are chosen: by the frame AUC on a validation split.

    Attributes:
        name, root, split: a data set, as in `DataChoice`. The split must not be a training split or a test split.
        clips: number of samples; every validation uses the same samples.
        every: number of steps between validations. 0 means no validation: the result has the last weights.
        patience: training ends after this number of validations in a row without a better frame AUC; 0 for no limit.
        batch: samples per batch.
    """

    name: str = ""
    root: str = ""
    split: str = "validation"
    clips: int = 200
    every: int = 0
    patience: int = 0
    batch: int = 4

    def __post_init__(self) -> None:
        check(not self.split.startswith("test"), f"[validation] split is {self.split!r}: do not choose weights on a test set")
        self.check_root()
        check(self.clips > 0 and self.batch > 0, "[validation] clips and batch must be above 0")
        check(self.every >= 0 and self.patience >= 0, "[validation] every and patience must not be negative")

    def check_root(self) -> None:
        """Raise UsageError if `root` is empty but needed; a subclass may check something else."""
        check(bool(self.root) or not self.every, f"[validation] {self.name!r}: root is empty: give the folder of the data set")


@dataclass(frozen=True)
class RunningChoice:
    """How the training is computed.

    Attributes:
        precision: precision of the computation and of frozen weights; trained weights are fp32.
        gradient_checkpointing: True saves memory: the language model's activations are not stored, but
            computed again in the backward pass.
        checkpoint_every: steps between checkpoints.
        keep: number of checkpoints to keep; older ones are removed.
        workers: reader processes per training process; 0 reads samples in the training process.
        remember: True stores the image encoder's features of each clip in memory, in half precision. The image
            encoder must be frozen.
    """

    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    checkpoint_every: int = 100
    keep: int = 2
    workers: int = 0
    remember: bool = False

    def __post_init__(self) -> None:
        check(self.checkpoint_every > 0 and self.keep > 0, "[running] checkpoint_every and keep must be above 0")
        check(self.workers >= 0, f"[running] workers is {self.workers}; it must not be negative")


@dataclass(frozen=True)
class Recipe:
    """The recipe of one training, or of one stage.

    Attributes:
        name: name of the trained model.
        task: kind of training. `exposure`, the paper's anomaly exposure, is the only kind in this class.
        seed: seed of the random weights, the samples, and the order of the samples.
        model, lora, data, exposure, schedule, loss, validation, running: the tables of the recipe file.
    """

    name: str
    model: ModelChoice
    data: tuple[DataChoice, ...]
    task: Literal["exposure"] = "exposure"
    seed: int = 0
    lora: LoraOptions = field(default_factory=LoraOptions)
    exposure: ExposureOptions = field(default_factory=ExposureOptions)
    schedule: ScheduleChoice = field(default_factory=ScheduleChoice)
    loss: LossWeights = field(default_factory=LossWeights)
    validation: ValidationChoice = field(default_factory=ValidationChoice)
    running: RunningChoice = field(default_factory=RunningChoice)

    def __post_init__(self) -> None:
        check(self.seed >= 0, f"seed is {self.seed}; it must not be negative")
        check(bool(self.data), "the recipe has no [[data]] to train on")
        chosen = self.validation
        for item in self.data:
            same = item.name == chosen.name and item.split.removesuffix("ing") == chosen.split.removesuffix("ing")
            check(not (chosen.every and same), f"{item.name} is validated on the split that it is trained on")
            check(not item.split.startswith("test"), f"data {item.name!r}: split is {item.split!r}: do not train on a test set")

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON document that `parse_recipe` can read."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document

    def without_paths(self) -> dict[str, Any]:
        """Return the recipe as a JSON document without paths, for the config of the trained model."""
        document = self.to_json()
        for item in (*document["data"], document["validation"]):
            del item["root"]
        del document["model"]["folder"]
        return document

    def fingerprint(self) -> str:
        """Return a hexadecimal hash of all values that affect the result; paths do not affect it."""
        document = self.without_paths()
        del document["running"]["keep"], document["running"]["workers"]
        return digest(document)


def check(ok: bool, message: str) -> None:
    """Raise UsageError with the message if `ok` is False."""
    if not ok:
        raise UsageError(message)


R = TypeVar("R", bound=Recipe)


def read_recipes(path: Path, kind: type[R]) -> tuple[R, ...]:
    """Return the recipes in a file, one per stage; a file without [[stage]] has one stage.

    Args:
        path: a TOML file.
        kind: class of the recipes; the class's fields are the tables and keys of the file.

    Raises:
        UsageError: the file cannot be read, or a key or value is not valid.
    """
    document = read_toml(path)
    try:
        return parse_stages(document, kind)
    except UsageError as error:
        hint = error.hint
        if kind is Recipe and "'synthetic'" in repr(document):
            hint = f"this recipe is for the synthetic world: in a checkout, run python -m tools.tiny_world --recipe {path}"
        raise UsageError(f"{path}: {error.message}", hint=hint) from error


def parse_stages(document: Mapping[str, Any], kind: type[R]) -> tuple[R, ...]:
    """Return one recipe per [[stage]] table of a recipe file.

    A stage takes all values from outside [[stage]], except those that it sets itself. `preset` and `folder` are only used by
    the first stage; each other stage starts from the result of the stage before it.

    Raises:
        UsageError: a key or value is not valid.
    """
    common = {key: value for key, value in document.items() if key != "stage"}
    stages = document.get("stage", [{}])
    check(isinstance(stages, list) and bool(stages), "stage must be tables, written as [[stage]]")
    return tuple(parse_recipe(_merged(common, stage), kind) for stage in stages)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table `base` with the values of `changes`; inner tables are merged in the same way."""
    merged = dict(base)
    for key, value in changes.items():
        tables = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if tables else value
    return merged


def parse_recipe(document: Mapping[str, Any], kind: type[R]) -> R:
    """Return a recipe of the class `kind` from a document with the fields of this class as keys.

    Raises:
        UsageError: a key or value is not valid.
    """
    try:
        return structure(kind, document)
    except FieldError as error:
        raise UsageError(str(error), hint=error.hint) from error
