"""The starting model, the samples, the validation and the resulting folder of a training.

`PaperTraining` is the paper's training (3.3 and 3.9). A subclass can use other data, another
starting model or another task, as `tools/tiny_world` does. `write_model` stores the trained model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import vadcli
from vadcli import weights
from vadcli.detectors.lavida import checkpoint
from vadcli.detectors.lavida.checkpoint import load_preset
from vadcli.detectors.lavida.model import Lavida
from vadcli.detectors.lavida.projector import ProjectorOptions, build_projector
from vadcli.errors import UsageError
from vadcli.metrics.frame import FrameSet, frame_auc
from vadcli.options import cache_folder
from vadcli.train import DataChoice, Recipe
from vadcli.train.datasets import ClipRule, open_data
from vadcli.train.samples import (
    AnomalyExposureSampler,
    ExposureSample,
    Mixture,
    PlannedSamples,
    SegmentationData,
    ValidationSet,
)
from vadcli.train.state import LORA, save_trained
from vadcli.train.step import LOSS_NAMES, ExposureStep, FeatureMemory


@dataclass(frozen=True)
class TrainingSetup:
    """The module, the samples and the validation of one training run.

    Attributes:
        module: takes a batch of samples of the same kind, and returns losses by name. The loss to minimise has
            the name `total`.
        samples: all samples, in the order of their use.
        names: names of the losses in the log.
        fingerprint: fingerprint of the samples.
        kind: returns the kind of a sample, such as its number of frames; all samples of a batch have the same kind.
        validation_set: the samples to validate on; None without validation.
        validate: measures the model on `validation_set`; None without validation.
    """

    module: nn.Module
    samples: Sequence[Any]
    names: tuple[str, ...]
    fingerprint: str
    kind: Callable[[Any], int]
    validation_set: ValidationSet | None = None
    validate: Callable[[], Validated] | None = None


class PaperTraining:
    """The paper's training: anomaly exposure on segmentation data sets (paper 3.3)."""

    def start_model(self, recipe: Recipe) -> Lavida:
        """Return the model to train, on the CPU in fp32, with the recipe's values in its config.

        Raises:
            UsageError, WeightsError: as in `first_model`.
        """
        model = first_model(recipe)
        model = with_projector(model, recipe, projector_options(model, recipe))
        return configured(model, recipe)

    def open_data(self, recipe: Recipe, item: DataChoice, frames: int) -> SegmentationData:
        """Open one data set of a recipe, with `frames` frames per clip.

        Raises:
            UsageError, DocumentError: as in `datasets.open_data`.
        """
        root, cache = Path(item.root).expanduser(), cache_folder() / "training"
        return open_data(item.name, root, split=item.split, rule=ClipRule(frames=frames), cache=cache)

    def sampler(self, recipe: Recipe, item: DataChoice, frames: int) -> AnomalyExposureSampler:
        """Return the sampler of one data set, with `frames` frames per clip.

        Raises:
            UsageError, DocumentError: as in `datasets.open_data` and `AnomalyExposureSampler`.
        """
        data = self.open_data(recipe, item, frames)
        return AnomalyExposureSampler(data, recipe.exposure, recipe.seed, max_categories=item.max_categories)

    def mixture(self, recipe: Recipe, *, frames: int, processes: int = 1) -> Mixture:
        """Return the mixture of the recipe's data sets, with enough samples for the steps of an epoch.

        Args:
            recipe: recipe with the data sets and the exposure options.
            frames: T, frames per clip of a video.
            processes: number of processes that train together, each with its own batches.
        """
        schedule = recipe.schedule
        parts = [(self.sampler(recipe, item, frames), item.weight) for item in recipe.data]
        return Mixture(parts, schedule.steps * schedule.batch * schedule.accumulation * processes, recipe.seed)

    def validation_data(self, recipe: Recipe) -> DataChoice:
        """Return the data set to validate on, with the `max_categories` of its training split."""
        chosen = recipe.validation
        most = next((item.max_categories for item in recipe.data if item.name == chosen.name), 0)
        return DataChoice(chosen.name, chosen.root, chosen.split, max_categories=most)

    def work(self, recipe: Recipe, model: Lavida, *, processes: int) -> TrainingSetup:
        """Return the `TrainingSetup` of a training: its module, samples and validation.

        Args:
            recipe: recipe of the training.
            model: the model that `state.set_up` has prepared.
            processes: number of processes that train together.

        Raises:
            UsageError: a data set is missing in its folder, or the recipe sets `remember` and trains the image encoder.
            DocumentError: a file is damaged.
        """
        frames, chosen = model.config.sampling.frames, recipe.validation
        mixture = self.mixture(recipe, frames=frames, processes=processes)
        step = ExposureStep(
            model,
            weights=recipe.loss,
            masks=recipe.model.masks,
            memory=FeatureMemory(model) if recipe.running.remember else None,
            without_seg=recipe.exposure.without_seg,
        ).train()
        samples = PlannedSamples(mixture, recipe.schedule.epochs)
        work = TrainingSetup(step, samples, LOSS_NAMES, mixture.fingerprint(), lambda sample: len(sample.frames))
        if not chosen.every:
            return work
        validation_set = ValidationSet(self.sampler(recipe, self.validation_data(recipe), frames), count=chosen.clips)
        measure = partial(validate, step, validation_set, batch=chosen.batch)
        return replace(work, validation_set=validation_set, validate=measure)

    def sample_recipe(self, recipe: Recipe) -> Recipe | None:
        """Return a recipe with little data that measures the time of a step; None if the time is only estimated."""
        return None


@dataclass(frozen=True)
class Validated:
    """Results of one validation.

    Attributes:
        frame_auc: ROC-AUC over all frames; None if all frames are of one class.
        mask_iou: mean IoU of the masks over all frames that show an anomaly, at the size of the frame. None if
            no frame shows an anomaly.
        frames: number of frames.
    """

    frame_auc: float | None
    mask_iou: float | None
    frames: int


def validate(step: ExposureStep, samples: Sequence[ExposureSample], *, batch: int) -> Validated:
    """Return the frame AUC and the mask IoU of samples that are scored as in a scan.

    Afterwards, the model is in evaluation mode. No random numbers are drawn, so a validation does not change the training.

    Args:
        step: the model with its losses.
        samples: the samples to score; they are read one batch at a time.
        batch: samples per batch.
    """
    step.eval()
    scores, labels, ious = [], [], []
    for start in range(0, len(samples), batch):
        read = [samples[place] for place in range(start, min(start + batch, len(samples)))]
        for count in sorted({len(sample.frames) for sample in read}):
            equally_long = [sample for sample in read if len(sample.frames) == count]
            output = step.judge(equally_long)
            for sample, logit, mask in zip(equally_long, output.object_logit, output.mask_logit, strict=True):
                scores.append(logit.float().cpu().numpy())
                labels.append(sample.labels)
                ious += _ious(mask, sample)
    estimate = frame_auc(FrameSet.of(scores, labels))
    return Validated(estimate.value, float(np.mean(ious)) if ious else None, sum(map(len, labels)))


def _ious(mask: torch.Tensor, sample: ExposureSample) -> list[float]:
    """Return the IoU of each frame whose label is True. `mask` has the mask logits (T, h, w) of the clip."""
    size = sample.masks.shape[1:]
    wide = F.interpolate(mask[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]
    predicted, true = (wide > 0).cpu().numpy(), sample.masks
    common, either = (predicted & true).sum(axis=(1, 2)), (predicted | true).sum(axis=(1, 2))
    return [float(common[frame] / either[frame]) for frame in np.flatnonzero(sample.labels)]


def first_model(recipe: Recipe) -> Lavida:
    """Return the model of the recipe's folder, or of its preset with random weights.

    The model is on the CPU in fp32. Random weights are drawn from the recipe's seed.

    Raises:
        UsageError: the preset does not exist, or new adapters are to be trained and the folder already has adapters.
        WeightsError: the folder cannot be used.
    """
    chosen = recipe.model
    if chosen.folder:
        base = Path(chosen.folder).expanduser()
        if LORA in chosen.train and (base / checkpoint.ADAPTERS).is_dir():
            raise UsageError(
                f"{base}: already has adapters", hint="start from a folder without lora/, or leave lora out of `train`"
            )
        model = checkpoint.load(base, allow_untrained=True)
    else:
        # Training needs the usual initialisation of each part, not the large random weights of a demo model.
        config = replace(load_preset(chosen.preset), random_gain=None, seed=recipe.seed)
        model = checkpoint.random_model(config, seed=recipe.seed)
        # SAM2's video memory has untrained random weights. A scan must not use these weights, so they are not stored.
        model.masks.has_memory = False  # type: ignore[attr-defined]
    return model


def projector_options(model: Lavida, recipe: Recipe) -> ProjectorOptions:
    """Return the projector options of the model. `projector` and `queries` of the recipe replace them."""
    chosen, options = recipe.model, model.config.projector
    return replace(options, kind=chosen.projector or options.kind, queries=chosen.queries or options.queries)


def with_projector(model: Lavida, recipe: Recipe, wanted: ProjectorOptions) -> Lavida:
    """Return the model with a projector that has the options `wanted`.

    If the recipe sets a kind or a number of queries, the projector gets random weights from the recipe's seed.
    Otherwise all tensors of the old projector that also exist in the new one are copied.
    """
    drawn = bool(recipe.model.projector or recipe.model.queries)
    if wanted == model.config.projector and not drawn:
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        projector = build_projector(
            wanted, llm_width=model.mllm.width, text_width=model.text.width, image_width=model.masks.width
        )
    if not drawn:
        projector.load_state_dict(model.projector.state_dict(), strict=False)
    model.projector = projector
    model.config = replace(model.config, projector=wanted)
    return model


def configured(model: Lavida, recipe: Recipe) -> Lavida:
    """Put the recipe's name, compression, adapters and frame areas into the model's config."""
    chosen, config = recipe.model, model.config
    low, high = chosen.train_px or (config.pixels.train_min_px, config.pixels.train_max_px)
    model.config = replace(
        config,
        name=recipe.name,
        compression=replace(config.compression, ratio=chosen.compression, method=chosen.method),
        lora=recipe.lora,
        pixels=replace(config.pixels, train_min_px=low, train_max_px=high),
    )
    return model


def write_model(
    model: Lavida, recipe: Recipe, folder: Path, sources: Mapping[str, Any], *, start: Callable[[Recipe], Lavida]
) -> None:
    """Write the LAVIDA folder of a trained model; the same training gives the same bytes.

    If the recipe trains adapters, the base models come from the starting model, and only the trained weights are
    written. Otherwise all weights of the model are written.

    Args:
        model: the model after training, with its adapters.
        recipe: the recipe of the training.
        folder: the folder to write.
        sources: facts about this stage for config.json, such as the number of steps. Facts about earlier stages are
            kept.
        start: makes the starting model again, from the recipe.
    """
    before = model.config.sources
    stages = [*before.get("training", []), {"vadcli": vadcli.__version__, "recipe": recipe.without_paths(), **sources}]
    model.config = replace(model.config, sources={**before, "training": stages}, trained=True)
    if LORA not in recipe.model.train:
        checkpoint.save(model, folder, trained=True)
        return
    if recipe.model.folder:
        base = Path(recipe.model.folder).expanduser()
        for part in checkpoint.PARTS:
            shutil.copytree(base / part, folder / part)
    else:
        checkpoint.save(start(recipe), folder, trained=False)
    save_trained(model, folder)
    path = folder / "sam2" / "config.json"
    sam2 = json.loads(path.read_text(encoding="utf-8"))
    decoder = model.masks.sam2.config.mask_decoder_config  # type: ignore[attr-defined]
    sam2.setdefault("mask_decoder_config", {})["dynamic_multimask_via_stability"] = decoder.dynamic_multimask_via_stability
    path.write_text(json.dumps(sam2, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    checkpoint.write_config(model.config, folder)
    weights.write_checksums(folder)
