"""Reads the review that the report page saves; reads and writes the choices of `vadcli events --write`.

A review is JSON or CSV. The choices are in OUT/choices.json. Scans make events with the thresholds in this file, and leave out
the events that its review marks as false.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vadcli.errors import DocumentError, UsageError
from vadcli.store import OutputLayout, matches, printable
from vadcli.store.atomic import Scratch, remove
from vadcli.types import ReviewedEvent, Thresholds, Verdict
from vadcli.types.text import document_errors, error_text, read_document, read_text, structure

REVIEW_FORMAT_VERSION = 1
_KEPT_FROM_RUNNING = re.compile(r"'+[=+\-@\t\r]")  # an apostrophe keeps spreadsheets from running a cell as a formula


def read_review(path: Path) -> tuple[ReviewedEvent, ...]:
    """Read the entries of a saved review in order. Reads CSV if the file name ends in .csv, otherwise JSON.

    Raises:
        DocumentError: the file can't be read, or an entry is not valid.
    """
    text = read_text(path)
    entries: list[Any]
    if path.suffix.lower() == ".csv":
        entries = []
        for row in csv.DictReader(io.StringIO(text, newline="")):
            cells = {name: cell for name, cell in row.items() if name and isinstance(cell, str)}
            entries.append({name: cell[1:] if _KEPT_FROM_RUNNING.match(cell) else cell for name, cell in cells.items()})
    else:
        hint = "give a file that the report page saved"
        document = read_document(path, version=REVIEW_FORMAT_VERSION, what="a review", hint=hint, read=lambda _: text.encode())
        entries = document.get("reviews", {})
        if not isinstance(entries, list):
            raise DocumentError(f"{path}: `reviews` is not a list", hint=hint)
    reviewed = []
    for number, entry in enumerate(entries, 1):
        try:
            reviewed.append(
                ReviewedEvent(
                    video=str(entry["video"]),
                    start_s=float(entry["start_s"]),
                    end_s=float(entry["end_s"]),
                    peak_score=float(entry["peak_score"]),
                    verdict=Verdict(str(entry["verdict"])),
                    note=str(entry.get("note") or ""),
                )
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DocumentError(f"{path}: entry {number}: {error_text(error)}") from error
    return tuple(reviewed)


CHOICES_FORMAT_VERSION = 1
_CHOICES = "the choices of `vadcli events --write`"
_FORGET = "forget them with `vadcli events --forget`, and write them again"


@dataclass(frozen=True)
class ChosenThresholds:
    """Thresholds for videos that one detector scored.

    Attributes:
        detector: the detector's name.
        thresholds: how its scores become events.
        include: globs of the videos; empty for all.
    """

    detector: str
    thresholds: Thresholds
    include: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choices:
    """The thresholds and the review of an output folder.

    Attributes:
        thresholds: the entries; if several entries fit a video, the last one counts.
        reviews: verdicts on events.
        head: folder of the head that judges events; "" for no head.
        head_threshold: an event is kept if the head gives it at least this score.
        embeddings: further folders with vectors that the head reads.
    """

    thresholds: tuple[ChosenThresholds, ...] = ()
    reviews: tuple[ReviewedEvent, ...] = ()
    head: str = ""
    head_threshold: float = 0.5
    embeddings: tuple[str, ...] = ()

    def with_reviews(self, entries: Sequence[ReviewedEvent]) -> Choices:
        """Return the choices with more verdicts. A new verdict replaces the old verdicts whose spans overlap its span."""

        def overlap(old: ReviewedEvent, new: ReviewedEvent) -> bool:
            common_s = min(old.end_s, new.end_s) - max(old.start_s, new.start_s)
            return old.video == new.video and (common_s > 0 or (old.start_s, old.end_s) == (new.start_s, new.end_s))

        kept = [old for old in self.reviews if not any(overlap(old, new) for new in entries)]
        return replace(self, reviews=(*kept, *entries))

    def with_thresholds(
        self, detector: str, include: tuple[str, ...], new: Thresholds, change: Callable[[Thresholds], Thresholds]
    ) -> Choices:
        """Return the choices after events were written with other thresholds.

        Args:
            detector: the detector of the videos.
            include: globs of the videos; empty for all.
            new: the thresholds that these videos have now.
            change: puts the values that the user gave now into the thresholds of an earlier choice. If it raises UsageError,
                because the values contradict each other, the earlier choice stays as it is.
        """
        entries = list(self.thresholds)
        for place, old in enumerate(entries):
            if old.detector == detector and include in ((), old.include):
                with suppress(UsageError):
                    entries[place] = replace(old, thresholds=change(old.thresholds))
        same = [entry for entry in entries if (entry.detector, entry.include) == (detector, include)]
        others = [entry for entry in entries if entry not in same]
        own = same[-1:] or [ChosenThresholds(detector, new, include)]
        # The last entry that fits a video counts. So entries for some videos go to the end, and entries for all to the start.
        return replace(self, thresholds=(*others, *own) if include else (*own, *others))


def chosen_for(entries: Sequence[ChosenThresholds], video: str) -> Thresholds | None:
    """Return the thresholds of the last entry that fits a video; None if no entry fits."""
    return next((entry.thresholds for entry in reversed(entries) if matches(video, entry.include)), None)


def read_choices(layout: OutputLayout) -> Choices:
    """Read the choices of an output folder. They are empty if the folder has no file of choices.

    Raises:
        DocumentError: the file can't be read or is damaged.
    """
    path = layout.choices
    if not path.exists():
        return Choices()
    document = read_document(path, version=CHOICES_FORMAT_VERSION, what=_CHOICES, hint=_FORGET)
    with document_errors(path, _CHOICES, _FORGET):
        return structure(Choices, document, extra=True)


def write_choices(layout: OutputLayout, scratch: Scratch, choices: Choices) -> None:
    """Write the choices of an output folder, or remove the file if the choices are empty.

    Raises:
        OutputError: the file can't be written.
    """
    if choices == Choices():
        remove(layout.choices)
        return
    document = {"format_version": CHOICES_FORMAT_VERSION, **asdict(choices)}
    scratch.write_text(layout.choices, printable(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)) + "\n")
