"""`vadcli embed` stores vectors, `vadcli learn` trains a head on them, and `vadcli train` trains LAVIDA."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vadcli.cli._options import Out, with_options
from vadcli.cli._talk import emit_json, log, put, set_up_talk
from vadcli.errors import UsageError
from vadcli.options import DEFAULT_OUT, EmbedOptions, LearnOptions, TalkOptions
from vadcli.types.text import how_many

if TYPE_CHECKING:
    from vadcli.learning import Learned


@with_options(LearnOptions, section="learn")
def learn(*, out: Out = DEFAULT_OUT, options: LearnOptions) -> None:
    """Train a head on your own labels, and test it on other videos. Reads stored vectors; no video is decoded.

    \b
    Examples:
      vadcli learn vadcli-out --review review.json
      vadcli learn vadcli-out --review review.json --to my-head
      vadcli learn vadcli-out --labels videos.csv --head rtfm --to my-head
    """  # noqa: D301
    from vadcli.learning import train, write

    learned = train(out, options)
    for note in learned.notes:
        log.info("%s", note)
    if options.json:
        emit_json({"type": "head", **asdict(learned.card), "untested": learned.untested or None})
    else:
        _print_head(learned, options)
    folder = write(learned, options)
    if folder is None:
        figures = learned.card.figures
        better = "is" if figures is not None and figures.is_better else "may not be"
        log.info("the head %s better than the detector alone; --to DIR writes it", better)
    else:
        log.info("%s: written", folder)
        log.info("next: vadcli events %s --head %s", shlex.quote(str(out)), shlex.quote(str(folder)))


Paths = Annotated[list[Path] | None, typer.Argument(metavar="PATHS...", readable=False, help="Files and folders of footage.")]


@with_options(EmbedOptions, section="embed")
def embed(*, paths: Paths = None, options: EmbedOptions) -> None:
    """Store one vector per sampled frame, for heads, search and your own programs. Stores no scores.

    \b
    Examples:
      vadcli embed ./footage --out vadcli-out
      vadcli embed ./footage --encoder clip-b32 --out second-encoder
      vadcli embed ./footage --npy features
    """  # noqa: D301
    from vadcli.embedding import embed_all

    done = skipped = problems = 0
    for result in embed_all(paths or [], options):
        if options.json:
            emit_json(result.to_json())
        if result.problem:
            problems += 1
            log.error("%s: %s", result.video, result.problem)
        elif not result.skipped:
            log.info("%s: %s", result.video, how_many(result.vectors, "vector"))
        done += bool(result.file) and not result.skipped
        skipped += result.skipped
    log.info("%s embedded, %d already; in %s", how_many(done, "video"), skipped, options.out)
    if problems:
        raise typer.Exit(3)


def _print_head(learned: Learned, options: LearnOptions) -> None:
    card, figures = learned.card, learned.card.figures
    noun = "event" if options.review is not None else "video"
    true, false, videos = how_many(card.true, f"true {noun}"), card.false, how_many(card.videos, "video")
    put(f"{card.kind} head: {true} and {false} false ones, in {videos}")
    if figures is None:
        put(f"not tested: {learned.untested}")
        return
    put(f"on videos that it was not trained on, at a threshold that keeps {figures.recall:.0%} of the true {noun}s:")
    put("               false alarms per hour    AUC")
    put(f"detector alone {figures.detector_per_hour:21.3g} {figures.detector_auc:6.3f}")
    put(f"with the head  {figures.head_per_hour:21.3g} {figures.head_auc:6.3f}")
    put(f"change         {figures.change_per_hour:+21.3g}   95 %: {figures.low:+.3g} to {figures.high:+.3g}")


def train(
    recipe: Annotated[Path | None, typer.Option("--recipe", metavar="FILE", help="The recipe: a TOML file.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Log, checkpoints and the model.")] = Path("training"),
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and stop.")] = False,
    config: Annotated[Path | None, typer.Option("--config", hidden=True, help="The old name of --recipe.")] = None,
) -> None:
    """Train LAVIDA with a recipe. An interrupted training continues from its newest checkpoint.

    Needs the packages of `pip install "vadcli[train]"`. To use several processes, one per GPU or core, run
    `torchrun --nproc-per-node N -m vadcli train ...`.

    \b
    Examples:
      vadcli train --recipe recipes/lavida-7b.toml --dry-run
      vadcli train --recipe recipes/lavida-7b.toml --out training
    """  # noqa: D301
    from vadcli.train.recipe import Recipe, read_recipes

    set_up_talk(TalkOptions())
    chosen = recipe or config
    if chosen is None:
        raise UsageError("vadcli train needs a recipe", hint="name a TOML file with --recipe")
    try:
        recipes = read_recipes(chosen, Recipe)
    except UsageError as error:
        if chosen.is_file() and '"synthetic"' in chosen.read_text(encoding="utf-8", errors="replace"):
            hint = f"this recipe is for the synthetic world: in a checkout, run python -m tools.tiny_world --recipe {chosen}"
            raise UsageError(error.message, hint=hint) from error
        raise
    if dry_run:
        from vadcli.train.plan import plan_of, plan_text, time_text

        for plan in map(plan_of, recipes):
            put(plan_text(plan) + time_text(plan))
        return
    from vadcli.train import trainer

    folder = trainer.train(recipes, out, device=None if device == "auto" else device)
    log.info("trained; next: vadcli scan ./footage --detector lavida --model %s", folder)
