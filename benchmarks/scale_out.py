"""Measure what a Ray cluster costs and gains: overhead, efficiency, and the driver's work.

    python benchmarks/scale_out.py [--only overhead nodes units]

- overhead: `scan --runner ray` and `scan --runner local` take turns on the same cores, with videos of one minute.
- nodes: a detector that only sleeps scans videos on 1, 2 and 4 simulated nodes with one core each. The efficiency is the time
  on one node, divided by the time on N nodes with N times as many videos. Decoding does not limit the speed.
- units: the driver gives generated work units to simulated workers, which answer at once. The figures are the driver's CPU time
  per update, and its memory. It uses no cluster.

The time of the start is the time of a second run, which starts Ray and its workers, and finds every video done. The CPU time is
sampled over all processes of a run. Unlike the wall time, it hardly depends on other programs on the machine.
"""

from __future__ import annotations

import argparse
import os
import pickle
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _measure import VADCLI, WORK, Run, machine, made_video, median_ratio, run

from vadcli.engine.plan import Plan, WorkUnit
from vadcli.engine.ray_cluster import Chunk, Node, Workers, import_ray
from vadcli.engine.ray_runner import RayRunner, Worklist
from vadcli.engine.runner import Scan, ScanSettings, Stop, choose_detector
from vadcli.engine.stream import ClipsScored
from vadcli.options import ScanOptions
from vadcli.types import Status, VideoResult

FOLDER = WORK / "scale-out"
SLEEPER = """
import time
from types import SimpleNamespace

import numpy as np

from vadcli.types import ClipNeeds, ClipScores, FrameScores, MaskScale, PixelFormat, SizeRule, Thresholds


def make(options):
    return SimpleNamespace(
        name="sleeper", model_version=1, needs=ClipNeeds(8, 0, 1.0, SizeRule(4096), PixelFormat.GRAY), channels=("zero",),
        thresholds=Thresholds(high=0.5, low=0.4), calibration=None, uses_categories=False, categories=(), weights={},
        mask_scale=MaskScale.SCORE, batch_size=1, parallel=1, fits_camera=False, prepare=lambda: None, score=score,
        fit=lambda sample: None, finish=lambda track: FrameScores(track.raw[:, 0] - 5), fingerprint=lambda: {},
    )


def score(batch):
    time.sleep(1.0)
    return ClipScores(np.zeros((*batch.frames.shape[:2], 1), np.float32))
"""
SLEPT_CLIPS = 10
"""Clips per video for the detector that sleeps; it sleeps for a second per clip."""


def fresh(name: str) -> str:
    """Return an empty output folder."""
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    return str(FOLDER / name)


def overhead(videos: int, rounds: int) -> None:
    """Print the times of both runners, and the ratio of Ray's times to the local runner's times."""
    source = made_video("minute.mp4", seconds=60, size="640x360", fps=25)
    footage = FOLDER / "footage"
    footage.mkdir(parents=True, exist_ok=True)
    for number in range(videos):
        shutil.copyfile(source, footage / f"{number:02d}.mp4")
    cores = len(os.sched_getaffinity(0))
    found: dict[str, list[Run]] = {"local": [], "ray": [], "start of local": [], "start of ray": []}
    for _ in range(rounds):
        for runner in ("local", "ray"):
            command = [*VADCLI, "scan", str(footage), "--out", fresh(runner), "--detector", "motion", "--quiet"]
            command += ["--runner", "ray", "--ray-cpus", str(cores)] if runner == "ray" else []
            for name in (runner, f"start of {runner}"):
                found[name].append(run(command, family=True))
                print(f"  {name}: {found[name][-1].wall_s:.1f} s, {found[name][-1].cpu_s:.1f} s of CPU time", file=sys.stderr)
    for kind in ("wall_s", "cpu_s"):
        local, ray, *starts = ([getattr(one, kind) for one in runs] for runs in found.values())
        ratio, cells = median_ratio(ray, local), [f"{statistics.median(times):.1f} s" for times in (local, ray, *starts)]
        print(f"| {videos} videos of one minute, {cores} cores, {kind[:-2]} | {' | '.join(cells)} | {ratio:.3f} |")


def nodes(counts: list[int], videos: int) -> None:
    """Print the time and the efficiency on simulated nodes.

    The number of videos per node is always the same.
    """
    ray = import_ray()
    from ray.cluster_utils import Cluster

    plugin = FOLDER / "plugin"
    info = plugin / "sleeper-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (plugin / "sleeper.py").write_text(SLEEPER)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sleeper\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vadcli.detectors]\nsleeper = sleeper:make\n")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(plugin), *filter(None, [os.environ.get("PYTHONPATH")])])
    source = made_video("clips.mp4", seconds=8 * SLEPT_CLIPS, size="64x48", fps=5)
    first, first_worked = 0.0, 0.0
    for count in counts:
        footage = FOLDER / f"nodes-{count}"
        footage.mkdir(parents=True, exist_ok=True)
        for number in range(videos * count):
            shutil.copyfile(source, footage / f"{number:04d}.mp4")
        head = {"num_cpus": 1, "include_dashboard": False, "_system_config": {"worker_niceness": 0}}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(count - 1):
            cluster.add_node(num_cpus=1)
        try:
            command = [*VADCLI, "scan", str(footage), "--out", fresh("out"), "--detector", "sleeper", "--quiet"]
            command += ["--runner", "ray", "--ray-address", cluster.address, "--ray-cpus", "1"]
            wall_s, start_s = run(command).wall_s, run(command).wall_s
        finally:
            cluster.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()
        worked = wall_s - start_s
        first, first_worked = first or wall_s, first_worked or worked
        ratios = f"{first / wall_s:.3f} | {first_worked / worked:.3f}"
        print(f"| {count} | {videos * count} | {wall_s:.1f} | {start_s:.1f} | {ratios} |", flush=True)


class Instant:
    """Simulates a worker of the cluster, which sends one update and one result per video at once."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.chunk: Chunk | None = None
        self._sent: Iterator[list[Any]] = iter(())

    def start(self, chunk: Chunk) -> None:
        """Start a chunk; its updates are sent in several messages, as a real worker sends them."""
        self.chunk = chunk
        self._sent = iter([[], *([ClipsScored(u.video, 100, 10.0, float(u.size)), _done(u)] for u in chunk.units)])

    def next(self) -> list[Any]:
        """Return the next message of the worker."""
        return next(self._sent)


def _done(unit: WorkUnit) -> VideoResult:
    return VideoResult(unit.video, Status.DONE, camera=unit.camera, decoded_frames=100, expected_frames=100, seconds=1.0)


class InstantWorkers:
    """Simulates `Workers` with 64 workers. The settings of each chunk are pickled as for a real worker."""

    def __init__(self, count: int = 64) -> None:
        self._free = [Instant(Node(str(number), f"node{number}", 8, 1)) for number in range(count)]
        self._running: list[Instant] = []
        self.sent_bytes = 0

    busy, has_free = Workers.busy, Workers.has_free

    def start(self, chunk: Chunk, settings: ScanSettings) -> None:
        """As in `Workers`."""
        self.sent_bytes += len(pickle.dumps(settings))
        worker = self._free.pop()
        worker.start(chunk)
        self._running.append(worker)

    def waited(self) -> list[Instant]:
        """Return all running workers, because each has a message."""
        return list(self._running)

    def free(self, worker: Instant) -> None:
        """As in `Workers`."""
        self._running.remove(worker)
        self._free.append(worker)


class MadeRunner:
    """Runs the loop of `RayRunner` with simulated workers."""

    def __init__(self, real: RayRunner, settings: ScanSettings) -> None:
        self._real, self._settings = real, settings
        self.workers = InstantWorkers()

    def updates(self, fitting: Any) -> Iterator[Any]:
        """See `Runner`."""
        work = Worklist(self._settings.plan.units, self._settings.units, by_cameras=True, workers=64)
        yield from self._real._drive(work, self.workers, fitting)  # type: ignore[arg-type]


def units(count: int) -> None:
    """Print the driver's time and memory for generated work units, with the run record."""
    out = Path(fresh("units"))
    made = tuple(
        WorkUnit(f"{n // 1000:04d}/{n:07d}.mp4", FOLDER / f"{n // 1000:04d}/{n:07d}.mp4", f"{n // 1000:04d}", 10**7 + n, 1)
        for n in range(count)
    )
    options = ScanOptions(out=out, detector="motion", runner="ray")
    settings = ScanSettings(Plan(FOLDER, (str(FOLDER),), made), options, ("benchmark",))
    stop, detector = Stop(), choose_detector(options)
    before, began = time.process_time(), time.monotonic()
    real = RayRunner(settings, detector, stop=stop)
    runner = MadeRunner(real, settings)
    updates = sum(1 for _ in Scan(settings, detector, runner, stop=stop).run())  # type: ignore[arg-type, misc]
    cpu_s, wall_s = time.process_time() - before, time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    each, sent = 1e6 * cpu_s / updates, runner.workers.sent_bytes / 2**20
    print(f"| {count:,} | {updates:,} | {cpu_s:.1f} | {wall_s:.1f} | {each:.0f} | {peak:.0f} | {sent:.0f} |", flush=True)
    shutil.rmtree(out)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("overhead", "nodes", "units"), default=["units", "overhead", "nodes"])
    parser.add_argument("--videos", type=int, default=24, help="videos of one minute for the overhead")
    parser.add_argument("--slept", type=int, default=12, help=f"videos per node for the efficiency, each of {SLEPT_CLIPS} s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--units", type=int, nargs="+", default=[100_000])
    options = parser.parse_args()
    print(f"\n{machine()}, load {os.getloadavg()[0]:.1f}\n")
    if "units" in options.only:
        print("| work units | updates | CPU s | wall s | CPU us per update | peak MiB | sent, MiB |")
        print("|---|---|---|---|---|---|---|")
        for count in options.units:
            units(count)
    if "overhead" in options.only:
        print("\n| footage | local | ray | start of local | start of ray | ray / local |\n|---|---|---|---|---|---|")
        overhead(options.videos, options.rounds)
    if "nodes" in options.only:
        print("\n| nodes | videos | wall s | start s | efficiency | efficiency without the start |\n|---|---|---|---|---|---|")
        nodes([1, 2, 4], options.slept)
    shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    main()
