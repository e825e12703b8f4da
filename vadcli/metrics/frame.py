"""Frame metrics: ROC-AUC, average precision and PATE.

ROC-AUC and average precision are computed over all frames together, and as a mean over videos. ROC-AUC is also computed per
category.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vadcli.metrics import (
    Counts,
    Estimate,
    Numbers,
    average_precision,
    bin_edges,
    divide,
    from_top,
    histograms,
    over_all,
    ranges,
    ratio,
    roc_auc,
)
from vadcli.types import BoolArray, IndexArray
from vadcli.types.text import how_many

RESAMPLE_BINS = 4096
"""Largest number of score bins in a resample: half of them for positives, half for negatives."""
RESAMPLE_CELLS = 1 << 25  # largest number of cells (videos times bins) of a table

NORMAL = -1
"""The category code of a frame that has no category."""

AUC_UNDEFINED = "ROC-AUC needs frames of both classes"
AP_UNDEFINED = "average precision needs a positive frame"
ENDPOINTS = "with artificial end points (0, 0) and (1, 1)"

Area = Callable[[Counts, Counts], Numbers]


@dataclass(frozen=True)
class FrameSet:
    """The frames of a test set, video after video.

    Attributes:
        scores: (N,) floats, higher is more anomalous; no NaN.
        labels: (N,) bool, True if the frame is abnormal.
        offsets: (V + 1,) int64; the scores of video v are scores[offsets[v] : offsets[v + 1]].
        sampled: (N,) bool, True if the detector scored the frame, False if the frame repeats the score of another frame;
            None if unknown.
    """

    scores: NDArray[np.floating[Any]]
    labels: BoolArray
    offsets: IndexArray
    sampled: BoolArray | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        for name, flags in (("labels", self.labels), ("sampled flags", self.sampled)):
            if flags is not None and len(flags) != n:
                raise ValueError(f"{n} scores need {n} {name}, not {len(flags)}")
        if self.labels.dtype != np.bool_:
            raise ValueError(f"labels must be bool, not {self.labels.dtype}")
        if np.isnan(self.scores).any():
            raise ValueError(f"the score of frame {int(np.isnan(self.scores).argmax())} is not a number")
        if not len(self.offsets) or self.offsets[0] != 0 or self.offsets[-1] != n or np.any(np.diff(self.offsets) < 0):
            raise ValueError(f"offsets must begin with 0, end with {n}, and never decrease")

    @classmethod
    def of(
        cls, scores: Sequence[ArrayLike], labels: Sequence[ArrayLike], sampled: Sequence[ArrayLike] | None = None
    ) -> FrameSet:
        """Return the set for lists with one array per video.

        Raises:
            ValueError: the arrays of a video have different lengths.
        """
        videos = [np.asarray(part) for part in scores]
        truth = [np.asarray(part, np.bool_) for part in labels]
        lengths = [len(part) for part in videos]
        if lengths != [len(part) for part in truth]:
            raise ValueError(f"the videos have {lengths} scores, but {[len(part) for part in truth]} labels")
        offsets = np.append(0, np.cumsum(lengths, dtype=np.int64))
        flags = None if sampled is None else _concatenate([np.asarray(part, np.bool_) for part in sampled])
        return cls(np.concatenate(videos or [np.empty(0, np.float32)]), _concatenate(truth), offsets, flags)

    @property
    def videos(self) -> int:
        """V, the number of videos, including videos without frames."""
        return len(self.offsets) - 1

    @property
    def video(self) -> IndexArray:
        """For each frame, the number of its video from 0, (N,) int64."""
        return np.repeat(np.arange(self.videos), np.diff(self.offsets))

    def keep(self, rows: BoolArray) -> FrameSet:
        """Return a set with only the frames for which `rows` (N,) is True. In it, a video may be empty."""
        offsets = np.append(0, np.cumsum(rows, dtype=np.int64))[self.offsets]
        return FrameSet(self.scores[rows], self.labels[rows], offsets, None if self.sampled is None else self.sampled[rows])

    def only_sampled(self) -> FrameSet:
        """Return a set with only the sampled frames; raise ValueError if `sampled` is None."""
        if self.sampled is None:
            raise ValueError("sampled is None, so it is not known which frames were sampled")
        return self.keep(self.sampled)

    @cached_property
    def counts(self) -> tuple[IndexArray, IndexArray]:
        """The numbers of abnormal and of normal frames at each distinct score, (K,) each, from low to high."""
        return _counts(self.scores, self.labels)

    @cached_property
    def counts_by_video(self) -> tuple[tuple[IndexArray, IndexArray], ...]:
        """The `counts` of the frames of each video."""
        edges = zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True)
        return tuple(_counts(self.scores[start:end], self.labels[start:end]) for start, end in edges)

    @cached_property
    def tables(self) -> tuple[Numbers, Numbers]:
        """The numbers of abnormal and of normal frames per video and score bin, (V, K) each, for resamples."""
        bins = max(256, min(RESAMPLE_BINS, RESAMPLE_CELLS // max(self.videos, 1)))
        labels, video = self.labels, self.video
        edges = bin_edges([np.sort(self.scores[labels]), np.sort(self.scores[~labels])], bins)
        column = np.searchsorted(edges, self.scores, "right")
        shape = (self.videos, len(edges) + 1)
        return histograms(video[labels], column[labels], shape), histograms(video[~labels], column[~labels], shape)

    def with_endpoints(self) -> FrameSet:
        """Return the set with one more video, whose frames have the scores 0, 1 and the labels False, True.

        Raises:
            ValueError: a score is outside [0, 1].
        """
        scores, labels = _appended(self.scores, self.labels)
        return FrameSet(scores, labels, np.append(self.offsets, len(scores)))

    def each_with_endpoints(self) -> FrameSet:
        """Return the set with the two extra frames of `with_endpoints` in each video."""
        spans = zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True)
        parts = [_appended(self.scores[start:end], self.labels[start:end]) for start, end in spans]
        return FrameSet.of([scores for scores, _ in parts], [labels for _, labels in parts])

    def without_empty(self) -> FrameSet:
        """Return the set without the videos that have no frame."""
        offsets = np.append(0, self.offsets[1:][np.diff(self.offsets) > 0])
        return FrameSet(self.scores, self.labels, offsets, self.sampled)


def frame_auc(frames: FrameSet, *, endpoints: bool = False) -> Estimate:
    """Return the ROC-AUC over all frames together.

    The value is the same as that of `sklearn.metrics.roc_auc_score`. It is undefined if all frames are of one class and
    `endpoints` is False.

    For the interval, scores are put into at most RESAMPLE_BINS bins, and scores in one bin count as equal. With n bins, this
    changes the areas of resamples by less than about 2 / n. With few distinct scores, it changes nothing.

    Args:
        frames: the frames of all videos; use `only_sampled()` to evaluate only sampled frames.
        endpoints: True adds a normal frame with score 0 and an abnormal frame with score 1. The added frames make the value
            higher. Scores must be in [0, 1]. Some published evaluation code adds these frames, for example that of Georgescu
            et al. ("A Background-Agnostic Framework with Adversarial Training for Abnormal Event Detection in Video", TPAMI
            2021).
    """
    return _micro(frames, roc_auc, AUC_UNDEFINED, endpoints=endpoints)


def frame_ap(frames: FrameSet, *, endpoints: bool = False) -> Estimate:
    """Return the average precision over all frames together.

    The value is the same as that of `sklearn.metrics.average_precision_score`. See `frame_auc` for the interval and for
    `endpoints`. The average precision is undefined if no frame is abnormal and `endpoints` is False.
    """
    return _micro(frames, average_precision, AP_UNDEFINED, endpoints=endpoints)


def frame_auc_macro(frames: FrameSet, *, endpoints: bool = False) -> Estimate:
    """Return the mean over videos of the ROC-AUC of each video (macro-averaged AUC).

    Frames are compared only with frames of the same video, so a constant added to all scores of one video changes nothing. A
    video in which all frames are of one class has no ROC-AUC and is left out. The note gives the number of these videos.
    Undefined if no video has a ROC-AUC.

    The definition is from Georgescu et al. (TPAMI 2021, section 4.2). Their code adds two frames to each video (`endpoints`).
    With these frames, a normal video has the ROC-AUC 1.
    """
    return _macro(frames, roc_auc, AUC_UNDEFINED, endpoints=endpoints)


def frame_ap_macro(frames: FrameSet, *, endpoints: bool = False) -> Estimate:
    """Return the mean over videos of the average precision of each video; see `frame_auc_macro`.

    Videos without abnormal frames are left out.
    """
    return _macro(frames, average_precision, AP_UNDEFINED, endpoints=endpoints)


def frames_of_category(frames: FrameSet, codes: IndexArray, code: int, *, own_videos: bool = False) -> FrameSet:
    """Return the frames for the evaluation of one category: its abnormal frames and all normal frames.

    Args:
        frames: the frames of all videos.
        codes: (N,) int, the number of the category of each frame; NORMAL for frames without a category, even if abnormal.
        code: the number of the category to evaluate.
        own_videos: True keeps only the videos that show the category.
    """
    if len(codes) != len(frames.labels):
        raise ValueError(f"{len(frames.labels)} frames need {len(frames.labels)} category codes, not {len(codes)}")
    of_category = frames.labels & (codes == code)
    rows = of_category | ~frames.labels
    if own_videos:
        rows &= np.isin(frames.video, frames.video[of_category])
    return frames.keep(rows).without_empty()


def category_auc(frames: FrameSet, codes: IndexArray, code: int, *, within: bool = False, endpoints: bool = False) -> Estimate:
    """Return the ROC-AUC of one category: its abnormal frames against all normal frames.

    Undefined without abnormal frames of the category or without normal frames. Resamples are drawn from all videos of
    `frames`, so that two scans can be compared (see `over_all`).

    Args:
        frames: the frames of all videos. The scores may be frame scores, or scores of this category.
        codes: (N,) int, as in `frames_of_category`.
        code: the number of the category to evaluate.
        within: False computes one ROC-AUC over all frames. True computes a ROC-AUC per video that shows the category, and
            returns their mean, as `frame_auc_macro` does.
        endpoints: see `frame_auc`.
    """
    compared = frames_of_category(frames, codes, code, own_videos=within)
    of_category = frames.labels & (codes == code)
    rows = of_category if within else of_category | ~frames.labels
    chosen = np.isin(np.arange(frames.videos), frames.video[rows])
    figure = frame_auc_macro if within else frame_auc
    return over_all(figure(compared, endpoints=endpoints), chosen)


def _concatenate(flags: Sequence[BoolArray]) -> BoolArray:
    return np.concatenate([np.empty(0, np.bool_), *flags])


def _micro(frames: FrameSet, area: Area, undefined: str, *, endpoints: bool) -> Estimate:
    used = frames.with_endpoints() if endpoints else frames
    value = float(area(*used.counts))

    def statistic(weights: Numbers) -> Numbers:
        """Return the area in each resample."""
        drawn = np.hstack([weights, np.ones((len(weights), 1))]) if endpoints else weights
        positives, negatives = used.tables
        return area(drawn @ positives, drawn @ negatives)

    if np.isnan(value):
        return Estimate(None, frames.videos, statistic, undefined)
    return Estimate(value, frames.videos, statistic, ENDPOINTS if endpoints else "")


def _macro(frames: FrameSet, area: Area, undefined: str, *, endpoints: bool) -> Estimate:
    used = frames.each_with_endpoints() if endpoints else frames
    values = np.array([area(*counts) for counts in used.counts_by_video], np.float64)
    defined = ~np.isnan(values)
    count = int(defined.sum())
    notes = [ENDPOINTS] if endpoints else []
    if count < frames.videos:
        notes.append(f"undefined for {frames.videos - count} of {frames.videos} videos: {undefined}")
    whole = f"undefined for all of {how_many(frames.videos, 'video')}: {undefined}" if frames.videos else undefined
    return ratio(np.where(defined, values, 0.0), defined, undefined=whole, note="; ".join(notes), used=count)


def _appended(scores: NDArray[Any], labels: BoolArray) -> tuple[NDArray[Any], BoolArray]:
    if len(scores) and not (scores.min() >= 0.0 and scores.max() <= 1.0):
        raise ValueError(f"endpoints need scores in [0, 1], not {scores.min():g} to {scores.max():g}")
    return np.append(scores, np.array([0, 1], scores.dtype)), np.append(labels, [False, True])


def _counts(scores: NDArray[Any], labels: BoolArray) -> tuple[IndexArray, IndexArray]:
    """Return the numbers of abnormal and of normal frames at each distinct score, (K,) each, ascending."""
    if not len(scores):
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    classes = [
        _distinct(np.sort(scores[labels])),
        _distinct(np.sort(scores[~labels])),
    ]  # much faster than an argsort of all scores
    values, _ = _distinct(np.sort(np.concatenate([distinct for distinct, _ in classes])))
    counts = np.zeros((2, len(values)), np.int64)
    for row, (distinct, counts_of_class) in zip(counts, classes, strict=True):
        row[np.searchsorted(values, distinct)] = counts_of_class
    return counts[0], counts[1]


def _distinct(ranked: NDArray[Any]) -> tuple[NDArray[Any], IndexArray]:
    """Return the distinct values of an ascending array, and the number of times that each value occurs."""
    if not len(ranked):
        return ranked, np.empty(0, np.int64)
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    return ranked[starts], np.diff(np.append(starts, len(ranked)))


PATE_THRESHOLDS = 250
PATE_BUFFERS = (0, 100)
"""Sizes in frames of the buffers before and after an anomaly."""
PATE_CELLS = 1 << 24  # largest number of (threshold, frame of one anomaly) pairs that are computed together


@dataclass(frozen=True)
class _Runs:
    """The videos, first frames and last frames of A anomalies, (A,) each.

    Frames are numbered through all videos, as in `FrameSet.scores`.
    """

    video: IndexArray
    first: IndexArray
    last: IndexArray


def pate(
    frames: FrameSet,
    *,
    early_frames: Sequence[int] = PATE_BUFFERS,
    late_frames: Sequence[int] = PATE_BUFFERS,
    max_thresholds: int | None = PATE_THRESHOLDS,
) -> Estimate:
    """Return PATE, a weighted area under the precision-recall curve, as a mean over several buffer sizes.

    Source: Ghorbani, Reinders and Tax, "PATE: Proximity-Aware Time series anomaly Evaluation", KDD 2024 (arXiv 2405.12096).

    Each anomaly has an early buffer before it and a late buffer after it. An anomaly is hit if one of its frames has an alarm.

    At each threshold, a frame with an alarm is a true alarm with a weight w, and a false alarm with the weight 1 - w. w is:

    - in an anomaly: 1
    - in the late buffer, and in the early buffer of an anomaly that is hit: below 1. w decreases linearly from 1 in the middle
      of the anomaly to 0 at the far end of the buffer.
    - everywhere else: 0

    A missed frame is an abnormal frame without an alarm. Its weight is 1 if the anomaly is not hit. If the anomaly is hit, the
    weight is 1 near the start of the anomaly (up to the length of the first run of alarms), and below 1 later.

    - A point of the curve is ignored if its recall is below the recall at a higher threshold.
    - The weights of several videos are added. Buffers end with the video.
    - Details that the paper leaves open are as in the authors' package PATE 0.1.1. For one video, vadcli and this package give
      the same value.
    - PATE is undefined without abnormal frames.

    Args:
        frames: the frames of all videos.
        early_frames, late_frames: sizes of the early and late buffers, in frames. Each early size is combined with each late
            size, and the result is the mean over all combinations.
        max_thresholds: largest number of thresholds. They are evenly spaced quantiles of the distinct scores at which the
            number of true alarms changes. None uses every distinct score, which is exact, but slow.
    """
    if min(early_frames, default=-1) < 0 or min(late_frames, default=-1) < 0:
        raise ValueError(f"buffer sizes must be 0 or more, not {list(early_frames)} and {list(late_frames)}")
    if max_thresholds is not None and max_thresholds < 1:
        raise ValueError(f"max_thresholds must be 1 or more, not {max_thresholds}")
    before, after = np.append(False, frames.labels[:-1]), np.append(frames.labels[1:], False)
    inner = np.unique(frames.offsets[(frames.offsets > 0) & (frames.offsets < len(frames.labels))])
    before[inner], after[inner - 1] = False, False  # an anomaly ends with its video
    first, last = np.flatnonzero(frames.labels & ~before), np.flatnonzero(frames.labels & ~after)
    if not len(first):
        return Estimate(None, frames.videos, lambda weights: np.full(len(weights), np.nan), "PATE needs an abnormal frame")
    runs = _Runs(frames.video[first], first, last)
    thresholds = _pate_thresholds(frames, max_thresholds)
    scores = frames.scores.astype(np.float64)
    level = np.searchsorted(thresholds, scores, "right")  # how many thresholds each frame reaches
    shape = (frames.videos, len(thresholds) + 1)
    alarms = _reaching(frames.video, level, shape)
    missed = _missed_weights(scores, runs, thresholds, shape)
    hits = [_true_weights(frames, runs, level, pair, shape) for pair in product(early_frames, late_frames)]
    anomalies = np.bincount(runs.video, minlength=frames.videos)

    def statistic(weights: Numbers) -> Numbers:
        """Return PATE in each resample."""
        alarm_weight, missed_weight = weights @ alarms, weights @ missed
        areas = [_pate_area(weights @ true, alarm_weight, missed_weight) for true in hits]
        return np.where(weights @ anomalies > 0, np.mean(areas, axis=0), np.nan)

    return Estimate(float(statistic(np.ones((1, frames.videos)))[0]), frames.videos, statistic)


def _pate_thresholds(frames: FrameSet, limit: int | None) -> Numbers:
    """Return the thresholds (T,) float64, ascending. `limit` is the `max_thresholds` of `pate`."""
    scores = frames.scores
    if limit is None:
        return np.unique(scores).astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    true = np.cumsum(frames.labels[order])[ends]
    if len(ends) > 2:
        turns = (np.diff(true[:-1]) != 0) | (np.diff(true[1:]) != 0)
        ends = ends[np.concatenate([[True], turns, [True]])]
    # Scores and quantiles are in descending order here, so that rounding gives the same values as in the authors' package.
    sampled = np.percentile(scores[order][ends], np.linspace(100, 0, limit))
    return np.sort(sampled.astype(np.float64))


def _reaching(video: IndexArray, level: IndexArray, shape: tuple[int, int], weights: Numbers | None = None) -> Numbers:
    """Return how many frames of each video reach each threshold, (V, T), or the sum of their `weights`."""
    return from_top(histograms(video, level, shape, weights))[:, 1:]


def _true_weights(
    frames: FrameSet, runs: _Runs, level: IndexArray, buffers: tuple[int, int], shape: tuple[int, int]
) -> Numbers:
    """Return the total weight of true alarms per video and threshold, (V, T), for buffers (early, late)."""
    early, late = buffers
    starts, ends = frames.offsets[runs.video], frames.offsets[runs.video + 1]
    alone = np.append(True, runs.video[1:] != runs.video[:-1])
    limit = np.where(np.append(alone[1:], True), ends, np.append(runs.first[1:], 0))  # where the next anomaly or video begins
    late_end = np.minimum(runs.last + late, limit - 1)
    early_start = np.maximum(runs.first - early, np.where(alone, starts, np.append(0, late_end[:-1]) + 1))
    middle = (runs.first + runs.last) / 2.0
    peak = np.maximum.reduceat(np.append(level, 0), np.stack([runs.first, runs.last + 1], axis=1).ravel())[::2]

    inside, _ = ranges(runs.first, runs.last + 1 - runs.first)
    after, of_after = ranges(runs.last + 1, late_end - runs.last)
    before, of_before = ranges(early_start, runs.first - early_start)
    after_weight = 1.0 - (after - middle[of_after]) / (late_end - middle)[of_after]
    before_weight = 1.0 - (middle[of_before] - before) / (middle - early_start)[of_before]
    rows = np.concatenate([inside, after, before])
    levels = np.concatenate([level[inside], level[after], np.minimum(level[before], peak[of_before])])
    weights = np.concatenate([np.ones(len(inside)), after_weight, before_weight])
    return _reaching(frames.video[rows], levels, shape, weights)


def _missed_weights(scores: Numbers, runs: _Runs, thresholds: Numbers, shape: tuple[int, int]) -> Numbers:
    """Return the total weight of missed frames per video and threshold, (V, T)."""
    missed = np.zeros((shape[0], len(thresholds)))
    for video, first, last in zip(runs.video.tolist(), runs.first.tolist(), runs.last.tolist(), strict=True):
        length = last - first + 1
        index, step = np.arange(length), max(PATE_CELLS // length, 1)
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


def _pate_area(true: Numbers, alarms: Numbers, missed: Numbers) -> Numbers:
    """Return the areas (B,) under B precision-recall curves.

    A curve starts at recall 0 and precision 1. Straight lines join its points.

    Args:
        true, alarms, missed: total weights (B, T) of true alarms, all alarms and missed frames; thresholds ascend.
    """

    def from_highest(values: Numbers) -> Numbers:
        """Return the columns from the highest threshold to the lowest, with 0 for NaN."""
        backwards: Numbers = np.nan_to_num(values[:, ::-1])
        return backwards

    start = np.zeros((len(true), 1))
    recall = np.hstack([start, from_highest(divide(true, true + missed))])
    precision = np.hstack([start + 1.0, from_highest(divide(true, alarms))])
    rises = recall >= np.maximum.accumulate(recall, axis=1)
    curves = [(x[keep], y[keep]) for x, y, keep in zip(recall, precision, rises, strict=True)]
    return np.array([(np.diff(x) * (y[1:] + y[:-1])).sum() / 2.0 for x, y in curves], np.float64)
