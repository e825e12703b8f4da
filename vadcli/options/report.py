"""What `vadcli report` and `vadcli status` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.options.fields import FIND, OUTPUT, RUNNING, option
from vadcli.options.groups import DecodeOptions, TalkOptions
from vadcli.options.parsing import parse_duration

REPORT_FORMATS = ("html", "markdown", "json", "email")


@dataclass(frozen=True)
class ReportOptions(DecodeOptions, TalkOptions):
    """Everything `vadcli report` can be told."""

    since: str | None = option(
        None,
        "Only what runs worked on that began then or later: last-run, a time like 2026-11-27T06:00, or how long ago, like 24h.",
        panel=FIND,
        metavar="WHEN",
    )
    include: tuple[str, ...] = option((), "Only videos matching this glob; repeatable.", panel=FIND, metavar="GLOB")
    footage: Path | None = option(
        None, "Where the footage is now.", panel=FIND, metavar="DIR", default_text="where it was scanned"
    )
    format: str = option("html", "A page, or a digest for a mail or a program.", panel=OUTPUT, choices=REPORT_FORMATS)
    to: Path | None = option(
        None,
        "The file to write; - is stdout.",
        panel=OUTPUT,
        metavar="FILE",
        default_text="OUT/report.html; digests go to stdout",
    )
    assets: Path | None = option(
        None,
        "Put pictures, clips and curves into this folder instead of the page; both move together.",
        panel=OUTPUT,
        metavar="DIR",
    )
    title: str = option("", "The page's heading, or the mail's subject.", panel=OUTPUT, default_text="the folder's name")
    thumbnails: int = option(3, "Pictures an event, 0 for none.", panel=OUTPUT, metavar="N")
    pictured: int = option(200, "Events with pictures at most, the highest scores first.", panel=OUTPUT, metavar="N")
    clips: bool = option(False, "Also a playable clip of each of these events.", panel=OUTPUT)
    clip_length: str = option(
        "60s", "At most so much of an event in its clip, around the highest score.", panel=OUTPUT, metavar="TIME"
    )
    max_mb: float = option(
        5.0, "Without --assets: leave out pictures and clips beyond this size of page.", panel=OUTPUT, metavar="MB"
    )
    mail_from: str = option("", "The mail's sender.", panel=OUTPUT, metavar="ADDRESS", default_text="vadcli at this machine")
    mail_to: tuple[str, ...] = option((), "The mail's recipient; repeatable.", panel=OUTPUT, metavar="ADDRESS")
    fail_on_event: bool = option(False, "Exit 10 when there are events.", panel=RUNNING)

    def __post_init__(self) -> None:
        DecodeOptions.__post_init__(self)
        for name in ("thumbnails", "pictured"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} {getattr(self, name)} must be at least 0")
        if not self.max_mb > 0:
            raise UsageError(f"--max-mb {self.max_mb:g} must be above 0")
        if parse_duration(self.clip_length, "clip_length") <= 0:
            raise UsageError(f"--clip-length {self.clip_length} must be above 0")
        if self.format != "html" and (self.assets is not None or self.clips):
            raise UsageError(f"--format {self.format} holds no pictures", hint="leave --assets and --clips out")
        if str(self.to) == "-" and self.assets is not None:
            raise UsageError("--assets: a page on stdout can't name files beside it", hint="name a file with --to")
        for address in (self.mail_from, *self.mail_to):
            if address and ("@" not in address or any(character in address for character in "\r\n")):
                raise UsageError(f"{address!r} is not a mail address")


@dataclass(frozen=True)
class StatusOptions(TalkOptions):
    """Everything `vadcli status` can be told."""

    watch: bool = option(False, "Look again until no scan is running.", panel=RUNNING)
    every: str = option("1s", "With --watch: how often.", panel=RUNNING, metavar="TIME")

    def __post_init__(self) -> None:
        if parse_duration(self.every, "every") <= 0:
            raise UsageError("--every must be above 0")
