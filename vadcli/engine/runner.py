"""What every runner of a scan shares: its settings, when it stops, what it counts, its exit code and its detector.

A runner executes a plan: on this machine (`local`), or on several. `ScanSettings` is what it needs to know; it can be pickled
and sent to another process. Loaders, locks and devices live in the runner that uses them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from vadcli import detectors, weights
from vadcli.detectors import Detector
from vadcli.engine.plan import Plan, WorkUnit
from vadcli.engine.stream import Update
from vadcli.errors import DeviceError, UsageError, WeightsError
from vadcli.options import DEFAULT_MODEL, ScanOptions, parse_categories, parse_shard
from vadcli.types import ClipNeeds, VideoResult


@dataclass(frozen=True)
class ScanSettings:
    """What a scan is to do.

    Attributes:
        plan: which videos.
        options: how.
        command: the command line, for the run record.
    """

    plan: Plan
    options: ScanOptions
    command: tuple[str, ...] = ()

    @property
    def units(self) -> tuple[WorkUnit, ...]:
        """The videos of this run's shard."""
        return self.plan.shard(*parse_shard(self.options.shard))

    def categories_of(self, detector: Detector) -> tuple[str, ...]:
        """Return what is looked for; if the detector reads no categories, what the user asked for is recorded all the same."""
        return detector.categories or parse_categories(self.options.categories)


class Runner(Protocol):
    """Executes a scan.

    Attributes:
        totals: counts of the run so far.
        stop: ends the run early.
    """

    totals: Totals
    stop: Stop

    def run(self) -> Iterator[Update]:
        """Scan; yields progress, and one result per video. The run record is complete when the iterator ends.

        Raises:
            OutputError: OUT cannot be written at all.
            DeviceError, WeightsError: the detector cannot be loaded.
        """
        ...

    def preview(self) -> Iterator[tuple[str, str]]:
        """Yield (video, need): what the run would do with each video, without doing or writing anything."""
        ...


class Stop:
    """A request to end early: a signal or a deadline sets it, and every loop asks it."""

    def __init__(self, deadline_s: float | None = None) -> None:
        self.reason = ""
        self.signal: int | None = None
        self._deadline = None if deadline_s is None else time.monotonic() + deadline_s

    def set(self, reason: str, signal: int | None = None) -> None:
        """Ask the run to end."""
        self.reason, self.signal = self.reason or reason, self.signal or signal

    def __call__(self) -> bool:
        """True once the run was asked to end or the deadline has passed."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.set("--max-runtime is over")
        return bool(self.reason)


@dataclass
class Totals:
    """Counts of a run.

    Attributes:
        by_status: videos of each status.
        lost: videos that failed or are partial, now or in an earlier run with the same input.
        events: events in all videos of the plan.
        frames, video_s: work done.
    """

    by_status: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    events: int = 0
    frames: int = 0
    video_s: float = 0.0

    def add(self, result: VideoResult) -> None:
        """Count a result."""
        self.by_status[str(result.status)] += 1
        self.lost += result.is_lost
        self.events += result.events


def exit_code(totals: Totals, *, stop: Stop, fail_on_event: bool) -> int:
    """Return the exit code of a run that was not fatal: the first one that applies."""
    if stop.signal is not None:
        return 128 + stop.signal
    if totals.lost:
        return 3
    return 10 if fail_on_event and totals.events else 0


def choose_detector(options: ScanOptions) -> Detector:
    """Return the detector that the options ask for; `auto` takes LAVIDA if a model is named or trained, else motion.

    Raises:
        UsageError: there is no such detector.
        DeviceError: the device is not there.
        WeightsError: it lacks its weights.
    """
    check_device(options.device)
    if options.detector == "auto":
        wanted = options.model != DEFAULT_MODEL or _has_trained(options.model)
        return detectors.load("lavida" if wanted else "motion", options)
    return detectors.load(options.detector, options)


def _has_trained(model: str) -> bool:
    try:
        return weights.is_trained(weights.locate(model))
    except WeightsError:
        return False


def check_device(device: str) -> None:
    """Raise DeviceError if the device is missing, UsageError if it is not a device. `auto` and `cpu` load no torch."""
    if device in ("auto", "cpu"):
        return
    kind, _, number = device.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise UsageError(f"--device {device!r} is not a device", hint="write auto, cpu, cuda or cuda:N")
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= found:
        raise DeviceError(f"--device {device}: torch {torch.__version__} sees {found} CUDA devices")


def effective_needs(detector: Detector, options: ScanOptions) -> ClipNeeds:
    """Return the detector's needs, changed by --interval and --sample-fps."""
    needs = detector.needs
    return replace(needs, interval=options.interval, rate_hz=options.sample_fps or needs.rate_hz)
