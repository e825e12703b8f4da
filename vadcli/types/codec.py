"""Makes dataclasses from the values of JSON and TOML files, and reads JSON files that have a version.

`structure` is the inverse of `dataclasses.asdict`: it makes nested dataclasses from plain values. Its errors name the wrong
field. Files that vadcli writes have a `format_version`; `read_document` refuses a file of another version.
"""

from __future__ import annotations

import difflib
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
from vadcli.types.text import error_text

T = TypeVar("T")
Check = Callable[[Any], bool]

WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list",
    Mapping: "a table",
}
"""Types in words, for error messages."""


class FieldError(ValueError):
    """A field is missing, unknown, or has a value of the wrong type. `hint` says how to fix it, if that is known."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def structure(kind: type[T], values: Any, where: str = "", *, extra: bool = False) -> T:
    """Return a dataclass made from the plain values of a JSON or TOML object; missing fields get their defaults.

    If the field needs it, a list becomes a tuple, a text becomes an enum, and a whole number becomes a float.

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
    hints = _hints(typing.cast(Any, kind))
    for key in () if extra else values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            raise FieldError(
                f"{label} has no key {key!r}", f"did you mean {near[0]}?" if near else f"it has {', '.join(hints)}"
            )
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise FieldError(f"{label} has no {item.name}")
    prefix = f"{where}." if where else ""
    return kind(**{key: value_of(hints[key], value, prefix + key) for key, value in values.items() if key in hints})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


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
        return _tuple(args, value, where)
    return value if hint is Any else _plain(origin or hint, value, where)


def _tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise FieldError(f"{where} is {_short(value)}, not a list")
    kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
    if len(kinds) != len(value):
        raise FieldError(f"{where} has {len(value)} values, not {len(kinds)}")
    return tuple(value_of(kind, part, where) for kind, part in zip(kinds, value, strict=True))


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


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_SAY_NOTHING = frozenset({"$schema", "$id", "$defs", "title", "description"})
_SAY_SOMETHING = frozenset({"$ref", "const", "enum", "oneOf", "type", "properties", "required", "additionalProperties"})
_SAY_SOMETHING |= {"items", "prefixItems", "minItems", "maxItems", "minLength", "minimum", "maximum", "exclusiveMinimum"}


def schema_check(schema: Mapping[str, Any]) -> Check:
    """Return a function that is True if a JSON value fits a schema. It takes about a fortieth of the time of jsonschema.

    If it is False, jsonschema must decide and name the error: a few odd values that fit are not known here, such as 1.0 for
    a whole number.

    Args:
        schema: a JSON Schema that uses only the keywords in `_SAY_SOMETHING`.

    Raises:
        ValueError: the schema has another keyword.
    """
    return _check_of(schema, schema.get("$defs", {}))


def _check_of(schema: Mapping[str, Any], named: Mapping[str, Any]) -> Check:
    if unknown := schema.keys() - _SAY_NOTHING - _SAY_SOMETHING:
        raise ValueError(f"schema_check does not know {', '.join(sorted(unknown))}")
    if "$ref" in schema:
        return _check_of(named[schema["$ref"].removeprefix("#/$defs/")], named)
    if "oneOf" in schema:
        parts = [_check_of(part, named) for part in schema["oneOf"]]
        return lambda value: sum(part(value) for part in parts) == 1
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return lambda value: any(type(value) is type(one) and value == one for one in values)
    names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    checks = {kind: _check_of_type(name, schema, named) for name in names for kind in _JSON_TYPES[name]}
    return lambda value: type(value) in checks and checks[type(value)](value)


def _check_of_type(name: str, schema: Mapping[str, Any], named: Mapping[str, Any]) -> Check:
    """Return the check for values that are known to have one type of the schema."""
    if name == "object":
        return _check_of_object(schema, named)
    if name == "array":
        return _check_of_array(schema, named)
    if name == "string":
        shortest = schema.get("minLength", 0)
        return lambda value: len(value) >= shortest
    if name in ("integer", "number"):
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        above = schema.get("exclusiveMinimum", -math.inf)
        return lambda value: low <= value <= high and value > above
    return _always(True)


def _always(answer: bool) -> Check:
    return lambda value: answer


def _check_of_object(schema: Mapping[str, Any], named: Mapping[str, Any]) -> Check:
    known = {key: _check_of(part, named) for key, part in schema.get("properties", {}).items()}
    required, others = schema.get("required", ()), schema.get("additionalProperties", True)
    other = _always(others) if isinstance(others, bool) else _check_of(others, named)

    def check(value: Mapping[str, Any]) -> bool:
        return all(known.get(key, other)(part) for key, part in value.items()) and all(key in value for key in required)

    return check


def _check_of_array(schema: Mapping[str, Any], named: Mapping[str, Any]) -> Check:
    first = [_check_of(part, named) for part in schema.get("prefixItems", ())]
    items = schema.get("items", True)
    other = _always(items) if isinstance(items, bool) else _check_of(items, named)
    least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)

    def check(value: list[Any]) -> bool:
        parts = (first[place](part) if place < len(first) else other(part) for place, part in enumerate(value))
        return least <= len(value) <= most and all(parts)

    return check
