"""Count the alarms of `motion` on normal footage, and compare them with the rate to expect from its scores.

python benchmarks/alarms.py --root DIR [--minutes 7] [--page ../docs/motion.md] [-- OPTIONS OF vadcli scan]

DIR has the clips of incidents.py and UCSD Ped2's training clips. The script leaves out clips that DIR lacks, and prints their
names. examples/synthetic_archive.py draws the videos of the synthetic cameras. A camera with several videos is fitted on one
half of its videos, and its alarms are counted on the other half. The script replaces the table between two marks in the page.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _measure import VADCLI, WORK
from scipy.stats import chi2

from vadcli.detectors.calibration import CALIBRATION
from vadcli.engine.recut import preview
from vadcli.options import EventsOptions

PAGE = Path(__file__).resolve().parents[1] / "docs" / "motion.md"
DEFAULT = None
"""Stands for the default threshold among the rates."""
RATES_PER_HOUR = (1.0, 10.0, 60.0)
FACTOR = 2.0
QUIET_CAMERAS = ("plaza", "walkway")
QUIET_FPS = 8  # the rate at which the detector samples


@dataclass(frozen=True)
class Source:
    """Normal footage of one kind.

    Attributes:
        name: the name in the table.
        halves: files or folders. If there are two halves, the alarms in each half are counted with the camera that was fitted
            on the other half.
        options: options of the scan.
    """

    name: str
    halves: tuple[tuple[Path, ...], ...]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Count:
    """The alarms on one source: hours, and events for `DEFAULT` and each of RATES_PER_HOUR."""

    source: Source
    hours: float
    events: dict[float | None, int]


def real_sources(root: Path) -> list[Source]:
    """Return the real footage under `root` in which a person sees no anomaly."""
    clips = sorted((root / "ucsd_ped2" / "train").glob("[0-9][0-9]"))
    frames = ("--frames-as-video", "--fps", "10")
    alone = {
        "UCF-Crime Normal 006, a street with cars": ("ucf_crime/Normal_Videos_006_x264.mp4",),
        "motorway, two versions of one clip": ("everyday/traffic_camera.mp4", "everyday/traffic_camera_vfr.mp4"),
        "UBnormal scene 16, a lane with walkers": ("ubnormal/normal_scene_16_scenario_2.mp4",),
    }
    found = [Source("UCSD Ped2, 16 training clips", (tuple(clips[::2]), tuple(clips[1::2])), frames)] if clips else []
    for name, files in alone.items():
        paths = tuple(root / file for file in files)
        if all(path.exists() for path in paths):
            found.append(Source(name, (paths,), ("--camera-from", "file", "--root", str(root))))
        else:
            print(f"{name}: left out, because {root} lacks its files")
    return found


def quiet_sources(folder: Path, minutes: float) -> list[Source]:
    """Return two videos per synthetic camera, with walkers only; missing videos are drawn."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    import synthetic_archive

    synthetic_archive.FPS = QUIET_FPS
    found = []
    for camera in QUIET_CAMERAS:
        scripts = [synthetic_archive.Script(camera, f"quiet{number}") for number in range(2)]
        for script in scripts:
            if not (folder / script.video).exists():
                synthetic_archive.film(script, folder, seconds=60 * minutes, width=320, seed=11)
        halves = tuple((folder / script.video,) for script in scripts)
        found.append(Source(f"synthetic {camera}, {2 * minutes:g} minutes of walkers", halves, ("--root", str(folder))))
    return found


def counted(source: Source, work: Path, options: Sequence[str]) -> Count:
    """Scan a source with these options, and count its alarms."""
    hours = 0.0
    events: dict[float | None, int] = dict.fromkeys((DEFAULT, *RATES_PER_HOUR), 0)
    for number, half in enumerate(source.halves):
        out = work / f"{source.name.split(',')[0].replace(' ', '-')}-{number}"
        shutil.rmtree(out, ignore_errors=True)
        for part in (half, *(other for other in source.halves if other != half))[::-1]:  # the last one is counted
            command = ["scan", *map(str, part), "--detector", "motion", "--out", str(out), "--quiet", "--no-refit"]
            subprocess.run([*VADCLI, *command, *source.options, *options], check=True)
        globs = tuple(f"*{path.name}" for path in half)
        for rate in events:
            asked = EventsOptions(include=globs, alarms_per_hour=rate)
            found = preview(out, asked)
            high = CALIBRATION.score_at(rate) if rate is not None else next(r.threshold for r in found.rows if r.present)
            events[rate] += next(row.events for row in found.rows if abs(row.threshold - high) < 1e-9)
        hours += found.hours
    return Count(source, hours, events)


def interval(events: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean of a Poisson count."""
    low = chi2.ppf(0.025, 2 * events) / 2 if events else 0.0
    return float(low), float(chi2.ppf(0.975, 2 * events + 2) / 2)


def cell(events: int, expected: float) -> str:
    """Return counted and expected events, with a verdict if the rate is wrong by a factor of two."""
    low, high = interval(events)
    if high < expected / FACTOR:
        verdict = ", too few"
    elif low > expected * FACTOR:
        verdict = ", **too many**"
    else:
        verdict = ""
    return f"{events} ({expected:.3g}{verdict})"


def table(counts: Sequence[Count], default_per_hour: float) -> str:
    """Return the table in Markdown."""
    rates: dict[float | None, float] = {DEFAULT: default_per_hour, **{rate: rate for rate in RATES_PER_HOUR}}
    head = ["normal footage", "minutes", "fitted on", f"the default, {default_per_hour:.2g} per hour"]
    head += [f"{rate:g} per hour" for rate in RATES_PER_HOUR]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for count in counts:
        fitted = "the other half" if len(count.source.halves) > 1 else "itself"
        cells = [cell(count.events[key], rate * count.hours) for key, rate in rates.items()]
        lines.append(f"| {count.source.name} | {60 * count.hours:.1f} | {fitted} | {' | '.join(cells)} |")
    hours = sum(count.hours for count in counts)
    cells = [cell(sum(count.events[key] for count in counts), rate * hours) for key, rate in rates.items()]
    lines.append(f"| all | {60 * hours:.1f} | | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Scan, count, and write the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7.0, help="length of each synthetic video")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("scan", nargs="*", help="options of vadcli scan, after --")
    options = parser.parse_args()
    work = WORK / "alarms"
    sources = [*real_sources(options.root), *quiet_sources(work / f"quiet-{options.minutes:g}-{QUIET_FPS}fps", options.minutes)]
    counts = [counted(source, work, options.scan) for source in sources]
    text = table(counts, CALIBRATION.rate_at(0.4))
    page = options.page.read_text()
    begin, end = "<!-- alarms: begin -->", "<!-- alarms: end -->"
    before, after = page.split(begin)[0], page.split(end)[1]
    options.page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
    print(text)


if __name__ == "__main__":
    main()
