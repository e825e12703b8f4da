"""`vadcli eval`: stored scores measured against ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vadcli.cli._shared import emit_json, log, set_up_talk, with_options
from vadcli.errors import UsageError
from vadcli.options import DEFAULT_OUT, EvalOptions

Outs = Annotated[list[Path] | None, typer.Argument(metavar="[OUT...]", help="Output folders of scans.")]


@with_options(EvalOptions, section="eval")
def evaluate(*, outs: Outs = None, options: EvalOptions) -> None:
    """Compare what scans wrote with a data set's ground truth. Runs no model and reads no footage.

    \b
    Examples:
      vadcli eval results --dataset ped2 --root ../ucsd_ped2 --pixel-size 158x238
      vadcli eval results --init > truth.csv        # correct it by hand, then:
      vadcli eval results --root truth.csv --plots plots
      vadcli eval --compare night-1 night-2 --root truth.csv --format markdown
    """  # noqa: D301
    from vadcli.evaluation import evaluate_outputs, events_as_truth, keep_figures, report, truth_in_seconds

    set_up_talk(options)
    folders = outs or [DEFAULT_OUT]
    if options.compare and len(folders) < 2:
        raise UsageError("--compare needs two OUT or more", hint="name the --out folders of the scans to compare")
    if options.init:
        typer.echo(events_as_truth(folders), nl=False)
        return
    if options.from_frames:
        typer.echo(truth_in_seconds(folders, options), nl=False)
        return
    reports = evaluate_outputs(folders, options)
    if options.json:
        for each in reports:
            emit_json(report.document_of(each, options.root or Path()))
    else:
        shown = {"table": report.to_table, "markdown": report.to_markdown, "latex": report.to_latex}[options.format]
        typer.echo(shown(reports), nl=False)
    keep_figures(reports, options)
    if options.plots is not None:
        from vadcli.evaluation.plots import draw

        for path in draw(reports, options.plots):
            log.info("%s", path)
