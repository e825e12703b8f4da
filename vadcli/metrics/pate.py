"""PATE: the area under a precision-recall curve that partly accepts alarms close to an anomaly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from vadcli.metrics.frame import FrameSet
from vadcli.metrics.intervals import Estimate, Numbers, divide, from_top, histograms
from vadcli.types import IndexArray

MAX_THRESHOLDS = 250
BUFFERS = (0, 100)
CELLS = 1 << 24  # largest number of (threshold, frame of one anomaly) pairs that are computed together


@dataclass(frozen=True)
class _Runs:
    """The video, first frame and last frame of A anomalies, (A,) each; numbered through all videos."""

    video: IndexArray
    first: IndexArray
    last: IndexArray


def pate(
    frames: FrameSet,
    *,
    early_frames: Sequence[int] = BUFFERS,
    late_frames: Sequence[int] = BUFFERS,
    max_thresholds: int | None = MAX_THRESHOLDS,
) -> Estimate:
    """Return PATE: the mean over buffer sizes of a weighted area under the precision-recall curve.

    Ghorbani, Reinders and Tax, PATE: Proximity-Aware Time series anomaly Evaluation, KDD 2024 (arXiv 2405.12096). At each
    threshold, every frame with an alarm counts as follows:

    - inside an anomaly: true with weight 1;
    - in the late buffer after an anomaly, or in the early buffer before an anomaly that is hit (has an alarm inside): true with
      weight w and false with weight 1 - w; w falls linearly from the middle of the anomaly to 0 at the end of the buffer;
    - anywhere else: false with weight 1.

    Every frame of a missed anomaly counts as missed with weight 1. In an anomaly that is hit, a missed frame has weight 1 if
    its distance from the start of the anomaly is at most the length of the first run of hits. Later frames have less weight.
    A point of the curve is left out of the area if its recall is lower than the recall at a higher threshold.

    If the paper leaves a choice open, this function follows the defaults of the authors' package PATE 0.1.1, so that both give
    the same value for one video. The counts of several videos are added, and buffers end with the video. Undefined without
    abnormal frames.

    Args:
        early_frames, late_frames: buffer sizes in frames; the mean is over all pairs of an early and a late one.
        max_thresholds: use at most this many thresholds, at evenly spaced quantiles of the distinct scores that change the
            number of hits. None uses every distinct score: this is the exact definition, but it is slow for many scores.
    """
    if min(early_frames, default=-1) < 0 or min(late_frames, default=-1) < 0:
        raise ValueError(f"buffers need sizes of 0 or more, not {list(early_frames)} and {list(late_frames)}")
    if max_thresholds is not None and max_thresholds < 1:
        raise ValueError(f"max_thresholds must be 1 or more, not {max_thresholds}")
    before, after = np.append(False, frames.labels[:-1]), np.append(frames.labels[1:], False)
    inner = np.unique(frames.offsets[(frames.offsets > 0) & (frames.offsets < len(frames.labels))])
    before[inner], after[inner - 1] = False, False  # an anomaly ends with its video
    first, last = np.flatnonzero(frames.labels & ~before), np.flatnonzero(frames.labels & ~after)
    if not len(first):
        return Estimate(None, frames.videos, lambda weights: np.full(len(weights), np.nan), "PATE needs an abnormal frame")
    runs = _Runs(frames.video[first], first, last)
    thresholds = _thresholds(frames, max_thresholds)
    scores = frames.scores.astype(np.float64)
    level = np.searchsorted(thresholds, scores, "right")  # how many thresholds each frame reaches
    shape = (frames.videos, len(thresholds) + 1)
    alarms = _reached(frames.video, level, shape)
    missed = _missed(scores, runs, thresholds, shape)
    hits = [_true(frames, runs, level, pair, shape) for pair in product(early_frames, late_frames)]

    def statistic(weights: Numbers) -> Numbers:
        found, lost = weights @ alarms, weights @ missed
        areas = [_area(weights @ true, found, lost) for true in hits]
        defined = (weights @ histograms(runs.video, np.zeros_like(runs.video), (frames.videos, 1)))[:, 0] > 0
        return np.where(defined, np.mean(areas, axis=0), np.nan)

    return Estimate(float(statistic(np.ones((1, frames.videos)))[0]), frames.videos, statistic)


def _thresholds(frames: FrameSet, limit: int | None) -> Numbers:
    """Return the thresholds (T,) float64, ascending."""
    scores = frames.scores
    if limit is None:
        return np.unique(scores).astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    true = np.cumsum(frames.labels[order])[ends]
    if len(ends) > 2:
        turns = (np.diff(true[:-1]) != 0) | (np.diff(true[1:]) != 0)
        ends = ends[np.concatenate([[True], turns, [True]])]
    # In descending order, because quantiles are then rounded as in the authors' package.
    sampled = np.percentile(scores[order][ends], np.linspace(100, 0, limit))
    return np.sort(sampled.astype(np.float64))


def _reached(video: IndexArray, level: IndexArray, shape: tuple[int, int], weights: Numbers | None = None) -> Numbers:
    """Return the number (or total weight) of frames of each video that reach each threshold, (V, T)."""
    return from_top(histograms(video, level, shape, weights))[:, 1:]


def _true(frames: FrameSet, runs: _Runs, level: IndexArray, buffers: tuple[int, int], shape: tuple[int, int]) -> Numbers:
    """Return the total weight of true alarms per video and threshold (V, T), for one pair of buffer sizes."""
    early, late = buffers
    starts, ends = frames.offsets[runs.video], frames.offsets[runs.video + 1]
    alone = np.append(True, runs.video[1:] != runs.video[:-1])
    limit = np.where(np.append(alone[1:], True), ends, np.append(runs.first[1:], 0))  # where the next anomaly or video begins
    late_end = np.minimum(runs.last + late, limit - 1)
    early_start = np.maximum(runs.first - early, np.where(alone, starts, np.append(0, late_end[:-1]) + 1))
    middle = (runs.first + runs.last) / 2.0
    peak = np.maximum.reduceat(np.append(level, 0), np.stack([runs.first, runs.last + 1], axis=1).ravel())[::2]

    inside, _ = _rows(runs.first, runs.last + 1)
    after, of_after = _rows(runs.last + 1, late_end + 1)
    before, of_before = _rows(early_start, runs.first)
    after_weight = 1.0 - (after - middle[of_after]) / (late_end - middle)[of_after]
    before_weight = 1.0 - (middle[of_before] - before) / (middle - early_start)[of_before]
    rows = np.concatenate([inside, after, before])
    levels = np.concatenate([level[inside], level[after], np.minimum(level[before], peak[of_before])])
    weights = np.concatenate([np.ones(len(inside)), after_weight, before_weight])
    return _reached(frames.video[rows], levels, shape, weights)


def _rows(starts: IndexArray, ends: IndexArray) -> tuple[IndexArray, IndexArray]:
    """Return all frames of half-open ranges, and for each frame the index of its range."""
    lengths = ends - starts
    owner = np.repeat(np.arange(len(starts)), lengths)
    return np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + starts[owner], owner


def _missed(scores: Numbers, runs: _Runs, thresholds: Numbers, shape: tuple[int, int]) -> Numbers:
    """Return the total weight of missed frames per video and threshold (V, T)."""
    missed = np.zeros((shape[0], len(thresholds)))
    for video, first, last in zip(runs.video.tolist(), runs.first.tolist(), runs.last.tolist(), strict=True):
        length = last - first + 1
        index, step = np.arange(length), max(CELLS // length, 1)
        for start in range(0, len(thresholds), step):
            chunk = thresholds[start : start + step]
            hit = scores[first : last + 1][None] >= chunk[:, None]  # (T, L)
            onset = hit.argmax(axis=1)
            ended = ~hit & (index > onset[:, None])
            run = np.where(ended.any(axis=1), ended.argmax(axis=1), length) - onset  # number of frames in the first run of hits
            strict = index <= run[:, None]  # as if the run began at the first frame: a missed frame here has weight 1
            later = ~hit & ~strict
            spread = (run + 1) * (later @ index - later.sum(axis=1) * run / 2.0)
            partly = (~hit).sum(axis=1) - spread / (length * (length - 1) / 2.0 or 1.0)
            weight = np.where(hit.any(axis=1), np.where(hit.all(axis=1), 0.0, partly), float(length))
            missed[video, start : start + step] += weight
    return missed


def _area(true: Numbers, found: Numbers, lost: Numbers) -> Numbers:
    """Return the areas (B,) under B precision-recall curves, from weights (B, T) by ascending threshold.

    A curve starts at recall 0 and precision 1. Straight lines join its points.
    """

    def from_highest(values: Numbers) -> Numbers:
        backwards: Numbers = np.nan_to_num(values[:, ::-1])
        return backwards

    start = np.zeros((len(true), 1))
    recall = np.hstack([start, from_highest(divide(true, true + lost))])
    precision = np.hstack([start + 1.0, from_highest(divide(true, found))])
    rises = recall >= np.maximum.accumulate(recall, axis=1)
    curves = [(x[keep], y[keep]) for x, y, keep in zip(recall, precision, rises, strict=True)]
    return np.array([(np.diff(x) * (y[1:] + y[:-1])).sum() / 2.0 for x, y in curves], np.float64)
