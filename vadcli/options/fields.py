"""Texts that options hold: lengths of time, shards, category lists.

An option, written down once: a dataclass field with its help text, from which the command line and the pages are made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from vadcli.errors import UsageError

DURATION = re.compile(r"(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|h|d)?", re.ASCII)
UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


def parse_duration(text: str, name: str) -> float:
    """Seconds of `90`, `90s`, `15m`, `8h`, `2d` or `500ms`.

    Raises:
        UsageError: it is none of these.
    """
    match = DURATION.fullmatch(str(text).strip())
    if match is None:
        flag = name.replace("_", "-")
        raise UsageError(f"--{flag} {text!r} is not a length of time", hint="write 90s, 15m, 8h or 2d")
    return float(match["value"]) * UNIT_S[match["unit"]]


def parse_shard(text: str | None) -> tuple[int, int]:
    """(i, n) of `i/n`, 1 <= i <= n; (1, 1) where there is none.

    Raises:
        UsageError: it is not a shard.
    """
    if text is None:
        return 1, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip(), re.ASCII)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise UsageError(f"--shard {text!r} is not I/N", hint="write e.g. --shard 2/8, counting from 1")
    return part, parts


def parse_numbers(text: str, name: str) -> tuple[float, ...]:
    """The numbers of `1,0.5,0.2`, in order, each once.

    Raises:
        UsageError: there is none, or a word that is no finite number.
    """
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(math.isfinite(value) for value in found):
        flag = name.replace("_", "-")
        raise UsageError(f"--{flag} {text!r} is not a list of numbers", hint="separate them by commas")
    return found


def parse_categories(text: str) -> tuple[str, ...]:
    """The categories of `a, b, @preset, @file.txt`, in order, each once.

    Raises:
        UsageError: a preset or file that is not there.
    """
    found: dict[str, None] = {}
    for part in (piece.strip() for piece in text.split(",")):
        for word in _preset(part[1:]) if part.startswith("@") else (part,):
            if word:
                found.setdefault(word)
    return tuple(found)


def preset_names() -> list[str]:
    """Names of the category lists that come with vadcli."""
    return sorted(
        entry.name.removesuffix(".txt")
        for entry in resources.files("vadcli").joinpath("categories").iterdir()
        if entry.name.endswith(".txt")
    )


def _preset(name: str) -> Iterator[str]:
    if name in preset_names():
        text = resources.files("vadcli").joinpath("categories").joinpath(f"{name}.txt").read_text(encoding="utf-8")
    else:
        try:
            text = Path(name).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"@{name} is neither a category preset nor a readable file", hint=f"presets: {', '.join(preset_names())}"
            ) from error
    for line in text.splitlines():
        yield line.partition("#")[0].strip()


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
