"""The values of training: what a segmentation data set yields, and what the Anomaly Exposure Sampler makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vadcli.types import BoolArray, ByteArray


@dataclass(frozen=True, eq=False)
class SegmentedObject:
    """One object of a clip, or one expression that refers to it.

    Two expressions of one object are two of these with the same masks; two objects of one category are two with the same name.

    Attributes:
        name: category or referring expression, as it goes into the prompt; never empty.
        masks: (T, H, W) bool, where the object is seen; False everywhere in frames that don't show it.
    """

    name: str
    masks: BoolArray

    def __post_init__(self) -> None:
        _check_name(self.name)
        if self.masks.dtype != np.bool_ or self.masks.ndim != 3:
            raise ValueError(f"masks of {self.name!r} are {self.masks.dtype} {self.masks.shape}, not bool (T, H, W)")


@dataclass(frozen=True, eq=False)
class Segmentation:
    """One clip of a segmentation data set, or one image (T = 1), with its objects.

    Attributes:
        key: unique inside its data set and the same in every run.
        frames: (T, H, W, 3) uint8 RGB.
        objects: the named objects; what is not among them is not known to be absent from the picture.
    """

    key: str
    frames: ByteArray
    objects: tuple[SegmentedObject, ...]

    def __post_init__(self) -> None:
        _check_frames(self.key, self.frames)
        for item in self.objects:
            if item.masks.shape != self.frames.shape[:3]:
                raise ValueError(f"{self.key}: masks of {item.name!r} are {item.masks.shape}, frames {self.frames.shape}")

    @property
    def names(self) -> tuple[str, ...]:
        """The objects' names, each once, in the order of the objects."""
        return tuple(dict.fromkeys(item.name for item in self.objects))


class SegmentationData(Protocol):
    """A segmentation data set: numbered clips, the same in every run and in every worker.

    `data[index]` reads pixels and is a pure function of the index; `names(index)` is quick and reads none.
    """

    @property
    def name(self) -> str:
        """The data set's name, such as `mevis`."""

    def __len__(self) -> int:
        """How many clips there are."""

    def __getitem__(self, index: int) -> Segmentation:
        """Clip `index`, 0 ≤ index < len; IndexError past the end."""

    def names(self, index: int) -> tuple[str, ...]:
        """The names of that clip's objects, each once: `data[index].names` without its pixels."""

    def fingerprint(self) -> str:
        """Changes when the clips, their order or their names do; hexadecimal."""


@dataclass(frozen=True, eq=False)
class ExposureSample:
    """A clip with a list of anomaly categories and the labels that follow from it: one training sample.

    Attributes:
        key: the clip's key in its data set.
        frames: (T, H, W, 3) uint8 RGB.
        categories: the list for the prompt, shuffled, without repetition.
        masks: (T, H, W) bool, union of the objects that `categories` names; all False in a normal sample.
        labels: (T,) bool, whether a frame's mask has a pixel.
        anomalous: whether true categories are in the list; an anomalous clip may still have frames labelled False.
        true: those of the categories that are.
    """

    key: str
    frames: ByteArray
    categories: tuple[str, ...]
    masks: BoolArray
    labels: BoolArray
    anomalous: bool
    true: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_frames(self.key, self.frames)
        if self.masks.dtype != np.bool_ or self.masks.shape != self.frames.shape[:3]:
            raise ValueError(f"{self.key}: masks are {self.masks.dtype} {self.masks.shape}, frames {self.frames.shape}")
        if self.labels.dtype != np.bool_ or not np.array_equal(self.labels, self.masks.any(axis=(1, 2))):
            raise ValueError(f"{self.key}: a label must be True exactly where its frame's mask has a pixel")
        if self.masks.any() and not self.anomalous:
            raise ValueError(f"{self.key}: a normal sample has a mask")
        if not self.categories or len(set(self.categories)) != len(self.categories):
            raise ValueError(f"{self.key}: categories must be there, each once, not {self.categories}")


def _check_name(name: str) -> None:
    if not name or name != name.strip():
        raise ValueError(f"an object's name must be a word or more without blanks around it, not {name!r}")


def _check_frames(key: str, frames: ByteArray) -> None:
    if not key:
        raise ValueError("a sample needs a key")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"{key}: frames are {frames.dtype} {frames.shape}, not uint8 (T, H, W, 3)")
