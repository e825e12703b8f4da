"""A recipe from its TOML file, in one stage or several. A key that no table has is named, as is a value of another type."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from vadcli.errors import UsageError
from vadcli.options.config import read_toml
from vadcli.train.recipe import Recipe, check

R = TypeVar("R", bound=Recipe)


def read_recipe(path: Path, kind: type[R]) -> R:
    """Read the recipe of one stage from its file; see `read_recipes`."""
    recipes = read_recipes(path, kind)
    check(len(recipes) == 1, f"{path}: has {len(recipes)} stages")
    return recipes[0]


def read_recipes(path: Path, kind: type[R]) -> tuple[R, ...]:
    """Read the stages of a training from its file; a file without [[stage]] has one.

    Args:
        path: a TOML file.
        kind: the recipe's class, which says what tables and keys there are.

    Raises:
        UsageError: it can't be read, or holds a key or value that can't be used.
    """
    document = read_toml(path)
    try:
        return parse_stages(document, kind)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from error


def parse_stages(document: Mapping[str, Any], kind: type[R]) -> tuple[R, ...]:
    """One recipe a [[stage]]: the document with the stage's values over it, table by table.

    Each stage starts from what the one before it made; only the first one's `model` says where to start.

    Raises:
        UsageError: a key or value that can't be used.
    """
    common = {key: value for key, value in document.items() if key != "stage"}
    stages = document.get("stage", [{}])
    check(isinstance(stages, list) and bool(stages), "stage must be tables, [[stage]]")
    return tuple(parse_recipe(_over(common, stage), kind) for stage in stages)


def _over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Values of both, tables in tables merged; where both have one, `over`'s counts."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _over(merged[key], value) if both else value
    return merged


def parse_recipe(document: Mapping[str, Any], kind: type[R]) -> R:
    """A recipe from its tables.

    Raises:
        UsageError: a key or value that can't be used.
    """
    recipe: R = _table(kind, "", document)
    return recipe


def _table(kind: Any, name: str, values: Any) -> Any:
    """A dataclass from a TOML table."""
    where = f"[{name}]" if name else "the recipe"
    check(isinstance(values, Mapping), f"{name} must be a table, {where}")
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            raise UsageError(
                f"{where} has no key {key!r}", hint=f"did you mean {near[0]}?" if near else f"it has {', '.join(hints)}"
            )
    for item in fields(kind):
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise UsageError(f"{where} lacks {item.name}")
    found = {key: _value(hints[key], f"{name}.{key}" if name else key, value) for key, value in values.items()}
    return kind(**found)


def _value(hint: Any, name: str, value: Any) -> Any:
    """A TOML value as its field's annotation wants it."""
    origin, args = typing.get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        hint = next(part for part in args if part is not type(None))
        origin, args = typing.get_origin(hint), get_args(hint)
    if origin is Literal:
        check(value in args, f"{name} is {value!r}, none of {', '.join(map(str, args))}")
        return value
    if is_dataclass(hint):
        return _table(hint, name, value)
    if origin is tuple:
        check(isinstance(value, list), f"{name} is {value!r}, not a list")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        check(len(kinds) == len(value), f"{name} has {len(value)} values, not {len(kinds)}")
        return tuple(_value(kind, name, part) for kind, part in zip(kinds, value, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    check(type(value) is hint, f"{name} is {value!r}, not a value of type {hint.__name__}")
    return value
