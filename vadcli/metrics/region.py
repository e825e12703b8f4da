"""Region metrics on boxes, RBDC and TBDC: how many anomalies are found in the right place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vadcli.metrics.intervals import Estimate, Numbers, area_to_limit, bin_edges, check_share, divide, from_top, histograms
from vadcli.metrics.pixel import TOUCHING
from vadcli.types import ByteArray, IndexArray

ALPHA = 0.1
"""The share of a track's regions that must be found for the track to be found."""
BETA = 0.1
"""The lowest IoU at which a region is found."""
RESAMPLE_BINS = 2048  # largest number of score bins in a resample


@dataclass(frozen=True)
class Regions:
    """Detected regions.

    Attributes:
        video: (D,) int64, 0 to V - 1.
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
            raise ValueError(f"{len(self.video)} regions need as many scores, all of them numbers")


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
            raise ValueError(f"{len(self.video)} regions need as many track numbers, not {len(self.track)}")


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

    The same paper defines it. A track is found if at least the share `alpha` of its regions is found. Undefined without true
    tracks or without frames.
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
        raise ValueError(f"{len(video)} regions need as many frames and (R, 4) boxes, not {len(frame)} and {box.shape}")
    if len(video) and (box[:, 2:].min() <= 0 or video.min() < 0 or frame.min() < 0):
        raise ValueError("a region needs a width and a height above 0, and a video and a frame of at least 0")


def _match(detected: Regions, tracks: Tracks, beta: float) -> tuple[Numbers, NDArray[np.bool_]]:
    """Return the highest score (G,) that finds each true region, and which detections (D,) are false.

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
    counts = high - low
    first = np.repeat(np.arange(len(wanted)), counts)
    ramp = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
    return first, order[np.repeat(low, counts) + ramp]


def _criterion(
    detected: Regions,
    video: IndexArray,
    found_at: Numbers,
    false: NDArray[np.bool_],
    *,
    frames: IndexArray,
    undefined: str,
) -> Estimate:
    """Return RBDC or TBDC from the video of each region or track and the threshold that finds it."""
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
    """Return areas (B,) from counts (B, K) by ascending score; NaN without true regions or without frames."""
    start = np.zeros((len(hits), 1))
    rate = divide(from_top(hits)[:, ::-1], np.broadcast_to(totals[:, None], hits.shape))
    false = divide(from_top(alarms)[:, ::-1], np.broadcast_to(frames[:, None], alarms.shape))
    usable = (totals > 0) & (frames > 0)
    x, y = np.where(usable[:, None], false, 0.0), np.where(usable[:, None], rate, 0.0)
    area = area_to_limit(np.hstack([start, x]), np.hstack([start, y]), 1.0, flat=True)
    return np.where(usable, area, np.nan)
