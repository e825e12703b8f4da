"""Score curves small enough for a page: the highest score of each stretch of a video, a byte a stretch."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import numpy as np

from vadcli.errors import DocumentError
from vadcli.outputs.curve import column_maxima
from vadcli.outputs.layout import OutputLayout
from vadcli.outputs.scores import read_scores
from vadcli.report.archive import VideoStory
from vadcli.types import FloatArray, ScoreTable

FEWEST_POINTS = 2
NO_SCORE = 255
LEVELS = 254


def points_for(durations_s: Sequence[float], budget: int) -> list[int]:
    """How many points each video gets of a budget: in proportion to its length, at least `FEWEST_POINTS`."""
    total = sum(durations_s)
    shares = [budget * duration / total if total > 0 else 0.0 for duration in durations_s]
    return [max(FEWEST_POINTS, int(share)) for share in shares]


def peaks(table: ScoreTable, duration_s: float, points: int) -> FloatArray:
    """(points,) float32: the highest score shown in each of as many equal stretches, NaN where there is none.

    There are never more points than frames.
    """
    points = max(1, min(points, len(table)))
    end_s = max(duration_s, float(table.timestamp[-1])) if len(table) else duration_s
    edges = np.linspace(0.0, max(end_s, 1e-6), points + 1)
    return column_maxima(table.timestamp, table.score, edges) if len(table) else np.full(points, np.nan, np.float32)


def pack(values: FloatArray) -> str:
    """Scores in [0, 1] as base64 of a byte each, 0 to `LEVELS`; `NO_SCORE` stands for NaN."""
    levels = np.where(np.isnan(values), NO_SCORE, np.rint(np.nan_to_num(values) * LEVELS))
    return base64.b64encode(levels.astype(np.uint8).tobytes()).decode()


def packed_curves(
    layout: OutputLayout, cameras: Mapping[str, Sequence[VideoStory]], *, budget: int, problems: list[str]
) -> dict[str, str]:
    """Video -> packed curve, of every video that has scores; files that can't be read go to `problems`, a line each."""
    videos = [video for some in cameras.values() for video in some]
    shares = points_for([video.duration_s for video in videos], budget)
    found = {}
    for video, points in zip(videos, shares, strict=True):
        try:
            table, _ = read_scores(layout.scores(video.video))
        except DocumentError as error:
            problems.append(error.message)
            continue
        found[video.video] = pack(peaks(table, video.duration_s, points))
    return found
