"""The RefCOCO family: COCO's images of 2014 with expressions for their objects.

    ROOT/refcoco/refs(unc).p    ROOT/refcoco/instances.json    ROOT/images/mscoco/images/train2014/COCO_train2014_….jpg
    ROOT/refcoco+/refs(unc).p   …                              (or ROOT/images/train2014, or ROOT/train2014)
    ROOT/refcocog/refs(umd).p   …

A ref is an object with several sentences and belongs to a split; `instances.json` is COCO's. The layout is that of the `refer`
repository. The pickles are read without running what they might ask for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vadcli.errors import DocumentError, UsageError
from vadcli.train.datasets.base import ClipEntry, ClipRule, DiskData, Mark
from vadcli.train.datasets.documents import ANEW, decoded, entry, expect, needed, plain, read_json, read_pickle, spoken
from vadcli.train.samples import Reduction
from vadcli.types import BoolArray

REFS = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}
_IMAGES = ("images/mscoco/images/train2014", "images/train2014", "train2014")


class RefCoco(DiskData):
    """One or several of the family as one data set; a clip is an image with all its expressions.

    Args:
        root: the folder that holds `refcoco`, `refcoco+`, `refcocog` and the images.
        split: `train`, `val`, `testA`, `testB` or `test`, as the refs say.
        rule: how large pictures become.
        sets: which of the family; an image of several is a clip of each.
    """

    def __init__(
        self, root: Path, *, split: str = "train", rule: ClipRule | None = None, sets: Sequence[str] = tuple(REFS)
    ) -> None:
        unknown = sorted(set(sets) - set(REFS))
        if unknown:
            raise UsageError(f"{unknown[0]} is not of the RefCOCO family", hint=f"choose among {', '.join(REFS)}")
        folder = next((name for name in _IMAGES if (root / name).is_dir()), _IMAGES[0])
        needed(root, folder, name="RefCOCO")
        self._codes: dict[Mark, tuple[Path, object]] = {}
        clips = (clip for name in sets for clip in self._clips(root, name, split, folder))
        super().__init__("refcoco", root, clips, rule or ClipRule())

    def masks(self, item: ClipEntry, reduction: Reduction) -> dict[Mark, BoolArray]:
        """Each annotation's mask; a mark is (set, annotation id)."""
        found: dict[Mark, BoolArray] = {}
        for _, mark in item.objects:
            if mark not in found:
                path, code = self._codes[mark]
                whole = decoded(path, f"annotation {mark[1]}", code, (reduction.height, reduction.width))  # type: ignore[index]
                found[mark] = reduction.mask(whole)[None]
        return found

    def _clips(self, root: Path, name: str, split: str, folder: str) -> Iterator[ClipEntry]:
        refs = needed(root, f"{name}/{REFS[name]}", name="RefCOCO")
        instances = needed(root, f"{name}/instances.json", name="RefCOCO")
        told = read_json(instances)
        files = {
            entry(instances, "an image", image, "id", int): plain(instances, "an image's file", image.get("file_name"))
            for image in _objects(instances, "images", told)
        }
        codes = {
            entry(instances, "an annotation", item, "id", int): item.get("segmentation")
            for item in _objects(instances, "annotations", told)
        }
        for image, objects in _grouped(refs, split).items():
            file = expect(instances, f"the file of image {image}", files.get(image), str)
            for number in {number for _, number in objects}:
                if codes.get(number) is None:
                    raise DocumentError(f"{instances}: annotation {number}, that {refs.name} asks for, has no mask", hint=ANEW)
                self._codes[name, number] = (instances, codes[number])
            named = tuple((text, (name, number)) for text, number in objects)
            yield ClipEntry(f"{name}/{file}", (f"{folder}/{file}",), named)


def _grouped(path: Path, split: str) -> dict[int, list[tuple[str, int]]]:
    """Of each image of the split its (expression, annotation id) pairs."""
    found: dict[int, list[tuple[str, int]]] = {}
    for place, value in enumerate(expect(path, "the file", read_pickle(path), list)):
        where = f"ref {place}"
        ref = expect(path, where, value, dict)
        if entry(path, where, ref, "split", str) != split:
            continue
        objects = found.setdefault(entry(path, where, ref, "image_id", int), [])
        for sentence in entry(path, where, ref, "sentences", list):
            text = spoken(path, where, entry(path, where, expect(path, where, sentence, dict), "sent", str))
            if text:
                objects.append((text, entry(path, where, ref, "ann_id", int)))
    return found


def _objects(path: Path, key: str, told: dict[str, Any]) -> list[dict[str, Any]]:
    return [expect(path, f"an item of {key!r}", item, dict) for item in entry(path, "the file", told, key, list)]
