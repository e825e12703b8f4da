r"""Writes text to stdout and stderr, in the encoding of each stream, so that no name of a video causes an error.

A terminal or a pipe may have an encoding that lacks a character of a video's name, such as cp1252 or ASCII. Such a character
is written as `\uXXXX`. In JSON, such characters are only inside of strings, so the JSON still means the same.
"""

from __future__ import annotations

import codecs
import os
import sys
from io import TextIOWrapper

ESCAPE = "vadcli_escape"


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Write bytes of a path that are not text as %XX, and any other character as one or two \uXXXX."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    parts = []
    for character in error.object[error.start : error.end]:
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:
            parts.append(f"%{code - 0xDC00:02X}")
        else:
            units = character.encode("utf-16-be", "surrogatepass").hex()
            parts += [f"\\u{units[k : k + 4]}" for k in range(0, len(units), 4)]
    return "".join(parts), error.end


codecs.register_error(ESCAPE, _escape)


def set_up_streams() -> None:
    """Make stdout and stderr accept any text. If the parent process has closed a stream, its text is thrown away."""
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=ESCAPE)


def use_utf8_names() -> None:
    """Start this process again in Python's UTF-8 mode if file names have another encoding, such as ASCII or ISO 8859-1.

    The names in an output folder are UTF-8. Without this mode, Python could not open them. stdout keeps its encoding.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1" or sys.stdout is None:
        return
    changed = {"PYTHONUTF8": "1", "PYTHONIOENCODING": sys.stdout.encoding}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **changed})  # noqa: S606


def put(text: object, *, nl: bool = True) -> None:
    """Write text to stdout. `typer.echo` is not used, because it writes UTF-8 even if the encoding of stdout is ASCII."""
    sys.stdout.write(f"{text}\n" if nl else str(text))
    sys.stdout.flush()
