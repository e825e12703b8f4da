"""The detectors by name. Loading one imports what it needs; naming one imports nothing."""

from __future__ import annotations

import os
from collections.abc import Callable

from vadcli.detectors.base import Detector
from vadcli.errors import UsageError
from vadcli.options import DetectorOptions
from vadcli.options.config import cache_folder


def _motion(options: DetectorOptions) -> Detector:
    from vadcli.detectors.motion.detector import MotionDetector

    return MotionDetector()


def _lavida(options: DetectorOptions) -> Detector:
    # torch makes this folder as soon as transformers is imported, by default among the temporary files, and leaves it there
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "torchinductor"))
    from vadcli.detectors.lavida.detector import LavidaDetector

    return LavidaDetector(options)


DETECTORS: dict[str, Callable[[DetectorOptions], Detector]] = {"lavida": _lavida, "motion": _motion}


def load(name: str, options: DetectorOptions | None = None) -> Detector:
    """The detector of that name.

    Args:
        name: a key of DETECTORS.
        options: how it computes; the defaults where there are none.

    Raises:
        UsageError: there is none, or the options don't fit it.
        WeightsError: its weights are not there.
    """
    if name not in DETECTORS:
        raise UsageError(f"no detector is called {name!r}", hint=f"choose from: {', '.join(sorted(DETECTORS))}")
    return DETECTORS[name](options or DetectorOptions())
