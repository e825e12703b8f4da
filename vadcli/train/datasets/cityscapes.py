"""Cityscapes: streets with fine label maps, by the 19 categories that are evaluated.

    ROOT/leftImg8bit/train/CITY/CITY_000000_000019_leftImg8bit.png
    ROOT/gtFine/train/CITY/CITY_000000_000019_gtFine_labelIds.png

The layout and the categories' ids are those of the archives leftImg8bit_trainvaltest and gtFine_trainvaltest and of the
cityscapesScripts' labels; other ids (ego vehicle, static, parking, …) have no name here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from vadcli.errors import DocumentError
from vadcli.train.datasets.base import ClipRule
from vadcli.train.datasets.documents import ANEW, needed
from vadcli.train.datasets.label_maps import SemanticData, names_in

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
    """Cityscapes' fine annotations; an image is a clip.

    Args:
        root: the folder that holds `leftImg8bit` and `gtFine`.
        split: `train` or `val`.
        rule: how large pictures become.
        cache: folder for what the maps show.
    """

    def __init__(self, root: Path, *, split: str = "train", rule: ClipRule | None = None, cache: Path | None = None) -> None:
        for folder in ("leftImg8bit", "gtFine"):
            needed(root, f"{folder}/{split}", name="Cityscapes")
        super().__init__("cityscapes", root, list(_pairs(root, split)), CATEGORIES, rule=rule, cache=cache)


def _pairs(root: Path, split: str) -> Iterator[tuple[str, str]]:
    for city in sorted(item.name for item in os.scandir(root / "leftImg8bit" / split) if item.is_dir()):
        there = set(names_in(root / "gtFine" / split / city, "_gtFine_labelIds.png"))
        for name in names_in(root / "leftImg8bit" / split / city, "_leftImg8bit.png"):
            label_map = f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png"
            if name not in there:
                raise DocumentError(f"{root / label_map}: is missing, the label map of {name}", hint=ANEW)
            yield f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", label_map
