"""What every data set on disk has in common: clips cut from videos, pictures read and reduced, masks by name."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vadcli.errors import DocumentError, UsageError
from vadcli.train.samples import Reduction, Segmentation, SegmentedObject, read_frame, read_labels
from vadcli.types import BoolArray, ByteArray

Mark = Hashable
"""What tells an object from the others of its clip in the annotations: a pixel's number, an annotation's id."""


@dataclass(frozen=True)
class ClipRule:
    """How videos are cut into clips and how large their pictures become.

    Attributes:
        frames: T of a video's clip; an image's is 1.
        every: take each how-many-th picture of the video; None for the data set's own, which comes near 7 a second.
        max_side: larger pictures are reduced until their longer side is this long, in pixels.
    """

    frames: int = 8
    every: int | None = None
    max_side: int = 1024

    def __post_init__(self) -> None:
        if self.frames < 1 or self.max_side < 1 or (self.every is not None and self.every < 1):
            raise ValueError(f"frames, every and max_side must be 1 or more, not {self}")

    def cut(self, length: int, every: int) -> list[tuple[int, ...]]:
        """Which pictures make up each clip of a video of `length`.

        Clips don't overlap; the last one is moved back to end with the video; a video that is shorter than a clip repeats its
        last picture.
        """
        every = self.every or every
        span = (self.frames - 1) * every + 1
        starts = list(range(0, max(length - span, 0) + 1, self.frames * every))
        if starts[-1] + span < length:
            starts.append(length - span)
        return [tuple(min(start + step * every, length - 1) for step in range(self.frames)) for start in starts]


@dataclass(frozen=True)
class ClipEntry:
    """One clip as the annotations describe it.

    Attributes:
        key: unique in the data set.
        frames: T picture files, relative to the root.
        objects: (name, mark) of each object that the clip shows; one mark may have several names, one name several marks.
        maps: T label maps, relative to the root, where the data set has them.
        places: T, the frames' places in their video; (0,) for an image.
    """

    key: str
    frames: tuple[str, ...]
    objects: tuple[tuple[str, Mark], ...]
    maps: tuple[str, ...] = ()
    places: tuple[int, ...] = (0,)


class DiskData(ABC):
    """A data set in its official layout; implements `vadcli.train.samples.SegmentationData`.

    Args:
        name: of the data set.
        root: its folder.
        entries: its clips; those without an object are left out.
        rule: how large pictures become.

    Raises:
        UsageError: no clip has an object.
    """

    def __init__(self, name: str, root: Path, entries: Iterable[ClipEntry], rule: ClipRule) -> None:
        self.name, self.root, self.rule = name, root, rule
        self.entries = tuple(item for item in entries if item.objects)
        if not self.entries:
            raise UsageError(f"{root}: no clip of {name} has a named object", hint="give the folder as the archives unpack")

    def __len__(self) -> int:
        """How many clips there are."""
        return len(self.entries)

    def names(self, index: int) -> tuple[str, ...]:
        """The names of a clip's objects, each once; reads no pixels."""
        return tuple(dict.fromkeys(name for name, _ in self.entries[index].objects))

    def __getitem__(self, index: int) -> Segmentation:
        """Read a clip.

        Raises:
            DocumentError: one of its files is missing, damaged or of another size than the others.
        """
        item = self.entries[index]
        frames, reduction = self._frames(item)
        masks = self.masks(item, reduction)
        return Segmentation(item.key, frames, tuple(SegmentedObject(name, masks[mark]) for name, mark in item.objects))

    def fingerprint(self) -> str:
        """Of the clips, their files' names, their objects and the size; not of the pixels."""
        digest = hashlib.sha256(repr((self.name, self.rule.max_side)).encode())
        for item in self.entries:
            digest.update(repr((item.key, item.frames, item.objects)).encode())
        return digest.hexdigest()

    @abstractmethod
    def masks(self, item: ClipEntry, reduction: Reduction) -> dict[Mark, BoolArray]:
        """(T, H, W) of each mark in `item.objects`, at the reduced size.

        Raises:
            DocumentError: an annotation is missing, damaged or of another size than its picture.
        """

    def _frames(self, item: ClipEntry) -> tuple[ByteArray, Reduction]:
        frames: dict[str, ByteArray] = {}
        first: Reduction | None = None
        for name in item.frames:
            if name in frames:
                continue
            frames[name], reduction = read_frame(self.root / name, max_side=self.rule.max_side)
            first = first or reduction
            if (reduction.height, reduction.width) != (first.height, first.width):
                raise wrong_size(self.root / name, (reduction.height, reduction.width), first)
        if first is None:
            raise ValueError(f"{item.key} has no frames")
        return np.stack([frames[name] for name in item.frames]), first


class LabelMapData(DiskData):
    """A data set whose masks are label maps: a mark is a pixel's number."""

    def masks(self, item: ClipEntry, reduction: Reduction) -> dict[Mark, BoolArray]:
        """Where the maps have each number."""
        maps: dict[str, ByteArray] = {}
        for name in item.maps:
            if name not in maps:
                labels = read_labels(self.root / name)
                if labels.shape != (reduction.height, reduction.width):
                    raise wrong_size(self.root / name, labels.shape, reduction)
                maps[name] = reduction.labels(labels)
        stacked = np.stack([maps[name] for name in item.maps])  # (T, H, W)
        return {mark: np.asarray(stacked == mark, np.bool_) for mark in dict.fromkeys(mark for _, mark in item.objects)}


def wrong_size(path: Path, size: Sequence[int], wanted: Reduction) -> DocumentError:
    """The error of a file whose size isn't its clip's; sizes are height and width."""
    return DocumentError(
        f"{path}: {size[1]} x {size[0]} pixels where the clip has {wanted.width} x {wanted.height}",
        hint="unpack the official archive anew",
    )
