"""Times several commands in turn.

The speed of a shared machine changes over time. The ratio of two runs that follow one another changes less.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import psutil

WORK = Path(__file__).parent / "work"
VADCLI = [sys.executable, "-m", "vadcli"]
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


@dataclass(frozen=True)
class Run:
    """The cost of a command: wall seconds, and CPU seconds and peak MiB of all its processes."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def run(command: list[str], *, memory: bool = False, family: bool = False) -> Run:
    """Run a command to its end, and return its cost.

    Args:
        memory: measure the memory of all its processes together, ten times per second.
        family: measure the CPU time of all its processes ten times per second. So the CPU time includes processes that no
            parent waits for, such as those of Ray.
    """
    before, started = os.times(), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0.0
    spent: dict[int, float] = {}
    while (memory or family) and process.poll() is None:
        if memory:
            peak = max(peak, family_mib(process.pid))
        if family:
            spent |= family_cpu_s(process.pid)
        time.sleep(0.1)
    _, stderr = process.communicate()
    wall_s, after = time.monotonic() - started, os.times()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}:\n{stderr.decode(errors='replace')[-2000:]}")
    waited_s = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(wall_s, sum(spent.values()) if family else waited_s, peak)


def family_cpu_s(pid: int) -> dict[int, float]:
    """Return the CPU seconds so far of a process and of each of its descendants, by process id."""
    seconds = {}
    with suppress(psutil.Error):
        for member in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with suppress(psutil.Error):
                times = member.cpu_times()
                seconds[member.pid] = times.user + times.system
    return seconds


def family_mib(pid: int) -> float:
    """Return the MiB that a process and its descendants use; shared memory counts once."""
    total = 0
    try:
        for member in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            try:
                total += member.memory_full_info().pss
            except (psutil.Error, AttributeError):
                continue
    except psutil.Error:
        return 0.0
    return total / 2**20


def in_turn(contestants: dict[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """Run the commands in turn (A B C A B C …), and return one list of runs per command."""
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, run_once in contestants.items():
            runs[name].append(run_once())
            print(f"  round {number + 1}: {name}: {runs[name][-1].wall_s:.1f} s wall", file=sys.stderr)
    return runs


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Return the median over the rounds; each round gives the ratio of its two values."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def machine() -> str:
    """Return a description of the machine in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {_cpu_name()}, Python {platform.python_version()}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def made_video(name: str, *, seconds: int, size: str = "1920x1080", fps: int = 30) -> Path:
    """Return a noisy H.264 video with motion, which is made once and kept in benchmarks/work."""
    path = WORK / name
    if not path.exists():
        WORK.mkdir(exist_ok=True)
        source = f"testsrc2=size={size}:rate={fps}:duration={seconds},noise=alls=6:allf=t"
        half = path.with_suffix(".part.mp4")
        codec = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-pix_fmt", "yuv420p"]
        subprocess.run([FFMPEG, "-v", "error", "-y", "-f", "lavfi", "-i", source, *codec, str(half)], check=True)
        half.rename(path)
    return path


def looped(source: Path, name: str, times: int) -> Path:
    """Return a video that repeats another video several times, without encoding it again."""
    path = WORK / name
    if not path.exists():
        half = path.with_suffix(".part.mp4")
        command = [FFMPEG, "-v", "error", "-y", "-stream_loop", str(times - 1), "-i", str(source), "-c", "copy", str(half)]
        subprocess.run(command, check=True)
        half.rename(path)
    return path
