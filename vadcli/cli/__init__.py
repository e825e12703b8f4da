"""Lists the commands, and turns every error into a message and an exit code."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any

import typer

from vadcli import __version__
from vadcli.cli._talk import log, put, say_error, set_up_streams, use_utf8_names
from vadcli.errors import VadcliError

_COMMANDS = {
    "scan": "scan:scan",
    "verify": "scan:verify",
    "status": "machine:status",
    "events": "results:events",
    "render": "results:render",
    "report": "results:report",
    "search": "results:search",
    "clips": "results:clips",
    "embed": "learning:embed",
    "learn": "learning:learn",
    "prune": "results:prune",
    "doctor": "machine:doctor",
    "bench": "machine:bench",
    "eval": "results:evaluate",
    "train": "learning:train",
    "weights": "weights:weights_app",
    "categories": "categories:categories_app",
}
"""Command or group of commands -> module and name in this package."""


def make_app(names: Iterable[str] = tuple(_COMMANDS)) -> typer.Typer:
    """Return the command line with these commands. Only their modules are imported."""
    made = typer.Typer(
        name="vadcli",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
    )
    made.callback()(vadcli)
    for name in names:
        module, _, attribute = _COMMANDS[name].partition(":")
        found = getattr(import_module(f"vadcli.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            made.add_typer(found, name=name)
        else:
            made.command(name=name)(found)
    return made


def __getattr__(name: str) -> Any:
    if name == "app":  # all commands
        return make_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "app"]  # typer looks for `app` here when it writes docs/cli.md


def _print_version(wanted: bool) -> None:
    if wanted:
        put(f"vadcli {__version__}")
        raise typer.Exit


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
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        make_app([asked] if asked in _COMMANDS else _COMMANDS)()
    except VadcliError as error:
        log.debug("", exc_info=error)
        say_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        log.debug("", exc_info=error)
        where = f"{error.filename}: " if error.filename else ""
        say_error(VadcliError(f"{where}{error.strerror or error}"))
        sys.exit(1)


def entry() -> None:
    """Run `main`, then end the process at once with the exit code.

    Python's shutdown is left out: during it, a thread of a third-party library could abort the process and change the exit
    code. All results are written by then, and all files are closed.
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
