"""Makes scan outputs with hours of random vectors, to measure scoring again and searching."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vadcli.detectors.encoders import encoder_fingerprint, encoder_key
from vadcli.engine.cameras import write_camera
from vadcli.store import OutputLayout
from vadcli.store.events import EventsDocument, ScanState, write_events
from vadcli.store.scores import (
    EmbeddingsMetadata,
    StoredEmbeddings,
    read_embeddings,
    read_scores,
    write_embeddings,
    write_scores,
)
from vadcli.types import CameraModel, Embeddings, FloatArray, ScoreTable, Status, Thresholds

HOUR_S = 3600
RATE_HZ, FPS = 2, 30
CAMERA_SAMPLE = 320
"""Number of vectors in a camera model of a long archive: 20 bursts of 16 frames."""
BLOCKS = 8
"""Number of hours with vectors of their own. The other hours are copies with rotated vectors, which are made quickly."""


def unit_vectors(count: int, width: int, *, seed: int = 0) -> Embeddings:
    """Return random vectors of length 1."""
    vectors: FloatArray = np.random.default_rng(seed).standard_normal((count, width), np.float32)
    return Embeddings.of(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def made_archive(out: Path, encoder: Path, width: int, *, hours: int, cameras: int) -> float:
    """Write the output for `hours` videos of one hour: events documents, camera models and vectors.

    Return GB of vectors.
    """
    layout, key = OutputLayout(out), encoder_key(encoder_fingerprint(str(encoder)))
    rows = np.arange(HOUR_S * RATE_HZ, dtype=np.int64)
    blocks = [unit_vectors(len(rows), width, seed=seed) for seed in range(BLOCKS)]
    size = 0
    for number in range(hours):
        camera = f"camera-{number % cameras:03d}"
        video = f"{camera}/{number:05d}.mp4"
        block = blocks[number % BLOCKS]
        turned = Embeddings(np.roll(block.values, number // BLOCKS * 5, axis=1), block.scale)
        metadata = EmbeddingsMetadata(video, camera, str(encoder), key, "00" * 32, "00" * 32)
        for path in (layout.embeddings(video), layout.events(video), layout.camera(camera)):
            path.parent.mkdir(parents=True, exist_ok=True)
        if number < cameras:
            sample = unit_vectors(CAMERA_SAMPLE, width, seed=1000 + number)
            write_camera(layout.camera(camera), _camera(camera, sample))
        write_embeddings(layout.embeddings(video), StoredEmbeddings(metadata, rows * (FPS // RATE_HZ), rows / RATE_HZ, turned))
        write_events(layout.events(video), _document(video, camera))
        size += layout.embeddings(video).stat().st_size
    return size / 1e9


def _camera(camera: str, sample: Embeddings) -> CameraModel:
    bursts = np.repeat(np.arange(CAMERA_SAMPLE // 16), 16)
    arrays: dict[str, Any] = {
        "values": sample.values,
        "scale": sample.scale,
        "timestamp": np.arange(CAMERA_SAMPLE) / RATE_HZ,
        "burst": bursts,
    }
    return CameraModel(camera, "concept", 1, arrays, {"seconds": CAMERA_SAMPLE / RATE_HZ, "encoder": "made"})


def _document(video: str, camera: str) -> EventsDocument:
    described: dict[str, Any] = {
        "path": video,
        "camera": camera,
        "width": 1280,
        "height": 720,
        "rotation": 0,
        "fps": float(FPS),
        "duration_s": float(HOUR_S),
        "frames": HOUR_S * FPS,
        "moving_camera": None,
    }
    scan = ScanState(Status.DONE, "00" * 32, {})
    return EventsDocument(described, "concept", (), Thresholds(0.5, 0.4, 0.5, 2.0), scan=scan)


def stretch_to_an_hour(out: Path) -> int:
    """Replace each video's scores and vectors by those of one hour; return the number of videos."""
    layout = OutputLayout(out)
    rows = np.arange(HOUR_S * FPS, dtype=np.int64)
    videos = 0
    for number, path in enumerate(layout.iter_embeddings()):
        stored = read_embeddings(path)
        table, metadata = read_scores(layout.scores(stored.metadata.video))
        sampled = rows % (FPS // RATE_HZ) == 0
        step = int(table.pts[1] - table.pts[0])
        zero = np.zeros(len(rows), np.float32)
        table = ScoreTable(table.video, rows, rows * step, rows / FPS, zero, zero, sampled, rows >= 0)
        probe = {**metadata.video, "frames": len(rows), "fps": float(FPS), "duration_s": float(HOUR_S)}
        write_scores(layout.scores(table.video), table, replace(metadata, video=probe))
        vectors = unit_vectors(int(sampled.sum()), stored.embeddings.values.shape[1], seed=number)
        write_embeddings(path, StoredEmbeddings(stored.metadata, rows[sampled], rows[sampled] / FPS, vectors))
        videos += 1
    return videos


def forget(out: Path) -> None:
    """Ask the system to drop the vectors from its memory, so that the next reader has to read the disk."""
    for path in OutputLayout(out).iter_embeddings():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
