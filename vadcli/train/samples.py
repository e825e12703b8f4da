"""The values of training: what a segmentation data set yields, and what the Anomaly Exposure Sampler makes of it.

Pictures of data sets, reduced on reading: frames as RGB, label maps as the numbers of their pixels.
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


MAX_PIXELS = 80 * 10**6
"""More than any camera of these data sets; what claims to be larger isn't decoded."""

_ANEW = "unpack the official archive anew"


@dataclass(frozen=True)
class Reduction:
    """From a picture's own size to the size that it is used at, which is never larger.

    Attributes:
        height, width: its own, in pixels.
        rows, columns: (H,) and (W,) int64, the pixel of the own size at each used one's middle.
    """

    height: int
    width: int
    rows: IndexArray
    columns: IndexArray

    @classmethod
    def to_side(cls, height: int, width: int, max_side: int) -> Reduction:
        """The longer side becomes at most `max_side`; both keep at least a pixel."""
        scale = min(1.0, max_side / max(height, width))
        return cls(height, width, _middles(height, scale), _middles(width, scale))

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) used."""
        return len(self.rows), len(self.columns)

    def labels(self, values: ByteArray) -> ByteArray:
        """(H, W) of (height, width) values, each the nearest one."""
        return values[np.ix_(self.rows, self.columns)]

    def mask(self, mask: BoolArray) -> BoolArray:
        """(H, W) of a (height, width) mask, each the nearest one."""
        return mask[np.ix_(self.rows, self.columns)]


def read_frame(path: Path, *, max_side: int) -> tuple[ByteArray, Reduction]:
    """(H, W, 3) uint8 RGB of a picture, and how it was reduced. EXIF data turn no picture: the masks aren't turned either.

    Raises:
        DocumentError: it is missing, damaged or too large.
    """
    with _opened(path) as picture:
        reduction = Reduction.to_side(picture.height, picture.width, max_side)
        height, width = reduction.shape
        try:
            picture.draft("RGB", (width, height))  # a JPEG is decoded near the size that is wanted
            colours = picture.convert("RGB")
        except Exception as error:  # Pillow's plugins raise nearly anything on damage
            raise _damaged(path, error) from error
        if colours.size != (width, height):
            colours = colours.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
        return np.asarray(colours, np.uint8), reduction


def read_labels(path: Path) -> ByteArray:
    """(height, width) uint8 of a label map: a palette picture's numbers or a grey one's values.

    Raises:
        DocumentError: it is missing, damaged, too large or has colours instead of numbers.
    """
    with _opened(path) as picture:
        if picture.mode not in ("P", "L"):
            raise DocumentError(f"{path}: not a label map but a picture of mode {picture.mode}", hint=_ANEW)
        try:
            return np.asarray(picture, np.uint8)
        except Exception as error:
            raise _damaged(path, error) from error


def _opened(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
    except FileNotFoundError as error:
        raise DocumentError(f"{path}: is missing", hint=_ANEW) from error
    except Exception as error:
        raise _damaged(path, error) from error
    if not 0 < picture.width * picture.height <= MAX_PIXELS:
        picture.close()
        raise DocumentError(f"{path}: {picture.width} x {picture.height} pixels are too many", hint=_ANEW)
    return picture


def _middles(length: int, scale: float) -> IndexArray:
    used = max(1, round(length * scale))
    return np.minimum(((np.arange(used) + 0.5) * length / used).astype(np.int64), length - 1)


def _damaged(path: Path, error: Exception) -> DocumentError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    return DocumentError(f"{path}: not a picture that can be read: {reason[:200]}", hint=_ANEW)
