"""The table of commands, and the one place that turns an error into a message and an exit code."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from vadcli import __version__
from vadcli.cli._shared import log, say_error
from vadcli.cli._streams import put, set_up_streams, use_utf8_names
from vadcli.cli.categories import categories_app
from vadcli.cli.housekeeping import clips, prune
from vadcli.cli.learning import learn
from vadcli.cli.machine import bench, doctor, status, train
from vadcli.cli.results import evaluate, events, render, report, search
from vadcli.cli.scan import scan
from vadcli.cli.weights import weights_app
from vadcli.errors import VadcliError

app = typer.Typer(
    name="vadcli",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
for command in (scan, status, events, render, report, search, clips, learn, prune, doctor, bench):
    app.command()(command)
app.command(name="eval")(evaluate)
app.command()(train)
app.add_typer(weights_app, name="weights")
app.add_typer(categories_app, name="categories")


def _print_version(wanted: bool) -> None:
    if wanted:
        put(f"vadcli {__version__}")
        raise typer.Exit


@app.callback()
def vadcli(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find anomalies in video archives: per-frame scores, events and masks.

    Exit codes: 0 success, 1 fatal error, 2 wrong usage or no video, 3 some videos failed or are partial, 4 no device,
    no weights or no ffmpeg, 10 events found (--fail-on-event), 130 and 143 interrupted.
    """


def main() -> None:
    """Run the command line and exit with a documented code."""
    set_up_streams()
    try:
        app()
    except VadcliError as error:
        log.debug("", exc_info=error)
        say_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The process that reads stdout has stopped. Without this, Python would report a second error at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        log.debug("", exc_info=error)
        where = f"{error.filename}: " if error.filename else ""
        say_error(VadcliError(f"{where}{error.strerror or error}"))
        sys.exit(1)


def entry() -> None:
    """Run `main`, then end the process at once with its exit code.

    All results are written by now, and vadcli has closed everything. While Python shuts down, a thread of a third-party
    library can still abort the process and change its exit code. So the process ends here, without that shutdown.
    """
    use_utf8_names()
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    logging.shutdown()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
