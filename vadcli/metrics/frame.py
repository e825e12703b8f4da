"""Frame metrics: ROC-AUC and average precision over all frames together (micro) and per video (macro).

One figure for each category of anomaly, against everything normal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vadcli.metrics.intervals import Counts, Estimate, Numbers, average_precision, bin_edges, histograms, ratio, roc_auc
from vadcli.types import BoolArray, IndexArray

RESAMPLE_BINS = 4096
"""Bins a resampled curve has at most: half of equal shares of the positives, half of the negatives."""
RESAMPLE_CELLS = 1 << 25  # videos times bins, of two float64 tables: with very many videos the bins get fewer

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
        offsets: (V + 1,) int64, video v has the rows offsets[v] to offsets[v + 1].
        sampled: (N,) bool, True where the model saw the frame; None where that isn't known. Other rows carry a score.
    """

    scores: NDArray[np.floating[Any]]
    labels: BoolArray
    offsets: IndexArray
    sampled: BoolArray | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        if len(self.labels) != n or (self.sampled is not None and len(self.sampled) != n):
            raise ValueError(f"{n} scores need as many labels and sampled flags, not {len(self.labels)}")
        if self.labels.dtype != np.bool_:
            raise ValueError(f"labels must be bool, not {self.labels.dtype}")
        if np.isnan(self.scores).any():
            raise ValueError(f"score {int(np.isnan(self.scores).argmax())} is not a number")
        if not len(self.offsets) or self.offsets[0] != 0 or self.offsets[-1] != n or np.any(np.diff(self.offsets) < 0):
            raise ValueError(f"offsets must ascend from 0 to {n}")

    @classmethod
    def of(
        cls, scores: Sequence[ArrayLike], labels: Sequence[ArrayLike], sampled: Sequence[ArrayLike] | None = None
    ) -> FrameSet:
        """From one array a video; raises ValueError where a video's arrays differ in length."""
        videos = [np.asarray(part) for part in scores]
        truth = [np.asarray(part, np.bool_) for part in labels]
        lengths = [len(part) for part in videos]
        if lengths != [len(part) for part in truth]:
            raise ValueError(f"videos of {lengths} scores have {[len(part) for part in truth]} labels")
        offsets = np.append(0, np.cumsum(lengths, dtype=np.int64))
        flags = None if sampled is None else _joined([np.asarray(part, np.bool_) for part in sampled])
        return cls(np.concatenate(videos or [np.empty(0, np.float32)]), _joined(truth), offsets, flags)

    @property
    def videos(self) -> int:
        """How many videos there are, empty ones counted."""
        return len(self.offsets) - 1

    @property
    def video(self) -> IndexArray:
        """(N,) int64, the video of each row."""
        return np.repeat(np.arange(self.videos), np.diff(self.offsets))

    def keep(self, rows: BoolArray) -> FrameSet:
        """The rows where `rows` (N,) is True. Videos stay, empty or not."""
        kept = np.append(0, np.cumsum(rows, dtype=np.int64))[self.offsets]
        return FrameSet(self.scores[rows], self.labels[rows], kept, None if self.sampled is None else self.sampled[rows])

    def only_sampled(self) -> FrameSet:
        """Without the carried rows; raises ValueError where it isn't known which they are."""
        if self.sampled is None:
            raise ValueError("these frames don't say which of them were sampled")
        return self.keep(self.sampled)

    @cached_property
    def counts(self) -> tuple[IndexArray, IndexArray]:
        """(K,) positives and (K,) negatives at each distinct score, ascending; kept, as one sort serves every figure."""
        return _counts(self.scores, self.labels)

    @cached_property
    def counts_by_video(self) -> tuple[tuple[IndexArray, IndexArray], ...]:
        """`counts` of each video alone; kept."""
        edges = zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True)
        return tuple(_counts(self.scores[start:end], self.labels[start:end]) for start, end in edges)

    @cached_property
    def tables(self) -> tuple[Numbers, Numbers]:
        """(V, K) positives and (V, K) negatives of each video by bins of ascending score, for resamples; kept."""
        return _tables(self.scores, self.labels, self.video, self.videos)

    def with_endpoints(self) -> FrameSet:
        """One more video of two rows: label 0 with score 0 and label 1 with score 1; raises ValueError beyond [0, 1]."""
        scores, labels = _appended(self.scores, self.labels)
        return FrameSet(scores, labels, np.append(self.offsets, len(scores)))

    def each_with_endpoints(self) -> FrameSet:
        """As `with_endpoints`, but two rows more at the end of each video."""
        spans = zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True)
        parts = [_appended(self.scores[start:end], self.labels[start:end]) for start, end in spans]
        return FrameSet.of([scores for scores, _ in parts], [labels for _, labels in parts])

    def without_empty(self) -> FrameSet:
        """Without videos that have no row."""
        offsets = np.append(0, self.offsets[1:][np.diff(self.offsets) > 0])
        return FrameSet(self.scores, self.labels, offsets, self.sampled)


def frame_auc(frames: FrameSet, *, endpoints: bool = False) -> Estimate:
    """ROC-AUC over all frames together, ties half: `sklearn.metrics.roc_auc_score` of the concatenated test set.

    The value is exact. Its interval is exact where positives and negatives have at most half of RESAMPLE_BINS distinct scores
    each. Else resamples tie the scores within a bin, which holds about 2 / RESAMPLE_BINS of either class, ties of one score
    apart, and moves the area by less than that (by far less in practice, as the errors of bins cancel).
    Undefined without abnormal or without normal frames, unless `endpoints` adds one of each.

    Args:
        frames: of all videos; `only_sampled()` first for the frames that the model saw.
        endpoints: append label 0 with score 0 and label 1 with score 1, as the evaluators that Georgescu et al. (A
            Background-Agnostic Framework, TPAMI 2021) and others published do. It flatters; scores must lie in [0, 1].
    """
    return _micro(frames, roc_auc, AUC_UNDEFINED, endpoints=endpoints)


def frame_ap(frames: FrameSet, *, endpoints: bool = False) -> Estimate:
    """Average precision over all frames together: `sklearn.metrics.average_precision_score` of the concatenated test set.

    As for `frame_auc`, but resamples in bins of ties err by up to the change of precision within a bin. Undefined without
    abnormal frames, unless `endpoints` adds one.
    """
    return _micro(frames, average_precision, AP_UNDEFINED, endpoints=endpoints)


def frame_auc_macro(frames: FrameSet, *, endpoints: bool = False) -> Estimate:
    """The mean of the videos' own ROC-AUCs, as Georgescu et al. (TPAMI 2021, section 4.2) report beside the micro one.

    Undefined for a video of one class only: such videos are left out and counted in the note; with `endpoints`, which those
    authors use, none is. Undefined as a whole where all videos are. The interval is exact.
    """
    return _macro(frames, roc_auc, AUC_UNDEFINED, endpoints=endpoints)


def frame_ap_macro(frames: FrameSet, *, endpoints: bool = False) -> Estimate:
    """The mean of the videos' own average precisions. Undefined for a video without abnormal frames, see `frame_auc_macro`."""
    return _macro(frames, average_precision, AP_UNDEFINED, endpoints=endpoints)


def _joined(flags: Sequence[BoolArray]) -> BoolArray:
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
    whole = f"undefined for all {frames.videos} videos: {undefined}"
    return ratio(np.where(defined, values, 0.0), defined, undefined=whole, note="; ".join(notes), used=count)


def _appended(scores: NDArray[Any], labels: BoolArray) -> tuple[NDArray[Any], BoolArray]:
    if len(scores) and not (scores.min() >= 0.0 and scores.max() <= 1.0):
        raise ValueError(f"end points need scores in [0, 1], not {scores.min():g} to {scores.max():g}")
    return np.append(scores, np.array([0, 1], scores.dtype)), np.append(labels, [False, True])


def _counts(scores: NDArray[Any], labels: BoolArray) -> tuple[IndexArray, IndexArray]:
    """(K,) positives and negatives at each distinct score, ascending; K is 1 where there are no frames."""
    if not len(scores):
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    classes = [_distinct(np.sort(scores[labels])), _distinct(np.sort(scores[~labels]))]  # far quicker than an argsort of all
    values, _ = _distinct(np.sort(np.concatenate([found for found, _ in classes])))
    counts = np.zeros((2, len(values)), np.int64)
    for row, (found, many) in zip(counts, classes, strict=True):
        row[np.searchsorted(values, found)] = many
    return counts[0], counts[1]


def _distinct(ranked: NDArray[Any]) -> tuple[NDArray[Any], IndexArray]:
    """The distinct values of an ascending array, and how often each is there."""
    if not len(ranked):
        return ranked, np.empty(0, np.int64)
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    return ranked[starts], np.diff(np.append(starts, len(ranked)))


def _tables(scores: NDArray[Any], labels: BoolArray, video: IndexArray, videos: int) -> tuple[Numbers, Numbers]:
    """(V, K) positives and (V, K) negatives of each video by bins of ascending score."""
    bins = max(256, min(RESAMPLE_BINS, RESAMPLE_CELLS // max(videos, 1)))
    edges = bin_edges([np.sort(scores[labels]), np.sort(scores[~labels])], bins)
    column = np.searchsorted(edges, scores, "right")
    shape = (videos, len(edges) + 1)
    return histograms(video[labels], column[labels], shape), histograms(video[~labels], column[~labels], shape)


NORMAL = -1
"""The code of a row without a category."""


def frames_of_category(frames: FrameSet, codes: IndexArray, code: int, *, own_videos: bool = False) -> FrameSet:
    """The frames to judge one category by: its abnormal frames and the normal ones; other categories' frames are left out.

    Args:
        frames: of all videos.
        codes: (N,) integers, the category of each abnormal row; abnormal rows of none have NORMAL.
        code: the category that stays.
        own_videos: True leaves only videos that hold the category, so that nothing but the moment is judged.
    """
    if len(codes) != len(frames.labels):
        raise ValueError(f"{len(frames.labels)} frames need as many category codes, not {len(codes)}")
    of_category = frames.labels & (codes == code)
    rows = of_category | ~frames.labels
    if own_videos:
        rows &= np.isin(frames.video, frames.video[of_category])
    return frames.keep(rows).without_empty()


def per_category(
    figure: Callable[[FrameSet], Estimate],
    frames: FrameSet,
    codes: IndexArray,
    names: Sequence[str],
    *,
    own_videos: bool = False,
) -> dict[str, Estimate]:
    """`figure` for each category by name, on the frames that `frames_of_category` leaves.

    Papers on UCF-Crime (Sultani et al., CVPR 2018) and XD-Violence report such figures without a shared definition. Here it is
    all normal frames by default, those of the category's videos with `own_videos`. Undefined where `figure` is, so for a
    category without frames.

    Args:
        figure: `frame_auc` and the like; `functools.partial` sets its options.
        frames: of all videos.
        codes: (N,) integers, 0 to len(names) - 1, NORMAL elsewhere.
        names: of the categories, by code.
        own_videos: as for `frames_of_category`.
    """
    return {name: figure(frames_of_category(frames, codes, code, own_videos=own_videos)) for code, name in enumerate(names)}
