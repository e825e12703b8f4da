"""Makes the options of commands: `with_options` turns each field of an option dataclass into a Typer option."""

from __future__ import annotations

import inspect
import os
import sys
import typing
from collections.abc import Callable
from copy import copy
from dataclasses import Field, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from vadcli.cli._talk import set_up_talk
from vadcli.options import DEFAULT_OUT, PANELS, default_of, out_folder, resolve

Out = Annotated[Path, typer.Argument(metavar="[OUT]", help="The scan's output folder.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file to read instead of ./vadcli.toml.", rich_help_panel="Talking"),
]

Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        help="Use the tables [profile.NAME.COMMAND] of the TOML files before the others.",
        rich_help_panel="Talking",
    ),
]


def with_options(kind: type[Any], *, section: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds every field of the option dataclass `kind` to a command.

    The command receives its arguments by name, and an instance of `kind` as `options`. `options.resolve` fills this instance;
    `section` names the command's table in a TOML file. The log is set up before the command runs.
    """

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        own = [item for item in inspect.signature(command, eval_str=True).parameters.values() if item.name != "options"]
        takes_out = any(item.name in ("out", "outs") for item in own)
        own = [_without_default(item) if item.name == "out" else item for item in own]
        hints = typing.get_type_hints(kind)
        ordered = sorted(fields(kind), key=lambda item: PANELS.index(item.metadata["panel"]))
        made = [_parameter(item, hints[item.name]) for item in ordered]
        config = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config)
        profile = inspect.Parameter("profile", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Profile)
        parameters = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own] + [*made, config, profile]

        @wraps(command)
        def run(**given: Any) -> None:
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
            except BrokenPipeError:  # as in `vadcli events | head`: the reader needs no more
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
    """Return the parameter with the default None, which means "not given". Its help still shows the old default."""
    base, shown = typing.get_args(item.annotation)
    shown = copy(shown)
    shown.show_default = str(item.default)
    return item.replace(default=None, annotation=Annotated[base | None, shown])


def _parameter(item: Field[Any], hint: Any) -> inspect.Parameter:
    meta = item.metadata
    flag = item.name.replace("_", "-")
    is_list = typing.get_origin(hint) is tuple
    base = hint  # a value is converted to this type: X for `X | None`, str for a Literal
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
