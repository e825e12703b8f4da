"""Images with a label map each: which categories a map shows is found once, by reading it, and can be kept in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from vadcli.errors import DocumentError
from vadcli.outputs.atomic import Scratch
from vadcli.train.datasets.base import ClipEntry, ClipRule, LabelMapData
from vadcli.train.datasets.documents import ANEW
from vadcli.train.datasets.pictures import read_labels

_VERSION = 1
_READERS = 4

Known = dict[str, tuple[int, int, tuple[int, ...]]]
"""Of each map, relative to the root: its size in bytes, its time in ns, the numbers in it."""


class SemanticData(LabelMapData):
    """Images whose map numbers stand for categories, "stuff" and things alike; all objects of a category are one.

    The first opening reads every map, some minutes for the larger data sets; with `cache` the next one reads only what changed.

    Args:
        name: of the data set.
        root: its folder.
        pairs: (image, map), both relative to the root; an image's path is its key.
        labels: number -> category; other numbers are nothing that has a name.
        rule: how large pictures become.
        cache: folder for the file that keeps what the maps show; none is kept where None.

    Raises:
        UsageError: no image shows a category.
        DocumentError: a map is damaged.
        OutputError: the cache can't be written.
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
    """The numbers in each label map, ascending.

    Args:
        root: the data set's folder.
        maps: relative to it.
        file: what was found is kept here; a map counts as changed with its size or time. A damaged file is made anew.
    """
    known = _load(file) if file else {}
    stamps = {name: _stamp(root / name) for name in maps}
    unread = [name for name in maps if known.get(name, ())[:2] != stamps[name]]
    with ThreadPoolExecutor(_READERS) as readers:  # decoding lets other threads run
        for name, numbers in zip(unread, readers.map(lambda name: _numbers(root / name), unread), strict=True):
            known[name] = (*stamps[name], numbers)
    if file and unread:
        _store(file, known)
    return [known[name][2] for name in maps]


def paired(root: Path, images: str, maps: str, *, suffix: str = ".jpg") -> list[tuple[str, str]]:
    """(image, map) of two folders with the same names, in the order of their names.

    Raises:
        DocumentError: an image has no map.
    """
    pairs = [(f"{images}/{name}{suffix}", f"{maps}/{name}.png") for name in names_in(root / images, suffix)]
    there = set(names_in(root / maps, ".png"))
    for image, label_map in pairs:
        if Path(label_map).stem not in there:
            raise DocumentError(f"{root / label_map}: is missing, the label map of {Path(image).name}", hint=ANEW)
    return pairs


def names_in(folder: Path, suffix: str) -> Iterable[str]:
    """Names without their suffix of a folder's files that have it, sorted.

    Raises:
        DocumentError: the folder can't be read.
    """
    try:
        return sorted(name.removesuffix(suffix) for name in os.listdir(folder) if name.endswith(suffix))
    except OSError as error:
        raise DocumentError(f"{folder}: can't be read: {error.strerror or error}", hint=ANEW) from error


def _numbers(path: Path) -> tuple[int, ...]:
    counts = np.bincount(read_labels(path).ravel(), minlength=256)
    return tuple(int(number) for number in np.flatnonzero(counts))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise DocumentError(f"{path}: can't be read: {error.strerror or error}", hint=ANEW) from error
    return found.st_size, found.st_mtime_ns


def _load(file: Path) -> Known:
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        told = json.loads(file.read_text(encoding="utf-8"))
        if told["version"] == _VERSION:
            return {name: (int(size), int(time), tuple(map(int, found))) for name, (size, time, found) in told["maps"].items()}
    return {}


def _store(file: Path, known: Known) -> None:
    with Scratch(file.parent / ".tmp") as scratch:
        scratch.write_text(file, json.dumps({"version": _VERSION, "maps": known}))
