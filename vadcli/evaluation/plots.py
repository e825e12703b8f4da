"""Draws an evaluation as PNG files: ROC, PR and PIMO curves, score timelines, and contact sheets.

There are two contact sheets. The first sheet has a frame of each of the normal spans with the highest scores (false alarms).
The second sheet has a frame of each of the true events with the lowest scores (missed events).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vadcli.evaluation import Evaluation
from vadcli.evaluation.figures import TestSet
from vadcli.metrics.frame import FrameSet
from vadcli.metrics.localization import PIMO_LIMITS
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch, writing
from vadcli.store.scores import read_metadata, read_scores
from vadcli.types import ByteArray, ClipNeeds, PixelFormat, SizeRule
from vadcli.types.text import may_exist
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, LoaderOptions

matplotlib.use("Agg")  # needs no screen

log = logging.getLogger("vadcli")

CURVE_POINTS = 2000  # number of points of a ROC or PR curve
TIMELINE_POINTS = 4000  # approximate number of points per video
TIMELINES_PER_PAGE = 12
SHEET_COLUMNS, SHEET_ROWS = 4, 3
SHEET_FRAME_PX = 320 * 240  # pixels of a frame in a contact sheet
TRUTH, SCORE, SECOND = "#e8590c", "#1864ab", "#868e96"
"""Colours of true events, of scores, and of reference lines."""


def draw(reports: Sequence[Evaluation], folder: Path) -> Iterator[Path]:
    """Draw the plots and contact sheets of an evaluation, one PNG file each.

    Args:
        reports: one report, or several about scans of the same videos. Timelines and sheets show only the first scan.
        folder: folder for the files; it is created if it does not exist.

    Yields:
        The path of each file.

    Raises:
        OutputError: the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    test = reports[0].test
    figures: list[tuple[str, Figure]] = [("curves.png", _curves(reports))]
    figures += [("pimo.png", figure) for figure in _pimo(reports)]
    figures += [(f"timelines-{page}.png", figure) for page, figure in enumerate(_timelines(test), 1)]
    figures += [(f"{name}.png", figure) for name, figure in _sheets(test)]
    with Scratch(folder / ".tmp") as scratch:
        for name, figure in figures:
            with scratch.replace(folder / name) as path:
                figure.savefig(path, format="png", dpi=110)
            yield folder / name


def curve(frames: FrameSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the false-positive rates, true-positive rates and precisions at falling thresholds.

    The thresholds are the distinct scores, or `CURVE_POINTS` of them if there are more. The arrays are empty if all frames are
    of one class.
    """
    order = np.argsort(-frames.scores, kind="stable")
    scores, labels = frames.scores[order], frames.labels[order]
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True))
    true = np.cumsum(labels)[last].astype(np.float64)
    false = last + 1 - true
    if not len(true) or not true[-1] or not false[-1]:
        return np.empty(0), np.empty(0), np.empty(0)
    thin = np.unique(np.linspace(0, len(last) - 1, min(len(last), CURVE_POINTS)).round().astype(int))
    return (false / false[-1])[thin], (true / true[-1])[thin], (true / (true + false))[thin]


def _curves(reports: Sequence[Evaluation]) -> Figure:
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    roc, pr = figure.subplots(1, 2)
    roc.plot([0, 1], [0, 1], color=SECOND, linewidth=0.8, linestyle=":")
    for report in reports:
        false, true, precision = curve(report.test.frames)
        auc, ap = (report.metrics.get("frame", {}).get(name) for name in ("auc_micro", "ap_micro"))
        name = str(report.test.out)
        roc.step([0, *false], [0, *true], where="post", label=_labelled(name, auc.value if auc else None))
        pr.step(true, precision, where="pre", label=_labelled(name, ap.value if ap else None))
    share = float(reports[0].test.frames.labels.mean()) if len(reports[0].test.frames.labels) else 0.0
    pr.axhline(share, color=SECOND, linewidth=0.8, linestyle=":")
    _dress(roc, "ROC, all frames", "false-positive rate", "true-positive rate")
    _dress(pr, "precision and recall, all frames", "recall", "precision")
    return figure


def _pimo(reports: Sequence[Evaluation]) -> Iterator[Figure]:
    """Yield a plot of the mean PIMO curves if at least one report has one. The range of AUPIMO is shaded."""
    metrics = {str(report.test.out): report.metrics.get("pixel", {}).get("aupimo") for report in reports}
    curves = {name: metric for name, metric in metrics.items() if metric is not None and metric.curve}
    if not curves:
        return
    figure = Figure(figsize=(5.4, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(*PIMO_LIMITS, color=SECOND, alpha=0.25, linewidth=0)
    for name, metric in curves.items():
        rate, share = np.array(metric.curve).T
        axes.step([0, *rate], [0, *share], where="post", label=_labelled(name, metric.value))
    _dress(axes, "PIMO, mean of frames with true pixels", "false-positive rate in normal frames", "true pixels found")
    axes.set_xscale("symlog", linthresh=PIMO_LIMITS[0] / 10)
    axes.legend(fontsize=8, loc="upper left")
    yield figure


def _labelled(name: str, value: float | None) -> str:
    return name if value is None else f"{name} ({value:.3f})"


def _dress(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.2)


def _timelines(test: TestSet) -> Iterator[Figure]:
    layout = OutputLayout(test.out)
    for start in range(0, len(test.videos), TIMELINES_PER_PAGE):
        names = test.videos[start : start + TIMELINES_PER_PAGE]
        figure = Figure(figsize=(11, 1.3 * len(names) + 0.6), layout="constrained")
        rows = figure.subplots(len(names), 1, squeeze=False)[:, 0]
        for number, (axes, video) in enumerate(zip(rows, names, strict=True), start):
            table, _ = read_scores(layout.scores(video))
            step = max(1, len(table) // TIMELINE_POINTS)
            count = len(table) // step * step
            peaks = table.score[:count].reshape(-1, step).max(axis=1) if count else table.score
            axes.plot(table.timestamp[:count:step], peaks, color=SCORE, linewidth=0.8)
            for start_s, end_s in test.events.true[number]:
                axes.axvspan(start_s, end_s, color=TRUTH, alpha=0.25, linewidth=0)
            for start_s, end_s in test.events.predicted[number]:
                axes.plot([start_s, end_s], [0.02, 0.02], color=TRUTH, linewidth=3, solid_capstyle="butt")
            axes.set(ylim=(0, 1), xlim=(0, max(float(test.events.duration_s[number]), 1e-3)))
            axes.set_ylabel(video if len(video) < 18 else f"…{video[-16:]}", rotation=0, ha="right", fontsize=7)
            axes.tick_params(labelsize=7)
        rows[-1].set_xlabel("seconds; true events shaded, predicted events underlined")
        yield figure


@dataclass(frozen=True)
class _SheetFrame:
    """A frame that a contact sheet may show: the index of its video, its number, and its score."""

    number: int
    row: int
    score: float


def _sheets(test: TestSet) -> Iterator[tuple[str, Figure]]:
    """Yield the contact sheets, without frames of videos that can no longer be read."""
    wanted = SHEET_COLUMNS * SHEET_ROWS
    chosen = {
        "highest-normal-spans": frames_for_sheet(test, abnormal=False)[:wanted],
        "lowest-true-events": frames_for_sheet(test, abnormal=True)[:wanted],
    }
    pictures = _pictures(test, [frame for kind in chosen.values() for frame in kind])
    for name, kind in chosen.items():
        shown = [(frame, pictures[frame]) for frame in kind if frame in pictures]
        if kind and not shown:
            log.warning("%s.png: not drawn, because the videos can no longer be read at their old paths", name)
        if not shown:
            continue
        rows = -(-len(shown) // SHEET_COLUMNS)
        figure = Figure(figsize=(12, 2.6 * rows + 0.5), layout="constrained")
        figure.suptitle(name.replace("-", " "))
        for axes in (places := figure.subplots(rows, SHEET_COLUMNS, squeeze=False).ravel()):
            axes.set_axis_off()
        for axes, (frame, picture) in zip(places, shown, strict=False):
            axes.imshow(picture)
            axes.set_title(f"{test.videos[frame.number]} frame {frame.row}: {frame.score:.3f}", fontsize=8)
        yield name, figure


def frames_for_sheet(test: TestSet, *, abnormal: bool) -> list[_SheetFrame]:
    """Return the frame with the highest score of each run of normal (or of abnormal) frames.

    The worst errors come first: normal frames from high to low scores, abnormal frames from low to high scores.
    """
    frames: list[_SheetFrame] = []
    for number, (start, end) in enumerate(zip(test.frames.offsets[:-1], test.frames.offsets[1:], strict=True)):
        labels, scores = test.frames.labels[start:end], test.frames.scores[start:end]
        edges = np.flatnonzero(np.diff(labels.astype(np.int8), prepend=-1, append=-1))
        for first, last in pairwise(edges):
            if labels[first] == abnormal:
                row = int(first + np.argmax(scores[first:last]))
                frames.append(_SheetFrame(number, row, float(scores[row])))
    return sorted(frames, key=lambda frame: (frame.score if abnormal else -frame.score, frame.number, frame.row))


def _pictures(test: TestSet, wanted: Sequence[_SheetFrame]) -> dict[_SheetFrame, ByteArray]:
    """Return the pixels of each wanted frame. Frames that cannot be read are left out."""
    by_video: dict[int, list[_SheetFrame]] = {}
    for frame in wanted:
        by_video.setdefault(frame.number, []).append(frame)
    needs = ClipNeeds(1, 0, 25.0, SizeRule(SHEET_FRAME_PX), PixelFormat.RGB, interval=1)
    pictures: dict[_SheetFrame, ByteArray] = {}
    requests = []
    for number, frames in by_video.items():
        video = test.videos[number]
        metadata = read_metadata(OutputLayout(test.out).scores(video))
        path = Path(str(metadata.source.get("root", ""))) / video if metadata else Path()
        if metadata is not None and may_exist(path):
            rows = int(test.frames.offsets[number + 1] - test.frames.offsets[number])
            bursts = tuple((frame.row + 0.5) / rows for frame in frames)
            fps = float(metadata.video["fps"]) if path.is_dir() else None
            requests.append(ClipRequest(video, path, fps=fps, bursts=bursts, exact=True))
    with ClipLoader(needs, LoaderOptions()) as loader:
        for item in loader.run(requests):
            if isinstance(item, ClipReady):
                number = test.videos.index(item.video)
                pictures[by_video[number][item.clip.index]] = item.clip.frames[0].copy()
    return pictures
