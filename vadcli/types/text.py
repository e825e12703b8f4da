"""Decodes text files that users made: UTF-8, and what Windows programs write, UTF-8 with a byte order mark and UTF-16."""

from __future__ import annotations

import codecs

SAVE_AS = "save it as UTF-8"
"""The hint for a file that is not text."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_ENDS = {"utf-16-le": b"\n\0", "utf-16-be": b"\0\n"}
_PLAIN_SHARE = 0.7  # of the characters of a UTF-16 text must be Latin if it has neither a byte order mark nor a line end
_STRAY_SHARE = 0.1  # zero bytes in the other places: the low bytes of characters such as U+4E00
_SAMPLE_BYTES = 1 << 16


class NotText(ValueError):
    """The bytes are not text in an encoding that is read. The message names the encoding that was tried."""


def text_encoding(data: bytes) -> str:
    """Return the encoding of a text: `utf-8`, `utf-8-sig`, or a form of UTF-16 or UTF-32. Anything else counts as UTF-8.

    UTF-16 without a byte order mark is recognised by its zero bytes: nearly all are in odd places, or nearly all in even
    places. A list of paths that are separated by NUL is UTF-8.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    sample = data[:_SAMPLE_BYTES]
    for encoding, first in (("utf-16-le", 1), ("utf-16-be", 0)):
        zeros, elsewhere = sample[first::2].count(0), sample[1 - first :: 2].count(0)
        if not zeros or elsewhere > _STRAY_SHARE * zeros:
            continue
        if _has_line_end(sample, encoding) or zeros >= _PLAIN_SHARE * (len(sample) // 2):
            return encoding
    return "utf-8"


def _has_line_end(data: bytes, encoding: str) -> bool:
    found = data.find(_LINE_ENDS[encoding])
    while found % 2 == 1:  # -1, or not where a character starts
        if found < 0:
            return False
        found = data.find(_LINE_ENDS[encoding], found + 1)
    return True


def decode_text(data: bytes) -> str:
    """Return the text of a user's file, without a byte order mark.

    Raises:
        NotText: it is not text in UTF-8, UTF-16 or UTF-32.
    """
    encoding = text_encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG").removesuffix("-LE").removesuffix("-BE")
        raise NotText(f"not text in {name} (byte {error.start})") from error
    return text.removeprefix("\ufeff")
