"""Scans for tests: in this process, or in a new process per video."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

from vadcli.detectors import Detector
from vadcli.engine.local import LocalRunner
from vadcli.engine.plan import Plan
from vadcli.engine.runner import Fitting, Scan, ScanSettings, Stop, choose_detector, regions_of_scan
from vadcli.engine.stream import Update
from vadcli.options import ScanOptions


def local_scan(
    plan: Plan, options: ScanOptions, detector: Detector, *, stop: Stop | None = None, command: Sequence[str] = ()
) -> Scan:
    """Return a scan by the local runner with a detector of the test."""
    stop = stop or Stop()
    settings = ScanSettings(plan, options, tuple(command), regions=regions_of_scan(options, plan))
    return Scan(settings, detector, LocalRunner(settings, detector, stop=stop), stop=stop)


_FRESH = get_context("forkserver")  # new processes share no state with this one, and have already imported the modules
_FRESH.set_forkserver_preload([__name__, "vadcli.detectors.motion.detector"])


class FreshProcessRunner:
    """Scans each video in a new process, which gets only settings and returns only updates."""

    def __init__(self, settings: ScanSettings, detector: Detector, *, stop: Stop) -> None:
        self.settings, self.stop = settings, stop
        self._here = LocalRunner(settings, detector, stop=stop)

    def updates(self, fitting: Fitting) -> Generator[Update, None, None]:
        """See `Runner`."""
        with ProcessPoolExecutor(1, mp_context=_FRESH, max_tasks_per_child=1) as pool:
            for unit in self.settings.units:
                if self.stop():
                    return
                yield from pool.submit(_scan_alone, replace(self.settings, videos=frozenset([unit.video]))).result()

    def preview(self) -> Iterator[tuple[str, str]]:
        """See `Runner`."""
        return self._here.preview()


def _scan_alone(settings: ScanSettings) -> list[Update]:
    runner = LocalRunner(settings, choose_detector(settings.options), stop=Stop())
    return list(runner.updates(lambda camera, frames: None))
