"""Outputs of scans that never ran: scores, events and masks written as a scan writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.outputs.documents import DOCUMENT
from vadcli.events import cut_events
from vadcli.outputs.event_json import write_events
from vadcli.outputs.layout import OutputLayout
from vadcli.outputs.mask_video import MaskVideoWriter
from vadcli.outputs.scores import ScoresMetadata, write_scores
from vadcli.types import ScoreTable, Thresholds

FPS = 10.0
SIZE = (24, 32)
THRESHOLDS = Thresholds(0.5, 0.4, 0.0, 0.0)


def write_scan(
    out: Path,
    videos: dict[str, Sequence[float]],
    *,
    masks: dict[str, np.ndarray] | None = None,
    interval: int = 1,
    root: Path | None = None,
) -> Path:
    """An output folder with these scores a row, every `interval`-th sampled; (S, H, W) uint8 masks a video where given; `root`
    is where the footage is said to lie."""
    layout = OutputLayout(out)
    for video, values in videos.items():
        rows = np.arange(len(values), dtype=np.int64)
        score = np.asarray(values, np.float32)
        logit = np.log(np.clip(score, 1e-6, 1 - 1e-6) / (1 - np.clip(score, 1e-6, 1 - 1e-6))).astype(np.float32)
        table = ScoreTable(video, rows, rows, rows / FPS, score, logit, rows % interval == 0, np.ones(len(rows), np.bool_))
        duration_s = len(values) / FPS
        probe = {"frames": len(values), "fps": FPS, "duration_s": duration_s, "width": SIZE[1], "height": SIZE[0]}
        events = cut_events(table, THRESHOLDS, duration_s=duration_s)
        described = {**DOCUMENT.video, "path": video, "frames": len(values), "fps": FPS, "duration_s": duration_s}
        document = replace(DOCUMENT, video=described, thresholds=THRESHOLDS, events=tuple(events))
        for path in (layout.scores(video), layout.events(video)):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_events(layout.events(video), document)
        metadata = ScoresMetadata("0", "ab" * 32, {"root": str(root)} if root else {}, probe, (), "1/10", "fake", ".")
        write_scores(layout.scores(video), table, metadata)
        if masks and video in masks:
            layout.mask_video(video).parent.mkdir(parents=True, exist_ok=True)
            with MaskVideoWriter(layout.mask_video(video), SIZE[1], SIZE[0], fps=FPS) as writer:
                for number, mask in enumerate(masks[video]):
                    writer.write(mask, number * interval / FPS)
    return out


def write_truth(path: Path, lines: Sequence[str]) -> Path:
    """A CSV truth of these rows."""
    path.write_text("\n".join(["video,start_s,end_s,category", *lines]) + "\n")
    return path
