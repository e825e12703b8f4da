"""Declares the groups of options that a few commands share: regions of the picture, wall-clock time, and heads."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.options.groups import EVENTS, FIND, HOW, option, parse_duration
from vadcli.types import DayWindow, TimeRules, TimeSource, When
from vadcli.types.wall_clock import compile_time_pattern, zone_named


@dataclass(frozen=True)
class RegionOptions:
    """The parts of the picture that a scan hides, and the sizes of things that it finds."""

    min_size: float | None = option(
        None,
        "Ignore moving things whose height is below this, in percent of the picture's height (motion detector).",
        panel=HOW,
        metavar="PERCENT",
    )
    motion_detail: float = option(
        1.0,
        "Work on frames that are this many times wider and higher than about 360x240, for small things in large pictures "
        "(motion detector). 2 takes about four times as long.",
        panel=HOW,
        metavar="FACTOR",
    )
    still: bool = option(
        False,
        "Also find what appears and then stays for 10 seconds or more, such as an abandoned bag (motion detector).",
        panel=HOW,
    )
    ignore: Path | None = option(
        None,
        "Hide parts of the picture, such as a clock or a tree: polygons per camera (JSON), or a mask image (white is hidden).",
        panel=HOW,
        metavar="FILE",
    )
    only: Path | None = option(
        None,
        "Hide everything except these parts of the picture: polygons per camera (JSON), or a mask image (white is visible).",
        panel=HOW,
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        if self.min_size is not None and not 0 < self.min_size < 100:
            raise UsageError(f"--min-size {self.min_size:g} is outside 0-100", hint="give a share of the height in percent")
        if not 1 <= self.motion_detail <= 4:
            raise UsageError(
                f"--motion-detail {self.motion_detail:g} is outside 1-4", hint="1 is the default; 2 is enough for 1080p"
            )


LAST_RUN = "last-run"
FIRST_SOURCES = ("container", "container-local", "name", "modified")


@dataclass(frozen=True)
class TimeOptions:
    """Where the start time of a video comes from."""

    time_zone: str = option(
        "",
        "Time zone of the cameras' clocks and of the times you give, like Europe/Berlin or +01:00.",
        panel=EVENTS,
        metavar="ZONE",
        default_text="that of this machine",
    )
    time_from: str = option(
        "",
        "How to find when a video started: a pattern of its path like %Y-%m-%d/%H.%M.%S, or the source to believe first: "
        "container, container-local, name or modified.",
        panel=EVENTS,
        metavar="PATTERN",
        default_text="container, then name, then modified",
    )

    def __post_init__(self) -> None:
        self.time_rules()

    def time_rules(self) -> TimeRules:
        """Return the rules by which the start of a video is found.

        Raises:
            UsageError: the time zone or the pattern can't be read.
        """
        try:
            zone_named(self.time_zone)
        except ValueError as error:
            hint = "write a name like Europe/Berlin, UTC, or an offset like +01:00"
            raise UsageError(f"--time-zone {self.time_zone}: {error}", hint=hint) from error
        given = bool(self.time_zone or self.time_from)
        if not self.time_from or self.time_from in FIRST_SOURCES:
            first = TimeSource(self.time_from.removesuffix("-local") or "container")
            return TimeRules(self.time_zone, first, self.time_from == "container-local", given=given)
        try:
            return TimeRules(self.time_zone, pattern=compile_time_pattern(self.time_from), given=given)
        except ValueError as error:
            hint = "write fields like %Y%m%d_%H%M%S, a regular expression with (?P<year>...), or " + ", ".join(FIRST_SOURCES)
            raise UsageError(f"--time-from {self.time_from!r}: {error}", hint=hint) from error


@dataclass(frozen=True)
class WhenOptions(TimeOptions):
    """The choice of events by wall-clock time."""

    since: str | None = option(
        None,
        "Only what happened at this time or later: a time like 2026-11-27T06:00, or an age like 24h.",
        panel=FIND,
        metavar="WHEN",
    )
    between: str | None = option(
        None, "Only what happened in this part of a day, like 22:00-06:00.", panel=FIND, metavar="FROM-TO"
    )

    def __post_init__(self) -> None:
        TimeOptions.__post_init__(self)
        self.when()

    def when(self) -> When:
        """Return the choice by time, without `--since last-run`, which chooses by run.

        Raises:
            UsageError: a time can't be read.
        """
        since = None if self.since in (None, LAST_RUN) else parse_since(self.since, self.time_zone)
        try:
            return When(since, None if self.between is None else DayWindow.parse(self.between))
        except ValueError as error:
            raise UsageError(f"--between {self.between!r}: {error}", hint="write e.g. 22:00-06:00") from error


def parse_since(text: str, zone: str = "") -> datetime:
    """Return the time that `--since` means, with its time zone.

    Raises:
        UsageError: the text is neither a time nor a duration.
    """
    try:
        told = datetime.fromisoformat(text)
        return told if told.tzinfo else told.replace(tzinfo=zone_named(zone)).astimezone(UTC)
    except ValueError:
        pass
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text, "since"))
    except (UsageError, OverflowError) as error:
        hint = "give a time like 2026-11-27T06:00, or how long ago, like 24h"
        raise UsageError(f"--since {text!r} is not understood", hint=hint) from error


@dataclass(frozen=True)
class HeadOptions:
    """The head that judges the events."""

    head: Path | None = option(
        None, "Judge the events by this head, which `vadcli learn` wrote; it reads stored vectors.", panel=EVENTS, metavar="DIR"
    )
    head_threshold: float | None = option(
        None, "With --head: keep an event if the head's score reaches this value, 0-1.", panel=EVENTS, default_text="0.5"
    )
    embeddings: tuple[str, ...] = option(
        (), "Also read vectors from this output folder, for a head of two encoders; repeatable.", panel=EVENTS, metavar="DIR"
    )

    def __post_init__(self) -> None:
        if self.head_threshold is None:
            return
        if self.head is None:
            raise UsageError("--head-threshold needs --head")
        if not 0.0 <= self.head_threshold <= 1.0:
            raise UsageError(f"--head-threshold {self.head_threshold:g} is outside 0-1")
