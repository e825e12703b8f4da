"""Compare the first version of the scan's CPU work with the present one.

The work is to gather clips, to pack masks and to watch decoders.

python benchmarks/handover.py [--clips 8] [--workers 16]

Prints one row per task: milliseconds of the first version and of the present one, and their ratio. While
this work runs, no clip reaches the device; with a fast GPU this limits the speed of a scan.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from statistics import median

import numpy as np
import psutil
import pyarrow as pa
from scipy.ndimage import gaussian_filter

from vadcli.detectors.batching import ClipBatcher
from vadcli.types import Clip, ClipBatch
from vadcli.video.supervisor import process_trees

ROUNDS = 9
SHAPE = (8, 720, 1280, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8, help="a batch")
    parser.add_argument("--workers", type=int, default=16, help="decoder processes that are watched")
    chosen = parser.parse_args()
    print("| task | first way, ms | in use, ms | ratio |\n|---|---|---|---|")
    compare(f"gather {chosen.clips} clips of {SHAPE[0]} frames, 1280x720", *gathering(chosen.clips))
    compare(f"pack {8 * chosen.clips} masks of 256x256", *packing(8 * chosen.clips))
    children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) for _ in range(chosen.workers)]
    try:
        compare(f"look at {chosen.workers} decoders among {len(psutil.pids())} processes", *looking(children))
    finally:
        for child in children:
            child.kill()
            child.wait()


def compare(task: str, first: Callable[[], object], now: Callable[[], object]) -> None:
    """Time both versions in turn; returns one row of the table."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for way, found in zip((first, now), times, strict=True):
            began = time.perf_counter()
            way()
            found.append(1000 * (time.perf_counter() - began))
    before, after = map(median, times)
    print(f"| {task} | {before:.1f} | {after:.1f} | {before / after:.1f} |")


def gathering(count: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Compare two copies (per clip, then of the batch) with a single copy into memory that is used again."""
    rng = np.random.default_rng(0)
    index = np.arange(SHAPE[0])
    frames = [rng.integers(0, 255, SHAPE, np.uint8) for _ in range(count)]
    clips = [Clip("a", number, each, index, index / 8, index >= 0, 4) for number, each in enumerate(frames)]
    batcher = ClipBatcher[None](count)

    def gather() -> ClipBatch:
        batch = next(batch for batch in [batcher.add(clip, None) for clip in clips] if batch is not None)
        batcher.give_back(batch)
        return batch.clip_batch()

    return lambda: ClipBatch.of([clip.owned() for clip in clips]), gather


def packing(count: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Compare the fastest levels of zlib and zstd."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(count, 256, 256)), (0, 6, 6))
    masks = np.clip(smooth / smooth.std() * 50 + 100, 0, 255).astype(np.uint8)
    codec = pa.Codec("zstd", 1)
    return lambda: [zlib.compress(mask.tobytes(), 1) for mask in masks], lambda: [codec.compress(mask) for mask in masks]


def looking(children: list[subprocess.Popen[bytes]]) -> tuple[Callable[[], object], Callable[[], object]]:
    """Compare listing all processes once per decoder with listing them once."""
    parents = [psutil.Process(child.pid) for child in children]
    return lambda: [parent.children(recursive=True) for parent in parents], lambda: process_trees(parents)


if __name__ == "__main__":
    main()
