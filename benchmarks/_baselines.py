"""Simple measures of motion in grey frames, without weights: the baselines that a detector has to beat.

Frames are those of one clip, (N, H, W) uint8. Maps and scores are higher where there is more motion.
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
"""The same as in the motion detector, which smooths its scores in this way."""
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
    """Return (N,) scores, smoothed over time by the motion detector's own Gaussian."""
    times = np.arange(len(scores)) / fps
    return smooth(scores, timestamp=times, usable=np.ones(len(scores), np.bool_), sigma_s=SMOOTHING_S, gap_s=1.0)


def difference(frames: ByteArray, box_px: int = 5) -> Motion:
    """Measure the change from the previous frame, in grey levels; scores are as in `highest_box`."""
    return highest_box(differences(frames), box_px)


def differences(frames: ByteArray) -> FloatArray:
    """Return the change from the previous frame: (N, H, W) float32 grey levels."""
    return _with_first([cv2.absdiff(a, b).astype(np.float32) for a, b in pairwise(frames)], frames)


def flow_speeds(frames: ByteArray) -> FloatArray:
    """Return the speed by OpenCV's DIS flow (medium): (N, H, W) float32, pixels per frame."""
    flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return _with_first([np.linalg.norm(flow.calc(a, b, None), axis=2) for a, b in pairwise(frames)], frames)


def highest_box(maps: FloatArray, box_px: int) -> Motion:
    """Average the maps over boxes; a frame's score is the highest of every second box inside it."""
    boxes = np.stack([cv2.blur(each, (box_px, box_px), borderType=cv2.BORDER_REPLICATE) for each in maps])
    edge = box_px // 2
    inside = boxes[:, edge : boxes.shape[1] - edge : 2, edge : boxes.shape[2] - edge : 2]
    return Motion(boxes, inside.max(axis=(1, 2)))


def whole_frame(maps: FloatArray) -> Motion:
    """Keep the maps as they are; a frame's score is the mean of its pixels."""
    return Motion(maps, maps.mean(axis=(1, 2)))


def foreground(clips: list[ByteArray]) -> list[FloatArray]:
    """Return one (N, H, W) float32 array per clip: 1 for the foreground of OpenCV's MOG2, else 0.

    All clips share one background model. The model sees each clip once before any clip is measured, as the motion detector
    does.
    """
    model = cv2.createBackgroundSubtractorMOG2(varThreshold=MOG2_VARIANCE, detectShadows=False)
    for frames in clips:
        for frame in frames:
            model.apply(frame)
    return [np.stack([model.apply(frame) for frame in frames]).astype(np.float32) / np.float32(255) for frames in clips]


def _with_first(maps: list[FloatArray], frames: ByteArray) -> FloatArray:
    """Give the first frame, which has no frame before it, the map of the second frame: (N, H, W) float32."""
    return np.stack([maps[0] if maps else np.zeros(frames.shape[1:]), *maps]).astype(np.float32)
