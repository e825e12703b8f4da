"""Localization metrics: do the masks show the right place in the frame?

Pixel metrics compare masks. RBDC and TBDC compare the boxes around regions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vadcli.metrics import (
    Estimate,
    Numbers,
    area_to_limit,
    average_precision,
    bin_edges,
    check_share,
    divide,
    from_top,
    histograms,
    ranges,
    ratio,
    roc_auc,
)
from vadcli.types import BoolArray, ByteArray, IndexArray

BYTE_BINS = 256
"""Number of bins of uint8 masks: one per value, so metrics are exact."""

PRO_LIMIT = 0.3
"""The false-positive rate up to which AUPRO is the area under the curve, as its authors propose."""

PIMO_LIMITS = (1e-5, 1e-4)
"""AUPIMO is the area between these two false-positive rates, which its authors propose."""

TOUCHING = np.ones((3, 3), np.int8)  # pixels that touch at a corner belong to one region, as in MVTec AD's own evaluation


@dataclass(frozen=True)
class PixelCounts:
    """Numbers of pixels: V videos (rows) x K bins of ascending score (columns).

    A true pixel is abnormal in the ground truth. A true region is a connected group of true pixels in one frame.

    Attributes:
        names: the V videos, in the order in which they were added.
        positives, negatives: (V, K) int64, numbers of true pixels and of all other pixels.
        overlap: (V, K) float64, sum over all true regions of (pixels of the region in the bin / all pixels of the region).
        regions: (V,) int64, number of true regions in all frames.
        frame_overlap: (V, K) float64, sum over all frames with a true pixel of (true pixels in the bin / all true pixels).
        normal_share: (V, K) float64, sum over all frames without a true pixel of (pixels in the bin / all pixels).
        normal_frames: (V,) int64, number of frames without a true pixel.
        iou_sum: (V,) float64, the sum of IoUs over frames with a true pixel.
        positive_frames: (V,) int64, number of frames with a true pixel.
        exact: True if the scores were bytes: each value has its own bin.
    """

    names: tuple[str, ...]
    positives: IndexArray
    negatives: IndexArray
    overlap: Numbers
    regions: IndexArray
    frame_overlap: Numbers
    normal_share: Numbers
    normal_frames: IndexArray
    iou_sum: Numbers
    positive_frames: IndexArray
    exact: bool

    @property
    def note(self) -> str:
        """The note for metrics from these counts: the number of bins; "" if `exact`."""
        return "" if self.exact else f"by {self.positives.shape[-1]} bins"


class PixelAccumulator:
    """Counts the pixels of masks that are added frame by frame, without keeping the masks.

    uint8 masks (0 to 255) have one bin per value, so their metrics are exact. The scores of float masks in [0, 1] are put into
    `bins` bins of equal width. All masks must have the same type.

    Args:
        bins: number of bins for float masks, at least 256.
        mask_at: score in [0, 1] from which a pixel belongs to the predicted mask. Only the IoU needs it.
    """

    def __init__(self, *, bins: int = BYTE_BINS, mask_at: float = 0.5) -> None:
        if bins < BYTE_BINS:
            raise ValueError(f"pixel metrics need {BYTE_BINS} bins or more, not {bins}")
        if not 0.0 <= mask_at <= 1.0:
            raise ValueError(f"mask_at must lie in [0, 1], not {mask_at:g}")
        self._bins = bins
        self._mask_at = mask_at
        self._bytes: bool | None = None
        self._videos: dict[str, _Video] = {}

    def add(self, video: str, scores: NDArray[Any], truth: NDArray[Any]) -> None:
        """Count the pixels of one frame or of F frames of a video.

        Args:
            video: name of the video.
            scores: (H, W) or (F, H, W) uint8, or floats in [0, 1].
            truth: the true masks, in the same shape; a pixel is abnormal if its value is not 0.

        Raises:
            ValueError: shapes differ, floats are outside [0, 1], or bytes and floats are mixed.
        """
        if scores.shape != truth.shape or scores.ndim not in (2, 3):
            raise ValueError(f"{video}: scores {scores.shape} and truth {truth.shape} must both be (H, W) or both (F, H, W)")
        is_bytes = scores.dtype == np.uint8
        if self._bytes not in (None, is_bytes):
            raise ValueError(f"{video}: bytes and floats cannot be mixed because their bins differ")
        if not is_bytes and scores.size and not (scores.min() >= 0.0 and scores.max() <= 1.0):
            raise ValueError(f"{video}: scores must lie in [0, 1], not {scores.min():g} to {scores.max():g}")
        self._bytes = is_bytes
        counts = self._videos.setdefault(video, _Video(BYTE_BINS if is_bytes else self._bins))
        size = scores.shape[-2:]
        for frame, mask in zip(scores.reshape(-1, *size), truth.reshape(-1, *size), strict=True):
            predicted = frame >= (self._mask_at * 255.0 if is_bytes else self._mask_at)
            binned = frame if is_bytes else np.minimum((frame * self._bins).astype(np.int64), self._bins - 1)
            counts.add(binned, predicted, mask != 0)

    def counts(self) -> PixelCounts:
        """Return the counts of all masks that were added."""
        videos = list(self._videos.values())
        empty = np.zeros((0, self._bins))
        return PixelCounts(
            names=tuple(self._videos),
            positives=np.array([video.positives for video in videos] or empty, np.int64),
            negatives=np.array([video.all - video.positives for video in videos] or empty, np.int64),
            overlap=np.array([video.overlap for video in videos] or empty, np.float64),
            regions=np.array([video.regions for video in videos], np.int64),
            frame_overlap=np.array([video.frame_overlap for video in videos] or empty, np.float64),
            normal_share=np.array([video.normal_share for video in videos] or empty, np.float64),
            normal_frames=np.array([video.normal_frames for video in videos], np.int64),
            iou_sum=np.array([video.iou_sum for video in videos], np.float64),
            positive_frames=np.array([video.positive_frames for video in videos], np.int64),
            exact=bool(self._bytes),
        )


class _Video:
    """The running counts of one video."""

    def __init__(self, bins: int) -> None:
        self.all = np.zeros(bins, np.int64)
        self.positives = np.zeros(bins, np.int64)
        self.overlap = np.zeros(bins, np.float64)
        self.frame_overlap = np.zeros(bins, np.float64)
        self.normal_share = np.zeros(bins, np.float64)
        self.normal_frames = 0
        self.regions = 0
        self.iou_sum = 0.0
        self.positive_frames = 0

    def add(self, binned: NDArray[Any], predicted: BoolArray, truth: BoolArray) -> None:
        """Count the pixels of one frame."""
        bins = len(self.all)
        pixels = np.bincount(binned.ravel(), minlength=bins)
        self.all += pixels
        if not truth.any():
            self.normal_share += pixels / truth.size
            self.normal_frames += 1
            return
        inside = binned[truth].astype(np.int64)
        true = np.bincount(inside, minlength=bins)
        self.positives += true
        self.frame_overlap += true / len(inside)
        labelled, regions = ndimage.label(truth, TOUCHING)
        region = labelled[truth].astype(np.int64) - 1
        areas = np.bincount(region, minlength=regions)
        self.overlap += np.bincount(inside, 1.0 / areas[region], minlength=bins)
        self.regions += regions
        self.iou_sum += float((predicted & truth).sum() / (predicted | truth).sum())
        self.positive_frames += 1


def pixel_auc(counts: PixelCounts) -> Estimate:
    """Return the ROC-AUC over all pixels of all frames, as in `sklearn.metrics.roc_auc_score`.

    Recent papers on Ped2 report this value as pixel-level AUC. The pixel-level criterion of Mahadevan et al. (CVPR 2010) is
    different: a frame counts as found only if at least 40 % of its true pixels are found. Float scores in one bin count as
    equal. Undefined without abnormal or without normal pixels.
    """
    return _by_curve(counts, roc_auc, "pixel ROC-AUC needs pixels of both classes")


def pixel_ap(counts: PixelCounts) -> Estimate:
    """Return the average precision over all pixels of all frames.

    It is computed as in `sklearn.metrics.average_precision_score`. Float scores in one bin count as equal. Undefined without
    abnormal pixels.
    """
    return _by_curve(counts, average_precision, "pixel average precision needs an abnormal pixel")


def mask_iou(counts: PixelCounts) -> Estimate:
    """Return the IoU of the predicted and the true mask, as a mean over the frames with a true pixel.

    A pixel belongs to the predicted mask if its score is at least `mask_at` (see `PixelAccumulator`). Frames without a true
    pixel are left out, even if their predicted mask has pixels. Undefined if no frame has a true pixel.
    """
    return ratio(counts.iou_sum, counts.positive_frames.astype(np.float64), undefined="mask IoU needs a frame with a true mask")


def aupro(counts: PixelCounts, *, limit: float = PRO_LIMIT) -> Estimate:
    """Return AUPRO: the area under the per-region overlap curve up to `limit`, divided by `limit`.

    Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021.

    The curve has one point per threshold. A pixel is found if its score reaches the threshold.

    - x: the fraction of all normal pixels that is found (the false-positive rate)
    - y: the fraction of a true region's pixels that is found, as a mean over all true regions. A region is 8-connected and in
      one frame.

    The best value is 1. Undefined without a true region or without normal pixels.
    """
    check_share("the limit", limit)
    regions = counts.regions.astype(np.float64)

    def statistic(weights: Numbers) -> Numbers:
        """Return AUPRO in each resample."""
        negatives = from_top(weights @ counts.negatives.astype(np.float64))
        overlap = from_top(weights @ counts.overlap)
        with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 occurs in a resample that is undefined
            x = negatives[:, ::-1] / negatives[:, :1]
            y = overlap[:, ::-1] / (weights @ regions)[:, None]
        start = np.zeros((len(weights), 1))
        area = area_to_limit(np.hstack([start, x]), np.hstack([start, y]), limit, flat=False) / limit
        area[(negatives[:, 0] == 0) | (weights @ regions == 0)] = np.nan
        return area

    return _estimate(counts, statistic(np.ones((1, len(regions)))), statistic, "AUPRO needs a true region and normal pixels")


def aupimo(counts: PixelCounts, *, limits: tuple[float, float] = PIMO_LIMITS) -> Estimate:
    """Return AUPIMO: the area under a frame's PIMO curve, as a mean over the frames with a true pixel.

    Source: Bertoldo et al., "AUPIMO: Redefining Anomaly Localization Benchmarks with High Speed and Low Tolerance", BMVC 2024.

    A PIMO curve has one point per threshold. A pixel is found if its score reaches the threshold.

    - x: the logarithm of the false-positive rate. In one normal frame (a frame without a true pixel), this rate is the fraction
      of the pixels that is found. The rate of a threshold is the mean over all normal frames.
    - y: the fraction of the frame's true pixels that is found

    The area between the two rates in `limits` is divided by the largest possible area, so the best value is 1. Undefined if no
    frame has a true pixel, or if all frames have one.

    The curve is a step function: at a rate f, it has the y of the lowest threshold whose rate is at most f. The reason: masks
    have only 256 levels, so there is often no threshold between the limits. A straight line between two points would have
    values of y that no threshold reaches.

    `Estimate.curve` is the mean of all PIMO curves: the distinct points (rate, y), from the highest threshold to the lowest.
    """
    low, high = limits
    if not 0.0 < low < high <= 1.0:
        raise ValueError(f"the limits must be 0 < low < high <= 1, not {low:g} and {high:g}")

    def statistic(weights: Numbers) -> Numbers:
        """Return AUPIMO in each resample."""
        x, y = _pimo(counts, weights)
        start, end = np.zeros((len(weights), 1)), np.ones((len(weights), 1))
        edges = np.log(np.clip(np.hstack([start, x, end]), low, high))  # (B, K + 2)
        return np.asarray((np.hstack([start, y]) * np.diff(edges, axis=1)).sum(axis=1) / np.log(high / low), np.float64)

    undefined = "AUPIMO needs a frame with a true pixel and a frame without one"
    everything = np.ones((1, len(counts.names)))
    estimate = _estimate(counts, statistic(everything), statistic, undefined)
    points = [tuple(point) for point in np.concatenate(_pimo(counts, everything)).T.tolist()]
    return replace(estimate, curve=tuple(dict.fromkeys(points))) if estimate.value is not None else estimate


def _pimo(counts: PixelCounts, weights: Numbers) -> tuple[Numbers, Numbers]:
    """Return the false-positive rates and the y values of B mean PIMO curves, (B, K) each.

    The first column is for the highest threshold. The values of an undefined curve are NaN.
    """
    abnormal, normal = (weights @ frames.astype(np.float64) for frames in (counts.positive_frames, counts.normal_frames))
    defined = (abnormal > 0) & (normal > 0)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 occurs in a resample that is undefined
        x = from_top(weights @ counts.normal_share)[:, ::-1] / np.where(defined, normal, np.nan)[:, None]
        y = from_top(weights @ counts.frame_overlap)[:, ::-1] / np.where(defined, abnormal, np.nan)[:, None]
    return x, y


def _by_curve(counts: PixelCounts, area: Any, undefined: str) -> Estimate:
    def statistic(weights: Numbers) -> Numbers:
        """Return the area under the curve for each resample."""
        curve: Numbers = area(weights @ counts.positives.astype(np.float64), weights @ counts.negatives.astype(np.float64))
        return curve

    exact = area(counts.positives.sum(axis=0, keepdims=True), counts.negatives.sum(axis=0, keepdims=True))
    return _estimate(counts, exact, statistic, undefined)


def _estimate(counts: PixelCounts, value: Numbers, statistic: Any, undefined: str) -> Estimate:
    figure = float(value[0])
    if np.isnan(figure):
        return Estimate(None, len(counts.names), statistic, undefined)
    return Estimate(figure, len(counts.names), statistic, counts.note)


ALPHA = 0.1
"""A track is found if at least this fraction of its regions is found."""
BETA = 0.1
"""The lowest IoU at which a region is found."""
RESAMPLE_BINS = 2048  # largest number of score bins in a resample


@dataclass(frozen=True)
class DetectedRegions:
    """D detected regions.

    Attributes:
        video: (D,) int64, number of the video, 0 to V - 1.
        frame: (D,) int64, number of the frame in its video, from 0.
        box: (D, 4) x, y, width, height in pixels.
        score: (D,) float64, higher is more anomalous.
    """

    video: IndexArray
    frame: IndexArray
    box: Numbers
    score: Numbers

    def __post_init__(self) -> None:
        _check_boxes(self.video, self.frame, self.box)
        if len(self.score) != len(self.video) or np.isnan(self.score).any():
            raise ValueError(f"{len(self.video)} regions need {len(self.video)} scores without NaN, not {len(self.score)}")


@dataclass(frozen=True)
class Tracks:
    """G true regions. A track is all regions of one object in one video.

    Attributes:
        video, frame, box: (G,), (G,), (G, 4) as in `DetectedRegions`.
        track: (G,) int64, number of the region's track in its video.
    """

    video: IndexArray
    frame: IndexArray
    box: Numbers
    track: IndexArray

    def __post_init__(self) -> None:
        _check_boxes(self.video, self.frame, self.box)
        if len(self.track) != len(self.video):
            raise ValueError(f"{len(self.video)} regions need {len(self.video)} track numbers, not {len(self.track)}")


def rbdc(detected: DetectedRegions, tracks: Tracks, frames: IndexArray, *, beta: float = BETA) -> Estimate:
    """Return the region-based detection criterion (RBDC): an area under a curve.

    Source: Ramachandra and Jones, "Street Scene: A New Dataset and Evaluation Protocol for Video Anomaly Detection", WACV 2020.

    The curve has one point per threshold. Only detected regions whose score reaches the threshold are used.

    - x: the number of false regions per frame, from 0 to 1. A detected region is false if its IoU with every true region in the
      frame is below `beta`.
    - y: the fraction of true regions that is found. A true region is found if its IoU with a detected region in the frame is at
      least `beta`.

    The curve starts at (0, 0). After its last point with x <= 1, it is horizontal. Undefined without true regions or without
    frames.

    The evaluation code of UBnormal and of Georgescu et al. (TPAMI 2021) draws the curve in the same way, with one difference:
    there, the order of regions with the same score matters. Here, these regions are one point of the curve.

    Args:
        detected: the detected regions.
        tracks: the true regions.
        frames: (V,) int64, the number of frames of each video, including frames without regions.
        beta: lowest IoU at which a region is found.
    """
    check_share("beta", beta)
    best, false = _match(detected, tracks, beta)
    return _criterion(detected, tracks.video, best, false, frames=frames, undefined="RBDC needs a true region and a frame")


def tbdc(
    detected: DetectedRegions, tracks: Tracks, frames: IndexArray, *, alpha: float = ALPHA, beta: float = BETA
) -> Estimate:
    """Return the track-based detection criterion (TBDC): as RBDC, but y is the fraction of found tracks.

    TBDC is from the same paper as RBDC (see `rbdc`). A track is found if at least the fraction `alpha` of its regions is found.
    Undefined without true tracks or without frames.
    """
    check_share("alpha", alpha)
    check_share("beta", beta)
    best, false = _match(detected, tracks, beta)
    order = np.lexsort((-best, tracks.track, tracks.video))
    video, track, best = tracks.video[order], tracks.track[order], best[order]
    starts = np.flatnonzero(np.append(len(order) > 0, (video[1:] != video[:-1]) | (track[1:] != track[:-1])))
    lengths = np.diff(np.append(starts, len(order)))
    needed = np.maximum(np.ceil(alpha * lengths - 1e-9).astype(np.int64), 1)  # - 1e-9 because 0.1 * 30 is slightly above 3
    # For each of T tracks: its video, and the highest threshold at which the fraction `alpha` of its regions is found.
    video, found_at = video[starts], best[starts + needed - 1]
    return _criterion(detected, video, found_at, false, frames=frames, undefined="TBDC needs a true track and a frame")


def mask_regions(mask: ByteArray, *, at: float = 0.5) -> tuple[NDArray[np.int64], Numbers]:
    """Return the box and the highest score of each of the R regions in a mask, (R, 4) and (R,).

    A region is an 8-connected group of pixels. A box is x, y, width and height in pixels.

    Args:
        mask: (H, W) uint8, where 255 means a score of 1.
        at: score in [0, 1] from which a pixel belongs to a region; a pixel with the score 0 never does.
    """
    labelled, count = ndimage.label((mask >= at * 255.0) & (mask > 0), TOUCHING)
    boxes = [(x.start, y.start, x.stop - x.start, y.stop - y.start) for y, x in ndimage.find_objects(labelled)]
    peaks = ndimage.maximum(mask, labelled, np.arange(1, count + 1)) if count else []
    return np.array(boxes, np.int64).reshape(-1, 4), np.asarray(peaks, np.float64) / 255.0


def _check_boxes(video: IndexArray, frame: IndexArray, box: Numbers) -> None:
    if len(frame) != len(video) or box.shape != (len(video), 4):
        raise ValueError(f"{len(video)} regions need as many frames and boxes, not {len(frame)} frames and boxes {box.shape}")
    if len(video) and (box[:, 2:].min() <= 0 or video.min() < 0 or frame.min() < 0):
        raise ValueError(
            "the width and height of a region must be above 0, and the numbers of its video and frame 0 or more; the lowest "
            f"are {box[:, 2].min():g} × {box[:, 3].min():g} px, video {video.min()} and frame {frame.min()}"
        )


def _match(detected: DetectedRegions, tracks: Tracks, beta: float) -> tuple[Numbers, NDArray[np.bool_]]:
    """Compare each true region with the detected regions in its frame.

    Returns:
        For each true region, the highest score of a detected region that finds it, (G,) float64; -inf if none does. For each
        detected region, whether it is false, (D,) bool.
    """
    first, second = _same_frame(detected, tracks)
    box, true_box = detected.box[first], tracks.box[second]
    near = np.maximum(box[:, :2], true_box[:, :2])
    far = np.minimum(box[:, :2] + box[:, 2:], true_box[:, :2] + true_box[:, 2:])
    shared = np.maximum(far - near, 0.0).prod(axis=1)
    hits = shared / (box[:, 2:].prod(axis=1) + true_box[:, 2:].prod(axis=1) - shared) >= beta
    best = np.full(len(tracks.video), -np.inf)
    np.maximum.at(best, second[hits], detected.score[first[hits]])
    false = np.ones(len(detected.video), np.bool_)
    false[first[hits]] = False
    return best, false


def _same_frame(detected: DetectedRegions, tracks: Tracks) -> tuple[IndexArray, IndexArray]:
    """Return the indices of all pairs of a detected and a true region that are in the same frame."""
    span = 1 + max(detected.frame.max(initial=0), tracks.frame.max(initial=0))
    keys = tracks.video * span + tracks.frame
    order = np.argsort(keys, kind="stable")
    wanted = detected.video * span + detected.frame
    low, high = np.searchsorted(keys[order], wanted, "left"), np.searchsorted(keys[order], wanted, "right")
    places, first = ranges(low, high - low)
    return first, order[places]


def _criterion(
    detected: DetectedRegions,
    video: IndexArray,
    found_at: Numbers,
    false: NDArray[np.bool_],
    *,
    frames: IndexArray,
    undefined: str,
) -> Estimate:
    """Return RBDC if the targets are true regions, or TBDC if the targets are true tracks.

    Args:
        detected: the D detected regions.
        video: for each target, the number of its video.
        found_at: for each target, the highest threshold at which it is found; -inf if it is never found.
        false: (D,) bool, True if the detected region is false.
        frames: (V,) the number of frames of each video.
        undefined: the note for a result that is undefined.
    """
    videos = len(frames)
    beyond = max(video.max(initial=-1), detected.video.max(initial=-1))
    if beyond >= videos:
        raise ValueError(f"a region is in video {beyond}, but there are only {videos} videos, numbered from 0")
    totals = np.bincount(video, minlength=videos).astype(np.float64)
    length = np.asarray(frames, np.float64)
    found = found_at > -np.inf

    def tables(edges: Numbers) -> tuple[Numbers, Numbers]:
        """Return the numbers of hits and of false alarms per video and score bin."""
        shape = (videos, len(edges) + 1)
        hits = histograms(video[found], np.searchsorted(edges, found_at[found], "right"), shape)
        return hits, histograms(detected.video[false], np.searchsorted(edges, detected.score[false], "right"), shape)

    groups = [np.sort(found_at[found]), np.sort(detected.score[false])]

    @cache  # computed once, when the first interval is requested
    def binned() -> tuple[Numbers, Numbers]:
        """Return the tables for few score bins, which are enough for resamples."""
        return tables(bin_edges(groups, RESAMPLE_BINS))

    def statistic(weights: Numbers) -> Numbers:
        """Return the area under the curve for each resample."""
        hits, alarms = binned()
        return _area(weights @ hits, weights @ alarms, weights @ totals, weights @ length)

    if not totals.any() or not length.any():
        return Estimate(None, videos, statistic, undefined)
    edges = np.unique(np.concatenate(groups))
    columns = len(edges) + 1
    hits = np.bincount(np.searchsorted(edges, groups[0], "right"), minlength=columns)[None].astype(np.float64)
    alarms = np.bincount(np.searchsorted(edges, groups[1], "right"), minlength=columns)[None].astype(np.float64)
    value = _area(hits, alarms, totals.sum(keepdims=True), length.sum(keepdims=True))
    return Estimate(float(value[0]), videos, statistic)


def _area(hits: Numbers, alarms: Numbers, totals: Numbers, frames: Numbers) -> Numbers:
    """Return the areas (B,) under B curves; NaN without targets or without frames.

    Args:
        hits, alarms: (B, K), numbers of found targets and of false regions in each score bin, ascending.
        totals, frames: (B,), numbers of all targets and of all frames.
    """
    start = np.zeros((len(hits), 1))
    rate = divide(from_top(hits)[:, ::-1], np.broadcast_to(totals[:, None], hits.shape))
    false = divide(from_top(alarms)[:, ::-1], np.broadcast_to(frames[:, None], alarms.shape))
    usable = (totals > 0) & (frames > 0)
    x, y = np.where(usable[:, None], false, 0.0), np.where(usable[:, None], rate, 0.0)
    area = area_to_limit(np.hstack([start, x]), np.hstack([start, y]), 1.0, flat=True)
    return np.where(usable, area, np.nan)
