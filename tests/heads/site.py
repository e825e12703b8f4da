"""Writes the results of scanned nights, with similar vectors for true and false events."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tests.evaluate.outputs import FPS, write_scan
from vadcli.store import OutputLayout
from vadcli.store.events import read_events
from vadcli.store.scores import EmbeddingsMetadata, StoredEmbeddings, write_embeddings
from vadcli.types import Embeddings, FloatArray

WIDTH = 32
NIGHT_S = 400
EVENT_S = 6
INTERVAL = 5
"""Two of ten frames per second are sampled."""


@dataclass(frozen=True)
class Site:
    """The properties of the results.

    Attributes:
        signal: distance between the vectors of true and of false events; 0 if they do not differ.
        true, false: number of events per night.
        encoder: name of the encoder.
        camera: name of the camera.
        shift: added to some numbers of each vector, to simulate another camera.
    """

    signal: float = 0.6
    true: int = 2
    false: int = 8
    encoder: str = "planted"
    camera: str = "gate"
    shift: float = 0.0


def make_site(out: Path, nights: int, site: Site = Site(), *, seed: int = 0, first: int = 0) -> dict[str, list[bool]]:
    """Write nights into an output folder; return video -> whether each event is true, by time.

    True and false events have similar scores. Their vectors are similar, too: they share a strong dimension, and differ by
    `signal` in another dimension.
    """
    draw = np.random.default_rng(seed)
    truth: dict[str, list[bool]] = {}
    for night in range(first, first + nights):
        video = f"{site.camera}/night-{night:02d}.mp4"
        labels = [bool(label) for label in draw.permutation([True] * site.true + [False] * site.false)]
        score = np.full(int(NIGHT_S * FPS), 0.1)
        content = np.zeros((len(score) // INTERVAL, WIDTH))
        for place, label in enumerate(labels):
            start = int((20 + place * (NIGHT_S - 40) / len(labels)) * FPS)
            rows = slice(start, start + int(EVENT_S * FPS))
            score[rows] = draw.uniform(0.55, 0.95)
            inside = slice(rows.start // INTERVAL, rows.stop // INTERVAL)
            content[inside, 1] += 1.0
            content[inside, 2] += site.signal * (1 if label else -1)
        write_scan(out, {video: score.tolist()}, interval=INTERVAL)
        write_vectors(out, video, content, site, seed=seed + night)
        truth[video] = labels
    return truth


def write_vectors(out: Path, video: str, content: FloatArray, site: Site, *, seed: int) -> None:
    """Write the vectors of a video: a part that all frames share, plus `content`, plus noise."""
    layout = OutputLayout(out)
    draw = np.random.default_rng([seed, 5])
    vectors = content + draw.normal(0.0, 0.15, content.shape)
    vectors[:, 0] += 2.0
    vectors[:, 3:8] += site.shift
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = np.arange(len(vectors), dtype=np.int64) * INTERVAL
    metadata = EmbeddingsMetadata(video, site.camera, site.encoder, f"key of {site.encoder}", "00", "content")
    path = layout.embeddings(video)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_embeddings(path, StoredEmbeddings(metadata, rows, rows / FPS, Embeddings.of(vectors.astype(np.float32))))


def review_of(out: Path, path: Path, truth: dict[str, list[bool]], videos: Sequence[str], *, flip: int | None = None) -> Path:
    """Write a review of all events of some videos; `flip` is a seed that shuffles the verdicts."""
    layout = OutputLayout(out)
    entries = []
    for video in videos:
        events = read_events(layout.events(video)).events
        assert len(events) == len(truth[video])
        for event, label in zip(events, truth[video], strict=True):
            span = {"start_s": event.start_s, "end_s": event.end_s, "peak_score": event.peak_score}
            entries.append({"video": video, **span, "verdict": "true" if label else "false"})
    if flip is not None:
        verdicts = [entry["verdict"] for entry in entries]
        for entry, place in zip(entries, np.random.default_rng(flip).permutation(len(entries)), strict=True):
            entry["verdict"] = verdicts[place]
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(entries[0]))
            table.writeheader()
            table.writerows(entries)
    else:
        path.write_text(json.dumps({"format_version": 1, "reviews": entries}))
    return path


def with_detector(out: Path, video: str, detector: str) -> None:
    """Change the name of the detector that scored a video."""
    from vadcli.store.events import write_events

    path = OutputLayout(out).events(video)
    write_events(path, replace(read_events(path), detector=detector))
