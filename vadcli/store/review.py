"""Reads the review of events that the report page saves, as JSON or CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vadcli.errors import DocumentError
from vadcli.types import ReviewedEvent, Verdict
from vadcli.types.codec import read_document
from vadcli.types.text import SAVE_AS, NotText, decode_text

REVIEW_FORMAT_VERSION = 1
_KEPT_FROM_RUNNING = re.compile(r"'+[=+\-@\t\r]")


def read_review(path: Path) -> tuple[ReviewedEvent, ...]:
    """Read the entries of a saved review in order. Reads CSV if the file name ends in .csv, otherwise JSON.

    Raises:
        DocumentError: the file can't be read, or an entry is not valid.
    """
    try:
        text = decode_text(path.read_bytes())
    except OSError as error:
        raise DocumentError(f"{path}: can't be read: {error.strerror or error}") from error
    except NotText as error:
        raise DocumentError(f"{path}: {error}", hint=SAVE_AS) from error
    entries = _rows(text) if path.suffix.lower() == ".csv" else _entries(path, text)
    return tuple(_entry(path, number, entry) for number, entry in enumerate(entries, 1))


def _entries(path: Path, text: str) -> list[Any]:
    hint = "give a file that the report page saved"
    document = read_document(path, version=REVIEW_FORMAT_VERSION, what="a review", hint=hint, read=lambda _: text.encode())
    entries = document.get("reviews")
    if not isinstance(entries, list):
        raise DocumentError(f"{path}: `reviews` is not a list", hint=hint)
    return entries


def _rows(text: str) -> list[dict[str, str]]:
    """Return the rows of a CSV text, without the apostrophes that keep spreadsheets from running a cell as a formula."""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [
        {
            name: cell[1:] if _KEPT_FROM_RUNNING.match(cell) else cell
            for name, cell in row.items()
            if name and isinstance(cell, str)
        }
        for row in rows
    ]


def _entry(path: Path, number: int, entry: Mapping[str, Any]) -> ReviewedEvent:
    try:
        return ReviewedEvent(
            video=str(entry["video"]),
            start_s=float(entry["start_s"]),
            end_s=float(entry["end_s"]),
            peak_score=float(entry["peak_score"]),
            verdict=Verdict(str(entry["verdict"])),
            note=str(entry.get("note") or ""),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DocumentError(f"{path}: entry {number}: {what}") from error
