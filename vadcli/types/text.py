"""Decodes the text files of users: UTF-8, and also UTF-8 with a byte order mark and UTF-16, which Windows programs write."""

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
# At least this share of the characters must be Latin (a zero byte each) if a text without a line end is to count as UTF-16.
_PLAIN_SHARE = 0.7
# Zero bytes in the other places must be fewer than this share. They are the low bytes of characters such as U+4E00.
_STRAY_SHARE = 0.1
_SAMPLE_BYTES = 1 << 16


class NotText(ValueError):
    """The bytes are not text in an encoding that vadcli reads. The message names the encoding that was tried."""


def text_encoding(data: bytes) -> str:
    """Returns the encoding of a text: `utf-8`, `utf-8-sig`, or a form of UTF-16 or UTF-32. Anything else counts as UTF-8.

    UTF-16 without a byte order mark is recognised by its zero bytes: nearly all of them are in odd places, or nearly all are in
    even places. So a list of paths that are separated by NUL still counts as UTF-8.
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
    """Returns the text of a user's file, without a byte order mark.

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
