"""The training loop with its log and checkpoints, and the plan of a training.

    OUT/log.csv          one row per step: losses, rate, seconds
    OUT/validation.csv   one row per validation
    OUT/checkpoints/     the newest checkpoints; see `state`
    OUT/best/            the trained weights at the best validation
    OUT/model/           the LAVIDA folder; written when the training is done

If a recipe has several stages, each stage has its own folder with these files (OUT/1-pictures/, OUT/2-questions/, ...). A stage
starts from the model of the stage before it. If a training is killed, it can continue from its newest checkpoint. The resulting
model has the same bytes as without the interruption.

Before a training starts, the plan shows the sizes of the parts, the memory and the time (`plan_of`, `plan_text`, `time_text`).
The memory for weights is exact; the memory for activations is an estimate. The time of a small model is measured with a few
real steps. The time of a larger model is estimated from the number of operations.
"""

from __future__ import annotations

import csv
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from vadcli.detectors.lavida import checkpoint
from vadcli.detectors.lavida.checkpoint import load_preset, preset_names
from vadcli.detectors.lavida.model import Lavida
from vadcli.detectors.mllm.compress import kept_count
from vadcli.detectors.mllm.qwen import QWEN_PX
from vadcli.errors import UsageError, VadcliError
from vadcli.store.atomic import write_folder, write_unsynced, writing
from vadcli.train import Recipe
from vadcli.train.samples import StepOrder
from vadcli.train.state import (
    Checkpoints,
    TrainerState,
    checkpoint_activations,
    load_trained,
    part_of,
    random_state,
    save_trained,
    set_precision,
    set_random_state,
    set_up,
    trained_parameters,
)
from vadcli.train.training import PaperTraining, Validated, configured, write_model
from vadcli.types.text import how_many, size_text

R = TypeVar("R", bound=Recipe)
DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """One training, which starts at its first step or continues from a checkpoint.

    Args:
        recipe: recipe of the training.
        out: output folder; if it has checkpoints of the same recipe and data, training continues.
        device: `cpu`, or None for the GPUs that the library `accelerate` finds.
        training: provides the model, the losses and the samples; the paper's training by default.

    Raises:
        UsageError: the library `accelerate` or `peft` is not installed, or a folder or preset of the recipe is missing.
        DocumentError: a file of a data set or of the starting model is damaged.
    """

    def __init__(self, recipe: Recipe, out: Path, *, device: str | None = None, training: PaperTraining | None = None) -> None:
        self.recipe, self.out = recipe, out
        self.training = training or PaperTraining()
        self.accelerator = _accelerator(recipe, device)
        self.process, self.processes = int(self.accelerator.process_index), int(self.accelerator.num_processes)
        self.main = bool(self.accelerator.is_main_process)
        torch.manual_seed(recipe.seed)
        model = self.training.start_model(recipe)
        set_up(model, recipe.model.train, masks=recipe.model.masks, freeze=recipe.model.freeze)
        set_precision(model, DTYPES[recipe.running.precision])
        if recipe.running.gradient_checkpointing:
            checkpoint_activations(model)
        self.model = model.to(self.accelerator.device)
        with self.accelerator.main_process_first():  # the main process caches the data sets for the other processes
            self.work = self.training.work(recipe, self.model, processes=self.processes)
        schedule = recipe.schedule
        self.parameters = [value for _, value in trained_parameters(self.work.module)]
        optimizer = torch.optim.AdamW(self.parameters, lr=schedule.rate, betas=schedule.betas, weight_decay=schedule.decay)
        self.module, self.optimizer = self.accelerator.prepare(self.work.module, optimizer)
        identity = {"recipe": recipe.fingerprint(), "data": self.work.fingerprint}
        self.checkpoints = Checkpoints(out / "checkpoints", keep=recipe.running.keep, identity=identity)
        self.progress = TrainerState()
        torch.manual_seed(recipe.seed + self.process)

    def run(self) -> Path:
        """Train until the last step. Stop earlier if validations no longer improve.

        The field `patience` of `ValidationChoice` says after how many validations the training stops.

        Returns:
            The LAVIDA folder with the trained model.

        Raises:
            VadcliError: the loss is not a finite number.
            UsageError: the checkpoint was written with another number of processes.
            DocumentError: a sample cannot be read, or the checkpoint is damaged or belongs to another training.
            OutputError: the folder cannot be written.
        """
        model = self.out / "model"
        stored = self.checkpoints.load(self.model, self.optimizer.optimizer)
        if stored is not None:
            self.progress, random, scaler = stored
            if len(random) != self.processes:
                started = len(random)
                raise UsageError(
                    f"{self.out}: the training started with {started} processes, not {self.processes}; use {started}"
                )
            set_random_state(random[self.process], self.accelerator.device)
            if scaler:
                self.accelerator.scaler.load_state_dict(scaler)
        total = self.recipe.schedule.total_steps
        with TrainingLog(self.out, names=self.work.names, total=total, start=self.progress.step, main=self.main) as log:
            for samples in self._samples():
                began = time.perf_counter()
                number = self.progress.step
                losses = self._train(samples, self.recipe.schedule.rate_at(number))
                self.progress = replace(self.progress, step=number + 1)
                log.step(number + 1, losses, self.recipe.schedule.rate_at(number), time.perf_counter() - began)
                self._validate(log)
                if self.progress.step % self.recipe.running.checkpoint_every == 0:
                    self._save()
                if self._stopped:
                    break
        self.accelerator.wait_for_everyone()
        if self.main:
            best = self.out / "best"
            if self.progress.best is not None and best.is_dir():
                load_trained(self.model, best)
            sources: dict[str, Any] = {"data": self.work.fingerprint, "steps": self.progress.step}
            if self.progress.best is not None:
                sources |= {"steps": self.progress.best_step, "validation_frame_auc": self.progress.best}
            start = self.training.start_model
            write_folder(model, lambda folder: write_model(self.model, self.recipe, folder, sources, start=start))
        self.accelerator.wait_for_everyone()
        return model

    def try_step(self, samples: Sequence[Any]) -> dict[str, float]:
        """Run one optimiser step for timing; return the losses by name."""
        return self._train(samples, self.recipe.schedule.rate_at(0))

    @property
    def _stopped(self) -> bool:
        patience = self.recipe.validation.patience
        return bool(patience) and self.progress.waited >= patience

    def _train(self, samples: Sequence[Any], rate: float) -> dict[str, float]:
        """Run one optimiser step with this learning rate; return the mean losses of the samples by name."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch, parts = self.recipe.schedule.batch, list[list[Any]]()
        for start in range(0, len(samples), batch):
            groups: dict[int, list[Any]] = {}  # images and clips never share a batch
            for sample in samples[start : start + batch]:
                groups.setdefault(self.work.kind(sample), []).append(sample)
            parts += groups.values()
        names = self.work.names
        sums = torch.zeros(len(names), device=self.accelerator.device)
        for place, part in enumerate(parts):
            share = len(part) / len(samples)
            with self.accelerator.no_sync(self.module) if place + 1 < len(parts) else nullcontext():
                losses = self.module(part)
                self.accelerator.backward(losses["total"] * share)
            sums += torch.stack([losses[name].detach().float() for name in names]) * share
        means = dict(zip(names, self.accelerator.reduce(sums, "mean").tolist(), strict=True))
        if not all(-torch.inf < value < torch.inf for value in means.values()):
            values = ", ".join(f"{name} {value}" for name, value in means.items())
            hint = "use a lower rate, or the precision bf16 or fp32, and another output folder"
            raise VadcliError(f"step {self.progress.step + 1}: a loss is not a finite number: {values}", hint=hint)
        self.accelerator.clip_grad_norm_(self.parameters, self.recipe.schedule.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return means

    def _samples(self) -> Iterator[list[Any]]:
        """Yield the samples of this process for each remaining step."""
        schedule = self.recipe.schedule
        order = StepOrder(
            first=self.progress.step,
            total=schedule.total_steps,
            per_process=schedule.batch * schedule.accumulation,
            processes=self.processes,
            rank=self.process,
        )
        if self._stopped:
            return
        # The loader gets its own random generator. With torch's global generator, a training that continues from
        # a checkpoint would get other random numbers, because each new loader draws a seed.
        yield from DataLoader(
            self.work.samples,  # type: ignore[arg-type]
            batch_sampler=order,
            num_workers=self.recipe.running.workers,
            collate_fn=list,
            generator=torch.Generator(),
        )

    def _validate(self, log: TrainingLog) -> None:
        """Validate if a validation is due after this step, and store the weights if they are the best so far."""
        chosen, progress = self.recipe.validation, self.progress
        if self.work.validate is None or progress.step % chosen.every:
            return
        from accelerate.utils import broadcast_object_list

        with self.accelerator.autocast():
            # All processes use the results of the main process, so that all stop at the same step.
            (validated,) = broadcast_object_list([self.work.validate()])
        self.work.module.train()
        log.validation(progress.step, validated)
        auc = validated.frame_auc
        if auc is not None and (progress.best is None or auc > progress.best):
            self.progress = replace(progress, best=auc, best_step=progress.step, waited=0)
            if self.main:
                write_folder(self.out / "best", lambda folder: save_trained(self.model, folder))
        else:
            self.progress = replace(progress, waited=progress.waited + 1)

    def _save(self) -> None:
        own = random_state(self.accelerator.device).to(self.accelerator.device)
        random: Tensor = self.accelerator.gather(own[None]).cpu()  # (processes, N)
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
        if self.main:
            self.checkpoints.save(self.model, self.optimizer.optimizer, progress=self.progress, random=random, scaler=scaler)
        self.accelerator.wait_for_everyone()


def _accelerator(recipe: Recipe, device: str | None) -> Any:
    if device not in (None, "cpu"):
        raise UsageError(f"cannot train on {device!r}", hint="give cpu, or choose GPUs with CUDA_VISIBLE_DEVICES")
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise UsageError("training needs the accelerate package", hint="pip install 'vadcli[train]'") from error
    precision = recipe.running.precision
    AcceleratorState._reset_state()  # otherwise `accelerate` keeps the precision of an earlier training
    # Without cpu=True, the library `accelerate` does not connect several processes on a CPU. Each process would then train its
    # own model.
    cpu = device == "cpu" or not torch.cuda.is_available()
    try:
        return Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=cpu)
    except ValueError as error:
        raise UsageError(f"precision {precision} cannot be used here: {error}", hint="choose fp32 or bf16") from error


def train(recipes: Sequence[Recipe], out: Path, *, device: str | None = None, training: PaperTraining | None = None) -> Path:
    """Train all stages one after the other; return the LAVIDA folder of the last stage.

    Complete stages are skipped, so an interrupted training continues where it stopped.

    Args:
        recipes: the stages in order.
        out: output folder.
        device, training: as in `Trainer`.

    Raises:
        VadcliError: as in `Trainer` and `Trainer.run`.
    """
    if len(recipes) == 1:
        return Trainer(recipes[0], out, device=device, training=training).run()
    last: Path | None = None  # the model of the stage before
    for number, recipe in enumerate(recipes, start=1):
        folder = out / f"{number}-{recipe.task}"
        stage = recipe if last is None else starting_from(recipe, last)
        last = folder / "model"
        if not last.is_dir():
            Trainer(stage, folder, device=device, training=training).run()
    from accelerate import PartialState  # if `accelerate` is not installed, `Trainer` has raised an error

    assert last is not None
    model = out / "model"
    processes = PartialState(cpu=not torch.cuda.is_available())
    if processes.is_main_process and not model.is_dir():
        write_folder(model, partial(shutil.copytree, last, dirs_exist_ok=True))
    processes.wait_for_everyone()
    return model


def starting_from(recipe: R, folder: Path) -> R:
    """Return the same recipe, but with the model in `folder` as its starting point."""
    return replace(recipe, model=replace(recipe.model, preset="", folder=str(folder)))


VALIDATION_COLUMNS = ("step", "frame_auc", "mask_iou", "frames")


class TrainingLog:
    """The log of one training: two CSV files, a progress bar, and TensorBoard if it is installed.

    If a training was killed, its log has rows of steps after the newest checkpoint. These steps are computed again,
    so their rows are removed. Numbers are not rounded: two logs of the same training differ only in the seconds.

    Args:
        out: folder of the CSV files.
        names: names of the losses.
        total: steps of the whole training.
        start: number of steps that are done already; rows of later steps are removed.
        main: True in the main process. All other processes write no log.
    """

    def __init__(self, out: Path, *, names: Sequence[str], total: int, start: int, main: bool) -> None:
        self.main, self.names = main, tuple(names)
        self._steps, self._validations = out / "log.csv", out / "validation.csv"
        self._bar: Any = None
        self._board: Any = None
        if main:
            _begin(self._steps, ("step", *self.names, "rate", "seconds"), start)
            _begin(self._validations, VALIDATION_COLUMNS, start)
            self._bar = tqdm(total=total, initial=start, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)
            self._board = _board(out / "tensorboard", start)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.main:
            self._bar.close()
            if self._board is not None:
                self._board.close()

    def step(self, step: int, losses: Mapping[str, float], rate: float, seconds: float) -> None:
        """Log one optimiser step."""
        if not self.main:
            return
        _append(self._steps, [str(step), *(repr(losses[name]) for name in self.names), repr(rate), f"{seconds:.4f}"])
        self._bar.set_postfix(loss=f"{losses['total']:.3f}", refresh=False)
        self._bar.update()
        self._tell(step, {**{f"loss/{name}": losses[name] for name in self.names}, "rate": rate})

    def validation(self, step: int, validated: Validated) -> None:
        """Log one validation. A measure that is None leaves its cell empty."""
        if not self.main:
            return
        figures = {"frame_auc": validated.frame_auc, "mask_iou": validated.mask_iou}
        _append(
            self._validations,
            [str(step), *("" if value is None else repr(value) for value in figures.values()), str(validated.frames)],
        )
        self._tell(step, {f"validation/{name}": value for name, value in figures.items() if value is not None})

    def _tell(self, step: int, values: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)


def _begin(path: Path, columns: Sequence[str], start: int) -> None:
    """Write the header of the CSV file. Keep only the rows up to step `start`."""
    rows: list[list[str]] = []
    if start and path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == len(columns) and row[0].isdigit() and int(row[0]) <= start]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_unsynced(path, text.getvalue())


def _append(path: Path, row: Sequence[str]) -> None:
    with writing(path), path.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(row)


def _board(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # TensorBoard is optional
        return None
    return SummaryWriter(str(folder), purge_step=start + 1)


SMALL = 50_000_000
"""Largest number of parameters of a model whose steps are timed. The time of a larger model is estimated."""
TIMED_STEPS = 2
RATE = 1e14
"""Operations per second of one data-centre GPU in bf16, for the estimate of the time."""
PROMPT_TOKENS = 200
"""Approximate number of text tokens in a prompt with 30 names; the visual tokens of the clip are not included."""
ADAM_BYTES = 16
"""Bytes per trained weight in fp32: the weight, its gradient and AdamW's two moments."""


@dataclass(frozen=True)
class PartSize:
    """The size of one part of the model: the number of all parameters, and of trained parameters."""

    name: str
    total: int
    trained: int


@dataclass(frozen=True)
class TrainingPlan:
    """The sizes of a training's parts, and the memory that it needs.

    Attributes:
        recipe: recipe of the training.
        sizes: sizes of the parts, in the model's order.
        weights_bytes: memory for weights, gradients and AdamW's moments; exact.
        activations_bytes: estimated memory for the language model's activations of one batch. The memory for
            the encoders, the decoder and the libraries is not included.
    """

    recipe: Recipe
    sizes: tuple[PartSize, ...]
    weights_bytes: int
    activations_bytes: int


def plan_of(recipe: Recipe, training: PaperTraining | None = None) -> TrainingPlan:
    """Return the plan of a recipe's training: the sizes of the parts, and the memory that it needs.

    If the starting model has the sizes of a preset, no weights are read. Any other model is read from disk.

    Raises:
        UsageError: the preset or a part does not exist.
        WeightsError: the folder to start from cannot be used.
    """
    model = _model_for_sizes(recipe, training or PaperTraining())
    set_up(model, recipe.model.train, masks=recipe.model.masks, freeze=recipe.model.freeze)
    counts: dict[str, list[int]] = {}
    for name, value in model.named_parameters():
        count = counts.setdefault(part_of(name), [0, 0])
        count[0] += value.numel()
        count[1] += value.numel() * value.requires_grad
    sizes = tuple(PartSize(name, *count) for name, count in counts.items())
    narrow = 4 if recipe.running.precision == "fp32" else 2
    weights = sum(size.trained * ADAM_BYTES + (size.total - size.trained) * narrow for size in sizes)
    config = model.mllm.qwen.config.text_config
    visual = (model.config.sampling.frames + 1) // 2 * (model.config.pixels.train_max_px // QWEN_PX**2)
    tokens = recipe.schedule.batch * (PROMPT_TOKENS + kept_count(visual, model.config.compression.ratio))
    # Per token, a layer stores about 16 vectors of the hidden size and 3 vectors of the intermediate size. With
    # gradient checkpointing, only one layer at a time stores these vectors, and every layer stores its input.
    layer, layers = 16 * config.hidden_size + 3 * config.intermediate_size, int(config.num_hidden_layers)
    kept = layer + layers * config.hidden_size if recipe.running.gradient_checkpointing else layers * layer
    return TrainingPlan(recipe, sizes, weights, int(tokens * kept * narrow))


def plan_text(plan: TrainingPlan) -> str:
    """Return the plan as text for a person, one line per item."""
    recipe, schedule = plan.recipe, plan.recipe.schedule
    steps, samples = schedule.total_steps, schedule.batch * schedule.accumulation
    epochs = how_many(schedule.epochs, "epoch")
    lines = [
        f"{recipe.name}, {recipe.task}: {steps:,} steps of {samples} samples per process ({epochs})",
        "",
        f"{'part':<16}{'parameters':>16}{'trained':>16}",
    ]
    lines += [f"{size.name:<16}{size.total:>16,}{size.trained:>16,}" for size in plan.sizes]
    total, trained = (sum(getattr(size, kind) for size in plan.sizes) for kind in ("total", "trained"))
    lines += [f"{'total':<16}{total:>16,}{trained:>16,}", ""]
    lines.append(f"memory: {size_text(plan.weights_bytes)} for weights, gradients and AdamW's moments, and about")
    lines.append(
        f"        {size_text(plan.activations_bytes)} for the language model's activations; encoders and decoder need more"
    )
    return "\n".join(lines) + "\n"


def time_text(plan: TrainingPlan, training: PaperTraining | None = None) -> str:
    """Return the time that the training will take, measured or estimated, as text for a person."""
    recipe = plan.recipe
    steps, samples = recipe.schedule.total_steps, recipe.schedule.batch * recipe.schedule.accumulation
    training = training or PaperTraining()
    sample_recipe = training.sample_recipe(recipe)
    if sample_recipe is not None and sum(size.total for size in plan.sizes) <= SMALL:
        durations_s = []
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(sample_recipe, Path(folder), training=training)
            for step in range(TIMED_STEPS):
                batch = [trainer.work.samples[step * samples + place] for place in range(samples)]
                began = time.perf_counter()
                trainer.try_step(batch)
                durations_s.append(time.perf_counter() - began)
        seconds = min(durations_s)
        return f"time:   {seconds:.2f} s per step here (fastest of {TIMED_STEPS}), about {_long(seconds * steps)} in total\n"
    operations = _step_operations(recipe, training)
    line = f"time:   about {operations:.1e} operations per step and process, without data loading:"
    return f"{line}\n        {_long(operations * steps / RATE)} in total at 1e14 operations per second\n"


def _step_operations(recipe: Recipe, training: PaperTraining) -> float:
    """Return the approximate number of floating-point operations of one process for one optimiser step.

    The operations of the image encoder are counted exactly. For the language model and the vision tower, the
    estimate for a forward pass is two operations per weight and token.
    """
    model = _model_for_sizes(recipe, training).to("meta")
    frames, side = model.config.sampling.frames, model.masks.image_size
    with FlopCounterMode(display=False) as counter:
        model.masks.encode(torch.empty(frames, 3, side, side, device="meta"))
    visual = (frames + 1) // 2 * (model.config.pixels.train_max_px // QWEN_PX**2)

    def weights(start: str) -> int:
        """Return the number of weights whose names begin with `start`."""
        return sum(value.numel() for name, value in model.named_parameters() if name.startswith(start))

    tower = 0 if model.mllm.sight is not None else 2 * weights("mllm.qwen.model.visual.") * 4 * visual
    tokens = PROMPT_TOKENS + kept_count(visual, model.config.compression.ratio)
    # A step has up to four passes through the language model, which cost the same: the forward pass, the gradients of the
    # activations, the gradients of trained weights, and the second forward pass of gradient checkpointing.
    passes = 2 + ("language_model" in recipe.model.train) + recipe.running.gradient_checkpointing
    language = 2 * passes * weights("mllm.qwen.model.language_model.layers.") * tokens
    encoder = counter.get_total_flops() * (3 if "image_encoder" in recipe.model.train else 1)
    return float((encoder + tower + language) * recipe.schedule.batch * recipe.schedule.accumulation)


def _long(seconds: float) -> str:
    """Return a duration as text for a person."""
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _model_for_sizes(recipe: Recipe, training: PaperTraining) -> Lavida:
    """Return a model with the same sizes as the recipe's starting model.

    If the sizes are those of a preset, the model's tensors are on the meta device, without values.
    """
    name = recipe.model.preset
    if recipe.model.folder:
        name = checkpoint.read_config(Path(recipe.model.folder).expanduser()).name
    if name not in preset_names():
        return training.start_model(recipe)
    config = replace(load_preset(name), random_gain=None)
    return configured(checkpoint.random_model(config, device="meta"), recipe)
