"""The motion detector's default thresholds on real footage: few alarms where nothing happens, some where it does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.shared

NOTHING_HAPPENS = {
    "ucf_crime/Normal_Videos_006_x264.mp4": 2,
    "everyday/traffic_camera.mp4": 2,
    "everyday/traffic_camera_vfr.mp4": 2,
    "everyday/issue53_brightness_change.avi": 1,
    "everyday/no_duration.webm": 0,
    "everyday/counter.mp4": 0,
}
SOMETHING_HAPPENS = (
    "ucf_crime/Fighting023_x264.mp4",
    "incidents/cctvfights_fight_0002.mpeg",
    "incidents/elevator_panic.mp4",
    "incidents/two_people_portrait_b.mp4",
)


@pytest.fixture(scope="module")
def events(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    """Events of each video, scanned with default options: a folder is a camera although its videos have nothing in common."""
    out = tmp_path_factory.mktemp("footage") / "out"
    videos = [str(shared_data / name) for name in (*NOTHING_HAPPENS, *SOMETHING_HAPPENS)]
    subprocess.run([sys.executable, "-m", "vadcli", "scan", *videos, "--out", str(out), "--quiet"], check=True, timeout=110)
    found = {}
    for name in (*NOTHING_HAPPENS, *SOMETHING_HAPPENS):
        document = json.loads((out / "events" / f"{name}.json").read_text())
        assert document["failure"] is None
        assert document["video"]["moving_camera"] is False
        found[name] = document["events"]
    return found


@pytest.mark.parametrize("video", NOTHING_HAPPENS)
def test_few_alarms_where_nothing_happens(events: dict[str, list[dict[str, float]]], video: str) -> None:
    assert len(events[video]) <= NOTHING_HAPPENS[video]
    assert sum(event["end_s"] - event["start_s"] for event in events[video]) < 3.0


@pytest.mark.parametrize("video", SOMETHING_HAPPENS)
def test_incidents_are_events(events: dict[str, list[dict[str, float]]], video: str) -> None:
    assert len(events[video]) >= 1
    assert max(event["peak_score"] for event in events[video]) >= 0.4


def test_the_fight_is_found_where_it_is(events: dict[str, list[dict[str, float]]]) -> None:
    """Fighting023: title cards until 8 s and from 29 s, the fight in bursts between."""
    assert all(8.0 < event["start_s"] < event["end_s"] < 29.0 for event in events["ucf_crime/Fighting023_x264.mp4"])
