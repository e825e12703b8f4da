"""The generator of the demo: its files, its ground truth, and equal files for equal seeds."""

from __future__ import annotations

import csv
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.patience import PATIENCE_S
from vadcli.ground_truth import open_ground_truth

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SECONDS, WIDTH = 8.0, 128


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("synthetic_archive")


def test_the_command_makes_an_archive(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(EXAMPLES / "synthetic_archive.py"),
        str(tmp_path / "footage"),
        "--seconds",
        "1",
        "--width",
        "128",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert "6 videos" in done.stdout
    videos = sorted(path.relative_to(tmp_path / "footage").as_posix() for path in tmp_path.rglob("*.mp4"))
    assert len(videos) == 6
    assert {video.split("/")[0] for video in videos} == {"plaza", "walkway"}
    for video in videos:
        with av.open(str(tmp_path / "footage" / video)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 128, 72)
            assert sum(1 for _ in container.decode(stream)) == 25
            assert bool(container.streams.audio) == (video == "plaza/noon.mp4")


def test_bad_widths_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "synthetic_archive.py"), str(tmp_path / "footage"), "--width", "129"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    assert "--width 129" in done.stderr
    assert not (tmp_path / "footage").exists()


def test_one_seed_one_archive(archive: Any, tmp_path: Path) -> None:
    script = archive.SCRIPTS[1]
    files = []
    for name, seed in (("one", 7), ("again", 7), ("other", 8)):
        archive.film(script, tmp_path / name, seconds=1.0, width=WIDTH, seed=seed)
        files.append((tmp_path / name / script.video).read_bytes())
    assert files[0] == files[1] != files[2]


def test_all_videos_of_a_camera_show_the_same_ground(archive: Any) -> None:
    plaza, other_seed = (np.asarray(archive.lit_ground("plaza", WIDTH, 72, seed)) for seed in (7, 8))
    walkway = np.asarray(archive.lit_ground("walkway", WIDTH, 72, 7))
    assert plaza.std() > 5
    assert np.abs(plaza.astype(int) - other_seed).mean() < np.abs(plaza.astype(int) - walkway).mean()


@pytest.mark.parametrize("number", range(6))
def test_the_truth_is_where_the_odd_thing_is_seen(archive: Any, tmp_path: Path, number: int) -> None:
    """Frames with and without the anomaly differ in the true span, and are equal before it."""
    script = archive.SCRIPTS[number]
    truth = archive.film(script, tmp_path, seconds=SECONDS, width=WIDTH, seed=7)
    if not script.oddity:
        assert truth == []
        return
    [(video, start_s, end_s, what)] = truth
    assert (video, what) == (script.video, script.oddity)
    assert 0.45 * SECONDS <= start_s < end_s <= SECONDS
    crowd, odd = archive.cast_of(script, SECONDS, 7)
    view, ground = archive.SCENES[script.scene].view(WIDTH, 72), archive.lit_ground(script.scene, WIDTH, 72, 7)

    def differs(time_s: float) -> bool:
        pictures = [archive.draw(view, ground, actors, time_s).astype(int) for actors in (crowd, crowd + odd)]
        return bool(np.abs(pictures[0] - pictures[1]).max() > 40)

    assert differs(0.5 * (start_s + end_s))
    assert not differs(0.45 * SECONDS - 0.04)


def test_people_walk(archive: Any) -> None:
    """In the normal videos, people move at a walking pace."""
    script = archive.SCRIPTS[0]
    crowd, odd = archive.cast_of(script, SECONDS, 7)
    assert odd == []
    assert sum(actor.is_there(4.0) for actor in crowd) >= 3
    for actor in crowd:
        one, other = actor.pose(actor.enters_s + 2.0), actor.pose(actor.enters_s + 3.0)
        assert 0.9 < np.hypot(other.x - one.x, other.y - one.y) < 1.7


def test_truth_file(archive: Any, tmp_path: Path) -> None:
    path = archive.make_archive(tmp_path, seconds=4.0, width=WIDTH, jobs=1)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["video", "start_s", "end_s", "category"]
    odd = [row for row in rows if row["start_s"]]
    assert [row["video"] for row in odd] == ["plaza/noon.mp4", "plaza/evening.mp4", "walkway/noon.mp4", "walkway/evening.mp4"]
    assert all(0 <= float(row["start_s"]) < float(row["end_s"]) <= 4.0 for row in odd)
    videos = [row["video"] for row in rows]
    assert sorted(videos) == sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.mp4"))
    truth = open_ground_truth("csv", path)  # `vadcli eval --root` reads the file like this, and needs a row for every video
    assert [one.is_normal for one in truth.match(videos).pairs.values()] == [not row["start_s"] for row in rows]
