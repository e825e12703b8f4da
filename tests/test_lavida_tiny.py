"""The small checkpoint through the tool: it finds only the named categories in videos of its world."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests import commands
from tests.detectors.test_detector_contract import batch_of, make_clip
from tests.patience import PATIENCE_S
from tools.tiny_world import SyntheticWorld, WorldOptions
from tools.tiny_world.videos import VideoOptions, write_videos
from vadcli import detectors
from vadcli.detectors.lavida import LavidaOptions
from vadcli.metrics.frame import FrameSet, frame_auc

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "coloured_shapes.py"
NAMES = ("red star", "blue ring", "green cross")
VIDEOS = 3


def vadcli(*arguments: object) -> subprocess.CompletedProcess[str]:
    return commands.vadcli(*arguments, forks=commands.WITH_TORCH)


@pytest.mark.slow
def test_named_shapes_are_found_in_videos(tmp_path: Path) -> None:
    world = SyntheticWorld(WorldOptions(), seed=9, split="test", length=VIDEOS)
    options = VideoOptions(seconds=6.0, normal=0.0)
    truth = write_videos(tmp_path / "films", world, range(VIDEOS), categories=NAMES, options=options)
    done = vadcli(
        *("scan", tmp_path / "films", "--out", tmp_path / "out", "--detector", "lavida", "--model", "lavida-tiny"),
        *("--categories", ", ".join(NAMES), "--masks", "video", "--quiet"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "and nothing that a library has to say"
    scores, labels = [], []
    for path in sorted((tmp_path / "out" / "scores").glob("*.parquet")):
        table = pq.read_table(path)
        times = table["timestamp"].to_numpy()
        rows = [line.split(",") for line in truth.read_text().splitlines()[1:]]
        shown = np.zeros(len(times), np.bool_)
        for video, start, end, _ in rows:
            if video == path.name.removesuffix(".parquet") and start:
                shown |= (times >= float(start)) & (times < float(end))
        scores.append(table["score"].to_numpy())
        labels.append(shown)
    assert len(scores) == VIDEOS
    value = frame_auc(FrameSet.of(scores, labels)).value
    assert value is not None
    assert value > 0.9


def test_a_scan_says_what_the_checkpoint_is_not_for(tmp_path: Path) -> None:
    assert example(tmp_path / "films", "--videos", 1, "--seconds", 1).returncode == 0
    scan = ("scan", tmp_path / "films", "--out", tmp_path / "out", "--detector", "lavida", "--model", "lavida-tiny")
    done = vadcli(*scan, "--categories", "red star")
    assert done.returncode == 0, done.stderr
    caveat = "lavida-tiny was trained only on generated videos of shapes; it is not a detector for real videos."
    assert done.stderr.count(caveat) == 1
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["caveats"] == [caveat]
    assert run["looked_for"] == ["red star"]
    page = vadcli("report", tmp_path / "out", "--format", "markdown").stdout
    assert caveat in page
    assert "Looked for: red star" in page


LOGITS = (-7.0363, -6.9226, -6.7854, -6.9498, -7.0392, -7.0584, -6.7813, -6.8996)
"""What the checkpoint gave when Qwen2-VL's code was still a part of LAVIDA's folder."""


def test_the_scores_are_those_of_the_first_version() -> None:
    options = LavidaOptions(categories="red star, blue ring", model="lavida-tiny", device="cpu")
    detector = detectors.load("lavida", options)
    scores = detector.score(batch_of([make_clip(detector, seed=0, video="a.mp4", size=(48, 64))], [None]))
    np.testing.assert_allclose(scores.raw[0, :, 0], LOGITS, rtol=0, atol=2e-3)


def example(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_the_example_makes_videos_with_their_truth(tmp_path: Path) -> None:
    done = example(tmp_path, "--videos", 2, "--seconds", 1, "--categories", "something red, ring,")
    assert (done.returncode, done.stderr) == (0, "")
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["ground_truth.csv", "test-7-00000.mp4", "test-7-00001.mp4"]
    rows = [line.split(",") for line in (tmp_path / "ground_truth.csv").read_text().splitlines()[1:]]
    assert {row[0] for row in rows} == set(made[1:])
    assert {row[3] for row in rows} <= {"something red", "ring", ""}


def test_the_example_says_what_it_can_not_show(tmp_path: Path) -> None:
    done = example(tmp_path / "films", "--categories", "red star, a dog")
    assert done.returncode == 1
    assert done.stderr.startswith("coloured_shapes.py: the synthetic world has no name 'a dog'")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "films").exists()
