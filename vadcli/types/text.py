"""Text for messages, the text of files, and dataclasses from JSON and TOML.

The first part formats times, sizes, numbers and paths for messages. All commands print times with `clock` and `clock_ms`, so an
event has the same start time everywhere. Python's pathlib changes the URL `s3://bucket/a.mp4` to
`Path("s3:/bucket/a.mp4")`; `shown` changes it back.

The second part decodes the text files of users. Many Windows programs write UTF-16, or UTF-8 with a byte order mark.

The third part makes dataclasses from the values in JSON and TOML files. `structure` is the inverse of `dataclasses.asdict`; its
error messages name the wrong field. `read_document` reads the JSON files that vadcli writes, and checks their format version.
"""

from __future__ import annotations

import codecs
import difflib
import json
import math
import os
import re
import types
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from vadcli.errors import DocumentError

MOST_NAMED = 3
"""A message about several cameras names this many of them, and counts the others."""


def size_text(count: float) -> str:
    """Return a number of bytes as text, like `340 MB` or `15.3 GB` (decimal units)."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def how_many(number: int, noun: str) -> str:
    """Return a number with its noun: `0 frames`, `1 frame`, `2 frames`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, as people write it: `no events`, `1 event`, `1,204 events`."""
    return f"no {noun}s" if number == 0 else f"{number:,} {noun}{'s' if number > 1 else ''}"


def camera_names(cameras: Sequence[str]) -> str:
    """Return cameras as text: `camera gate`, `cameras gate and yard`, `cameras a, b, c and 197 more`."""
    if list(cameras) == ["."]:
        return "the camera of the root folder"
    names = ["the root folder" if camera == "." else camera for camera in cameras]
    if len(names) == 1:
        return f"camera {names[0]}"
    last = f"{len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else names.pop()
    return f"cameras {', '.join(names[:MOST_NAMED])} and {last}"


def error_text(error: BaseException) -> str:
    """Return an error as one line of text: `no KEY` for a KeyError, its type's name if it has no text."""
    text = f"no {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(text.split()) or type(error).__name__


def unreadable(path: object, error: OSError) -> str:
    """Return the message about a file that can't be read: its path, and the operating system's reason."""
    return f"{path}: can't be read: {error.strerror or error}"


def no_folder(path: object) -> str:
    """Return why a path is not a folder: it is a file, or it does not exist."""
    return "is a file, but must be a folder" if os.path.exists(str(path)) else "the folder does not exist"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the hint `did you mean X?`, where X is the most similar known name; "" if none is similar."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else ""


def without_name(reason: str, video: str) -> str:
    """Return the reason of a failure without the video's path, for a line that already shows this path."""
    at = reason.find(f"{video}: ")
    start = reason.rfind(": ", 0, max(0, at)) + 2 if ": " in reason[: max(0, at)] else 0
    folder = reason[start : max(0, at)]
    if at < 0 or not (folder == "" or (folder.startswith("/") and folder.endswith("/"))):
        return reason
    return reason[:start] + reason[at + len(video) + 2 :]


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss, like a video player: the text of `clock_ms` without the milliseconds."""
    return clock_ms(seconds).partition(".")[0]


def length_text(seconds: float) -> str:
    """Return a duration as text: `12.5 s` below one minute, otherwise `0:03:20`."""
    return f"{seconds:.3g} s" if seconds < 60 else clock(seconds)


def clock_ms(seconds: float, *, hour_digits: int = 1) -> str:
    """Return seconds as h:mm:ss.mmm, rounded to milliseconds, with at least `hour_digits` hour digits."""
    whole_s, ms = divmod(round(seconds * 1000), 1000)
    return f"{whole_s // 3600:0{hour_digits}d}:{whole_s // 60 % 60:02d}:{whole_s % 60:02d}.{ms:03d}"


STORES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
"""By protocol of a URL: the extra of vadcli that must be installed to read the URL, as in `pip install vadcli[s3]`."""
_REMOTE = re.compile(rf"({'|'.join(STORES)}):/+(?=[^/])")


def is_remote(path: Path | str) -> bool:
    """True if a path or URL is in an object store."""
    return _REMOTE.match(str(path)) is not None


def shown(path: Path) -> str:
    """Return a path as text for messages and run records; for an object store, a URL like `s3://...`."""
    return _REMOTE.sub(r"\1://", str(path), count=1)


def may_exist(path: Path) -> bool:
    """True if a file exists, or if its path is in an object store. No request is sent to the store."""
    return is_remote(path) or os.path.exists(path)


SAVE_AS = "save it as UTF-8"
"""The hint for a file that is not text."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # tried before UTF-16, whose mark is the beginning of this mark
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_ENDS = {"utf-16-le": b"\n\0", "utf-16-be": b"\0\n"}
# In UTF-16, a Latin character has one zero byte. A text without a line end counts as UTF-16 only if at least this share of its
# characters are Latin.
_PLAIN_SHARE = 0.7
# In UTF-16, the zero bytes of Latin characters are either all at odd offsets or all at even offsets. A few other characters,
# such as U+4E00, have a zero byte at the other kind of offset. A text counts as UTF-16 only if it has at most this number of
# such characters per Latin character.
_STRAY_SHARE = 0.1
_SAMPLE_BYTES = 1 << 16


class NotText(ValueError):
    """A file is not text in UTF-8, UTF-16 or UTF-32. The message names the encoding that was tried."""


def text_encoding(data: bytes) -> str:
    """Return the probable encoding of a text: `utf-8`, `utf-8-sig`, or a form of UTF-16 or UTF-32.

    A byte order mark shows the encoding. A text without a mark counts as UTF-16 if two conditions are true:
    1. Nearly all zero bytes are at odd offsets, or nearly all are at even offsets.
    2. The text has a line end in UTF-16, or most of its characters are Latin.

    Any other text counts as UTF-8. An example is a list of paths with NUL bytes between them: its zero bytes are at odd and at
    even offsets.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    sample = data[:_SAMPLE_BYTES]
    for encoding, first in (("utf-16-le", 1), ("utf-16-be", 0)):
        zeros, elsewhere = sample[first::2].count(0), sample[1 - first :: 2].count(0)
        if not zeros or elsewhere > _STRAY_SHARE * zeros:
            continue
        line_ends = any(sample[at : at + 2] == _LINE_ENDS[encoding] for at in range(0, len(sample), 2))
        if line_ends or zeros >= _PLAIN_SHARE * (len(sample) // 2):
            return encoding
    return "utf-8"


def decode_text(data: bytes) -> str:
    """Return the text of a user's file, without a byte order mark.

    Raises:
        NotText: the data is not text in UTF-8, UTF-16 or UTF-32.
    """
    encoding = text_encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG").removesuffix("-LE").removesuffix("-BE")
        raise NotText(f"not text in {name} (byte {error.start})") from error
    return text.removeprefix("\ufeff")


def read_text(path: Path, *, hint: str = "") -> str:
    """Return the text of a user's file, without a byte order mark.

    Args:
        path: the file.
        hint: how to fix a file that can't be read; "" for no hint.

    Raises:
        DocumentError: the file can't be read, or is not text.
    """
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise DocumentError(unreadable(path, error), hint=hint) from error
    except NotText as error:
        raise DocumentError(f"{path}: {error}", hint=SAVE_AS) from error


T = TypeVar("T")

WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list",
    Mapping: "a table",
}
"""The names of types in error messages."""
_type_hints = cache(typing.get_type_hints)


class FieldError(ValueError):
    """A field is missing, unknown, or has a wrong value. `hint` says how to fix this; "" for no hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def structure(kind: type[T], values: Any, where: str = "", *, extra: bool = False) -> T:
    """Return a dataclass with the values of a JSON or TOML object; missing fields get their defaults.

    Values are converted to the type of their field: a list to a tuple, a text to an enum, a whole number to a float.

    Args:
        kind: a dataclass; its fields may be dataclasses, tuples, mappings, literals, enums and optional values.
        values: the values by field name.
        where: the place of the object in its file for error messages, such as `model.lora`; "" for the whole file.
        extra: True ignores fields that `kind` does not have, such as fields of a newer version.

    Raises:
        FieldError: a field is missing, unknown, or has a value of the wrong type.
        ValueError: the `__post_init__` of a dataclass raised it.
    """
    label = where or "the file"
    if not isinstance(values, Mapping):
        raise FieldError(f"{label} is {_short(values)}, not a table")
    hints: dict[str, Any] = _type_hints(typing.cast(Any, kind))
    for key in () if extra else values:
        if key not in hints:
            raise FieldError(f"{label} has no key {key!r}", did_you_mean(str(key), hints) or f"the keys are {', '.join(hints)}")
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise FieldError(f"{label} has no {item.name}")
    prefix = f"{where}." if where else ""
    return kind(**{key: value_of(hints[key], value, prefix + key) for key, value in values.items() if key in hints})


def value_of(hint: Any, value: Any, where: str) -> Any:
    """Return a plain value converted to the type `hint`; raise FieldError if this is not possible."""
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
        version: the format version that the file must have.
        what: the kind of file for error messages, such as "a run record".
        hint: how to fix a damaged file.
        read: returns the bytes to parse; by default, all bytes of the file.

    Raises:
        DocumentError: the file can't be read, is not JSON, or has another version.
    """
    try:
        document = json.loads(read(path))
    except OSError as error:
        raise DocumentError(unreadable(path, error), hint=hint) from error
    except (ValueError, RecursionError) as error:  # RecursionError: lists in lists, too deep
        raise DocumentError(f"{path}: not JSON: {error}", hint=hint) from error
    if not isinstance(document, dict) or document.get("format_version") != version:
        raise DocumentError(f"{path}: not {what} of format version {version}", hint=hint)
    return document


@contextmanager
def document_errors(path: Path, what: str, hint: str = "") -> Iterator[None]:
    """Context manager for reading a document: an error about a wrong value becomes a DocumentError."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
        raise DocumentError(f"{path}: not {what}: {error_text(error)}", hint=hint) from error
