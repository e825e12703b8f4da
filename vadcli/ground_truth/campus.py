"""Two data sets filmed on a campus: CUHK Avenue and ShanghaiTech. Both come as masks, or as frame labels per clip.

CUHK Avenue (Lu, Shi and Jia, ICCV 2013) has 21 test videos. The official download has testing_videos/NN.avi and
ground_truth_demo/testing_label_mask/N_label.mat, whose cell array volLabel has one mask per frame; its ground_truth_show.m uses
the k-th mask for the k-th frame. A frame is abnormal if its mask has a pixel. Most papers use other frame labels: the file
gt_label.json of LiUzHiAn/hf2vad, with one list per clip (key "0" is clip 01); 3,712 of 15,324 frames are abnormal. These labels
differ from the masks in a few clips. To use them, give this file as `root`.

ShanghaiTech Campus (Liu, Luo, Lian and Gao, CVPR 2018) has 107 test clips. The official archive has
testing/frames/SS_CCCC/NNN.jpg (numbered from 000), testing/test_frame_mask/SS_CCCC.npy with one label per frame and
testing/test_pixel_mask/SS_CCCC.npy with one mask per frame, (N, H, W). Entry k belongs to the k-th frame (as in the readers of
anomalib, aimagelab/novelty-detection and StevenLiuWen/ano_pred_cvpr2018). 17,326 of 40,791 frames are abnormal. Tracked boxes
are published separately (lilygeorgescu/AED, annotations/ShanghaiTech).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from vadcli.errors import DocumentError
from vadcli.ground_truth.annotation import FrameLabels
from vadcli.ground_truth.files import (
    UNPACK,
    ArrayMasks,
    find_existing,
    first_existing,
    npy_files,
    read_clip_list,
    read_json_labels,
    read_label_array,
    read_mat,
    read_npy,
    read_tracks,
)
from vadcli.ground_truth.truth import GroundTruth, VideoTruth, video_truth
from vadcli.types import BoolArray, ByteArray

_AVENUE_MASKS = ("ground_truth_demo/testing_label_mask", "testing_label_mask")
_AVENUE_LISTS = ("ground_truth_demo/gt_label.json", "gt_label.json", "frame_labels_avenue_per_clip.json")
_AVENUE_ARRAYS = ("test_frame_mask", "testing/test_frame_mask")
_SHANGHAITECH_LABELS = ("testing/test_frame_mask", "test_frame_mask")
_SHANGHAITECH_LISTS = ("ground_truth_demo/gt_label.json", "gt_label.json", "frame_labels_shanghaitech_per_clip.json")
_SHANGHAITECH_TRACKS = ("annotations/ShanghaiTech", "testing/tracks", "tracks")


class Avenue(GroundTruth):
    """CUHK Avenue.

    `root` is the download's folder (then a frame is abnormal if its mask has a pixel), a JSON file of frame labels, or a folder
    with such a file or with test_frame_mask/NN.npy. Only the masks of one video are in memory, with one bit per pixel.
    """

    name = "avenue"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the clips of the layout found under `root`."""
        if self.root.is_file():
            return self._from_list(self.root)
        if (masks := find_existing(self.root, _AVENUE_MASKS)) is not None:
            return self._from_masks(masks)
        if (arrays := find_existing(self.root, _AVENUE_ARRAYS)) is not None:
            files = npy_files(arrays).items()
            return [
                video_truth(f"testing_videos/{clip}.avi", path, FrameLabels(read_label_array(path))) for clip, path in files
            ]
        return self._from_list(first_existing(self.root, _AVENUE_LISTS, name=self.name, wanted=_AVENUE_MASKS[0]))

    def _from_list(self, path: Path) -> Iterable[VideoTruth]:
        clips = read_clip_list(path).items()
        return [video_truth(f"testing_videos/{clip + 1:02d}.avi", path, FrameLabels(labels)) for clip, labels in clips]

    def _from_masks(self, folder: Path) -> Iterable[VideoTruth]:
        found = [(int(match[1]), path) for path in folder.iterdir() if (match := re.fullmatch(r"(\d+)_label\.mat", path.name))]
        cache = VolumeCache()
        for clip, path in sorted(found):
            masks = VolumeMasks(path, cache)
            yield VideoTruth(f"testing_videos/{clip:02d}.avi", path, masks.frame_labels, masks=masks)


class VolumeCache:
    """Keeps the masks of the last requested video in memory, because reading them takes seconds; one bit per pixel."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._packed: ByteArray = np.zeros((0, 0, 0), np.uint8)
        self._width = 0

    def volume(self, path: Path) -> tuple[ByteArray, int]:
        """Return the masks of an N_label.mat as (frames, H, ceil(W / 8)) uint8 with one bit per pixel, and the width W.

        Raises:
            DocumentError: the file is missing, damaged or something else.
        """
        if path != self._path:
            self._packed, self._width = _read_volume(path)
            self._path = path
        return self._packed, self._width


class VolumeMasks:
    """The masks of one video in a .mat file.

    Args:
        path: N_label.mat.
        cache: shared by all videos.
    """

    def __init__(self, path: Path, cache: VolumeCache) -> None:
        self.path = path
        self._cache = cache

    def mask(self, frame_index: int) -> BoolArray | None:
        """Return the pixels whose label is not 0."""
        packed, width = self._cache.volume(self.path)
        if not 0 <= frame_index < len(packed):
            raise DocumentError(f"{self.path}: has no mask for frame {frame_index}, only {len(packed)} masks")
        return np.unpackbits(packed[frame_index], axis=1, count=width).astype(np.bool_)

    def frame_labels(self) -> FrameLabels:
        """Return one label per frame, True if its mask has a pixel."""
        packed, _ = self._cache.volume(self.path)
        return FrameLabels(np.asarray(packed.any(axis=(1, 2)), np.bool_))


def _read_volume(path: Path) -> tuple[ByteArray, int]:
    cells = np.ravel(read_mat(path, "volLabel"))
    if cells.dtype != np.object_ or not len(cells):
        raise DocumentError(f"{path}: volLabel is not a cell array with one mask per frame", hint=UNPACK)
    shape, packed = np.shape(cells[0]), []
    for number, cell in enumerate(cells, start=1):
        if not isinstance(cell, np.ndarray) or cell.shape != shape or cell.ndim != 2 or cell.dtype.kind not in "buif":
            raise DocumentError(f"{path}: mask {number} of {len(cells)} is not an image of the size of mask 1", hint=UNPACK)
        packed.append(np.packbits(cell != 0, axis=1))
    return np.stack(packed), int(shape[1])


class ShanghaiTech(GroundTruth):
    """ShanghaiTech Campus.

    `root` is the archive's folder or its testing folder. It may also be a JSON file, or a folder with one, that has one list of
    labels per clip under the key "SS_CCCC.npy". Tracked boxes are read from annotations/ShanghaiTech/SS_CCCC.txt or tracks/
    under `root`, if they exist.
    """

    name = "shanghaitech"

    def read(self) -> Iterable[VideoTruth]:
        """Return the clips of the layout found under `root`."""
        folder = None if self.root.is_file() else find_existing(self.root, _SHANGHAITECH_LABELS)
        if folder is not None:
            tracks = find_existing(self.root, _SHANGHAITECH_TRACKS)
            return [self._clip(clip, path, tracks) for clip, path in npy_files(folder).items()]
        path = self.root
        if not path.is_file():
            path = first_existing(path, _SHANGHAITECH_LISTS, name=self.name, wanted=_SHANGHAITECH_LABELS[0])
        clips = read_json_labels(path).items()
        return [video_truth(f"testing/frames/{clip.removesuffix('.npy')}", path, FrameLabels(labels)) for clip, labels in clips]

    def _clip(self, clip: str, path: Path, tracks: Path | None) -> VideoTruth:
        pixels = path.parent.parent / "test_pixel_mask" / path.name
        regions = tracks / f"{clip}.txt" if tracks is not None else None
        if pixels.exists():
            masks, labels = len(read_npy(pixels, dimensions=3)), len(read_npy(path, dimensions=1))
            if masks != labels:
                raise DocumentError(f"{pixels}: has {masks} masks for {labels} frame labels", hint=UNPACK)
        return VideoTruth(
            f"testing/frames/{clip}",
            path,
            lambda: FrameLabels(read_label_array(path)),
            masks=ArrayMasks(pixels) if pixels.exists() else None,
            read_regions=partial(read_tracks, regions) if regions is not None and regions.exists() else None,
        )
