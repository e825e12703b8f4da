"""A training in stages: each starts from the folder that the one before it made.

    OUT/1-pictures/, OUT/2-questions/, …   a stage's own folder, as `trainer` has it
    OUT/model/                             the LAVIDA folder, there when all are done

A stage that is done is not begun again, so an interrupted series goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vadcli.train.recipe import Recipe
from vadcli.train.state import write_whole
from vadcli.train.trainer import Trainer


def train(recipes: Sequence[Recipe], out: Path, *, device: str | None = None) -> Path:
    """Train all stages; the LAVIDA folder.

    Args:
        recipes: the stages in order.
        out: their folder.
        device: as in `Trainer`.

    Raises:
        as `Trainer` and `Trainer.run`.
    """
    if len(recipes) == 1:
        return Trainer(recipes[0], out, device=device).run()
    made: Path | None = None
    for number, recipe in enumerate(recipes, start=1):
        folder = out / f"{number}-{recipe.task}"
        stage = recipe if made is None else behind(recipe, made)
        made = folder / "model"
        if not made.is_dir():
            Trainer(stage, folder, device=device).run()
    from accelerate import PartialState  # the trainer has said so where it is missing

    assert made is not None
    last, model = made, out / "model"
    processes = PartialState(cpu=not torch.cuda.is_available())
    if processes.is_main_process and not model.is_dir():
        write_whole(model, lambda folder: _copy(last, folder))
    processes.wait_for_everyone()
    return model


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


def behind(recipe: Recipe, made: Path) -> Recipe:
    """A stage's recipe, to start from a folder."""
    return replace(recipe, model=replace(recipe.model, preset="", folder=str(made)))
