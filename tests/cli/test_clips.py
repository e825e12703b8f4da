"""`vadcli clips`: the files that it makes, and its messages if a clip cannot be cut."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.commands import vadcli
from tests.media import make_video, read_index, remux
from tests.store.documents import DOCUMENT
from vadcli.store import OutputLayout

EVENTS = ((45, 50), (90, 98))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scanned videos of 10 s, with two planted events each."""
    folder = tmp_path_factory.mktemp("clips")
    nvr = folder / "nvr"
    (nvr / "gate" / "north").mkdir(parents=True)
    (nvr / "yard").mkdir()
    make_video(nvr / "gate" / "north" / "20241129_142345.mp4", frames=100, fps=10, gop=20, audio=True)
    make_video(nvr / "yard" / "20241130_010000.webm", "vp8", frames=100, fps=10, gop=20, audio=True)
    remux(nvr / "gate" / "north" / "20241129_142345.mp4", nvr / "yard" / "20241130_020000.h264", after=("-an",))
    done = vadcli("scan", nvr, "-o", folder / "out", "--time-zone", "Europe/Berlin")
    assert done.returncode == 0, done.stderr
    for path in OutputLayout(folder / "out").iter_events():
        document = json.loads(path.read_text())
        document["events"] = [made_event(number, *rows) for number, rows in enumerate(EVENTS, 1)]
        path.write_text(json.dumps(document))
    return folder


def made_event(number: int, first: int, last: int) -> dict[str, Any]:
    event = {**DOCUMENT.events[0].to_json(), "id": number, "start_frame": first, "end_frame": last, "peak_frame": first}
    event |= {"start_s": first / 10, "end_s": last / 10, "peak_s": first / 10, "peak_score": 0.9, "mean_score": 0.5}
    return {**event, "bbox": None, "category": "fire" if number == 2 else None, "category_scores": {}}


def seen(path: Path) -> tuple[int, int, bool]:
    """Return the numbers of the first and the last frame, and whether there is sound."""
    with av.open(str(path)) as container:
        has_sound = bool(container.streams.audio)
        numbers = [read_index(frame.to_ndarray(format="gray").astype(np.uint8)) for frame in container.decode(video=0)]
    return numbers[0], numbers[-1], has_sound


def test_every_event_is_cut_once(folder: Path) -> None:
    out, clips = folder / "out", folder / "out" / "clips"
    first = vadcli("clips", out, "--before", "1s", "--after", "500ms")
    assert first.returncode == 3
    assert "yard/20241130_020000.h264: not cut: a raw stream has no times" in first.stderr
    assert "4 clips cut, 0 cut already" in first.stderr
    names = sorted(path.name for path in clips.iterdir())
    assert [name.rpartition("_")[0] for name in names] == [
        "2024-11-29_14-23-49_gate-north_0.90",
        "2024-11-29_14-23-54_gate-north_0.90_fire",
        "2024-11-30_01-00-04_yard_0.90",
        "2024-11-30_01-00-09_yard_0.90_fire",
    ]
    assert [Path(name).suffix for name in names] == [".mp4", ".mp4", ".mkv", ".mkv"]  # MP4 cannot contain VP8
    for name, (start, end) in zip(names, EVENTS * 2, strict=True):
        begins, ends, has_sound = seen(clips / name)
        assert begins == (start - 10) // 20 * 20
        assert min(end + 4, 99) <= ends <= min(end + 9, 99)
        assert has_sound
    assert not (clips / ".tmp").exists()

    before = {path: path.stat().st_mtime_ns for path in clips.iterdir()}
    again = vadcli("clips", out, "--before", "1s", "--after", "500ms", "--include", "*[!4]", "--json")
    rows = [json.loads(line) for line in again.stdout.splitlines()]
    assert [(row["skipped"], row["problem"]) for row in rows if row["file"]] == [(True, "")] * 2
    assert "0 clips cut, 2 cut already" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in clips.iterdir()} == before


def test_filters_containers_and_time_of_day(folder: Path) -> None:
    one = vadcli(
        *("clips", folder / "out", "--camera", "yard", "--category", "fire", "--between", "00:30-01:30", "--json"),
        *("--to", folder / "evidence", "--container", "same", "--before", "0s", "--after", "0s"),
    )
    assert one.returncode == 0, one.stderr
    (row,) = map(json.loads, one.stdout.splitlines())
    assert (row["video"], row["event"], row["start_s"]) == ("yard/20241130_010000.webm", 2, pytest.approx(8.0, abs=0.01))
    (made,) = (folder / "evidence").iterdir()
    assert (str(made), made.suffix) == (row["file"], ".webm")
    refused = vadcli("clips", folder / "nvr")
    assert (refused.returncode, "contains no results" in refused.stderr) == (2, True)
    assert vadcli("clips", folder / "out", "--container", "gif").returncode == 2


def test_missing_or_changed_footage_is_not_cut(folder: Path) -> None:
    """This is the last test of the file, because it changes the footage."""
    path = folder / "nvr" / "gate" / "north" / "20241129_142345.mp4"
    to = folder / "other"
    os.utime(path)  # the same content at another time is the same footage
    assert vadcli("clips", folder / "out", "--camera", "gate*", "--to", to, "--category", "fire").returncode == 0
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    changed = vadcli("clips", folder / "out", "--camera", "gate*", "--to", to)
    assert changed.returncode == 3
    assert changed.stderr.count("\n") == 2
    assert "gate/north/20241129_142345.mp4: has changed since it was scanned (scan it again)" in changed.stderr
    (folder / "nvr").rename(folder / "moved")
    lost = vadcli("clips", folder / "out", "--to", to, "--quiet")
    assert (lost.returncode, lost.stderr.count("\n")) == (3, 1)
    assert "and 2 more videos" in lost.stderr
    found = vadcli("clips", folder / "out", "--to", to, "--footage", folder / "moved", "--include", "*.webm")
    assert found.returncode == 0, found.stderr
