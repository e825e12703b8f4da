"""The options of wall-clock time: how the start of a video is found, and which events are chosen by time.

Their texts are read here, so that `--since` and `--between` mean the same in every command.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from vadcli.errors import UsageError
from vadcli.options.groups import EVENTS, FIND, option, parse_duration
from vadcli.types import DayWindow, TimeRules, TimeSource, When
from vadcli.types.name_times import compile_time_pattern
from vadcli.types.wall_clock import zone_named

LAST_RUN = "last-run"
FIRST_SOURCES = ("container", "container-local", "name", "modified")


@dataclass(frozen=True)
class TimeOptions:
    """How the start of a video is found."""

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
        """Returns the rules by which the start of a video is found.

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
    """Which events are chosen by wall-clock time."""

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
        """Returns the choice by time. `--since last-run` is not part of it, because it chooses by run.

        Raises:
            UsageError: a time can't be read.
        """
        since = None if self.since in (None, LAST_RUN) else parse_since(self.since, self.time_zone)
        try:
            return When(since, None if self.between is None else DayWindow.parse(self.between))
        except ValueError as error:
            raise UsageError(f"--between {self.between!r}: {error}", hint="write e.g. 22:00-06:00") from error


def parse_since(text: str, zone: str = "") -> datetime:
    """Returns the time that `--since` means, with its time zone.

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
