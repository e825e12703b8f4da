"""The plan of a training, before it starts: sizes of parts, steps, data, memory and time.

The memory for weights is exact; the memory for activations is an estimate. The time of a small model
is measured with a few real steps. The time of a larger model is estimated from the number of operations.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from vadcli.detectors.lavida import checkpoint
from vadcli.detectors.lavida.checkpoint import load_preset, preset_names
from vadcli.detectors.lavida.model import Lavida
from vadcli.detectors.mllm.compress import kept_count
from vadcli.detectors.mllm.qwen import QWEN_PX
from vadcli.train.materials import Mixture
from vadcli.train.recipe import Recipe
from vadcli.train.state import part_of, set_up
from vadcli.train.trainer import Trainer
from vadcli.train.training import PaperTraining, configured
from vadcli.types.text import size_text

SMALL = 50_000_000
"""A model with more parameters than this is not measured; the time of its steps is estimated."""
TRIED = 2  # number of steps that are run to measure the time of a step
RATE = 1e14
"""Operations per second that one data-centre GPU can sustain in bf16; for large models."""


def time_text(plan: TrainingPlan, training: PaperTraining | None = None) -> str:
    """Return the time of all steps as text for a person."""
    recipe = plan.recipe
    steps, samples = recipe.schedule.total_steps, recipe.schedule.batch * recipe.schedule.accumulation
    training = training or PaperTraining()
    brief = training.sample_recipe(recipe)
    if brief is not None and sum(size.total for size in plan.sizes) <= SMALL:
        taken = []
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(brief, Path(folder), training=training)
            for step in range(TRIED):
                some = [trainer.work.samples[step * samples + place] for place in range(samples)]
                began = time.perf_counter()
                trainer.try_step(some)
                taken.append(time.perf_counter() - began)
        seconds = min(taken)
        return f"time:   {seconds:.2f} s per step here (fastest of {TRIED}), about {_long(seconds * steps)} in total\n"
    operations = _step_operations(recipe, training)
    told = f"time:   about {operations:.1e} operations per step and process, without data loading:"
    return f"{told}\n        {_long(operations * steps / RATE)} in total at 1e14 operations per second\n"


def _step_operations(recipe: Recipe, training: PaperTraining) -> float:
    """Return an estimate of the floating-point operations of one optimiser step of one process.

    The operations of the image encoder are counted. A forward pass of the language model or the
    vision tower is estimated as two operations per weight and token.
    """
    model = _laid_out(recipe, training).to("meta")
    frames, side = model.config.sampling.frames, model.masks.image_size
    with FlopCounterMode(display=False) as counter:
        model.masks.encode(torch.empty(frames, 3, side, side, device="meta"))
    visual = (frames + 1) // 2 * (model.config.pixels.train_max_px // QWEN_PX**2)

    def weights(start: str) -> int:
        return sum(value.numel() for name, value in model.named_parameters() if name.startswith(start))

    tower = 0 if model.mllm.sight is not None else 2 * weights("mllm.qwen.model.visual.") * 4 * visual
    tokens = PROMPT_TOKENS + kept_count(visual, model.config.compression.ratio)
    # Each of these needs as many operations as a forward pass: the gradients of activations, the gradients
    # of trained weights, and the second forward pass of gradient checkpointing.
    passes = 2 + ("language_model" in recipe.model.train) + recipe.running.gradient_checkpointing
    language = 2 * passes * weights("mllm.qwen.model.language_model.layers.") * tokens
    seen = counter.get_total_flops() * (3 if "image_encoder" in recipe.model.train else 1)
    return float((seen + tower + language) * recipe.schedule.batch * recipe.schedule.accumulation)


def _long(seconds: float) -> str:
    """Return a duration as text for a person."""
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


PROMPT_TOKENS = 200
"""Approximate number of text tokens in a prompt with 30 names; the visual tokens of the clip are not included."""
ADAM_BYTES = 16
"""Bytes per trained weight in fp32: the weight, its gradient and AdamW's two moments."""


@dataclass(frozen=True)
class PartSize:
    """The number of all parameters of one part, and the number of its trained parameters."""

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
        activations_bytes: estimated memory for the language model's activations of one batch. The
            encoders, the decoder and the libraries need additional memory.
    """

    recipe: Recipe
    sizes: tuple[PartSize, ...]
    weights_bytes: int
    activations_bytes: int


def plan_of(recipe: Recipe, training: PaperTraining | None = None) -> TrainingPlan:
    """Return the sizes of a recipe's training, and the memory that it needs.

    A model with the sizes of a preset is not loaded. Other models are read from disk.

    Raises:
        UsageError: the preset or a part does not exist.
        WeightsError: the folder to start from cannot be used.
    """
    model = _laid_out(recipe, training or PaperTraining())
    set_up(model, recipe.model.train, masks=recipe.model.masks, freeze=recipe.model.freeze)
    found: dict[str, list[int]] = {}
    for name, value in model.named_parameters():
        size = found.setdefault(part_of(name), [0, 0])
        size[0] += value.numel()
        size[1] += value.numel() * value.requires_grad
    sizes = tuple(PartSize(name, *counts) for name, counts in found.items())
    narrow = 4 if recipe.running.precision == "fp32" else 2
    weights = sum(size.trained * ADAM_BYTES + (size.total - size.trained) * narrow for size in sizes)
    config = model.mllm.qwen.config.text_config
    visual = (model.config.sampling.frames + 1) // 2 * (model.config.pixels.train_max_px // QWEN_PX**2)
    tokens = recipe.schedule.batch * (PROMPT_TOKENS + kept_count(visual, model.config.compression.ratio))
    # Per layer, each token needs about 16 vectors of the model's width and 3 of its inner width. With gradient
    # checkpointing, they are kept for one layer only, together with the input of every layer.
    layer, layers = 16 * config.hidden_size + 3 * config.intermediate_size, int(config.num_hidden_layers)
    kept = layer + layers * config.hidden_size if recipe.running.gradient_checkpointing else layers * layer
    return TrainingPlan(recipe, sizes, weights, int(tokens * kept * narrow))


def plan_text(plan: TrainingPlan, mixture: Mixture | None = None) -> str:
    """Return the plan as text for a person, one line per item; lists the data if `mixture` is given."""
    recipe, schedule = plan.recipe, plan.recipe.schedule
    steps, samples = schedule.total_steps, schedule.batch * schedule.accumulation
    lines = [
        f"{recipe.name}, {recipe.task}: {steps:,} steps of {samples} samples per process ({schedule.epochs} epochs)",
        "",
    ]
    lines.append(f"{'part':<16}{'parameters':>16}{'trained':>16}")
    lines += [f"{size.name:<16}{size.total:>16,}{size.trained:>16,}" for size in plan.sizes]
    total, trained = (sum(getattr(size, kind) for size in plan.sizes) for kind in ("total", "trained"))
    lines += [f"{'total':<16}{total:>16,}{trained:>16,}", ""]
    lines.append(f"memory: {size_text(plan.weights_bytes)} for weights, gradients and AdamW's moments, and about")
    lines.append(
        f"        {size_text(plan.activations_bytes)} for the language model's activations; encoders and decoder need more"
    )
    if mixture is not None:
        lines += ["", f"{'data':<20}{'clips':>10}{'per epoch':>10}"]
        for sampler, quota in zip(mixture.samplers, mixture.quotas, strict=True):
            lines.append(f"{sampler.data.name:<20}{len(sampler):>10,}{quota:>10,}")
    return "\n".join(lines) + "\n"


def _laid_out(recipe: Recipe, training: PaperTraining) -> Lavida:
    """Return the recipe's model; it takes no memory if it has the sizes of a preset."""
    name = recipe.model.preset
    if recipe.model.folder:
        name = checkpoint.read_config(Path(recipe.model.folder).expanduser()).name
    if name not in preset_names():
        return training.start_model(recipe)
    config = replace(load_preset(name), random_gain=None)
    return configured(checkpoint.random_model(config, device="meta"), recipe)
