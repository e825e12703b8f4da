"""ShanghaiTech Campus (Liu, Luo, Lian and Gao, CVPR 2018): 107 test clips as frame folders, labels and masks as arrays.

The official archive has testing/frames/SS_CCCC/NNN.jpg (numbered from 000), testing/test_frame_mask/SS_CCCC.npy with a label
a frame and testing/test_pixel_mask/SS_CCCC.npy with a mask a frame, (N, H, W); entry k belongs to the k-th frame (anomalib's
and aimagelab/novelty-detection's readers, StevenLiuWen/ano_pred_cvpr2018). 17,326 of 40,791 frames are abnormal. Tracked
boxes are a separate set (lilygeorgescu/AED, annotations/ShanghaiTech).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from vadcli.errors import DocumentError
from vadcli.ground_truth.annotation import FrameLabels
from vadcli.ground_truth.files import (
    ArrayMasks,
    binary,
    find_existing,
    first_existing,
    npy_files,
    read_json_labels,
    read_npy,
    read_tracks,
)
from vadcli.ground_truth.truth import GroundTruth, VideoTruth, video_truth

_LABELS = ("testing/test_frame_mask", "test_frame_mask")
_LISTS = ("ground_truth_demo/gt_label.json", "gt_label.json", "frame_labels_shanghaitech_per_clip.json")
_TRACKS = ("annotations/ShanghaiTech", "testing/tracks", "tracks")


class ShanghaiTech(GroundTruth):
    """ShanghaiTech Campus.

    `root` is the archive's folder or its testing folder, or a JSON file (or a folder with one) of the labels a clip, keyed
    by "SS_CCCC.npy". Tracked boxes are read from annotations/ShanghaiTech/SS_CCCC.txt or tracks/ under `root`, if there.
    """

    name = "shanghaitech"

    def read(self) -> Iterable[VideoTruth]:
        """The clips of whichever layout is there."""
        folder = None if self.root.is_file() else find_existing(self.root, _LABELS)
        if folder is not None:
            tracks = find_existing(self.root, _TRACKS)
            return [self._clip(clip, path, tracks) for clip, path in npy_files(folder).items()]
        path = self.root if self.root.is_file() else first_existing(self.root, _LISTS, name=self.name, wanted=_LABELS[0])
        return [
            video_truth(_video(clip.removesuffix(".npy")), path, FrameLabels(labels))
            for clip, labels in read_json_labels(path).items()
        ]

    def _clip(self, clip: str, path: Path, tracks: Path | None) -> VideoTruth:
        pixels = path.parent.parent / "test_pixel_mask" / path.name
        regions = tracks / f"{clip}.txt" if tracks is not None else None
        if pixels.exists():
            masks, labels = len(read_npy(pixels, dimensions=3)), len(read_npy(path, dimensions=1))
            if masks != labels:
                raise DocumentError(f"{pixels}: has {masks} masks for {labels} frame labels", hint="unpack the archive anew")
        return VideoTruth(
            _video(clip),
            path,
            partial(_labels, path),
            masks=ArrayMasks(pixels) if pixels.exists() else None,
            read_regions=partial(read_tracks, regions) if regions is not None and regions.exists() else None,
        )


def _labels(path: Path) -> FrameLabels:
    return FrameLabels(binary(read_npy(path, dimensions=1), path))


def _video(clip: str) -> str:
    return f"testing/frames/{clip}"
