"""Reads the file formats of annotations safely: text lines, .npy, .mat, images, JSON labels.

Files are not trusted. The content of a file cannot make vadcli read another file, run code (nothing is unpickled), or allocate
too much memory. A damaged file raises a DocumentError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vadcli.errors import DocumentError
from vadcli.ground_truth import Region
from vadcli.types import BoolArray, text
from vadcli.types.text import unreadable

UNPACK = "unpack the archive again"
"""The hint of most errors: usually, an interrupted download or copy has damaged the official file."""

_IMAGE_SUFFIXES = ("bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff")
_MAX_TEXT_BYTES = 256 * 2**20
_MAX_FRAME = 2**40


def bad_line(path: Path, line: int, what: str, *, own: bool = False) -> DocumentError:
    """Return the error about a line that does not have the expected form.

    Args:
        path: the file.
        line: number of the line, from 1.
        what: what is wrong with the line.
        own: True if the user wrote the file, False if it is an official file of a data set; the hints differ.
    """
    hint = "correct the line" if own else "correct the line, or unpack the official file again"
    return DocumentError(f"{path}, line {line}: {what}", hint=hint)


def read_annotation(path: Path, *, hint: str = UNPACK) -> str:
    """Return the text of a file in UTF-8 or UTF-16, with Unix line ends and without a byte order mark.

    Raises:
        DocumentError: the file cannot be read, is not text, or has more than 256 MiB.
    """
    try:
        if path.exists() and not path.is_file():
            raise DocumentError(f"{path}: not a regular file", hint=hint)
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise DocumentError(f"{path}: {path.stat().st_size} bytes are too many for an annotation", hint=hint)
    except OSError as error:
        raise DocumentError(unreadable(path, error), hint=hint) from error
    return text.read_text(path, hint=hint).replace("\r\n", "\n").replace("\r", "\n")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and the text of every line that is not blank.

    Raises:
        DocumentError: as in `read_annotation`.
    """
    for number, line in enumerate(read_annotation(path).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def whole_number(text: str) -> int:
    """Return the whole number in a text, such as a frame number; the form "12.0000e+00" is allowed too.

    Raises:
        ValueError: the text is not a whole number, or the number is too large for a frame number.
    """
    number = int(text) if re.fullmatch(r"\s*-?\d{1,15}\s*", text) else float(text)
    if not abs(number) < _MAX_FRAME or number != int(number):
        raise ValueError(f"{text!r} is not a frame number")
    return int(number)


def numbered_images(folder: Path) -> list[Path]:
    """Return the images whose file names are numbers, in order; empty if the folder does not exist.

    Raises:
        DocumentError: the folder cannot be read, or a number between the first and the last is missing or occurs twice.
    """
    if not folder.is_dir():
        return []
    name = re.compile(rf"(\d+)\.({'|'.join(_IMAGE_SUFFIXES)})", re.IGNORECASE)
    try:
        images = sorted((int(match[1]), path) for path in folder.iterdir() if (match := name.fullmatch(path.name)))
    except OSError as error:
        raise DocumentError(unreadable(folder, error), hint=UNPACK) from error
    for expected, (number, path) in enumerate(images, start=images[0][0] if images else 0):
        if number != expected:
            what = f"{path.name} occurs twice" if number < expected else f"image {expected} is missing before {path.name}"
            raise DocumentError(f"{folder}: {what}", hint=UNPACK)
    return [path for _, path in images]


def read_image(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the gray values (H, W) uint8 of an image; black is 0, white is 255.

    Raises:
        DocumentError: the image is missing, damaged, or has far too many pixels.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.array(image.convert("L"), np.uint8)
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise DocumentError(f"{path}: not a readable image: {text.error_text(error)[:200]}", hint=UNPACK) from error


def read_npy(path: Path, *, dimensions: int) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the array of numbers in a .npy file, mapped into memory.

    Raises:
        DocumentError: the file is missing or damaged, has pickled objects, or another number of dimensions.
    """
    try:
        array: np.ndarray[Any, np.dtype[Any]] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError, OverflowError) as error:
        raise DocumentError(f"{path}: not a readable .npy file: {text.error_text(error)[:200]}", hint=UNPACK) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        raise DocumentError(f"{path}: is not an array of numbers", hint=UNPACK)
    if array.ndim != dimensions:
        raise DocumentError(f"{path}: has the shape {array.shape} instead of {dimensions} dimensions", hint=UNPACK)
    return array


def read_label_array(path: Path) -> BoolArray:
    """Return the labels of a one-dimensional .npy file as bool.

    Raises:
        DocumentError: as in `read_npy`, or a value is not 0 or 1.
    """
    values = read_npy(path, dimensions=1)
    wrong = np.flatnonzero(~np.isin(values, (0, 1)))
    if len(wrong):
        value = values.reshape(-1)[wrong[0]]
        raise DocumentError(f"{path}: label {wrong[0]} is {value}; it must be 0 or 1", hint=UNPACK)
    return np.asarray(values, np.bool_)


def read_mat(path: Path, variable: str) -> Any:
    """Return one variable of a MATLAB file; the format version must be 7 or lower.

    Raises:
        DocumentError: the file is missing or damaged, has the version 7.3, or does not have the variable.
    """
    from scipy.io import loadmat

    try:
        return loadmat(path, variable_names=[variable])[variable]
    except KeyError as error:
        raise DocumentError(f"{path}: has no variable {variable}", hint=UNPACK) from error
    except Exception as error:  # on a damaged file, scipy may raise almost anything
        raise DocumentError(f"{path}: not a readable .mat file: {text.error_text(error)[:200]}", hint=UNPACK) from error


def read_json_labels(path: Path) -> dict[str, BoolArray]:
    """Return the labels (N,) bool of each clip in a JSON file such as {"clip": [0, 0, 1, …], …}.

    Raises:
        DocumentError: the file cannot be read or does not have this form.
    """
    try:
        document = json.loads(read_annotation(path))
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{path}: not JSON: {text.error_text(error)[:200]}", hint=UNPACK) from error
    if not isinstance(document, dict) or not document:
        raise DocumentError(f"{path}: not a JSON object with one list of labels per clip", hint=UNPACK)
    labels = {}
    for clip, values in document.items():
        if not isinstance(values, list) or not all(isinstance(value, int | float) and value in (0, 1) for value in values):
            raise DocumentError(f"{path}: the labels of clip {clip!r} are not a list of 0 and 1", hint=UNPACK)
        labels[clip] = np.array(values, np.bool_)
    return labels


def read_clip_list(path: Path) -> dict[int, BoolArray]:
    """Return the labels (N,) bool of each clip number in a JSON file such as {"0": [0, 0, 1, …], "1": …}.

    Raises:
        DocumentError: the file cannot be read or does not have this form, or a number is missing.
    """
    labels = read_json_labels(path)
    if set(labels) != {str(clip) for clip in range(len(labels))}:
        hint = "the key of each clip must be its position, counted from 0"
        raise DocumentError(f"{path}: clips are not numbered 0 to {len(labels) - 1}", hint=hint)
    return {clip: labels[str(clip)] for clip in range(len(labels))}


def read_tracks(path: Path) -> tuple[Region, ...]:
    """Return the tracked boxes of a text file; a line is track, frame, x_min, y_min, x_max, y_max.

    The format is from the evaluation code of Georgescu et al. (lilygeorgescu/AED, annotations/ShanghaiTech).

    - A box includes both corners, as in their file evaluation/compute_tbdc_rbdc.py.
    - Frames are counted from 0. The file 01_0014.txt shows this: its first box is in frame 154, and the first abnormal frame of
      this clip is also frame 154 when counted from 0.

    Raises:
        DocumentError: a line does not have this form.
    """
    regions = []
    for number, line in numbered_lines(path):
        try:
            track, frame, left, top, right, bottom = (whole_number(part) for part in line.split(","))
        except ValueError:
            raise bad_line(path, number, f"{line[:80]!r} is not track,frame,x_min,y_min,x_max,y_max") from None
        if min(track, frame, right - left, bottom - top) < 0:
            raise bad_line(path, number, f"{line[:80]!r} has a negative number, or x_min > x_max, or y_min > y_max")
        regions.append(Region(track, frame, (left, top, right - left + 1, bottom - top + 1)))
    return tuple(sorted(regions, key=lambda region: (region.track, region.frame)))


@dataclass(frozen=True)
class ImageMasks:
    """The masks of a video as one image per frame; `images` are in the order of the frames."""

    images: tuple[Path, ...]

    def mask(self, frame_index: int) -> BoolArray | None:
        """Return the mask (H, W) bool of a frame: True for pixels with a gray value above 127."""
        if not 0 <= frame_index < len(self.images):
            raise DocumentError(
                f"there is no mask for frame {frame_index}: there are {len(self.images)} masks, numbered from 0"
            )
        return read_image(self.images[frame_index]) > 127


@dataclass(frozen=True)
class ArrayMasks:
    """The masks of a video in one .npy file with the shape (N, H, W). The file is mapped into memory."""

    path: Path

    def mask(self, frame_index: int) -> BoolArray | None:
        """Return the mask (H, W) bool of a frame: True for pixels that are not 0."""
        array = read_npy(self.path, dimensions=3)
        if not 0 <= frame_index < len(array):
            raise DocumentError(f"{self.path}: has no mask for frame {frame_index}: it has {len(array)} masks, numbered from 0")
        return np.asarray(array[frame_index] != 0)


def npy_files(folder: Path) -> Mapping[str, Path]:
    """Return the paths of the .npy files in a folder, without hidden files; the keys are the names without suffix."""
    return {path.stem: path for path in sorted(folder.glob("*.npy")) if not path.name.startswith(".") and path.is_file()}
