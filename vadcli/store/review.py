"""What a reader said of events: the files that the report's page saves, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vadcli.errors import DocumentError
from vadcli.types import ReviewedEvent, Verdict

REVIEW_FORMAT_VERSION = 1
_KEPT_FROM_RUNNING = re.compile(r"'+[=+\-@\t\r]")


def read_review(path: Path) -> tuple[ReviewedEvent, ...]:
    """The entries of a saved review, in its order; CSV where the name ends so, else JSON.

    Raises:
        DocumentError: it can't be read, or an entry is not understood.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DocumentError(f"{path}: can't be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DocumentError(f"{path}: not UTF-8 text") from error
    entries = _rows(text) if path.suffix.lower() == ".csv" else _entries(path, text)
    return tuple(_entry(path, number, entry) for number, entry in enumerate(entries, 1))


def _entries(path: Path, text: str) -> list[Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise DocumentError(f"{path}: not JSON: {error}", hint="give what the report's page saved") from error
    if not isinstance(document, dict) or document.get("format_version") != REVIEW_FORMAT_VERSION:
        raise DocumentError(f"{path}: not a review of format version {REVIEW_FORMAT_VERSION}")
    entries = document.get("reviews")
    if not isinstance(entries, list):
        raise DocumentError(f"{path}: its reviews are no list")
    return entries


def _rows(text: str) -> list[dict[str, str]]:
    """A table's rows without the apostrophes that keep a spreadsheet from running a cell."""
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
