"""The training loop: samples in the plan's order, optimiser steps, a log, checkpoints to go on from, and a LAVIDA folder.

    OUT/log.csv          a row a step: losses, rate, seconds
    OUT/validation.csv   a row a validation
    OUT/checkpoints/     the newest few; see `state`
    OUT/best/            what is trained as it was at the best validation
    OUT/model/           the LAVIDA folder, there when training is done

A training that was killed goes on from its newest checkpoint with the same losses to the same bytes: everything about a step
follows from the recipe, the step's number and the checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vadcli.errors import UsageError, VadcliError
from vadcli.train import folders
from vadcli.train.logs import TrainingLog
from vadcli.train.losses import LossWeights
from vadcli.train.materials import PlannedSamples, StepOrder, ValidationSet, mixture_of
from vadcli.train.parts import checkpoint_activations, set_precision, set_up, trained_parameters
from vadcli.train.recipe import Recipe
from vadcli.train.samples import ExposureSample
from vadcli.train.state import (
    Checkpoints,
    Progress,
    load_trained,
    random_state,
    save_trained,
    set_random_state,
    write_whole,
)
from vadcli.train.step import LOSS_NAMES, ExposureStep
from vadcli.train.validation import Validated, validate

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """One training, begun or gone on with.

    Args:
        recipe: all about it.
        out: its folder; where it holds checkpoints of the same recipe and data, training goes on.
        device: `cpu`, or None for what accelerate finds.

    Raises:
        UsageError: accelerate or peft is missing, or the recipe names something that isn't there.
        DocumentError: the folder holds another training, or a file is damaged.
    """

    def __init__(self, recipe: Recipe, out: Path, *, device: str | None = None) -> None:
        self.recipe, self.out = recipe, out
        self.accelerator = _accelerator(recipe, device)
        self.process, self.processes = int(self.accelerator.process_index), int(self.accelerator.num_processes)
        self.main = bool(self.accelerator.is_main_process)
        torch.manual_seed(recipe.seed)
        model = folders.start_model(recipe)
        frames = model.config.sampling.frames
        self.mixture = mixture_of(recipe, frames=frames, processes=self.processes)
        self.validation = ValidationSet(recipe, frames=frames) if recipe.validation.every else None
        set_up(model, recipe.model.train, masks=recipe.model.masks)
        set_precision(model, DTYPES[recipe.running.precision])
        if recipe.running.gradient_checkpointing:
            checkpoint_activations(model)
        loss = recipe.loss
        weights = LossWeights(loss.focal, loss.dice, loss.iou, loss.score, loss.lm)
        self.step = ExposureStep(model.to(self.accelerator.device), weights=weights, masks=recipe.model.masks).train()
        schedule = recipe.schedule
        self.parameters = [value for _, value in trained_parameters(self.step)]
        optimizer = torch.optim.AdamW(self.parameters, lr=schedule.rate, betas=schedule.betas, weight_decay=schedule.decay)
        self.module, self.optimizer = self.accelerator.prepare(self.step, optimizer)
        identity = {"recipe": recipe.fingerprint(), "data": self.mixture.fingerprint()}
        self.checkpoints = Checkpoints(out / "checkpoints", keep=recipe.running.keep, identity=identity)
        self.progress = Progress()
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
        with TrainingLog(self.out, total=self.recipe.schedule.total_steps, start=self.progress.step, main=self.main) as log:
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
                load_trained(self.step.model, best)
            sources = {"recipe": self.recipe.to_json(), "data": self.mixture.fingerprint(), **self._figures()}
            write_whole(model, lambda folder: folders.write_model(self.step.model, self.recipe, folder, sources))
        self.accelerator.wait_for_everyone()
        return model

    @property
    def _stopped(self) -> bool:
        patience = self.recipe.validation.patience
        return bool(patience) and self.progress.waited >= patience

    def _figures(self) -> dict[str, Any]:
        progress = self.progress
        if progress.best is None:
            return {"steps": progress.step}
        return {"steps": progress.best_step, "validation_frame_auc": progress.best}

    def _train(self, samples: Sequence[ExposureSample], rate: float) -> dict[str, float]:
        """One optimiser step; the losses of its samples, each sample counting the same."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = list(_batches(samples, self.recipe.schedule.batch))
        sums = torch.zeros(len(LOSS_NAMES), device=self.accelerator.device)
        for place, part in enumerate(parts):
            share = len(part) / len(samples)
            with self.accelerator.no_sync(self.module) if place + 1 < len(parts) else nullcontext():
                losses = self.module(part)
                self.accelerator.backward(losses["total"] * share)
            sums += torch.stack([losses[name].detach().float() for name in LOSS_NAMES]) * share
        found = dict(zip(LOSS_NAMES, self.accelerator.reduce(sums, "mean").tolist(), strict=True))
        if not all(-torch.inf < value < torch.inf for value in found.values()):
            told = ", ".join(f"{name} {value}" for name, value in found.items())
            hint = "lower the rate, or compute in bf16 or fp32; it goes on from the newest checkpoint"
            raise VadcliError(f"step {self.progress.step + 1}: the loss is not a number: {told}", hint=hint)
        self.accelerator.clip_grad_norm_(self.parameters, self.recipe.schedule.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return found

    def _samples(self) -> Iterator[list[ExposureSample]]:
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
        planned = PlannedSamples(self.mixture, schedule.epochs)
        # A generator of its own: a loader that drew its seed from torch's would move the training's random numbers on.
        yield from DataLoader(
            planned,  # type: ignore[arg-type]
            batch_sampler=order,
            num_workers=self.recipe.running.workers,
            collate_fn=list,
            generator=torch.Generator(),
        )

    def _validate(self, log: TrainingLog) -> None:
        """Validate where that is due, and keep what is best."""
        chosen, progress = self.recipe.validation, self.progress
        if self.validation is None or progress.step % chosen.every:
            return
        with self.accelerator.autocast():
            found = self._agreed(validate(self.step, self.validation, batch=chosen.batch))
        self.step.train()
        log.validation(progress.step, found)
        figure = found.frame_auc
        better = figure is not None and (progress.best is None or figure > progress.best)
        if better:
            self.progress = replace(progress, best=figure, best_step=progress.step, waited=0)
            if self.main:
                write_whole(self.out / "best", lambda folder: save_trained(self.step.model, folder))
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
            self.checkpoints.save(
                self.step.model, self.optimizer.optimizer, progress=self.progress, random=random, scaler=scaler
            )
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        found = self.checkpoints.load(self.step.model, self.optimizer.optimizer)
        if found is None:
            return
        self.progress, random, scaler = found
        if len(random) != self.processes:
            raise UsageError(f"{self.out}: was begun with {len(random)} processes, not {self.processes}")
        set_random_state(random[self.process], self.accelerator.device)
        if scaler:
            self.accelerator.scaler.load_state_dict(scaler)


def _batches(samples: Sequence[ExposureSample], batch: int) -> Iterator[list[ExposureSample]]:
    """Consecutive samples, at most `batch` together, and only those of as many frames: images apart from clips."""
    for start in range(0, len(samples), batch):
        groups: dict[int, list[ExposureSample]] = {}
        for sample in samples[start : start + batch]:
            groups.setdefault(len(sample.frames), []).append(sample)
        yield from groups.values()


def _accelerator(recipe: Recipe, device: str | None) -> Any:
    if device not in (None, "cpu"):
        raise UsageError(f"training on {device!r} isn't known", hint="give cpu, or choose GPUs by CUDA_VISIBLE_DEVICES")
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise UsageError("training needs the accelerate package", hint="pip install 'vadcli[train]'") from error
    precision = recipe.running.precision
    try:
        return Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=device == "cpu")
    except ValueError as error:
        raise UsageError(f"precision {precision} can't be used here: {error}", hint="choose fp32 or bf16") from error
