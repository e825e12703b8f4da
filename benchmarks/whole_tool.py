"""Compare two frame AUCs of the small checkpoint: by the commands of vadcli, and by the trainer.

The commands scan and evaluate synthetic videos. The trainer's code scores the drawn frames, which are not compressed. The
two frame AUCs should differ by at most 0.01.

    python benchmarks/whole_tool.py --model weights/lavida-tiny --videos 20 --write benchmarks/whole_tool.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from vadcli.detectors.lavida import checkpoint
from vadcli.detectors.lavida.model import Lavida
from vadcli.metrics.frame import FrameSet, frame_auc
from vadcli.train.samples import ExposureSample
from vadcli.train.step import ExposureStep

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout: tools/ is not part of the wheel
from tools.tiny_world import SyntheticWorld, WorldOptions
from tools.tiny_world.truth import Answer, fits
from tools.tiny_world.videos import TRUTH_FILE, VideoOptions, draw_video, video_frames, write_videos
from tools.tiny_world.world import parsed

SEED = 20_263
LISTS = (
    ("red star", "blue ring", "green cross"),
    ("purple star", "red square"),  # pairs never shown in training
    ("something falling", "something circling", "something growing"),
)
INTERVAL = 4  # a scan samples every 4th frame of videos with 30 frames per second


ABOUT = (
    "The accuracy of `lavida-tiny` is computed in two ways:",
    "- **commands of `vadcli`**: the videos are written as MP4, scanned with `--masks video`, and evaluated with",
    "  `vadcli eval`;",
    "- **trainer's own code**: this code scores the drawn frames, which are not compressed.",
    "",
    "The commands of `vadcli` and the trainer's own code score the same videos from the test split of the synthetic world. A",
    "video lasts 12 s and has 30 frames per second. Seven of ten videos show one of the categories.",
    "",
    "The figures are frame AUCs over all frames of all videos.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("weights/lavida-tiny"))
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument(
        "--keep", type=Path, help="folder for videos and results, which are kept; by default a temporary folder"
    )
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    chosen = parser.parse_args()
    model = checkpoint.load(chosen.model).requires_grad_(False)
    lines = [
        "# The small checkpoint through the whole tool",
        "",
        f"`python benchmarks/whole_tool.py --model {chosen.model} --videos {chosen.videos}` measured the figures on",
        "this page.",
        "",
        *ABOUT,
        "",
        "| categories | commands of `vadcli` | trainer's own code | difference | videos |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = chosen.keep or Path(temporary)
        for number, names in enumerate(LISTS):
            through = by_the_tool(chosen.model, root / str(number), names, chosen.videos)
            own = by_the_trainer(model, names, chosen.videos)
            cells = f"{through:.4f} | {own:.4f} | {through - own:+.4f} | {chosen.videos}"
            lines.append(f"| {', '.join(names)} | {cells} |")
            print(lines[-1], flush=True)
    if chosen.write:
        chosen.write.write_text("\n".join([*lines, ""]), encoding="utf-8")


def world_of(videos: int) -> SyntheticWorld:
    return SyntheticWorld(WorldOptions(), seed=SEED, split="test", length=videos)


def by_the_tool(model: Path, folder: Path, names: tuple[str, ...], videos: int) -> float:
    """Return the frame AUC that `vadcli eval` reports for the output of `vadcli scan`."""
    footage, out = folder / "footage", folder / "out"
    write_videos(footage, world_of(videos), range(videos), categories=names)
    scan = ["scan", footage, "--out", out, "--detector", "lavida", "--model", model.absolute(), "--masks", "video", "--quiet"]
    command(*scan, "--categories", ",".join(names))
    found = json.loads(command("eval", out, "--root", footage / TRUTH_FILE, "--metrics", "frame", "--json"))
    return float(found["metrics"]["frame"]["auc_micro"]["value"])


def command(*arguments: object) -> str:
    done = subprocess.run([sys.executable, "-m", "vadcli", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"vadcli {arguments[0]} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def by_the_trainer(model: Lavida, names: tuple[str, ...], videos: int) -> float:
    """Return the frame AUC of the same videos. Every fourth drawn frame is scored."""
    step = ExposureStep(model, masks=1).eval()
    scores, labels = [], []
    for frames, shown in videos_of(names, videos):
        sampled = frames[::INTERVAL]
        logits = np.concatenate(list(judged(step, sampled, names)))[-len(sampled) :]
        scores.append(np.repeat(logits, INTERVAL)[: len(frames)])
        labels.append(shown)
    value = frame_auc(FrameSet.of(scores, labels)).value
    assert value is not None
    return value


def videos_of(names: tuple[str, ...], videos: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the frames (N, H, W, 3) of each video, and labels (N,): True if they show a named object."""
    world, options = world_of(videos), VideoOptions()
    wanted = [parsed(name) for name in names]
    for index in range(videos):
        scene = draw_video(world, index, wanted, options)
        roles = [thing.role for thing in scene.cast if thing.role is not None]
        meant = np.array([any(fits(role, name) is Answer.TRUE for name in wanted) for role in roles])
        parts = list(video_frames(scene, world.options.size_px, options))
        frames = np.concatenate([frames for frames, _ in parts])
        masks = np.concatenate([masks.any(axis=(2, 3)) for _, masks in parts], axis=1)  # (K, N)
        yield frames, np.asarray(masks[meant].any(axis=0))


def judged(step: ExposureStep, frames: np.ndarray, names: tuple[str, ...]) -> Iterator[np.ndarray]:
    """Yield the scores of consecutive clips; the last clip is shifted back and gives only its new scores."""
    length = step.model.config.sampling.frames
    for start in range(0, len(frames), length):
        first = min(start, len(frames) - length)
        clip = frames[first : first + length]
        nothing = np.zeros(clip.shape[:3], np.bool_)
        sample = ExposureSample("clip", clip, names, nothing, np.asarray(nothing.any(axis=(1, 2))), False)
        yield torch.sigmoid(step.judge([sample]).object_logit[0]).numpy()[start - first :]


if __name__ == "__main__":
    main()
