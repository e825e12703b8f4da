"""Accuracy on real footage: the files of a scan are compared with the frame and pixel labels of UCSD Ped2."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from benchmarks._baselines import difference, smoothed
from tests.commands import vadcli
from vadcli.store.masks import read_masks

CLIPS = ("01", "02", "03", "04", "05", "06")
FRAME_AUC, PIXEL_AUC = 0.991, 0.995
TOLERANCE = 0.002


@pytest.fixture(scope="module")
def ped2(shared_data: Path) -> Path:
    return shared_data / "ucsd_ped2"


@pytest.fixture(scope="module")
def scanned(ped2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scan the test clips 01-06 together as frame folders, without labels and without training clips."""
    out = tmp_path_factory.mktemp("ped2") / "out"
    options = ["--frames-as-video", "--fps", "10", "--masks", "video", "--out", str(out), "--quiet"]
    done = vadcli("scan", ped2 / "test", *options)
    assert done.returncode == 0, done.stderr
    return out


def frame_truth(ped2: Path) -> dict[str, np.ndarray]:
    rows = list(csv.DictReader((ped2 / "frame_labels.csv").open()))
    return {clip: np.array([int(row["label"]) for row in rows if row["clip"] == clip]) for clip in CLIPS}


def pixel_truth(ped2: Path, clip: str, frame: int) -> np.ndarray:
    return np.asarray(Image.open(ped2 / "test_masks" / clip / f"{frame:03d}.png").convert("L")) > 127


def histogram_auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the exact ROC-AUC of 8-bit scores from their histograms; equal scores count half."""
    below = np.concatenate([[0], np.cumsum(negative)[:-1]])
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))


def plain_difference(ped2: Path, clip: str) -> np.ndarray:
    """Return simple scores that a detector must beat: the largest 5x5 mean of the change from the previous frame, smoothed."""
    frames = [np.asarray(Image.open(path).convert("L")) for path in sorted((ped2 / "test" / clip).glob("*.jpg"))]
    return smoothed(difference(np.stack(frames), box_px=5).scores, 10.0)


@pytest.mark.shared
def test_frame_auc_over_the_clips_together(ped2: Path, scanned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = frame_truth(ped2)
    scores = {clip: pq.read_table(scanned / "scores" / f"{clip}.parquet").column("score").to_numpy() for clip in CLIPS}
    assert all(len(scores[clip]) == len(truth[clip]) for clip in CLIPS)
    labels = np.concatenate([truth[clip] for clip in CLIPS])
    ours = roc_auc_score(labels, np.concatenate([scores[clip] for clip in CLIPS]))
    plain = roc_auc_score(labels, np.concatenate([plain_difference(ped2, clip) for clip in CLIPS]))
    with capsys.disabled():
        print(f"\nPed2 01-06 frame AUC: motion {ours:.4f}, plain frame difference {plain:.4f}")
    assert ours >= 0.98


@pytest.mark.shared
def test_pixel_auc_of_the_mask_videos_as_written(ped2: Path, scanned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    positive, negative = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for clip in CLIPS:
        frames = 0
        for frame, mask in enumerate(read_masks(scanned / "masks" / f"{clip}.mkv")):
            truth = pixel_truth(ped2, clip, frame)
            positive += np.bincount(mask[truth], minlength=256)
            negative += np.bincount(mask[~truth], minlength=256)
            frames += 1
        assert frames == len(list((ped2 / "test" / clip).glob("*.jpg")))
    auc = histogram_auc(positive, negative)
    with capsys.disabled():
        print(f"\nPed2 01-06 pixel AUC of the mask videos: {auc:.4f}")
    assert auc >= 0.985


@pytest.mark.shared
def test_the_command_eval_gives_the_figures_of_the_docs(ped2: Path, scanned: Path) -> None:
    """The command prints the figures of docs/motion.md."""
    options = ("--dataset", "ped2", "--root", ped2, "--metrics", "frame,pixel", "--json", "--no-save")
    done = vadcli("eval", scanned, *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    frame, pixel = report["metrics"]["frame"]["auc_micro"], report["metrics"]["pixel"]["auc"]
    assert (report["videos"], report["frames"]) == (6, 1020)
    assert (frame["value"], pixel["value"]) == pytest.approx((FRAME_AUC, PIXEL_AUC), abs=TOLERANCE)
    for metric in (frame, pixel):
        assert metric["ci_low"] < metric["value"] < metric["ci_high"]
