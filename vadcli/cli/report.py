"""`vadcli report`: a page of what scans found and could not read, or a digest of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vadcli.cli._shared import emit_json, log, set_up_talk, with_options
from vadcli.options import DEFAULT_OUT, ReportOptions

Out = Annotated[Path, typer.Argument(metavar="[OUT]", help="The scan's output folder.")]


@with_options(ReportOptions, section="report")
def report(*, out: Out = DEFAULT_OUT, options: ReportOptions) -> None:
    """Make one HTML page of the events, the score curves and what could not be read, to work through in a browser.

    \b
    Examples:
      vadcli report vadcli-out
      vadcli report vadcli-out --since last-run --format email --mail-to guard@example.org | sendmail -t
      vadcli report vadcli-out --assets vadcli-out/report --to vadcli-out/report.html --clips
    """  # noqa: D301
    from vadcli.reporting import make_report, read_archive
    from vadcli.reporting.html import to_json

    set_up_talk(options)
    archive = read_archive(out, options)
    for line in archive.problems:
        log.error("%s", line)
    if options.json:
        emit_json(to_json(archive))
    else:
        made = make_report(archive, options)
        if made.file is None:
            typer.echo(made.text, nl=False)
        else:
            log.info("%s: %.1f MB", made.file, len(made.text.encode()) / 1e6)
    if archive.failures or archive.problems:
        raise typer.Exit(3)
    if options.fail_on_event and archive.events:
        raise typer.Exit(10)
