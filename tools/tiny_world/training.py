"""Trains small models on the synthetic world: base models first, then the paper's training.

Two tasks replace the pretraining of the public base models:

    pictures    SAM2's image encoder and mask decoder, CLIP's text model: which thing is where in a still
    questions   Qwen2-VL's part: whether a name is true of a clip
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from tools.tiny_world import pictures, questions
from tools.tiny_world.naming import SpokenWorld
from tools.tiny_world.painted import painted
from tools.tiny_world.recipe import SYNTHETIC, TinyDataChoice, TinyRecipe
from tools.tiny_world.world import SyntheticWorld
from vadcli.detectors.lavida.model import Lavida
from vadcli.errors import UsageError
from vadcli.options import cache_folder
from vadcli.train import DataChoice, Recipe, trainer
from vadcli.train.samples import SegmentationData
from vadcli.train.step import FeatureMemory
from vadcli.train.training import PaperTraining, TrainingSetup, configured, first_model, projector_options, with_projector

TIMED_CLIPS = 32
PLACE_STD = 0.02
IMAGE_GAIN = 2.5  # an untrained image encoder returns small values
WORD_STD = 0.5


class TinyTraining(PaperTraining):
    """The training that a `TinyRecipe` describes."""

    def start_model(self, recipe: Recipe) -> Lavida:
        """Return the model to train.

        For the task `pictures`, a preset gets random weights that suit small models.
        """
        recipe = cast(TinyRecipe, recipe)
        chosen, model = recipe.model, first_model(recipe)
        if recipe.task == "pictures" and not chosen.folder:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(recipe.seed)
                _draw_start(model)
        if "pooling" in chosen.without:
            model.mllm.pooling = None
            model.config = replace(model.config, additions=replace(model.config.additions, pooling=False))
        options = projector_options(model, recipe)
        wanted = replace(
            options,
            mask_prompt=(options.mask_prompt or chosen.mask_prompt) and "mask_prompt" not in chosen.without,
            null_key=options.null_key and "null_key" not in chosen.without,
            presence=options.presence and "presence" not in chosen.without,
        )
        return configured(with_projector(model, recipe, wanted), recipe)

    def open_data(self, recipe: Recipe, item: DataChoice, frames: int) -> SegmentationData:
        """Return the synthetic world with the allowed names, or a data set on disk."""
        if item.name != SYNTHETIC:
            return super().open_data(recipe, item, frames)
        item = cast(TinyDataChoice, item)
        world = world_of(cast(TinyRecipe, recipe), item, frames=frames)
        return SpokenWorld(world, item.patterns, name=item.called or world.name) if item.patterns else world

    def validation_data(self, recipe: Recipe) -> DataChoice:
        """Return the data set to validate on, with the same kinds of names as in training."""
        chosen = recipe.validation
        trained = [item for item in cast(TinyRecipe, recipe).data if item.name == chosen.name]
        patterns = [item.patterns for item in trained]
        return TinyDataChoice(
            chosen.name,
            chosen.root,
            chosen.split,
            clips=chosen.clips,
            max_categories=trained[0].max_categories if trained else 0,
            patterns=tuple(dict.fromkeys(chain.from_iterable(patterns))) if all(patterns) else (),
        )

    def work(self, recipe: Recipe, model: Lavida, *, processes: int) -> TrainingSetup:
        """Return the work of a recipe's task; raises UsageError if the model does not fit the task."""
        recipe = cast(TinyRecipe, recipe)
        if recipe.task == "exposure":
            return super().work(recipe, model, processes=processes)
        if len(recipe.data) != 1 or recipe.data[0].name != SYNTHETIC:
            raise UsageError(f"task {recipe.task!r} trains only on the synthetic world", hint="give one [[data]], synthetic")
        world = world_of(recipe, recipe.data[0], frames=model.config.sampling.frames)
        chosen, schedule = recipe.base, recipe.schedule
        kind = pictures.PictureSamples if recipe.task == "pictures" else questions.QuestionSamples
        total = schedule.total_steps * schedule.batch * schedule.accumulation * processes
        samples: Sequence[Any] = kind(world, seed=recipe.seed, total=total, chosen=chosen)
        fingerprint = hashlib.sha256(repr((recipe.task, world.fingerprint(), chosen, recipe.seed)).encode()).hexdigest()
        if recipe.task == "pictures":
            if not model.config.projector.null_key:
                raise UsageError("task 'pictures' needs a projector with a null key", hint="start from a preset that has one")
            step: nn.Module = pictures.PictureStep(model, recipe.loss)
            return TrainingSetup(step, samples, pictures.LOSS_NAMES, fingerprint, lambda sample: 0)
        if not (model.config.additions.sight and model.config.additions.pooling):
            raise UsageError("task 'questions' needs a model with sight and pooling", hint="start from a preset that has them")
        step = questions.QuestionStep(model, recipe.loss, memory=FeatureMemory(model))
        return TrainingSetup(step, samples, questions.LOSS_NAMES, fingerprint, lambda sample: len(sample.frames))

    def sample_recipe(self, recipe: Recipe) -> Recipe | None:
        """Return the recipe with few clips, for timing a step; None if it needs a data set on disk."""
        recipe = cast(TinyRecipe, recipe)
        if any(item.name != SYNTHETIC for item in recipe.data):
            return None
        data = tuple(replace(item, painted=False, clips=TIMED_CLIPS) for item in recipe.data)
        return replace(recipe, data=data, validation=replace(recipe.validation, every=0))


@torch.no_grad()
def _draw_start(model: Lavida) -> None:
    """Draw weights for a model without any training, from torch's current generator.

    The default weights of the libraries are made for large models and long trainings. They are too
    small here: almost no gradient passes through several narrow layers.
    """
    # The embedding of a name is the sum of its words, with large values and equal weights. So a pair of
    # words has a meaning even if it is never shown.
    text, tokenizer = model.text.clip, model.text.tokenizer
    nn.init.normal_(text.embeddings.token_embedding.weight)
    text.embeddings.token_embedding.weight[[tokenizer.bos_token_id, tokenizer.eos_token_id]] = 0
    nn.init.normal_(text.embeddings.position_embedding.weight, std=PLACE_STD)
    attention = text.encoder.layers[0].self_attn
    for part in (attention.q_proj, attention.k_proj):
        nn.init.zeros_(part.weight)  # every token attends to all tokens equally
    for part in (attention.v_proj, attention.out_proj):
        nn.init.eye_(part.weight)
    # Names and image positions get clearly different similarities.
    semantics: Any = model.projector.frame_semantics
    query, key = semantics.attention.q, semantics.attention.k
    for linear, gain in ((semantics.text, 1.0), (semantics.image, IMAGE_GAIN), (query, 1.0), (key, 1.0)):
        nn.init.normal_(linear.weight, std=gain / linear.in_features**0.5)
    # The language model's layers keep the size of their input. A layer that adds to the residual stream is
    # scaled down by the number of such layers.
    language = model.mllm.qwen.model.language_model
    nn.init.normal_(language.embed_tokens.weight, std=WORD_STD)
    for layer in language.layers:
        for name, linear in layer.named_modules():
            if isinstance(linear, nn.Linear):
                adds = name.endswith(("o_proj", "down_proj"))
                shrink = (2 * len(language.layers)) ** 0.5 if adds else 1.0
                nn.init.normal_(linear.weight, std=1 / (shrink * linear.in_features**0.5))
    if model.mllm.sight is not None:
        nn.init.normal_(model.mllm.sight.token.weight, std=1 / model.mllm.sight.token.in_features**0.5)


def world_of(recipe: TinyRecipe, item: TinyDataChoice, *, frames: int) -> SyntheticWorld:
    """Return the synthetic world of a data choice, from the cache folder if it is `painted`."""
    options = replace(recipe.world, frames=frames)
    world = SyntheticWorld(options, seed=recipe.seed, split=item.split, length=item.clips)  # type: ignore[arg-type]
    return painted(world, cache_folder() / "training") if item.painted else world


def tiny_trainer(recipe: TinyRecipe, out: Path, *, device: str | None = None) -> trainer.Trainer:
    """Return the trainer of one stage."""
    return trainer.Trainer(recipe, out, device=device, training=TinyTraining())


def train(recipes: Sequence[TinyRecipe], out: Path, *, device: str | None = None) -> Path:
    """Train all stages of a recipe and return the LAVIDA folder."""
    return trainer.train(recipes, out, device=device, training=TinyTraining())
