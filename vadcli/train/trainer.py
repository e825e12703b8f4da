"""The training loop, with its log and checkpoints.

    OUT/log.csv          one row per step: losses, rate, seconds
    OUT/validation.csv   one row per validation
    OUT/checkpoints/     the newest few checkpoints; see `state`
    OUT/best/            the trained weights at the best validation
    OUT/model/           the LAVIDA folder; appears when the training is done

With several stages, each stage has such a folder (OUT/1-pictures/, OUT/2-questions/, ...) and starts
from the model of the stage before it. A killed training continues from its newest checkpoint and gives
the same bytes as without interruption: a step depends only on the recipe, its number and the checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vadcli.errors import UsageError, VadcliError
from vadcli.train.logs import TrainingLog
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
    """One training, which starts at its first step or continues from a checkpoint.

    Args:
        recipe: recipe of the training.
        out: output folder; if it has checkpoints of the same recipe and data, training continues.
        device: `cpu`, or None to let accelerate choose.
        training: provides the model, the losses and the samples; the paper's training by default.

    Raises:
        UsageError: accelerate, peft, or something that the recipe names is missing.
        DocumentError: the folder has another training, or a file is damaged.
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
        with self.accelerator.main_process_first():  # the main process caches the data sets for the others
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
        """Train to the end, or until validation stops the training; return the LAVIDA folder.

        Raises:
            VadcliError: the loss is not a finite number.
            DocumentError: a sample cannot be read.
            OutputError: the folder cannot be written.
        """
        model = self.out / "model"
        found = self.checkpoints.load(self.model, self.optimizer.optimizer)
        if found is not None:
            self.progress, random, scaler = found
            if len(random) != self.processes:
                started = len(random)
                raise UsageError(f"{self.out}: was started with {started} processes, not {self.processes}; use {started}")
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
            write_whole(model, lambda folder: write_model(self.model, self.recipe, folder, sources, start=start))
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
        """Run one optimiser step; return the losses as means over the samples."""
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
        found = dict(zip(names, self.accelerator.reduce(sums, "mean").tolist(), strict=True))
        if not all(-torch.inf < value < torch.inf for value in found.values()):
            told = ", ".join(f"{name} {value}" for name, value in found.items())
            hint = "lower the rate, or use bf16 or fp32, and train into another folder"
            raise VadcliError(f"step {self.progress.step + 1}: the loss is not a number: {told}", hint=hint)
        self.accelerator.clip_grad_norm_(self.parameters, self.recipe.schedule.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return found

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
        # The loader needs its own generator. Otherwise it would draw a seed from torch's generator and
        # change the random numbers of a training that continues from a checkpoint.
        yield from DataLoader(
            self.work.samples,  # type: ignore[arg-type]
            batch_sampler=order,
            num_workers=self.recipe.running.workers,
            collate_fn=list,
            generator=torch.Generator(),
        )

    def _validate(self, log: TrainingLog) -> None:
        """Validate if this step has a validation, and store the weights if they are the best so far."""
        chosen, progress = self.recipe.validation, self.progress
        if self.work.validate is None or progress.step % chosen.every:
            return
        from accelerate.utils import broadcast_object_list

        with self.accelerator.autocast():
            # All processes use the results of the main process, so that they stop at the same step.
            (found,) = broadcast_object_list([self.work.validate()])
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
    AcceleratorState._reset_state()  # otherwise it keeps the precision of an earlier training in this process
    # Several CPU processes train together only if accelerate gets cpu=True; otherwise each process
    # would train alone.
    cpu = device == "cpu" or not torch.cuda.is_available()
    try:
        return Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=cpu)
    except ValueError as error:
        raise UsageError(f"precision {precision} cannot be used here: {error}", hint="choose fp32 or bf16") from error


def train(recipes: Sequence[Recipe], out: Path, *, device: str | None = None, training: PaperTraining | None = None) -> Path:
    """Train all stages; return the LAVIDA folder.

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
    made: Path | None = None
    for number, recipe in enumerate(recipes, start=1):
        folder = out / f"{number}-{recipe.task}"
        stage = recipe if made is None else behind(recipe, made)
        made = folder / "model"
        if not made.is_dir():
            Trainer(stage, folder, device=device, training=training).run()
    from accelerate import PartialState  # if it were missing, Trainer would have raised an error

    assert made is not None
    last, model = made, out / "model"
    processes = PartialState(cpu=not torch.cuda.is_available())
    if processes.is_main_process and not model.is_dir():
        write_whole(model, partial(shutil.copytree, last, dirs_exist_ok=True))
    processes.wait_for_everyone()
    return model


def behind(recipe: R, made: Path) -> R:
    """Return the same recipe, but with the model in the folder `made` as its starting point."""
    return replace(recipe, model=replace(recipe.model, preset="", folder=str(made)))
