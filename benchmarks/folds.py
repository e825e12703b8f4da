"""Compare `motion`, plain optical flow and plain frame difference, clip by clip.

python benchmarks/folds.py --root DIR [--page folds.md]
python benchmarks/folds.py --root DIR --set SPEED_REFERENCE=2.5 --set blur_cells=1

DIR has UCSD Ped2 (ucsd_ped2/test, ucsd_ped2/train and frame_labels.csv) and the clips of incidents.py. The script draws the
synthetic archive. A fold is one clip: the frame AUC of its abnormal frames against normal frames. --set changes constants or
options of the detector for one run, and prints one line instead of a page.
"""

from __future__ import annotations

import argparse
import csv
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
from _baselines import SMOOTHING_S, flow_speeds, highest_box
from _measure import WORK
from incidents import CLIPS, Found, read_found

import vadcli
import vadcli.detectors
from vadcli.detectors import calibration
from vadcli.detectors.calibration import smooth
from vadcli.detectors.motion import MotionOptions, camera, features, scoring
from vadcli.detectors.motion.detector import MotionDetector
from vadcli.metrics.frame import FrameSet, frame_auc
from vadcli.types import BoolArray, ByteArray, ClipBatch, ClipScores, FloatArray, TimeArray

PAGE = Path(__file__).with_name("folds.md")
METHODS = ("`motion`", "optical flow", "frame difference")
BOX_PX = 21
RESAMPLES = 2000
CHOSEN: dict[str, Any] = {}  # options of the detector that --set changes


@dataclass(frozen=True)
class Curve:
    """The scores of one video by one method, and the times of the scored frames."""

    time_s: TimeArray
    score: FloatArray


@dataclass(frozen=True)
class Fold:
    """How well each method separates the abnormal frames of one clip from normal frames.

    Attributes:
        kind: the kind of footage.
        name: the name of the clip.
        auc: one frame AUC per method in METHODS.
    """

    kind: str
    name: str
    auc: tuple[float, ...]


class Baselines(MotionDetector):
    """The motion detector. It also measures plain flow and plain difference on each clip that it scores."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[tuple[TimeArray, FloatArray]]] = {}

    def score(self, batch: ClipBatch) -> ClipScores:
        """Measure flow and difference, then score the batch."""
        for row, video in enumerate(batch.videos):
            seen = batch.valid[row].copy()
            seen[0] = True
            frames, times = batch.frames[row, seen, ..., 0], batch.timestamp[row, seen]
            self.found.setdefault(video, []).append((times, _boxes(frames)))
        return super().score(batch)

    def curves(self, video: str) -> tuple[Curve, Curve]:
        """Return the smoothed flow and the smoothed difference of a video."""
        clips = sorted(self.found[video], key=lambda clip: float(clip[0][0]))
        # The first frame of a clip is the last one of the clip before; only the first frame of the video has no step.
        times = np.concatenate([clips[0][0][:1], *(clip[0][1:] for clip in clips)])
        values = np.concatenate([clips[0][1][:, :1], *(clip[1] for clip in clips)], axis=1)
        usable = np.ones(len(times), np.bool_)
        flow, change = (smooth(each, timestamp=times, usable=usable, sigma_s=SMOOTHING_S, gap_s=1.0) for each in values)
        return Curve(times, flow), Curve(times, change)


def _boxes(frames: ByteArray) -> FloatArray:
    """Return (2, T - 1) from frames (T, H, W): the highest box of flow and of difference per step."""
    if len(frames) < 2 or min(frames.shape[1:]) < features.SMALLEST_SIDE_PX:
        return np.zeros((2, max(len(frames), 2) - 1), np.float32)
    changes = np.stack([cv2.absdiff(a, b) for a, b in pairwise(frames)]).astype(np.float32)
    both = (flow_speeds(frames)[1:], changes)
    return np.stack([highest_box(maps, BOX_PX).scores for maps in both]).astype(np.float32)


def scanned(paths: Sequence[Path], out: Path, *, plain: bool, **options: Any) -> dict[str, list[Curve]]:
    """Scan videos in this process, and return video -> the curve of each method.

    Args:
        plain: False leaves out the curves of plain flow and plain difference.
    """
    shutil.rmtree(out, ignore_errors=True)
    made = Baselines() if plain else MotionDetector(replace(MotionOptions(), **CHOSEN))
    vadcli.detectors.make_motion = lambda _: made  # type: ignore[assignment]
    videos = [result.video for result in vadcli.scan(paths, out=out, detector="motion", **options)]
    found = {}
    for video in videos:
        table = pq.read_table(out / "scores" / f"{video}.parquet")
        own = Curve(*(table.column(name).to_numpy() for name in ("timestamp", "score")))
        found[video] = [own, *(made.curves(video) if isinstance(made, Baselines) else ())]
    return found


def figure(odd: Sequence[FloatArray], normal: Sequence[FloatArray]) -> float:
    """Return the frame AUC of abnormal frames against normal frames."""
    scores, labels = np.concatenate([*odd, *normal]), np.repeat([True, False], [sum(map(len, odd)), sum(map(len, normal))])
    value = frame_auc(FrameSet.of([scores], [labels])).value
    return float("nan") if value is None else value


def folds_of(
    kind: str, curves: Mapping[str, list[Curve]], odd: Mapping[str, tuple[float, float] | BoolArray], *, within: bool
) -> list[Fold]:
    """Return one fold per video with abnormal frames.

    Args:
        kind: the kind of footage.
        curves: video -> the curve of each method.
        odd: video -> the span of its abnormal frames in seconds, or one label per frame.
        within: True uses the normal frames of the same video, False those of all videos.
    """

    def rows(video: str, curve: Curve) -> BoolArray:
        span = odd.get(video, (0.0, 0.0))
        if isinstance(span, tuple):
            return (curve.time_s >= span[0]) & (curve.time_s < span[1])
        return np.asarray(span, np.bool_)

    found = []
    for video, own in curves.items():
        if not rows(video, own[0]).any() or (within and rows(video, own[0]).all()):
            continue
        others = (video,) if within else tuple(curves)
        auc = []
        for method, curve in enumerate(own):
            normal = [curves[other][method].score[~rows(other, curves[other][method])] for other in others]
            auc.append(figure([curve.score[rows(video, curve)]], normal))
        found.append(Fold(kind, video, tuple(auc)))
    return found


def ped2(root: Path, work: Path, *, plain: bool) -> list[Fold]:
    """Return the folds of UCSD Ped2; test and training clips are one camera."""
    data = root / "ucsd_ped2"
    clips = [path for part in ("test", "train") for path in sorted((data / part).glob("[0-9][0-9]"))]
    curves = scanned(clips, work / "ped2", plain=plain, frames_as_video=True, fps=10.0, camera_from="all", root=data)
    labels: dict[str, list[bool]] = {}
    with (data / "frame_labels.csv").open() as file:
        for row in csv.DictReader(file):
            labels.setdefault(f"test/{row['clip']}", []).append(row["label"] == "1")
    odd = {video: np.array(each, np.bool_) for video, each in labels.items()}
    odd |= {video: np.zeros(len(own[0].score), np.bool_) for video, own in curves.items() if video not in odd}
    return folds_of("UCSD Ped2, against the normal frames of all 22 clips", curves, odd, within=False)


def incidents(root: Path, work: Path, *, plain: bool) -> tuple[list[Fold], list[Found]]:
    """Return the folds and the events of the clips of incidents.py, each scanned as a camera of its own."""
    clips = [clip for clip in CLIPS if (root / clip.file).exists()]
    paths = [root / clip.file for clip in clips]
    curves = scanned(paths, work / "incidents", plain=plain, camera_from="file", root=root)
    odd = {clip.file: (clip.start_s, clip.end_s or np.inf) for clip in clips if clip.start_s is not None}
    across = folds_of("incidents, against the normal frames of all clips", curves, odd, within=False)
    inside = folds_of("incidents, against the other frames of the clip", curves, odd, within=True)
    return [*across, *inside], [read_found(work / "incidents", clip) for clip in clips]


def synthetic(work: Path, *, plain: bool) -> list[Fold]:
    """Return the folds of the synthetic archive, which is drawn if it is missing."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    import synthetic_archive

    footage = WORK / "folds-archive"
    if not (footage / "truth.csv").exists():
        synthetic_archive.make_archive(footage, width=320)
    curves = scanned([footage], work / "synthetic", plain=plain)
    with (footage / "truth.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["start_s"]]
    odd = {row["video"]: (float(row["start_s"]), float(row["end_s"])) for row in rows}
    return folds_of("synthetic archive, against the other frames of the video", curves, odd, within=True)


def change(text: str) -> None:
    """Set a constant (in capital letters) or an option of the detector from a text NAME=VALUE."""
    name, _, value = text.partition("=")
    if name.islower():
        CHOSEN[name] = type(getattr(MotionOptions(), name) or 0.0)(float(value))
        return
    places = [module for module in (calibration, camera, scoring, features) if hasattr(module, name)]
    if not places and name != "TAIL_SCALE":
        raise SystemExit(f"--set {text}: motion has no constant {name}")
    if name == "TAIL_SCALE":
        calibration.REFERENCE = replace(calibration.REFERENCE, scale=float(value))
    for module in places:
        setattr(module, name, type(getattr(module, name))(float(value)))


def summary(folds: Sequence[Fold]) -> str:
    """Return the table of one kind of footage: folds, worst, mean, and differences with intervals."""
    lines = [f"| {folds[0].kind} | {' | '.join(METHODS)} |", "|---|---|---|---|"]
    lines += [f"| {fold.name} | {' | '.join(map(_text, fold.auc))} |" for fold in folds]
    values = np.array([fold.auc for fold in folds])
    lines.append(f"| **worst** | {' | '.join(map(_text, values.min(axis=0)))} |")
    lines.append(f"| **mean** | {' | '.join(map(_text, values.mean(axis=0)))} |")
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    cells = []
    for other in values.T[1:]:
        apart = values[:, 0] - other
        low, high = np.quantile(apart[draws].mean(axis=1), [0.025, 0.975])
        cells.append(f"{apart.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
    lines.append(f"| `motion` minus the method of the column, mean | | {' | '.join(cells)} |")
    return "\n".join(lines)


def _text(value: float) -> str:
    return f"{value:.3f}"


def main() -> None:
    """Scan all footage, and write the page; with --set, print one line instead."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    logging.getLogger("vadcli").setLevel(logging.ERROR)
    for text in options.changes:
        change(text)
    plain = not options.changes
    work = WORK / "folds"
    real, found = incidents(options.root, work, plain=plain)
    folds = [*ped2(options.root, work, plain=plain), *real, *synthetic(work, plain=plain)]
    kinds = list(dict.fromkeys(fold.kind for fold in folds))
    parts = {kind: [fold for fold in folds if fold.kind == kind] for kind in kinds}
    touched, alarms = sum(bool(each.hits) for each in found), sum(each.false_alarms for each in found)
    if plain:
        before = options.page.read_text().split("<!-- folds -->")[0] if options.page.exists() else "# Folds\n\n"
        text = "\n\n".join(summary(part) for part in parts.values())
        options.page.write_text(f"{before}<!-- folds -->\n\n{text}\n")
        print(text)
        return
    cells = [f"{np.min([f.auc[0] for f in part]):.3f} / {np.mean([f.auc[0] for f in part]):.3f}" for part in parts.values()]
    print(f"| {', '.join(options.changes)} | {' | '.join(cells)} | {touched} | {alarms} |")


if __name__ == "__main__":
    main()
