"""Training on a GPU: every precision, interruptions, and one step with real sizes."""

from __future__ import annotations

import csv
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.small import sample, small_model
from tools.tiny_world.recipe import TinyRecipe
from tools.tiny_world.training import tiny_trainer
from vadcli.detectors.lavida import checkpoint
from vadcli.detectors.lavida.checkpoint import load_preset
from vadcli.train import Recipe, parse_recipe
from vadcli.train import state as parts
from vadcli.train.step import ExposureStep


def recipe_of(start: Path, precision: str, *, steps: int, batch: int) -> Recipe:
    return parse_recipe(
        {
            "name": "small",
            "model": {"folder": str(start), "masks": 3, "compression": 0.5},
            "data": [{"name": "synthetic", "clips": 20, "max_categories": 4}],
            "world": {"size_px": 64},
            "schedule": {"epochs": 1, "steps": steps, "batch": batch, "accumulation": 2, "rate": 1e-3, "warm_up_steps": 2},
            "running": {"checkpoint_every": 2, "precision": precision, "gradient_checkpointing": True},
        },
        TinyRecipe,
    )


def losses_of(out: Path) -> np.ndarray:
    with (out / "log.csv").open(newline="") as file:
        return np.array([[float(value) for value in row[1:-2]] for row in list(csv.reader(file))[1:]])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_training_goes_on_after_a_stop(device: torch.device, tmp_path: Path, precision: str) -> None:
    from accelerate.state import AcceleratorState

    if device.type == "cpu" and precision == "fp16":
        pytest.skip("there is no fp16 training on a CPU")
    AcceleratorState._reset_state(True)
    place = "cpu" if device.type == "cpu" else None
    start = tmp_path / "start"
    checkpoint.save(small_model(), start, trained=False)
    steps, done_first, batch = (3, 2, 1) if device.type == "cpu" else (6, 3, 2)
    recipe = recipe_of(start, precision, steps=steps, batch=batch)
    whole = tiny_trainer(recipe, tmp_path / "whole", device=place)
    assert whole.work.module.device.type == device.type
    whole.run()
    broken = tiny_trainer(recipe, tmp_path / "broken", device=place)
    train, done = broken._train, []

    def stop(samples: object, rate: float) -> dict[str, float]:
        if len(done) == done_first:
            raise KeyboardInterrupt
        done.append(1)
        return train(samples, rate)  # type: ignore[arg-type]

    broken._train = stop  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    tiny_trainer(recipe, tmp_path / "broken", device=place).run()
    wanted, got = losses_of(tmp_path / "whole"), losses_of(tmp_path / "broken")
    print(f"{precision}: largest difference {np.abs(wanted - got).max():.2e}")
    np.testing.assert_allclose(got, wanted, rtol=2e-2, atol=1e-3)
    assert np.isfinite(wanted).all()


@pytest.mark.cuda_only
def test_a_step_of_the_real_sizes_fits(device: torch.device) -> None:
    config = replace(load_preset("lavida-7b"), random_gain=None)
    model = checkpoint.random_model(config, device=device, dtype=torch.bfloat16)
    parts.set_up(model, parts.PAPER, masks=3)
    parts.set_precision(model, torch.bfloat16)
    parts.compress_by(model, 0.5)
    parts.checkpoint_activations(model)
    step = ExposureStep(model.to(device), masks=3).train()
    optimizer = torch.optim.AdamW([value for _, value in parts.trained_parameters(step)], lr=1e-5)
    batch = [sample("red block", "dog", frames=8, size=(480, 854)), sample("smoke", anomalous=False, frames=8, size=(480, 854))]
    torch.cuda.reset_peak_memory_stats(device)
    for number in range(3):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            losses = step(batch)
        losses["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize(device)
        seconds, peak = time.perf_counter() - began, torch.cuda.max_memory_allocated(device) / 2**30
        print(f"lavida-7b step {number}: {seconds:.2f} s, peak {peak:.1f} GiB, loss {float(losses['total']):.3f}")
        assert torch.isfinite(losses["total"])
