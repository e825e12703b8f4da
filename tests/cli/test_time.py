"""Wall-clock time: from the file and its name to events, exports, the report and the filters."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import commands
from tests.media import make_video, picture, remux
from vadcli.store.events import validate
from vadcli.video.probe import probe


def vadcli(*arguments: object, code: int = 0, **environment: Any) -> subprocess.CompletedProcess[str]:
    environment.setdefault("TZ", "America/New_York")
    done = commands.vadcli(*arguments, **environment)
    assert done.returncode == code, done.stderr
    return done


def documents(*arguments: object) -> dict[str, dict[str, Any]]:
    found = json.loads(vadcli("events", *arguments).stdout)
    assert [error for document in found for error in validate(document, "a") if ".id:" not in error] == []
    return {document["video"]["path"]: document for document in found}


def starts(*arguments: object) -> dict[str, tuple[str | None, str | None]]:
    return {
        name: (document["video"]["start_time"], document["video"]["time_source"])
        for name, document in documents(*arguments).items()
    }


def jumping(number: int, width: int, height: int) -> Any:
    """A picture with much motion for half a second, two seconds after the start."""
    return picture(255 if 20 <= number < 25 and number % 2 else 0, width, height)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scanned videos of 4 s: one per source of the start."""
    folder = tmp_path_factory.mktemp("time")
    nvr = folder / "nvr"
    for name in ("2024-11-29/14", "gate"):
        (nvr / name).mkdir(parents=True)
    plain = make_video(nvr / "gate" / "VID-20241129-WA0003.mp4", frames=40, fps=10, draw=jumping)
    os.utime(plain, (1732888802, 1732888802))  # 14:00:02 UTC
    remux(plain, nvr / "2024-11-29" / "14" / "23.45.mp4")
    tagged = ("-metadata", "creation_time=2024-11-29T22:30:00Z")
    remux(plain, nvr / "gate" / "20200101_000000.mp4", after=tagged)
    remux(plain, nvr / "gate" / "20241129_235958.mkv", after=("-metadata", "creation_time=1970-01-01T00:00:00Z"))
    (nvr / "gate" / "20241129_120000_broken.mp4").write_bytes(b"no video")
    out = folder / "out"
    vadcli("scan", nvr, "-o", out, "--time-zone", "Europe/Berlin", "--camera-from", "all", code=3)
    return out


STARTS = {
    "2024-11-29/14/23.45.mp4": ("2024-11-29T14:23:45+01:00", "name"),
    "gate/20200101_000000.mp4": ("2024-11-29T23:30:00+01:00", "container"),
    "gate/20241129_120000_broken.mp4": ("2024-11-29T12:00:00+01:00", "name"),
    "gate/20241129_235958.mkv": ("2024-11-29T23:59:58+01:00", "name"),
    "gate/VID-20241129-WA0003.mp4": ("2024-11-29T14:59:58+01:00", "modified"),
}


def test_a_scan_stores_when_each_video_started(out: Path) -> None:
    stored = {
        str(path.relative_to(out / "events"))[:-5]: json.loads(path.read_text()) for path in (out / "events").rglob("*.json")
    }
    assert {name: (one["video"]["start_time"], one["video"]["time_source"]) for name, one in stored.items()} == STARTS
    assert {one["video"]["time_zone"] for one in stored.values()} == {"Europe/Berlin"}
    assert [error for name, one in stored.items() for error in validate(one, name)] == []
    assert stored["gate/20200101_000000.mp4"]["video"]["creation_time"] == "2024-11-29T22:30:00.000000Z"


def low(*more: object) -> tuple[object, ...]:
    """A threshold with which every video has one event from its first frame to its last."""
    return ("--threshold", 0, "--low", 0, *more)


def events_of(out: Path, *arguments: object) -> set[str]:
    done = vadcli("events", out, *low(*arguments), "--format", "csv", code=3)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert all(row["start_time"] and row["end_time"] and row["time_source"] for row in rows)
    return {row["video"].rpartition("/")[2] for row in rows}


def test_events_are_chosen_by_time(out: Path) -> None:
    everything = {"23.45.mp4", "20200101_000000.mp4", "20241129_235958.mkv", "VID-20241129-WA0003.mp4"}
    assert events_of(out) == everything
    assert events_of(out, "--between", "15:00-15:30") == {"VID-20241129-WA0003.mp4"}
    assert events_of(out, "--between", "22:00-06:00") == {"20200101_000000.mp4", "20241129_235958.mkv"}
    assert events_of(out, "--between", "00:00-06:00") == {"20241129_235958.mkv"}  # it continues after midnight
    assert events_of(out, "--since", "2024-11-29T23:00", "--time-zone", "Europe/Berlin") == {
        "20200101_000000.mp4",
        "20241129_235958.mkv",
    }
    assert events_of(out, "--since", "24h") == set()
    assert events_of(out, "--category", "fire") == set()
    assert events_of(out, "--category", "anomaly") == everything
    refused = vadcli("events", out, "--since", "last-run", code=2).stderr
    assert "--since last-run" in refused


def test_times_are_corrected_without_the_footage(out: Path) -> None:
    """Only --write stores times. A time of the container stays the same moment; a time of a name does not."""
    new_york = vadcli("events", out, "--time-zone", "America/New_York", code=3)
    corrected = {one["video"]["path"]: one["video"]["start_time"] for one in json.loads(new_york.stdout)}
    assert corrected == {
        "2024-11-29/14/23.45.mp4": "2024-11-29T14:23:45-05:00",
        "gate/20200101_000000.mp4": "2024-11-29T17:30:00-05:00",
        "gate/20241129_120000_broken.mp4": "2024-11-29T12:00:00-05:00",
        "gate/20241129_235958.mkv": "2024-11-29T23:59:58-05:00",
        "gate/VID-20241129-WA0003.mp4": "2024-11-29T08:59:58-05:00",
    }
    by_name = vadcli("events", out, "--time-from", "%Y%m%d_%H%M%S", "--time-zone", "UTC", code=3)
    sources = {one["video"]["path"]: one["video"]["time_source"] for one in json.loads(by_name.stdout)}
    assert (sources["gate/20200101_000000.mp4"], sources["2024-11-29/14/23.45.mp4"]) == ("option", "name")
    unchanged = json.loads(vadcli("events", out, code=3).stdout)
    assert {one["video"]["path"]: one["video"]["start_time"] for one in unchanged} == {
        name: moment for name, (moment, _) in STARTS.items()
    }


def test_videos_of_an_older_version_are_skipped_and_get_times(tmp_path: Path) -> None:
    """Options of time do not change fingerprints. Documents of older versions have no times."""
    (tmp_path / "nvr").mkdir()
    make_video(tmp_path / "nvr" / "20241129_142345.mp4", frames=20, fps=10)
    out = tmp_path / "out"
    vadcli("scan", tmp_path / "nvr", "-o", out)
    path = next((out / "events").rglob("*.json"))
    document = json.loads(path.read_text())
    for name in ("start_time", "time_source", "time_zone", "creation_time"):
        del document["video"][name]
    path.write_text(json.dumps(document))
    again = vadcli("scan", tmp_path / "nvr", "-o", out, "--time-zone", "Asia/Tokyo", "--time-from", "name", "--json")
    assert json.loads(again.stdout.splitlines()[0])["status"] == "skipped"
    vadcli("events", out, "--validate")
    assert starts(out) == {"20241129_142345.mp4": ("2024-11-29T14:23:45-05:00", "name")}
    vadcli("events", out, "--time-zone", "Asia/Tokyo", "--write")
    assert starts(out) == {"20241129_142345.mp4": ("2024-11-29T14:23:45+09:00", "name")}


def test_the_report_shows_and_chooses_by_time(out: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(out, tmp_path / "out")
    vadcli("events", copy, *low("--write"), code=3)
    shown = json.loads(vadcli("report", copy, "--format", "json", "--between", "22:00-06:00", code=3).stdout)
    assert {(event["video"], event["start_time"], event["time_source"]) for event in shown["events"]} == {
        (name, *STARTS[name]) for name in ("gate/20200101_000000.mp4", "gate/20241129_235958.mkv")
    }
    assert [failure["video"] for failure in shown["failures"]] == ["gate/20241129_120000_broken.mp4"]
    text = vadcli("report", copy, "--format", "markdown", "--since", "last-run", code=3).stdout
    assert "2024-11-29 23:59:58" in text
    recent = json.loads(vadcli("report", copy, "--format", "json", "--since", "24h", code=3).stdout)
    assert recent["events"] == []  # scanned a moment ago, but recorded long before
    assert [failure["video"] for failure in recent["failures"]] == ["gate/20241129_120000_broken.mp4"]
    vadcli("report", copy, "--thumbnails", 0, code=3)
    assert '"2024-11-29T23:59:58+01:00"' in (copy / "report.html").read_text()


def test_wrong_options_are_refused_before_anything_is_scanned(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", frames=5)
    for option, value, said in (
        ("--time-zone", "Mars/Olympus", "is not a time zone"),
        ("--time-from", "%Y", "the pattern has no month"),
    ):
        refused = vadcli("scan", tmp_path, "-o", tmp_path / "out", option, value, code=2)
        assert said in refused.stderr
        assert len(refused.stderr.splitlines()) == 2
    assert not (tmp_path / "out").exists()


def test_tags_of_phones(tmp_path: Path) -> None:
    plain = make_video(tmp_path / "plain.mp4", frames=40, fps=10)

    def created(name: str, **tags: str) -> str:
        given = [part for tag, value in tags.items() for part in ("-metadata", f"{tag.replace('_DOT_', '.')}={value}")]
        tagged = remux(plain, tmp_path / name, after=("-movflags", "use_metadata_tags", *given))
        return probe(tagged).created

    ended = {"creation_time": "2024-11-29T13:00:10Z"}
    assert created("plain-tags.mp4", **ended) == "2024-11-29T13:00:10Z"
    assert created("android.mp4", com_DOT_android_DOT_version="14", **ended) == "2024-11-29T13:00:06+00:00"
    apple = {"com_DOT_apple_DOT_quicktime_DOT_creationdate": "2023-03-01T12:00:00+0100"}
    assert created("iphone.mov", **apple, **ended) == "2023-03-01T12:00:00+0100"
    assert created("none.mkv") == ""
