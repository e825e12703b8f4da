"""Measure time and memory of `vadcli learn` with many generated vectors and verdicts.

python benchmarks/learn.py [--vectors 100000] [--verdicts 1000] [--width 768]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vadcli.store import OutputLayout
from vadcli.store.events import EventsDocument, describe_video, write_events
from vadcli.store.scores import EmbeddingsMetadata, StoredEmbeddings, write_embeddings
from vadcli.types import Embeddings, Event, Thresholds

RATE_HZ, FPS, EVENT_S, VIDEOS = 2, 10, 20, 50


def main() -> None:
    """Make the folder, run the command, and print seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("vectors", 100_000), ("verdicts", 1_000), ("width", 768)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    print(f"load average of the machine: {os.getloadavg()[0]:.1f}, with {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        review = make(out, given.vectors // VIDEOS, given.verdicts // VIDEOS, given.width)
        for head in ("logistic", "retrieval"):
            command = [sys.executable, "-m", "vadcli", "learn", str(out), "--review", str(review), "--head", head, "--json"]
            started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            figures = json.loads(done.stdout)["figures"]
            gb = after.ru_maxrss / 2**20
            change = f"{figures['detector_per_hour']:.2f} to {figures['head_per_hour']:.2f} false alarms per hour"
            print(f"{head}: {seconds:.1f} s ({cpu:.1f} s of CPU time), at most {gb:.2f} GB; {change}")


def make(out: Path, rows: int, events: int, width: int) -> Path:
    """Write videos with vectors and events, and return a review of the events.

    A quarter of the events is true. The vectors of true and of false events differ in one dimension.
    """
    layout, draw, reviews = OutputLayout(out), np.random.default_rng(0), []
    for number in range(VIDEOS):
        video = f"gate/{number:03d}.mp4"
        vectors = draw.normal(0.0, 0.02, (rows, width)).astype(np.float32)
        vectors[:, 0] += 1.0
        timestamp = np.arange(rows) / RATE_HZ
        found = []
        for place in range(events):
            start_s, true = place * rows / RATE_HZ / events, bool(draw.random() < 0.25)
            inside = (timestamp >= start_s) & (timestamp < start_s + EVENT_S)
            vectors[inside, 1] += 0.1 * (1 if true else -1)
            score = float(draw.uniform(0.55, 0.95))
            first, last = int(start_s * FPS), int((start_s + EVENT_S) * FPS)
            found.append(Event(place + 1, first, last, start_s, start_s + EVENT_S, first, start_s, score, score))
            verdict = {"start_s": start_s, "end_s": start_s + EVENT_S, "peak_score": score, "verdict": str(true).lower()}
            reviews.append({"video": video, **verdict})
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        metadata = EmbeddingsMetadata(video, "gate", "made-up", "made-up", "00", "00")
        described = {**describe_video(video, "gate", frames=rows * FPS // RATE_HZ), "duration_s": rows / RATE_HZ}
        for path in (layout.embeddings(video), layout.events(video)):
            path.parent.mkdir(parents=True, exist_ok=True)
        index = np.arange(rows, dtype=np.int64) * (FPS // RATE_HZ)
        write_embeddings(layout.embeddings(video), StoredEmbeddings(metadata, index, timestamp, Embeddings.of(vectors)))
        write_events(layout.events(video), EventsDocument(described, "made-up", (), Thresholds(), tuple(found)))
    review = out.parent / "review.json"
    review.write_text(json.dumps({"format_version": 1, "reviews": reviews}))
    return review


if __name__ == "__main__":
    main()
