"""Simple measures of motion in grey frames: the baselines that a detector has to beat.

The functions take the frames of one clip, (N, H, W) uint8. More motion gives higher maps and scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from vadcli.detectors.calibration import smooth
from vadcli.types import ByteArray, FloatArray

SMOOTHING_S = 0.4
"""The width of the Gaussian with which the motion detector smooths its scores, too."""
MOG2_VARIANCE = 16.0  # the default of dvr-scan and of OpenCV


@dataclass(frozen=True)
class Motion:
    """The motion that was measured in one clip.

    Attributes:
        maps: (N, H, W) float32, >= 0.
        scores: (N,) float32, >= 0, not smoothed.
    """

    maps: FloatArray
    scores: FloatArray


def smoothed(scores: FloatArray, fps: float) -> FloatArray:
    """Return the scores (N,), smoothed over time by the Gaussian of the motion detector."""
    times = np.arange(len(scores)) / fps
    return smooth(scores, timestamp=times, usable=np.ones(len(scores), np.bool_), sigma_s=SMOOTHING_S, gap_s=1.0)


def difference(frames: ByteArray, box_px: int = 5) -> Motion:
    """Return the change from the previous frame in grey levels; `highest_box` makes the scores."""
    return highest_box(differences(frames), box_px)


def differences(frames: ByteArray) -> FloatArray:
    """Return the change from the previous frame: (N, H, W) float32 grey levels."""
    return _with_first([cv2.absdiff(a, b).astype(np.float32) for a, b in pairwise(frames)], frames)


def flow_speeds(frames: ByteArray) -> FloatArray:
    """Return the speed by OpenCV's DIS flow (medium): (N, H, W) float32, pixels per frame."""
    flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return _with_first([np.linalg.norm(flow.calc(a, b, None), axis=2) for a, b in pairwise(frames)], frames)


def highest_box(maps: FloatArray, box_px: int) -> Motion:
    """Return the maps averaged over boxes. A frame's score is its highest box.

    Only boxes that are completely inside the frame count, and only every second one in each direction.
    """
    boxes = np.stack([cv2.blur(each, (box_px, box_px), borderType=cv2.BORDER_REPLICATE) for each in maps])
    edge = box_px // 2
    inside = boxes[:, edge : boxes.shape[1] - edge : 2, edge : boxes.shape[2] - edge : 2]
    return Motion(boxes, inside.max(axis=(1, 2)))


def whole_frame(maps: FloatArray) -> Motion:
    """Return the maps unchanged; a frame's score is the mean of its pixels."""
    return Motion(maps, maps.mean(axis=(1, 2)))


def foreground(clips: list[ByteArray]) -> list[FloatArray]:
    """Return one (N, H, W) float32 array per clip: 1 for the foreground of OpenCV's MOG2, else 0.

    All clips share one background model. The model reads all clips once before it measures them, because the motion detector is
    also fitted on all clips before it scores them.
    """
    model = cv2.createBackgroundSubtractorMOG2(varThreshold=MOG2_VARIANCE, detectShadows=False)
    for frames in clips:
        for frame in frames:
            model.apply(frame)
    return [np.stack([model.apply(frame) for frame in frames]).astype(np.float32) / np.float32(255) for frames in clips]


def _with_first(maps: list[FloatArray], frames: ByteArray) -> FloatArray:
    """Return maps (N, H, W) float32; the first frame gets the map of the second frame."""
    return np.stack([maps[0] if maps else np.zeros(frames.shape[1:]), *maps]).astype(np.float32)
