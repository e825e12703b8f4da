"""`vadcli events`: stored scores to events with other thresholds, to other formats, or held against the schema."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vadcli.cli._shared import emit_json, log, set_up_talk, with_options
from vadcli.errors import DocumentError, UsageError
from vadcli.options import DEFAULT_OUT, EventsOptions
from vadcli.types import Calibration

if TYPE_CHECKING:
    from vadcli.export import ExportedFile, Exporter, MasksOf
    from vadcli.metrics import ThresholdChoice
    from vadcli.store import OutputLayout
    from vadcli.store.events import EventsDocument

Out = Annotated[Path, typer.Argument(metavar="[OUT]", help="The scan's output folder.")]


@with_options(EventsOptions, section="events")
def events(*, out: Out = DEFAULT_OUT, options: EventsOptions) -> None:
    """Cut events anew from stored scores, without decoding anything, and print them.

    \b
    Examples:
      vadcli events vadcli-out --alarms-per-hour 0.2 --format csv
      vadcli events vadcli-out --threshold 0.7 --min-duration 1s --write
      vadcli events vadcli-out --review review.json --write
      vadcli events vadcli-out --calibrate review.json --format csv
      vadcli events vadcli-out --validate
    """  # noqa: D301
    from vadcli.store import OutputLayout

    set_up_talk(options)
    if not out.is_dir():
        raise UsageError(f"{out}: there is no such folder", hint="name the --out folder of a scan")
    layout = OutputLayout(out)
    if options.validate:
        raise typer.Exit(_validate(layout))
    if options.calibrate is not None:
        raise typer.Exit(_calibrate(layout, options.calibrate, options))
    bad: list[str] = []
    documents = list(_documents(layout, options, bad))
    bad.extend(_print(layout, documents, options))
    failed = [document for document in documents if document.failure]
    if bad or failed:
        raise typer.Exit(3)
    if options.fail_on_event and any(document.events for document in documents):
        raise typer.Exit(10)


def _documents(layout: OutputLayout, options: EventsOptions, bad: list[str]) -> Iterator[EventsDocument]:
    """Every stored video's events under the options' thresholds; files that can't be read are said and noted in `bad`."""
    from vadcli.engine.claims import recut
    from vadcli.store import matches
    from vadcli.store.atomic import Scratch
    from vadcli.store.events import read_events, read_review

    review = read_review(options.review) if options.review else ()
    with ExitStack() as stack:
        scratch = stack.enter_context(Scratch(layout.scratch)) if options.write else None
        for path in layout.iter_events():
            try:
                stored = read_events(path)
                video = str(stored.video["path"])
                if not matches(video, options.include):
                    continue
                thresholds = options.thresholds(stored.thresholds, _calibration(layout, video))
                yield recut(layout, scratch, video, thresholds, review=review)
            except DocumentError as error:
                log.error("%s", error)
                bad.append(str(path))


def _calibrate(layout: OutputLayout, review: Path, options: EventsOptions) -> int:
    """Print what a review says of thresholds; 0, or 3 where stored documents can't be read.

    Raises:
        DocumentError: the review can't be read.
        UsageError: it holds no verdict on these videos.
    """
    from vadcli.metrics import threshold_choices
    from vadcli.store import matches
    from vadcli.store.events import read_events, read_review

    entries = read_review(review)
    documents, bad = [], 0
    for path in layout.iter_events():
        try:
            documents.append(read_events(path))
        except DocumentError as error:
            log.error("%s", error)
            bad += 1
    documents = [one for one in documents if one.failure is None and matches(str(one.video["path"]), options.include)]
    videos = {str(one.video["path"]) for one in documents}
    entries = tuple(entry for entry in entries if entry.video in videos)
    hours = sum(float(one.video["duration_s"] or 0.0) for one in documents) / 3600
    peaks = [event.peak_score for one in documents for event in one.events]
    choices = threshold_choices(entries, peaks, hours) if hours > 0 else []
    if not choices:
        raise UsageError(
            f"{review}: no verdict true or false on a video of {layout.out}", hint="review events in the report first"
        )
    _print_choices(choices, options)
    return 3 if bad else 0


def _print_choices(choices: list[ThresholdChoice], options: EventsOptions) -> None:
    import json
    from dataclasses import asdict

    rows = [asdict(choice) for choice in choices]
    if options.json:
        for row in rows:
            emit_json({"type": "threshold", **row})
    elif options.format == "csv":
        lines = [",".join(rows[0]), *(",".join(f"{value:.6g}" for value in row.values()) for row in rows)]
        typer.echo("\n".join(lines))
    else:
        typer.echo(json.dumps({"thresholds": rows}, indent=2))


def _calibration(layout: OutputLayout, video: str) -> Calibration | None:
    from vadcli.store.scores import read_metadata

    metadata = read_metadata(layout.scores(video))
    return Calibration(**metadata.calibration) if metadata and metadata.calibration else None


def _print(layout: OutputLayout, documents: list[EventsDocument], options: EventsOptions) -> list[str]:
    """To stdout, or into files where there is `--to`; what is wrong with stored masks is said and given back."""
    from vadcli.registry import EXPORTERS
    from vadcli.store.masks import MaskTrack, masks_of

    exporter: Exporter = EXPORTERS.load(options.format)
    opened: list[MaskTrack] = []

    def masks(document: EventsDocument) -> MaskTrack | None:
        found = masks_of(layout, document)
        opened.extend([found] if found else [])
        return found

    if options.to is not None:
        _write_files(exporter.files(documents), masks, options.to)
    elif options.json:
        for document in documents:
            emit_json(document.to_json())
    elif exporter.one_video and len(documents) > 1:
        hint = "name a folder with --to, or one video with --include"
        raise UsageError(f"--format {options.format} holds one video, and there are {len(documents)}", hint=hint)
    elif documents or not exporter.one_video:
        exporter.write(documents, masks, sys.stdout)
    problems = [problem for track in opened for problem in track.problems]
    for problem in problems:
        log.error("%s", problem)
    return problems


def _write_files(files: Iterable[ExportedFile], masks: MasksOf, folder: Path) -> None:
    """Each file whole or not at all.

    Raises:
        OutputError: one can't be written; those before it stay.
    """
    from vadcli.store.atomic import Scratch

    with Scratch(folder / ".tmp") as scratch:
        for name, write, documents in files:
            with scratch.replace(folder / name) as temporary, temporary.open("w", encoding="utf-8") as file:
                write(documents, masks, file)


def _validate(layout: OutputLayout) -> int:
    """Say what is wrong with each stored document; 0 where nothing is, 3 otherwise."""
    from vadcli.store.events import load, validate

    checked = wrong = 0
    for path in layout.iter_events():
        checked += 1
        try:
            errors = validate(load(path), str(path))
        except DocumentError as error:
            errors = [error.message]
        wrong += bool(errors)
        for line in errors:
            log.error("%s", line)
    log.info("%d documents checked, %d wrong", checked, wrong)
    return 3 if wrong else 0
