"""Compare the speed of a motion scan, with fit and decoding, with other tools on the same file.

python benchmarks/throughput.py [--video FILE] [--rounds N] [--only WORD ...] [--dvr-scan PATH]
python benchmarks/throughput.py --clips N [--rounds N]
python benchmarks/throughput.py --cameras N [--rounds N]

`ffmpeg -f null` uses the same ffmpeg as the scan. VADCLI_FFMPEG chooses another one for both.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
from pathlib import Path

from _measure import VADCLI, WORK, Run, in_turn, looped, machine, made_video, median_ratio, run

from vadcli.video.ffmpeg import ffmpeg_path
from vadcli.video.probe import probe


def scan(video: Path, *options: str) -> Run:
    """Scan the video into a new output folder."""
    out = WORK / "out"
    shutil.rmtree(out, ignore_errors=True)
    return run([*VADCLI, "scan", str(video), "--out", str(out), "--quiet", *options])


def copies(video: Path, count: int, rounds: int, *options: str) -> None:
    """Print the time of a scan, with these options, of a folder with `count` copies of a video."""
    folder = WORK / f"{count}-{video.stem}"
    folder.mkdir(exist_ok=True)
    for number in range(count):
        if not (folder / f"{number:05d}.mp4").exists():
            os.link(video, folder / f"{number:05d}.mp4")
    found = in_turn({"vadcli scan (motion)": lambda: scan(folder, *options)}, rounds)["vadcli scan (motion)"]
    wall_s, cpu_s = (statistics.median(getattr(once, name) for once in found) for name in ("wall_s", "cpu_s"))
    print(f"\n{count} copies of {video.name}; {machine()}; medians of {rounds} rounds\n")
    print("| wall s | CPU s | CPU ms per video |\n|---|---|---|")
    print(f"| {wall_s:.1f} | {cpu_s:.1f} | {1000 * cpu_s / count:.0f} |")


def main() -> None:
    """Print a table with the frames per second of each tool, compared with the scan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--video", type=Path, help="your own video; by default a generated one, 1080p, two minutes")
    parser.add_argument("--clips", type=int, help="measure a scan of this many small clips, and nothing else")
    parser.add_argument("--cameras", type=int, help="measure a scan of this many cameras with one video of 12 s (1080p) each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="run only the rows whose name contains one of these words")
    parser.add_argument("--dvr-scan", help="the program dvr-scan, installed in an environment of its own")
    options = parser.parse_args()
    if options.clips:
        copies(made_video("96x64-2s.mp4", seconds=2, size="96x64", fps=25), options.clips, options.rounds)
        return
    if options.cameras:
        copies(made_video("1080p-12s.mp4", seconds=12), options.cameras, options.rounds, "--camera-from", "file")
        return
    video = options.video or looped(made_video("1080p-60s.mp4", seconds=60), "1080p-120s.mp4", 2)
    frames = probe(video).frames
    contestants = {
        "vadcli scan (motion)": lambda: scan(video),
        "vadcli scan --decode all": lambda: scan(video, "--decode", "all"),
        "vadcli scan --decode key": lambda: scan(video, "--decode", "key"),
        "ffmpeg -f null": lambda: run([ffmpeg_path(), "-v", "error", "-i", str(video), "-an", "-f", "null", "-"]),
        "simple loop": lambda: run([sys.executable, str(Path(__file__).with_name("naive_loop.py")), str(video)]),
    }
    if options.dvr_scan:
        contestants["dvr-scan -so"] = lambda: run([options.dvr_scan, "-q", "-i", str(video), "-so"])
    wanted = ["vadcli scan (motion)", *(options.only or [""])]
    contestants = {name: once for name, once in contestants.items() if any(word in name for word in wanted)}
    found = in_turn(contestants, options.rounds)
    ours = [frames / once.wall_s for once in found["vadcli scan (motion)"]]
    print(f"\n{video.name}, {frames} frames; {machine()}; medians of {options.rounds} rounds\n")
    cpu_of_scan = [once.cpu_s for once in found["vadcli scan (motion)"]]
    print("| program | frames/s | CPU s | frames/s of the scan / frames/s | CPU s / CPU s of the scan |")
    print("|---|---|---|---|---|")
    for name, runs in found.items():
        speeds = [frames / once.wall_s for once in runs]
        cpu_s = [once.cpu_s for once in runs]
        ratios = f"{median_ratio(ours, speeds):.2f} | {median_ratio(cpu_s, cpu_of_scan):.2f}"
        print(f"| {name} | {statistics.median(speeds):.0f} | {statistics.median(cpu_s):.1f} | {ratios} |")


if __name__ == "__main__":
    main()
