"""Data sets of still images: ADE20K, Cityscapes, Mapillary Vistas and RefCOCO; each image is a clip.

The first three data sets have one label map per image. All maps must be read to find out which categories an image shows. This
takes minutes, so the result can be cached in a file. RefCOCO describes single objects with expressions. The files of each data
set are in the docstring of its class.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from vadcli.errors import DocumentError, UsageError
from vadcli.store.atomic import Scratch
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
    read_labels,
    read_lines,
    read_pickle,
    required_path,
)
from vadcli.types import BoolArray
from vadcli.types.text import unreadable

_VERSION = 1
_READERS = 4

Known = dict[str, tuple[int, int, tuple[int, ...]]]
"""For each label map, by its path below the root: size in bytes, modification time in ns, and the numbers in the map."""


class SemanticData(LabelMapData):
    """A data set of images with label maps; all pixels of a category are one object.

    Opening the data set reads every map. With a `cache`, only new and changed maps are read.

    Args:
        name: name of the data set.
        root: folder of the data set.
        pairs: paths of each image and its map, relative to the root.
        labels: the categories, by their number in a map. All other numbers are ignored.
        rule: the longest side of images (`max_side`); the other values are not used.
        cache: folder for a file that lists the numbers of each map; None for no file.

    Raises:
        UsageError: no image shows a category.
        DocumentError: a map is damaged.
        OutputError: the cache cannot be written.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        pairs: Sequence[tuple[str, str]],
        labels: Mapping[int, str],
        *,
        rule: ClipRule | None = None,
        cache: Path | None = None,
    ) -> None:
        shown = map_numbers(root, [label_map for _, label_map in pairs], file=cache / f"{name}.json" if cache else None)
        clips = (
            ClipEntry(image, (image,), tuple((labels[number], number) for number in numbers if number in labels), (label_map,))
            for (image, label_map), numbers in zip(pairs, shown, strict=True)
        )
        super().__init__(name, root, clips, rule or ClipRule())


def map_numbers(root: Path, maps: Sequence[str], *, file: Path | None = None) -> list[tuple[int, ...]]:
    """Return the numbers that occur in each label map, in ascending order.

    Args:
        root: the data set's folder.
        maps: paths of the label maps, relative to `root`.
        file: cache of the numbers. A map is read again if its file size or modification time has changed.
    """
    known: Known = {}
    if file:
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            document = json.loads(file.read_text(encoding="utf-8"))
            if document["version"] == _VERSION:
                maps_read = document["maps"].items()
                known = {name: (int(size), int(ns), tuple(map(int, numbers))) for name, (size, ns, numbers) in maps_read}
    stamps = {}
    for name in maps:
        try:
            state = (root / name).stat()
        except OSError as error:
            raise DocumentError(unreadable(root / name, error), hint=UNPACK_AGAIN) from error
        stamps[name] = (state.st_size, state.st_mtime_ns)
    unread = [name for name in maps if known.get(name, ())[:2] != stamps[name]]
    with ThreadPoolExecutor(_READERS) as readers:  # decoding releases the GIL
        for name, labels in zip(unread, readers.map(lambda name: np.unique(read_labels(root / name)), unread), strict=True):
            known[name] = (*stamps[name], tuple(labels.tolist()))
    if file and unread:
        with Scratch(file.parent / ".tmp") as scratch:
            scratch.write_text(file, json.dumps({"version": _VERSION, "maps": known}))
    return [known[name][2] for name in maps]


def paired(root: Path, images: str, maps: str, *, suffix: str = ".jpg", map_suffix: str = ".png") -> list[tuple[str, str]]:
    """Return the pairs (image, label map) of two folders, sorted. The names differ only in the suffix."""
    pairs = []
    map_names = set(names_in(root / maps, map_suffix))
    for name in names_in(root / images, suffix):
        image, label_map = f"{images}/{name}{suffix}", f"{maps}/{name}{map_suffix}"
        if name not in map_names:
            raise DocumentError(f"{root / label_map}: the label map of {Path(image).name} is missing", hint=UNPACK_AGAIN)
        pairs.append((image, label_map))
    return pairs


_INNER = "ADEChallengeData2016"
_LONG_SPLITS = {"train": "training", "val": "validation"}


class Ade20k(SemanticData):
    """The data set ADE20K with the 150 categories of the scene parsing challenge of 2016.

        ROOT/images/training/ADE_train_00000001.jpg    ROOT/objectInfo150.txt
        ROOT/annotations/training/ADE_train_00000001.png

    The number 0 in a map means no category. ROOT is the folder ADEChallengeData2016 of the archive,
    or the folder that contains it.

    Args:
        root: the unpacked archive.
        split: `training` or `validation`, or their short forms `train` and `val`.
    """

    def __init__(self, root: Path, *, split: str = "training", rule: ClipRule | None = None, cache: Path | None = None) -> None:
        root = root / _INNER if (root / _INNER).is_dir() else root
        split = _LONG_SPLITS.get(split, split)
        labels = read_ade20k_categories(required_path(root, "objectInfo150.txt", name="ADE20K"))
        for folder in ("images", "annotations"):
            required_path(root, f"{folder}/{split}", name="ADE20K")
        pairs = paired(root, f"images/{split}", f"annotations/{split}")
        super().__init__("ade20k", root, pairs, labels, rule=rule, cache=cache)


def read_ade20k_categories(path: Path) -> dict[int, str]:
    """Return the categories in `objectInfo150.txt`, by number.

    A line has a number, statistics and names, separated by tabs. The first name is the category.
    """
    categories: dict[int, str] = {}
    for number, line in read_lines(path):
        parts = line.split("\t")
        first = clean_text(path, f"line {number}", parts[-1].split(",")[0])
        if number == 1 and not parts[0].strip().isdecimal():
            continue
        if len(parts) < 2 or not parts[0].strip().isdecimal() or not 1 <= int(parts[0]) <= 255 or not first:
            raise DocumentError(
                f"{path}: line {number} must have number, statistics and names, separated by tabs", hint=UNPACK_AGAIN
            )
        categories[int(parts[0])] = first
    return categories


CATEGORIES: Mapping[int, str] = MappingProxyType(
    {
        7: "road",
        8: "sidewalk",
        11: "building",
        12: "wall",
        13: "fence",
        17: "pole",
        19: "traffic light",
        20: "traffic sign",
        21: "vegetation",
        22: "terrain",
        23: "sky",
        24: "person",
        25: "rider",
        26: "car",
        27: "truck",
        28: "bus",
        31: "train",
        32: "motorcycle",
        33: "bicycle",
    }
)


class Cityscapes(SemanticData):
    """Cityscapes with fine label maps and the 19 evaluated categories.

        ROOT/leftImg8bit/train/CITY/CITY_000000_000019_leftImg8bit.png
        ROOT/gtFine/train/CITY/CITY_000000_000019_gtFine_labelIds.png

    The files come from the archives leftImg8bit_trainvaltest and gtFine_trainvaltest. The numbers in a map are
    the ids of cityscapesScripts. Ids that are not evaluated (ego vehicle, static, parking, …) are ignored.

    Args:
        root: the folder that contains `leftImg8bit` and `gtFine`.
        split: `train` or `val`.
    """

    def __init__(self, root: Path, *, split: str = "train", rule: ClipRule | None = None, cache: Path | None = None) -> None:
        for folder in ("leftImg8bit", "gtFine"):
            required_path(root, f"{folder}/{split}", name="Cityscapes")
        pairs: list[tuple[str, str]] = []
        for city in sorted(item.name for item in os.scandir(root / "leftImg8bit" / split) if item.is_dir()):
            images, maps = f"leftImg8bit/{split}/{city}", f"gtFine/{split}/{city}"
            pairs += paired(root, images, maps, suffix="_leftImg8bit.png", map_suffix="_gtFine_labelIds.png")
        super().__init__("cityscapes", root, pairs, CATEGORIES, rule=rule, cache=cache)


VERSIONS = ("v2.0", "v1.2")


class Mapillary(SemanticData):
    """Mapillary Vistas, version 2.0 (124 categories) or 1.2 (66 categories).

        ROOT/training/images/KEY.jpg    ROOT/training/v2.0/labels/KEY.png    ROOT/config_v2.0.json

    Args:
        root: the unpacked archive.
        split: `training` or `validation`, or their short forms `train` and `val`.
    """

    def __init__(self, root: Path, *, split: str = "training", rule: ClipRule | None = None, cache: Path | None = None) -> None:
        split = _LONG_SPLITS.get(split, split)
        version = next((name for name in VERSIONS if (root / f"config_{name}.json").exists()), VERSIONS[0])
        config = required_path(root, f"config_{version}.json", name="Mapillary Vistas")
        for folder in (f"{split}/images", f"{split}/{version}/labels"):
            required_path(root, folder, name="Mapillary Vistas")
        labels = read_mapillary_categories(config)
        pairs = paired(root, f"{split}/images", f"{split}/{version}/labels")
        super().__init__("mapillary", root, pairs, labels, rule=rule, cache=cache)


def read_mapillary_categories(path: Path) -> dict[int, str]:
    """Return the categories in a configuration file, in lower case, by number.

    The configuration file lists the categories in the order of their numbers, from 0. Categories that are
    not evaluated (unlabeled, ego vehicle, car mount, …) are left out.
    """
    categories: dict[int, str] = {}
    for number, value in enumerate(entry(path, "the file", read_annotations(path), "labels", list)):
        label = expect(path, f"label {number}", value, dict)
        name = clean_text(path, f"label {number}", entry(path, f"label {number}", label, "readable", str)).lower()
        if name and label.get("evaluate", True):
            categories[number] = name
    return categories


REFS = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}
_IMAGES = ("images/mscoco/images/train2014", "images/train2014", "train2014")


class RefCoco(DiskData):
    """RefCOCO, RefCOCO+ and RefCOCOg: COCO images of 2014 with expressions for their objects.

        ROOT/refcoco/refs(unc).p    ROOT/refcoco/instances.json    (also refcoco+, refcocog)
        ROOT/images/mscoco/images/train2014/COCO_train2014_….jpg
        (or ROOT/images/train2014, or ROOT/train2014)

    This is the layout of the `refer` repository. Its refs files have several sentences and a split for each
    object. A clip is one image with all its sentences in the split.

    Args:
        root: the folder that contains `refcoco`, `refcoco+`, `refcocog` and the images.
        split: `train`, `val`, `testA`, `testB` or `test`. Not every set has all of these splits.
        sets: which of `refcoco`, `refcoco+` and `refcocog` to use. An image in two sets gives two clips.
    """

    def __init__(
        self, root: Path, *, split: str = "train", rule: ClipRule | None = None, sets: Sequence[str] = tuple(REFS)
    ) -> None:
        unknown = sorted(set(sets) - set(REFS))
        if unknown:
            raise UsageError(f"{unknown[0]} is not a RefCOCO data set", hint=f"choose among {', '.join(REFS)}")
        folder = next((name for name in _IMAGES if (root / name).is_dir()), _IMAGES[0])
        required_path(root, folder, name="RefCOCO")
        self._codes: dict[Mark, tuple[Path, object]] = {}
        clips = (clip for name in sets for clip in self._clips(root, name, split, folder))
        super().__init__("refcoco", root, clips, rule or ClipRule())

    def masks(self, item: ClipEntry, reduction: Reduction) -> dict[Mark, BoolArray]:
        """Return the masks (1, H, W) bool of an image's objects. The keys are the marks: pairs (set, annotation id)."""
        masks: dict[Mark, BoolArray] = {}
        for _, mark in item.objects:
            if mark not in masks:
                path, code = self._codes[mark]
                whole = decode_mask(path, f"annotation {mark[1]}", code, (reduction.height, reduction.width))  # type: ignore[index]
                masks[mark] = reduction.mask(whole)[None]
        return masks

    def _clips(self, root: Path, name: str, split: str, folder: str) -> Iterator[ClipEntry]:
        refs = required_path(root, f"{name}/{REFS[name]}", name="RefCOCO")
        instances = required_path(root, f"{name}/instances.json", name="RefCOCO")
        document = read_annotations(instances)
        files = {
            entry(instances, "an image", image, "id", int): plain_name(instances, "an image's file", image.get("file_name"))
            for image in _objects(instances, "images", document)
        }
        codes = {
            entry(instances, "an annotation", item, "id", int): item.get("segmentation")
            for item in _objects(instances, "annotations", document)
        }
        for image, objects in _grouped(refs, split).items():
            file = expect(instances, f"the file of image {image}", files.get(image), str)
            for number in {number for _, number in objects}:
                if codes.get(number) is None:
                    raise DocumentError(f"{instances}: annotation {number} of {refs.name} has no mask", hint=UNPACK_AGAIN)
                self._codes[name, number] = (instances, codes[number])
            named = tuple((text, (name, number)) for text, number in objects)
            yield ClipEntry(f"{name}/{file}", (f"{folder}/{file}",), named)


def _grouped(path: Path, split: str) -> dict[int, list[tuple[str, int]]]:
    """Return the (expression, annotation id) pairs of each image of a split, by image id."""
    grouped: dict[int, list[tuple[str, int]]] = {}
    for place, value in enumerate(expect(path, "the file", read_pickle(path), list)):
        where = f"ref {place}"
        ref = expect(path, where, value, dict)
        if entry(path, where, ref, "split", str) != split:
            continue
        objects = grouped.setdefault(entry(path, where, ref, "image_id", int), [])
        for sentence in entry(path, where, ref, "sentences", list):
            text = clean_text(path, where, entry(path, where, expect(path, where, sentence, dict), "sent", str))
            if text:
                objects.append((text, entry(path, where, ref, "ann_id", int)))
    return grouped


def _objects(path: Path, key: str, document: dict[str, Any]) -> list[dict[str, Any]]:
    return [expect(path, f"an item of {key!r}", item, dict) for item in entry(path, "the file", document, key, list)]
