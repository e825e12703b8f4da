"""Opens segmentation data sets in their official layouts. Downloads and unpacks nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from vadcli.errors import UsageError
from vadcli.train.datasets.base import ClipRule, DiskData
from vadcli.train.datasets.images import Ade20k, Cityscapes, Mapillary, RefCoco
from vadcli.train.datasets.video import MeVis, RefDavis, RefYouTubeVos, YouTubeVos

_VIDEOS: Mapping[str, Callable[..., DiskData]] = {
    "youtube-vos": YouTubeVos,
    "ref-youtube-vos": RefYouTubeVos,
    "mevis": MeVis,
    "ref-davis": RefDavis,
    "refcoco": RefCoco,
}
_MAPS: Mapping[str, Callable[..., DiskData]] = {"cityscapes": Cityscapes, "ade20k": Ade20k, "mapillary": Mapillary}
DATA_SETS: Mapping[str, Callable[..., DiskData]] = MappingProxyType({**_VIDEOS, **_MAPS})
"""Every data set, by its name in a recipe."""


def open_data(
    name: str, root: Path, *, split: str = "train", rule: ClipRule | None = None, cache: Path | None = None
) -> DiskData:
    """Return a data set by its name.

    Args:
        name: one of `DATA_SETS`.
        root: folder of the data set, with the layout of the unpacked official archives.
        split: `train`, or another split of the data set.
        rule: the length of clips and the largest size of images.
        cache: folder to cache the numbers of each label map in; only data sets with one map per image use it.

    Raises:
        UsageError: the name is unknown, or the folder has another layout.
        DocumentError: a file is damaged.
    """
    if name not in DATA_SETS:
        raise UsageError(f"{name!r} is not a data set", hint=f"choose among {', '.join(DATA_SETS)}")
    more = {"cache": cache} if name in _MAPS else {}
    return DATA_SETS[name](root, split=split, rule=rule, **more)
