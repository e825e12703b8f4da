"""`vadcli eval`: stored scores against ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vadcli.cli._shared import emit_json, log, set_up_talk, with_options
from vadcli.errors import OutputError, UsageError
from vadcli.options import DEFAULT_OUT, EvalOptions

if TYPE_CHECKING:
    from vadcli.evaluation import Report
    from vadcli.ground_truth import GroundTruth

Outs = Annotated[list[Path] | None, typer.Argument(metavar="[OUT...]", help="Output folders of scans.")]


@with_options(EvalOptions, section="eval")
def evaluate(*, outs: Outs = None, options: EvalOptions) -> None:
    """Hold what scans wrote against a data set's ground truth. Runs no model and reads no footage.

    \b
    Examples:
      vadcli eval results --dataset ped2 --root ../ucsd_ped2 --pixel-size 158x238
      vadcli eval results --init > truth.csv        # correct it by hand, then:
      vadcli eval results --root truth.csv --plots plots
      vadcli eval --compare night-1 night-2 --root truth.csv --format markdown
    """  # noqa: D301
    from vadcli.evaluation import Protocol, collect, measure, report
    from vadcli.ground_truth import open_ground_truth
    from vadcli.metrics import Bootstrap

    set_up_talk(options)
    folders = outs or [DEFAULT_OUT]
    if options.compare and len(folders) < 2:
        raise UsageError("--compare needs two OUT or more", hint="name the --out folders of the scans to compare")
    if options.init:
        typer.echo(_template(folders), nl=False)
        return
    if options.root is None:
        raise UsageError("--root is missing", hint="name the data set's folder, or a CSV; --init makes one to start from")
    truth = open_ground_truth(options.dataset, options.root)
    if options.from_frames:
        typer.echo(_in_seconds(folders, truth, allow_missing=options.allow_missing), nl=False)
        return
    bootstrap = Bootstrap(options.bootstrap, options.confidence, options.seed) if options.bootstrap else None
    protocol = Protocol(
        endpoints=options.endpoints,
        only_sampled=options.only_sampled,
        pixel_size=options.size(),
        groups=options.groups(),
        bootstrap=bootstrap,
    )
    tests = [
        collect(
            out,
            truth,
            allow_missing=options.allow_missing,
            pixels=protocol.wants("pixel", "region"),
            pixel_size=protocol.pixel_size,
            events=protocol.wants("event") or options.plots is not None,
        )
        for out in folders
    ]
    estimates = [measure(test, protocol) for test in tests]
    reports = [
        report.Report.of(options.dataset, test, protocol, figures) for test, figures in zip(tests, estimates, strict=True)
    ]
    if len(reports) > 1:
        reports = report.compared(reports, estimates)
    _show(reports, options, options.root)
    if options.plots is not None:
        from vadcli.evaluation.plots import draw

        for path in draw(reports, options.plots):
            log.info("%s", path)


def _show(reports: list[Report], options: EvalOptions, root: Path) -> None:
    from vadcli.evaluation import report
    from vadcli.evaluation.report import document_of, keep
    from vadcli.store import OutputLayout

    documents = [document_of(each, root) for each in reports] if options.json or options.save else []
    if options.json:
        for document in documents:
            emit_json(document)
    else:
        shown = {"table": report.to_table, "markdown": report.to_markdown, "latex": report.to_latex}[options.format]
        typer.echo(shown(reports), nl=False)
    for each, document in zip(reports, documents, strict=True) if options.save else ():
        try:
            keep(document, OutputLayout(each.test.out))
        except OutputError as error:
            raise OutputError(f"the figures can't be kept: {error.message}", hint="--no-save only prints them") from error


def _template(folders: list[Path]) -> str:
    """A ground truth to correct by hand, from the events of one scan."""
    from vadcli.ground_truth import template_from_events
    from vadcli.store import OutputLayout
    from vadcli.store.events import read_events

    layout = OutputLayout(_single(folders, "--init"))
    documents = [read_events(path) for path in layout.iter_events()]
    if not documents:
        raise UsageError(f"{layout.out}: holds no events", hint="name the --out folder of a scan")
    return template_from_events({str(each.video["path"]): each.events for each in documents if not each.failure})


def _in_seconds(folders: list[Path], truth: GroundTruth, *, allow_missing: bool) -> str:
    """The data set's labels a frame as intervals in seconds, by the timestamps of one scan."""
    from vadcli.ground_truth import template_from_labels
    from vadcli.store import OutputLayout
    from vadcli.store.scores import read_scores

    layout = OutputLayout(_single(folders, "--from-frames"))
    tables = {table.video: table for table, _ in (read_scores(path) for path in layout.iter_scores())}
    if not tables:
        raise UsageError(f"{layout.out}: holds no scores", hint="name the --out folder of a scan")
    matching = truth.match(tables, allow_missing=allow_missing)
    return template_from_labels((tables[video], each.labels(tables[video])) for video, each in matching.pairs.items())


def _single(folders: list[Path], option: str) -> Path:
    if len(folders) > 1:
        raise UsageError(f"{option} makes one table from one scan, not {len(folders)}", hint="name a single OUT")
    return folders[0]
