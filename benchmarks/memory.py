"""Measure how the peak memory of a scan depends on the length of the video.

python benchmarks/memory.py [--minutes 1 10 60]
"""

from __future__ import annotations

import argparse
import shutil

from _measure import VADCLI, WORK, looped, machine, made_video, run


def main() -> None:
    """Print one row per length of the video, with the ratio to the first row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, nargs="+", default=[1, 10, 60])
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--masks", default="none", help="value of --masks for vadcli scan")
    options = parser.parse_args()
    minute = made_video(f"{options.size}-60s.mp4", seconds=60, size=options.size)
    print(f"\n{options.size} at 30 frames/s, --masks {options.masks}; {machine()}\n")
    print("| minutes | peak MiB, all processes | relative to the first row |")
    print("|---|---|---|")
    first = 0.0
    for minutes in options.minutes:
        video = looped(minute, f"{options.size}-{minutes}min.mp4", minutes)
        out = WORK / "out"
        shutil.rmtree(out, ignore_errors=True)
        found = run([*VADCLI, "scan", str(video), "--out", str(out), "--masks", options.masks, "--quiet"], memory=True)
        first = first or found.peak_mib
        print(f"| {minutes} | {found.peak_mib:.0f} | {found.peak_mib / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
