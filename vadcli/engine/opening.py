"""Makes a scan from paths and options: finds the videos, and chooses the detector and the runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vadcli import weights
from vadcli.detectors.concept import DEFAULT_ENCODER
from vadcli.engine.event_rules import choices_text
from vadcli.engine.plan import make_plan, no_video_text
from vadcli.engine.regions import regions_of_scan, warn_if_ignored
from vadcli.engine.runner import Scan, ScanSettings, Stop, choose_detector
from vadcli.errors import NoVideoFound
from vadcli.options import FindOptions, ScanOptions, parse_categories, parse_duration
from vadcli.registry import RUNNERS
from vadcli.store import OutputLayout
from vadcli.store.choices import read_choices
from vadcli.store.footage import stored_roots


def open_scan(paths: Sequence[Path], options: ScanOptions, *, command: Sequence[str] = ("vadcli.scan",)) -> Scan:
    """Return a scan that is ready to run. Raises the same errors as `vadcli.scan`."""
    layout = OutputLayout(options.out)
    stop = Stop(None if options.max_runtime is None else parse_duration(options.max_runtime, "max_runtime"))
    plan = make_plan(
        paths,
        options,
        out=options.out,
        camera_from=options.camera_from,
        root=options.root,
        stored=stored_roots(layout),
    )
    if not plan.units and not plan.unusable and not may_be_empty(paths, options):
        raise NoVideoFound(no_video_text(plan, options))
    regions = regions_of_scan(options, plan)
    detector = choose_detector(options)
    warn_if_ignored(options, detector)
    said = choices_text(options, read_choices(layout), detector=detector.name, out=options.out)
    plan = replace(plan, notes=(*plan.notes, said)) if said else plan
    settings = ScanSettings(plan, options, tuple(command), regions=regions)
    return Scan(settings, detector, RUNNERS.load(options.runner)(settings, detector, stop=stop), stop=stop)


def may_be_empty(paths: Sequence[Path], options: FindOptions) -> bool:
    """True if a plan without videos is not an error. A list of new files may be empty, for example after a quiet night."""
    return options.allow_empty or (options.files_from is not None and not paths)


def ignored_categories(run: Scan) -> tuple[str, ...]:
    """Return the categories that the scan ignores; empty if its detector reads categories, or if none were given."""
    return () if run.detector.uses_categories else parse_categories(run.settings.options.categories)


def how_to_read_categories() -> str:
    """Return the command that installs an encoder for categories on any machine, with the size of the download."""
    size = weights.entry(DEFAULT_ENCODER).download_gb
    return f"vadcli weights pull {DEFAULT_ENCODER}" + (f" ({size:g} GB)" if size else "")
