"""Commands made from option sets: every field of an option dataclass becomes a Typer option, with nothing written twice."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import Field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vadcli.options import PANELS, DecodeOptions, default_of, parse_duration
from vadcli.options.config import resolve

if TYPE_CHECKING:
    from vadcli.video.loader import LoaderOptions

Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file to read in place of ./vadcli.toml.", rich_help_panel="Talking"),
]


def with_options(kind: type[Any], *, section: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command every option of an option set.

    The command takes its positional arguments by name and `options`, an instance of `kind` filled from all layers.

    Args:
        kind: the option dataclass.
        section: the command's table in a TOML file.
    """

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        own = [item for item in inspect.signature(command, eval_str=True).parameters.values() if item.name != "options"]
        made = [_parameter(item, hint) for item, hint in _typed_fields(kind)]
        config = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config)
        parameters = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own] + [*made, config]

        @wraps(command)
        def run(**given: Any) -> None:
            config_file = given.pop("config")
            positional = {item.name: given.pop(item.name) for item in own}
            given = {name: value for name, value in given.items() if value != []}
            command(**positional, options=resolve(kind, section=section, given=given, config=config_file))

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        del run.__wrapped__
        return run

    return wrap


def _typed_fields(kind: type[Any]) -> list[tuple[Field[Any], Any]]:
    hints = typing.get_type_hints(kind)
    ordered = sorted(fields(kind), key=lambda item: PANELS.index(item.metadata["panel"]))
    return [(item, hints[item.name]) for item in ordered]


def _parameter(item: Field[Any], hint: Any) -> inspect.Parameter:
    meta = item.metadata
    flag = item.name.replace("_", "-")
    is_list = typing.get_origin(hint) is tuple
    base = _plain(hint)
    names = [f"--{flag}/--no-{flag}" if base is bool else f"--{flag}", *([meta["short"]] if meta["short"] else [])]
    default = default_of(item)
    settings: dict[str, Any] = {
        "help": meta["help"],
        "rich_help_panel": meta["panel"],
        "show_default": _default_text(default, meta["default_text"]),
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


def _plain(hint: Any) -> Any:
    """The type a shell's word is turned into: X of `X | None`, str of a Literal."""
    if typing.get_origin(hint) is typing.Literal:
        return str
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    return parts[0] if parts and typing.get_origin(hint) is not tuple else hint


def _default_text(default: Any, text: str) -> str | bool:
    if text:
        return text
    if default is None or default is False or default in ((), ""):
        return False
    return "on" if default is True else str(default)


def loader_options(options: DecodeOptions) -> LoaderOptions:
    """How footage is read, by the options that say so."""
    from vadcli.video.loader import LoaderOptions

    return LoaderOptions(
        timeout_s=parse_duration(options.decode_timeout, "decode_timeout"),
        memory_limit_mib=options.decode_memory,
        decoder=options.decoder,
    )
