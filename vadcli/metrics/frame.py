"""Frame metrics: ROC-AUC and average precision of all frames, within videos, and per category."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vadcli.metrics.intervals import (
    Counts,
    Estimate,
    Numbers,
    average_precision,
    bin_edges,
    histograms,
    over_all,
    ratio,
    roc_auc,
)
from vadcli.types import BoolArray, IndexArray
from vadcli.types.text import how_many

RESAMPLE_BINS = 4096
"""Largest number of score bins in a resample: half of them for positives, half for negatives."""
RESAMPLE_CELLS = 1 << 25  # largest number of cells (videos times bins) of a table

NORMAL = -1
"""The category code of a frame without a category."""

AUC_UNDEFINED = "ROC-AUC needs frames of both classes"
AP_UNDEFINED = "average precision needs a positive frame"
ENDPOINTS = "with artificial end points (0, 0) and (1, 1)"

Area = Callable[[Counts, Counts], Numbers]


@dataclass(frozen=True)
class FrameSet:
    """The frames of a test set, video after video.

    Attributes:
        scores: (N,) floats, higher is more anomalous; no NaN.
        labels: (N,) bool, True in an anomaly.
        offsets: (V + 1,) int64, video v has the frames scores[offsets[v] : offsets[v + 1]].
        sampled: (N,) bool, True if the detector scored this frame, False if its score is carried forward; None if not known.
    """

    scores: NDArray[np.floating[Any]]
    labels: BoolArray
    offsets: IndexArray
    sampled: BoolArray | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        for name, flags in (("labels", self.labels), ("sampled flags", self.sampled)):
            if flags is not None and len(flags) != n:
                raise ValueError(f"{n} scores need as many {name}, not {len(flags)}")
        if self.labels.dtype != np.bool_:
            raise ValueError(f"labels must be bool, not {self.labels.dtype}")
        if np.isnan(self.scores).any():
            raise ValueError(f"the score of frame {int(np.isnan(self.scores).argmax())} is not a number")
        if not len(self.offsets) or self.offsets[0] != 0 or self.offsets[-1] != n or np.any(np.diff(self.offsets) < 0):
            raise ValueError(f"offsets must ascend from 0 to {n}")

    @classmethod
    def of(
        cls, scores: Sequence[ArrayLike], labels: Sequence[ArrayLike], sampled: Sequence[ArrayLike] | None = None
    ) -> FrameSet:
        """Build the set from one array per video; raises ValueError if the arrays of a video differ in length."""
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
        """The number of videos, including empty ones."""
        return len(self.offsets) - 1

    @property
    def video(self) -> IndexArray:
        """The number of each frame's video, (N,) int64."""
        return np.repeat(np.arange(self.videos), np.diff(self.offsets))

    def keep(self, rows: BoolArray) -> FrameSet:
        """Keep the frames for which `rows` (N,) is True. All videos stay, even empty ones."""
        kept = np.append(0, np.cumsum(rows, dtype=np.int64))[self.offsets]
        return FrameSet(self.scores[rows], self.labels[rows], kept, None if self.sampled is None else self.sampled[rows])

    def only_sampled(self) -> FrameSet:
        """Keep only sampled frames; raises ValueError if `sampled` is None."""
        if self.sampled is None:
            raise ValueError("it is not known which of these frames were sampled")
        return self.keep(self.sampled)

    @cached_property
    def counts(self) -> tuple[IndexArray, IndexArray]:
        """The numbers of positives (K,) and negatives (K,) at each distinct score, ascending; cached."""
        return _counts(self.scores, self.labels)

    @cached_property
    def counts_by_video(self) -> tuple[tuple[IndexArray, IndexArray], ...]:
        """`counts` of each video; cached."""
        edges = zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True)
        return tuple(_counts(self.scores[start:end], self.labels[start:end]) for start, end in edges)

    @cached_property
    def tables(self) -> tuple[Numbers, Numbers]:
        """The numbers of positives (V, K) and negatives (V, K) per video and score bin, for resamples; cached."""
        bins = max(256, min(RESAMPLE_BINS, RESAMPLE_CELLS // max(self.videos, 1)))
        labels, video = self.labels, self.video
        edges = bin_edges([np.sort(self.scores[labels]), np.sort(self.scores[~labels])], bins)
        column = np.searchsorted(edges, self.scores, "right")
        shape = (self.videos, len(edges) + 1)
        return histograms(video[labels], column[labels], shape), histograms(video[~labels], column[~labels], shape)

    def with_endpoints(self) -> FrameSet:
        """Add a video of two frames: label 0 with score 0, and label 1 with score 1.

        Raises:
            ValueError: a score is outside [0, 1].
        """
        scores, labels = _appended(self.scores, self.labels)
        return FrameSet(scores, labels, np.append(self.offsets, len(scores)))

    def each_with_endpoints(self) -> FrameSet:
        """Add the two frames of `with_endpoints` to the end of each video."""
        spans = zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True)
        parts = [_appended(self.scores[start:end], self.labels[start:end]) for start, end in spans]
        return FrameSet.of([scores for scores, _ in parts], [labels for _, labels in parts])

    def without_empty(self) -> FrameSet:
        """Remove the videos that have no frame."""
        offsets = np.append(0, self.offsets[1:][np.diff(self.offsets) > 0])
        return FrameSet(self.scores, self.labels, offsets, self.sampled)


def frame_auc(frames: FrameSet, *, endpoints: bool = False) -> Estimate:
    """Return the ROC-AUC over all frames together.

    The value is exact: it equals `sklearn.metrics.roc_auc_score` of all frames. The interval is exact if positives and
    negatives each have at most half of RESAMPLE_BINS distinct scores. Otherwise, resamples treat the scores within a bin as
    ties, which changes the area by less than about 2 / RESAMPLE_BINS. Undefined without abnormal or without normal frames,
    unless `endpoints` adds one of each.

    Args:
        frames: the frames of all videos; call `only_sampled()` first to evaluate only sampled frames.
        endpoints: append label 0 with score 0 and label 1 with score 1, as the published evaluators of Georgescu et al. (A
            Background-Agnostic Framework, TPAMI 2021) and others do. This raises the value; scores must lie in [0, 1].
    """
    return _micro(frames, roc_auc, AUC_UNDEFINED, endpoints=endpoints)


def frame_ap(frames: FrameSet, *, endpoints: bool = False) -> Estimate:
    """Return the average precision over all frames together.

    It equals `sklearn.metrics.average_precision_score` of all frames; see `frame_auc` for intervals. Undefined without abnormal
    frames, unless `endpoints` adds one.
    """
    return _micro(frames, average_precision, AP_UNDEFINED, endpoints=endpoints)


def frame_auc_macro(frames: FrameSet, *, endpoints: bool = False) -> Estimate:
    """Return the mean of the ROC-AUCs of the single videos, all with the same weight.

    Frames are compared only with frames of the same video, so a constant added to all scores of one video changes nothing. This
    is the macro-averaged AUC of Georgescu et al. (TPAMI 2021, section 4.2). A video with only one class has no ROC-AUC: it is
    left out and counted in the note. With `endpoints`, which those authors use, every video has a ROC-AUC (1 for a normal
    video). Undefined if no video has a ROC-AUC. The interval is exact.
    """
    return _macro(frames, roc_auc, AUC_UNDEFINED, endpoints=endpoints)


def frame_ap_macro(frames: FrameSet, *, endpoints: bool = False) -> Estimate:
    """Return the mean of the average precisions of the single videos; see `frame_auc_macro`.

    Videos without abnormal frames are left out.
    """
    return _macro(frames, average_precision, AP_UNDEFINED, endpoints=endpoints)


def frames_of_category(frames: FrameSet, codes: IndexArray, code: int, *, own_videos: bool = False) -> FrameSet:
    """Return the frames that evaluate one category: its abnormal frames and the normal frames.

    Args:
        codes: (N,) integers, the category of each abnormal frame; NORMAL for abnormal frames without a category.
        code: the category to evaluate.
        own_videos: True keeps only videos that contain the category.
    """
    if len(codes) != len(frames.labels):
        raise ValueError(f"{len(frames.labels)} frames need as many category codes, not {len(codes)}")
    of_category = frames.labels & (codes == code)
    rows = of_category | ~frames.labels
    if own_videos:
        rows &= np.isin(frames.video, frames.video[of_category])
    return frames.keep(rows).without_empty()


def category_auc(frames: FrameSet, codes: IndexArray, code: int, *, within: bool = False, endpoints: bool = False) -> Estimate:
    """Return the ROC-AUC of one category's frames against normal frames.

    Resamples draw from all videos of `frames`, so that two runs can be compared even if frames are missing in different videos.
    Undefined without a frame of the category or without a normal frame. With `within`, undefined if no video has both.

    Args:
        frames: the frames of all videos; their scores may be the scores of the category alone.
        codes: (N,) integers, as in `frames_of_category`.
        code: the category to evaluate.
        within: True returns the mean of the ROC-AUCs of the single videos that contain the category (see `frame_auc_macro`);
            False compares with the normal frames of all videos.
        endpoints: see `frame_auc`.
    """
    kept = frames_of_category(frames, codes, code, own_videos=within)
    of_category = frames.labels & (codes == code)
    rows = of_category if within else of_category | ~frames.labels
    chosen = np.isin(np.arange(frames.videos), frames.video[rows])
    figure = frame_auc_macro if within else frame_auc
    return over_all(figure(kept, endpoints=endpoints), chosen)


def _concatenate(flags: Sequence[BoolArray]) -> BoolArray:
    return np.concatenate([np.empty(0, np.bool_), *flags])


def _micro(frames: FrameSet, area: Area, undefined: str, *, endpoints: bool) -> Estimate:
    used = frames.with_endpoints() if endpoints else frames
    value = float(area(*used.counts))

    def statistic(weights: Numbers) -> Numbers:
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
        raise ValueError(f"artificial end points need scores in [0, 1], not {scores.min():g} to {scores.max():g}")
    return np.append(scores, np.array([0, 1], scores.dtype)), np.append(labels, [False, True])


def _counts(scores: NDArray[Any], labels: BoolArray) -> tuple[IndexArray, IndexArray]:
    """Return the numbers of positives (K,) and negatives (K,) at each distinct score, ascending."""
    if not len(scores):
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    classes = [
        _distinct(np.sort(scores[labels])),
        _distinct(np.sort(scores[~labels])),
    ]  # much faster than an argsort of all scores
    values, _ = _distinct(np.sort(np.concatenate([found for found, _ in classes])))
    counts = np.zeros((2, len(values)), np.int64)
    for row, (found, many) in zip(counts, classes, strict=True):
        row[np.searchsorted(values, found)] = many
    return counts[0], counts[1]


def _distinct(ranked: NDArray[Any]) -> tuple[NDArray[Any], IndexArray]:
    """Return the distinct values of an ascending array, and how often each occurs."""
    if not len(ranked):
        return ranked, np.empty(0, np.int64)
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    return ranked[starts], np.diff(np.append(starts, len(ranked)))
