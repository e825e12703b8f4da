"""Compare the speed of a motion scan, with fit and decoding, with other tools on the same file.

python benchmarks/throughput.py [--video FILE] [--rounds N] [--dvr-scan PATH]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from pathlib import Path

from _measure import FFMPEG, VADCLI, WORK, Run, in_turn, looped, machine, made_video, median_ratio, run

from vadcli.video.probe import probe


def scan(video: Path, *options: str) -> Run:
    """Scan the video into a new output folder."""
    out = WORK / "out"
    shutil.rmtree(out, ignore_errors=True)
    return run([*VADCLI, "scan", str(video), "--out", str(out), "--quiet", *options])


def main() -> None:
    """Print a table of frames per second and ratios to the scan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--video", type=Path, help="your own video; by default a generated one, 1080p, two minutes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dvr-scan", help="a dvr-scan program, installed in an environment of its own")
    options = parser.parse_args()
    video = options.video or looped(made_video("1080p-60s.mp4", seconds=60), "1080p-120s.mp4", 2)
    frames = probe(video).frames
    contestants = {
        "vadcli scan (motion)": lambda: scan(video),
        "vadcli scan --decode all": lambda: scan(video, "--decode", "all"),
        "vadcli scan --decode key": lambda: scan(video, "--decode", "key"),
        "ffmpeg -f null": lambda: run([FFMPEG, "-v", "error", "-i", str(video), "-an", "-f", "null", "-"]),
        "naive loop": lambda: run([sys.executable, str(Path(__file__).with_name("naive_loop.py")), str(video)]),
    }
    if options.dvr_scan:
        contestants["dvr-scan -so"] = lambda: run([options.dvr_scan, "-q", "-i", str(video), "-so"])
    found = in_turn(contestants, options.rounds)
    ours = [frames / once.wall_s for once in found["vadcli scan (motion)"]]
    print(f"\n{video.name}, {frames} frames; {machine()}; medians of {options.rounds} rounds\n")
    print("| what | frames/s | CPU s | scan's speed relative to it |")
    print("|---|---|---|---|")
    for name, runs in found.items():
        speeds = [frames / once.wall_s for once in runs]
        cpu_s = statistics.median(once.cpu_s for once in runs)
        print(f"| {name} | {statistics.median(speeds):.0f} | {cpu_s:.1f} | {median_ratio(ours, speeds):.2f} |")


if __name__ == "__main__":
    main()
