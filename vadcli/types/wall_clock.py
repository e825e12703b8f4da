"""The time when a video started, and the choice of events by wall-clock time.

The first part finds a time in a path. A table lists how recorders, cameras and phones name their files; docs/time.md shows this
table. `time_in_path` tries the rows of the table from top to bottom. `compile_time_pattern` compiles the user's own pattern
(`--time-from`).

In the second part, `TimeRules` chooses between the time in the path and other sources, and `When` chooses events. Times are
added and compared in UTC, so a video is not an hour too long or too short when daylight saving time begins or ends. A local
time that does not exist, because the clock skips it in spring, means the time one hour later. A local time that exists twice,
in autumn, means the first one.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

_Y, _M, _D = r"(?P<year>(?:19|20)\d\d)", r"(?P<month>0[1-9]|1[0-2])", r"(?P<day>0[1-9]|[12]\d|3[01])"
_H, _MIN, _S = r"(?P<hour>[01]\d|2[0-3])", r"(?P<minute>[0-5]\d)", r"(?P<second>[0-5]\d)"
_TIME = rf"{_H}(?:h|(?P<gap>[-_.:]?)){_MIN}(?:m|(?P=gap)){_S}"  # the same separator twice, so that a date is not read as a time
_H1 = r"(?P<hour>2[0-3]|[01]?\d)"
_DATE = rf"(?<!\d){_Y}[-_.]?{_M}[-_.]?{_D}"
_IN_FOLDER = rf"^.*/{_Y}[-_./]?{_M}[-_./]?{_D}"  # greedy: the date of the innermost folder counts
_HALF_DAY = rf"(?P<hour12>1[0-2]|0?[1-9])[-_.:]{_MIN}[-_.:]{_S}\s?(?P<half>[AaPp])\.?[Mm]\b"
_MONTH_FIRST = rf"(?<!\d)(?P<month>1[0-2]|0?[1-9])[-.](?P<day>3[01]|[12]\d|0?[1-9])[-.]{_Y}"
_ZONE = r"(?P<zone>Z(?![A-Za-z])|\+\d\d:?\d\d(?!\d))"
_REST = "[^/]*$"  # the match is in the last part of the path


@dataclass(frozen=True)
class NamePattern:
    """One row of the table: a regular expression for a time in a path, with examples.

    Attributes:
        examples: for each maker, the path of a recording that started on 29 November 2026 at 14:23:45 in Berlin (13:23:45 UTC).
        regex: finds the time. It expects a path with `/` at the beginning and without the file name's suffix. Its named
            groups are the parts of the time.
        utc: True if times in these paths are in UTC; False if they are in the time zone of the camera.
    """

    examples: dict[str, str]
    regex: str
    utc: bool = False


PATTERNS: tuple[NamePattern, ...] = (
    NamePattern(
        {"Google Pixel": "PXL_20261129_132345678.mp4"},
        rf"/PXL_{_Y}{_M}{_D}_{_H}{_MIN}{_S}(?P<fraction>\d{{3}}){_REST}",
        utc=True,
    ),
    NamePattern({"Zoom": "GMT20261129-132345_Recording.mp4"}, rf"/GMT{_Y}{_M}{_D}-{_H}{_MIN}{_S}(?!\d){_REST}", utc=True),
    NamePattern(
        {"Frigate, recordings": "2026-11-29/13/gate/23.45.mp4"}, rf"/{_Y}-{_M}-{_D}/{_H}/[^/]+/{_MIN}\.{_S}$", utc=True
    ),
    NamePattern(
        {"Frigate, recordings before 0.12": "2026-11/29/14/gate/23.45.mp4"}, rf"{_IN_FOLDER}/{_H}/[^/]+/{_MIN}[-_.]{_S}$"
    ),
    NamePattern({"Frigate, clips": "gate-1795958625.272411-0lbwng.mp4"}, r"-(?P<epoch>1\d{9}\.\d{1,6})(?:-[^/]*)?$"),
    NamePattern({"Reolink, in folders": "2026-11-29/14/23.45.mp4"}, rf"{_IN_FOLDER}/{_H}/{_MIN}[-_.]?{_S}$"),
    NamePattern({"Xiaomi": "2026112914/23M45S_1795958625.mp4"}, rf"/{_Y}{_M}{_D}{_H}/{_MIN}M{_S}S(?:_\d+)?$"),
    NamePattern({"Yi": "2026Y11M29D14H/23M45S60.mp4"}, rf"/{_Y}Y{_M}M{_D}D{_H}H/(?:E\d)?{_MIN}M{_S}S\d*$"),
    NamePattern({"Wyze": "record/20261129/14/23.mp4"}, rf"{_IN_FOLDER}/{_H}/{_MIN}$"),
    NamePattern({"Arlo": "1795958625123.mp4"}, r"/(?P<epoch_ms>1[1-9]\d{11})$"),
    NamePattern({"Unix time": "1795958625.mp4"}, r"/(?P<epoch>1[1-9]\d{8})$"),
    NamePattern(
        {"UniFi Protect": "Front Door - 11-29-2026, 2.23.45pm.mp4", "Milestone, US": "Gate 11-29-2026 2-23-45 PM.mkv"},
        rf"{_MONTH_FIRST}[ ,_]+{_HALF_DAY}{_REST}",
    ),
    NamePattern(
        {"UniFi Protect, with time zone": "Front Door 11-29-2026, 14.23.45 GMT+1.mp4"},
        rf"{_MONTH_FIRST}, {_H1}\.{_MIN}\.{_S} (?:GMT|UTC)(?P<gmt>[+-]\d{{1,2}}(?::\d\d)?)?(?!\d){_REST}",
    ),
    NamePattern(
        {
            "macOS": "Screen Recording 2026-11-29 at 2.23.45\u202fPM.mov",
            "WhatsApp, desktop": "WhatsApp Video 2026-11-29 at 2.23.45 PM.mp4",
        },
        rf"{_DATE}(?: at |[ ,_]+){_HALF_DAY}{_REST}",
    ),
    NamePattern({"Nextbase": "261129_142345_001_FH.MP4"}, rf"/(?P<year2>\d\d){_M}{_D}_{_H}{_MIN}{_S}_\d+_[A-Z]+$"),
    NamePattern({"Mio": "FILE261129-142345F.MP4"}, rf"/[A-Z]+(?P<year2>\d\d){_M}{_D}-{_H}{_MIN}{_S}[A-Z]?$"),
    NamePattern(
        {
            "Hikvision": "NVR_ch1_main_20261129142345_20261129143000.mp4",
            "Hikvision, upload": "192.168.1.64_01_20261129142345123_MOTION_DETECTION.mp4",
            "Hikvision, iVMS": "Camera 01_20261129142345_20261129143000_123456.mp4",
            "Dahua": "NVR_ch1_main_20261129142345_20261129143000.dav",
            "Dahua, export": "20261129142345-20261129143000.dav",
            "Lorex": "CH01-20261129-142345-143345-0.avi",
            "Axis": "20261129_142345_1A2B_ACCC8E012345/20261129_14/20261129_142345_9D5E.mkv",
            "Reolink": "RecM01_20261129_142345_143000_6D28808_1A468F9.mp4",
            "Reolink, summer time": "RecM07_DST20261129_142345_143000_0_6D28808_1A468F9.mp4",
            "Reolink, upload": "2026/11/29/Gate_00_20261129142345.mp4",
            "UniFi Protect, downloader": "Front Door (4F2A) - 2026-11-29 - 14.23.45+0100.mp4",
            "Milestone": "Gate 2026-11-29 14.23.45.mkv",
            "Synology": "20261129PM/Gate-20261129-142345-1795958625.mp4",
            "Blue Iris": "Gate.20261129_142345.mp4",
            "Foscam": "MDalarm_20261129_142345.mkv",
            "Tapo": "20261129_142345_tp00012.mp4",
            "Eufy": "Camera01_20261129142345.mp4",
            "Ring": "RingVideo_20261129_142345.mp4",
            "Viofo": "2026_1129_142345_001F.MP4",
            "Viofo, newer": "20261129142345_000001F.MP4",
            "70mai": "NO20261129-142345-000001F.MP4",
            "BlackVue": "20261129_142345_NF.mp4",
            "Garmin": "2026-11-29-14-23-45.mp4",
            "Thinkware": "REC_2026_11_29_14_23_45_F.MP4",
            "Vantrue": "20261129_142345_0001_N_A.MP4",
            "Tesla": "2026-11-29_14-23-45-front.mp4",
            "DJI": "DJI_20261129142345_0001_D.MP4",
            "Android": "VID_20261129_142345.mp4",
            "Samsung": "20261129_142345.mp4",
            "Signal": "signal-2026-11-29-14-23-45-123.mp4",
            "Telegram": "video_2026-11-29_14-23-45.mp4",
            "OBS": "2026-11-29 14-23-45.mkv",
            "ISO 8601": "2026-11-29T13:23:45Z.mp4",
        },
        rf"{_DATE}(?: - | at |[-_., T]{{0,3}}){_TIME}"
        rf"(?:[.,]?(?P<fraction>\d{{3}}))?(?:{_ZONE}|(?!\d)){_REST}",
    ),
    NamePattern(
        {"Dahua, Amcrest": "2026-11-29/001/dav/14/14.23.45-14.33.45[M][0@0][0].dav", "motionEye": "2026-11-29/14-23-45.mp4"},
        rf"{_IN_FOLDER}/(?:[^/]+/)*(?:[^/]*?[^0-9A-Za-z/])??(?=..\D){_TIME}(?!\d){_REST}",
    ),
)


_compiled = functools.cache(re.compile)  # compiled at the first use, because most commands read no time from a path


def time_in_path(path: str) -> datetime | None:
    """Return the time in the path of a recording; None if the path has no time.

    The time has a time zone only if the path has one, or if the recorder always writes UTC.

    Args:
        path: the path with its folders, because some recorders name folders after the date.
    """
    stem = "/" + re.sub(r"\.[A-Za-z0-9]{0,4}[A-Za-z][A-Za-z0-9]{0,4}$", "", path.replace("\\", "/")).lstrip("/")
    for row in PATTERNS:
        for match in _compiled(row.regex).finditer(stem):
            if (moment := _moment(match, utc=row.utc)) is not None:
                return moment
    return None


def time_by_pattern(path: str, pattern: re.Pattern[str]) -> datetime | None:
    """Return the time that a pattern from `compile_time_pattern` finds in a path; None if it finds none."""
    moments = (_moment(match, utc=False) for match in pattern.finditer(path.replace("\\", "/")))
    return next((moment for moment in moments if moment is not None), None)


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def _moment(match: re.Match[str], *, utc: bool) -> datetime | None:
    """Return the time in the named groups of a match; None for an impossible time such as 31 February."""
    part = {name: text for name, text in match.groupdict().items() if text}
    try:
        if epoch := part.get("epoch"):
            return datetime.fromtimestamp(float(epoch), UTC)
        if epoch := part.get("epoch_ms"):
            return datetime.fromtimestamp(int(epoch) / 1000, UTC)
        year = int(part["year"]) if "year" in part else 2000 + int(part["year2"])
        month = int(part["month"]) if "month" in part else _MONTHS.index(part["month_name"][:3].lower()) + 1
        hour = int(part["hour"]) if "hour" in part else int(part["hour12"]) % 12 + 12 * (part["half"] in "pP")
        us = int(part.get("fraction", "0").ljust(6, "0")[:6])
        moment = datetime(year, month, int(part["day"]), hour, int(part["minute"]), int(part.get("second", 0)), us)
    except (ValueError, OverflowError, OSError):
        return None
    zone = UTC if utc else _offset(part.get("zone") or part.get("gmt") or ("Z" if "GMT" in match[0] else ""))
    return moment.replace(tzinfo=zone)


def _offset(text: str) -> timezone | None:
    """Return the time zone of `Z`, `+01:00`, `+0100` or `+1`; None for an empty text."""
    if not text:
        return None
    if text in "Zz":
        return UTC
    digits = text[1:].replace(":", "")
    hours, minutes = (int(digits), 0) if len(digits) < 3 else (int(digits[:-2]), int(digits[-2:]))
    return timezone(timedelta(hours=hours, minutes=minutes) * (-1 if text[0] == "-" else 1))


FIELDS = {
    "Y": r"(?P<year>\d{4})",
    "y": r"(?P<year2>\d{2})",
    "m": r"(?P<month>1[0-2]|0[1-9]|[1-9])",
    "b": r"(?P<month_name>[A-Za-z]{3,9})",
    "d": r"(?P<day>3[01]|[12]\d|0[1-9]|[1-9])",
    "H": r"(?P<hour>2[0-3]|[01]\d|\d)",
    "I": r"(?P<hour12>1[0-2]|0[1-9]|[1-9])",
    "p": r"(?P<half>[AaPp])\.?[Mm]\.?",
    "M": r"(?P<minute>[0-5]\d)",
    "S": r"(?P<second>[0-5]\d)",
    "f": r"(?P<fraction>\d{1,6})",
    "z": r"(?P<zone>Z|[+-]\d\d:?\d\d)",
    "s": r"(?P<epoch>\d{9,10}(?:\.\d+)?)",
    "%": "%",
}
"""The regular expression of each field of `--time-from`. The fields have the same names as in strptime."""

_FIXED = {"m": _M, "d": _D, "H": _H, "I": r"(?P<hour12>0[1-9]|1[0-2])", "f": r"(?P<fraction>\d{6})"}
"""The regular expression of a field next to a digit. Such a field must have all its digits, because 2026111 is ambiguous."""

_NEEDED = (("year", "year2"), ("month", "month_name"), ("day",), ("hour", "hour12"), ("minute",))


def compile_time_pattern(text: str) -> re.Pattern[str]:
    """Return the regular expression of the pattern in `--time-from`.

    The pattern is a regular expression with named groups, or has fields, as in `%Y-%m-%d/%H.%M.%S`. Between fields, `*` means
    any characters except `/`. The pattern may match anywhere in the path.

    Raises:
        ValueError: the pattern is not valid, or it has no year, month, day, hour or minute.
    """
    try:
        pattern = re.compile(text if "(?P<" in text else _regex_of(text))
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    groups = set(pattern.groupindex)
    if groups & {"epoch", "epoch_ms"}:
        return pattern
    for names in _NEEDED:
        if not groups & set(names):
            raise ValueError(f"the pattern has no {names[0]}")
    if "hour12" in groups and "half" not in groups:
        raise ValueError("the pattern has an hour from 1 to 12, but no %p for AM or PM")
    return pattern


def _regex_of(text: str) -> str:
    """Return the regular expression for a pattern with fields such as %Y.

    Raises:
        ValueError: the pattern has an unknown field, or the same field twice.
    """
    regex, used = "", set()
    parts = re.findall(r"%.?|\*|[^%*]+", text, re.DOTALL)
    for before, part, after in zip(["", *parts], parts, [*parts[1:], ""], strict=False):
        if part == "*":
            regex += "[^/]*?"
        elif part[0] != "%":
            regex += re.escape(part)
        elif part[1:] not in FIELDS:
            raise ValueError(f"{part} is not a field; the fields are {', '.join('%' + name for name in FIELDS)}")
        elif part in used:
            raise ValueError(f"the pattern has {part} twice")
        else:
            used.add(part if part != "%%" else "")
            touches = _is_digit(after, after[:1]) or (part != "%f" and _is_digit(before, before[-1:]))
            regex += (_FIXED if touches and part[1:] in _FIXED else FIELDS)[part[1:]]
    return rf"(?<!\d)(?:{regex})"


def _is_digit(part: str, end: str) -> bool:
    """True if `part` is a field of digits, or if the character `end` of `part` is a digit.

    Args:
        part: a field of a pattern, or the text between two fields.
        end: the first or the last character of `part`; empty if `part` is empty.
    """
    return part[1:] in {*"YymdHIMSfs"} if part[:1] == "%" else end.isdigit()


EARLIEST = datetime(2000, 1, 2, 12, tzinfo=UTC)
"""Earlier times are ignored: a camera whose clock was never set stores a time in 1904, 1970, 1980 or on 1 January 2000.

At this time, 1 January 2000 has ended in every time zone.
"""
CLOCK_ERROR = timedelta(minutes=10)
"""Times in the future are ignored if they are later than now by more than this."""
_OFFSET = re.compile(r"(?:UTC|GMT)?([+-])(\d{1,2}):?(\d\d)?", re.IGNORECASE)


class TimeSource(StrEnum):
    """The source of the start time of a video."""

    OPTION = "option"
    CONTAINER = "container"
    NAME = "name"
    MODIFIED = "modified"


@dataclass(frozen=True)
class StartTime:
    """The time at which a video started, and where this time was found.

    Attributes:
        moment: the time, with a time zone.
        source: where the time was found.
        zone: name of the time zone, like `Europe/Berlin` or `+01:00`; "" if only the offset from UTC is known.
    """

    moment: datetime
    source: TimeSource
    zone: str = ""

    @property
    def is_recorded(self) -> bool:
        """False if the start was computed from the file's modification time, which a copy may have changed."""
        return self.source is not TimeSource.MODIFIED

    def at(self, seconds: float) -> datetime:
        """Return the time `seconds` after the start."""
        return (self.moment.astimezone(UTC) + timedelta(seconds=seconds)).astimezone(self.moment.tzinfo)

    def text_at(self, seconds: float) -> str:
        """Return the time `seconds` after the start as text, like `2026-11-29T14:23:45+01:00`; see `iso`."""
        return iso(self.at(seconds))

    def to_json(self) -> dict[str, str | None]:
        """Return the fields for the object `video` of an events document."""
        return {"start_time": iso(self.moment), "time_source": str(self.source), "time_zone": self.zone or None}

    @classmethod
    def from_json(cls, video: Mapping[str, Any]) -> StartTime | None:
        """Return the start from the object `video` of an events document; None if the start is unknown.

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
    """Return a time in ISO 8601, rounded to milliseconds. The milliseconds are left out if they are 0."""
    to_whole_ms = timedelta(microseconds=500 - (moment.microsecond + 500) % 1000)
    # The sum is made in UTC. In local time, 02:30 exists twice on a day in autumn, and the result would always be the first.
    rounded = (moment.astimezone(UTC) + to_whole_ms).astimezone(moment.tzinfo)
    return rounded.isoformat(timespec="milliseconds" if rounded.microsecond else "seconds")


def zone_named(name: str) -> tzinfo | None:
    """Return the time zone for a name like `Europe/Berlin`, `UTC` or `+01:00`; None (local zone) for "".

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
    """Return the name of this machine's time zone, from TZ or /etc/localtime.

    Return "" if Python's time zone database does not have this name.
    """
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
        first: the source that is tried before all others.
        local_container: True if containers store local time instead of UTC.
        pattern: the user's pattern for times in paths, from `compile_time_pattern`; None for the built-in patterns.
        given: True if the user set one of these values. In this case, start times are computed again, even if they are stored.
    """

    zone: str = ""
    first: TimeSource = TimeSource.CONTAINER
    local_container: bool = False
    pattern: re.Pattern[str] | None = None
    given: bool = False

    def start_of(
        self, path: str, *, created: str = "", modified_s: float | None = None, duration_s: float | None = None
    ) -> StartTime | None:
        """Return the start of a video from the first source with a plausible time; None if no source has one.

        Args:
            path: path of the video, with its folders.
            created: creation time according to the container, in ISO 8601; "" if the container stores no time.
            modified_s: modification time of the file in seconds since 1970. It counts as the end of the recording.
            duration_s: length of the video in seconds; needed to compute the start from `modified_s`.
        """
        container = parse_created(created)
        if container is not None and self.local_container:
            container = container.replace(tzinfo=None)
        modified = None
        # Damaged file systems report times that Python's `datetime` can't represent. The upper limit is in the year 6325.
        if modified_s is not None and duration_s is not None and 0 <= modified_s - duration_s < 2**37:
            modified = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=modified_s - duration_s)
        times = {TimeSource.CONTAINER: container, TimeSource.NAME: time_in_path(path), TimeSource.MODIFIED: modified}
        sources = sorted(times.items(), key=lambda item: item[0] is not self.first)
        if self.pattern is not None:
            sources.insert(0, (TimeSource.OPTION, time_by_pattern(path, self.pattern)))
        name = self.zone or local_zone_name()
        now = datetime.now(UTC)
        for source, time_found in sources:
            moment = None if time_found is None else _in_zone(time_found, zone_named(name))
            if moment is not None and EARLIEST <= moment <= now + CLOCK_ERROR:
                return StartTime(moment, source, name)
        return None


DEFAULT_RULES = TimeRules()


def in_zone(start: StartTime, zone: str) -> StartTime:
    """Return a start time, converted to another time zone; "" means this machine's zone."""
    name = zone or local_zone_name()
    return StartTime(start.moment.astimezone(zone_named(name)), start.source, name)


def _in_zone(moment: datetime, zone: tzinfo | None) -> datetime | None:
    """Return a moment converted to a time zone; None if Python's `datetime` can't represent the result.

    The value `None` for a zone means this machine's zone. A moment without a time zone counts as a time in `zone`.
    """
    try:
        if moment.tzinfo is None and zone is not None:
            moment = moment.replace(tzinfo=zone)
        return moment.astimezone(UTC).astimezone(
            zone
        )  # the detour through UTC moves a time that the clock skips in spring by one hour
    except (OverflowError, ValueError, OSError):
        return None


def parse_created(text: str) -> datetime | None:
    """Return the creation time from a container's text; None if the text is not a time.

    The result has a time zone only if the text has one.
    """
    fixed = re.sub(r"^(\d{4})[:/](\d\d)[:/](\d\d)", r"\1-\2-\3", text.strip())
    try:
        return datetime.fromisoformat(fixed) if len(fixed) > 10 else None
    except ValueError:
        return None


@dataclass(frozen=True)
class DayWindow:
    """A part of the day, from `begin` (included) to `end` (excluded). If `end` < `begin`, it contains midnight."""

    begin: time
    end: time

    @classmethod
    def parse(cls, text: str) -> DayWindow:
        """Return the window from a text like `22:00-06:00` or `22-6`.

        Raises:
            ValueError: the text does not have this form.
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
        """Length of the window in seconds, at most one day."""
        return (_seconds(self.end) - _seconds(self.begin)) % _DAY_S or _DAY_S

    def after_begin_s(self, moment: datetime) -> float:
        """Return the seconds that passed from the window's latest begin to `moment`, in [0, 86400)."""
        return (_seconds(moment.time()) - _seconds(self.begin)) % _DAY_S

    def overlaps(self, begin: datetime, end: datetime) -> bool:
        """True if the span from `begin` to `end` overlaps the window on at least one day.

        Both arguments must be in the time zone of the window.
        """
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
    """A filter for events by wall-clock time.

    Attributes:
        since: accepts events that end at this time or later; None accepts all.
        between: accepts events that overlap this part of the day; None accepts all.
    """

    since: datetime | None = None
    between: DayWindow | None = None

    def __bool__(self) -> bool:
        return self.since is not None or self.between is not None

    def takes(self, start: StartTime | None, start_s: float, end_s: float) -> bool:
        """True if the filter accepts an event.

        Args:
            start: the start of the event's video; None if it is unknown.
            start_s, end_s: start and end of the event, in seconds after the start of the video.
        """
        if not self:
            return True
        if start is None:
            return False
        begin, end = start.at(start_s), start.at(end_s)
        # Python compares two times in the same zone by their local time. In autumn, one hour of local time exists twice,
        # so the times are compared in UTC.
        recent = self.since is None or end.astimezone(UTC) >= self.since.astimezone(UTC)
        return recent and (self.between is None or self.between.overlaps(begin, end))
