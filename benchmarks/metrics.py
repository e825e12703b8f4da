"""Measure time and peak memory of each metric on data of real size, each in its own process.

python benchmarks/metrics.py [--rows 10000000] [--clips 12] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from _measure import machine

from vadcli.metrics import Bootstrap
from vadcli.metrics.frame import FrameSet, frame_ap, frame_auc, pate
from vadcli.metrics.localization import PixelAccumulator, aupro, mask_iou, pixel_ap, pixel_auc

PED2_FRAMES, PED2_HEIGHT, PED2_WIDTH = 180, 240, 360  # the longest clips of Ped2; its 12 clips have 2,010 frames together
VIDEOS = 290  # as many as UCF-Crime's test set has


def frames_of(rows: int) -> FrameSet:
    """Return scores of VIDEOS equally long videos; 10 % of the frames are abnormal, in spans of 500."""
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.random(rows // 500 + 1) < 0.1, 500)[:rows]
    scores = rng.random(rows, np.float32) * np.float32(0.8)
    scores[labels] += np.float32(0.2)
    return FrameSet(scores, labels, np.linspace(0, rows, VIDEOS + 1).astype(np.int64))


def pixels_of(clips: int) -> tuple[PixelAccumulator, int, float]:
    """Count byte masks with two true regions in every second frame.

    Return the counts, the number of pixels, and seconds.
    """
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (PED2_FRAMES, PED2_HEIGHT, PED2_WIDTH), np.uint8)
    truth = np.zeros(clip.shape, np.bool_)
    truth[::2, 50:90, 60:100] = truth[::2, 150:170, 200:240] = True
    accumulator, started = PixelAccumulator(), time.perf_counter()
    for number in range(clips):
        accumulator.add(str(number), clip, truth)
    return accumulator, clips * clip.size, time.perf_counter() - started


def measure_frames(figure: Callable[[FrameSet], object], rows: int) -> tuple[str, float]:
    """Return a description of the data, and the seconds that the figure takes."""
    frames = frames_of(rows)
    started = time.perf_counter()
    figure(frames)
    return f"{rows:,} rows, {VIDEOS} videos", time.perf_counter() - started


def measure_pixels(clips: int) -> tuple[str, float]:
    """Return a description of the data, and the seconds that all pixel figures take, with counting."""
    accumulator, pixels, counting_s = pixels_of(clips)
    started = time.perf_counter()
    for figure in (pixel_auc, pixel_ap, aupro, mask_iou):
        figure(accumulator.counts()).metric(Bootstrap())
    return f"{pixels:,} pixels, {clips} clips", counting_s + time.perf_counter() - started


def once(name: str, rows: int, clips: int) -> tuple[str, float]:
    """Return a description of the data of one metric, and the seconds that the metric takes."""
    cases: dict[str, Callable[[], tuple[str, float]]] = {
        "frame AUC": lambda: measure_frames(lambda frames: frame_auc(frames).metric(), rows),
        "frame AUC with interval": lambda: measure_frames(lambda frames: frame_auc(frames).metric(Bootstrap()), rows),
        "frame AP with interval": lambda: measure_frames(lambda frames: frame_ap(frames).metric(Bootstrap()), rows),
        "PATE": lambda: measure_frames(lambda frames: pate(frames).metric(), rows // 10),
        "pixel AUC, AP, AUPRO and IoU with intervals": lambda: measure_pixels(clips),
    }
    return cases[name]()


NAMES = (
    "frame AUC",
    "frame AUC with interval",
    "frame AP with interval",
    "PATE",
    "pixel AUC, AP, AUPRO and IoU with intervals",
)


def main() -> None:
    """Print one row per metric; its memory is the peak of a process that also makes the data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--inside", action="store_true", help="measure in this process")
    options = parser.parse_args()
    if options.inside:
        what, seconds = once(options.only[0], options.rows, options.clips)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        print(f"| {options.only[0]} | {what} | {seconds:.2f} | {peak:.0f} |")
        return
    print(f"\n{machine()}\n\n| metric | size of the data | s | peak MiB |\n|---|---|---|---|", flush=True)
    for name in options.only:
        sizes = ["--rows", str(options.rows), "--clips", str(options.clips)]
        subprocess.run([sys.executable, __file__, "--inside", *sizes, "--only", name], check=True)


if __name__ == "__main__":
    main()
