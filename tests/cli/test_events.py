"""`vadcli events`: the preview of thresholds, failed videos, and choices that later scans use."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.commands import vadcli
from tests.evaluate.outputs import write_scan
from tests.media import make_video
from vadcli.cli import app
from vadcli.registry import EXPORTERS
from vadcli.store import OutputLayout
from vadcli.store.scores import read_scores, write_scores

VIDEO_S = 360.0


def waves(*heights: float) -> np.ndarray:
    """Return 10 scores per second: one second of each height, far apart."""
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


def test_nothing_is_stored_if_the_files_can_not_be_written(tmp_path: Path) -> None:
    out, file = write_scan(tmp_path / "out", {"a": waves(0.25, 0.95)}), tmp_path / "file"
    file.touch()

    def stored() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    before = stored()
    done = vadcli("events", out, "--threshold", "0.2", "--write", "--to", file)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"vadcli: error: {file}: is a file, but must be a folder\n  choose another place\n"
    assert stored() == before
    assert vadcli("events", out, "--threshold", "0.2", "--write").returncode == 0
    before = stored()
    wrong = vadcli("events", out, "--forget", "--threshold", "0.2", "--low", "0.3")
    assert (wrong.returncode, stored() == before) == (2, True)


def test_preview_counts_the_events_of_each_threshold(out: Path) -> None:
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


def test_preview_as_csv_and_json_has_a_row_for_the_given_threshold(out: Path) -> None:
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


def test_preview_refuses_options_that_write_and_needs_no_calibration(tmp_path: Path, out: Path) -> None:
    refused = vadcli("events", out, "--preview", "--write")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--preview can't be used with --write" in refused.stderr
    plain = vadcli("events", write_scan(tmp_path / "out", {"a": waves(0.45)}), "--preview")
    assert plain.stdout.splitlines()[3].split() == ["0.4", "1", "10", "-"]


def passing(number: int, width: int, height: int) -> np.ndarray:
    """A still picture that a striped bar crosses for a second, every four seconds."""
    shown = np.full((height, width), 90, np.uint8)
    if (step := number % 40 - 15) in range(10):
        shown[10:50, 4 * step : 4 * step + 20] = 230
        shown[10:50:8, 4 * step : 4 * step + 20] = 20
    return shown


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of 8 s with events, a broken one, and their results in `out`."""
    folder = tmp_path_factory.mktemp("last")
    for camera in ("gate", "yard"):
        (folder / "nvr" / camera).mkdir(parents=True)
        make_video(folder / "nvr" / camera / "a.mp4", frames=80, fps=10, size=(192, 128), draw=passing)
    (folder / "nvr" / "gate" / "broken.mp4").write_bytes(b"no video")
    done = vadcli("scan", folder / "nvr", "-o", folder / "out", "--camera-from", "all", "--threshold", "0.08")
    assert done.returncode == 3, done.stderr
    return folder


def scan(folder: Path, *arguments: object) -> str:
    done = vadcli("scan", folder / "nvr", "-o", folder / "out", "--camera-from", "all", *arguments)
    assert done.returncode == 3, done.stderr
    return done.stderr


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in sorted((folder / "out" / "events").rglob("*.json"))]
    return {document["video"]["path"]: document for document in found if not document["failure"]}


def highs(folder: Path) -> dict[str, float]:
    return {video: document["threshold"]["high"] for video, document in stored(folder).items()}


def test_a_failed_video_is_named_and_the_others_are_printed(scanned: Path) -> None:
    out = scanned / "out"
    for arguments in (["--format", "csv"], ["--alarms-per-hour", "1000000", "--format", "csv"], ["--init-truth"]):
        done = vadcli("events", out, *arguments)
        assert done.returncode == 3
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("gate/broken.mp4: failed, so it has no events: ")
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        assert {row["video"] for row in rows} == {"gate/a.mp4", "yard/a.mp4"}, arguments
    one = vadcli("events", out, "--format", "vtt", "--include", "gate/*")  # one file per video, but none for the failed video
    assert (one.returncode, one.stdout.startswith("WEBVTT\n\n1\n")) == (3, True)
    assert vadcli("events", out, "--include", "yard/*", "--format", "edl").returncode == 0
    contradiction = vadcli("events", out, "--low", "0.9")
    assert (contradiction.returncode, contradiction.stdout) == (2, "")
    assert "--low 0.9 is above the threshold" in contradiction.stderr


def test_every_format_is_written_beside_a_failed_video(scanned: Path, tmp_path: Path) -> None:
    for form in EXPORTERS:
        if form == "otio":  # its package may be missing
            continue
        done = CliRunner().invoke(app, ["events", str(scanned / "out"), "--format", form, "--to", str(tmp_path / form)])
        assert isinstance(done.exception, SystemExit), done.exception
        assert done.exit_code == 3, form
        named = "broken" in " ".join(path.name for path in (tmp_path / form).rglob("*.*"))
        assert named == (form == "json")


def test_eval_reads_the_truth_of_init_truth(scanned: Path, tmp_path: Path) -> None:
    begun = vadcli("events", scanned / "out", "--init-truth")
    (tmp_path / "truth.csv").write_text(begun.stdout)
    assert begun.stdout == vadcli("eval", scanned / "out", "--init").stdout
    done = vadcli("eval", scanned / "out", "--root", tmp_path / "truth.csv", "--bootstrap", "0", "--no-save", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["event"]["f1_iou_0.5"]["value"] == 1.0


def test_written_thresholds_and_a_review_last(scanned: Path) -> None:
    """This is the last test of the file, because it changes the footage."""
    night = scanned
    out = night / "out"
    first = stored(night)["gate/a.mp4"]["events"]
    assert len(first) == 2
    review = {"format_version": 1, "reviews": [{"video": "gate/a.mp4", "verdict": "false", **first[0]}]}
    (night / "review.json").write_text(json.dumps(review))
    written = vadcli(
        "events", out, "--threshold", "0.081", "--review", night / "review.json", "--write", "--include", "*/a.mp4"
    )
    assert written.returncode == 0, written.stderr
    only = vadcli("events", out, "--threshold", "0.082", "--min-duration", "100ms", "--write", "--include", "yard/*")
    assert only.returncode == 0, only.stderr
    assert highs(night) == {"gate/a.mp4": 0.081, "yard/a.mp4": 0.082}

    # The next night has a new video, and one camera's videos are scored again.
    make_video(night / "nvr" / "yard" / "b.mp4", frames=80, fps=10, size=(192, 128), draw=passing)
    said = scan(night)
    assert said.count("vadcli events --write") == 1
    assert "the threshold 0.081 for */a.mp4, the threshold 0.082 for yard/*; 1 false alarm of the review is left out" in said
    assert {name: high for name, high in highs(night).items() if name != "yard/b.mp4"} == {
        "gate/a.mp4": 0.081,
        "yard/a.mp4": 0.082,
    }
    assert stored(night)["yard/b.mp4"]["threshold"]["min_duration_s"] == 0.1
    kept = stored(night)["gate/a.mp4"]["events"]
    assert [(event["id"], event["start_s"]) for event in kept] == [(1, first[1]["start_s"])]
    scan(night, "--force")
    assert [event["start_s"] for event in stored(night)["gate/a.mp4"]["events"]] == [first[1]["start_s"]]

    # Exports leave out the false alarm, also with other thresholds; --keep-false does not.
    def printed(*arguments: object) -> int:
        return len(vadcli("events", out, "--include", "gate/a.mp4", "--format", "csv", *arguments).stdout.splitlines()) - 1

    assert (printed(), printed("--threshold", "0.08"), printed("--keep-false")) == (1, 1, 2)
    refused = vadcli("events", out, "--keep-false", "--write")
    assert (refused.returncode, "--forget" in refused.stderr) == (2, True)

    # Options of a scan are used for this scan, and its log says so.
    assert "except for --threshold of this scan" in scan(night, "--threshold", "0.1")
    assert set(highs(night).values()) == {0.1}
    assert stored(night)["yard/a.mp4"]["threshold"]["min_duration_s"] == 0.1
    scan(night)
    assert highs(night) == {"gate/a.mp4": 0.081, "yard/a.mp4": 0.082, "yard/b.mp4": 0.082}

    (out / "choices.json").write_text("{")
    broken = vadcli("scan", night / "nvr", "-o", out)
    assert (broken.returncode, "--forget" in broken.stderr) == (1, True)
    assert vadcli("events", out, "--forget").returncode == 3
    assert not (out / "choices.json").exists()
    assert "events --write" not in scan(night, "--threshold", "0.08")
    assert len(stored(night)["gate/a.mp4"]["events"]) == 2
