"""MeViS: objects by expressions of their motion, one or more objects for each; pictures at about 6 a second.

    ROOT/train/JPEGImages/VIDEO/00000.jpg    ROOT/train/meta_expressions.json    ROOT/train/mask_dict.json

`meta_expressions.json` has each video's frames and each expression's annotation ids; `mask_dict.json` of each id one COCO run
length code a frame, null where the object isn't seen. The layout is that of the MeViS repository's own loader.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from vadcli.errors import DocumentError
from vadcli.train.datasets.base import ClipEntry, ClipRule, DiskData, Mark
from vadcli.train.datasets.documents import ANEW, entry, expect, needed, plain, read_json, spoken
from vadcli.train.datasets.pictures import Reduction
from vadcli.train.datasets.rle import decoded
from vadcli.train.datasets.youtube_vos import expressions, videos
from vadcli.types import BoolArray

Codes = dict[str, list[Any]]


class MeVis(DiskData):
    """MeViS. Its masks stay in memory as they are coded, some hundred MB in the official data.

    Args:
        root: the folder that holds `train`.
        split: a folder with annotations: `train` or `valid_u`.
        rule: how videos are cut.
    """

    def __init__(self, root: Path, *, split: str = "train", rule: ClipRule | None = None) -> None:
        rule = rule or ClipRule()
        told = needed(root, f"{split}/meta_expressions.json", name="MeViS")
        self._path = needed(root, f"{split}/mask_dict.json", name="MeViS")
        self._codes: Codes = read_json(self._path)
        super().__init__("mevis", root, self._clips(told, split, rule), rule)

    def masks(self, item: ClipEntry, reduction: Reduction) -> dict[Mark, BoolArray]:
        """The union of each expression's annotations, whose ids are the mark."""
        marks = dict.fromkeys(cast("tuple[str, ...]", mark) for _, mark in item.objects)
        return {ids: np.stack([self._union(ids, place, reduction) for place in item.places]) for ids in marks}

    def _union(self, ids: tuple[str, ...], place: int, reduction: Reduction) -> BoolArray:
        whole = np.zeros((reduction.height, reduction.width), np.bool_)
        for number in ids:
            code = self._codes[number][place]
            if code is not None:
                whole |= decoded(self._path, f"annotation {number}, frame {place}", code, whole.shape)
        return reduction.mask(whole)

    def _clips(self, path: Path, split: str, rule: ClipRule) -> Iterator[ClipEntry]:
        for video, where, told in videos(path):
            frames = sorted(plain(path, f"a frame of {where}", frame) for frame in entry(path, where, told, "frames", list))
            named = list(self._named(path, where, told, len(frames)))
            for places in rule.cut(len(frames), every=1):
                seen = [(name, ids) for name, ids in named if any(self._codes[one][place] for one in ids for place in places)]
                yield ClipEntry(
                    f"{video}/{frames[places[0]]}",
                    tuple(f"{split}/JPEGImages/{video}/{frames[place]}.jpg" for place in places),
                    tuple(seen),
                    places=places,
                )

    def _named(self, path: Path, where: str, told: dict[str, Any], length: int) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(expression, annotation ids), those that refer to nothing left out."""
        for place, said in expressions(path, where, told):
            ids = tuple(str(number) for number in entry(path, place, said, "anno_id", list))
            for number in ids:
                codes = expect(self._path, f"annotation {number}, that {place} asks for,", self._codes.get(number), list)
                if len(codes) != length:
                    what = f"{self._path}: annotation {number} has {len(codes)} masks where {where} has {length} frames"
                    raise DocumentError(what, hint=ANEW)
            text = spoken(path, place, said.get("exp", ""))
            if text and ids:
                yield text, ids
