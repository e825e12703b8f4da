"""`vadcli eval` on stored outputs: figures, formats and exit codes."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.commands import vadcli
from tests.evaluate.outputs import FPS, SIZE, write_scan, write_truth

ROWS = 60
ABNORMAL = {"cam/a.mp4": (2.0, 4.0), "cam/b.mp4": (1.0, 2.5)}
VIDEOS = (*ABNORMAL, "cam/c.mp4")
KINDS = (("scores", ".parquet"), ("events", ".json"))


def scores(video: str, seed: int, *, lift: float) -> np.ndarray:
    times = np.arange(ROWS) / FPS
    start_s, end_s = ABNORMAL.get(video, (0.0, 0.0))
    inside = (times >= start_s) & (times < end_s)
    return np.clip(np.random.default_rng(seed).uniform(0.0, 0.45, ROWS) + lift * inside, 0, 1)


def scan(out: Path, *, lift: float) -> Path:
    return write_scan(out, {video: scores(video, seed, lift=lift) for seed, video in enumerate(VIDEOS)})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return scan(tmp_path / "out", lift=0.5)


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    rows = [f"{video},{start},{end},fight" for video, (start, end) in ABNORMAL.items()]
    return write_truth(tmp_path / "truth.csv", [*rows, "cam/c.mp4,,,"])


def clips(root: Path) -> Path:
    """Write two clips in the layout of Ped2, with frame labels and masks, but without frames."""
    lines = ["clip,frame_index0,label"]
    for clip in ("01", "02"):
        (root / "test_masks" / clip).mkdir(parents=True)
        for frame in range(ROWS):
            mask = np.zeros(SIZE, np.uint8)
            mask[4:12, 6:16] = 255 * (20 <= frame < 40)
            Image.fromarray(mask).save(root / "test_masks" / clip / f"{frame:03d}.png")
            lines.append(f"{clip},{frame},{int(20 <= frame < 40)}")
    (root / "frame_labels.csv").write_text("\n".join(lines) + "\n")
    return root


def written(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def figures(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_same_figures_in_every_format_and_in_the_stored_document(out: Path, truth: Path) -> None:
    before = written(out)
    table = vadcli("eval", out, "--root", truth, "--metrics", "frame,event,category", "--bootstrap", "100")
    assert table.returncode == 0, table.stderr
    stored = json.loads((out / "eval" / "csv.json").read_text())
    assert written(out) - before == {"eval/csv.json"}
    auc = stored["metrics"]["frame"]["auc_micro"]
    assert auc["videos"] == 3
    assert auc["ci_low"] <= auc["value"] <= auc["ci_high"]
    shown = f"{auc['value']:.4f} [{auc['ci_low']:.4f}, {auc['ci_high']:.4f}]"
    assert table.stdout.startswith(f"csv: 3 videos, {3 * ROWS} frames, 35 abnormal; detector fake\n")
    assert re.search(rf"^frame ROC-AUC, all frames +{re.escape(shown)}$", table.stdout, re.MULTILINE)
    assert "category: fight" in table.stdout
    (printed,) = figures(
        vadcli("eval", out, "--root", truth, "--metrics", "frame,event,category", "--bootstrap", "100", "--json")
    )
    assert printed == stored
    options = ("--metrics", "frame", "--bootstrap", "100", "--no-save", "--format")
    assert f"| frame ROC-AUC, all frames | {shown} |" in vadcli("eval", out, "--root", truth, *options, "markdown").stdout
    assert rf"frame ROC-AUC, all frames & {shown} \\" in vadcli("eval", out, "--root", truth, *options, "latex").stdout


def test_a_run_with_fewer_groups_keeps_the_others_if_nothing_else_changes(tmp_path: Path, out: Path, truth: Path) -> None:
    stored = out / "eval" / "csv.json"

    def kept(*options: object) -> dict[str, Any]:
        (printed,) = figures(vadcli("eval", out, "--root", truth, "--bootstrap", "0", "--json", *options))
        document: dict[str, Any] = json.loads(stored.read_text())
        assert {group: document["metrics"][group] for group in printed["metrics"]} == printed["metrics"]
        return document

    first = kept("--metrics", "event")
    assert first["root"] == str(truth)
    both = kept("--metrics", "frame")
    assert list(both["metrics"]) == both["protocol"]["groups"] == ["frame", "event"]
    assert both["metrics"]["event"] == first["metrics"]["event"]
    assert list(kept("--metrics", "frame", "--endpoints")["metrics"]) == ["frame"]  # another protocol
    everything = kept()
    assert list(everything["metrics"]) == ["frame", "event", "range", "category"]
    assert kept("--metrics", "frame") == everything  # the same figures, still of all groups
    write_truth(truth, ["cam/a.mp4,2,4,fight", "cam/b.mp4,1,2,fight", "cam/c.mp4,,,"])
    assert list(kept("--metrics", "frame")["metrics"]) == ["frame"]  # another truth
    kept("--metrics", "event")
    scan(out, lift=0.3)
    assert list(kept("--metrics", "frame")["metrics"]) == ["frame"]  # other scores
    stored.write_text("[]")
    assert list(kept("--metrics", "event")["metrics"]) == ["event"]


def test_a_template_corrected_by_hand_is_a_truth(tmp_path: Path, out: Path) -> None:
    made = vadcli("eval", out, "--init")
    assert made.returncode == 0, made.stderr
    rows = list(csv.DictReader(io.StringIO(made.stdout)))
    assert {row["video"] for row in rows} == set(VIDEOS)
    assert [row["start_s"] for row in rows if row["video"] == "cam/c.mp4"] == [""]  # normal, because it has no events
    found = [row for row in rows if row["video"] == "cam/a.mp4"]
    assert [float(row["start_s"]) for row in found] == [2.0]
    corrected = tmp_path / "corrected.csv"
    corrected.write_text(made.stdout.replace("cam/c.mp4,,,", "cam/c.mp4,5,6,fall"))
    (report,) = figures(vadcli("eval", out, "--root", corrected, "--metrics", "event", "--json", "--no-save"))
    assert report["abnormal_frames"] == 35 + 10
    assert report["metrics"]["event"]["recall"]["value"] == pytest.approx(2 / 3)
    assert report["metrics"]["event"]["false_alarms_per_hour"]["value"] == 0.0


def test_frame_labels_become_seconds_with_the_same_figures(tmp_path: Path) -> None:
    out = write_scan(tmp_path / "out", {clip: np.linspace(0, 1, ROWS) for clip in ("01", "02")})
    root = clips(tmp_path / "ped2")
    table = vadcli("eval", out, "--dataset", "ped2", "--root", root, "--from-frames")
    assert table.stdout == "video,start_s,end_s,category\n01,2,4,\n02,2,4,\n"
    assert written(out) == {f"{kind}/{clip}{suffix}" for kind, suffix in KINDS for clip in ("01", "02")}
    seconds = tmp_path / "seconds.csv"
    seconds.write_text(table.stdout)
    options = ("--metrics", "frame", "--bootstrap", "0", "--json", "--no-save")
    (by_frames,) = figures(vadcli("eval", out, "--dataset", "ped2", "--root", root, *options))
    (by_seconds,) = figures(vadcli("eval", out, "--root", seconds, *options))
    assert by_frames["metrics"] == by_seconds["metrics"]


def test_runs_are_compared_in_pairs(tmp_path: Path, out: Path, truth: Path) -> None:
    poor = scan(tmp_path / "poor", lift=0.05)
    options = ("--root", truth, "--metrics", "frame", "--bootstrap", "100")
    first, second = figures(vadcli("eval", "--compare", out, poor, *options, "--json"))
    values = [report["metrics"]["frame"]["auc_micro"]["value"] for report in (first, second)]
    lost = second["difference_to_first"]["frame"]["auc_micro"]
    assert "difference_to_first" not in first
    assert lost["value"] == pytest.approx(values[1] - values[0])
    assert lost["ci_low"] <= lost["value"] <= lost["ci_high"] < 0
    assert all((folder / "eval" / "csv.json").exists() for folder in (out, poor))
    table = vadcli("eval", out, poor, *options, "--no-save")
    assert f"({lost['value']:+.4f} [{lost['ci_low']:+.4f}, {lost['ci_high']:+.4f}])" in table.stdout


def test_no_save_writes_nothing_and_plots_writes_pictures(tmp_path: Path, out: Path, truth: Path) -> None:
    before = written(tmp_path)
    done = vadcli("eval", out, "--root", truth, "--metrics", "frame", "--bootstrap", "100", "--no-save")
    assert done.returncode == 0, done.stderr
    assert written(tmp_path) == before
    plots = tmp_path / "pictures"
    options = ("--metrics", "frame", "--bootstrap", "100", "--no-save", "--plots", plots)
    done = vadcli("eval", out, "--root", truth, *options)
    assert done.returncode == 0, done.stderr
    assert written(tmp_path) - before == {"pictures/curves.png", "pictures/timelines-1.png"}
    refused = vadcli("eval", out, "--root", truth, "--metrics", "frame", "--plots", truth)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"{truth}: is a file, but must be a folder" in refused.stderr
    assert written(tmp_path) - before == {"pictures/curves.png", "pictures/timelines-1.png"}
    for path in plots.iterdir():
        assert min(Image.open(path).size) > 200
    assert "the videos can no longer be read at their old paths" in done.stderr


MALFORMED = "video,start_s,end_s\ncam/a.mp4,4,2\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("missing", "--root", "truth.csv"), 2, "missing: has no scores"),
        (("out",), 2, "--root is missing"),
        (("out", "--root", "nowhere.csv"), 2, "nowhere.csv: the file or folder does not exist"),
        (("out", "--root", "alien.csv"), 2, "no scored video belongs to your CSV table: the scan has 'cam/a.mp4'"),
        (("out", "--root", "truth.csv", "--dataset", "ped3"), 2, "no data set is called 'ped3'"),
        (("out", "--root", "truth.csv", "--metrics", "frame,pixels"), 2, "--metrics: 'pixels' is not a group of metrics"),
        (("out", "--root", "truth.csv", "--metrics", "pixel"), 2, "--metrics pixel"),
        (("out", "--root", "other.csv"), 2, "'cam/b.mp4'"),
        (("out", "--root", "longer.csv"), 1, "ends at 40 s, but cam/a.mp4 has scores up to 6 s"),
        (("out", "--root", "malformed.csv"), 1, "malformed.csv, line 2: '4' to '2' is not an interval"),
        (("out", "--compare", "--root", "truth.csv"), 2, "--compare needs two OUT"),
        (("out", "--root", "truth.csv", "--bootstrap", "99"), 2, "--bootstrap 99"),
        (("out", "--root", "truth.csv", "--bootstrap", "-1"), 2, "--bootstrap -1"),
        (("out", "--root", "truth.csv", "--pixel-size", "4097x2"), 2, "--pixel-size 4097x2: a side may have up to 4096"),
        (("out", "--root", "truth.csv", "--init", "--from-frames"), 2, "--init and --from-frames"),
    ],
)
def test_an_error_is_one_clear_line(
    tmp_path: Path, out: Path, truth: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    write_truth(tmp_path / "other.csv", ["cam/a.mp4,2,4,", "cam/c.mp4,,,"])
    write_truth(tmp_path / "longer.csv", ["cam/a.mp4,2,40,", "cam/b.mp4,1,2,", "cam/c.mp4,,,"])
    write_truth(tmp_path / "alien.csv", ["zoo/z.mp4,,,"])
    (tmp_path / "malformed.csv").write_text(MALFORMED)
    before = written(tmp_path)
    done = vadcli("eval", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    error, *hint = done.stderr.splitlines()
    assert error.startswith("vadcli: error: ")
    assert words in error
    assert len(hint) <= 1
    assert written(tmp_path) == before


def test_a_truth_of_another_cut_names_both_lengths(tmp_path: Path) -> None:
    out = write_scan(tmp_path / "out", {"01": [0.1] * ROWS, "02": [0.1] * (ROWS - 1)})
    done = vadcli("eval", out, "--dataset", "ped2", "--root", clips(tmp_path / "ped2"))
    assert done.returncode == 1
    assert f"the annotation has {ROWS} frames, but 02 has scores for {ROWS - 1}: one frame apart" in done.stderr
