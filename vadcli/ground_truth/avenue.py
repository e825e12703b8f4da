"""CUHK Avenue (Lu, Shi and Jia, ICCV 2013): 21 test videos, pixel masks as MATLAB volumes.

The official download has testing_videos/NN.avi and ground_truth_demo/testing_label_mask/N_label.mat, whose cell array
volLabel holds a picture a frame; its ground_truth_show.m takes the k-th for the k-th frame of the video, so both count
alike. A frame is abnormal where its mask has a pixel. The frame labels that most papers use are a separate set, with a
list a clip (LiUzHiAn/hf2vad's gt_label.json, key "0" being clip 01: 3,712 of 15,324 frames), and differ from the masks in a
few clips; give that file as `root` to use them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vadcli.errors import DocumentError
from vadcli.ground_truth.annotation import FrameLabels
from vadcli.ground_truth.files import (
    binary,
    find_existing,
    first_existing,
    npy_files,
    read_mat,
    read_npy,
)
from vadcli.ground_truth.truth import GroundTruth, VideoTruth, video_truth
from vadcli.ground_truth.ucsd import read_clip_list
from vadcli.types import BoolArray, ByteArray

_ANEW = "unpack the archive anew"
_MASKS = ("ground_truth_demo/testing_label_mask", "testing_label_mask")
_LISTS = ("ground_truth_demo/gt_label.json", "gt_label.json", "frame_labels_avenue_per_clip.json")
_ARRAYS = ("test_frame_mask", "testing/test_frame_mask")


class Avenue(GroundTruth):
    """CUHK Avenue.

    `root` is the download's folder (the masks then say which frames are abnormal), a JSON file of frame labels, or a folder
    with such a file or with test_frame_mask/NN.npy. Of the masks one video is held at a time, a bit a pixel.
    """

    name = "avenue"

    def read(self) -> Iterable[VideoTruth]:
        """The clips of whichever layout is there."""
        if self.root.is_file():
            return self._listed(self.root)
        if (masks := find_existing(self.root, _MASKS)) is not None:
            return self._masked(masks)
        if (arrays := find_existing(self.root, _ARRAYS)) is not None:
            return [
                video_truth(_video(clip), path, FrameLabels(binary(read_npy(path, dimensions=1), path)))
                for clip, path in npy_files(arrays).items()
            ]
        return self._listed(first_existing(self.root, _LISTS, name=self.name, wanted=_MASKS[0]))

    def _listed(self, path: Path) -> Iterable[VideoTruth]:
        return [video_truth(_video(f"{clip + 1:02d}"), path, labels) for clip, labels in read_clip_list(path).items()]

    def _masked(self, folder: Path) -> Iterable[VideoTruth]:
        found = [(int(match[1]), path) for path in folder.iterdir() if (match := re.fullmatch(r"(\d+)_label\.mat", path.name))]
        shelf = VolumeShelf()
        for clip, path in sorted(found):
            masks = VolumeMasks(path, shelf)
            yield VideoTruth(_video(f"{clip:02d}"), path, masks.frame_labels, masks=masks)


class VolumeShelf:
    """Holds the masks of the video asked for last, packed to a bit a pixel, since a volume takes seconds to read."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._packed: ByteArray = np.zeros((0, 0, 0), np.uint8)
        self._width = 0

    def volume(self, path: Path) -> tuple[ByteArray, int]:
        """The masks of a N_label.mat, (N, H, ceil(W / 8)) uint8, and W.

        Raises:
            DocumentError: it is missing, damaged or something else.
        """
        if path != self._path:
            self._packed, self._width = _read_volume(path)
            self._path = path
        return self._packed, self._width


class VolumeMasks:
    """The masks of one video in a .mat file.

    Attributes:
        path: N_label.mat.
        shelf: shared by all videos.
    """

    def __init__(self, path: Path, shelf: VolumeShelf) -> None:
        self.path = path
        self.shelf = shelf

    def mask(self, frame_index: int) -> BoolArray | None:
        """True where the label is not 0."""
        packed, width = self.shelf.volume(self.path)
        if not 0 <= frame_index < len(packed):
            raise DocumentError(f"{self.path}: there is no mask of frame {frame_index} among {len(packed)}")
        return np.unpackbits(packed[frame_index], axis=1, count=width).astype(np.bool_)

    def frame_labels(self) -> FrameLabels:
        """True where the mask has a pixel."""
        packed, _ = self.shelf.volume(self.path)
        return FrameLabels(np.asarray(packed.any(axis=(1, 2)), np.bool_))


def _read_volume(path: Path) -> tuple[ByteArray, int]:
    cells = np.ravel(read_mat(path, "volLabel"))
    if cells.dtype != np.object_ or not len(cells):
        raise DocumentError(f"{path}: volLabel is no cell array with a mask a frame", hint=_ANEW)
    shape, packed = np.shape(cells[0]), []
    for number, cell in enumerate(cells, start=1):
        if not isinstance(cell, np.ndarray) or cell.shape != shape or cell.ndim != 2 or cell.dtype.kind not in "buif":
            raise DocumentError(f"{path}: mask {number} of {len(cells)} is no picture of the first one's size", hint=_ANEW)
        packed.append(np.packbits(cell != 0, axis=1))
    return np.stack(packed), int(shape[1])


def _video(clip: str) -> str:
    return f"testing_videos/{clip}.avi"
