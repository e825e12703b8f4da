"""Compares detectors on this machine. Each detector scores the same videos in a separate process.

The processes are separate so that the memory of one detector is not counted for the next one.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from vadcli.bench.report import MIB, table_lines
from vadcli.bench.rounds import Bound, Round, ScoreStore, scan_round, wake
from vadcli.bench.usage import BenchVideos, HostMemory, cuda_of, forget_peak, machine, peak_over
from vadcli.detectors import load
from vadcli.detectors.running import devices_for
from vadcli.errors import VadcliError
from vadcli.options import DetectorOptions
from vadcli.types.text import clock
from vadcli.video.loader import ClipLoader, LoaderOptions, core_count

COMPARED_S = 40
"""Length of a generated video for a comparison. A shorter video has too few clips if clips last several seconds."""


@dataclass(frozen=True)
class Candidate:
    """A detector to measure.

    Attributes:
        name: the detector's name in the registry.
        options: the detector's options.
    """

    name: str
    options: DetectorOptions


@dataclass(frozen=True)
class Measured:
    """The figures of one detector.

    Attributes:
        detector: the detector's name.
        weights: the names of the weights that the detector loaded; empty if it needs no weights.
        rounds: the results of all rounds; empty if the detector could not be measured.
        host_bytes: peak resident memory of all processes.
        device_bytes: peak memory on a GPU, with the weights; None without a GPU.
        machine: the devices, the processor and the versions.
        trouble: why the detector could not be measured, and what to do; "" if it was measured.
    """

    detector: str
    weights: tuple[str, ...] = ()
    rounds: tuple[Round, ...] = ()
    host_bytes: int = 0
    device_bytes: int | None = None
    machine: str = ""
    trouble: str = ""

    @property
    def real_time(self) -> float:
        """Seconds of footage per second of this machine, as the median of the rounds."""
        return statistics.median(one.video_s / one.seconds for one in self.rounds)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `vadcli bench --detectors --json` prints."""
        return {
            "type": "detector",
            "detector": self.detector,
            "weights": list(self.weights),
            "real_time": self.real_time if self.rounds else None,
            "machine_s_per_hour": 3600 / self.real_time if self.rounds else None,
            "clips": sum(one.clips for one in self.rounds),
            "host_bytes": self.host_bytes or None,
            "device_bytes": self.device_bytes,
            "machine": self.machine or None,
            "trouble": self.trouble or None,
        }


@dataclass(frozen=True)
class Comparison:
    """The figures of all compared detectors, and a description of the videos that they scored."""

    footage: str
    measured: tuple[Measured, ...]

    def json_lines(self) -> Iterator[dict[str, Any]]:
        """Yield one object per detector."""
        for one in self.measured:
            yield {**one.to_json(), "footage": self.footage}

    def text(self) -> str:
        """Return a Markdown table, and below it one line per detector that could not be measured."""
        where = next((one.machine for one in self.measured if one.machine), machine([]))
        on_gpu = any(one.device_bytes is not None for one in self.measured)
        head = ["detector", "weights", "x real time", "machine time per hour of footage", "host MiB"]
        rows = [[*head, "device MiB"] if on_gpu else head]
        for one in (one for one in self.measured if one.rounds):
            speed, cost = f"{one.real_time:.2f}", clock(3600 / one.real_time)
            cells = [one.detector, ", ".join(one.weights) or "none", speed, cost, f"{one.host_bytes / MIB:,.0f}"]
            rows.append([*cells, f"{(one.device_bytes or 0) / MIB:,.0f}"] if on_gpu else cells)
        lines = [f"{where}.", f"Footage: {self.footage}. Learning the cameras, loading and starting are not counted.", ""]
        lines += table_lines(rows) if len(rows) > 1 else []
        lines += [f"not measured: {one.detector}: {one.trouble}" for one in self.measured if one.trouble]
        return "\n".join(lines) + "\n"


def compare(
    candidates: Sequence[Candidate], footage: BenchVideos, *, bound: Bound, rounds: int, workers: int | None
) -> Comparison:
    """Return the speed and memory of each detector, or the reason why it could not be measured.

    Args:
        candidates: the detectors, measured in this order.
        footage: the videos to read.
        bound: the end of a round.
        rounds: number of rounds per detector.
        workers: decoder processes; None means one per core.
    """
    found = []
    for candidate in candidates:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found.append(pool.submit(measure, candidate, footage, bound=bound, rounds=rounds, workers=workers).result())
    return Comparison(footage.words, tuple(found))


def measure(candidate: Candidate, footage: BenchVideos, *, bound: Bound, rounds: int, workers: int | None) -> Measured:
    """Return the speed and memory of one detector, measured in this process."""
    workers = workers or core_count()
    done, host_bytes = [], 0
    try:
        detector = load(candidate.name, candidate.options)
        detector.prepare()
        devices = devices_for(candidate.options.device) if detector.weights else []
        size = candidate.options.batch_size or detector.batch_size
        with ClipLoader(detector.needs, LoaderOptions(workers=workers)) as loader:
            wake(loader, footage, workers)
            for number in range(rounds + 1):  # the first round is only a warm-up: one batch
                ends = bound if number else Bound(bound.seconds, size)
                forget_peak(devices)
                with ScoreStore(footage.scratch, channels=len(detector.channels)) as store, HostMemory() as memory:
                    one = scan_round(detector, loader, footage, batch_size=size, bound=ends, store=store)
                host_bytes = max(host_bytes, memory.peak_bytes)
                done += [one] if number else []
    except VadcliError as error:
        return Measured(candidate.name, trouble=f"{error.message}; {error.hint}" if error.hint else error.message)
    return Measured(
        candidate.name,
        tuple(detector.weights),
        tuple(done),
        host_bytes,
        peak_over(dict.fromkeys(cuda_of(devices), 0)),
        machine(devices),
    )
