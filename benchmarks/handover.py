"""Compare the first implementation of three CPU tasks of a scan with the present implementation.

The tasks are to copy clips into a batch, to pack (compress) masks, and to check the processes of decoders. While these tasks
run, no clip reaches the device. So they limit the speed of a scan with a fast GPU.

python benchmarks/handover.py [--clips 8] [--workers 16]

Prints one row per task: the milliseconds of both implementations, and their ratio.
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
    parser.add_argument("--clips", type=int, default=8, help="clips per batch")
    parser.add_argument("--workers", type=int, default=16, help="decoder processes that are watched")
    chosen = parser.parse_args()
    print("| task | first implementation, ms | present implementation, ms | ratio |\n|---|---|---|---|")
    compare(f"copy {chosen.clips} clips of {SHAPE[0]} frames, 1280x720, into a batch", *gathering(chosen.clips))
    compare(f"pack {8 * chosen.clips} masks of 256x256", *compressing(8 * chosen.clips))
    children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) for _ in range(chosen.workers)]
    try:
        compare(f"check {chosen.workers} decoders among {len(psutil.pids())} processes", *listing(children))
    finally:
        for child in children:
            child.kill()
            child.wait()


def compare(task: str, first: Callable[[], object], now: Callable[[], object]) -> None:
    """Time both implementations in turn, and print one row of the table."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for version, times_ms in zip((first, now), times, strict=True):
            began = time.perf_counter()
            version()
            times_ms.append(1000 * (time.perf_counter() - began))
    before, after = map(median, times)
    print(f"| {task} | {before:.1f} | {after:.1f} | {before / after:.1f} |")


def gathering(count: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return two functions.

    The first copies each clip and then the batch; the second copies once into reused memory.
    """
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


def compressing(count: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return two functions that compress masks, with the fastest level of zlib and of zstd."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(count, 256, 256)), (0, 6, 6))
    masks = np.clip(smooth / smooth.std() * 50 + 100, 0, 255).astype(np.uint8)
    codec = pa.Codec("zstd", 1)
    return lambda: [zlib.compress(mask.tobytes(), 1) for mask in masks], lambda: [codec.compress(mask) for mask in masks]


def listing(children: list[subprocess.Popen[bytes]]) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return two functions.

    The first lists all processes once per decoder; the second lists them once for all decoders.
    """
    parents = [psutil.Process(child.pid) for child in children]
    return lambda: [parent.children(recursive=True) for parent in parents], lambda: process_trees(parents)


if __name__ == "__main__":
    main()
