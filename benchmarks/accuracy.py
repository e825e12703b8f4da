"""Compare methods without weights on UCSD Ped2 by `vadcli eval`, and write benchmarks/accuracy.md.

python benchmarks/accuracy.py [--root DIR] [--page FILE]
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _accuracy_text import PAGE, QUOTED
from _baselines import Motion, differences, flow_speeds, foreground, highest_box, smoothed, whole_frame
from _measure import VADCLI, WORK
from _outputs import Scored, write_output
from PIL import Image

from vadcli.detectors.motion.background import grid_for
from vadcli.detectors.motion.camera import from_model
from vadcli.detectors.motion.detector import MotionDetector
from vadcli.detectors.motion.scoring import measure, peaks
from vadcli.engine.cameras import read_camera
from vadcli.store.masks import upsample_mask
from vadcli.types import ByteArray, FloatArray

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared" / "data" / "ucsd_ped2"
TARGET = Path(__file__).with_name("accuracy.md")
FPS = 10.0
CLIP = "[0-9][0-9]", "Test[0-9][0-9][0-9]"
PAPER_SIZE = "158x238"
TOP = 99.9  # the value of this percentile of all pixels becomes 0.5 in the masks


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: the name that readers see.
        out: the output folder.
    """

    name: str
    out: Path


@dataclass(frozen=True)
class Footage:
    """The test clips.

    Attributes:
        root: the data set's folder, as `--root` takes it.
        clips: frame folders in order.
        frames: clip name -> (N, H, W) uint8.
    """

    root: Path
    clips: tuple[Path, ...]
    frames: dict[str, ByteArray]

    @classmethod
    def of(cls, root: Path) -> Footage:
        """Read all clips: test/NN in the plain layout, Test/TestNNN in the official archive."""
        places = (root, root / "UCSDped2")
        test = next((place / name for place in places for name in ("test", "Test") if (place / name).is_dir()), None)
        clips = sorted(path for pattern in CLIP for path in (test.glob(pattern) if test else ()) if path.is_dir())
        if not clips:
            raise SystemExit(f"{root}: has neither test/NN nor Test/TestNNN; name the folder of UCSD Ped2 with --root")
        return cls(root, tuple(clips), {clip.name: _pictures(clip) for clip in clips})


def _pictures(clip: Path) -> ByteArray:
    paths = sorted(path for path in clip.iterdir() if path.suffix.lower() in (".jpg", ".tif", ".png"))
    return np.stack([np.asarray(Image.open(path).convert("L")) for path in paths])


def scanned(footage: Footage, work: Path) -> tuple[Row, str]:
    """Scan all clips as one camera with the motion detector, and return the row and the command."""
    out = work / "motion"
    options = ["--frames-as-video", "--fps", f"{FPS:g}", "--masks", "video", "--out", str(out), "--quiet"]
    command = ["scan", *map(str, footage.clips), *options]
    subprocess.run([*VADCLI, *command], check=True)
    return Row("`motion`", out), _shown(command, footage)


def alone(footage: Footage, motion: Row) -> Iterator[Row]:
    """Yield one row per channel of the motion detector, scored alone with the scan's camera model."""
    options = MotionDetector().options
    fitted = from_model(read_camera(next((motion.out / "cameras").glob("*.json"))))
    maps = {}
    for clip, frames in footage.frames.items():
        seen, times = np.ones(len(frames), np.bool_), np.arange(len(frames)) / FPS
        grid = grid_for(*frames.shape[1:], options.cell_px, options.blur_cells)
        maps[clip] = measure(frames, timestamp=times, seen=seen, fitted=fitted, grid=grid, options=options)
    for name in ("speed", "disorder"):
        found = {clip: Motion(getattr(each, name), peaks(getattr(each, name))) for clip, each in maps.items()}
        yield _written(f"`motion`, its {name} alone", f"channel-{name}", footage, found, motion.out.parent)


def baselines(footage: Footage, work: Path) -> Iterator[Row]:
    """Yield one row per baseline that a detector has to beat."""
    clips = footage.frames
    changes = {clip: differences(frames) for clip, frames in clips.items()}
    speeds = {clip: flow_speeds(frames) for clip, frames in clips.items()}
    shares = dict(zip(clips, foreground(list(clips.values())), strict=True))
    for key, name, maps, read in (
        ("difference-5", "frame difference, highest 5×5 box", changes, partial(highest_box, box_px=5)),
        ("difference-21", "frame difference, highest 21×21 box", changes, partial(highest_box, box_px=21)),
        ("difference-mean", "frame difference, mean of the frame", changes, whole_frame),
        ("flow-5", "optical flow (DIS), highest 5×5 box", speeds, partial(highest_box, box_px=5)),
        ("flow-21", "optical flow (DIS), highest 21×21 box", speeds, partial(highest_box, box_px=21)),
        ("mog2", "MOG2, share of foreground", shares, whole_frame),
    ):
        yield _written(name, key, footage, {clip: read(each) for clip, each in maps.items()}, work)


def _written(name: str, key: str, footage: Footage, found: dict[str, Motion], work: Path) -> Row:
    """Write an output folder, and return its row.

    Scores are x / (x + scale), with one scale for all clips.
    """
    pixels = np.concatenate([each.maps.ravel() for each in found.values()])
    scale = max(float(np.percentile(pixels, TOP)), 1e-6)
    middle = float(np.median(np.concatenate([each.scores for each in found.values()]))) or 1e-6

    def scored() -> Iterator[Scored]:
        for clip, each in found.items():
            _, height, width = footage.frames[clip].shape
            values = smoothed(each.scores, FPS)
            masks = (upsample_mask(_bytes(cells / (cells + scale)), width, height) for cells in each.maps)
            yield Scored(clip, FPS, width, height, values / (values + middle), masks)

    return Row(name, write_output(work / key, scored(), detector=key))


def _bytes(values: FloatArray) -> ByteArray:
    return np.rint(values * 255).astype(np.uint8)


def evaluated(rows: list[Row], footage: Footage, *options: str) -> list[dict[str, Any]]:
    """Return the result of `vadcli eval` for each row, with paired differences from the first row."""
    command = ["eval", "--compare", *(str(row.out) for row in rows), "--dataset", "ped2", "--root", str(footage.root), *options]
    done = subprocess.run([*VADCLI, *command, "--no-save", "--json"], check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _commands(row: Row, footage: Footage) -> list[str]:
    base = ["eval", str(row.out), "--dataset", "ped2", "--root", str(footage.root)]
    small = ["--metrics", "pixel", "--pixel-size", PAPER_SIZE]
    return [_shown(command, footage) for command in ([*base, "--metrics", "frame,pixel"], [*base, *small])]


def _shown(command: list[str], footage: Footage) -> str:
    """Return a command as text, with PED2 for the data set's folder, and with relative paths."""
    clips = " ".join(map(str, footage.clips))
    text = shlex.join(["vadcli", *command]).replace(clips, f"{footage.clips[0].parent}/*")
    return text.replace(str(footage.root), "PED2").replace(f"{REPO}/", "")


def main() -> None:
    """Scan, write the baselines, evaluate all of them and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=SHARED, help="UCSD Ped2: test/NN, or the official archive's folder")
    parser.add_argument("--page", type=Path, default=TARGET, help="the page to write")
    options = parser.parse_args()
    footage = Footage.of(options.root)
    work = WORK / "accuracy"
    shutil.rmtree(work, ignore_errors=True)
    motion, scan = scanned(footage, work)
    rows = [motion, *alone(footage, motion), *baselines(footage, work)]
    whole = evaluated(rows, footage, "--metrics", "frame,pixel")
    small = evaluated(rows, footage, "--metrics", "pixel", "--pixel-size", PAPER_SIZE)
    commands = [scan, *(command for row in rows for command in _commands(row, footage))]
    options.page.write_text(_page(footage, rows, whole, small, commands), encoding="utf-8")
    print(options.page)


def _page(footage: Footage, rows: list[Row], whole: list[Any], small: list[Any], commands: list[str]) -> str:
    return PAGE.format(
        clips=f"{footage.clips[0].name} to {footage.clips[-1].name}",
        count=len(footage.clips),
        frames=f"{sum(map(len, footage.frames.values())):,}",
        figures="\n".join(_line(*each) for each in zip(rows, whole, small, strict=True)),
        verdict=_verdict(rows, whole),
        commands="\n".join(commands),
        quoted=QUOTED.format(count=len(footage.clips)),
    )


def _line(row: Row, whole: dict[str, Any], small: dict[str, Any]) -> str:
    frame, pixel = whole["metrics"]["frame"], whole["metrics"]["pixel"]
    cells = [_cell(frame["auc_micro"]), _cell(frame["ap_micro"]), _cell(pixel["auc"])]
    cells += [_cell(small["metrics"]["pixel"]["auc"]), _cell(pixel["ap"])]
    difference_to_first = whole.get("difference_to_first")
    cells.append(_cell(difference_to_first["frame"]["auc_micro"], sign="+") if difference_to_first else "")
    return f"| {row.name} | " + " | ".join(cells) + " |"


def _verdict(rows: list[Row], whole: list[dict[str, Any]]) -> str:
    """Return a sentence that names the rows with a higher frame ROC-AUC than the first row."""
    first = whole[0]["metrics"]["frame"]["auc_micro"]["value"]
    better = [row.name for row, each in zip(rows, whole, strict=True) if each["metrics"]["frame"]["auc_micro"]["value"] > first]
    if not better:
        return "No other method has a higher frame ROC-AUC than `motion` on these clips."
    methods = "one method has" if len(better) == 1 else f"{len(better)} methods have"
    return f"**On these clips, {methods} a higher frame ROC-AUC than `motion`: {'; '.join(better)}.**"


def _cell(metric: dict[str, Any], sign: str = "") -> str:
    if metric["value"] is None:
        return "undefined"
    return "{value:{sign}.3f} [{ci_low:{sign}.3f}, {ci_high:{sign}.3f}]".format(sign=sign, **metric)


if __name__ == "__main__":
    main()
