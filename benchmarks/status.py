"""Measure `vadcli status --watch` during a run of many videos: its CPU use, and the age of its lines.

python benchmarks/status.py [--videos 20 2000 40000] [--seconds 30]

The run is simulated: its record is written as a scan writes it, and a video ends every few milliseconds. The record states the
milliseconds since the start as its number of frames. So each line of the watcher contains the time at which it was true.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil
from _measure import VADCLI, WORK, machine

from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch
from vadcli.store.run_log import RunInfo, RunProgress, RunRecord
from vadcli.types import Status, VideoResult

OUT = WORK / "status"
TICK_S = 0.05
INFO = RunInfo("0", ("vadcli", "scan", "made"), {}, {"name": "made"})


@dataclass(frozen=True)
class Watched:
    """The figures of one watcher.

    Attributes:
        share: share of one core that the watcher used after its start.
        ages_s: age in seconds of each line at its arrival.
        record_mib: size of the run record at the end.
    """

    share: float
    ages_s: list[float]
    record_mib: float


class Watcher:
    """A `status --watch` process. The age of each of its lines is measured at the line's arrival."""

    def __init__(self, began: float) -> None:
        command = [*VADCLI, "status", str(OUT), "--watch", "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.ages_s: list[float] = []
        self._began = began
        self._thread = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._thread.start()

    def _read(self, lines: Iterable[str]) -> None:
        for line in lines:
            now = time.monotonic() - self._began
            state = json.loads(line)
            if state["type"] == "run" and state["state"] == "running":
                self.ages_s.append(now - state["frames"] / 1000)

    def cpu_s(self) -> float:
        """Return the CPU seconds used so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        """Wait until the process has ended, because the run has ended."""
        if self.process.wait(60) != 0:
            raise SystemExit("vadcli status failed")
        self._thread.join()


def watch(videos: int, seconds: float) -> Watched:
    """Simulate a run for `seconds`, and return the figures of a watcher that starts during the run."""
    shutil.rmtree(OUT, ignore_errors=True)
    names = [f"camera/{number:06d}.mp4" for number in range(videos)]
    layout = OutputLayout(OUT)
    progress = RunProgress(dict.fromkeys(names, 1000))
    with Scratch(layout.scratch) as scratch, RunRecord(layout, scratch, INFO, progress=progress) as record:
        began = time.monotonic()
        ready = 9 * videos // 10  # this many videos are done from the start, so that the record of the run is long
        for name in names[:ready]:
            record.add(VideoResult(name, Status.DONE, decoded_frames=10))
        watcher = Watcher(began)
        cpu_s, at = 0.0, 0.0
        steps = int(seconds / TICK_S)
        for step in range(steps):
            frames = int(1000 * (time.monotonic() - began)) - progress.frames
            progress.advance(names[-1], frames=frames, video_s=TICK_S, size=0.0)
            for name in names[ready + (videos - ready) * step // steps : ready + (videos - ready) * (step + 1) // steps]:
                record.add(VideoResult(name, Status.DONE, decoded_frames=10))
            record.flush()
            if step == steps // 4:  # the watcher has started by now
                cpu_s, at = watcher.cpu_s(), time.monotonic()
                watcher.ages_s.clear()
            time.sleep(TICK_S)
        share = (watcher.cpu_s() - cpu_s) / (time.monotonic() - at)
        ages_s = list(watcher.ages_s)
        size = record.path.stat().st_size
    watcher.close()
    return Watched(share, ages_s, size / 2**20)


def main() -> None:
    """Print one row per number of videos."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, nargs="+", default=[20, 2000, 40000])
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    print(f"\n{machine()}\n")
    print(
        "| videos in the run | run record, MiB | share of one core | age of the information, median s | maximum, s | updates |"
    )
    print("|---|---|---|---|---|---|")
    for videos in options.videos:
        watched = watch(videos, options.seconds)
        ages = sorted(watched.ages_s)
        cells = f"{ages[len(ages) // 2]:.2f} | {ages[-1]:.2f} | {len(ages)}"
        print(f"| {videos:,} | {watched.record_mib:.2f} | {100 * watched.share:.2f} % | {cells} |", flush=True)


if __name__ == "__main__":
    main()
