"""`vadcli events`: stored scores to events with other thresholds, to other formats, or held against the schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vadcli.cli._options import with_options
from vadcli.cli._output import emit_json, log, set_up_talk
from vadcli.errors import DocumentError, UsageError
from vadcli.options import DEFAULT_OUT, EventsOptions
from vadcli.types import Calibration

if TYPE_CHECKING:
    from vadcli.outputs.event_json import EventsDocument
    from vadcli.outputs.layout import OutputLayout

Out = Annotated[Path, typer.Argument(metavar="[OUT]", help="The scan's output folder.")]


@with_options(EventsOptions, section="events")
def events(*, out: Out = DEFAULT_OUT, options: EventsOptions) -> None:
    """Cut events anew from stored scores, without decoding anything, and print them.

    \b
    Examples:
      vadcli events vadcli-out --alarms-per-hour 0.2 --format csv
      vadcli events vadcli-out --threshold 0.7 --min-duration 1s --write
      vadcli events vadcli-out --validate
    """  # noqa: D301
    from vadcli.outputs.layout import OutputLayout

    set_up_talk(options)
    if not out.is_dir():
        raise UsageError(f"{out}: there is no such folder", hint="name the --out folder of a scan")
    layout = OutputLayout(out)
    if options.validate:
        raise typer.Exit(_validate(layout))
    bad: list[str] = []
    documents = list(_documents(layout, options, bad))
    _print(documents, options)
    failed = [document for document in documents if document.failure]
    if bad or failed:
        raise typer.Exit(3)
    if options.fail_on_event and any(document.events for document in documents):
        raise typer.Exit(10)


def _documents(layout: OutputLayout, options: EventsOptions, bad: list[str]) -> Iterator[EventsDocument]:
    """Every stored video's events under the options' thresholds; files that can't be read are said and noted in `bad`."""
    from vadcli.outputs.atomic import Scratch
    from vadcli.outputs.event_json import read_events
    from vadcli.scan.recut import recut

    with ExitStack() as stack:
        scratch = stack.enter_context(Scratch(layout.scratch)) if options.write else None
        for path in layout.iter_events():
            try:
                stored = read_events(path)
                video = str(stored.video["path"])
                if options.include and not any(fnmatchcase(video, glob) for glob in options.include):
                    continue
                thresholds = options.thresholds(stored.thresholds, _calibration(layout, video))
                yield recut(layout, scratch, video, thresholds)
            except DocumentError as error:
                log.error("%s", error)
                bad.append(str(path))


def _calibration(layout: OutputLayout, video: str) -> Calibration | None:
    from vadcli.outputs.scores import read_metadata

    metadata = read_metadata(layout.scores(video))
    return Calibration(**metadata.calibration) if metadata and metadata.calibration else None


def _print(documents: list[EventsDocument], options: EventsOptions) -> None:
    """To stdout, or one file a video where there is `--to`."""
    from vadcli.outputs import exporters
    from vadcli.outputs.atomic import writing

    one = {"vtt": exporters.to_vtt, "edl": exporters.to_edl}.get(options.format)
    many = {"json": exporters.to_json, "csv": exporters.to_csv}.get(options.format)
    if options.to is not None:
        for document in documents:
            path = options.to / f"{document.video['path']}.{options.format}"
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(one(document) if one else many([document]) if many else "", encoding="utf-8")
    elif options.json:
        for document in documents:
            emit_json(document.to_json())
    elif many:
        typer.echo(many(documents), nl=False)
    elif one and len(documents) > 1:
        hint = "name a folder with --to, or one video with --include"
        raise UsageError(f"--format {options.format} holds one video, and there are {len(documents)}", hint=hint)
    elif one:
        typer.echo("".join(one(document) for document in documents), nl=False)


def _validate(layout: OutputLayout) -> int:
    """Say what is wrong with each stored document; 0 where nothing is, 3 otherwise."""
    from vadcli.outputs.event_json import load, validate

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
