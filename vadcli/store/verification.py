"""`verify.json`: the record of the newest run of `vadcli verify`, with the result of its audit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vadcli.store import OutputLayout, printable
from vadcli.store.atomic import Scratch
from vadcli.types.codec import document_errors, read_document, structure
from vadcli.types.text import clock, how_many

VERIFICATION_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Audit:
    """An estimate of what the scan misses, from random clips that its scores did not propose.

    Attributes:
        clips, confirmed: audited clips, and how many of them the model confirms.
        low, high: the share of all clips that were not proposed that the model would confirm (95 % confidence interval).
        left_out_s: footage that was not proposed.
        found_s: footage that was proposed and confirmed.
    """

    clips: int
    confirmed: int
    low: float
    high: float
    left_out_s: float
    found_s: float

    @property
    def text(self) -> str:
        """The sentence that says how much the scan misses."""
        most = f"{100 * self.high:.2g} %"
        share = f"between {100 * self.low:.2g} % and {most}" if self.confirmed else f"at most {most}"
        missed = clock(self.high * self.left_out_s)
        return (
            f"{self.confirmed} of {how_many(self.clips, 'random clip')} outside the proposals confirmed: {share} of the "
            f"{clock(self.left_out_s)} that was not proposed (95 % confidence), or up to {missed}; "
            f"{clock(self.found_s)} was proposed and confirmed"
        )


@dataclass(frozen=True)
class VerificationRun:
    """One run of `vadcli verify`.

    Attributes:
        version: the version of vadcli.
        command: the command line.
        config: the effective options, as JSON values.
        model: the model that was asked, as the user named it.
        start, end: when the run began and ended, in ISO 8601; `end` is None if it is still running or was killed.
        exit_code: None if `end` is None.
        stopped: why the run ended early; "" if it did not.
        asked, left: clips that this run asked about, and clips that are still to be asked.
        seconds: how long the model took.
        confirmed, rejected, not_asked: numbers of events.
        audit: an estimate of what the scan misses; None if no clip was audited.
        problems: one line per video that could not be verified completely.
    """

    version: str
    command: tuple[str, ...]
    config: Mapping[str, Any]
    model: str
    start: str
    end: str | None = None
    exit_code: int | None = None
    stopped: str = ""
    asked: int = 0
    left: int = 0
    seconds: float = 0.0
    confirmed: int = 0
    rejected: int = 0
    not_asked: int = 0
    audit: Audit | None = None
    problems: tuple[str, ...] = field(default_factory=tuple)

    @property
    def text(self) -> str:
        """A sentence with the results for the events, or that the run has not ended."""
        if self.end is None:
            return "not ended: it is still running, or was killed"
        return f"{how_many(self.confirmed, 'event')} confirmed, {self.rejected} rejected, {self.not_asked} not asked"


def write_verification(layout: OutputLayout, scratch: Scratch, run: VerificationRun) -> None:
    """Write the record.

    Raises:
        OutputError: the record can't be written.
    """
    document = {"format_version": VERIFICATION_FORMAT_VERSION, **asdict(run)}
    scratch.write_text(layout.verification, printable(json.dumps(document, indent=2, ensure_ascii=False)) + "\n")


def read_verification(layout: OutputLayout) -> VerificationRun | None:
    """Return the record; None if no record is stored.

    Raises:
        DocumentError: the file is damaged, or has another version.
    """
    path = layout.verification
    if not path.exists():
        return None
    document = read_document(path, version=VERIFICATION_FORMAT_VERSION, what="a record of vadcli verify")
    with document_errors(path, "a record of vadcli verify"):
        return structure(VerificationRun, document, extra=True)
