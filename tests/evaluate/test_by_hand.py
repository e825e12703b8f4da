"""Small test sets whose figures are worked out by hand, so that each input that goes wrong moves one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluate.outputs import Odd, write_scan, write_truth
from vadcli.evaluate import Protocol, Report, collect, measure
from vadcli.evaluate.report import to_table
from vadcli.ground_truth import open_ground_truth


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
