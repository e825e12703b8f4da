"""Measure the commands that read an OUT with many videos.

    python benchmarks/many.py [--videos 50000 200000] [--commands resume status] [--keep]

Three short videos are scanned: a video without events, a video that gets an event, and a file that cannot be read. Their
results are then copied under the names of all other videos: scores, documents and random vectors per video, a model per camera,
and a run record that lists all videos. So a scan finds all videos done. In each camera of 1,000 videos, 200 have an event and
one has failed. The copied videos themselves are empty files of the right size.

The files are in the page cache as far as they fit, as after a scan. On network storage, add the time of its metadata
operations.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from _measure import FFMPEG, VADCLI, WORK, machine
from _real_sizes import REAL_SIZES, real_size_folder
from _vectors import unit_vectors

from vadcli.detectors.encoders import encoder_fingerprint, encoder_key
from vadcli.engine.cameras import read_camera, write_camera
from vadcli.engine.job import ScanIdentity
from vadcli.engine.recut import recut
from vadcli.engine.runner import choose_detector, effective_needs
from vadcli.options import ScanOptions
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch
from vadcli.store.events import read_events
from vadcli.store.scores import EmbeddingsMetadata, StoredEmbeddings, read_scores, write_embeddings, write_scores
from vadcli.types import Footage

FOOTAGE, OUT = WORK / "many", WORK / "many-out"
ENCODER = "clip-b32"
VIDEOS_PER_CAMERA = 1000
EVENT_EVERY = 5
QUIET, EVENT, BROKEN = (f"0000/{number:06d}.mp4" for number in range(3))
VECTORS = 12  # two per second


@dataclass(frozen=True)
class Cost:
    """Wall seconds, CPU seconds and peak MiB of a command."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def measured(*arguments: str) -> Cost:
    """Run vadcli to its end, and return its cost.

    A process in between reads the peak memory of vadcli alone.
    """
    code = (
        "import resource, runpy, subprocess, sys, time\n"
        "began = time.monotonic()\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)\n"
        "sys.stderr.buffer.write(done.stderr)\n"
        "raise SystemExit(done.returncode)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *VADCLI, *arguments], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):  # 3: some videos have failed, as planned
        raise SystemExit(f"vadcli {' '.join(arguments)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    return Cost(*map(float, done.stdout.split()))


def make(count: int) -> None:
    """Make an archive of `count` videos (at least 3) and its OUT."""
    for folder in (FOOTAGE, OUT):
        shutil.rmtree(folder, ignore_errors=True)
    (FOOTAGE / QUIET).parent.mkdir(parents=True)
    noise = ["-f", "lavfi", "-i", "color=gray:size=160x120:rate=10:duration=6,noise=alls=4:allf=t", "-pix_fmt", "yuv420p"]
    subprocess.run([FFMPEG, "-v", "error", "-y", *noise, str(FOOTAGE / QUIET)], check=True)
    shutil.copy(FOOTAGE / QUIET, FOOTAGE / EVENT)
    (FOOTAGE / BROKEN).write_text("not a video")
    measured("scan", str(FOOTAGE), "--root", str(FOOTAGE), "--out", str(OUT), "--detector", "motion", "--workers", "1")
    copies = Copies(OutputLayout(OUT))
    names: list[str] = []
    for number in range(-(-count // VIDEOS_PER_CAMERA)):
        names += copies.make(f"{number:04d}", min(VIDEOS_PER_CAMERA, count - number * VIDEOS_PER_CAMERA))
    copies.list_in_record(names)


@dataclass
class Copies:
    """Writes the results of the three scanned videos under other names.

    All names have the same length, and no file is compressed. So replacing the name and the fingerprint in the bytes of a
    result gives the result of another video.
    """

    layout: OutputLayout

    def __post_init__(self) -> None:
        self.model = read_camera(self.layout.camera("0000"))
        self.encoder = real_size_folder(WORK / "concept" / ENCODER, ENCODER).absolute()
        self.key = encoder_key(encoder_fingerprint(str(self.encoder)))
        options = ScanOptions(detector="motion")
        detector = choose_detector(options)
        needs = effective_needs(detector, options)
        self.identity = ScanIdentity.of(detector, needs, decoder="auto", fps=None, categories=())
        self.run = next(self.layout.iter_runs())
        self.results = {entry["video"]: entry for entry in json.loads(self.run.read_bytes())["files"]}
        with Scratch(self.layout.scratch) as scratch:
            table, metadata = read_scores(self.layout.scores(EVENT))
            score = np.where(np.abs(np.arange(len(table)) - 30) < 10, np.float32(0.9), table.score)
            write_scores(self.layout.scores(EVENT), replace(table, score=score), metadata)
            recut(self.layout, scratch, EVENT, read_events(self.layout.events(EVENT)).thresholds)
        self.documents = {video: json.loads(self.layout.events(video).read_bytes()) for video in (QUIET, EVENT, BROKEN)}
        self.scores = {video: self._plain(self.layout.scores(video)) for video in (QUIET, EVENT)}
        self.vectors = self._vectors()

    def _plain(self, path: Path) -> bytes:
        table = pq.read_table(path)
        pq.write_table(table, path, compression="none")
        return path.read_bytes()

    def _vectors(self) -> tuple[bytes, bytes]:
        """Return two parts of the vector file of QUIET: the bytes before and after the vectors."""
        some = unit_vectors(VECTORS, REAL_SIZES[ENCODER])
        metadata = EmbeddingsMetadata(QUIET, "0000", str(self.encoder), self.key, "00" * 32, "00" * 32)
        rows = np.arange(VECTORS, dtype=np.int64)
        path = self.layout.embeddings(QUIET)
        path.parent.mkdir(parents=True)
        write_embeddings(path, StoredEmbeddings(metadata, rows * 5, rows / 2, some))
        before, after = path.read_bytes().split(some.values.tobytes())
        return before, after

    def make(self, camera: str, count: int) -> list[str]:
        """Write a camera model and the results of `count` videos, and return the names of the videos."""
        for folder in (FOOTAGE, *(OUT / kind for kind in ("scores", "events", "embeddings"))):
            (folder / camera).mkdir(exist_ok=True)
        model = replace(self.model, camera=camera, footage=Footage(count, 3600.0, 1 << 40))
        write_camera(self.layout.camera(camera), model)
        first = int(camera) * VIDEOS_PER_CAMERA
        names = [f"{camera}/{first + number:06d}.mp4" for number in range(count)]
        kinds = [kind_of(number) for number in range(count)]
        prints = {
            kind: self.identity.fingerprint(one["scan"]["source"]["content"], model) for kind, one in self.documents.items()
        }
        stats = {kind: (FOOTAGE / kind).stat() for kind in self.documents}
        texts = {
            kind: json.dumps(one).replace(one["scan"]["fingerprint"], prints[kind]) for kind, one in self.documents.items()
        }
        scores = {
            kind: data.replace(self.documents[kind]["scan"]["fingerprint"].encode(), prints[kind].encode())
            for kind, data in self.scores.items()
        }
        for name, kind in zip(names, kinds, strict=True):
            text = texts[kind].replace(kind, name).replace('"camera": "0000"', f'"camera": "{camera}"')
            (OUT / "events" / f"{name}.json").write_text(text)
            if kind != BROKEN:
                (OUT / "scores" / f"{name}.parquet").write_bytes(scores[kind].replace(kind.encode(), name.encode()))
                vectors = (random.randbytes(VECTORS * REAL_SIZES[ENCODER])).join(self.vectors)
                own = vectors.replace(QUIET.encode(), name.encode()).replace(
                    b'"camera": "0000"', f'"camera": "{camera}"'.encode()
                )
                (OUT / "embeddings" / f"{name}.parquet").write_bytes(own)
            if name not in self.documents:
                footage = os.open(FOOTAGE / name, os.O_CREAT | os.O_WRONLY)
                os.truncate(footage, stats[kind].st_size)
                os.utime(footage, ns=(stats[kind].st_atime_ns, stats[kind].st_mtime_ns))
                os.close(footage)
        return names

    def list_in_record(self, names: list[str]) -> None:
        """Write all videos into the run record, as after the first scan of an archive."""
        record = json.loads(self.run.read_bytes())
        lines = {kind: json.dumps(entry) for kind, entry in self.results.items()}
        with self.run.open("w") as file:
            file.write(json.dumps({**record, "files": []}, indent=2).removesuffix("]\n}"))
            for place, name in enumerate(names):
                kind = kind_of(place % VIDEOS_PER_CAMERA)
                line = lines[kind].replace(kind, name).replace('"camera": "0000"', f'"camera": "{name[:4]}"')
                file.write(("," if place else "") + "\n    " + line)
            file.write("\n  ]\n}\n")


def kind_of(number: int) -> str:
    """Return the scanned video whose results are copied for video `number` of a camera."""
    return BROKEN if number == 2 else EVENT if number % EVENT_EVERY == 1 else QUIET


COMMANDS = {
    "plan": ["scan", str(FOOTAGE), "--out", str(OUT), "--detector", "motion", "--dry-run"],
    "resume": ["scan", str(FOOTAGE), "--out", str(OUT), "--detector", "motion", "--quiet", "--max-runtime", "30m"],
    "status": ["status", str(OUT)],
    "report": ["report", str(OUT), "--to", str(WORK / "many.html"), "--thumbnails", "0"],
    "search": ["search", str(OUT), "a red car", "--device", "cpu"],
    "events": ["events", str(OUT), "--format", "csv"],
    "prune": ["prune", str(OUT), "--dry-run"],
}


def main() -> None:
    """Print one row per command and number of videos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--keep", action="store_true", help="keep the archive, and use an archive that was kept")
    parser.add_argument("--commands", nargs="+", choices=tuple(COMMANDS), default=list(COMMANDS))
    options = parser.parse_args()
    print(f"\n{machine()}\n")
    print("| videos | command | wall s | CPU s | peak MiB | run records, MiB |\n|---|---|---|---|---|---|")
    for count in options.videos:
        if not (options.keep and OUT.exists()):
            began = time.monotonic()
            make(count)
            print(f"  made {count:,} videos in {time.monotonic() - began:.0f} s", file=sys.stderr)
        for name in options.commands:
            cost = measured(*COMMANDS[name])
            records = sum(path.stat().st_size for path in (OUT / "runs").iterdir()) / 2**20
            print(
                f"| {count:,} | {name} | {cost.wall_s:.1f} | {cost.cpu_s:.1f} | {cost.peak_mib:.0f} | {records:.1f} |",
                flush=True,
            )
    for folder in () if options.keep else (FOOTAGE, OUT):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
