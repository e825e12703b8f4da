"""Localization metrics: whether anomalies are found in the right place.

Pixel metrics compare masks. RBDC and TBDC compare boxes of regions.
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
"""Bins of uint8 masks: one per value, so that nothing is lost."""

PRO_LIMIT = 0.3
"""The highest false-positive rate of the AUPRO integral, as its authors propose."""

PIMO_LIMITS = (1e-5, 1e-4)
"""AUPIMO is the area between these two false-positive rates, which its authors propose."""

TOUCHING = np.ones((3, 3), np.int8)  # pixels that touch at a corner belong to one region, as in MVTec AD's own evaluation


@dataclass(frozen=True)
class PixelCounts:
    """Pixel counts with one row per video.

    Attributes:
        names: (V,) the videos, in the order in which they were added.
        positives, negatives: (V, K) int64 pixels by bins of ascending score.
        overlap: (V, K) float64, the share of a true region's pixels in each bin, summed over the true regions.
        regions: (V,) int64 true regions, counted in each frame separately.
        frame_overlap: (V, K) float64, the share of a frame's true pixels in each bin, summed over frames with a true pixel.
        normal_share: (V, K) float64, the share of a frame's pixels in each bin, summed over frames without a true pixel.
        normal_frames: (V,) int64 frames without a true pixel.
        iou_sum: (V,) float64, the sum of IoUs over frames with a true pixel.
        positive_frames: (V,) int64 frames with a true pixel.
        exact: True if the scores were bytes, so that bins lose nothing.
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
        """The note for metrics that are computed from these counts: the number of bins.

        The note is empty if the bins lose nothing.
        """
        return "" if self.exact else f"by {self.positives.shape[-1]} bins"


class PixelAccumulator:
    """Counts the pixels of masks that are added frame by frame. It does not keep the masks.

    uint8 masks (0 to 255) have one bin per value, so their metrics are exact. Float maps in [0, 1] are divided into `bins`
    equal bins, and the note of every metric has the number of bins. All masks of one accumulator have the same type.

    Args:
        bins: number of bins for float maps, at least 256; uint8 masks always have 256.
        mask_at: lowest score in [0, 1] of a pixel of the predicted mask; only used for the IoU.
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
        """Count a frame or a stack of frames of one video.

        Args:
            video: name of the video.
            scores: (H, W) or (F, H, W) uint8, or floats in [0, 1].
            truth: the same shape; every value except 0 is abnormal. To compute at a smaller size, resize both first (scores
                with interpolation, truth with the nearest pixel).

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
    """Return the ROC-AUC over all pixels of all frames: the value of `sklearn.metrics.roc_auc_score`.

    It is the pixel-level AUC of recent papers on Ped2, not the 40 % criterion of Mahadevan et al. (CVPR 2010). Exact for
    bytes; for floats, scores in one bin count as ties. Undefined without abnormal or without normal pixels.
    """
    return _by_curve(counts, roc_auc, "pixel ROC-AUC needs pixels of both classes")


def pixel_ap(counts: PixelCounts) -> Estimate:
    """Return the average precision over all pixels of all frames.

    It equals `sklearn.metrics.average_precision_score` of all pixels. Exact for bytes; for floats, scores in one bin count as
    ties. Undefined without abnormal pixels.
    """
    return _by_curve(counts, average_precision, "pixel average precision needs an abnormal pixel")


def mask_iou(counts: PixelCounts) -> Estimate:
    """Return the mean IoU of the predicted and the true mask, over the frames with a true pixel.

    The IoU of a frame is its `sklearn.metrics.jaccard_score`. The predicted mask has the pixels whose score is at least
    `mask_at` of `PixelAccumulator`. Frames without a true pixel are left out, even if their predicted mask has pixels.
    Undefined if no frame has a true pixel.
    """
    return ratio(counts.iou_sum, counts.positive_frames.astype(np.float64), undefined="mask IoU needs a frame with a true mask")


def aupro(counts: PixelCounts, *, limit: float = PRO_LIMIT) -> Estimate:
    """Return AUPRO: the area under the per-region overlap curve up to `limit`, divided by `limit`.

    Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021. A pixel is found if its score reaches the threshold. The
    curve has one point per threshold. x is the share of normal pixels that are found. y is the share of a true region's pixels
    that are found, as a mean over all true regions (8-connected, within one frame). The curve ends at x = `limit`, if necessary
    between two points. 1 is perfect. Undefined without a true region or without normal pixels.
    """
    check_share("the limit", limit)
    regions = counts.regions.astype(np.float64)

    def statistic(weights: Numbers) -> Numbers:
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

    Bertoldo et al., AUPIMO: Redefining Anomaly Localization Benchmarks with High Speed and Low Tolerance, BMVC 2024. A pixel is
    found if its score reaches the threshold. A frame's PIMO curve has one point per threshold. y is the share of the frame's
    true pixels that are found. x is the logarithm of the false-positive rate: the share of pixels that are found in a frame
    without a true pixel, as a mean over these frames. The area between the two rates in `limits` is divided by the largest
    possible area, so 1 is perfect.

    The estimate's `curve` is the mean of all PIMO curves: one (rate, share) per threshold, from the highest threshold to the
    lowest. If several thresholds give the same point, it is listed once.

    The curve is a staircase here: at a false-positive rate f, it has the y of the lowest threshold whose rate is at most f.
    Masks with 256 levels often have no threshold between the limits, and a straight line would then show shares that no
    threshold reaches. Undefined if no frame has a true pixel, or if all frames have one.
    """
    low, high = limits
    if not 0.0 < low < high <= 1.0:
        raise ValueError(f"the limits must lie in (0, 1] in order, not {low:g} and {high:g}")

    def statistic(weights: Numbers) -> Numbers:
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
    """Return x and y of the mean PIMO curves, (B, K) by falling threshold; NaN if undefined.

    x are false-positive rates, not their logarithms. y are shares of true pixels.
    """
    abnormal, normal = (weights @ frames.astype(np.float64) for frames in (counts.positive_frames, counts.normal_frames))
    defined = (abnormal > 0) & (normal > 0)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 occurs in a resample that is undefined
        x = from_top(weights @ counts.normal_share)[:, ::-1] / np.where(defined, normal, np.nan)[:, None]
        y = from_top(weights @ counts.frame_overlap)[:, ::-1] / np.where(defined, abnormal, np.nan)[:, None]
    return x, y


def _by_curve(counts: PixelCounts, area: Any, undefined: str) -> Estimate:
    def statistic(weights: Numbers) -> Numbers:
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
"""The share of a track's regions that must be found for the track to be found."""
BETA = 0.1
"""The lowest IoU at which a region is found."""
RESAMPLE_BINS = 2048  # largest number of score bins in a resample


@dataclass(frozen=True)
class Regions:
    """Detected regions.

    Attributes:
        video: (D,) int64, number of the video, 0 to V - 1.
        frame: (D,) int64, number of the frame in its video, from 0.
        box: (D, 4) x, y, width, height in pixels. If a box is given by its first and last pixel, as in the tracks that
            Georgescu et al. publish, its width is x_max - x_min + 1.
        score: (D,) float64, higher is more anomalous.
    """

    video: IndexArray
    frame: IndexArray
    box: Numbers
    score: Numbers

    def __post_init__(self) -> None:
        _check_boxes(self.video, self.frame, self.box)
        if len(self.score) != len(self.video) or np.isnan(self.score).any():
            raise ValueError(f"{len(self.video)} regions need one score each and no NaN, not {len(self.score)} scores")


@dataclass(frozen=True)
class Tracks:
    """True regions; the regions of one object in one video are a track.

    Attributes:
        video, frame, box: (G,), (G,), (G, 4) as in `Regions`.
        track: (G,) int64, the same for all regions of one track; another video may use the same number for another track.
    """

    video: IndexArray
    frame: IndexArray
    box: Numbers
    track: IndexArray

    def __post_init__(self) -> None:
        _check_boxes(self.video, self.frame, self.box)
        if len(self.track) != len(self.video):
            raise ValueError(f"{len(self.video)} regions need one track number each, not {len(self.track)} track numbers")


def rbdc(detected: Regions, tracks: Tracks, frames: IndexArray, *, beta: float = BETA) -> Estimate:
    """Return the region-based detection criterion (RBDC): an area under a curve.

    Ramachandra and Jones, Street Scene: A New Dataset and Evaluation Protocol for Video Anomaly Detection, WACV 2020. The curve
    has one point per threshold. x is the number of false regions per frame; the area ends at x = 1. y is the share of true
    regions that are found. A true region is found if a detected region of its frame has an IoU of at least `beta` with it. A
    detected region is false if its IoU with every true region of its frame is lower than `beta`. As in the evaluator of
    UBnormal and Georgescu et al. (TPAMI 2021), the curve starts at (0, 0) and continues horizontally from its last point with
    at most 1 false region per frame. Unlike in that evaluator, regions of equal score are added together, so that their order
    does not matter. Undefined without true regions or without frames.

    Args:
        frames: (V,) int64, the number of frames of each video, including frames without any region.
        beta: lowest IoU at which a region is found.
    """
    check_share("beta", beta)
    best, false = _match(detected, tracks, beta)
    return _criterion(detected, tracks.video, best, false, frames=frames, undefined="RBDC needs a true region and a frame")


def tbdc(detected: Regions, tracks: Tracks, frames: IndexArray, *, alpha: float = ALPHA, beta: float = BETA) -> Estimate:
    """Return the track-based detection criterion (TBDC): `rbdc` with the share of found tracks as y.

    The paper cited in `rbdc` also defines TBDC. A track is found if at least the share `alpha` of its regions is found.
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
    # The video of each track (T,), and the highest threshold (T,) at which the share `alpha` of its regions is found.
    video, found_at = video[starts], best[starts + needed - 1]
    return _criterion(detected, video, found_at, false, frames=frames, undefined="TBDC needs a true track and a frame")


def mask_regions(mask: ByteArray, *, at: float = 0.5) -> tuple[NDArray[np.int64], Numbers]:
    """Return the boxes (R, 4) and the highest scores (R,) of the 8-connected regions of a mask.

    A box is x, y, width and height in pixels.

    Args:
        mask: (H, W) uint8.
        at: lowest score in [0, 1] of a pixel of a region; pixels of value 0 never belong to a region.
    """
    labelled, count = ndimage.label((mask >= at * 255.0) & (mask > 0), TOUCHING)
    boxes = [(x.start, y.start, x.stop - x.start, y.stop - y.start) for y, x in ndimage.find_objects(labelled)]
    peaks = ndimage.maximum(mask, labelled, np.arange(1, count + 1)) if count else []
    return np.array(boxes, np.int64).reshape(-1, 4), np.asarray(peaks, np.float64) / 255.0


def _check_boxes(video: IndexArray, frame: IndexArray, box: Numbers) -> None:
    if len(frame) != len(video) or box.shape != (len(video), 4):
        raise ValueError(f"{len(video)} regions need one frame and box each, not {len(frame)} frames and boxes {box.shape}")
    if len(video) and (box[:, 2:].min() <= 0 or video.min() < 0 or frame.min() < 0):
        raise ValueError("a region needs a width and a height above 0, and a video and a frame of at least 0")


def _match(detected: Regions, tracks: Tracks, beta: float) -> tuple[Numbers, NDArray[np.bool_]]:
    """Return the highest score (G,) that finds each true region, and flags (D,) of false detections.

    The score is -inf if no detection finds the region.
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


def _same_frame(detected: Regions, tracks: Tracks) -> tuple[IndexArray, IndexArray]:
    """Return the indices of all pairs (detected, true) of regions in the same frame."""
    span = 1 + max(detected.frame.max(initial=0), tracks.frame.max(initial=0))
    keys = tracks.video * span + tracks.frame
    order = np.argsort(keys, kind="stable")
    wanted = detected.video * span + detected.frame
    low, high = np.searchsorted(keys[order], wanted, "left"), np.searchsorted(keys[order], wanted, "right")
    places, first = ranges(low, high - low)
    return first, order[places]


def _criterion(
    detected: Regions,
    video: IndexArray,
    found_at: Numbers,
    false: NDArray[np.bool_],
    *,
    frames: IndexArray,
    undefined: str,
) -> Estimate:
    """Return RBDC from true regions, or TBDC from true tracks.

    Args:
        video: the video of each true region or track.
        found_at: the highest threshold at which each true region or track is found; -inf if no detection finds it.
        false: which detected regions are false.
        frames: the number of frames of each video.
        undefined: the text that explains why there is no value, if the result is undefined.
    """
    videos = len(frames)
    beyond = max(video.max(initial=-1), detected.video.max(initial=-1))
    if beyond >= videos:
        raise ValueError(f"a region is in video {beyond}, but frames are given for {videos} videos")
    totals = np.bincount(video, minlength=videos).astype(np.float64)
    length = np.asarray(frames, np.float64)
    found = found_at > -np.inf

    def tables(edges: Numbers) -> tuple[Numbers, Numbers]:
        shape = (videos, len(edges) + 1)
        hits = histograms(video[found], np.searchsorted(edges, found_at[found], "right"), shape)
        return hits, histograms(detected.video[false], np.searchsorted(edges, detected.score[false], "right"), shape)

    groups = [np.sort(found_at[found]), np.sort(detected.score[false])]

    @cache  # computed once, when the first interval is requested
    def binned() -> tuple[Numbers, Numbers]:
        return tables(bin_edges(groups, RESAMPLE_BINS))

    def statistic(weights: Numbers) -> Numbers:
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
    """Return areas (B,) from counts (B, K) by ascending score; NaN without true regions or frames."""
    start = np.zeros((len(hits), 1))
    rate = divide(from_top(hits)[:, ::-1], np.broadcast_to(totals[:, None], hits.shape))
    false = divide(from_top(alarms)[:, ::-1], np.broadcast_to(frames[:, None], alarms.shape))
    usable = (totals > 0) & (frames > 0)
    x, y = np.where(usable[:, None], false, 0.0), np.where(usable[:, None], rate, 0.0)
    area = area_to_limit(np.hstack([start, x]), np.hstack([start, y]), 1.0, flat=True)
    return np.where(usable, area, np.nan)
