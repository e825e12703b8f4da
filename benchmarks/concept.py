"""Measure the detector `concept`: its encoders, a whole scan, scoring again, and searching.

The encoders have real sizes and random weights.

python benchmarks/concept.py [--parts encoder scan rescore search] [--encoders clip-b32 siglip2-b32] [--rounds N] [--hours 1000]

Writes each part into its section of benchmarks/results/concept.md as soon as the part is measured. The section also states
which promised figures were reached or missed. The sections of other parts stay. `--write ""` only prints.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from _measure import FFMPEG, VADCLI, WORK, Run, in_turn, looped, machine, made_video, median_ratio, run
from _real_sizes import REAL_SIZES, real_size_folder
from _vectors import forget, made_archive, stretch_to_an_hour
from PIL import Image

from vadcli.detectors.encoders import load_encoder
from vadcli.types import ByteArray

PAGE = Path(__file__).parent / "results" / "concept.md"
HEAD = """# Speed and memory of `concept`

`python benchmarks/concept.py` measured encoders of real sizes with random weights, on a shared machine. Other work ran at the
same time, so compare ratios and CPU seconds, not seconds. Each section was measured in one run.
"""
PICTURES = {1: 4, 8: 32, 32: 32}
"""Batch size -> number of pictures that a round encodes in batches of this size."""
DELIVERED = {"clip-b32": (398, 224), "siglip2-b32": (455, 256)}
"""The size (width, height) in which a scan delivers 16:9 frames to each encoder."""
CAMERAS = 50
CATEGORIES = ("@home", "@traffic", "@retail")


def main() -> None:
    """Measure the chosen parts; exit with 1 if a claim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--encoders", nargs="*", choices=list(REAL_SIZES), default=list(REAL_SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=int, default=5, help="length of the footage that is scanned")
    parser.add_argument(
        "--hours",
        type=int,
        default=1000,
        help="length of the archive that is searched; an hour takes 5.6 MB if vectors are bytes",
    )
    parser.add_argument("--write", default=str(PAGE), metavar="FILE", help="the page; empty to print only")
    options = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    folders = {name: real_size_folder(WORK / "concept" / name, name).absolute() for name in options.encoders}
    missed = False
    for part in options.parts:
        lines = PARTS[part](folders, options)
        policy = os.environ.get("OMP_WAIT_POLICY")
        command = f"OMP_WAIT_POLICY={policy} " if policy else ""
        command += f"python benchmarks/concept.py --parts {part} --encoders {' '.join(folders)} --rounds {options.rounds}"
        command += f" --minutes {options.minutes}" if part == "scan" else ""
        command += f" --hours {options.hours}" if part == "search" else ""
        text = "\n".join([f"Measured by `{command}` on {machine()}, torch {torch.__version__}.", "", *lines])
        print(f"\n## {TITLES[part]}\n\n{text}\n")
        missed |= "**missed**" in text
        if options.write:
            write_section(Path(options.write), TITLES[part], text)
    raise SystemExit(int(missed))


def write_section(page: Path, title: str, text: str) -> None:
    """Replace the section with this title, or add it."""
    head, *sections = (page.read_text() if page.exists() else HEAD).split("\n## ")
    kept = {section.partition("\n")[0]: section.partition("\n")[2].strip() for section in sections} | {title: text}
    page.write_text(
        "\n".join([head.rstrip() + "\n", *(f"## {name}\n\n{kept[name]}\n" for name in TITLES.values() if name in kept)])
    )


def claim(name: str, measured: float, *, least: float | None = None, most: float | None = None) -> str:
    """Return one line with the promised figure, the measured figure, and whether the promise is kept."""
    kept = (least is None or measured >= least) and (most is None or measured <= most)
    wanted = f">= {least:g}" if least is not None else f"<= {most:g}"
    return f"- {name}: {measured:.2f}, target {wanted}: {'reached' if kept else '**missed**'}"


# The encoder stage


def encoder_stage(folders: dict[str, Path], options: argparse.Namespace) -> list[str]:
    """Return the speed of each encoder and batch size, compared with a plain transformers loop."""
    frames = decoded(made_video("720p-60s.mp4", seconds=60, size="1280x720"))
    lines = [
        "The encoder of vadcli and a loop took turns, batch by batch, on decoded frames of 1280x720.",
        f"The loop is transformers' model with its PIL processor. Figures are medians; number of rounds: {options.rounds}.",
        "The ratios (x loop) compare wall times, or CPU times, of the same round.",
        "A scan calls the encoder with the 32 frames of a clip.",
        "The fourth column is for frames in the size that a scan delivers.",
        "`auto` is bf16 on a CPU with AMX.",
        "",
        "| encoder | batch | vadcli, pictures/s | from the size that a scan delivers | loop, pictures/s |"
        " processor's share of the loop | x loop | x loop, CPU | pictures per CPU second, vadcli | loop |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    claims = []
    kinds = [(name, folder, precision) for name, folder in folders.items() for precision in ("auto", "fp32")]
    for kind, folder, precision in kinds:
        name = folder.name
        small = np.stack([np.asarray(Image.fromarray(frame).resize(DELIVERED[name])) for frame in frames])
        encoder, loop = load_encoder(str(folder), device="cpu", precision=precision), PlainLoop(folder)
        encode = encoder.encode_images
        close(encode(frames[:8]), loop(frames[:8]), same_pixels=name != "clip-b32")
        speeds = {}
        for batch, count in PICTURES.items():
            rounds = [
                compare([(encode, frames), (encode, small), (loop, frames)], batch, count, loop) for _ in range(options.rounds)
            ]
            wall = [statistics.median(count / once[who][0] for once in rounds) for who in range(3)]
            speeds[batch] = wall
            cpu = [statistics.median(count / once[who][1] for once in rounds) for who in range(3)]
            share = statistics.median(once[3][0] / once[2][0] for once in rounds)
            ratio = median_ratio([once[2][0] for once in rounds], [once[0][0] for once in rounds])
            cpu_ratio = median_ratio([once[2][1] for once in rounds], [once[0][1] for once in rounds])
            lines.append(
                f"| {kind}, {precision} | {batch} | {wall[0]:.1f} | {wall[1]:.1f} | {wall[2]:.1f} | {share:.2f}"
                f" | {ratio:.2f} | {cpu_ratio:.2f} | {cpu[0]:.1f} | {cpu[2]:.1f} |"
            )
        if precision == "fp32":
            continue
        claims.append(claim(f"{name}, batch 32: speed relative to the loop in the same batches", ratio, least=1.5))
        one_by_one = speeds[32][0] / speeds[1][2]
        claims.append(claim(f"{name}, batch 32: speed relative to the loop, picture by picture", one_by_one, least=1.5))
    return [*lines, "", *claims]


class PlainLoop:
    """Encodes frames in the way that transformers' documentation shows; returns unit vectors."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPImageProcessorPil, CLIPModel, SiglipImageProcessorPil, SiglipModel

        is_clip = folder.name == "clip-b32"
        self.model: Any = (CLIPModel if is_clip else SiglipModel).from_pretrained(folder).eval()
        self.processor: Any = (CLIPImageProcessorPil if is_clip else SiglipImageProcessorPil).from_pretrained(folder)
        self.processor_s = 0.0

    def __call__(self, frames: ByteArray) -> np.ndarray:
        """Return (N, D) vectors."""
        started = time.perf_counter()
        inputs = self.processor([Image.fromarray(frame) for frame in frames], return_tensors="pt")
        self.processor_s += time.perf_counter() - started
        with torch.inference_mode():
            found = self.model.get_image_features(**inputs)
            vectors: Any = found if isinstance(found, torch.Tensor) else found.pooler_output
            return np.asarray(torch.nn.functional.normalize(vectors, dim=-1).numpy())


def compare(
    who: list[tuple[Callable[[ByteArray], Any], ByteArray]], batch: int, count: int, loop: PlainLoop
) -> list[tuple[float, float]]:
    """Return the (wall, CPU) seconds of each contestant, and last those of the loop's processor.

    The contestants take turns batch by batch.
    """
    spent = [[0.0, 0.0] for _ in who]
    loop.processor_s = 0.0
    for start in range(0, count, batch):
        for place, (encode, frames) in enumerate(who):
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            encode(frames[start : start + batch])
            spent[place][0] += time.perf_counter() - wall_s
            spent[place][1] += time.process_time() - cpu_s
    return [*((wall_s, cpu_s) for wall_s, cpu_s in spent), (loop.processor_s, 0.0)]


def close(ours: np.ndarray, theirs: np.ndarray, *, same_pixels: bool) -> None:
    """Exit with an error if the encoder and the loop do not compute the same vectors.

    CLIP's processor cuts off the sides of a picture, so its vectors only have to be similar.
    """
    least = float((ours * theirs).sum(axis=1).min())
    if least < (0.9999 if same_pixels else 0.5):
        raise SystemExit(f"the loop and the encoder disagree: cosine {least}")


def decoded(video: Path) -> ByteArray:
    """Return frames (N, 720, 1280, 3) from all parts of the video."""
    with av.open(str(video)) as container:
        found = [
            frame.to_ndarray(format="rgb24") for i, frame in enumerate(container.decode(video=0)) if i % 15 == 0 and i < 480
        ]
    return np.stack(found)[: max(PICTURES.values())].astype(np.uint8, copy=False)


# The whole scan


def whole_scan(folders: dict[str, Path], options: argparse.Namespace) -> list[str]:
    """Return how much faster than real time a scan is, for a new camera and for a camera with a model."""
    video = looped(made_video("720p-60s.mp4", seconds=60, size="1280x720"), f"720p-{options.minutes}min.mp4", options.minutes)
    seconds = 60.0 * options.minutes
    contestants: dict[str, Callable[[], Run]] = {}
    for name, folder in folders.items():
        known = WORK / f"concept-known-{name}"
        scan(video, folder, known)
        contestants[f"{name}: new camera"] = lambda folder=folder: scan(video, folder, WORK / "concept-out")  # type: ignore[misc]
        contestants[f"{name}: camera with a model"] = lambda folder=folder, known=known: scan(  # type: ignore[misc]
            video, folder, WORK / "concept-out", cameras=known / "cameras"
        )
    contestants["ffmpeg -f null"] = lambda: run([FFMPEG, "-v", "error", "-i", str(video), "-an", "-f", "null", "-"])
    found = in_turn(contestants, options.rounds)
    lines = [
        f"The video has {options.minutes} minutes of 1280x720 H.264 at 30 frames/s. A scan encodes two frames per second.",
        f"The times include the start of the process. Figures are medians; number of rounds: {options.rounds}.",
        "The last column is computed: the speed if two cores without other work were always busy.",
        "",
        "| what | s | CPU s | x real time | seconds of ffmpeg / seconds of this row | x real time by CPU |",
        "|---|---|---|---|---|---|",
    ]
    speeds = {}
    for what, runs in found.items():
        wall_s, cpu_s = (statistics.median(each) for each in zip(*((one.wall_s, one.cpu_s) for one in runs), strict=True))
        ratio = median_ratio([one.wall_s for one in found["ffmpeg -f null"]], [one.wall_s for one in runs])
        speeds[what] = seconds / wall_s
        lines.append(f"| {what} | {wall_s:.1f} | {cpu_s:.1f} | {speeds[what]:.2f} | {ratio:.2f} | {seconds / cpu_s * 2:.2f} |")
    return [
        *lines,
        "",
        *(claim(f"{what}: speed relative to real time", speed, least=4) for what, speed in speeds.items() if "camera" in what),
    ]


def scan(video: Path, encoder: Path, out: Path, *, cameras: Path | None = None) -> Run:
    """Scan into a new folder, with the camera models of another folder if they are given."""
    shutil.rmtree(out, ignore_errors=True)
    if cameras:
        shutil.copytree(cameras, out / "cameras")
    return run(scan_command(video, encoder, out, "@home"))


def scan_command(footage: Path, encoder: Path, out: Path, categories: str) -> list[str]:
    """Return the command line of a concept scan."""
    chosen = ["--detector", "concept", "--encoder", str(encoder), "--device", "cpu", "--categories", categories]
    return [*VADCLI, "scan", str(footage), "--out", str(out), *chosen, "--quiet"]


# Scoring again


def scored_again(folders: dict[str, Path], options: argparse.Namespace) -> list[str]:
    """Return the seconds per hour of footage of a scan after which only the categories changed.

    The difference between many hours and one hour gives the seconds per hour.
    """
    many = 21
    lines = [
        f"A second `vadcli scan`, with other categories, scored generated vectors of 1 hour and of {many} hours."
        f" Figures are medians; number of rounds: {options.rounds}.",
        "Each run also loads Python, torch, transformers and the text half of the encoder, and encodes about 200 sentences.",
        "",
        f"| encoder | 1 hour, s | CPU s | {many} hours, s | CPU s | one more hour, s | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    claims = []
    for name, folder in folders.items():
        with temporary() as base:
            outs = {count: made_hours(base / str(count), folder, count) for count in (1, many)}
            runs: dict[int, list[Run]] = {1: [], many: []}
            for number in range(options.rounds):
                for count, (footage, out) in outs.items():
                    runs[count].append(run(scan_command(footage, folder, out, CATEGORIES[1 + number % 2])))
        one, more = (
            (statistics.median(r.wall_s for r in runs[n]), statistics.median(r.cpu_s for r in runs[n])) for n in (1, many)
        )
        each = [(b - a) / (many - 1) for a, b in zip(one, more, strict=True)]
        lines.append(
            f"| {name} | {one[0]:.1f} | {one[1]:.1f} | {more[0]:.1f} | {more[1]:.1f} | {each[0]:.2f} | {each[1]:.2f} |"
        )
        claims.append(claim(f"{name}: seconds per hour of footage", each[0], most=1))
    return [*lines, "", *claims]


def made_hours(base: Path, encoder: Path, count: int) -> tuple[Path, Path]:
    """Scan short videos, and replace their results by those of whole hours.

    Return the footage and the output folder.
    """
    footage, out = base / "footage", base / "out"
    footage.mkdir(parents=True)
    source = "testsrc2=size=160x96:rate=30:duration=4"
    for number in range(count):
        path = footage / f"{number:03d}.mp4"
        made = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-metadata", f"title={number}", str(path)]
        subprocess.run([FFMPEG, "-v", "error", "-f", "lavfi", "-i", source, *made], check=True)
    run(scan_command(footage, encoder, out, CATEGORIES[0]))
    if stretch_to_an_hour(out) != count:
        raise SystemExit(f"{out}: not every video was scanned")
    return footage, out


# Searching


def searched(folders: dict[str, Path], options: argparse.Namespace) -> list[str]:
    """Return seconds and memory of searches in archives of random vectors.

    In one row, the vectors are only on disk. In the other rows, they are in the system's file cache.
    """
    lines = [
        f"The archive has {options.hours:,} videos of one hour, {CAMERAS} cameras with models, and two vectors per second.",
        f"Each search is a new process. Figures are medians; number of rounds: {options.rounds}.",
        "The row of 1 hour shows the cost of the start: Python, torch, transformers, the text half of the encoder,",
        "and the hash of its files.",
        "",
        "| encoder | archive | s | CPU s | peak RSS, MiB |",
        "|---|---|---|---|---|",
    ]
    claims = []
    for name, folder in folders.items():
        with temporary() as base:
            small, large = base / "small", base / "large"
            made_archive(small, folder, REAL_SIZES[name], hours=1, cameras=1)
            size = made_archive(large, folder, REAL_SIZES[name], hours=options.hours, cameras=CAMERAS)
            rows = {
                "1 hour": (small, False),
                f"{options.hours:,} hours, {size:.1f} GB": (large, False),
                f"{options.hours:,} hours, from the disk": (large, True),
            }
            runs: dict[str, list[Run]] = {row: [] for row in rows}
            for _ in range(options.rounds):
                for row, (out, cold) in rows.items():
                    if cold:
                        forget(out)
                    runs[row].append(peak_run([*VADCLI, "search", str(out), "a man climbing over a fence", "--device", "cpu"]))
        medians = {}
        for row, found in runs.items():
            medians[row] = [
                statistics.median(each) for each in zip(*((r.wall_s, r.cpu_s, r.peak_mib) for r in found), strict=True)
            ]
            lines.append(f"| {name} | {row} | {medians[row][0]:.1f} | {medians[row][1]:.1f} | {medians[row][2]:.0f} |")
        _, warm, _ = medians.values()
        claims.append(claim(f"{name}: seconds per search", warm[0], most=10))
        claims.append(claim(f"{name}: GB of memory", warm[2] * 2**20 / 1e9, most=1))
    return [*lines, "", *claims]


def peak_run(command: list[str]) -> Run:
    """Run a command without child processes, and return its cost; the kernel reports its peak memory."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            said.seek(0)
            raise SystemExit(
                f"{' '.join(command)} failed with {process.returncode}:\n{said.read().decode(errors='replace')[-2000:]}"
            )
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 2**20)


@contextmanager
def temporary() -> Iterator[Path]:
    """Yield a folder in benchmarks/work that is deleted afterwards."""
    with tempfile.TemporaryDirectory(dir=WORK, prefix="concept-") as folder:
        yield Path(folder)


PARTS = {"encoder": encoder_stage, "scan": whole_scan, "rescore": scored_again, "search": searched}
TITLES = {
    "encoder": "Encoder stage",
    "scan": "A whole scan",
    "rescore": "Other categories",
    "search": "Search",
}


if __name__ == "__main__":
    main()
