"""How long a training would take: measured on a few real steps where they are quick, else counted and divided."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from vadcli.detectors.lavida.compress import kept_count
from vadcli.detectors.lavida.config import QWEN_PX
from vadcli.detectors.lavida.model import Lavida
from vadcli.train.plan import PROMPT_TOKENS, TrainingPlan, laid_out
from vadcli.train.recipe import SYNTHETIC, Recipe
from vadcli.train.trainer import Trainer

SMALL = 50_000_000
"""Parameters up to which steps are tried."""
TRIED = 2
CLIPS = 32
RATE = 1e14
"""Operations a second for the figure of a large model: what one data-centre GPU sustains in bf16 with care."""


def time_text(plan: TrainingPlan) -> str:
    """A line about the time of all steps, for a person."""
    recipe = plan.recipe
    steps = recipe.schedule.total_steps
    synthetic = all(item.name == SYNTHETIC for item in recipe.data)
    if synthetic and sum(size.total for size in plan.sizes) <= SMALL:
        seconds = step_seconds(recipe)
        return f"time:   {seconds:.2f} s a step here, the quicker of {TRIED}: about {_long(seconds * steps)} in all\n"
    operations = step_operations(recipe)
    told = f"time:   about {operations:.1e} operations a step and process, data loading apart:"
    return f"{told}\n        {_long(operations * steps / RATE)} in all at 1e14 a second\n"


def step_seconds(recipe: Recipe) -> float:
    """Seconds of one optimiser step of this process, the quickest of a few on clips that are painted for it.

    Raises:
        UsageError: as `Trainer`.
    """
    data = tuple(replace(item, painted=False, clips=CLIPS) for item in recipe.data)
    brief = replace(recipe, data=data, validation=replace(recipe.validation, every=0))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(brief, Path(folder))
        samples = brief.schedule.batch * brief.schedule.accumulation
        taken = []
        for step in range(TRIED):
            some = [trainer.job.samples[step * samples + place] for place in range(samples)]
            began = time.perf_counter()
            trainer.try_step(some)
            taken.append(time.perf_counter() - began)
        return min(taken)


def step_operations(recipe: Recipe) -> float:
    """Floating-point operations of one process's optimiser step, about.

    The image encoder's are counted; the language model's and the vision tower's are two a weight and token on the way there,
    and as many again for each kind of gradient on the way back.
    """
    model = laid_out(recipe).to("meta")
    frames, side = model.config.sampling.frames, model.masks.image_size
    with FlopCounterMode(display=False) as counter:
        model.masks.encode(torch.empty(frames, 3, side, side, device="meta"))
    visual = (frames + 1) // 2 * (model.config.pixels.train_max_px // QWEN_PX**2)
    tower = 0 if model.mllm.sight is not None else 2 * _weights(model, "mllm.qwen.model.visual.") * 4 * visual
    tokens = PROMPT_TOKENS + kept_count(visual, model.config.compression.ratio)
    passes = 2 + ("language_model" in recipe.model.train) + recipe.running.gradient_checkpointing
    language = 2 * passes * _weights(model, "mllm.qwen.model.language_model.layers.") * tokens
    seen = counter.get_total_flops() * (3 if "image_encoder" in recipe.model.train else 1)
    return float((seen + tower + language) * recipe.schedule.batch * recipe.schedule.accumulation)


def _weights(model: Lavida, start: str) -> int:
    return sum(value.numel() for name, value in model.named_parameters() if name.startswith(start))


def _long(seconds: float) -> str:
    """A duration for a person."""
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
