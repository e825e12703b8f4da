"""Makes dataclasses from the values of JSON and TOML files, and reads JSON files that have a version.

`structure` is the inverse of `dataclasses.asdict`: it makes nested dataclasses from plain values. Its errors name the wrong
field. Files that vadcli writes have a `format_version`; `read_document` refuses a file of another version.
"""

from __future__ import annotations

import json
import math
import types
import typing
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from vadcli.errors import DocumentError
from vadcli.types.text import did_you_mean, error_text

T = TypeVar("T")

WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list",
    Mapping: "a table",
}
"""Types in words, for error messages."""
_type_hints = cache(typing.get_type_hints)


class FieldError(ValueError):
    """A field is missing, unknown, or has a value of the wrong type. `hint` says how to fix it; it may be empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def structure(kind: type[T], values: Any, where: str = "", *, extra: bool = False) -> T:
    """Return a dataclass made from the plain values of a JSON or TOML object; missing fields get their defaults.

    Values take the type of their field: a list becomes a tuple, a text an enum, and a whole number a float.

    Args:
        kind: a dataclass; its fields may be dataclasses, tuples, mappings, literals, enums and optional values.
        values: field -> value.
        where: the key of the object in its file, with dots between the parts; empty for the whole file.
        extra: True ignores fields that `kind` does not have, such as fields of a newer version.

    Raises:
        FieldError: a field is missing, unknown, or has a value of the wrong type.
        ValueError: the dataclass refuses a value.
    """
    label = where or "the file"
    if not isinstance(values, Mapping):
        raise FieldError(f"{label} is {_short(values)}, not a table")
    hints: dict[str, Any] = _type_hints(typing.cast(Any, kind))
    for key in () if extra else values:
        if key not in hints:
            raise FieldError(f"{label} has no key {key!r}", did_you_mean(str(key), hints) or f"it has {', '.join(hints)}")
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise FieldError(f"{label} has no {item.name}")
    prefix = f"{where}." if where else ""
    return kind(**{key: value_of(hints[key], value, prefix + key) for key, value in values.items() if key in hints})


def value_of(hint: Any, value: Any, where: str) -> Any:
    """Return a plain value as the type of its annotation; raise FieldError if it has another type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return value_of(next(part for part in args if part is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise FieldError(f"{where} is {_short(value)}, not one of {', '.join(map(str, args))}")
        return value
    if is_dataclass(hint):
        return structure(typing.cast(type[Any], hint), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise FieldError(f"{where} is {_short(value)}, not a list")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise FieldError(f"{where} has {len(value)} values, not {len(kinds)}")
        return tuple(value_of(kind, part, where) for kind, part in zip(kinds, value, strict=True))
    return value if hint is Any else _plain(origin or hint, value, where)


def _plain(kind: Any, value: Any, where: str) -> Any:
    if issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError as error:
            raise FieldError(f"{where} is {_short(value)}, not a {kind.__name__}") from error
    if kind is float and type(value) is int:
        value = float(value)
    fits = type(value) is kind if kind in (bool, int, float) else isinstance(value, kind)
    if not fits or (kind is float and not math.isfinite(value)):
        raise FieldError(f"{where} is {_short(value)}, not {WORDS.get(kind, kind.__name__)}")
    return value


def _short(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)[:60]


def read_document(
    path: Path, *, version: int, what: str, hint: str = "", read: Callable[[Path], bytes] = Path.read_bytes
) -> dict[str, Any]:
    """Return the object in a JSON file that has a `format_version`.

    Args:
        path: the file.
        version: the only format version that is accepted.
        what: the kind of file, as messages name it, such as "a run record".
        hint: how to fix a damaged file.
        read: returns the bytes of the file, or of the part that is needed.

    Raises:
        DocumentError: the file can't be read, is not JSON, or has another version.
    """
    try:
        document = json.loads(read(path))
    except OSError as error:
        raise DocumentError(f"{path}: can't be read: {error.strerror or error}", hint=hint) from error
    except ValueError as error:
        raise DocumentError(f"{path}: not JSON: {error}", hint=hint) from error
    if not isinstance(document, dict) or document.get("format_version") != version:
        raise DocumentError(f"{path}: not {what} of format version {version}", hint=hint)
    return document


@contextmanager
def document_errors(path: Path, what: str, hint: str = "") -> Iterator[None]:
    """Turn an error that a damaged document causes in the `with` block into a DocumentError that names the file."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
        raise DocumentError(f"{path}: not {what}: {error_text(error)}", hint=hint) from error
