"""Runs trainings in processes that start quickly, because torch is already imported."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import torch

from tests.commands import WITH_TORCH, Fork
from tools.tiny_world.recipe import TinyRecipe
from vadcli.train import Recipe, parse_recipe


def train(*stages: Recipe, out: Path, **environment: str) -> Fork:
    """Start a training of one or several stages on the CPU."""
    arguments = [str(out), *(json.dumps(stage.to_json()) for stage in stages)]
    given = {**os.environ, **environment, "ACCELERATE_USE_CPU": "true"}
    return WITH_TORCH.start(f"{__name__}:run", arguments, cwd=Path.cwd(), environment=given, stdin=None)


def train_together(*stages: Recipe, out: Path, **environment: str) -> list[Fork]:
    """Start one training in two processes, as torchrun does."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shared = {**environment, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [train(*stages, out=out, **shared, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]


def run() -> None:
    """Run the training; this function runs in the new process."""
    from tools.tiny_world import training

    torch.set_num_threads(1)
    out, *stages = sys.argv
    recipes = tuple(parse_recipe(json.loads(stage), TinyRecipe) for stage in stages)
    if len(recipes) > 1:
        training.train(recipes, Path(out), device="cpu")
    else:
        training.tiny_trainer(recipes[0], Path(out), device="cpu").run()
