"""Writes given scores as a scan would write them, so that `vadcli eval` can read them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from vadcli import __version__
from vadcli.cutting import cut_events
from vadcli.store import OutputLayout
from vadcli.store.events import EventsDocument, ScanState, write_events
from vadcli.store.masks import MaskVideoWriter
from vadcli.store.scores import ScoresMetadata, write_scores
from vadcli.types import ByteArray, FloatArray, ScoreTable, Status, Thresholds

THRESHOLDS = Thresholds(high=0.5, low=0.4, min_duration_s=0.3, merge_gap_s=2.0)
FINGERPRINT = "00" * 32
LOGIT_LIMIT = 20.0


@dataclass(frozen=True)
class Scored:
    """The scores of one video.

    Attributes:
        video: relative path.
        fps: frames per second, evenly spaced.
        width, height: display size in pixels.
        scores: (N,) in [0, 1], one per frame.
        masks: N masks (height, width) uint8, one per frame; empty for a video without masks.
    """

    video: str
    fps: float
    width: int
    height: int
    scores: FloatArray
    masks: Iterable[ByteArray] = ()


def write_output(out: Path, videos: Iterable[Scored], *, detector: str) -> Path:
    """Write a new output folder with the scores, with events (cut with THRESHOLDS), and with the masks."""
    shutil.rmtree(out, ignore_errors=True)
    layout = OutputLayout(out)
    for scored in videos:
        for path in (layout.scores(scored.video), layout.events(scored.video), layout.mask_video(scored.video)):
            path.parent.mkdir(parents=True, exist_ok=True)
        _write(layout, scored, detector)
    return out


def _write(layout: OutputLayout, scored: Scored, detector: str) -> None:
    count = len(scored.scores)
    rows, every = np.arange(count, dtype=np.int64), np.ones(count, np.bool_)
    score = np.asarray(scored.scores, np.float32)
    with np.errstate(divide="ignore"):
        logit = np.clip(np.log(score) - np.log1p(-score), -LOGIT_LIMIT, LOGIT_LIMIT)
    table = ScoreTable(scored.video, rows, rows, rows / scored.fps, score, logit, every, every)
    video = {
        "path": scored.video,
        "camera": ".",
        "width": scored.width,
        "height": scored.height,
        "rotation": 0,
        "fps": scored.fps,
        "duration_s": count / scored.fps,
        "frames": count,
        "moving_camera": None,
    }
    events = cut_events(table, THRESHOLDS, duration_s=count / scored.fps)
    scan = ScanState(Status.DONE, FINGERPRINT, {})
    write_events(layout.events(scored.video), EventsDocument(video, detector, (), THRESHOLDS, tuple(events), scan=scan))
    metadata = ScoresMetadata(__version__, FINGERPRINT, {}, video, (), f"1/{scored.fps:g}", detector, ".")
    write_scores(layout.scores(scored.video), table, metadata)
    _write_masks(layout.mask_video(scored.video), scored)


def _write_masks(path: Path, scored: Scored) -> None:
    masks = iter(scored.masks)
    first = next(masks, None)
    if first is None:
        return
    with MaskVideoWriter(path, scored.width, scored.height, fps=scored.fps) as writer:
        for number, mask in enumerate(chain([first], masks)):
            writer.write(mask, number / scored.fps)
