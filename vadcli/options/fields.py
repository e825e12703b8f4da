"""An option, written down once: a dataclass field with its help text, from which the command line and the pages are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from typing import Any, Literal


def option(
    default: Any,
    text: str,
    *,
    panel: str,
    short: str = "",
    choices: Sequence[str] = (),
    metavar: str = "",
    default_text: str = "",
) -> Any:
    """A dataclass field that is also a command-line option, a TOML key and an environment variable."""
    metadata = {
        "help": text,
        "panel": panel,
        "short": short,
        "choices": tuple(choices),
        "metavar": metavar,
        "default_text": default_text,
    }
    return field(default=default, metadata=metadata)


def same(kind: type[Any], name: str) -> Any:
    """Another set's option of that name, once more."""
    found = next(item for item in fields(kind) if item.name == name)
    return field(default=found.default, metadata=found.metadata)


PANELS = ("Which videos", "Detector", "Events", "Outputs", "Running", "Talking")
FIND, HOW, EVENTS, OUTPUT, RUNNING, TALK = PANELS
DecoderChoice = Literal["auto", "decord", "ffmpeg"]


def effective(options: Any) -> dict[str, Any]:
    """An option set as JSON values, for the run's record."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return list(value)
        return str(value) if isinstance(value, Path) else value

    return {item.name: plain(getattr(options, item.name)) for item in fields(options)}


def default_of(item: Field[Any]) -> Any:
    """A field's default value."""
    return item.default if item.default is not MISSING else None
