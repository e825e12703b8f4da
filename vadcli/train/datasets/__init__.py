"""Segmentation data sets in their official layouts. Nothing is downloaded or unpacked.

`open_data` opens a data set by its name. This file has the base of all data sets: it reads annotations and images, decodes COCO
masks and cuts videos into clips. `images` and `video` have one class per data set.

Files are not trusted. Annotation files have a size limit, file names in annotations cannot lead
outside the data set's folder, pickles can only build plain values, and masks are checked before they are decoded. If a file is
missing or damaged, the error is a DocumentError with a one-line message that starts with the file's path.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from vadcli.errors import DocumentError, UsageError
from vadcli.train.samples import Segmentation, SegmentedObject
from vadcli.types import BoolArray, ByteArray, IndexArray
from vadcli.types.text import NotText, decode_text, text_encoding, unreadable

TRAINING_SETS: Mapping[str, str] = MappingProxyType(
    {
        "youtube-vos": "video:YouTubeVos",
        "ref-youtube-vos": "video:RefYouTubeVos",
        "mevis": "video:MeVis",
        "ref-davis": "video:RefDavis",
        "refcoco": "images:RefCoco",
        "cityscapes": "images:Cityscapes",
        "ade20k": "images:Ade20k",
        "mapillary": "images:Mapillary",
    }
)
"""The name of each data set in a recipe, and its class as "module:class". The module is imported at its first use."""
_CACHED = ("cityscapes", "ade20k", "mapillary")


def open_data(
    name: str, root: Path, *, split: str = "train", rule: ClipRule | None = None, cache: Path | None = None
) -> DiskData:
    """Return a data set by its name.

    Args:
        name: one of `TRAINING_SETS`.
        root: folder of the data set, with the layout of the unpacked official archives.
        split: `train`, or another split of the data set.
        rule: how videos are cut into clips, and the largest size of images.
        cache: folder for an index of the label maps, which makes the next opening faster. Only data sets of still
            images with label maps use it; None for no index.

    Raises:
        UsageError: the name is unknown, or a file or folder of the official layout is missing.
        DocumentError: a file is damaged.
    """
    if name not in TRAINING_SETS:
        raise UsageError(f"{name!r} is not a data set", hint=f"choose among {', '.join(TRAINING_SETS)}")
    module, _, kind = TRAINING_SETS[name].partition(":")
    opened: Callable[..., DiskData] = getattr(import_module(f"{__name__}.{module}"), kind)
    return opened(root, split=split, rule=rule, **({"cache": cache} if name in _CACHED else {}))


UNPACK_AGAIN = "unpack the official archive again"
MAX_DOCUMENT_BYTES = 4 * 2**30
"""Size limit of an annotation file. The largest real file, the masks of MeViS, has some hundred MB."""

Kind = TypeVar("Kind")


def required_path(root: Path, relative: str, *, name: str) -> Path:
    """Return the path `root/relative`.

    Raises:
        UsageError: the path does not exist.
    """
    path = root / relative
    if not path.exists():
        raise UsageError(
            f"{root}: not a folder of {name}: {relative} is missing", hint="give the folder of the unpacked archives"
        )
    return path


def names_in(folder: Path, suffix: str) -> list[str]:
    """Return the sorted names of all files with a suffix in a folder, without this suffix."""
    try:
        return sorted(name.removesuffix(suffix) for name in os.listdir(folder) if name.endswith(suffix))
    except OSError as error:
        raise DocumentError(unreadable(folder, error), hint=UNPACK_AGAIN) from error


def read_annotations(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    try:
        document = json.loads(decode_text(_read(path)))
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{path}: not JSON: {_line(error)}", hint=UNPACK_AGAIN) from error
    return expect(path, "the file", document, dict)


def read_lines(path: Path, *, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and the text of every line that is not blank.

    Args:
        path: a text file.
        encoding: the encoding of the official file. If an editor has saved the file in UTF-16, UTF-32, or with a byte
            order mark, the file's own encoding is used.
    """
    data = _read(path)
    try:
        official = encoding != "utf-8" and text_encoding(data) == "utf-8"
        text = data.decode(encoding) if official else decode_text(data)
    except (UnicodeDecodeError, NotText) as error:
        what = error if isinstance(error, NotText) else f"not {encoding} text (byte {error.start})"
        raise DocumentError(f"{path}: {what}", hint=UNPACK_AGAIN) from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def read_pickle(path: Path) -> object:
    """Return the plain values in a pickle: numbers, texts, lists, dicts. Code in the pickle is not run."""
    data = _read(path)
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="utf-8", errors="replace").load()
    except Exception as error:  # a damaged pickle can raise nearly any error
        raise DocumentError(f"{path}: not a pickle of plain values: {_line(error)}", hint=UNPACK_AGAIN) from error


def expect(path: Path, where: str, value: object, kind: type[Kind]) -> Kind:
    """Return `value` after checking its type. Error messages show `where`, its place in the file."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DocumentError(
            f"{path}: {where} should be {_KINDS.get(kind, kind.__name__)}, not {_short(value)}", hint=UNPACK_AGAIN
        )
    return value


def entry(path: Path, where: str, parent: dict[str, Any], key: str, kind: type[Kind]) -> Kind:
    """Return `parent[key]` after checking that it exists and has the type `kind`.

    `where` is the place of `parent` in the file, for the error message.
    """
    if key not in parent:
        raise DocumentError(f"{path}: {where} has no {key!r}", hint=UNPACK_AGAIN)
    return expect(path, f"{key!r} of {where}", parent[key], kind)


def plain_name(path: Path, where: str, name: object) -> str:
    """Return a file name after checking that it is not empty and does not lead to another folder."""
    text = expect(path, where, name, str)
    if not text or text in {".", ".."} or any(sign in text for sign in "/\\\0"):
        raise DocumentError(f"{path}: {where} should be a plain file name, not {_short(text)}", hint=UNPACK_AGAIN)
    return text


def clean_text(path: Path, where: str, text: object) -> str:
    """Return a category or expression with single spaces; "" if it has no word."""
    return " ".join(expect(path, where, text, str).split())


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        """Refuse every class and function, because a pickle could run code."""
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "text", int: "a whole number"}


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file() or size > MAX_DOCUMENT_BYTES:
            raise DocumentError(f"{path}: not an annotation file ({size} bytes)", hint=UNPACK_AGAIN)
        return path.read_bytes()
    except OSError as error:
        raise DocumentError(unreadable(path, error), hint=UNPACK_AGAIN) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_LONGEST = 40
"""Largest number of bits in the length of a run. A longer run does not fit into any image."""
_FARTHEST = 10**5
"""Largest coordinate of a polygon's corner, in pixels; real corners are inside their image."""


def decode_mask(path: Path, where: str, code: object, shape: Sequence[int]) -> BoolArray:
    """Return the mask (height, width) bool from a COCO run length code or from a list of polygons.

    Args:
        path: the annotation file, for the error message.
        where: the place of `code` in the file, for the error message.
        code: a run length code {"size", "counts"}, with "counts" as text or as a list of numbers; or a list of
            polygons [[x, y, x, y, …], …].
        shape: the image's height and width.
    """
    height, width = shape
    try:
        if isinstance(code, list):
            polygons = [[float(number) for number in part] if isinstance(part, list) else [] for part in code]
            for corners in polygons:
                if len(corners) < 6 or len(corners) % 2 or not all(abs(number) <= _FARTHEST for number in corners):
                    raise ValueError(f"a polygon needs three corners or more near the image, not {len(corners)} coordinates")
            if not polygons:
                return np.zeros((height, width), np.bool_)
            return np.asarray(coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))), np.bool_)
        if not isinstance(code, dict) or list(code.get("size", [])) != [height, width]:
            raise ValueError(f"the size in the file is {code.get('size') if isinstance(code, dict) else None}")
        counts = code["counts"]
        runs = [int(run) for run in counts] if isinstance(counts, list) else _runs(counts)
        if any(run < 0 for run in runs) or sum(runs) != height * width:
            raise ValueError("the run lengths do not add up to the number of pixels")
        shown = np.arange(len(runs)) % 2 == 1  # runs of False and of True take turns, column by column
        return np.repeat(shown, runs).reshape(width, height).T
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        what = " ".join(str(error).split())
        raise DocumentError(f"{path}: {where}: not a mask of {width} x {height} pixels: {what}", hint=UNPACK_AGAIN) from error


def _runs(text: str) -> list[int]:
    """Return the run lengths that COCO's compressed text encodes.

    - Subtract 48 from the code of each character. The lowest five bits are a part of a number, lowest part first.
    - The sixth bit says whether the next character belongs to the same number. Numbers are in two's complement.
    - The first three numbers are run lengths. Each later number is added to the run length two places before it.
    """
    # pycocotools decodes this text too. But it does not report runs that are too short for the image.
    runs: list[int] = []
    value = shift = 0
    for sign in text:
        bits = ord(sign) - 48
        if not 0 <= bits < 64 or shift > _LONGEST:
            raise ValueError(f"{sign!r} is not a character of a run length code")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


MAX_PIXELS = 80 * 10**6
"""Largest number of pixels of an image. A larger image is not decoded; all images of these data sets are smaller."""


@dataclass(frozen=True)
class Reduction:
    """How an image is reduced from its size on disk to the size for training; images are never enlarged.

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
        """Return a label map (height, width) reduced to (H, W); each pixel gets the nearest value."""
        return values[np.ix_(self.rows, self.columns)]

    def mask(self, mask: BoolArray) -> BoolArray:
        """Return a mask (height, width) reduced to (H, W); each pixel gets the nearest value."""
        return mask[np.ix_(self.rows, self.columns)]


def read_frame(path: Path, *, max_side: int) -> tuple[ByteArray, Reduction]:
    """Return an image (H, W, 3) uint8 RGB at the size for training, and how it was reduced to this size.

    The EXIF rotation of the image is ignored, because masks have no EXIF rotation.

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
    """Return a label map (height, width) uint8 at its size on disk: palette indices or grey values.

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


Mark = Hashable
"""What identifies the pixels of an object in a clip's annotations: a number in the label maps, or annotation ids."""


@dataclass(frozen=True)
class ClipRule:
    """How a video is cut into clips, and the largest size of images.

    Attributes:
        frames: T, frames per clip of a video; a still image is a clip with one frame.
        every: n, if a clip has every n-th frame of the video. None means the default of the data set, which
            gives 6 to 8 frames per second.
        max_side: longest side in pixels; larger images are reduced to this size.
    """

    frames: int = 8
    every: int | None = None
    max_side: int = 1024

    def __post_init__(self) -> None:
        if self.frames < 1 or self.max_side < 1 or (self.every is not None and self.every < 1):
            raise ValueError(f"frames, every and max_side must be 1 or more, not {self}")

    def cut(self, length: int, every: int) -> list[tuple[int, ...]]:
        """Return the frame numbers of each clip of a video with `length` frames.

        The last clip ends with the video, so it may overlap the clip before it. No other clips overlap. If the video
        is shorter than a clip, the last frame of the video is repeated. Every n-th frame is used: n is the rule's
        `every` or, if this is None, the argument `every`.
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
        frames: T image files, relative to the root.
        objects: (name, mark) of each object that the clip shows. The mark is a number in the label maps,
            or annotation ids. It says which pixels belong to the object. Several objects may have the same name or mark.
        maps: T label maps, relative to the root; empty if the data set has none.
        places: T frame numbers in the video, from 0; (0,) for an image.
    """

    key: str
    frames: tuple[str, ...]
    objects: tuple[tuple[str, Mark], ...]
    maps: tuple[str, ...] = ()
    places: tuple[int, ...] = (0,)


class DiskData(ABC):
    """A data set in its official layout; implements `vadcli.train.samples.SegmentationData`.

    Args:
        name: name of the data set.
        root: folder of the data set.
        entries: clips of the data set; clips without an object are left out.
        rule: the longest side of images (`max_side`); the other values are not used.

    Raises:
        UsageError: no clip has an object.
    """

    def __init__(self, name: str, root: Path, entries: Iterable[ClipEntry], rule: ClipRule) -> None:
        self.name, self.root, self.rule = name, root, rule
        self.entries = tuple(item for item in entries if item.objects)
        if not self.entries:
            raise UsageError(f"{root}: no clip of {name} has a named object", hint="give the folder of the unpacked archives")

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.entries)

    def names(self, index: int) -> tuple[str, ...]:
        """Return the names of a clip's objects without reading pixels. No name is repeated."""
        return tuple(dict.fromkeys(name for name, _ in self.entries[index].objects))

    def __getitem__(self, index: int) -> Segmentation:
        """Return a clip with its frames and masks; all image files of a clip must have the same size."""
        item = self.entries[index]
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
        masks = self.masks(item, first)
        objects = tuple(SegmentedObject(name, masks[mark]) for name, mark in item.objects)
        return Segmentation(item.key, np.stack([frames[name] for name in item.frames]), objects)

    def fingerprint(self) -> str:
        """Return a hash of the clips' file names, the objects and `max_side`. Pixels are not read."""
        digest = hashlib.sha256(repr((self.name, self.rule.max_side)).encode())
        for item in self.entries:
            digest.update(repr((item.key, item.frames, item.objects)).encode())
        return digest.hexdigest()

    @abstractmethod
    def masks(self, item: ClipEntry, reduction: Reduction) -> dict[Mark, BoolArray]:
        """Return the masks (T, H, W) bool of a clip's objects, at the reduced size.

        The keys are the marks in `item.objects`. A mark says which pixels belong to an object.
        """


class LabelMapData(DiskData):
    """A data set with label maps. The mark of an object is the object's number in the map."""

    def masks(self, item: ClipEntry, reduction: Reduction) -> dict[Mark, BoolArray]:
        """Return the masks (T, H, W) bool of a clip's objects: True where a label map has the object's number.

        The keys are these numbers.
        """
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
    """Return the error for a file whose size (height, width) differs from the size of its clip."""
    return DocumentError(
        f"{path}: {size[1]} x {size[0]} pixels, but the clip has {wanted.width} x {wanted.height}",
        hint=UNPACK_AGAIN,
    )
