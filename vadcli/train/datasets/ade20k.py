"""ADE20K as the scene parsing challenge of 2016 gives it: 150 categories.

    ROOT/images/training/ADE_train_00000001.jpg    ROOT/annotations/training/ADE_train_00000001.png    ROOT/objectInfo150.txt

A map's 0 is what has no category. A line of `objectInfo150.txt` is number, shares and names, apart by tabs; of the names, which
commas part, the first is taken. ROOT is the archive's ADEChallengeData2016, or the folder that holds it.
"""

from __future__ import annotations

from pathlib import Path

from vadcli.errors import DocumentError
from vadcli.train.datasets.base import ClipRule
from vadcli.train.datasets.documents import ANEW, needed, read_lines, spoken
from vadcli.train.datasets.label_maps import SemanticData, paired

_INNER = "ADEChallengeData2016"


class Ade20k(SemanticData):
    """ADE20K's 150 categories.

    Args:
        root: the unpacked archive.
        split: `training` or `validation`; `train` and `val` are the same.
        rule: how large pictures become.
        cache: folder for what the maps show.
    """

    def __init__(self, root: Path, *, split: str = "training", rule: ClipRule | None = None, cache: Path | None = None) -> None:
        root = root / _INNER if (root / _INNER).is_dir() else root
        split = {"train": "training", "val": "validation"}.get(split, split)
        labels = read_categories(needed(root, "objectInfo150.txt", name="ADE20K"))
        for folder in ("images", "annotations"):
            needed(root, f"{folder}/{split}", name="ADE20K")
        pairs = paired(root, f"images/{split}", f"annotations/{split}")
        super().__init__("ade20k", root, pairs, labels, rule=rule, cache=cache)


def read_categories(path: Path) -> dict[int, str]:
    """Number -> category.

    Raises:
        DocumentError: a line isn't what it should be.
    """
    found: dict[int, str] = {}
    for number, line in read_lines(path):
        parts = line.split("\t")
        first = spoken(path, f"line {number}", parts[-1].split(",")[0])
        if number == 1 and not parts[0].strip().isdecimal():
            continue
        if len(parts) < 2 or not parts[0].strip().isdecimal() or not 1 <= int(parts[0]) <= 255 or not first:
            raise DocumentError(f"{path}: line {number} should be number, shares and names apart by tabs", hint=ANEW)
        found[int(parts[0])] = first
    return found
