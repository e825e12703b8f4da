"""Dense optical flow between two gray pictures. The only use of OpenCV."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from vadcli.types import ByteArray, FloatArray

SMALLEST_SIDE_PX = 32
"""OpenCV's DIS flow refuses or, where they are long and thin, crashes on smaller pictures (5.0.0); they are padded."""


class DenseFlow:
    """OpenCV's DIS flow at its ULTRAFAST preset: single-threaded, without memory between pairs."""

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        opencv: Any = cv2
        self._flow: Any = opencv.DISOpticalFlow_create(opencv.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def between(self, before: ByteArray, after: ByteArray) -> FloatArray:
        """(H, W) uint8 twice -> (H, W, 2) float32: where each pixel of `before` went, in pixels (x, y)."""
        height, width = before.shape
        short = (max(0, SMALLEST_SIDE_PX - height), max(0, SMALLEST_SIDE_PX - width))
        if any(short):
            pad = ((0, short[0]), (0, short[1]))
            before, after = np.pad(before, pad, mode="edge"), np.pad(after, pad, mode="edge")
        flow = self._flow.calc(np.ascontiguousarray(before), np.ascontiguousarray(after), None)
        return np.asarray(flow[:height, :width], dtype=np.float32)
