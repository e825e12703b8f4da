"""`vadcli events`: events cut again from stored scores, printed or written in other formats."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vadcli.cli._shared import emit_json, log, set_up_talk, with_options
from vadcli.options import DEFAULT_OUT, EventsOptions

if TYPE_CHECKING:
    from vadcli.metrics import ThresholdChoice

Out = Annotated[Path, typer.Argument(metavar="[OUT]", help="The scan's output folder.")]


@with_options(EventsOptions, section="events")
def events(*, out: Out = DEFAULT_OUT, options: EventsOptions) -> None:
    """Cut events again from stored scores and print them. Nothing is decoded.

    \b
    Examples:
      vadcli events vadcli-out --alarms-per-hour 0.2 --format csv
      vadcli events vadcli-out --threshold 0.7 --min-duration 1s --write
      vadcli events vadcli-out --review review.json --write
      vadcli events vadcli-out --calibrate review.json --format csv
      vadcli events vadcli-out --validate
    """  # noqa: D301
    from vadcli.engine.recut import recut_all, thresholds_from_review
    from vadcli.export import export
    from vadcli.store import OutputLayout

    set_up_talk(options)
    if options.validate:
        raise typer.Exit(_validate(out))
    if options.calibrate is not None:
        choices, problems = thresholds_from_review(out, options)
        _print_choices(choices, options)
        raise typer.Exit(_say(problems))
    found = recut_all(out, options)
    _say(found.problems)
    problems = []
    if options.json and options.to is None:
        for document in found.documents:
            emit_json(document.to_json())
    else:
        problems = export(found.documents, options.format, layout=OutputLayout(out), to=options.to, file=sys.stdout)
        _say(problems)
    if found.problems or problems or any(document.failure for document in found.documents):
        raise typer.Exit(3)
    if options.fail_on_event and any(document.events for document in found.documents):
        raise typer.Exit(10)


def _say(problems: list[str] | tuple[str, ...]) -> int:
    for problem in problems:
        log.error("%s", problem)
    return 3 if problems else 0


def _validate(out: Path) -> int:
    from vadcli.engine.recut import validate_all

    wrong = [_say(errors) for errors in validate_all(out)]
    log.info("%d documents checked, %d wrong", len(wrong), sum(map(bool, wrong)))
    return 3 if any(wrong) else 0


def _print_choices(choices: list[ThresholdChoice], options: EventsOptions) -> None:
    rows = [asdict(choice) for choice in choices]
    if options.json:
        for row in rows:
            emit_json({"type": "threshold", **row})
    elif options.format == "csv":
        lines = [",".join(rows[0]), *(",".join(f"{value:.6g}" for value in row.values()) for row in rows)]
        typer.echo("\n".join(lines))
    else:
        typer.echo(json.dumps({"thresholds": rows}, indent=2))
