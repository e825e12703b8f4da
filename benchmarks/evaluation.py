"""Measure time and peak memory of the whole command `vadcli eval` on generated outputs.

python benchmarks/evaluation.py [--rows 10000000] [--videos 10 1000] [--rounds N]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from _measure import VADCLI, WORK, Run, machine, run
from _outputs import Scored, write_output
from PIL import Image

from vadcli.store.masks import upsample_mask
from vadcli.types import ByteArray

FPS = 25.0
PED2_CLIPS, PED2_FRAMES, PED2_SIZE = 12, 2010, (240, 360)
GRID = (60, 90)  # rows and columns of a detector's cells, which are enlarged to the size of the frames
SPOT_PX = 24


def frames_only(rows: int, videos: int) -> tuple[Path, Path]:
    """Make noisy scores and a CSV truth, with three abnormal spans in every second video."""
    folder = WORK / f"evaluation-{rows}-{videos}"
    out, truth = folder / "out", folder / "truth.csv"
    if truth.exists():
        return out, truth
    rng, length = np.random.default_rng(0), rows // videos
    lines = ["video,start_s,end_s"]

    def made() -> Iterator[Scored]:
        for number in range(videos):
            name, scores = f"{number:04d}.mp4", rng.beta(2, 5, length)
            for start in np.linspace(0.1, 0.8, 3) if number % 2 else ():
                first, last = int(start * length), int((start + 0.05) * length)
                scores[first:last] = rng.beta(3, 4, last - first)
                lines.append(f"{name},{first / FPS:.3f},{last / FPS:.3f}")
            if not number % 2:
                lines.append(f"{name},,")
            yield Scored(name, FPS, 640, 360, np.convolve(scores, np.full(9, 1 / 9), "same").astype(np.float32))

    write_output(out, made(), detector="made")
    truth.write_text("\n".join(lines) + "\n")
    return out, truth


def like_ped2() -> tuple[Path, Path]:
    """Make an output and a truth of the size of UCSD Ped2's test set: a spot moves over noise."""
    folder = WORK / "evaluation-ped2"
    out, root = folder / "out", folder / "truth"
    if out.exists():
        return out, root
    rng, length = np.random.default_rng(0), PED2_FRAMES // PED2_CLIPS
    lines = ["clip,frame_index0,label"]

    def masks(clip: int) -> Iterator[ByteArray]:
        for frame in range(length):
            noisy = upsample_mask(rng.integers(0, 120, GRID, np.uint8), PED2_SIZE[1], PED2_SIZE[0])
            wanted = _spot(frame, length)
            Image.fromarray(wanted.astype(np.uint8) * 255).save(root / "test_masks" / f"{clip:02d}" / f"{frame:03d}.png")
            yield noisy + 60 * wanted.astype(np.uint8)

    def made() -> Iterator[Scored]:
        for clip in range(1, PED2_CLIPS + 1):
            (root / "test_masks" / f"{clip:02d}").mkdir(parents=True)
            truth = [bool(_spot(frame, length).any()) for frame in range(length)]
            lines.extend(f"{clip:02d},{frame},{int(label)}" for frame, label in enumerate(truth))
            scores = np.clip(rng.normal(0.4, 0.1, length) + 0.1 * np.array(truth), 0, 1).astype(np.float32)
            yield Scored(f"{clip:02d}", 10.0, PED2_SIZE[1], PED2_SIZE[0], scores, masks(clip))

    write_output(out, made(), detector="made")
    (root / "frame_labels.csv").write_text("\n".join(lines) + "\n")
    return out, root


def _spot(frame: int, frames: int) -> np.ndarray:
    mask = np.zeros(PED2_SIZE, np.bool_)
    if frame > frames // 5:
        left = (frame * 2) % (PED2_SIZE[1] - SPOT_PX)
        mask[100 : 100 + 2 * SPOT_PX, left : left + SPOT_PX] = True
    return mask


def main() -> None:
    """Print a table of seconds and MiB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--videos", type=int, nargs="*", default=[10, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    commands: list[tuple[str, list[str]]] = []
    for videos in options.videos:
        out, truth = frames_only(options.rows, videos)
        eval_ = [*VADCLI, "eval", str(out), "--root", str(truth), "--no-save"]
        what = f"{options.rows:,} rows in {videos:,} videos"
        commands += [(f"{what}: `--metrics frame`", [*eval_, "--metrics", "frame"]), (f"{what}: everything", eval_)]
    out, root = like_ped2()
    eval_ = [*VADCLI, "eval", str(out), "--dataset", "ped2", "--root", str(root), "--no-save"]
    what = f"{PED2_FRAMES:,} masks of {PED2_SIZE[1]}x{PED2_SIZE[0]}"
    commands += [
        (f"{what}: `--metrics pixel`", [*eval_, "--metrics", "pixel"]),
        (f"{what}: `--metrics pixel --pixel-size 158x238`", [*eval_, "--metrics", "pixel", "--pixel-size", "158x238"]),
        (f"{what}: everything", eval_),
    ]
    print(f"\n{machine()}; medians of {options.rounds} rounds; intervals by 1,000 resamples included\n")
    print("| what | s | CPU s | peak MiB |")
    print("|---|---|---|---|")
    for what, command in commands:
        runs: list[Run] = [run(command, memory=True) for _ in range(options.rounds)]
        wall_s, cpu_s, peak = (
            statistics.median(each) for each in zip(*((r.wall_s, r.cpu_s, r.peak_mib) for r in runs), strict=True)
        )
        print(f"| {what} | {wall_s:.1f} | {cpu_s:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
