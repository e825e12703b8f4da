"""The clips of a segmentation data set, and the training samples that are made from them.

`exposure` turns a `Segmentation` into an `ExposureSample`. The functions at the end read images and
label maps from disk and reduce them to the size for training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from vadcli.errors import DocumentError
from vadcli.types import BoolArray, ByteArray, IndexArray


@dataclass(frozen=True, eq=False)
class SegmentedObject:
    """One object of a clip, or one expression that refers to it.

    Two expressions for one object are two `SegmentedObject`s with the same masks. Two objects of one
    category are two `SegmentedObject`s with the same name.

    Attributes:
        name: category or expression, as it is written in the prompt; never empty.
        masks: (T, H, W) bool, True where the object is visible; all False in frames without it.
    """

    name: str
    masks: BoolArray

    def __post_init__(self) -> None:
        if not self.name or self.name != self.name.strip():
            raise ValueError(f"the name of an object is {self.name!r}; it must have text and no spaces around it")
        if self.masks.dtype != np.bool_ or self.masks.ndim != 3:
            raise ValueError(f"masks of {self.name!r} are {self.masks.dtype} {self.masks.shape}, not bool (T, H, W)")


@dataclass(frozen=True, eq=False)
class Segmentation:
    """One clip of a segmentation data set with its objects. An image is a clip with T = 1.

    Attributes:
        key: unique in its data set and the same in every run.
        frames: (T, H, W, 3) uint8 RGB.
        objects: the named objects; other objects may be visible too.
    """

    key: str
    frames: ByteArray
    objects: tuple[SegmentedObject, ...]

    def __post_init__(self) -> None:
        _check_frames(self.key, self.frames)
        for item in self.objects:
            if item.masks.shape != self.frames.shape[:3]:
                raise ValueError(f"{self.key}: masks of {item.name!r} are {item.masks.shape}, frames are {self.frames.shape}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the objects, each once, in the order of the objects."""
        return tuple(dict.fromkeys(item.name for item in self.objects))


class SegmentationData(Protocol):
    """A segmentation data set: numbered clips, the same in every run and in every worker.

    `data[index]` reads pixels and depends only on the index. `names(index)` is quick, because it
    reads no pixels.
    """

    @property
    def name(self) -> str:
        """The data set's name, such as `mevis`."""

    def __len__(self) -> int:
        """Return the number of clips."""

    def __getitem__(self, index: int) -> Segmentation:
        """Return clip `index`, 0 ≤ index < len; raises IndexError past the end."""

    def names(self, index: int) -> tuple[str, ...]:
        """Return the same as `data[index].names`, without reading pixels."""

    def fingerprint(self) -> str:
        """Return a hexadecimal hash that changes when the clips, their order or their names change."""


@dataclass(frozen=True, eq=False)
class ExposureSample:
    """One training sample: a clip, a list of anomaly categories, and the resulting labels.

    Attributes:
        key: the clip's key in its data set.
        frames: (T, H, W, 3) uint8 RGB.
        categories: the list for the prompt, shuffled, without repetition.
        masks: (T, H, W) bool, union of the masks of the listed objects; all False in a normal sample.
        labels: (T,) bool, whether the mask of a frame has a pixel.
        anomalous: whether the list has true categories. Some frames of an anomalous clip may be normal.
        true: the categories that the clip shows; empty in a normal sample.
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
            raise ValueError(f"{self.key}: masks are {self.masks.dtype} {self.masks.shape}, frames are {self.frames.shape}")
        if self.labels.dtype != np.bool_ or not np.array_equal(self.labels, self.masks.any(axis=(1, 2))):
            raise ValueError(f"{self.key}: a label must be True if the mask of its frame has a pixel, else False")
        if self.masks.any() and not self.anomalous:
            raise ValueError(f"{self.key}: a normal sample has a mask")
        if not self.categories or len(set(self.categories)) != len(self.categories):
            raise ValueError(f"{self.key}: categories must not be empty or repeat a name: {self.categories}")


def _check_frames(key: str, frames: ByteArray) -> None:
    if not key:
        raise ValueError("a sample needs a key")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"{key}: frames are {frames.dtype} {frames.shape}, not uint8 (T, H, W, 3)")


MAX_PIXELS = 80 * 10**6
"""Largest number of pixels. Real images of these data sets have fewer; a larger one is not decoded."""

UNPACK_AGAIN = "unpack the official archive again"


@dataclass(frozen=True)
class Reduction:
    """The reduction of an image from its size on disk to the size for training, which is never larger.

    Attributes:
        height, width: size on disk in pixels.
        rows: (H,) int64, the original row at the centre of each reduced row.
        columns: (W,) int64, the original column at the centre of each reduced column.
    """

    height: int
    width: int
    rows: IndexArray
    columns: IndexArray

    @classmethod
    def to_side(cls, height: int, width: int, max_side: int) -> Reduction:
        """Return the reduction that makes the longer side at most `max_side` pixels; no side becomes 0."""
        scale = min(1.0, max_side / max(height, width))
        return cls(height, width, _middles(height, scale), _middles(width, scale))

    @property
    def shape(self) -> tuple[int, int]:
        """The size (H, W) of the reduced image."""
        return len(self.rows), len(self.columns)

    def labels(self, values: ByteArray) -> ByteArray:
        """Return values (height, width) reduced to (H, W); each is the nearest value."""
        return values[np.ix_(self.rows, self.columns)]

    def mask(self, mask: BoolArray) -> BoolArray:
        """Return a mask (height, width) reduced to (H, W); each pixel is the nearest pixel."""
        return mask[np.ix_(self.rows, self.columns)]


def read_frame(path: Path, *, max_side: int) -> tuple[ByteArray, Reduction]:
    """Return an image (H, W, 3) uint8 RGB at the size for training, and its reduction.

    EXIF rotation is ignored, because the masks have none.

    Raises:
        DocumentError: the file is missing, damaged or too large.
    """
    with _opened(path) as picture:
        reduction = Reduction.to_side(picture.height, picture.width, max_side)
        height, width = reduction.shape
        try:
            picture.draft("RGB", (width, height))  # decodes a JPEG at about the size for training
            colours = picture.convert("RGB")
        except Exception as error:  # damaged files make Pillow raise errors of many types
            raise _damaged(path, error) from error
        if colours.size != (width, height):
            colours = colours.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
        return np.asarray(colours, np.uint8), reduction


def read_labels(path: Path) -> ByteArray:
    """Return a label map (height, width) uint8 of palette indices or grey values, at its size on disk.

    Raises:
        DocumentError: the file is missing, damaged, too large, or has colours instead of numbers.
    """
    with _opened(path) as picture:
        if picture.mode not in ("P", "L"):
            raise DocumentError(f"{path}: is an image of mode {picture.mode}, not a label map", hint=UNPACK_AGAIN)
        try:
            return np.asarray(picture, np.uint8)
        except Exception as error:
            raise _damaged(path, error) from error


def _opened(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
    except FileNotFoundError as error:
        raise DocumentError(f"{path}: is missing", hint=UNPACK_AGAIN) from error
    except Exception as error:
        raise _damaged(path, error) from error
    if not 0 < picture.width * picture.height <= MAX_PIXELS:
        picture.close()
        raise DocumentError(f"{path}: too large: {picture.width} x {picture.height} pixels", hint=UNPACK_AGAIN)
    return picture


def _middles(length: int, scale: float) -> IndexArray:
    used = max(1, round(length * scale))
    return np.minimum(((np.arange(used) + 0.5) * length / used).astype(np.int64), length - 1)


def _damaged(path: Path, error: Exception) -> DocumentError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    return DocumentError(f"{path}: cannot be read as an image: {reason[:200]}", hint=UNPACK_AGAIN)
