"""Detectors: arrays in, arrays out. `vadcli.registry` has them by name; `base` says what a detector is."""

from __future__ import annotations

import os

from vadcli.detectors.base import Detector
from vadcli.options import DetectorOptions
from vadcli.options.config import cache_folder
from vadcli.registry import DETECTORS


def make_motion(options: DetectorOptions) -> Detector:
    """Return the motion detector, which has no options of its own."""
    from vadcli.detectors.motion.detector import MotionDetector

    return MotionDetector()


def make_lavida(options: DetectorOptions) -> Detector:
    """Return LAVIDA; raises WeightsError if its weights are missing."""
    # torch makes this folder as soon as transformers is imported, by default among the temporary files, and leaves it there
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "torchinductor"))
    from vadcli.detectors.lavida.detector import LavidaDetector

    return LavidaDetector(options)


def load(name: str, options: DetectorOptions | None = None) -> Detector:
    """Return the detector of a name.

    Args:
        name: a name in `registry.DETECTORS`.
        options: how it computes; the defaults if there are none.

    Raises:
        UsageError: there is no such detector, or the options do not fit it.
        WeightsError: its weights are missing.
    """
    detector: Detector = DETECTORS.load(name)(options or DetectorOptions())
    return detector
