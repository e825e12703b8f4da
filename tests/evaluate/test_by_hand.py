"""Small test sets whose figures are worked out by hand, so that each input that goes wrong moves one of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.evaluate.outputs import SIZE, Odd, write_scan, write_truth
from vadcli.evaluate import Protocol, Report, collect, measure
from vadcli.evaluate.report import compared, to_table
from vadcli.ground_truth import open_ground_truth
from vadcli.metrics import Bootstrap


def called(rows: int, *stretches: tuple[int, int]) -> np.ndarray:
    """(rows,) scores: .9 in the half-open stretches, .1 elsewhere."""
    values = np.full(rows, 0.1)
    for start, end in stretches:
        values[start:end] = 0.9
    return values


def evaluated(out: Path, truth: Path, protocol: Protocol | None = None, *, dataset: str = "csv", **options: Any) -> Report:
    protocol = protocol or Protocol()
    test = collect(out, open_ground_truth(dataset, truth), **options)
    return Report.of(dataset, test, protocol, measure(test, protocol))


def value(report: Report, name: str) -> float | None:
    group, _, key = name.partition(".")
    return report.metrics[group][key].value


def test_a_cut_video_lasts_as_long_as_its_rows(tmp_path: Path) -> None:
    """100 of 1000 promised frames: the true event at the end lasts from 8 to 10 s, not to 100 s."""
    odd = Odd(promised={"a.mp4": 1000}, damaged={"a.mp4": (3, 4), "b.mp4": (7,)})
    out = write_scan(tmp_path / "out", {"a.mp4": called(100, (20, 30), (80, 100)), "b.mp4": called(100)}, odd=odd)
    report = evaluated(out, write_truth(tmp_path / "truth.csv", ["a.mp4,8,10,", "b.mp4,,,"]))
    assert report.test.events.true[0].tolist() == pytest.approx(np.array([[8.0, 10.0]]))
    assert value(report, "event.f1_iou_0.5") == pytest.approx(2 / 3)  # two predicted, one true, one pair
    assert value(report, "event.false_alarms_per_hour") == pytest.approx(1 / (20 / 3600))
    document = json.loads(json.dumps(report.to_json()))
    assert document["partial"] == ["a.mp4"]
    assert document["damaged_frames"] == {"a.mp4": 2, "b.mp4": 1}
    table = to_table([report])
    assert "note: 1 videos are partial" in table
    assert "note: 3 frames of 2 videos were decoded with errors" in table
    whole = evaluated(write_scan(tmp_path / "whole", {"a.mp4": called(100), "b.mp4": called(100)}), tmp_path / "truth.csv")
    assert "partial" not in to_table([whole])
    assert "decoded with errors" not in to_table([whole])


def squares(root: Path, clips: dict[str, int]) -> Path:
    """Ped2 with a label table: in frames 2 to 5 of each clip of so many frames, the left half of the picture is abnormal."""
    lines = ["clip,frame_index0,label"]
    for clip, frames in clips.items():
        (root / "test_masks" / clip).mkdir(parents=True)
        for number in range(frames):
            there = 2 <= number < 6
            Image.fromarray(half(there)).save(root / "test_masks" / clip / f"{number:03d}.png")
            lines.append(f"{clip},{number},{int(there)}")
    (root / "frame_labels.csv").write_text("\n".join(lines) + "\n")
    return root


def half(there: bool, level: int = 255) -> np.ndarray:
    picture = np.zeros(SIZE, np.uint8)
    picture[:, : SIZE[1] // 2] = level * there
    return picture


def test_run_lengths_have_two_levels_and_say_so(tmp_path: Path) -> None:
    """What is there scores 100 of 255, below 0.5: a mask video ranks it perfectly, run lengths know nothing of it."""
    truth = squares(tmp_path / "ped2", {"01": 8, "02": 8})
    masks = {clip: np.stack([half(2 <= number < 6, 100) for number in range(8)]) for clip in ("01", "02")}
    reports, estimates = [], []
    for name in ("video", "runs"):
        given = {clip: called(8, (2, 6)) for clip in masks}
        out = write_scan(tmp_path / name, given, masks=masks, odd=Odd(run_lengths=name == "runs"))
        test = collect(out, open_ground_truth("ped2", truth))
        estimates.append(measure(test, Protocol(bootstrap=Bootstrap(100))))
        reports.append(Report.of("ped2", test, Protocol(bootstrap=Bootstrap(100)), estimates[-1]))
    video, runs = reports
    assert (value(video, "pixel.auc"), value(runs, "pixel.auc")) == (1.0, 0.5)
    note = "two levels: run lengths at 0.5"
    assert {name for name, metric in runs.metrics["pixel"].items() if note in metric.note} == {"auc", "ap", "aupro"}
    assert not any(note in metric.note for metric in video.metrics["pixel"].values())
    assert runs.to_json()["two_level_masks"] == ["01", "02"]
    assert note in to_table([runs])
    assert "run lengths" not in to_table([video])
    both = compared(reports, estimates)
    assert "some runs have mask videos, others run lengths" in to_table(both)
    assert both[1].against is not None
    assert "others run lengths" in both[1].against["pixel"]["auc"].note
    assert "others run lengths" not in both[1].against["frame"]["auc_micro"].note


def test_true_events_are_the_intervals_and_rows_may_have_two_categories(tmp_path: Path) -> None:
    """fight 1-3 s, fire 2-4 s: two events that overlap; fall 5-6 and 6-7 s: two adjacent ones; smoke 8-9 and 8.5-9.5 s: one."""
    lines = ["fight,1,3", "fire,2,4", "fall,5,6", "fall,6,7", "smoke,8,9", "smoke,8.5,9.5"]
    rows = ["a.mp4,{1},{2},{0}".format(*line.split(",")) for line in lines]
    values = np.zeros(100)
    values[10:20], values[20:30], values[30:40] = 0.2, 0.6, 0.9  # fight alone, both, fire alone
    values[95:] = 0.7
    report = evaluated(write_scan(tmp_path / "out", {"a.mp4": values}), write_truth(tmp_path / "truth.csv", rows))
    wanted = [[1, 3], [2, 4], [5, 6], [6, 7], [8, 9.5]]
    assert np.asarray(report.test.events.true[0]) == pytest.approx(np.array(wanted))
    # Normal are 10 + 10 + 10 rows at 0 and 5 at .7. Fight: 10 rows at .2 and 10 at .6 beat 30 of 35. Fire: 10 at .6, 10 at .9.
    assert value(report, "category.fight") == pytest.approx(30 / 35)
    assert value(report, "category.fire") == pytest.approx((30 + 35) / 2 / 35)
    assert value(report, "category.fall") == pytest.approx(15 / 35)  # all at 0, as 30 normal rows: ties count half


def test_a_comparison_shows_what_either_run_has_and_says_which_run_a_note_is_about(tmp_path: Path) -> None:
    truth = squares(tmp_path / "ped2", {"01": 8, "02": 8})
    masks = {clip: np.stack([half(2 <= number < 6) for number in range(8)]) for clip in ("01", "02")}
    given = {clip: called(8, (2, 6)) for clip in masks}
    plain = write_scan(tmp_path / "plain", given)
    masked = write_scan(tmp_path / "masked", given, masks=masks, odd=Odd(detector="other", damaged={"01": (1,)}))
    table = to_table([evaluated(out, truth, dataset="ped2") for out in (plain, masked)])
    headline, *lines = table.splitlines()
    assert headline.endswith(f"detectors {plain}: fake; {masked}: other")
    assert any(re.fullmatch(r"pixel ROC-AUC +- +1\.0000", line) for line in lines)
    assert f"note: {masked}: 1 frames of 1 videos were decoded with errors, and count" in lines
    assert any(line.startswith(f"note: {plain}: no pixel figures") for line in lines)
    assert any(line.startswith("note: onset error") for line in lines)  # of both, so of none by name
