"""UBnormal (Acsintoae et al., CVPR 2022): rendered videos with tracks and images of object numbers.

The official archive has SceneN/{normal,abnormal}_scene_N_scenario_M.mp4. Each abnormal video has a folder <video>_annotations/
with <video>_tracks.txt (one line `object,first frame,last frame` per track) and <video>_%04d_gt.png, whose pixels are object
numbers. The official scripts are in lilygeorgescu/UBnormal. scripts/write_frame_level_ground_truth.py sets
ground_truth[first : last + 1], so frames count from 0 and the last frame is abnormal too.
scripts/create_tracks_for_tbdc_rbdc.py opens the image with the number of the frame, takes the pixels of the track's object,
and uses the connected part with the largest box. This script takes the tracks from <video>_new_tracks.txt if it exists, and so
does `regions` here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from vadcli.errors import DocumentError
from vadcli.ground_truth.annotation import FrameIntervals, Span
from vadcli.ground_truth.files import UNPACK, bad_line, numbered_lines, read_image, whole
from vadcli.ground_truth.truth import GroundTruth, Region, VideoTruth, find_existing, video_truth
from vadcli.types import BoolArray, Box

_VIDEO = re.compile(r"(abnormal|normal)_scene_\d+_scenario_?\d+\w*")
_SPLIT = ("{kind}_test_video_names.txt", "scripts/{kind}_test_video_names.txt")


@dataclass(frozen=True)
class _Track:
    """An abnormal object: the value of its pixels, and the half-open range of its frames."""

    number: int
    start_frame: int
    end_frame: int


class UBnormal(GroundTruth):
    """Reads UBnormal.

    `root` has the SceneN folders, either all or those of one split. If the official {abnormal,normal}_test_video_names.txt are
    in `root` (or in its scripts folder), only the videos that they name are used. Normal videos are recognized by name; they
    have no annotation.
    """

    name = "ubnormal"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the videos and annotations in the folders of the scenes."""
        lists = [find_existing(self.root, [place.format(kind=kind) for place in _SPLIT]) for kind in ("abnormal", "normal")]
        split = {line for path in lists if path is not None for _, line in numbered_lines(path)}
        found: dict[str, Path] = {}
        for path in sorted([*self.root.glob("Scene*/*"), *self.root.glob("*normal_scene_*")]):
            video = path.name.removesuffix("_annotations") if path.is_dir() else path.stem
            if _VIDEO.fullmatch(video) and (not split or video in split):
                found.setdefault(video, path.parent)
        if lost := sorted(split - set(found)):
            raise DocumentError(f"{self.root}: {len(lost)} test videos are missing, the first is {lost[0]}", hint=UNPACK)
        for video, scene in found.items():
            name = f"{video}.mp4" if scene == self.root else f"{scene.name}/{video}.mp4"
            folder = scene / f"{video}_annotations"
            if video.startswith("normal"):
                yield video_truth(name, scene, FrameIntervals(()), masks=_ObjectMasks(folder, video, ()))
                continue
            tracks = _read_tracks(folder / f"{video}_tracks.txt")
            spans = tuple(Span(track.start_frame, track.end_frame) for track in tracks)
            masks = _ObjectMasks(folder, video, tracks)
            if masks.frames:
                read = partial(FrameIntervals, spans, masks.frames)
                yield VideoTruth(name, folder, read, masks=masks, read_regions=masks.regions)
            else:
                yield video_truth(name, folder, FrameIntervals(spans))


@dataclass(frozen=True)
class _ObjectMasks:
    """The masks of a video, from images of object numbers and the tracks of the abnormal objects."""

    folder: Path
    video: str
    tracks: tuple[_Track, ...]

    @property
    def frames(self) -> int:
        """The number of frames: one more than the highest image number; 0 without images."""
        return self._frames[1] + 1

    def mask(self, frame_index: int) -> BoolArray | None:
        """Return the pixels of the objects that are abnormal in this frame; None if no object is abnormal."""
        numbers = [track.number for track in self.tracks if track.start_frame <= frame_index < track.end_frame]
        return np.isin(self._objects(frame_index), numbers) if numbers else None

    def regions(self) -> tuple[Region, ...]:
        """Return the boxes of the abnormal objects in all frames; tracks have the numbers of their lines."""
        first, last = self._frames
        by_frame: dict[int, list[tuple[int, _Track]]] = {}
        newer = self.folder / f"{self.video}_new_tracks.txt"
        for place, track in enumerate(_read_tracks(newer) if newer.exists() else self.tracks):
            if track.start_frame < first or track.end_frame > last + 1:
                raise self._missing(track.start_frame if track.start_frame < first else last + 1)
            for frame in range(track.start_frame, track.end_frame):
                by_frame.setdefault(frame, []).append((place, track))
        regions = []
        for frame, tracks in by_frame.items():
            objects = self._objects(frame)
            for place, track in tracks:
                box = _largest_box(objects == track.number)
                if box is None:
                    raise DocumentError(f"{self._image(frame)}: has no pixel of object {track.number}", hint=UNPACK)
                regions.append(Region(place, frame, box))
        return tuple(sorted(regions, key=lambda region: (region.track, region.frame)))

    @cached_property
    def _frames(self) -> tuple[int, int]:
        name = re.compile(rf"{re.escape(self.video)}_(\d{{1,9}})_gt\.png")
        numbers = [int(match[1]) for path in self.folder.iterdir() if (match := name.fullmatch(path.name))]
        return min(numbers, default=0), max(numbers, default=-1)

    def _objects(self, frame: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        image = self._image(frame)
        if not image.exists():
            raise self._missing(frame)
        return read_image(image)

    def _image(self, frame: int) -> Path:
        return self.folder / f"{self.video}_{frame:04d}_gt.png"

    def _missing(self, frame: int) -> DocumentError:
        return DocumentError(f"{self._image(frame)}: is missing, although frame {frame} is abnormal", hint=UNPACK)


def _read_tracks(path: Path) -> tuple[_Track, ...]:
    tracks = []
    for number, line in numbered_lines(path):
        try:
            key, first, last = (whole(part) for part in line.split(","))
        except ValueError:
            raise bad_line(path, number, f"{line[:80]!r} is not object,first frame,last frame") from None
        if not (1 <= key <= 255 and 0 <= first <= last):
            text = f"{line[:80]!r} is not a track: it needs an object from 1 to 255 and 0 <= first frame <= last frame"
            raise bad_line(path, number, text)
        tracks.append(_Track(key, first, last + 1))
    if not tracks:
        raise DocumentError(f"{path}: has no track, although the video is abnormal", hint=UNPACK)
    return tuple(tracks)


def _largest_box(mask: BoolArray) -> Box | None:
    """Return the largest box (x, y, width, height) of the connected parts; None without a pixel."""
    from scipy.ndimage import find_objects, label

    parts = find_objects(label(mask, structure=np.ones((3, 3)))[0])
    boxes = [(xs.start, ys.start, xs.stop - xs.start, ys.stop - ys.start) for ys, xs in parts]
    return max(boxes, key=lambda box: box[2] * box[3], default=None)
