"""Finds the time when a video started (`TimeRules`), and chooses events by wall-clock time (`When`).

All arithmetic is done in UTC, so a video that contains a change of daylight saving time has the right length. A time that the
clock skips in spring counts as the time one hour later. A time that comes twice in autumn counts as the first one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

from vadcli.types.name_times import time_by_pattern, time_in_path

EARLIEST = datetime(2000, 1, 2, 12, tzinfo=UTC)
"""Earlier times are not believed: a camera whose clock was never set says 1904, 1970, 1980 or 1 January 2000.

This is noon of 2 January 2000, when 1 January has ended in every time zone.
"""
CLOCK_ERROR = timedelta(minutes=10)
"""A time that is further in the future than this is not believed."""
_OFFSET = re.compile(r"(?:UTC|GMT)?([+-])(\d{1,2}):?(\d\d)?", re.IGNORECASE)


class TimeSource(StrEnum):
    """The source of the start time of a video."""

    OPTION = "option"
    CONTAINER = "container"
    NAME = "name"
    MODIFIED = "modified"


@dataclass(frozen=True)
class StartTime:
    """When a video started.

    Attributes:
        moment: the start, with its time zone.
        source: the source of this time.
        zone: name of the time zone, like `Europe/Berlin` or `+01:00`; "" if only the offset at the start is known.
    """

    moment: datetime
    source: TimeSource
    zone: str = ""

    @property
    def is_recorded(self) -> bool:
        """False if the start comes from the time of the file's last change, which copying the file may change."""
        return self.source is not TimeSource.MODIFIED

    def at(self, seconds: float) -> datetime:
        """Return the time this many seconds after the start."""
        return (self.moment.astimezone(UTC) + timedelta(seconds=seconds)).astimezone(self.moment.tzinfo)

    def text_at(self, seconds: float) -> str:
        """Return the time this many seconds after the start, as ISO 8601 with its offset from UTC; see `iso`."""
        return iso(self.at(seconds))

    def to_json(self) -> dict[str, str | None]:
        """Return the start as the fields that an events document stores in `video`."""
        return {"start_time": iso(self.moment), "time_source": str(self.source), "time_zone": self.zone or None}

    @classmethod
    def from_json(cls, video: Mapping[str, Any]) -> StartTime | None:
        """Return the start that `to_json` stored; None if the start is unknown.

        Raises:
            ValueError: the time or the source is not valid.
        """
        if not video.get("start_time"):
            return None
        moment, name = datetime.fromisoformat(video["start_time"]), str(video.get("time_zone") or "")
        if moment.tzinfo is None:
            raise ValueError(f"start_time {video['start_time']} has no offset from UTC")
        try:
            moment = moment.astimezone(zone_named(name)) if name else moment
        except ValueError:  # this machine does not know the time zone; the offset in the stored time is enough
            name = ""
        return cls(moment, TimeSource(video["time_source"]), name)


def iso(moment: datetime) -> str:
    """Return a time as ISO 8601, rounded to milliseconds, which are left out if they are 0."""
    odd = timedelta(microseconds=500 - (moment.microsecond + 500) % 1000)
    # The sum is made in UTC: in local time, 02:30 comes twice in autumn, and the sum would always give the first one.
    rounded = (moment.astimezone(UTC) + odd).astimezone(moment.tzinfo)
    return rounded.isoformat(timespec="milliseconds" if rounded.microsecond else "seconds")


def zone_named(name: str) -> tzinfo | None:
    """Return the time zone of a name like `Europe/Berlin`, `UTC` or `+01:00`. None for "", which means this machine's zone.

    Raises:
        ValueError: the name is not a time zone.
    """
    if not name:
        return None
    if match := _OFFSET.fullmatch(name):
        offset = timedelta(hours=int(match[2]), minutes=int(match[3] or 0))
        if offset >= timedelta(days=1):
            raise ValueError(f"{name} is not an offset from UTC")
        return timezone(-offset if match[1] == "-" else offset)
    if name.upper() in ("UTC", "Z"):
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is not a time zone") from error


def local_zone_name() -> str:
    """Return the name of this machine's time zone, from TZ or /etc/localtime; "" if zoneinfo does not know the name."""
    linked = os.path.realpath("/etc/localtime").rpartition("/zoneinfo/")[2]
    name = os.environ.get("TZ", linked).lstrip(":")
    try:
        return name if isinstance(zone_named(name), ZoneInfo) else ""
    except ValueError:
        return ""


@dataclass(frozen=True)
class TimeRules:
    """Finds when a video started.

    Attributes:
        zone: name of the time zone of the cameras; "" for the local zone of this machine.
        first: the source that is tried before the others.
        local_container: True if containers store local time instead of UTC.
        pattern: finds a time in a path, see `compile_time_pattern`; None if only the table of known names is used.
        given: True if the user gave any of these values; then stored times are computed again.
    """

    zone: str = ""
    first: TimeSource = TimeSource.CONTAINER
    local_container: bool = False
    pattern: re.Pattern[str] | None = None
    given: bool = False

    def start_of(
        self, path: str, *, created: str = "", modified_s: float | None = None, duration_s: float | None = None
    ) -> StartTime | None:
        """Return the start from the first source that has a believable time; None if no source has such a time.

        Args:
            path: the path of the video, with its folders.
            created: creation time as the container says it, ISO 8601.
            modified_s: time of the file's last change in seconds since 1970; taken as the end of the recording.
            duration_s: the video's length; needed with `modified_s`.
        """
        container = parse_created(created)
        if container is not None and self.local_container:
            container = container.replace(tzinfo=None)
        modified = None
        # The upper limit, in the year 6325, keeps damaged file times within the range of datetime.
        if modified_s is not None and duration_s is not None and 0 <= modified_s - duration_s < 2**37:
            modified = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=modified_s - duration_s)
        found = {TimeSource.CONTAINER: container, TimeSource.NAME: time_in_path(path), TimeSource.MODIFIED: modified}
        sources = sorted(found.items(), key=lambda item: item[0] is not self.first)
        if self.pattern is not None:
            sources.insert(0, (TimeSource.OPTION, time_by_pattern(path, self.pattern)))
        name = self.zone or local_zone_name()
        now = datetime.now(UTC)
        for source, told in sources:
            moment = None if told is None else _in_zone(told, zone_named(name))
            if moment is not None and EARLIEST <= moment <= now + CLOCK_ERROR:
                return StartTime(moment, source, name)
        return None


DEFAULT_RULES = TimeRules()


def in_zone(start: StartTime, zone: str) -> StartTime:
    """Return the same moment in another time zone; "" means this machine's zone."""
    name = zone or local_zone_name()
    return StartTime(start.moment.astimezone(zone_named(name)), start.source, name)


def _in_zone(moment: datetime, zone: tzinfo | None) -> datetime | None:
    """Return a moment in a time zone, or in this machine's zone if `zone` is None; None if it is out of datetime's range.

    A moment without a zone is a time in the target zone.
    """
    try:
        if moment.tzinfo is None and zone is not None:
            moment = moment.replace(tzinfo=zone)
        return moment.astimezone(UTC).astimezone(zone)  # UTC moves a time that the clock skips in spring by one hour
    except (OverflowError, ValueError, OSError):
        return None


def parse_created(text: str) -> datetime | None:
    """Return a container's creation time, with a zone if the text has one; None if the text is not a time."""
    fixed = re.sub(r"^(\d{4})[:/](\d\d)[:/](\d\d)", r"\1-\2-\3", text.strip())
    try:
        return datetime.fromisoformat(fixed) if len(fixed) > 10 else None
    except ValueError:
        return None


@dataclass(frozen=True)
class DayWindow:
    """A part of every day, from `begin` to just before `end`. If `end` is earlier than `begin`, the part contains midnight."""

    begin: time
    end: time

    @classmethod
    def parse(cls, text: str) -> DayWindow:
        """Read `22:00-06:00` or `22-6`.

        Raises:
            ValueError: the text is not a part of a day.
        """
        match = re.fullmatch(r"\s*(\d{1,2}(?::\d\d){0,2})\s*[-–]\s*(\d{1,2}(?::\d\d){0,2})\s*", text)
        if match is None:
            raise ValueError("it is not FROM-TO")
        begin, end = _time_of_day(match[1]), _time_of_day(match[2])
        if begin == end and (match[1], match[2]) != ("00:00", "24:00"):
            raise ValueError("both times are equal")
        return cls(begin, end)

    @property
    def length_s(self) -> float:
        """Length in seconds, at most one day."""
        return (_seconds(self.end) - _seconds(self.begin)) % _DAY_S or _DAY_S

    def after_begin_s(self, moment: datetime) -> float:
        """Return the seconds from the last beginning of the window to the time of day of `moment`, in [0, 86400)."""
        return (_seconds(moment.time()) - _seconds(self.begin)) % _DAY_S

    def overlaps(self, begin: datetime, end: datetime) -> bool:
        """True if a span of time touches the window on at least one day. Both times must be in the time zone of the window."""
        begin, end = begin.replace(tzinfo=None), end.replace(tzinfo=None)
        after_s = self.after_begin_s(begin)
        return after_s < self.length_s or _DAY_S - after_s < (end - begin).total_seconds()


_DAY_S = 86400.0


def _seconds(moment: time) -> float:
    return moment.hour * 3600 + moment.minute * 60 + moment.second + moment.microsecond / 1e6


def _time_of_day(text: str) -> time:
    hour, minute, second = [*map(int, text.split(":")), 0, 0][:3]
    return time(0) if (hour, minute, second) == (24, 0, 0) else time(hour, minute, second)


@dataclass(frozen=True)
class When:
    """A choice of events by wall-clock time.

    Attributes:
        since: only events that end at this time or later; None for all.
        between: only events that touch this part of a day; None for all.
    """

    since: datetime | None = None
    between: DayWindow | None = None

    def __bool__(self) -> bool:
        return self.since is not None or self.between is not None

    def takes(self, start: StartTime | None, start_s: float, end_s: float) -> bool:
        """True if this choice includes an event of a video with this start."""
        if not self:
            return True
        if start is None:
            return False
        begin, end = start.at(start_s), start.at(end_s)
        # Python compares times of one zone by their clock time, which comes twice in autumn. So they are compared in UTC.
        recent = self.since is None or end.astimezone(UTC) >= self.since.astimezone(UTC)
        return recent and (self.between is None or self.between.overlaps(begin, end))
