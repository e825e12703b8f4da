"""A camera with little footage: messages, the report, and the next scan."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np

from tests.commands import vadcli
from tests.media import make_video

ALONE = "The camera was learned from a single video of 2 s, so anything that lasts for the whole video is taken to be normal."


def crossing(index: int, width: int, height: int) -> np.ndarray:
    """A still picture that a bar crosses repeatedly."""
    shown = np.full((height, width), 90, np.uint8)
    left = 6 * index % width
    shown[10:40, left : left + 12] = 230
    return shown


def test_the_second_night_learns_the_camera_again(tmp_path: Path) -> None:
    gate = tmp_path / "nvr" / "gate"
    gate.mkdir(parents=True)
    make_video(gate / "a.mp4", frames=20, fps=10, draw=crossing)
    out = tmp_path / "my results"
    first = vadcli("scan", tmp_path / "nvr", "--out", out, "--categories", "fight")
    assert first.returncode == 0, first.stderr
    assert first.stderr.count(ALONE) == 1
    (run,) = json.loads((out / "run.json").read_text())["files"]
    assert run["caveats"] == [ALONE]
    assert json.loads((out / "events" / "gate" / "a.mp4.json").read_text())["caveats"] == [ALONE]

    (step,) = [line for line in first.stderr.splitlines() if line.startswith("next: vadcli ")]
    shown = vadcli(*shlex.split(step)[2:], "--to", tmp_path / "page.html")
    assert shown.returncode == 0, shown.stderr
    page = (tmp_path / "page.html").read_text()
    assert ALONE in page
    assert "Looked for" not in page  # the motion detector reads no categories
    for form in ("markdown", "json", "email"):
        assert "learned from a single video" in vadcli("report", out, "--format", form).stdout.replace("=\n", "")

    make_video(gate / "b.mp4", frames=60, fps=10, draw=crossing)
    before = (out / "cameras" / "gate.json").read_bytes()
    planned = vadcli("scan", tmp_path / "nvr", "--out", out, "--dry-run", "--no-refit")
    assert planned.stdout == "done\tgate/a.mp4\nscan\tgate/b.mp4\n"
    kept = vadcli("scan", tmp_path / "nvr", "--out", out, "--no-refit", "--json")
    statuses = {line.get("video"): line.get("status") for line in map(json.loads, kept.stdout.splitlines())}
    assert (statuses["gate/a.mp4"], statuses["gate/b.mp4"]) == ("skipped", "done")
    assert (out / "cameras" / "gate.json").read_bytes() == before

    again = vadcli("scan", tmp_path / "nvr", "--out", out)
    assert again.returncode == 0, again.stderr
    assert "camera gate: learned again from 8 s of footage instead of 2 s; 2 earlier videos are scored again" in again.stderr
    assert "learned on only 8 s of footage" in (out / "events" / "gate" / "a.mp4.json").read_text()
    third = vadcli("scan", tmp_path / "nvr", "--out", out)
    assert "2 skipped" in third.stderr
    assert "learned" not in third.stderr
    assert vadcli("events", out, "--validate").returncode == 0


def test_doctor_calls_a_toy_a_toy(tmp_path: Path) -> None:
    found = {check["name"]: check for check in map(json.loads, vadcli("doctor", "--json", cwd=tmp_path).stdout.splitlines())}
    assert "lavida-tiny (a toy" in found["weights"]["found"]
    assert "trained" not in found["weights"]["found"]
    assert "weights pull" in found["weights"]["advice"]


def test_the_camera_without_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "gate").mkdir()
    make_video(tmp_path / "gate" / "a.mp4", frames=20, fps=10, draw=crossing)
    for number, (camera_from, name) in enumerate({"folder": "the root folder", "all": "all videos"}.items()):
        done = vadcli("scan", tmp_path / "gate", "--out", tmp_path / f"out{number}", "--camera-from", camera_from)
        assert f"{name}: {ALONE}" in done.stderr.splitlines()
