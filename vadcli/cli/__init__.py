"""Lists the commands, makes their options, and turns errors into messages and exit codes."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
import typing
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import Field, fields
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from vadcli import __version__
from vadcli.cli._talk import log, put, say_error, set_up_streams, set_up_talk
from vadcli.errors import VadcliError
from vadcli.options import DEFAULT_OUT, PANELS, default_of, out_folder, resolve

_COMMANDS = {
    "scan": "models:scan",
    "verify": "models:verify",
    "status": "results:status",
    "events": "results:events",
    "render": "results:render",
    "report": "results:report",
    "search": "results:search",
    "clips": "results:clips",
    "embed": "models:embed",
    "learn": "models:learn",
    "prune": "results:prune",
    "doctor": "machine:doctor",
    "bench": "models:bench",
    "eval": "results:evaluate",
    "train": "models:train",
    "weights": "machine:weights_app",
    "categories": "machine:categories_app",
}
"""For each command or group of commands: a module of this package, and a name in this module."""


def make_app(names: Iterable[str] = tuple(_COMMANDS)) -> typer.Typer:
    """Return the command line with these commands. Imports only the modules of these commands."""
    app = typer.Typer(
        name="vadcli",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
    )
    app.callback()(vadcli)
    for name in names:
        module, _, attribute = _COMMANDS[name].partition(":")
        command = getattr(import_module(f"vadcli.cli.{module}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name=name)(command)
    return app


def __getattr__(name: str) -> Any:
    if name == "app":  # all commands
        return make_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "app"]  # typer searches this list for `app` when it writes docs/cli.md


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

    Exit codes: 0: success; 1: fatal error; 2: wrong usage or no video; 3: some videos failed or are partial; 4: no device,
    no weights or no ffmpeg; 10: events found (with --fail-on-event); 130 or 143: interrupted.
    """


def main() -> None:
    """Run the command line and exit with a documented code."""
    set_up_streams()
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        make_app([first] if first in _COMMANDS else _COMMANDS)()
    except VadcliError as error:
        log.debug("", exc_info=error)
        say_error(error)
        sys.exit(error.exit_code)
    except SystemExit as end:
        name = next((name for name in sys.argv[2:] if name.startswith("-") and os.path.lexists(name)), "")
        if name and end.code == 2:  # the arguments are wrong, and typer has printed why
            sys.stderr.write(f"  for the file or folder {shlex.quote(name)}, write {shlex.quote(f'./{name}')}\n")
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        log.debug("", exc_info=error)
        where = f"{error.filename}: " if error.filename else ""
        say_error(VadcliError(f"{where}{error.strerror or error}"))
        sys.exit(1)


Out = Annotated[Path, typer.Argument(metavar="[OUT]", help="The scan's output folder.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="TOML file to read instead of ./vadcli.toml.", rich_help_panel="Messages and settings"
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        help="Use the profile NAME: its tables [profile.NAME.COMMAND] override the tables [COMMAND] of the TOML files.",
        rich_help_panel="Messages and settings",
    ),
]


def with_options(kind: type[Any], *, section: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds every field of the option dataclass `kind` to a command.

    The command receives its arguments by name, and an instance of `kind` as `options`. `options.resolve` fills this instance;
    `section` names the command's table in a TOML file. The log is set up before the command runs.
    """

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        """Return `command` with the fields of `kind` as options."""
        own = [item for item in inspect.signature(command, eval_str=True).parameters.values() if item.name != "options"]
        takes_out = any(item.name in ("out", "outs") for item in own)
        own = [_without_default(item) if item.name == "out" else item for item in own]
        hints = typing.get_type_hints(kind)
        ordered = sorted(fields(kind), key=lambda item: PANELS.index(item.metadata["panel"]))
        options = [_parameter(item, hints[item.name]) for item in ordered]
        config = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config)
        profile = inspect.Parameter("profile", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Profile)
        parameters = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own] + [*options, config, profile]

        @wraps(command)
        def run(**given: Any) -> None:
            """Fill the options, set up the log, and run the command."""
            files = {"config": given.pop("config"), "profile": given.pop("profile")}
            positional = {item.name: given.pop(item.name) for item in own}
            given = {name: value for name, value in given.items() if value != []}
            options = resolve(kind, section=section, given=given, takes_out=takes_out, **files)
            if takes_out:
                _name_out(positional, options, default=out_folder(section=section, default=DEFAULT_OUT, **files))
            set_up_talk(options)
            try:
                command(**positional, options=options)
                sys.stdout.flush()
            except BrokenPipeError:  # as in `vadcli events | head`: the reader of stdout has ended
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        del run.__wrapped__
        return run

    return wrap


def _name_out(positional: dict[str, Any], options: Any, *, default: Path) -> None:
    """Use the default output folder if the command line names none."""
    if "outs" in positional:
        positional["outs"] = positional["outs"] or [default]
        return
    out = positional["out"]
    if positional.get("text") == "" and out is not None and options.image is None and not out.is_dir():
        positional["text"], out = str(out), None  # the only argument of `vadcli search` is the text
    positional["out"] = default if out is None else out


def _without_default(item: inspect.Parameter) -> inspect.Parameter:
    """Return a copy of an option with the default None ("not given"). The help still shows the original default."""
    base, argument = typing.get_args(item.annotation)
    argument = copy(argument)
    argument.show_default = str(item.default)
    return item.replace(default=None, annotation=Annotated[base | None, argument])


def _parameter(item: Field[Any], hint: Any) -> inspect.Parameter:
    """Return a field of an option dataclass as a parameter for Typer. `hint` is the field's type."""
    meta = item.metadata
    flag = item.name.replace("_", "-")
    is_list = typing.get_origin(hint) is tuple
    base = hint  # Typer converts a value to this type: X for `X | None`, str for a Literal
    if typing.get_origin(hint) is typing.Literal:
        base = str
    elif not is_list and typing.get_args(hint):
        base = next(part for part in typing.get_args(hint) if part is not type(None))
    names = [f"--{flag}/--no-{flag}" if base is bool else f"--{flag}", *([meta["short"]] if meta["short"] else [])]
    default = default_of(item)
    shown: str | bool = meta["default_text"] or ("on" if default is True else str(default))
    if not meta["default_text"] and (default is None or default is False or default in ((), "")):
        shown = False  # the help shows no default
    settings: dict[str, Any] = {
        "help": meta["help"],
        "rich_help_panel": meta["panel"],
        "show_default": shown,
    }
    if meta["choices"]:
        choices = list(meta["choices"])
        settings |= {"metavar": "|".join(choices), "autocompletion": lambda: choices}
    elif meta["metavar"]:
        settings["metavar"] = meta["metavar"]
    annotation = list[str] | None if is_list else base | None
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation, typer.Option(*names, **settings)],
    )
