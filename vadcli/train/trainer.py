"""The training loop: samples in the plan's order, optimiser steps, a log, checkpoints to go on from, and a LAVIDA folder.

    OUT/log.csv          a row a step: losses, rate, seconds
    OUT/validation.csv   a row a validation
    OUT/checkpoints/     the newest few; see `state`
    OUT/best/            what is trained as it was at the best validation
    OUT/model/           the LAVIDA folder, there when training is done

A training that was killed goes on from its newest checkpoint with the same losses to the same bytes: everything about a step
follows from the recipe, the step's number and the checkpoint.

A training in stages: each starts from the folder that the one before it made.

    OUT/1-pictures/, OUT/2-questions/, …   a stage's own folder, as `trainer` has it
    OUT/model/                             the LAVIDA folder, there when all are done

A stage that is done is not begun again, so an interrupted series goes on where it stopped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vadcli.errors import UsageError, VadcliError
from vadcli.train.logs import TrainingLog, Validated
from vadcli.train.materials import StepOrder
from vadcli.train.recipe import Recipe
from vadcli.train.state import (
    Checkpoints,
    TrainerState,
    checkpoint_activations,
    load_trained,
    random_state,
    save_trained,
    set_precision,
    set_random_state,
    set_up,
    trained_parameters,
    write_whole,
)
from vadcli.train.training import PaperTraining, write_model

R = TypeVar("R", bound=Recipe)
DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """One training, begun or gone on with.

    Args:
        recipe: all about it.
        out: its folder; where it holds checkpoints of the same recipe and data, training goes on.
        device: `cpu`, or None for what accelerate finds.
        training: what is trained; the paper's training by default.

    Raises:
        UsageError: accelerate or peft is missing, or the recipe names something that isn't there.
        DocumentError: the folder holds another training, or a file is damaged.
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
        with self.accelerator.main_process_first():  # it paints and indexes; the others find that done
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
        """Train to the end, or to where validation stops it; the LAVIDA folder.

        Raises:
            VadcliError: the loss is not a number.
            DocumentError: a sample can't be read.
            OutputError: the folder can't be written.
        """
        model = self.out / "model"
        self._resume()
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
            sources = {"data": self.work.fingerprint, **self._figures()}
            write_whole(model, lambda folder: self._write(folder, sources))
        self.accelerator.wait_for_everyone()
        return model

    def _write(self, folder: Path, sources: Mapping[str, Any]) -> None:
        write_model(self.model, self.recipe, folder, sources, start=self.training.start_model)

    def try_step(self, samples: Sequence[Any]) -> dict[str, float]:
        """One optimiser step on any samples, outside the training's order, for measuring; its losses by name."""
        return self._train(samples, self.recipe.schedule.rate_at(0))

    @property
    def _stopped(self) -> bool:
        patience = self.recipe.validation.patience
        return bool(patience) and self.progress.waited >= patience

    def _figures(self) -> dict[str, Any]:
        progress = self.progress
        if progress.best is None:
            return {"steps": progress.step}
        return {"steps": progress.best_step, "validation_frame_auc": progress.best}

    def _train(self, samples: Sequence[Any], rate: float) -> dict[str, float]:
        """One optimiser step; the losses of its samples, each sample counting the same."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = list(_batches(samples, self.recipe.schedule.batch, self.work.kind))
        names = self.work.names
        sums = torch.zeros(len(names), device=self.accelerator.device)
        for place, part in enumerate(parts):
            share = len(part) / len(samples)
            with self.accelerator.no_sync(self.module) if place + 1 < len(parts) else nullcontext():
                losses = self.module(part)
                self.accelerator.backward(losses["total"] * share)
            sums += torch.stack([losses[name].detach().float() for name in names]) * share
        found = dict(zip(names, self.accelerator.reduce(sums, "mean").tolist(), strict=True))
        if not all(-torch.inf < value < torch.inf for value in found.values()):
            told = ", ".join(f"{name} {value}" for name, value in found.items())
            hint = "lower the rate, or compute in bf16 or fp32; it goes on from the newest checkpoint"
            raise VadcliError(f"step {self.progress.step + 1}: the loss is not a number: {told}", hint=hint)
        self.accelerator.clip_grad_norm_(self.parameters, self.recipe.schedule.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return found

    def _samples(self) -> Iterator[list[Any]]:
        """Each step's samples of this process, from where training stands."""
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
        # A generator of its own: a loader that drew its seed from torch's would move the training's random numbers on.
        yield from DataLoader(
            self.work.samples,  # type: ignore[arg-type]
            batch_sampler=order,
            num_workers=self.recipe.running.workers,
            collate_fn=list,
            generator=torch.Generator(),
        )

    def _validate(self, log: TrainingLog) -> None:
        """Validate where that is due, and keep what is best."""
        chosen, progress = self.recipe.validation, self.progress
        if self.work.validate is None or progress.step % chosen.every:
            return
        with self.accelerator.autocast():
            found = self._agreed(self.work.validate())
        self.work.module.train()
        log.validation(progress.step, found)
        figure = found.frame_auc
        better = figure is not None and (progress.best is None or figure > progress.best)
        if better:
            self.progress = replace(progress, best=figure, best_step=progress.step, waited=0)
            if self.main:
                write_whole(self.out / "best", lambda folder: save_trained(self.model, folder))
        else:
            self.progress = replace(progress, waited=progress.waited + 1)

    def _agreed(self, found: Validated) -> Validated:
        """The main process's figures in all of them: they must stop at the same step, whatever their last digits say."""
        from accelerate.utils import broadcast_object_list

        (agreed,) = broadcast_object_list([found])
        told: Validated = agreed
        return told

    def _save(self) -> None:
        own = random_state(self.accelerator.device).to(self.accelerator.device)
        random: Tensor = self.accelerator.gather(own[None]).cpu()  # (processes, N)
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
        if self.main:
            self.checkpoints.save(self.model, self.optimizer.optimizer, progress=self.progress, random=random, scaler=scaler)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        found = self.checkpoints.load(self.model, self.optimizer.optimizer)
        if found is None:
            return
        self.progress, random, scaler = found
        if len(random) != self.processes:
            raise UsageError(f"{self.out}: was begun with {len(random)} processes, not {self.processes}")
        set_random_state(random[self.process], self.accelerator.device)
        if scaler:
            self.accelerator.scaler.load_state_dict(scaler)


def _batches(samples: Sequence[Any], batch: int, kind: Callable[[Any], int]) -> Iterator[list[Any]]:
    """Consecutive samples, at most `batch` together, and only those of one kind: images apart from clips."""
    for start in range(0, len(samples), batch):
        groups: dict[int, list[Any]] = {}
        for sample in samples[start : start + batch]:
            groups.setdefault(kind(sample), []).append(sample)
        yield from groups.values()


def _forget_precision() -> None:
    """Let a training have its own precision where another ran before it in this process; accelerate keeps the first."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


def _accelerator(recipe: Recipe, device: str | None) -> Any:
    if device not in (None, "cpu"):
        raise UsageError(f"training on {device!r} isn't known", hint="give cpu, or choose GPUs by CUDA_VISIBLE_DEVICES")
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise UsageError("training needs the accelerate package", hint="pip install 'vadcli[train]'") from error
    precision = recipe.running.precision
    _forget_precision()
    # Without being told that it is to be a CPU, accelerate takes processes side by side for trainings of their own.
    cpu = device == "cpu" or not torch.cuda.is_available()
    try:
        return Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=cpu)
    except ValueError as error:
        raise UsageError(f"precision {precision} can't be used here: {error}", hint="choose fp32 or bf16") from error


def train(recipes: Sequence[Recipe], out: Path, *, device: str | None = None, training: PaperTraining | None = None) -> Path:
    """Train all stages; returns the LAVIDA folder.

    Args:
        recipes: the stages in order.
        out: their folder.
        device, training: as in `Trainer`.

    Raises:
        as `Trainer` and `Trainer.run`.
    """
    if len(recipes) == 1:
        return Trainer(recipes[0], out, device=device, training=training).run()
    made: Path | None = None
    for number, recipe in enumerate(recipes, start=1):
        folder = out / f"{number}-{recipe.task}"
        stage = recipe if made is None else behind(recipe, made)
        made = folder / "model"
        if not made.is_dir():
            Trainer(stage, folder, device=device, training=training).run()
    from accelerate import PartialState  # the trainer has said so where it is missing

    assert made is not None
    last, model = made, out / "model"
    processes = PartialState(cpu=not torch.cuda.is_available())
    if processes.is_main_process and not model.is_dir():
        write_whole(model, lambda folder: _copy(last, folder))
    processes.wait_for_everyone()
    return model


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


def behind(recipe: R, made: Path) -> R:
    """A stage's recipe, to start from a folder."""
    return replace(recipe, model=replace(recipe.model, preset="", folder=str(made)))
