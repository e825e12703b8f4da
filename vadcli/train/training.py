"""What the training loop runs: the model at the start, a module that turns samples into losses, and the samples in order.

`PaperTraining` is the paper's training (3.3 and 3.9). A subclass can train on other data, from another start or for another
task; `tools/tiny_world` has one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vadcli.detectors.lavida.model import Lavida
from vadcli.train import folders
from vadcli.train.logs import Validated, validate
from vadcli.train.losses import LossWeights
from vadcli.train.materials import PlannedSamples, ValidationSet, mixture_of, open_choice
from vadcli.train.recipe import DataChoice, Recipe
from vadcli.train.samples import SegmentationData
from vadcli.train.step import LOSS_NAMES, ExposureStep, FeatureMemory


@dataclass(frozen=True)
class Work:
    """What one training computes.

    Attributes:
        module: samples that may share a batch -> losses by name, `total` among them.
        samples: all samples, in the order in which they are used.
        names: names of the losses, as they are logged.
        fingerprint: of the samples.
        kind: samples of equal kind may share a batch.
        held: what is validated on; None without validation.
        validate: measures the model on `held`; None without validation.
    """

    module: nn.Module
    samples: Sequence[Any]
    names: tuple[str, ...]
    fingerprint: str
    kind: Callable[[Any], int]
    held: ValidationSet | None = None
    validate: Callable[[], Validated] | None = None


class PaperTraining:
    """Anomaly exposure on segmentation data sets (paper 3.3)."""

    def start_model(self, recipe: Recipe) -> Lavida:
        """Return the model to train, on the CPU in fp32, configured by the recipe.

        Raises:
            UsageError: there is no such preset.
            WeightsError: the folder cannot be used.
        """
        model = folders.first_model(recipe)
        model = folders.with_projector(model, recipe, folders.projector_options(model, recipe))
        return folders.configured(model, recipe)

    def open_data(self, recipe: Recipe, item: DataChoice, frames: int) -> SegmentationData:
        """Open one data set of a recipe, with clips of so many frames.

        Raises:
            UsageError: the folder is not the data set's.
            DocumentError: a file is damaged.
        """
        return open_choice(item, frames)

    def held_data(self, recipe: Recipe) -> DataChoice:
        """Return the data set to validate on."""
        chosen = recipe.validation
        most = next((item.max_categories for item in recipe.data if item.name == chosen.name), 0)
        return DataChoice(chosen.name, chosen.root, chosen.split, max_categories=most)

    def work(self, recipe: Recipe, model: Lavida, *, processes: int) -> Work:
        """Return the work of a recipe with a model that is set up to train.

        Raises:
            UsageError: a folder is not its data set's, or the model lacks what is trained.
            DocumentError: a file is damaged.
        """
        frames, chosen = model.config.sampling.frames, recipe.validation

        def opened(item: DataChoice, frames: int) -> SegmentationData:
            return self.open_data(recipe, item, frames)

        mixture = mixture_of(recipe, frames=frames, processes=processes, opened=opened)
        step = ExposureStep(
            model,
            weights=weights_of(recipe),
            masks=recipe.model.masks,
            memory=FeatureMemory(model) if recipe.running.remember else None,
            names=recipe.loss.names,
            without_seg=recipe.exposure.without_seg,
        ).train()
        held = ValidationSet(recipe, self.held_data(recipe), frames=frames, opened=opened) if chosen.every else None
        check = None if held is None else lambda: validate(step, held, batch=chosen.batch)
        samples = PlannedSamples(mixture, recipe.schedule.epochs)
        return Work(step, samples, LOSS_NAMES, mixture.fingerprint(), lambda sample: len(sample.frames), held, check)

    def sample_recipe(self, recipe: Recipe) -> Recipe | None:
        """Return a short form of the recipe whose steps are quick to measure; None if its data takes long to open."""
        return None


def weights_of(recipe: Recipe) -> LossWeights:
    """Return the weights of the losses of masks, IoU, score and answer."""
    loss = recipe.loss
    return LossWeights(loss.focal, loss.dice, loss.iou, loss.score, loss.lm)
