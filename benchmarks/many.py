"""Measure plan, resume, status, report and search on an OUT with many videos that are done.

    python benchmarks/many.py [--videos 50000 200000] [--commands resume status]

One short video is scanned. Its results are then copied under the names of all other videos, with their own events documents and
camera models, so that a scan finds all of them done. Footage is empty files of the right size. Everything is in the page cache,
as after a scan. On network storage, add the time of its metadata operations.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace

from _measure import FFMPEG, VADCLI, WORK, machine

from vadcli.engine.cameras import read_camera, write_camera
from vadcli.engine.job import ScanIdentity
from vadcli.engine.runner import choose_detector, effective_needs
from vadcli.options import ScanOptions
from vadcli.store import OutputLayout
from vadcli.types import Footage

FOOTAGE, OUT = WORK / "many", WORK / "many-out"
VIDEOS_PER_CAMERA = 1000
SEED_VIDEO = "0000/000000.mp4"


@dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds and peak MiB of a command."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def measured(*arguments: str) -> Cost:
    """Run vadcli to its end, in a process of its own that knows its peak memory."""
    code = (
        "import resource, runpy, subprocess, sys, time\n"
        "began = time.monotonic()\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)\n"
        "sys.stderr.buffer.write(done.stderr)\n"
        "raise SystemExit(done.returncode)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *VADCLI, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"vadcli {' '.join(arguments)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    return Cost(*map(float, done.stdout.split()))


def make(count: int) -> None:
    """Make an archive and its OUT."""
    for folder in (FOOTAGE, OUT):
        shutil.rmtree(folder, ignore_errors=True)
    seed = FOOTAGE / SEED_VIDEO
    seed.parent.mkdir(parents=True)
    moving = ["-f", "lavfi", "-i", "testsrc2=size=160x120:rate=10:duration=6", "-pix_fmt", "yuv420p"]
    subprocess.run([FFMPEG, "-v", "error", "-y", *moving, str(seed)], check=True)
    measured("scan", str(FOOTAGE), "--root", str(FOOTAGE), "--out", str(OUT), "--detector", "motion", "--workers", "1")
    layout = OutputLayout(OUT)
    for number in range(-(-count // VIDEOS_PER_CAMERA)):
        copy_camera(layout, f"{number:04d}", seed.stat(), min(VIDEOS_PER_CAMERA, count - number * VIDEOS_PER_CAMERA))


def copy_camera(layout: OutputLayout, camera: str, seed: os.stat_result, count: int) -> None:
    """Give a camera the model of the first camera, and `count` videos with the results of the first video."""
    for folder in (FOOTAGE, OUT / "scores", OUT / "events"):
        (folder / camera).mkdir(exist_ok=True)
    first = read_camera(layout.camera("0000"))
    model = replace(first, camera=camera, footage=Footage(count, 3600.0, count * seed.st_size))
    options = ScanOptions(detector="motion")
    detector = choose_detector(options)
    identity = ScanIdentity.of(detector, effective_needs(detector, options), decoder="auto", fps=None, categories=())
    document = json.loads(layout.events(SEED_VIDEO).read_text())
    old = document["scan"]["fingerprint"]
    new = identity.fingerprint(document["scan"]["source"]["content"], model)
    scores = layout.scores(SEED_VIDEO).read_bytes().replace(old.encode(), new.encode())
    document["scan"]["fingerprint"], document["video"]["camera"] = new, camera
    write_camera(layout.camera(camera), model)
    for number in range(count):
        name = f"{camera}/{int(camera) * VIDEOS_PER_CAMERA + number:06d}.mp4"
        if name == SEED_VIDEO:
            continue
        with (FOOTAGE / name).open("wb") as file:
            file.truncate(seed.st_size)
        os.utime(FOOTAGE / name, ns=(seed.st_atime_ns, seed.st_mtime_ns))
        (OUT / "scores" / f"{name}.parquet").write_bytes(scores)
        document["video"]["path"] = name
        (OUT / "events" / f"{name}.json").write_text(json.dumps(document))


COMMANDS = {
    "plan": ["scan", str(FOOTAGE), "--out", str(OUT), "--detector", "motion", "--dry-run"],
    "resume": ["scan", str(FOOTAGE), "--out", str(OUT), "--detector", "motion", "--quiet", "--max-runtime", "30m"],
    "status": ["status", str(OUT)],
    "report": ["report", str(OUT), "--to", str(WORK / "many.html")],
}


def main() -> None:
    """Print one row per command and number of videos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--commands", nargs="+", choices=tuple(COMMANDS), default=list(COMMANDS))
    options = parser.parse_args()
    print(f"\n{machine()}\n")
    print("| videos | command | wall s | CPU s | peak MiB | run records, MiB |\n|---|---|---|---|---|---|")
    for count in options.videos:
        began = time.monotonic()
        make(count)
        print(f"  made {count:,} videos in {time.monotonic() - began:.0f} s", file=sys.stderr)
        for name in options.commands:
            cost = measured(*COMMANDS[name])
            records = sum(path.stat().st_size for path in (OUT / "runs").iterdir()) / 2**20
            print(
                f"| {count:,} | {name} | {cost.wall_s:.1f} | {cost.cpu_s:.1f} | {cost.peak_mib:.0f} | {records:.1f} |",
                flush=True,
            )
    for folder in (FOOTAGE, OUT):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
