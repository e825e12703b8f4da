"""Reads the regions of a scan, and warns about options that the detector ignores and about cameras that do not exist."""

from __future__ import annotations

import logging

from vadcli.detectors import Detector, Traits
from vadcli.engine.plan import Plan
from vadcli.options.mixins import RegionOptions
from vadcli.store.regions import read_regions
from vadcli.types import CameraRegions

log = logging.getLogger("vadcli")

MOST_NAMED = 10
"""A warning names this many cameras, and counts the others."""


def warn_if_ignored(options: RegionOptions, detector: Detector) -> None:
    """Log a warning for each option that the detector can't use."""
    traits = Traits.of(detector)
    if options.min_size is not None and not traits.uses_min_size:
        log.warning("the %s detector can't tell how large things are; it ignores --min-size", detector.name)
    if options.motion_detail != 1 and not traits.uses_motion_detail:
        log.warning("the %s detector chooses its own frame size; it ignores --motion-detail", detector.name)
    if options.still and not traits.uses_still:
        log.warning("the %s detector does not look for things that stand still; it ignores --still", detector.name)


def regions_of_scan(options: RegionOptions, plan: Plan) -> CameraRegions:
    """Return what --ignore and --only hide. A name that fits no camera of the plan is logged as a warning.

    Raises:
        UsageError: a file can't be read. The message has one line per fault.
    """
    found = CameraRegions()
    cameras = list(dict.fromkeys(unit.camera for unit in plan.units))
    for kind, path in (("ignore", options.ignore), ("only", options.only)):
        if path is None:
            continue
        read = read_regions(path, kind)
        found |= read
        for name in read.unknown(cameras) if cameras else ():
            more = f" and {len(cameras) - MOST_NAMED} more" if len(cameras) > MOST_NAMED else ""
            log.warning("%s: no camera is called %s; there are %s%s", path, name, ", ".join(cameras[:MOST_NAMED]), more)
    return found
