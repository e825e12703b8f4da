"""YouTube-VOS by categories and Ref-YouTube-VOS by expressions: one layout, pictures at 6 a second.

    ROOT/train/JPEGImages/VIDEO/00000.jpg            ROOT/train/meta.json
    ROOT/train/Annotations/VIDEO/00000.png           ROOT/meta_expressions/train/meta_expressions.json   (Ref-YouTube-VOS)

`meta.json` names each object's category and the frames that show it; a label map's pixels hold the objects' ids.
The layout is that of the archives of the YouTube-VOS challenges, as ReferFormer's data page describes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vadcli.errors import DocumentError
from vadcli.train.datasets.base import ClipEntry, ClipRule, LabelMapData
from vadcli.train.datasets.documents import ANEW, entry, expect, needed, plain, read_json, spoken


@dataclass(frozen=True)
class Video:
    """One video of such a data set.

    Attributes:
        name: its folder's.
        frames: its pictures' names without suffix, in order.
        objects: (name, id) pairs.
        shown: of each id the frames that show it; of an id that isn't here that isn't known.
    """

    name: str
    frames: tuple[str, ...]
    objects: tuple[tuple[str, int], ...]
    shown: dict[int, frozenset[str]]

    def clips(self, split: str, rule: ClipRule, *, every: int) -> Iterator[ClipEntry]:
        """Its clips, each with the objects that it shows."""
        for places in rule.cut(len(self.frames), every):
            frames = tuple(self.frames[place] for place in places)
            seen = {number for number, shown in self.shown.items() if not shown.isdisjoint(frames)}
            yield ClipEntry(
                f"{self.name}/{frames[0]}",
                tuple(f"{split}/JPEGImages/{self.name}/{frame}.jpg" for frame in frames),
                tuple((name, number) for name, number in self.objects if number not in self.shown or number in seen),
                tuple(f"{split}/Annotations/{self.name}/{frame}.png" for frame in frames),
                places,
            )


class YouTubeVos(LabelMapData):
    """YouTube-VOS: objects by category.

    Args:
        root: the folder that holds `train`.
        split: a folder with annotations; the challenge gives them for `train` alone.
        rule: how videos are cut.
    """

    def __init__(self, root: Path, *, split: str = "train", rule: ClipRule | None = None) -> None:
        rule = rule or ClipRule()
        meta = needed(root, f"{split}/meta.json", name="YouTube-VOS")
        clips = (clip for video in _with_categories(root / split, meta) for clip in video.clips(split, rule, every=1))
        super().__init__("youtube-vos", root, clips, rule)


class RefYouTubeVos(LabelMapData):
    """Ref-YouTube-VOS: objects by expressions, usually several for each.

    Args:
        root: the folder that holds `train` and `meta_expressions`.
        split: a folder with annotations.
        rule: how videos are cut.
    """

    def __init__(self, root: Path, *, split: str = "train", rule: ClipRule | None = None) -> None:
        rule = rule or ClipRule()
        clips = (
            clip for video in with_expressions(root, split, "Ref-YouTube-VOS") for clip in video.clips(split, rule, every=1)
        )
        super().__init__("ref-youtube-vos", root, clips, rule)


def with_expressions(root: Path, split: str, name: str) -> Iterator[Video]:
    """Videos whose objects are named by expressions.

    Raises:
        UsageError: a file of the layout is missing.
        DocumentError: one is damaged.
    """
    path = needed(root, f"meta_expressions/{split}/meta_expressions.json", name=name)
    meta = needed(root, f"{split}/meta.json", name=name)
    known = entry(meta, "the file", read_json(meta), "videos", dict)
    for video, where, told in videos(path):
        frames = [plain(path, f"a frame of {where}", frame) for frame in entry(path, where, told, "frames", list)]
        objects = []
        for place, said in expressions(path, where, told):
            text = spoken(path, place, said.get("exp", ""))
            if text:
                objects.append((text, object_id(path, place, said.get("obj_id"))))
        about = expect(meta, where, known.get(video, {}), dict)
        yield Video(video, tuple(sorted(frames)), tuple(objects), _shown(meta, where, about))


def videos(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, "video NAME", what is told) of every video of such a document, in its order; those without frames are left out."""
    for video, value in entry(path, "the file", read_json(path), "videos", dict).items():
        where = f"video {video}"
        told = expect(path, where, value, dict)
        if told.get("frames", True):
            yield plain(path, where, video), where, told


def expressions(path: Path, where: str, told: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """("expression NUMBER of video NAME", what is said) of each of a video's expressions."""
    for number, value in entry(path, where, told, "expressions", dict).items():
        place = f"expression {number} of {where}"
        yield place, expect(path, place, value, dict)


def object_id(path: Path, where: str, value: object) -> int:
    """An object's number, 1 to 255, which documents give as text or number.

    Raises:
        DocumentError: it is no such number.
    """
    if not str(value).isdecimal() or not 1 <= int(str(value)) <= 255:
        raise DocumentError(f"{path}: {where} has no object id of 1 to 255 but {value!r}", hint=ANEW)
    return int(str(value))


def _with_categories(folder: Path, meta: Path) -> Iterator[Video]:
    for video, where, told in videos(meta):
        objects = [
            (spoken(meta, f"object {number} of {where}", expect(meta, where, what, dict).get("category", "")), number)
            for number, what in entry(meta, where, told, "objects", dict).items()
        ]
        try:
            frames = sorted(item.stem for item in (folder / "Annotations" / video).iterdir() if item.suffix == ".png")
        except OSError as error:
            raise DocumentError(f"{folder / 'Annotations' / video}: can't be read: {error.strerror}", hint=ANEW) from error
        if frames:
            named = tuple((name, object_id(meta, where, number)) for name, number in objects if name)
            yield Video(video, tuple(frames), named, _shown(meta, where, told))


def _shown(meta: Path, where: str, told: dict[str, Any]) -> dict[int, frozenset[str]]:
    """Of each object the frames that show it, where the document says so."""
    objects = expect(meta, f"'objects' of {where}", told.get("objects", {}), dict)
    return {
        object_id(meta, where, number): frozenset(map(str, expect(meta, where, what["frames"], list)))
        for number, what in objects.items()
        if isinstance(what, dict) and "frames" in what
    }
