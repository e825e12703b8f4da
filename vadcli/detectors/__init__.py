"""The detectors by name. Loading one imports what it needs; naming one imports nothing."""

from __future__ import annotations

from collections.abc import Callable

from vadcli.detectors.base import Detector
from vadcli.errors import UsageError


def _motion() -> Detector:
    from vadcli.detectors.motion.detector import MotionDetector

    return MotionDetector()


DETECTORS: dict[str, Callable[[], Detector]] = {"motion": _motion}


def load(name: str) -> Detector:
    """The detector of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in DETECTORS:
        raise UsageError(f"no detector is called {name!r}", hint=f"choose from: {', '.join(sorted(DETECTORS))}")
    return DETECTORS[name]()
