"""Pictures of data sets, reduced on reading: frames as RGB, label maps as the numbers of their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vadcli.errors import DocumentError
from vadcli.types import BoolArray, ByteArray, IndexArray

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
