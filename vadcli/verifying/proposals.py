"""Chooses the clips that a second model is asked about: proposals, an audit, and a sample of each camera.

Proposals are the clips around the highest scores of the first stage. The audit is drawn at random from all other clips, so that
it shows what the first stage misses. All choices are functions of the scores, the videos and a seed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vadcli.engine.verified import ClipGrid
from vadcli.types import BoolArray, FloatArray, ScoreTable, TimeArray

GROW_S = 5.0
"""The score of a clip is the highest score within this many seconds of its middle, or in its cell if that is longer."""
SAMPLE_CLIPS = 8
"""Up to this many random clips per camera are asked in any case, to learn how the model usually answers there.

A camera with few proposals needs fewer, so that a short archive is not asked as a whole (see `SAMPLE_PART` and `FEWEST`).
"""
SAMPLE_PART = 5
"""A camera with few proposals needs only one random clip per this many proposals."""
FEWEST = 2
"""Every camera needs at least this many random clips, even if it has few proposals."""


@dataclass(frozen=True)
class Candidates:
    """The clips of one video that can be asked.

    Attributes:
        video: relative path.
        camera: the camera's name.
        score: (C,) float32, the highest logit of the first stage close to each clip.
        start, end: (C,) float64 seconds, the span that each clip shows.
        length_s: (C,) float64 seconds, the length of the cell for which each clip stands.
        draw: (C,) float64 in [0, 1), a random number per clip; clips with the lowest numbers are drawn first.
    """

    video: str
    camera: str
    score: FloatArray
    start: TimeArray
    end: TimeArray
    length_s: TimeArray
    draw: TimeArray

    @classmethod
    def of(cls, camera: str, table: ScoreTable, grid: ClipGrid, *, content: str, seed: int) -> Candidates:
        """Return the clips of a scanned video. Equal content and seed give equal random numbers."""
        digest = hashlib.sha256(f"{seed} {content}".encode()).digest()
        draw = np.random.default_rng(int.from_bytes(digest[:8])).random(len(grid))
        first = np.searchsorted(table.timestamp, np.minimum(grid.middle - GROW_S, grid.edges[:-1]), "right") - 1
        last = np.searchsorted(table.timestamp, np.maximum(grid.middle + GROW_S, grid.edges[1:]), "left")
        first = first.clip(0, len(table) - 1)
        score = np.maximum.reduceat(np.append(table.logit, -np.inf), np.stack([first, last], axis=1).ravel())[::2]
        return cls(table.video, camera, score.astype(np.float32), grid.start, grid.end, grid.length_s, draw)

    def shown_s(self, clips: BoolArray) -> float:
        """Return how many seconds of the video the given clips show. Seconds that two clips show count once."""
        start, end = self.start[clips], self.end[clips]
        before = np.append(0.0, end[:-1])
        return float((end - np.maximum(start, before)).sum())


@dataclass(frozen=True)
class Choice:
    """Which clips of one video are asked; each attribute is (C,) bool.

    Attributes:
        proposed: the first stage proposes the clip.
        audited: it was drawn from all other clips of all cameras.
        sampled: it was drawn from all other clips of its camera; all audited clips are sampled, too.
    """

    proposed: BoolArray
    audited: BoolArray
    sampled: BoolArray

    @property
    def asked(self) -> BoolArray:
        """Flags (C,), True for every clip to ask about."""
        return self.proposed | self.sampled


def choose_clips(videos: Sequence[Candidates], *, share: float, audit: float) -> list[Choice]:
    """Return the choice for each video.

    Args:
        videos: all videos of an output folder.
        share: share of each camera's footage that the proposed clips show.
        audit: share of all other clips that is audited.
    """
    proposed = [np.zeros(len(video.score), np.bool_) for video in videos]
    sampled = [np.zeros(len(video.score), np.bool_) for video in videos]
    cameras = sorted({video.camera for video in videos})
    places = {camera: [place for place, video in enumerate(videos) if video.camera == camera] for camera in cameras}
    for own in places.values():
        for place, flags in zip(own, _highest([videos[place] for place in own], share), strict=True):
            proposed[place] = flags
    rest = [~part for part in proposed]
    everywhere = np.sort(np.concatenate([video.draw[part] for video, part in zip(videos, rest, strict=True)] or [np.zeros(0)]))
    count = math.ceil(audit * len(everywhere))
    limit = everywhere[count - 1] if count else -1.0
    audited = [part & (video.draw <= limit) for video, part in zip(videos, rest, strict=True)]
    for own in places.values():
        count = sum(int(proposed[place].sum()) for place in own)
        least = min(SAMPLE_CLIPS, max(FEWEST, count // SAMPLE_PART)) if audit else 0
        draws = np.sort(np.concatenate([videos[place].draw[rest[place]] for place in own]))
        own_limit = max(limit, draws[min(least, len(draws)) - 1] if len(draws) and least else -1.0)
        for place in own:
            sampled[place] = rest[place] & (videos[place].draw <= own_limit)
    return [Choice(*parts) for parts in zip(proposed, audited, sampled, strict=True)]


def _highest(videos: Sequence[Candidates], share: float) -> list[BoolArray]:
    """Return flags (C,) for the clips of each video of one camera, True for those that are proposed.

    Clips are taken by falling score until the next clip would make them show more than `share` of the camera's footage. At
    least one clip is taken. Of clips with equal scores, the one with the lowest random number (`draw`) is taken first.
    """
    order = np.lexsort((np.concatenate([video.draw for video in videos]), -np.concatenate([video.score for video in videos])))
    ends = np.cumsum([len(video.score) for video in videos])[:-1]

    def first(count: int) -> list[BoolArray]:
        flags = np.zeros(len(order), np.bool_)
        flags[order[:count]] = True
        return np.split(flags, ends)

    allowed = share * sum(video.shown_s(np.ones(len(video.score), np.bool_)) for video in videos) + 1e-6
    low, high = 1, len(order)  # the largest count that is allowed lies between them
    while low < high:
        middle = (low + high + 1) // 2
        shown = sum(video.shown_s(flags) for video, flags in zip(videos, first(middle), strict=True))
        low, high = (middle, high) if shown <= allowed else (low, middle - 1)
    return first(low)


def spread_sample(log_odds: FloatArray, proposed: BoolArray, sampled: BoolArray, *, rest: int) -> FloatArray:
    """Return log-odds (n, C) of C categories that stand for all clips of a camera.

    The random clips stand for all clips that were not proposed. So each is repeated until there are about `rest` of them.

    Args:
        log_odds: (A, C), the answers about A clips.
        proposed: (A,) bool, True if the first stage proposes the clip.
        sampled: (A,) bool, True if the clip was drawn from all others.
        rest: number of clips of the camera that were not proposed.
    """
    times = max(1, round(rest / max(1, int(sampled.sum()))))
    return np.concatenate([log_odds[proposed], np.repeat(log_odds[sampled], times, axis=0)])
