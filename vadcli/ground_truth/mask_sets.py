"""Data sets with masks or boxes: CUHK Avenue, ShanghaiTech, UCSD Ped1 and Ped2, and UBnormal."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np

from vadcli.errors import DocumentError
from vadcli.ground_truth import GroundTruth, Region, VideoTruth, find_existing, video_truth
from vadcli.ground_truth.annotation import FrameIntervals, FrameLabels, Span
from vadcli.ground_truth.files import (
    UNPACK,
    ArrayMasks,
    ImageMasks,
    bad_line,
    npy_files,
    numbered_images,
    numbered_lines,
    read_annotation,
    read_clip_list,
    read_image,
    read_json_labels,
    read_label_array,
    read_mat,
    read_npy,
    read_tracks,
    whole_number,
)
from vadcli.types import BoolArray, Box, ByteArray

_AVENUE_MASKS = ("ground_truth_demo/testing_label_mask", "testing_label_mask")
_AVENUE_LISTS = ("ground_truth_demo/gt_label.json", "gt_label.json", "frame_labels_avenue_per_clip.json")
_AVENUE_ARRAYS = ("test_frame_mask", "testing/test_frame_mask")
_SHANGHAITECH_LABELS = ("testing/test_frame_mask", "test_frame_mask")
_SHANGHAITECH_LISTS = ("ground_truth_demo/gt_label.json", "gt_label.json", "frame_labels_shanghaitech_per_clip.json")
_SHANGHAITECH_TRACKS = ("annotations/ShanghaiTech", "testing/tracks", "tracks")


class Avenue(GroundTruth):
    """CUHK Avenue (Lu, Shi and Jia, ICCV 2013): 21 test videos.

    `root` is one of these:

    - the folder of the official download; a frame is abnormal if its mask has at least one abnormal pixel
    - a folder with files test_frame_mask/NN.npy, which have one label per frame
    - a JSON file with frame labels, or a folder with this file

    The official download has testing_videos/NN.avi and ground_truth_demo/testing_label_mask/N_label.mat. The cell array
    volLabel in a .mat file has one mask per frame, in the order of the frames, as the download's ground_truth_show.m shows.
    Only the masks of one video are in memory at a time, with one bit per pixel.

    Most papers use the frame labels in the file gt_label.json of LiUzHiAn/hf2vad, which has one list per clip (the key "0" is
    clip 01). These labels differ from the masks in a few clips; 3,712 of 15,324 frames are abnormal.
    """

    name = "avenue"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the clips. If `root` has several of the layouts in the class's docstring, the first of them is read."""
        if (folder := find_existing(self.root, _AVENUE_MASKS)) is not None:
            named = ((re.fullmatch(r"(\d+)_label\.mat", path.name), path) for path in folder.iterdir())
            # Reading the masks of a video takes seconds, so they are cached. The masks of all videos do not fit in memory.
            read = lru_cache(maxsize=1)(_read_volume)
            for clip, path in sorted((int(match[1]), path) for match, path in named if match):
                masks = _VolumeMasks(path, read)
                yield VideoTruth(f"testing_videos/{clip:02d}.avi", path, masks.frame_labels, masks=masks)
        elif (arrays := find_existing(self.root, _AVENUE_ARRAYS)) is not None:
            for name, path in npy_files(arrays).items():
                yield video_truth(f"testing_videos/{name}.avi", path, FrameLabels(read_label_array(path)))
        else:
            path = self.annotation_file(_AVENUE_LISTS, wanted=_AVENUE_MASKS[0])
            for clip, labels in read_clip_list(path).items():
                yield video_truth(f"testing_videos/{clip + 1:02d}.avi", path, FrameLabels(labels))


@dataclass(frozen=True)
class _VolumeMasks:
    """The masks of one video in an N_label.mat; `read` is `_read_volume` with a cache."""

    path: Path
    read: Callable[[Path], tuple[ByteArray, int]]

    def mask(self, frame_index: int) -> BoolArray | None:
        """Return the mask (H, W) bool of a frame: True for pixels that are not 0 in the file."""
        packed, width = self.read(self.path)
        if not 0 <= frame_index < len(packed):
            raise DocumentError(
                f"{self.path}: has no mask for frame {frame_index}: it has {len(packed)} masks, numbered from 0"
            )
        return np.unpackbits(packed[frame_index], axis=1, count=width).astype(np.bool_)

    def frame_labels(self) -> FrameLabels:
        """Return one label per frame: True if the frame's mask has at least one abnormal pixel."""
        packed, _ = self.read(self.path)
        return FrameLabels(np.asarray(packed.any(axis=(1, 2)), np.bool_))


def _read_volume(path: Path) -> tuple[ByteArray, int]:
    """Return the N masks in a .mat file, one bit per pixel, (N, H, ceil(W / 8)) uint8, and their width W."""
    cells = np.ravel(read_mat(path, "volLabel"))
    if cells.dtype != np.object_ or not len(cells):
        raise DocumentError(f"{path}: volLabel is not a cell array with one mask per frame", hint=UNPACK)
    shape, packed = np.shape(cells[0]), []
    for number, cell in enumerate(cells, start=1):
        if not isinstance(cell, np.ndarray) or cell.shape != shape or cell.ndim != 2 or cell.dtype.kind not in "buif":
            raise DocumentError(f"{path}: mask {number} of {len(cells)} is not an image with the size of mask 1", hint=UNPACK)
        packed.append(np.packbits(cell != 0, axis=1))
    return np.stack(packed), int(shape[1])


class ShanghaiTech(GroundTruth):
    """ShanghaiTech Campus (Liu, Luo, Lian and Gao, CVPR 2018): 107 test clips.

    `root` is one of these:

    - the folder of the official archive, or its testing folder
    - a JSON file with one list of labels per clip (its keys are "SS_CCCC.npy"), or a folder with this file

    The official archive has three kinds of files; SS is the scene, CCCC the clip. 17,326 of 40,791 frames are abnormal.

    - testing/frames/SS_CCCC/NNN.jpg: the frames, numbered from 000
    - testing/test_frame_mask/SS_CCCC.npy: one label per frame
    - testing/test_pixel_mask/SS_CCCC.npy: one mask per frame, (N, H, W)

    Labels and masks are in the order of the frames. anomalib, aimagelab/novelty-detection and StevenLiuWen/ano_pred_cvpr2018
    read them in the same way.

    Tracked boxes are published separately (lilygeorgescu/AED, annotations/ShanghaiTech). If `root` contains a folder
    annotations/ShanghaiTech, testing/tracks or tracks, the boxes are read from SS_CCCC.txt in this folder.
    """

    name = "shanghaitech"

    def read(self) -> Iterable[VideoTruth]:
        """Return the clips. If `root` has both layouts that the class describes, the first of them is read."""
        if (folder := find_existing(self.root, _SHANGHAITECH_LABELS)) is not None:
            tracks = find_existing(self.root, _SHANGHAITECH_TRACKS)
            return [self._clip(clip, path, tracks) for clip, path in npy_files(folder).items()]
        path = self.annotation_file(_SHANGHAITECH_LISTS, wanted=_SHANGHAITECH_LABELS[0])
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


_RANGES = re.compile(r"TestVideoFile\{[^}]*\}\.gt_frame\s*=\s*\[([^\]]*)\]\s*;?\s*(%.*)?")
_RANGE = re.compile(r"(\d{1,9})(?::(\d{1,9}))?")


class Ped1(GroundTruth):
    """UCSD Ped1 (Mahadevan et al., CVPR 2010): 36 test clips.

    `root` is the archive's folder, or one of these inside it: UCSDped1, UCSDped1/Test, UCSDped1/Test/UCSDped1.m.

    The official archive UCSD_Anomaly_Dataset.v1p2 has the folders UCSDped1 and UCSDped2. Each folder has these files:

    - Test/TestNNN/NNN.tif: the frames, numbered from 001
    - Test/TestNNN_gt/NNN.bmp: the masks, for all clips of Ped2 and for 10 clips of Ped1
    - Test/UCSDpedN.m: one line per clip, in the order of the clips, such as `TestVideoFile{end+1}.gt_frame = [61:180];`

    The archive's README explains: "gt_frame indicates frames that contain abnormal events". MATLAB ranges are counted from 1
    and include both ends, so [61:180] means the frames 60 to 179 when counted from 0.
    """

    name = "ped1"
    folder = "UCSDped1"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the clips in the order of the .m file."""
        wanted = f"Test/{self.folder}.m"
        if self.root.is_file() and self.root.suffix != ".m":
            raise self.missing(wanted)
        script = self.annotation_file(
            [f"{place}{self.folder}.m" for place in (f"{self.folder}/Test/", "Test/", "")], wanted=wanted
        )
        ranges = _read_ranges(script)
        clips = [path.name for path in script.parent.iterdir() if re.fullmatch(r"Test\d+", path.name) and path.is_dir()]
        if clips and len(clips) != len(ranges):
            text = f"has frame ranges of {len(ranges)} clips, but its folder has {len(clips)} clips"
            raise DocumentError(f"{script}: {text}", hint=UNPACK)
        for clip, intervals in enumerate(ranges, start=1):
            yield self._clip(script, f"Test{clip:03d}", intervals)

    def _clip(self, script: Path, clip: str, intervals: tuple[Span, ...]) -> VideoTruth:
        frames = len(numbered_images(script.parent / clip)) or None
        folder = script.parent / f"{clip}_gt"
        images = numbered_images(folder)
        if images and frames is not None and len(images) != frames:
            raise DocumentError(f"{folder}: has {len(images)} masks for the {frames} frames of {clip}", hint=UNPACK)
        frames = frames or len(images) or None
        last = max((span.end_frame for span in intervals), default=0)
        if frames is not None and last > frames:
            raise DocumentError(f"{script}: {clip} is abnormal up to frame {last}, but has only {frames} frames", hint=UNPACK)
        masks = ImageMasks(tuple(images)) if images else None
        return video_truth(f"Test/{clip}", script, FrameIntervals(intervals, frames), masks=masks)


class Ped2(Ped1):
    """UCSD Ped2: 12 test clips; see `Ped1` for the official archive.

    `root` is one of these:

    - the archive's folder, or one of these inside it: UCSDped2, UCSDped2/Test, UCSDped2/Test/UCSDped2.m
    - a folder with frames in test/NN, masks test_masks/NN/NNN.png, and the table frame_labels.csv. The table's columns are the
      clip, the number of the frame (from 0), and the label.
    - the file gt_label.json of LiUzHiAn/hf2vad, with one list of labels per clip; the key "0" is the clip testing/frames/01
    """

    name = "ped2"
    folder = "UCSDped2"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the clips in the layout that `root` has."""
        if self.root.is_file() and self.root.suffix != ".m":
            for number, labels in read_clip_list(self.root).items():
                yield video_truth(f"testing/frames/{number + 1:02d}", self.root, FrameLabels(labels))
        elif (table := find_existing(self.root, ["frame_labels.csv"])) is not None:
            for clip, frame_labels in _read_label_table(table).items():
                if not re.fullmatch(r"[\w-]+", clip):
                    hint = "clips have the names of their folders: 01, 02 …"
                    raise DocumentError(f"{table}: {clip!r} is not the name of a clip", hint=hint)
                folder = table.parent / "test_masks" / clip
                images = numbered_images(folder)
                if images and len(images) != frame_labels.frames:
                    raise DocumentError(
                        f"{folder}: has {len(images)} masks for {frame_labels.frames} frame labels", hint=UNPACK
                    )
                masks = ImageMasks(tuple(images)) if images else None
                yield video_truth(f"test/{clip}", table, frame_labels, masks=masks)
        else:
            yield from super().read()


def _read_ranges(script: Path) -> list[tuple[Span, ...]]:
    """Return the abnormal spans of each clip in a UCSDpedN.m file, in the order of the file."""
    clips = []
    for number, line in numbered_lines(script):
        if line.startswith("%") or "gt_frame" not in line:
            continue
        match = _RANGES.fullmatch(line)
        if match is None:
            raise bad_line(script, number, f"{line[:80]!r} is not TestVideoFile{{end+1}}.gt_frame = [first:last, …];")
        spans = []
        for part in re.split(r"[\s,;]+", match[1].strip()) if match[1].strip() else []:
            range_match = _RANGE.fullmatch(part)
            first, last = (int(range_match[1]), int(range_match[2] or range_match[1])) if range_match else (0, 0)
            if not 1 <= first <= last:
                raise bad_line(script, number, f"{part[:40]!r} is not a range first:last with 1 <= first <= last")
            spans.append(Span(first - 1, last))
        clips.append(tuple(spans))
    return clips


def _read_label_table(path: Path) -> dict[str, FrameLabels]:
    """Return the labels of each clip in a table with one row per frame; the keys are the clips."""
    rows = csv.reader(io.StringIO(read_annotation(path)))
    if next(rows, []) != ["clip", "frame_index0", "label"]:
        raise bad_line(path, 1, "the header is not clip,frame_index0,label")
    clips: dict[str, list[bool]] = {}
    for row in rows:
        if not row:
            continue
        try:
            clip, frame, label = row[0], whole_number(row[1]), whole_number(row[2])
        except (ValueError, IndexError):
            raise bad_line(path, rows.line_num, f"{','.join(row)[:80]!r} is not clip,frame,label") from None
        labels = clips.setdefault(clip, [])
        if frame != len(labels):
            raise bad_line(path, rows.line_num, f"frame {frame} of clip {clip!r} comes where frame {len(labels)} should be")
        if label not in (0, 1):
            raise bad_line(path, rows.line_num, f"the label is {label}; it must be 0 or 1")
        labels.append(bool(label))
    return {clip: FrameLabels(np.array(labels, np.bool_)) for clip, labels in clips.items()}


_UBNORMAL_VIDEO = re.compile(r"(abnormal|normal)_scene_\d+_scenario_?\d+\w*")
_UBNORMAL_SPLIT = ("{}_test_video_names.txt", "scripts/{}_test_video_names.txt")


@dataclass(frozen=True)
class _Track:
    """An object that is abnormal from `start_frame` to `end_frame` (excluded).

    `number` is the value of the object's pixels in the images.
    """

    number: int
    start_frame: int
    end_frame: int


class UBnormal(GroundTruth):
    """UBnormal (Acsintoae et al., CVPR 2022): rendered videos with tracks and object numbers.

    `root` has the folders SceneN: all of them, or those of one split. The official files abnormal_test_video_names.txt and
    normal_test_video_names.txt may be in `root` or in `root`/scripts. If so, only the videos in these files are used.

    The official archive has SceneN/normal_scene_N_scenario_M.mp4 and SceneN/abnormal_scene_N_scenario_M.mp4. Normal videos have
    no annotation. Each abnormal video has a folder <video>_annotations with two kinds of files:

    - <video>_tracks.txt has one line `object,first frame,last frame` per track. Frames are counted from 0, and the last frame
      is abnormal too: the official scripts/write_frame_level_ground_truth.py (lilygeorgescu/UBnormal) sets
      ground_truth[first : last + 1].
    - <video>_0007_gt.png is the image of frame 7. The pixel values of these images are object numbers.

    Regions are found as in the official scripts/create_tracks_for_tbdc_rbdc.py. If <video>_new_tracks.txt exists, it replaces
    <video>_tracks.txt. A region is the box around the pixels of a track's object in a frame. If these pixels are not connected,
    the box is around only one connected part: the one with the largest box.
    """

    name = "ubnormal"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the videos in the folders of the scenes."""
        lists = [find_existing(self.root, [name.format(kind) for name in _UBNORMAL_SPLIT]) for kind in ("abnormal", "normal")]
        split = {line for path in lists if path is not None for _, line in numbered_lines(path)}
        scenes: dict[str, Path] = {}
        for path in sorted([*self.root.glob("Scene*/*"), *self.root.glob("*normal_scene_*")]):
            video = path.name.removesuffix("_annotations") if path.is_dir() else path.stem
            if _UBNORMAL_VIDEO.fullmatch(video) and (not split or video in split):
                scenes.setdefault(video, path.parent)
        if missing := sorted(split - set(scenes)):
            raise DocumentError(f"{self.root}: {len(missing)} test videos are missing, the first is {missing[0]}", hint=UNPACK)
        for video, scene in scenes.items():
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
    """The masks of a video.

    The pixel values of an image are object numbers. The tracks say which objects are abnormal, and in which frames.
    """

    folder: Path
    video: str
    tracks: tuple[_Track, ...]

    @property
    def frames(self) -> int:
        """The number of frames: one more than the highest image number; 0 without images."""
        return self._frames[1] + 1

    def mask(self, frame_index: int) -> BoolArray | None:
        """Return the mask (H, W) bool of a frame's abnormal objects; None if no object is abnormal."""
        numbers = [track.number for track in self.tracks if track.start_frame <= frame_index < track.end_frame]
        return np.isin(self._objects(frame_index), numbers) if numbers else None

    def regions(self) -> tuple[Region, ...]:
        """Return one box per frame and abnormal object. The number of a track is its line in the file, from 0."""
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
            key, first, last = (whole_number(part) for part in line.split(","))
        except ValueError:
            text = f'{line[:80]!r} should have the form "object,first frame,last frame"'
            raise bad_line(path, number, text) from None
        if not (1 <= key <= 255 and 0 <= first <= last):
            text = f"{line[:80]!r} is not a track: it needs an object from 1 to 255 and 0 <= first frame <= last frame"
            raise bad_line(path, number, text)
        tracks.append(_Track(key, first, last + 1))
    if not tracks:
        raise DocumentError(f"{path}: has no track, although the video is abnormal", hint=UNPACK)
    return tuple(tracks)


def _largest_box(mask: BoolArray) -> Box | None:
    """Return the largest box (x, y, width, height) around a connected part; None for an empty mask."""
    from scipy.ndimage import find_objects, label

    parts = find_objects(label(mask, structure=np.ones((3, 3)))[0])
    boxes = [(xs.start, ys.start, xs.stop - xs.start, ys.stop - ys.start) for ys, xs in parts]
    return max(boxes, key=lambda box: box[2] * box[3], default=None)
