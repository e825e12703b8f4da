"""Writes scores, events and masks as a scan writes them, but without a scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tests.store.documents import DOCUMENT
from vadcli.cutting import cut_events
from vadcli.store import OutputLayout
from vadcli.store.events import write_events
from vadcli.store.masks import MaskRleWriter, MaskVideoWriter
from vadcli.store.scores import ScoresMetadata, shown_s, write_scores
from vadcli.types import ScoreTable, Thresholds

FPS = 10.0
SIZE = (24, 32)
THRESHOLDS = Thresholds(0.5, 0.4, 0.0, 0.0)


@dataclass(frozen=True)
class Odd:
    """Unusual features of a scan.

    Attributes:
        promised: video -> number of frames in the container, if it differs from the number of rows.
        damaged: video -> rows that were decoded with errors.
        run_lengths: True stores masks only as run lengths.
        detector: name of the detector.
    """

    promised: dict[str, int] = field(default_factory=dict)
    damaged: dict[str, Sequence[int]] = field(default_factory=dict)
    run_lengths: bool = False
    detector: str = "fake"


def write_scan(
    out: Path,
    videos: Mapping[str, Sequence[float] | np.ndarray],
    *,
    masks: dict[str, np.ndarray] | None = None,
    interval: int = 1,
    root: Path | None = None,
    odd: Odd | None = None,
) -> Path:
    """Write an output folder, and return its path.

    Args:
        videos: video -> one score per row; every `interval`-th row is sampled.
        masks: video -> masks of the sampled rows, (S, H, W) uint8.
        root: the folder of the videos for the metadata; it does not have to exist.
    """
    layout, odd = OutputLayout(out), odd or Odd()
    for video, values in videos.items():
        rows = np.arange(len(values), dtype=np.int64)
        score = np.asarray(values, np.float32)
        logit = np.log(np.clip(score, 1e-6, 1 - 1e-6) / (1 - np.clip(score, 1e-6, 1 - 1e-6))).astype(np.float32)
        decode_ok = ~np.isin(rows, odd.damaged.get(video, ()))
        table = ScoreTable(video, rows, rows, rows / FPS, score, logit, rows % interval == 0, decode_ok)
        frames = odd.promised.get(video, len(values))
        probe = {"frames": frames, "fps": FPS, "duration_s": frames / FPS, "width": SIZE[1], "height": SIZE[0]}
        events = cut_events(table, THRESHOLDS, duration_s=shown_s(table, probe))
        described = {**DOCUMENT.video, "path": video, "frames": len(values), "fps": FPS, "duration_s": frames / FPS}
        document = replace(DOCUMENT, video=described, thresholds=THRESHOLDS, events=tuple(events))
        for path in (layout.scores(video), layout.events(video)):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_events(layout.events(video), document)
        metadata = ScoresMetadata("0", "ab" * 32, {"root": str(root)} if root else {}, probe, (), "1/10", odd.detector, ".")
        write_scores(layout.scores(video), table, metadata)
        if masks and video in masks:
            _write_masks(layout, video, masks[video], interval, run_lengths=odd.run_lengths)
    return out


def _write_masks(layout: OutputLayout, video: str, masks: np.ndarray, interval: int, *, run_lengths: bool) -> None:
    layout.mask_video(video).parent.mkdir(parents=True, exist_ok=True)
    if run_lengths:
        with MaskRleWriter(layout.mask_rle(video), video, SIZE[1], SIZE[0]) as runs:
            for number, mask in enumerate(masks):
                runs.write(mask, number * interval, number * interval)
        return
    with MaskVideoWriter(layout.mask_video(video), SIZE[1], SIZE[0], fps=FPS) as writer:
        for number, mask in enumerate(masks):
            writer.write(mask, number * interval / FPS)


def write_truth(path: Path, lines: Sequence[str]) -> Path:
    """Write a ground truth in CSV with these rows, and return its path."""
    path.write_text("\n".join(["video,start_s,end_s,category", *lines]) + "\n")
    return path
