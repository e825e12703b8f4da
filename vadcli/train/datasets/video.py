"""Data sets of videos: YouTube-VOS, Ref-YouTube-VOS, Ref-DAVIS17 and MeViS.

YouTube-VOS names objects by category, the other data sets by expressions. MeViS stores masks as COCO run
length codes, the other data sets as label maps with the ids of the objects. The files of each data set
are in the docstring of its class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from vadcli.errors import DocumentError
from vadcli.train.datasets import (
    UNPACK_AGAIN,
    ClipEntry,
    ClipRule,
    DiskData,
    LabelMapData,
    Mark,
    Reduction,
    clean_text,
    decode_mask,
    entry,
    expect,
    names_in,
    plain_name,
    read_annotations,
    read_lines,
    required_path,
)
from vadcli.types import BoolArray


@dataclass(frozen=True)
class Video:
    """One video of a data set with label maps.

    Attributes:
        name: name of its folder.
        frames: names of its images without suffix, in order.
        objects: (name, id) pairs; an object with several names has several pairs.
        shown: the names of the frames that show an object, by object id. An object has no entry if its frames are not known.
    """

    name: str
    frames: tuple[str, ...]
    objects: tuple[tuple[str, int], ...]
    shown: dict[int, frozenset[str]]

    def clips(self, split: str, rule: ClipRule, *, every: int) -> Iterator[ClipEntry]:
        """Yield the clips of the video.

        An object belongs to a clip if `shown` lists at least one frame of the clip for this object. An object without an
        entry in `shown` belongs to every clip.
        """
        for places in rule.cut(len(self.frames), every):
            frames = tuple(self.frames[place] for place in places)
            visible = {number for number, shown in self.shown.items() if not shown.isdisjoint(frames)}
            yield ClipEntry(
                f"{self.name}/{frames[0]}",
                tuple(f"{split}/JPEGImages/{self.name}/{frame}.jpg" for frame in frames),
                tuple((name, number) for name, number in self.objects if number not in self.shown or number in visible),
                tuple(f"{split}/Annotations/{self.name}/{frame}.png" for frame in frames),
                places,
            )


class YouTubeVos(LabelMapData):
    """YouTube-VOS: objects are named by category; 6 frames per second.

        ROOT/train/JPEGImages/VIDEO/00000.jpg     ROOT/train/meta.json
        ROOT/train/Annotations/VIDEO/00000.png

    `meta.json` has each object's category and the frames that show the object. This is the layout of the
    challenge's archives on ReferFormer's data page.

    Args:
        root: the folder that contains `train`.
        split: a folder with annotations; the challenge has annotations only for `train`.
    """

    def __init__(self, root: Path, *, split: str = "train", rule: ClipRule | None = None) -> None:
        rule = rule or ClipRule()
        meta = required_path(root, f"{split}/meta.json", name="YouTube-VOS")
        clips = (clip for video in _with_categories(root / split, meta) for clip in video.clips(split, rule, every=1))
        super().__init__("youtube-vos", root, clips, rule)


class RefYouTubeVos(LabelMapData):
    """Ref-YouTube-VOS: objects are named by expressions, usually several per object.

    The files are those of YouTube-VOS and ROOT/meta_expressions/train/meta_expressions.json.

    Args:
        root: the folder that contains `train` and `meta_expressions`.
        split: a folder with annotations.
    """

    def __init__(self, root: Path, *, split: str = "train", rule: ClipRule | None = None) -> None:
        rule = rule or ClipRule()
        clips = (
            clip for video in with_expressions(root, split, "Ref-YouTube-VOS") for clip in video.clips(split, rule, every=1)
        )
        super().__init__("ref-youtube-vos", root, clips, rule)


def with_expressions(root: Path, split: str, name: str) -> Iterator[Video]:
    """Yield the videos of a data set whose objects are named by expressions."""
    path = required_path(root, f"meta_expressions/{split}/meta_expressions.json", name=name)
    meta = required_path(root, f"{split}/meta.json", name=name)
    known = entry(meta, "the file", read_annotations(meta), "videos", dict)
    for video, where, content in videos(path):
        frames = [plain_name(path, f"a frame of {where}", frame) for frame in entry(path, where, content, "frames", list)]
        objects = []
        for place, expression in expressions(path, where, content):
            text = clean_text(path, place, expression.get("exp", ""))
            if text:
                objects.append((text, object_id(path, place, expression.get("obj_id"))))
        about = expect(meta, where, known.get(video, {}), dict)
        yield Video(video, tuple(sorted(frames)), tuple(objects), _shown(meta, where, about))


def videos(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the videos that have frames: name, the text "video NAME" for error messages, and JSON entry."""
    for video, value in entry(path, "the file", read_annotations(path), "videos", dict).items():
        where = f"video {video}"
        content = expect(path, where, value, dict)
        if content.get("frames", True):
            yield plain_name(path, where, video), where, content


def expressions(path: Path, where: str, content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the expressions of a video.

    Each item is a pair: the name of the expression for error messages ("expression NUMBER of video NAME"), and its JSON entry.
    """
    for number, value in entry(path, where, content, "expressions", dict).items():
        place = f"expression {number} of {where}"
        yield place, expect(path, place, value, dict)


def object_id(path: Path, where: str, value: object) -> int:
    """Return an object's id, 1 to 255. The file may store the id as text or as a number."""
    if not str(value).isdecimal() or not 1 <= int(str(value)) <= 255:
        raise DocumentError(f"{path}: {where} should have an object id of 1 to 255, not {value!r}", hint=UNPACK_AGAIN)
    return int(str(value))


def _with_categories(folder: Path, meta: Path) -> Iterator[Video]:
    for video, where, content in videos(meta):
        objects = [
            (clean_text(meta, f"object {number} of {where}", expect(meta, where, what, dict).get("category", "")), number)
            for number, what in entry(meta, where, content, "objects", dict).items()
        ]
        frames = names_in(folder / "Annotations" / video, ".png")
        if frames:
            named = tuple((name, object_id(meta, where, number)) for name, number in objects if name)
            yield Video(video, tuple(frames), named, _shown(meta, where, content))


def _shown(meta: Path, where: str, content: dict[str, Any]) -> dict[int, frozenset[str]]:
    """Return the names of the frames that show an object. The keys are object ids.

    An object without a list of frames is left out.
    """
    objects = expect(meta, f"'objects' of {where}", content.get("objects", {}), dict)
    return {
        object_id(meta, where, number): frozenset(map(str, expect(meta, where, what["frames"], list)))
        for number, what in objects.items()
        if isinstance(what, dict) and "frames" in what
    }


EVERY = 3
"""Ref-DAVIS17 uses every third frame, so that 24 frames per second become 8."""
TEXTS = {
    "Davis17_annot1.txt": "utf-8",
    "Davis17_annot1_full_video.txt": "utf-8",
    "Davis17_annot2.txt": "latin-1",
    "Davis17_annot2_full_video.txt": "latin-1",
}
_MISSPELT = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
_PICTURES = "DAVIS/JPEGImages/480p"
_MAPS = "DAVIS/Annotations_unsupervised/480p"


class RefDavis(LabelMapData):
    """Ref-DAVIS17: the videos of DAVIS 2017 with expressions; clips have 8 frames per second by default.

        ROOT/DAVIS/JPEGImages/480p/VIDEO/00000.jpg    ROOT/DAVIS/ImageSets/2017/train.txt
        ROOT/DAVIS/Annotations_unsupervised/480p/VIDEO/00000.png
        ROOT/davis_text_annotations/Davis17_annot1.txt, …

    A line of the text files is: VIDEO ID "EXPRESSION". There are two annotators. Each of them wrote one file after
    seeing only the first frame, and one file after seeing the whole video. ReferFormer's data page describes this
    layout. ReferFormer can convert the data set to the layout of Ref-YouTube-VOS. This class reads both layouts.

    Args:
        root: the folder that contains `DAVIS` and `davis_text_annotations`, or `train` and
            `meta_expressions` after the conversion.
        split: `train` or `val`.
    """

    def __init__(self, root: Path, *, split: str = "train", rule: ClipRule | None = None) -> None:
        rule = rule or ClipRule()
        if (root / "meta_expressions").is_dir():
            folder = "valid" if split == "val" else split
            clips: Iterator[ClipEntry] = (
                clip
                for video in with_expressions(root, folder, "Ref-DAVIS17")
                for clip in video.clips(folder, rule, every=EVERY)
            )
        else:
            clips = _official(root, split, rule)
        super().__init__("ref-davis", root, clips, rule)


def _official(root: Path, split: str, rule: ClipRule) -> Iterator[ClipEntry]:
    listed = required_path(root, f"DAVIS/ImageSets/2017/{split}.txt", name="Ref-DAVIS17")
    expressions_of = _expressions(required_path(root, "davis_text_annotations", name="Ref-DAVIS17"))
    for number, line in read_lines(listed):
        video = plain_name(listed, f"line {number}", line)
        frames = names_in(root / _MAPS / video, ".png")
        for places in rule.cut(len(frames), EVERY) if frames else ():
            yield ClipEntry(
                f"{video}/{frames[places[0]]}",
                tuple(f"{_PICTURES}/{video}/{frames[place]}.jpg" for place in places),
                tuple(expressions_of.get(video, ())),
                tuple(f"{_MAPS}/{video}/{frames[place]}.png" for place in places),
                places,
            )


def _expressions(folder: Path) -> dict[str, list[tuple[str, int]]]:
    """Return, for each video, the pairs (expression, object id), in the order of the text files."""
    expressions_of: dict[str, list[tuple[str, int]]] = {}
    present = [folder / name for name in TEXTS if (folder / name).exists()]
    if not present:
        raise DocumentError(f"{folder}: has none of {', '.join(TEXTS)}", hint=UNPACK_AGAIN)
    for path in present:
        for number, line in read_lines(path, encoding=TEXTS[path.name]):
            parts = line.split(maxsplit=2)
            where = f"line {number}"
            if len(parts) < 3:
                raise DocumentError(f'{path}: {where} should be VIDEO ID "EXPRESSION", not {line[:60]!r}', hint=UNPACK_AGAIN)
            text = clean_text(path, where, parts[2].strip().strip('"'))
            if text:
                pair = (text, object_id(path, where, parts[1]))
                expressions_of.setdefault(_MISSPELT.get(parts[0], parts[0]), []).append(pair)
    return expressions_of


Codes = dict[str, list[Any]]


class MeVis(DiskData):
    """MeViS: expressions that describe the motion of one or more objects; about 6 frames per second.

        ROOT/train/JPEGImages/VIDEO/00000.jpg    ROOT/train/meta_expressions.json
        ROOT/train/mask_dict.json

    `meta_expressions.json` has the frames of each video and the annotation ids of each expression.
    `mask_dict.json` has a list per annotation id, with one mask per frame: a COCO run length code, or null
    if the object is not visible. All masks stay in memory; the official data needs some hundred MB.

    Args:
        root: the folder that contains `train`.
        split: a folder with annotations: `train` or `valid_u`.
    """

    def __init__(self, root: Path, *, split: str = "train", rule: ClipRule | None = None) -> None:
        rule = rule or ClipRule()
        meta = required_path(root, f"{split}/meta_expressions.json", name="MeViS")
        self._path = required_path(root, f"{split}/mask_dict.json", name="MeViS")
        self._codes: Codes = read_annotations(self._path)
        super().__init__("mevis", root, self._clips(meta, split, rule), rule)

    def masks(self, item: ClipEntry, reduction: Reduction) -> dict[Mark, BoolArray]:
        """Return the masks (T, H, W) bool of a clip's objects. The keys are the marks in `item.objects`.

        A mark is a tuple of annotation ids. The mask of an object is the union of the masks with these ids.
        """
        marks = dict.fromkeys(cast("tuple[str, ...]", mark) for _, mark in item.objects)
        masks_of: dict[Mark, BoolArray] = {}
        for ids in marks:
            masks = []
            for place in item.places:
                whole = np.zeros((reduction.height, reduction.width), np.bool_)
                for number in ids:
                    code = self._codes[number][place]
                    if code is not None:
                        whole |= decode_mask(self._path, f"annotation {number}, frame {place}", code, whole.shape)
                masks.append(reduction.mask(whole))
            masks_of[ids] = np.stack(masks)
        return masks_of

    def _clips(self, path: Path, split: str, rule: ClipRule) -> Iterator[ClipEntry]:
        for video, where, content in videos(path):
            frames = sorted(
                plain_name(path, f"a frame of {where}", frame) for frame in entry(path, where, content, "frames", list)
            )
            named = []  # expressions with their annotation ids
            for place, expression in expressions(path, where, content):
                ids = tuple(str(number) for number in entry(path, place, expression, "anno_id", list))
                for number in ids:
                    codes = expect(self._path, f"annotation {number} (used in {place})", self._codes.get(number), list)
                    if len(codes) != len(frames):
                        what = f"annotation {number} has {len(codes)} masks, but {where} has {len(frames)} frames"
                        raise DocumentError(f"{self._path}: {what}", hint=UNPACK_AGAIN)
                text = clean_text(path, place, expression.get("exp", ""))
                if text and ids:
                    named.append((text, ids))
            for places in rule.cut(len(frames), every=1):
                shown = [
                    (name, ids) for name, ids in named if any(self._codes[number][place] for number in ids for place in places)
                ]
                yield ClipEntry(
                    f"{video}/{frames[places[0]]}",
                    tuple(f"{split}/JPEGImages/{video}/{frames[place]}.jpg" for place in places),
                    tuple(shown),
                    places=places,
                )
