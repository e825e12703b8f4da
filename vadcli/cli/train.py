"""`vadcli train`: a recipe to a LAVIDA folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vadcli.cli._output import log, set_up_talk
from vadcli.options import TalkOptions


def train(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="The recipe.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Log, checkpoints and the model.")] = Path("training"),
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and stop.")] = False,
) -> None:
    """Train LAVIDA by a recipe; a training that was interrupted goes on from its newest checkpoint.

    Needs the packages of `pip install "vadcli[train]"`. Several processes, one a GPU or one a core, are started by
    `torchrun --nproc-per-node N -m vadcli train ...`.

    \b
    Examples:
      vadcli train --config recipes/lavida-tiny.toml --dry-run
      vadcli train --config recipes/lavida-tiny.toml --out training
    """  # noqa: D301
    from vadcli.train.recipe_file import read_recipes

    set_up_talk(TalkOptions())
    recipes = read_recipes(config)
    if dry_run:
        from vadcli.train.plan import plan_of, plan_text, time_text

        for plan in map(plan_of, recipes):
            typer.echo(plan_text(plan) + time_text(plan))
        return
    from vadcli.train import trainer as series

    folder = series.train(recipes, out, device=None if device == "auto" else device)
    log.info("trained: vadcli scan ./footage --detector lavida --model %s", folder)
