"""The small checkpoint through the tool: it finds what is named in videos of its world, and not what isn't."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from vadcli.metrics import FrameSet, frame_auc
from vadcli.train.synthetic import SyntheticWorld, WorldOptions
from vadcli.train.synthetic.videos import VideoOptions, write_videos

NAMES = ("red star", "blue ring", "green cross")
VIDEOS = 3


def vadcli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vadcli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


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
