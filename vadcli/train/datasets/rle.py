"""COCO's mask codes: run lengths and polygons, checked before they are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as coco

from vadcli.errors import DocumentError
from vadcli.train.datasets.documents import ANEW
from vadcli.types import BoolArray

_LONGEST = 40
"""Bits of a run; a picture has fewer pixels than that can say."""
_FARTHEST = 10**5
"""Pixels from the origin; the corners of real polygons lie in their picture."""


def decoded(path: Path, where: str, code: object, shape: Sequence[int]) -> BoolArray:
    """(height, width) bool of a run length code or a list of polygons.

    Args:
        path: the document, for the error.
        where: in it.
        code: {"size", "counts"} with counts as COCO's text or a list, or [[x, y, x, y, …], …].
        shape: the picture's height and width.

    Raises:
        DocumentError: it is no such code, or of another size.
    """
    height, width = shape
    try:
        if isinstance(code, list):
            return _polygons(code, height, width)
        return _filled(_runs(code, height, width), height, width)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        what = " ".join(str(error).split())
        raise DocumentError(f"{path}: {where}: not a mask of {width} x {height} pixels: {what}", hint=ANEW) from error


def _polygons(parts: list[object], height: int, width: int) -> BoolArray:
    if not parts:
        return np.zeros((height, width), np.bool_)
    codes = coco.frPyObjects([_corners(part) for part in parts], height, width)
    return np.asarray(coco.decode(coco.merge(codes)), np.bool_)


def _corners(part: object) -> list[float]:
    corners = [float(number) for number in part] if isinstance(part, list) else []
    if len(corners) < 6 or len(corners) % 2 or not all(abs(number) <= _FARTHEST for number in corners):
        raise ValueError(f"a polygon needs three corners or more near the picture, not {len(corners)} numbers")
    return corners


def _runs(code: object, height: int, width: int) -> list[int]:
    if not isinstance(code, dict) or list(code.get("size", [])) != [height, width]:
        raise ValueError(f"its size is {code.get('size') if isinstance(code, dict) else None}")
    counts = code["counts"]
    return [int(run) for run in counts] if isinstance(counts, list) else _spelled(counts)


def _spelled(text: str) -> list[int]:
    """The runs of COCO's text: five bits a sign from 48 on, 32 for one that goes on, two's complement; from the fourth run on
    the difference to the run before the last. pycocotools reads it too, but leaves what short runs don't reach unset.
    """
    runs: list[int] = []
    value = shift = 0
    for sign in text:
        bits = ord(sign) - 48
        if not 0 <= bits < 64 or shift > _LONGEST:
            raise ValueError(f"{sign!r} is no sign of a run length code")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


def _filled(runs: list[int], height: int, width: int) -> BoolArray:
    """Runs of nothing and something in turns, column by column."""
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError("its runs don't fill it")
    turns = np.arange(len(runs)) % 2 == 1
    return np.repeat(turns, runs).reshape(width, height).T
