"""The file formats of annotations, read with bounds: text lines, .npy, .mat, pictures, JSON labels. A damaged one is one line.

No path ever comes from inside a file, nothing is unpickled, and no number from a file sizes an array.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vadcli.errors import DocumentError, UsageError
from vadcli.ground_truth.truth import Region
from vadcli.types import BoolArray

PICTURES = ("bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff")
_MAX_TEXT_BYTES = 256 * 2**20
_MAX_FRAME = 2**40
_ANEW = "unpack the archive anew"


def bad_line(path: Path, line: int, what: str) -> DocumentError:
    """The error of a line that can't be understood."""
    return DocumentError(f"{path}, line {line}: {what}", hint="correct the line, or unpack the official file anew")


def first_existing(root: Path, candidates: Iterable[str], *, name: str, wanted: str) -> Path:
    """The first of `candidates` under `root` that exists ("." is root itself).

    Raises:
        UsageError: none does; says what was wanted.
    """
    found = find_existing(root, candidates)
    if found is None:
        raise UsageError(
            f"{root}: not a folder of {name}: {wanted} is missing", hint="give --root as the official archive unpacks"
        )
    return found


def find_existing(root: Path, candidates: Iterable[str]) -> Path | None:
    """The first of `candidates` under `root` that exists, or None."""
    return next((root / name for name in candidates if (root / name).exists()), None)


def read_text(path: Path) -> str:
    """A UTF-8 text, with or without a byte order mark.

    Raises:
        DocumentError: it can't be read, is no text, or is too big for one.
    """
    try:
        if path.exists() and not path.is_file():
            raise DocumentError(f"{path}: not a regular file", hint=_ANEW)
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise DocumentError(f"{path}: {path.stat().st_size} bytes are too many for an annotation", hint=_ANEW)
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DocumentError(f"{path}: can't be read: {error.strerror or error}", hint=_ANEW) from error
    except UnicodeDecodeError as error:
        raise DocumentError(f"{path}: not a UTF-8 text (byte {error.start})", hint=_ANEW) from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of every line that is not blank.

    Raises:
        DocumentError: it can't be read or is no text.
    """
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def whole(text: str) -> int:
    """A frame number, also one that was saved as a float ("12.0000e+00").

    Raises:
        ValueError: not a whole number, or beyond any video.
    """
    number = int(text) if re.fullmatch(r"\s*-?\d{1,15}\s*", text) else float(text)
    if not abs(number) < _MAX_FRAME or number != int(number):
        raise ValueError(f"{text!r} is no frame number")
    return int(number)


def numbered_pictures(folder: Path, pattern: str = r"(\d+)") -> list[Path]:
    """The pictures of a folder in the order of their numbers, which run without gaps; other files don't count.

    Args:
        folder: where they lie.
        pattern: what a name without suffix looks like; its first group is the number.

    Raises:
        DocumentError: the folder can't be read, a number is missing or there twice.
    """
    name = re.compile(rf"{pattern}\.({'|'.join(PICTURES)})", re.IGNORECASE)
    try:
        found = sorted((int(match[1]), path) for path in folder.iterdir() if (match := name.fullmatch(path.name)))
    except OSError as error:
        raise DocumentError(f"{folder}: can't be read: {error.strerror or error}", hint=_ANEW) from error
    for wanted, (number, path) in enumerate(found, start=found[0][0] if found else 0):
        if number != wanted:
            what = f"{path.name} is there twice" if number < wanted else f"picture {wanted} is missing before {path.name}"
            raise DocumentError(f"{folder}: {what}", hint=_ANEW)
    return [path for _, path in found]


def read_picture(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(H, W) uint8 grey values of a picture; a bilevel one is 0 and 255, colours count by their luminance.

    Raises:
        DocumentError: it is missing, damaged or a bomb.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.array(image.convert("L"), np.uint8)
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise DocumentError(f"{path}: not a readable picture: {one_line(error)}", hint=_ANEW) from error


def read_npy(path: Path, *, dimensions: int) -> np.ndarray[Any, np.dtype[Any]]:
    """An array of numbers, mapped rather than read; never unpickled.

    Raises:
        DocumentError: it is missing, damaged, or of other dimensions.
    """
    try:
        array: np.ndarray[Any, np.dtype[Any]] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError, OverflowError) as error:
        raise DocumentError(f"{path}: not a readable .npy file: {one_line(error)}", hint=_ANEW) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        raise DocumentError(f"{path}: holds no array of numbers", hint=_ANEW)
    if array.ndim != dimensions:
        raise DocumentError(f"{path}: has the shape {array.shape} instead of {dimensions} dimensions", hint=_ANEW)
    return array


def binary(values: np.ndarray[Any, np.dtype[Any]], path: Path) -> BoolArray:
    """Labels of 0 and 1 as bool.

    Raises:
        DocumentError: there are other values; says the first and its index.
    """
    wrong = np.flatnonzero(~np.isin(values, (0, 1)))
    if len(wrong):
        value = values.reshape(-1)[wrong[0]]
        raise DocumentError(f"{path}: label {wrong[0]} is {value}, neither 0 nor 1", hint=_ANEW)
    return np.asarray(values, np.bool_)


def read_mat(path: Path, variable: str) -> Any:
    """One variable of a MATLAB file up to version 7.

    Raises:
        DocumentError: it is missing, damaged, of version 7.3, or doesn't hold the variable.
    """
    from scipy.io import loadmat

    try:
        return loadmat(path, variable_names=[variable])[variable]
    except KeyError as error:
        raise DocumentError(f"{path}: doesn't hold {variable}", hint=_ANEW) from error
    except Exception as error:  # a damaged file makes scipy raise nearly anything
        raise DocumentError(f"{path}: not a readable .mat file: {one_line(error)}", hint=_ANEW) from error


def read_json_labels(path: Path) -> dict[str, BoolArray]:
    """Labels a clip: {"clip": [0, 0, 1, …], …}.

    Raises:
        DocumentError: it is something else.
    """
    try:
        document = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{path}: not JSON: {one_line(error)}", hint=_ANEW) from error
    if not isinstance(document, dict) or not document:
        raise DocumentError(f"{path}: must be an object of clips, each a list of labels", hint=_ANEW)
    labels = {}
    for clip, values in document.items():
        if not isinstance(values, list) or not all(isinstance(value, int | float) and value in (0, 1) for value in values):
            raise DocumentError(f"{path}: clip {clip!r} is no list of labels 0 and 1", hint=_ANEW)
        labels[clip] = np.array(values, np.bool_)
    return labels


def read_tracks(path: Path) -> tuple[Region, ...]:
    """Tracked boxes a line: track, 0-based frame, x_min, y_min, x_max, y_max, corners included.

    The format of the RBDC and TBDC evaluation code of Georgescu et al. (lilygeorgescu/AED, annotations/ShanghaiTech and
    evaluation/compute_tbdc_rbdc.py, whose overlap counts both corners; frame 154 of 01_0014.txt is the first that the frame
    labels call abnormal when counted from 0).

    Raises:
        DocumentError: a line is something else.
    """
    regions = []
    for number, line in numbered_lines(path):
        try:
            track, frame, left, top, right, bottom = (whole(part) for part in line.split(","))
        except ValueError:
            raise bad_line(path, number, f"{line[:80]!r} is not track,frame,x_min,y_min,x_max,y_max") from None
        if min(track, frame, right - left, bottom - top) < 0:
            raise bad_line(path, number, f"{line[:80]!r} has a negative number or corners the wrong way round")
        regions.append(Region(track, frame, (left, top, right - left + 1, bottom - top + 1)))
    return tuple(sorted(regions, key=lambda region: (region.track, region.frame)))


def one_line(error: BaseException) -> str:
    """An error's words in one line, or its kind where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@dataclass(frozen=True)
class PictureMasks:
    """Masks as pictures, one a frame.

    Attributes:
        pictures: in the order of the frames.
    """

    pictures: tuple[Path, ...]

    def mask(self, frame_index: int) -> BoolArray | None:
        """True where the picture is brighter than half."""
        if not 0 <= frame_index < len(self.pictures):
            raise DocumentError(f"there is no mask of frame {frame_index} among {len(self.pictures)}")
        return read_picture(self.pictures[frame_index]) > 127


@dataclass(frozen=True)
class ArrayMasks:
    """Masks as one (N, H, W) .npy file, mapped when asked for.

    Attributes:
        path: the file.
    """

    path: Path

    def mask(self, frame_index: int) -> BoolArray | None:
        """True where the array is not 0."""
        array = read_npy(self.path, dimensions=3)
        if not 0 <= frame_index < len(array):
            raise DocumentError(f"{self.path}: there is no mask of frame {frame_index} among {len(array)}")
        return np.asarray(array[frame_index] != 0)


def npy_files(folder: Path) -> Mapping[str, Path]:
    """The .npy files of a folder by name without suffix, in order; hidden files don't count."""
    return {path.stem: path for path in sorted(folder.glob("*.npy")) if not path.name.startswith(".") and path.is_file()}
