"""What the training loop runs, by a recipe's task: a module that turns samples into losses, and the samples in their order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vadcli.detectors.lavida.model import Lavida
from vadcli.errors import UsageError
from vadcli.train.base import pictures, questions
from vadcli.train.logs import Validated, validate
from vadcli.train.losses import LossWeights
from vadcli.train.materials import PlannedSamples, ValidationSet, mixture_of, world_of
from vadcli.train.recipe import SYNTHETIC, Recipe
from vadcli.train.step import LOSS_NAMES, ExposureStep, FeatureMemory


@dataclass(frozen=True)
class Job:
    """A training's work.

    Attributes:
        module: samples that may share a batch -> losses by name, `total` among them.
        samples: all of them in the order in which they are looked at.
        names: of the losses, as they are logged.
        fingerprint: of the samples.
        kind: samples of equal kind may share a batch.
        held: what is validated on; None where nothing is.
        validate: None where nothing is validated.
    """

    module: nn.Module
    samples: Sequence[Any]
    names: tuple[str, ...]
    fingerprint: str
    kind: Callable[[Any], int]
    held: ValidationSet | None = None
    validate: Callable[[], Validated] | None = None


def job_of(recipe: Recipe, model: Lavida, *, processes: int) -> Job:
    """The work of a recipe with a model that is set up to train.

    Raises:
        UsageError: a folder isn't its data set's, or the model lacks what the task trains.
        DocumentError: a file is damaged.
    """
    if recipe.task == "exposure":
        return _exposure(recipe, model, processes)
    if len(recipe.data) != 1 or recipe.data[0].name != SYNTHETIC:
        raise UsageError(f"task {recipe.task!r} trains on the synthetic world alone", hint="give one [[data]], synthetic")
    world = world_of(recipe, recipe.data[0], frames=model.config.sampling.frames)
    chosen, loss, schedule = recipe.base, recipe.loss, recipe.schedule
    kind = pictures.PictureSamples if recipe.task == "pictures" else questions.QuestionSamples
    total = schedule.total_steps * schedule.batch * schedule.accumulation * processes
    samples: Sequence[Any] = kind(world, seed=recipe.seed, total=total, chosen=chosen)
    fingerprint = hashlib.sha256(repr((recipe.task, world.fingerprint(), chosen, recipe.seed)).encode()).hexdigest()
    if recipe.task == "pictures":
        if not model.config.projector.null_key:
            raise UsageError("task 'pictures' needs a projector with a null key", hint="start from a preset that has one")
        step: nn.Module = pictures.PictureStep(model, weights=weights_of(recipe), align=loss.align, cells=loss.cells)
        return Job(step, samples, pictures.LOSS_NAMES, fingerprint, lambda sample: 0)
    if not (model.config.additions.sight and model.config.additions.pooling):
        raise UsageError("task 'questions' needs a model with sight and pooling", hint="start from a preset that has them")
    step = questions.QuestionStep(model, memory=FeatureMemory(model), tokens=loss.tokens, names=loss.names)
    return Job(step, samples, questions.LOSS_NAMES, fingerprint, lambda sample: len(sample.frames))


def weights_of(recipe: Recipe) -> LossWeights:
    """What masks, IoU, score and answer count."""
    loss = recipe.loss
    return LossWeights(loss.focal, loss.dice, loss.iou, loss.score, loss.lm)


def _exposure(recipe: Recipe, model: Lavida, processes: int) -> Job:
    frames, chosen = model.config.sampling.frames, recipe.validation
    mixture = mixture_of(recipe, frames=frames, processes=processes)
    memory = FeatureMemory(model) if recipe.running.remember else None
    step = ExposureStep(
        model,
        weights=weights_of(recipe),
        masks=recipe.model.masks,
        memory=memory,
        names=recipe.loss.names,
        without_seg=recipe.exposure.without_seg,
    ).train()
    held = ValidationSet(recipe, frames=frames) if chosen.every else None
    check = None if held is None else lambda: validate(step, held, batch=chosen.batch)
    samples = PlannedSamples(mixture, recipe.schedule.epochs)
    return Job(step, samples, LOSS_NAMES, mixture.fingerprint(), lambda sample: len(sample.frames), held, check)
