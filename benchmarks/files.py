"""Measure how the time and memory of a scan depend on the number of files.

A second run, which skips all files, is timed too.

python benchmarks/files.py [--counts 1 100 2000]
"""

from __future__ import annotations

import argparse
import os
import shutil

from _measure import VADCLI, WORK, machine, made_video, run


def main() -> None:
    """Print one row per number of files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 100, 2000])
    options = parser.parse_args()
    small = made_video("160x120-2s.mp4", seconds=2, size="160x120", fps=10)
    print(f"\nvideos of 20 frames, 160x120; {machine()}\n")
    print("| videos | s | ms per video | peak MiB | second run, ms per video |")
    print("|---|---|---|---|---|")
    for count in options.counts:
        folder, out = WORK / f"files-{count}", WORK / "out"
        folder.mkdir(exist_ok=True)
        for number in range(count):
            if not (folder / f"{number:05d}.mp4").exists():
                os.link(small, folder / f"{number:05d}.mp4")
        shutil.rmtree(out, ignore_errors=True)
        command = [*VADCLI, "scan", str(folder), "--out", str(out), "--quiet"]
        cold, warm = run(command, memory=True), run(command)
        ms = [1000 * each.wall_s / count for each in (cold, warm)]
        print(f"| {count} | {cold.wall_s:.1f} | {ms[0]:.0f} | {cold.peak_mib:.0f} | {ms[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
