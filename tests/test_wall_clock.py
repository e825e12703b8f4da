"""Wall-clock time: names of recordings, time zones, times that are ignored, and choices by time of day."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.store.documents import DOCUMENT
from vadcli.errors import UsageError
from vadcli.options.groups import TimeOptions, WhenOptions, parse_since
from vadcli.store.events import EventsDocument, ScanState, choose, timed, validate
from vadcli.types import DayWindow, StartTime, Status, TimeRules, TimeSource, When
from vadcli.types.wall_clock import PATTERNS, compile_time_pattern, iso, time_by_pattern, time_in_path
from vadcli.vectors import rows_in

BERLIN = ZoneInfo("Europe/Berlin")
# All examples of the table are from 29 November 2026. A test machine whose clock is earlier must accept them, too.
MOMENT = datetime(2026, 11, 29, 14, 23, 45, tzinfo=BERLIN)
EXAMPLES = [(maker, path) for row in PATTERNS for maker, path in row.examples.items()]
RECORDED = datetime(2024, 11, 29, 13, 23, 45, tzinfo=UTC)


def in_berlin(found: datetime | None) -> datetime:
    assert found is not None
    return found if found.tzinfo else found.replace(tzinfo=BERLIN)


@pytest.mark.parametrize(("maker", "path"), EXAMPLES, ids=[maker for maker, _ in EXAMPLES])
def test_the_names_of_every_maker_are_read(maker: str, path: str) -> None:
    exact = MOMENT.replace(second=0) if maker == "Wyze" else MOMENT
    for where in (path, f"/mnt/nvr 2/{path}", f"/backup/2020-01-31/{path}", path.replace("/", "\\")):
        assert in_berlin(time_in_path(where)).replace(microsecond=0) == exact, where


def test_the_documentation_shows_every_name() -> None:
    page = (Path(__file__).parents[1] / "docs" / "time.md").read_text(encoding="utf-8")
    assert [path for _, path in EXAMPLES if f"`{path}`".replace("\u202f", " ") not in page] == []


@pytest.mark.parametrize(
    "path",
    [
        "cam1/a.mp4",
        "VID-20261129-WA0003.mp4",  # WhatsApp: no time
        "GX010042.MP4",
        "GOPR0042.MP4",
        "GRMN0001.MP4",
        "IMG_0042.MOV",
        "hiv00042.mp4",
        "DJI_0042.MP4",
        "2026-11-29.mp4",
        "2026-11-29/000123.mp4",  # a counter
        "20261129_1920x1080.mp4",  # a size
        "2026-11-29_2026-11-30.mp4",
        "20261129-20261130.mp4",
        "20260230_101010.mp4",  # no such day
        "20261129_256199.mp4",  # no such hour
        "12345678901234567890.mp4",
        "clip_20261129142345999999.mp4",
        "20261129_142345/clip.mp4",
        "",
    ],
)
def test_names_without_a_time_give_none(path: str) -> None:
    assert time_in_path(path) is None


@given(st.datetimes(datetime(1990, 1, 1), datetime(2089, 12, 31)).map(lambda moment: moment.replace(microsecond=0)))
def test_any_time_survives_the_way_through_a_name(moment: datetime) -> None:
    names = (
        "%Y%m%d_%H%M%S.mp4",
        "%Y-%m-%d %H.%M.%S.mkv",
        "ch1_%Y%m%d%H%M%S_0001.dav",
        "%Y_%m%d_%H%M%S_001F.MP4",
        "%Y-%m-%d/%H/%M.%S.mp4",
        "%Y/%m/%d/%H-%M-%S.mp4",
        "x 2026 - %m-%d-%Y, %I.%M.%S%p.mp4",
    )
    assert {name: time_in_path(moment.strftime(name)) for name in names} == dict.fromkeys(names, moment)
    for fields in ("%d.%m.%Y-%H%M%S", "%Y%m%d%H%M%S", "%d %b %Y/*%I-%M-%S %p", "a%%%y%m%d/%H.%M.%S"):
        path = "/nvr/" + moment.strftime(fields).replace("*", "cam7_") + ".mp4"
        found = time_by_pattern(path, compile_time_pattern(fields))
        assert found is not None
        assert found.replace(year=moment.year) == moment if "%y" in fields else found == moment


def test_patterns_of_the_user() -> None:
    def read(pattern: str, path: str) -> datetime | None:
        return time_by_pattern(path, compile_time_pattern(pattern))

    assert read("%d-%m-%Y/cam*_%H%M%S", "/nvr/29-11-2026/cam01_142345.mp4") == datetime(2026, 11, 29, 14, 23, 45)
    assert read("%Y%m%d%H%M", "gate-202611291423.mp4") == datetime(2026, 11, 29, 14, 23)
    assert read("rec_%s", "/x/rec_1795958625.mp4") == MOMENT
    assert read("%Y-%m-%dT%H:%M:%S.%f%z", "2026-11-29T14:23:45.5+01:00.mp4") == MOMENT + timedelta(seconds=0.5)
    named = r"(?P<day>\d\d)(?P<month>\d\d)(?P<year>\d{4})-(?P<hour>\d\d)(?P<minute>\d\d)_CAM"
    assert read(named, "29112026-1423_CAM1_0001.MP4") == datetime(2026, 11, 29, 14, 23)
    assert read("%Y%m%d%H%M", "gate.mp4") is None
    assert read("%Y-%m-%d %H.%M", "2026-1-9 7.23.mp4") == datetime(2026, 1, 9, 7, 23)
    assert read("%Y%m%d_%H%M%S%f", "20261129_142345123.mp4") == datetime(2026, 11, 29, 14, 23, 45, 123000)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [("%Y%m%d_%H.%M", "2026111_14.23.mp4"), ("%Y-%m-%d_%H%M%S", "2026-11-29_92345.mp4"), ("%Y1%m-%d %H.%M", "202611-29 14.23")],
)
def test_fields_that_touch_need_all_their_digits(pattern: str, path: str) -> None:
    """2026111 may be 1 November or 11 January: no time is better than a wrong time."""
    assert time_by_pattern(path, compile_time_pattern(pattern)) is None


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("%Y-%m-%d", "the pattern has no hour"),
        ("%H%M%S", "the pattern has no year"),
        ("%Y%m%d%H%M-%Y%m%d%H%M", "the pattern has %Y twice"),
        ("%Y%m%d%Q", "%Q is not a field"),
        ("%Y%m%d%I%M", "no %p for AM or PM"),
        ("(?P<year>", "not a regular expression"),
        ("gate", "the pattern has no year"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused(pattern: str, what: str) -> None:
    with pytest.raises(UsageError, match=re.escape(what)):
        TimeOptions(time_from=pattern)


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "Europe", "../etc/passwd", "+25:00", "/etc/localtime"])
def test_a_time_zone_that_does_not_exist_is_refused(zone: str) -> None:
    with pytest.raises(UsageError, match="--time-zone"):
        TimeOptions(time_zone=zone)


def start(path: str = "a.mp4", zone: str = "Europe/Berlin", rules: TimeRules | None = None, **told: object) -> StartTime | None:
    return (rules or TimeRules(zone)).start_of(path, **told)  # type: ignore[arg-type]


def shown(found: StartTime | None) -> tuple[str, str] | None:
    return (iso(found.moment), str(found.source)) if found else None


def test_sources_in_their_order() -> None:
    told = {"created": "2024-11-29T13:00:00.000000Z", "modified_s": RECORDED.timestamp() + 60, "duration_s": 60.0}
    named = "gate/20241129_142300.mp4"
    assert shown(start(named, **told)) == ("2024-11-29T14:00:00+01:00", "container")
    assert shown(start(named, **{**told, "created": ""})) == ("2024-11-29T14:23:00+01:00", "name")
    assert shown(start("a.mp4", **{**told, "created": ""})) == ("2024-11-29T14:23:45+01:00", "modified")
    assert start("a.mp4", modified_s=RECORDED.timestamp()) is None  # when it ended is not when it started
    for first, expected in (("name", "14:23:00"), ("modified", "14:23:45"), ("container-local", "13:00:00")):
        rules = TimeOptions(time_zone="Europe/Berlin", time_from=first).time_rules()
        assert shown(start(named, rules=rules, **told)) == (f"2024-11-29T{expected}+01:00", first.partition("-")[0])
    rules = TimeOptions(time_zone="+01:00", time_from="%Y%m%d_%H%M%S").time_rules()
    assert shown(start(named, rules=rules, **told)) == ("2024-11-29T14:23:00+01:00", "option")
    assert shown(start("a.mp4", rules=rules, **told)) == ("2024-11-29T14:00:00+01:00", "container")


@pytest.mark.parametrize(
    ("created", "expected"),
    [
        ("2024-11-29T14:00:00+0100", "2024-11-29T14:00:00+01:00"),  # Apple
        ("2024-11-29 14:00:00", "2024-11-29T14:00:00+01:00"),  # AVI: no zone
        ("2024:11:29 14:00:00", "2024-11-29T14:00:00+01:00"),
        ("1904-01-01T00:00:00.000000Z", None),
        ("1970-01-01T00:00:10.000000Z", None),
        ("2000-01-01T00:00:00.000000Z", None),
        ("2000-01-01T23:59:59.000000Z", None),
        ("2094-01-01T00:00:00.000000Z", None),
        ("9999-12-31T23:59:59-23:59", None),
        ("0001-01-01T00:00:00+23:59", None),
        ("2024", None),
        ("yesterday", None),
    ],
)
def test_times_of_containers_that_are_not_believed(created: str, expected: str | None) -> None:
    assert shown(start(created=created)) == (expected and (expected, "container"))
    assert shown(start("20241129_150000.mp4", created=created)) == (
        (expected, "container") if expected else ("2024-11-29T15:00:00+01:00", "name")
    )


def test_the_future_is_not_believed_and_a_clock_that_is_a_little_fast_is() -> None:
    now = datetime.now(UTC)
    assert start(created=(now + timedelta(minutes=5)).isoformat()) is not None
    assert start(created=(now + timedelta(hours=1)).isoformat()) is None
    assert start((now + timedelta(days=1)).strftime("%Y%m%d_%H%M%S.mp4"), zone="UTC") is None
    for odd in (-1e18, -5.0, 5e-9, 1e12, 1e300):
        assert start(modified_s=odd, duration_s=1.0) is None


def test_daylight_saving_time() -> None:
    assert shown(start("20240331_023000.mp4")) == ("2024-03-31T03:30:00+02:00", "name")  # skipped in spring
    twice = start("20241027_023000.mp4")
    assert shown(twice) == ("2024-10-27T02:30:00+02:00", "name")  # comes twice in autumn
    assert twice is not None
    assert [twice.text_at(hours * 3600) for hours in (0.75, 1, 2)] == [
        "2024-10-27T02:15:00+01:00",
        "2024-10-27T02:30:00+01:00",
        "2024-10-27T03:30:00+01:00",
    ]
    assert StartTime.from_json(twice.to_json()) == twice
    assert StartTime.from_json(twice.to_json()).text_at(3600) == "2024-10-27T02:30:00+01:00"  # type: ignore[union-attr]


def test_without_an_option_the_zone_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", ":Asia/Kolkata")
    found = start("20240331_023000.mp4", zone="")
    assert found is not None
    assert found.to_json() == {"start_time": "2024-03-31T02:30:00+05:30", "time_source": "name", "time_zone": "Asia/Kolkata"}


_SECONDS = st.integers(0, 86399).map(lambda seconds: (datetime.min + timedelta(seconds=seconds)).time())


@given(_SECONDS, _SECONDS, st.integers(0, 3 * 86400), st.integers(0, 100_000))
@example(time(22), time(6), 21 * 3600, 3600)  # ends as the window begins
@example(time(22), time(6), 6 * 3600, 10)  # begins as the window ends
@example(time(22), time(6), 0, 0)
def test_a_window_takes_what_has_a_second_in_it(begin: time, end: time, at_s: int, length_s: int) -> None:
    if begin == end:
        return
    window = DayWindow(begin, end)
    first = datetime(2024, 5, 1, tzinfo=BERLIN) + timedelta(seconds=at_s)
    edge_s = [moment.hour * 3600 + moment.minute * 60 + moment.second for moment in (begin, end)]
    inside = {True: range(edge_s[0], edge_s[1]), False: [*range(edge_s[0], 86400), *range(edge_s[1])]}[begin < end]
    wanted = set(inside)
    seconds = range(at_s, at_s + max(1, min(length_s, 86400)))
    assert window.overlaps(first, first + timedelta(seconds=length_s)) == any(second % 86400 in wanted for second in seconds)


@pytest.mark.parametrize("text", ["", "22", "22:00", "25-26", "22:60-23", "6-6", "22:00-22:00", "22:00 to 06:00", "-5-6"])
def test_a_part_of_the_day_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--between"):
        WhenOptions(between=text)


def test_since_reads_times_and_ages() -> None:
    assert parse_since("2024-11-27", "Europe/Berlin") == datetime(2024, 11, 26, 23, tzinfo=UTC)
    assert parse_since("2024-11-27T06:00", "+02:00") == datetime(2024, 11, 27, 4, tzinfo=UTC)
    assert parse_since("2024-11-27T06:00Z", "Europe/Berlin") == datetime(2024, 11, 27, 6, tzinfo=UTC)
    assert abs(parse_since("24h") - (datetime.now(UTC) - timedelta(days=1))) < timedelta(minutes=1)
    for wrong in ("yesterday", "", "12 parsecs", "999999999999d"):
        with pytest.raises(UsageError, match="--since"):
            parse_since(wrong)


def stored(path: str, **source: object) -> EventsDocument:
    video = {**DOCUMENT.video, "path": path}
    scan = ScanState(Status.DONE, "ab" * 32, {"root": "/nvr/2024-11-29", **source})
    return EventsDocument(video, "motion", (), DOCUMENT.thresholds, DOCUMENT.events, scan=scan)


def test_results_without_a_start_get_one_from_what_is_stored() -> None:
    rules = TimeRules("Europe/Berlin")
    old = stored("14/23.45.mp4", mtime_ns=5)
    document = timed(old, rules)
    assert document.start is not None
    assert [event["start_time"] for event in document.to_json()["events"]] == [
        "2024-11-29T14:23:46+01:00",
        "2024-11-29T14:23:49+01:00",
    ]
    assert validate(document.to_json(), "a") == []
    assert EventsDocument.from_json(document.to_json()) == document
    assert timed(document, TimeRules()) == document  # a stored start is kept
    elsewhere = timed(document, TimeRules("America/New_York", given=True))
    assert shown(elsewhere.start) == ("2024-11-29T14:23:45-05:00", "name")
    assert timed(stored("a.mp4"), rules).start is None
    copied = timed(stored("a.mp4", mtime_ns=round(RECORDED.timestamp() * 1e9)), rules)
    assert shown(copied.start) == ("2024-11-29T14:23:33+01:00", "modified")  # 12 s before


def test_a_start_from_a_pattern_stays_the_same_moment() -> None:
    moment = StartTime(RECORDED.astimezone(BERLIN), TimeSource.OPTION, "Europe/Berlin")
    document = EventsDocument(DOCUMENT.video, "motion", (), DOCUMENT.thresholds, start=moment)
    assert shown(timed(document, TimeRules("UTC", given=True)).start) == ("2024-11-29T13:23:45+00:00", "option")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"start_time": "2024-11-29T14:23:45"}, "video.start_time: "),
        ({"start_time": "at noon"}, "video.start_time: "),
        ({"start_time": "2024-11-29T15:23:45+01:00"}, "events[0].start_time: "),
        ({"time_source": "guess"}, "video.time_source: "),
    ],
)
def test_times_that_contradict_are_found(change: dict[str, str], where: str) -> None:
    document = timed(stored("14/23.45.mp4"), TimeRules("Europe/Berlin")).to_json()
    document["video"] |= change
    assert validate(document, "a")[0].startswith(f"a: {where}")


def test_events_are_chosen_by_time_and_category() -> None:
    documents = [timed(stored(f"{hour}/59.57.mp4"), TimeRules("Europe/Berlin")) for hour in ("05", "21", "23")]
    documents.append(stored("unknown.mp4"))

    def chosen(when: When = When(), *categories: str) -> list[tuple[str, list[int]]]:
        found = choose(documents, when, categories)
        return [(document.video["path"], [event.id for event in document.events]) for document in found]

    # The events are at 1 to 2 s and at 4 to 8 s. Each video starts 3 s before the full hour.
    night = When(between=DayWindow.parse("22-6"))
    assert chosen(night) == [("05/59.57.mp4", [1]), ("21/59.57.mp4", [2]), ("23/59.57.mp4", [1, 2])]
    since = datetime(2024, 11, 29, 22, tzinfo=BERLIN)
    assert chosen(When(since)) == [("21/59.57.mp4", [2]), ("23/59.57.mp4", [1, 2])]
    assert chosen(When(since, DayWindow.parse("0:00-1:00"))) == [("23/59.57.mp4", [2])]
    assert chosen(When(), "FIGHT")[0] == ("05/59.57.mp4", [1])
    assert chosen(night, "anomaly") == [("21/59.57.mp4", [2]), ("23/59.57.mp4", [2])]
    assert chosen(When(), "fire") == []
    assert len(chosen()) == 4


def test_frames_are_chosen_like_events() -> None:
    """A search tests each frame. In the night in which the clocks change, it must choose the same times as for events."""
    timestamp = np.arange(0, 4 * 3600, 600.0) + 0.5
    for name in ("20241027_003000.mp4", "20240330_233000.mp4"):
        begin = start(name)
        assert begin is not None
        for when in (
            When(between=DayWindow.parse("03:00-03:20")),
            When(begin.at(3600), DayWindow.parse("23-3:10")),
            When(begin.at(7200)),
        ):
            found = rows_in(timestamp, begin, when)
            assert found is not None
            assert 0 < found.sum() < len(found)
            assert found.tolist() == [when.takes(begin, at, at) for at in timestamp.tolist()]
    assert rows_in(timestamp, None, When()) is None
    assert rows_in(timestamp, None, When(between=DayWindow.parse("2-3"))).sum() == 0  # type: ignore[union-attr]
