"""Measures stored scores against a data set's ground truth. Runs no model.

`collect` reads scores and truth, `measure` computes the figures, `report` prints and stores them, `plots` draws them. Only
`plots` reads the videos themselves, for its contact sheets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vadcli.errors import OutputError, UsageError
from vadcli.evaluation.collect import TestSet, collect
from vadcli.evaluation.measure import GROUPS, Protocol, measure
from vadcli.evaluation.report import Evaluation, compared, document_of, keep
from vadcli.ground_truth import open_ground_truth, template_from_events, template_from_labels
from vadcli.metrics import Bootstrap
from vadcli.options import EvalOptions
from vadcli.store import OutputLayout
from vadcli.store.events import EventsDocument, read_events
from vadcli.store.scores import read_scores, read_video

__all__ = [
    "GROUPS",
    "Evaluation",
    "Protocol",
    "TestSet",
    "collect",
    "evaluate_outputs",
    "events_as_truth",
    "keep_figures",
    "measure",
    "truth_in_seconds",
    "truth_of",
]


def evaluate_outputs(outs: Sequence[Path], options: EvalOptions) -> list[Evaluation]:
    """Return one report per output folder; later reports have their difference from the first.

    Raises:
        UsageError: an option, folder or data set cannot be used.
        DocumentError: an annotation or stored file is damaged.
    """
    if options.compare and len(outs) < 2:
        raise UsageError("--compare needs two OUT or more", hint="give the --out folders of the scans to compare")
    truth = open_ground_truth(options.dataset, _root(options))
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
        for out in outs
    ]
    estimates = [measure(test, protocol) for test in tests]
    reports = [Evaluation.of(options.dataset, test, protocol, figures) for test, figures in zip(tests, estimates, strict=True)]
    return compared(reports, estimates)


def keep_figures(reports: Sequence[Evaluation], options: EvalOptions) -> None:
    """Store the figures in each output folder, unless `options.save` is off; raises OutputError."""
    for each in reports if options.save else ():
        try:
            keep(document_of(each, _root(options)), OutputLayout(each.test.out))
        except OutputError as error:
            raise OutputError(f"cannot store the figures: {error.message}", hint="--no-save only prints them") from error


def events_as_truth(outs: Sequence[Path]) -> str:
    """Return the events of one scan as a ground truth in CSV, which the user corrects by hand."""
    layout = OutputLayout(_single(outs, "--init"))
    documents = [read_events(path) for path in layout.iter_events()]
    if not documents:
        raise UsageError(f"{layout.out}: holds no events", hint="name the --out folder of a scan")
    return truth_of(layout, documents)


def truth_of(layout: OutputLayout, documents: Sequence[EventsDocument]) -> str:
    """Return the events of some videos as a ground truth in CSV, which the user corrects by hand.

    Videos whose scan failed are left out, because they have no scores.

    Raises:
        DocumentError: stored scores are missing or damaged.
    """
    found = (  # one table at a time
        (read_scores(layout.scores(str(each.video["path"])))[0], each.events) for each in documents if each.failure is None
    )
    return template_from_events(found)


def truth_in_seconds(outs: Sequence[Path], options: EvalOptions) -> str:
    """Return a data set's frame labels as intervals in seconds (CSV), with the timestamps of one scan."""
    truth = open_ground_truth(options.dataset, _root(options))
    layout = OutputLayout(_single(outs, "--from-frames"))
    paths = {read_video(path): path for path in layout.iter_scores()}
    if not paths:
        raise UsageError(f"{layout.out}: holds no scores", hint="name the --out folder of a scan")
    matching = truth.match(paths, allow_missing=options.allow_missing)
    tables = ((read_scores(paths[video])[0], each) for video, each in matching.pairs.items())  # one at a time
    return template_from_labels((table, each.labels(table)) for table, each in tables)


def _root(options: EvalOptions) -> Path:
    if options.root is None:
        raise UsageError("--root is missing", hint="name the data set's folder, or a CSV; --init makes one to start from")
    return options.root


def _single(outs: Sequence[Path], option: str) -> Path:
    if len(outs) > 1:
        raise UsageError(f"{option} makes one table from one scan, not {len(outs)}", hint="name a single OUT")
    return outs[0]
