"""`vadcli events --preview` in a process of its own: the table, and that its counts are those of `events --threshold`."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.commands import vadcli
from tests.evaluate.outputs import write_scan
from vadcli.store import OutputLayout
from vadcli.store.scores import read_scores, write_scores

VIDEO_S = 360.0


def waves(*heights: float) -> np.ndarray:
    """Scores at 10 per second: a second of each height, far apart."""
    scores = np.full(round(10 * VIDEO_S), 0.05)
    for number, height in enumerate(heights, 1):
        scores[number * 300 : number * 300 + 10] = height
    return scores


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of six minutes whose events were made at 0.5; 0.5 stands for one alarm per hour."""
    videos = {"a": waves(0.25, 0.45, 0.55, 0.95), "b": waves(0.45, 0.65)}
    folder = write_scan(tmp_path_factory.mktemp("preview") / "out", videos)
    for video in videos:
        path = OutputLayout(folder).scores(video)
        table, metadata = read_scores(path)
        write_scores(path, table, replace(metadata, calibration={"r0_per_hour": 1.0, "temperature": 3.0}))
    return folder


def test_the_table_says_what_each_threshold_finds(out: Path) -> None:
    done = vadcli("events", out, "--preview")
    assert (done.returncode, done.stderr.strip()) == (0, "2 videos, 0.2 hours of footage")
    head, *rows = (line.split() for line in done.stdout.splitlines())
    assert head[:3] == ["threshold", "events", "events/hour"]
    assert [row[:2] for row in rows] == [
        ["0.2", "6"],
        ["0.3", "5"],
        ["0.4", "5"],
        ["0.5", "3"],
        ["0.6", "2"],
        ["0.7", "1"],
        ["0.8", "1"],
        ["0.9", "1"],
    ]
    assert rows[2][2:] == ["25", "3.38"] or rows[2][2:] == ["25", "3.37"]
    assert rows[3][2:] == ["15", "1", "<-", "present"]


def test_other_programs_read_it_as_csv_and_json_with_a_row_for_the_threshold_that_was_asked(out: Path) -> None:
    asked = ("events", out, "--preview", "--alarms-per-hour", "0.2", "--include", "b", "-q")
    table = list(csv.DictReader(io.StringIO(vadcli(*asked, "--format", "csv").stdout)))
    objects = [json.loads(line) for line in vadcli(*asked, "--json").stdout.splitlines()]
    assert len(table) == len(objects) == 9
    for row, found in zip(table, objects, strict=True):
        assert found.pop("type") == "preview"
        assert [float(value) for value in row.values()] == pytest.approx([float(found[name]) for name in row], rel=1e-5)
    asked_row = next(found for found in objects if found["expected_per_hour"] == pytest.approx(0.2))
    assert (asked_row["events"], asked_row["present"]) == (1, False)
    cut = json.loads(vadcli("events", out, "--threshold", asked_row["threshold"], "--include", "b", "--json").stdout)
    assert len(cut["events"]) == 1


def test_it_goes_with_nothing_that_writes_and_needs_no_calibration(tmp_path: Path, out: Path) -> None:
    refused = vadcli("events", out, "--preview", "--write")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--preview can't be used with --write" in refused.stderr
    plain = vadcli("events", write_scan(tmp_path / "out", {"a": waves(0.45)}), "--preview")
    assert plain.stdout.splitlines()[3].split() == ["0.4", "1", "10", "-"]
