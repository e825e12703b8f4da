"""Another package adds a detector, an exporter, a data set and a head, which the unchanged command line uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.heads.site import make_site, review_of
from tests.media import make_video
from tests.patience import PATIENCE_S

CODE = '''
from dataclasses import dataclass

import numpy as np

from vadcli.export import Exporter, all_videos
from vadcli.ground_truth.interval_sets import CsvTruth
from vadcli.heads import Labels
from vadcli.options import DetectorOptions, option
from vadcli.types import (
    ClipNeeds, ClipScores, FrameScores, MaskScale, PixelFormat, SizeRule, Thresholds
)


@dataclass(frozen=True)
class LateOptions(DetectorOptions):
    """The options of this detector alone."""

    late_after: float = option(9.5, "Rows after this one are odd.", panel="Detector", why_ignored="counts no rows")

    def is_ready(self):
        return self.late_after == 3.5  # --detector auto takes it then


class Late:
    """Scores a frame by its row: what comes late is odd."""

    name = "late"
    model_version = 1
    needs = ClipNeeds(frames=4, overlap=0, rate_hz=30, size=SizeRule(4096), pixel_format=PixelFormat.GRAY)
    channels = ("row",)
    thresholds = Thresholds(high=0.5, low=0.5, min_duration_s=0.0)
    calibration = None
    uses_categories = False
    categories = ()
    weights = {}
    fits_camera = False
    mask_scale = MaskScale.SCORE
    batch_size = 1
    parallel = 1

    def __init__(self, options):
        self.options = options

    def prepare(self):
        pass

    def fit(self, sample):
        return None

    def score(self, batch):
        shape = batch.frames.shape
        return ClipScores(np.zeros((*shape[:2], 1), np.float32), np.zeros((*shape[:2], 4, 4), np.float32))

    def finish(self, track):
        return FrameScores(np.arange(len(track.raw), dtype=np.float32) - self.options.late_after, moving_camera=None)

    def fingerprint(self):
        return {"version": 1, "late_after": self.options.late_after}


def make_late(options):
    return Late(options)


def make_half(options):
    return LateOptions()


def lines(documents):
    return "".join(f"{one.video['path']} {event.start_s:.2f}\\n" for one in documents for event in one.events)


LINES = Exporter(all_videos(lines), ".txt")


class Mine(CsvTruth):
    name = "mine"


class Axis:
    """Scores a frame by one number of its vector."""

    labels, encoders = Labels.EVENTS, 1

    @classmethod
    def fit(cls, examples, *, seed):
        return cls()

    def score(self, sample):
        return sample.vectors[0][:, 2]

    def state(self):
        return {}

    @classmethod
    def of(cls, state):
        return cls()
'''

ENTRY_POINTS = """
[vadcli.detectors]
late = outsider:make_late
broken = no_such_module:thing
half = outsider:make_half

[vadcli.detector_options]
late = outsider:LateOptions
broken = no_such_module:Options

[vadcli.exporters]
lines = outsider:LINES
half = outsider:Late

[vadcli.datasets]
mine = outsider:Mine
half = outsider:Late

[vadcli.heads]
axis = outsider:Axis
half = outsider:Late
"""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a folder with the files that pip would install."""
    site = tmp_path / "site"
    info = site / "outsider-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "outsider.py").write_text(CODE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return site


def vadcli(site: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "vadcli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        cwd=site.parent,
    )


def test_a_detector_an_exporter_and_a_data_set_from_outside(outside: Path, tmp_path: Path) -> None:
    (tmp_path / "footage").mkdir()
    make_video(tmp_path / "footage" / "a.mp4", frames=20)
    told = vadcli(outside, "scan", "--help").stdout
    assert "late" in told
    assert "--late-after" in told
    assert "lines" in vadcli(outside, "events", "--help").stdout
    assert "mine" in vadcli(outside, "eval", "--help").stdout

    out = tmp_path / "out"
    chosen = ("--detector", "late", "--sample-fps", "30", "--min-size", "5", "--motion-detail", "2", "--no-still")
    scanned = vadcli(outside, "scan", tmp_path / "footage", "--out", out, *chosen)
    assert scanned.returncode == 0, scanned.stderr
    assert [line for line in scanned.stderr.splitlines() if "ignores" in line] == [
        "the late detector can't tell how large things are; it ignores --min-size",
        "the late detector chooses its own frame size; it ignores --motion-detail",
        "the late detector does not look for things that stand still; it ignores --no-still",
    ]
    told = vadcli(outside, "events", out, "--format", "lines")
    assert told.returncode == 0, told.stderr
    video, start = told.stdout.split()
    assert video.endswith("a.mp4")
    assert float(start) > 0

    truth = tmp_path / "truth.csv"
    truth.write_text(f"video,start_s,end_s\n{video},{start},0.8\n")
    judged = vadcli(outside, "eval", out, "--dataset", "mine", "--root", truth, "--metrics", "frame", "--bootstrap", "0")
    assert judged.returncode == 0, judged.stderr
    assert "1.0" in judged.stdout


def test_a_head_from_outside(outside: Path, tmp_path: Path) -> None:
    out, head = tmp_path / "out", tmp_path / "head"
    truth = make_site(out, 4)
    review = review_of(out, tmp_path / "review.json", truth, list(truth))
    assert "axis" in vadcli(outside, "learn", "--help").stdout
    learned = vadcli(outside, "learn", out, "--review", review, "--head", "axis", "--to", head)
    assert learned.returncode == 0, learned.stderr
    assert "axis head" in learned.stdout
    judged = vadcli(outside, "events", out, "--head", head, "--format", "csv")
    assert judged.returncode == 0, judged.stderr
    assert len(judged.stdout.splitlines()) == 1 + 8  # the true ones
    refused = vadcli(outside, "learn", out, "--review", review, "--head", "half")
    assert refused.returncode == 2
    assert "is not a head" in refused.stderr


def test_auto_takes_a_detector_from_outside_that_is_ready(outside: Path, tmp_path: Path) -> None:
    (tmp_path / "footage").mkdir()
    make_video(tmp_path / "footage" / "a.mp4", frames=20)
    out = tmp_path / "out"
    for late_after, name in (("3.5", "late"), ("4.5", "motion")):
        done = vadcli(outside, "scan", tmp_path / "footage", "--out", out, "--late-after", late_after)
        assert done.returncode == 0, done.stderr
        assert json.loads((out / "run.json").read_text())["detector"]["name"] == name
        assert ("the motion detector counts no rows; it ignores --late-after" in done.stderr) == (name == "motion")


def test_what_is_not_what_it_should_be_is_one_line(outside: Path, tmp_path: Path) -> None:
    (tmp_path / "footage").mkdir()
    make_video(tmp_path / "footage" / "a.mp4", frames=8)
    (tmp_path / "truth.csv").write_text("video,start_s,end_s\n")
    assert vadcli(outside, "scan", "footage", "--out", "out", "--detector", "late").returncode == 0
    for arguments in (
        ("scan", "footage", "--detector", "half"),
        ("events", "out", "--format", "half"),
        ("eval", "out", "--dataset", "half", "--root", "truth.csv"),
    ):
        failed = vadcli(outside, *arguments)
        assert failed.returncode == 2, arguments
        assert "half" in failed.stderr
        assert len(failed.stderr.strip().splitlines()) <= 2
        assert "Traceback" not in failed.stderr


def test_a_detector_that_cannot_be_loaded_is_one_line(outside: Path, tmp_path: Path) -> None:
    (tmp_path / "footage").mkdir()
    make_video(tmp_path / "footage" / "a.mp4", frames=8)
    failed = vadcli(outside, "scan", tmp_path / "footage", "--out", tmp_path / "out", "--detector", "broken")
    assert failed.returncode == 2
    assert "no_such_module" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_name_that_is_not_registered_is_refused_with_the_names_there_are(tmp_path: Path, outside: Path) -> None:
    failed = vadcli(outside, "scan", tmp_path, "--detector", "still")
    assert failed.returncode == 2
    for name in ("still", "motion", "lavida", "late"):
        assert name in failed.stderr
