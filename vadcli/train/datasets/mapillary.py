"""Mapillary Vistas, version 2.0 or 1.2: streets of the whole world with label maps of 124 or 66 categories.

    ROOT/training/images/KEY.jpg    ROOT/training/v2.0/labels/KEY.png    ROOT/config_v2.0.json

The configuration lists the categories in the order of the maps' numbers, each with a name to read and whether it is evaluated;
those that aren't (unlabeled, ego vehicle, car mount, …) have no name here. The layout is that of the official archive.
"""

from __future__ import annotations

from pathlib import Path

from vadcli.errors import UsageError
from vadcli.train.datasets.base import ClipRule
from vadcli.train.datasets.documents import entry, expect, needed, read_json, spoken
from vadcli.train.datasets.label_maps import SemanticData, paired

VERSIONS = ("v2.0", "v1.2")


class Mapillary(SemanticData):
    """Mapillary Vistas; an image is a clip.

    Args:
        root: the unpacked archive.
        split: `training` or `validation`; `train` and `val` are the same.
        rule: how large pictures become.
        cache: folder for what the maps show.
    """

    def __init__(self, root: Path, *, split: str = "training", rule: ClipRule | None = None, cache: Path | None = None) -> None:
        split = {"train": "training", "val": "validation"}.get(split, split)
        version = next((name for name in VERSIONS if (root / f"config_{name}.json").exists()), None)
        if version is None:
            raise UsageError(
                f"{root}: not a folder of Mapillary Vistas: config_v2.0.json is missing",
                hint="give the folder as the archives unpack",
            )
        for folder in (f"{split}/images", f"{split}/{version}/labels"):
            needed(root, folder, name="Mapillary Vistas")
        labels = read_categories(root / f"config_{version}.json")
        pairs = paired(root, f"{split}/images", f"{split}/{version}/labels")
        super().__init__("mapillary", root, pairs, labels, rule=rule, cache=cache)


def read_categories(path: Path) -> dict[int, str]:
    """Number -> category, in lower case.

    Raises:
        DocumentError: the configuration isn't what it should be.
    """
    found: dict[int, str] = {}
    for number, value in enumerate(entry(path, "the file", read_json(path), "labels", list)):
        label = expect(path, f"label {number}", value, dict)
        name = spoken(path, f"label {number}", entry(path, f"label {number}", label, "readable", str)).lower()
        if name and label.get("evaluate", True):
            found[number] = name
    return found
