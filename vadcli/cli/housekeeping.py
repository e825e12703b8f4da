"""The commands `vadcli clips`, which keeps events as files, and `vadcli prune`, which removes old results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vadcli.cli._shared import emit_json, log, set_up_talk, with_options
from vadcli.options import DEFAULT_OUT, ClipsOptions, PruneOptions
from vadcli.types.media import how_many, size_text

Out = Annotated[Path, typer.Argument(metavar="[OUT]", help="The scan's output folder.")]


@with_options(ClipsOptions, section="clips")
def clips(*, out: Out = DEFAULT_OUT, options: ClipsOptions) -> None:
    """Cut every event out of its footage, in original quality and with sound. This is quick, because nothing is encoded.

    \b
    Examples:
      vadcli clips vadcli-out --since 24h
      vadcli clips vadcli-out --to evidence --before 10s --after 10s --camera "gate*" --container same
    """  # noqa: D301
    from vadcli.clipping import clip_all

    set_up_talk(options)
    made, skipped, problems = 0, 0, 0
    for result in clip_all(out, options):
        if options.json:
            emit_json({"type": "clip", **result.to_json()})
        if result.file and not result.skipped:
            made += 1
            log.info("%s: event %d: %s", result.video, result.event, result.file)
        skipped += result.skipped
        if result.problem:
            problems += 1
            log.error("%s: %s", result.video, result.problem)
    log.info("%s cut, %d cut already; in %s", how_many(made, "clip"), skipped, options.to or out / "clips")
    if problems:
        raise typer.Exit(3)


@with_options(PruneOptions, section="prune")
def prune(*, out: Out = DEFAULT_OUT, options: PruneOptions) -> None:
    """Remove results of videos that no longer exist or are too old, and files that belong to no video. Keeps all footage.

    \b
    Examples:
      vadcli prune vadcli-out --dry-run
      vadcli prune vadcli-out --older-than 90d
      vadcli prune vadcli-out --no-missing --older-than 30d --include "gate/*"
    """  # noqa: D301
    from vadcli.pruning import prune_all

    set_up_talk(options)
    done = prune_all(out, options)
    for item in done.removed:
        if options.json:
            emit_json({"type": "would_prune" if options.dry_run else "pruned", **item.to_json()})
        elif options.dry_run or not options.quiet:
            sys.stdout.write(f"{item.name}: {item.why}, {how_many(item.files, 'file')}, {size_text(item.size)}\n")
    sys.stdout.flush()
    if options.json:
        emit_json({"type": "summary", **done.summary(), "dry_run": options.dry_run})
    for line in done.notes:
        log.info("%s", line)
    for line in done.problems:
        log.error("%s", line)
    verbs = ("would be removed", "would be freed") if options.dry_run else ("removed", "freed")
    log.info("%s %s, %s %s", len(done.removed) or "nothing", verbs[0], size_text(done.size), verbs[1])
    if done.problems:
        raise typer.Exit(3)
