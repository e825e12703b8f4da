"""Scan real clips with `motion`, and compare the events with what a person sees in each clip.

python benchmarks/incidents.py --root DIR [--page ../docs/incidents.md] [-- OPTIONS OF vadcli scan]

DIR has the files of CLIPS. The script leaves out files that DIR lacks, and prints their names. The intervals of the incidents
were found by eye on contact sheets.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from _measure import VADCLI, WORK

from vadcli.metrics.frame import FrameSet, frame_auc, frame_auc_macro
from vadcli.types import BoolArray, FloatArray

PAGE = Path(__file__).resolve().parents[1] / "docs" / "incidents.md"


@dataclass(frozen=True)
class Clip:
    """One file, and what a person sees in it.

    Attributes:
        start_s, end_s: the incident. Both are None if the clip has no incident. Only `end_s` is None if the incident ends with
            the clip.
    """

    file: str
    name: str
    sees: str
    start_s: float | None = None
    end_s: float | None = None


CLIPS = (
    Clip("incidents/cctvfights_fight_0002.mpeg", "CCTV-Fights 0002", "a street fight after a cut, cameras that move", 11, 31),
    Clip("incidents/elevator_panic.mp4", "lift", "a lift jolts and people crouch down, filmed from a screen", 0.9),
    Clip("incidents/two_people_portrait_b.mp4", "staged fight", "a lesson in self-defence: a pistol, a knife, a bat", 0),
    Clip("incidents/fire_cg_on_black.mp4", "drawn fire", "a drawn flame on black that goes out and starts again", 0),
    Clip("ucf_crime/Fighting023_x264.mp4", "UCF-Crime Fighting023", "a struggle at a door between title cards", 8.7, 27.7),
    Clip(
        "ubnormal/abnormal_scene_20_scenario_6.mp4",
        "UBnormal scene 20",
        "a rendered hall: a person staggers",
        0,
        6.8,
    ),
    Clip("ubnormal/normal_scene_16_scenario_2.mp4", "UBnormal scene 16", "a rendered lane with walkers"),
    Clip("ucf_crime/Normal_Videos_006_x264.mp4", "UCF-Crime Normal 006", "a street with cars"),
    Clip("everyday/traffic_camera.mp4", "motorway", "dense traffic"),
    Clip("everyday/traffic_camera_vfr.mp4", "motorway, variable rate", "the same traffic"),
    Clip("everyday/issue53_brightness_change.avi", "brightness", "a garden path; the light changes suddenly"),
    Clip("everyday/chaplin.mp4", "old film", "two men talk"),
    Clip("everyday/flipping_a_pancake.mkv", "kitchen", "a pancake is flipped; at the end a person walks into the camera"),
    Clip("everyday/newtonscradle.gif", "Newton's cradle", "balls swing"),
    Clip("everyday/no_duration.webm", "dark", "an almost black picture"),
    Clip("everyday/delayed_start.mp4", "plain colour", "a plain picture"),
    Clip("everyday/counter.mp4", "counter", "numbers"),
    Clip("everyday/torchcodec_var_fps_video.mp4", "test picture, variable rate", "a test picture with a counter"),
    Clip("everyday/torchcodec_av1_video.mkv", "test picture, AV1", "a test picture with a counter"),
    Clip("everyday/torchcodec_h265_10bits.mp4", "test picture, 10 bits", "a test picture"),
)


@dataclass(frozen=True)
class Found:
    """The events and scores of the scan of one clip, and its true labels."""

    clip: Clip
    duration_s: float
    events: tuple[tuple[float, float], ...]
    labels: BoolArray
    scores: FloatArray

    @property
    def has_incident(self) -> bool:
        """Whether a person sees an incident."""
        return self.clip.start_s is not None

    @property
    def end_s(self) -> float:
        """The end of the incident."""
        return self.duration_s if self.clip.end_s is None else self.clip.end_s

    @property
    def false_alarms(self) -> int:
        """Number of events that do not overlap the incident."""
        return len(self.events) - self.hits

    @property
    def hits(self) -> int:
        """Number of events that overlap the incident."""
        if self.clip.start_s is None:
            return 0
        return sum(start < self.end_s and end > self.clip.start_s for start, end in self.events)

    def row(self) -> str:
        """Return the line of the table."""
        when = "" if self.clip.start_s is None else f", {self.clip.start_s:g}-{self.end_s:.3g} s"
        spans = ", ".join(f"{start:.1f}-{end:.1f}" for start, end in self.events) or "none"
        touched = ("yes" if self.hits else "**no**") if self.has_incident else "-"
        auc = frame_auc(FrameSet.of([self.scores], [self.labels])).value
        alarms = f"**{self.false_alarms}**" if self.false_alarms else "0"
        cells = (self.clip.name, f"{self.clip.sees}{when}", f"{self.duration_s / 60:.2f}", spans, touched, alarms, _figure(auc))
        return f"| {' | '.join(cells)} |"


def read_found(out: Path, clip: Clip) -> Found:
    """Return the stored results of a clip."""
    document = json.loads((out / "events" / f"{clip.file}.json").read_text())
    table = pq.read_table(out / "scores" / f"{clip.file}.parquet")
    at_s, scores = (table.column(name).to_numpy() for name in ("timestamp", "score"))
    duration_s = float(document["video"]["duration_s"])
    begin_s, end_s = (np.inf, np.inf) if clip.start_s is None else (clip.start_s, clip.end_s or np.inf)
    events = tuple((event["start_s"], event["end_s"]) for event in document["events"])
    return Found(clip, duration_s, events, (at_s >= begin_s) & (at_s < end_s), scores)


def page_text(found: list[Found], command: str) -> str:
    """Return the page in Markdown."""
    frames = FrameSet.of([item.scores for item in found], [item.labels for item in found])
    over_all, within = frame_auc(frames).value, frame_auc_macro(frames)
    incidents = [item for item in found if item.has_incident]
    quiet = [item for item in found if not item.has_incident]
    minutes = sum(item.duration_s for item in found) / 60
    alarms = sum(item.false_alarms for item in found)
    touched = sum(bool(item.hits) for item in incidents)
    clear = sum(not item.events for item in quiet)
    before = (
        "This page shows which incidents in real clips `motion` finds, and how many false alarms it gives."
        f" `{command}` makes this page. DIR is a folder with the clips that the script lists. The clips come from public data"
        " sets and test suites; they are not part of `vadcli`.",
        "Each clip was scanned as a camera of its own, with the default threshold. Clips of 1 to 35 seconds do not show what is"
        " usual for a camera, so expect other figures with days of footage. [motion.md](motion.md#how-well-it-does) has figures"
        " on UCSD Ped2.",
        "The intervals of the incidents were found by eye. An incident is *touched* if an event overlaps the incident. An event"
        " that overlaps no incident is a false alarm.",
        "The frame AUC measures how well the scores separate the frames of the incident from the other frames of the same clip;"
        " .5 is chance. A clip without an incident, or with an incident from start to end, has no AUC.",
    )
    after = (
        f"`motion` finds {touched} of {len(incidents)} incidents. In {clear} of {len(quiet)} clips without an incident,"
        f" `motion` finds no event. It gives {alarms} false alarms in {minutes:.1f} minutes.",
        f"The mean of the frame AUCs of the single clips is {_figure(within.value)}. The frame AUC over all frames of all clips"
        f" together is {_figure(over_all)}.",
    )
    head = "| clip | what a person sees, and when | minutes | events, s | touched | false alarms | frame AUC |"
    table = "\n".join([head, "|---|---|---|---|---|---|---|", *(item.row() for item in found)])
    parts = ["# What `motion` finds in real clips", *map(_wrapped, before), table, *map(_wrapped, after)]
    return "\n\n".join(parts) + "\n"


def _wrapped(paragraph: str) -> str:
    return textwrap.fill(paragraph, 120, break_on_hyphens=False)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".removeprefix("0") if value < 1 else "1.000"


def main() -> None:
    """Scan the clips and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=WORK / "incidents")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("options", nargs="*", metavar="OPTIONS OF vadcli scan")
    options = parser.parse_args()
    clips = [clip for clip in CLIPS if (options.root / clip.file).exists()]
    for clip in CLIPS:
        if clip not in clips:
            print(f"{options.root / clip.file}: left out, because the file is missing")
    shutil.rmtree(options.out, ignore_errors=True)
    same = ("--detector", "motion", "--camera-from", "file", "--root", str(options.root), "--out", str(options.out), "--quiet")
    files = [str(options.root / clip.file) for clip in clips]
    subprocess.run([*VADCLI, "scan", *same, *options.options, *files], check=True)
    more = f" -- {shlex.join(options.options)}" if options.options else ""
    text = page_text([read_found(options.out, clip) for clip in clips], f"python benchmarks/incidents.py --root DIR{more}")
    options.page.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
