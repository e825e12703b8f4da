"""The regions of a camera's picture that are hidden from the detector: polygons and mask images.

Coordinates are shares of the display width and height; (0, 0) is the top left corner. So regions fit frames of any size.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from vadcli.types.media import BoolArray, ByteArray

FEWEST_POINTS = 3
_SAMPLES_PER_SIDE = 4  # a pixel is tested at so many places per side, because a region may hide only a part of the pixel
_FINE_PX = 2048  # in large pictures, pixels are tested at fewer places: about this many along the longer side
_SHOWN_SAMPLES = 4096  # the median brightness is computed from about this many visible pixels


@dataclass(frozen=True)
class Polygon:
    """A polygon. A point is inside if a line from the point to the border of the picture crosses an odd number of edges.

    Attributes:
        points: at least three points (x, y), each coordinate in [0, 1].

    Raises:
        ValueError: there are too few points, or one is outside the picture.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if len(self.points) < FEWEST_POINTS:
            raise ValueError(f"a polygon needs at least {FEWEST_POINTS} points, not {len(self.points)}")
        for x, y in self.points:
            if not (0 <= x <= 1 and 0 <= y <= 1):
                raise ValueError(f"point [{x:g}, {y:g}] is outside 0-1")

    def inside(self, width: int, height: int) -> BoolArray:
        """Return which pixels have their centre inside the polygon, (height, width) bool."""
        x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
        found = np.zeros((height, width), np.bool_)
        for (x0, y0), (x1, y1) in zip(self.points, (*self.points[1:], self.points[0]), strict=True):
            rows = np.flatnonzero((y >= y0) != (y >= y1))
            if len(rows):
                crossing = x0 + (y[rows] - y0) * ((x1 - x0) / (y1 - y0))
                found[rows] ^= x < crossing[:, None]
        return found

    def to_json(self) -> list[list[float]]:
        """Return the points as JSON."""
        return [[x, y] for x, y in self.points]


@dataclass(frozen=True)
class MaskImage:
    """A region that was given as an image.

    Attributes:
        width, height: size of the image.
        bits: eight pixels per byte, row by row, as `numpy.packbits` packs them. A pixel is inside the region if its bit is 1.

    Raises:
        ValueError: the number of bytes is wrong.
    """

    width: int
    height: int
    bits: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 1 or len(self.bits) != -(-self.width * self.height // 8):
            raise ValueError(f"a mask of {self.width} x {self.height} pixels can't have {len(self.bits)} bytes")

    @classmethod
    def of(cls, pixels: BoolArray) -> MaskImage:
        """Return the region of the pixels (H, W) that are True."""
        return cls(pixels.shape[1], pixels.shape[0], np.packbits(pixels).tobytes())

    def inside(self, width: int, height: int) -> BoolArray:
        """Return which pixels are inside, (height, width) bool; the nearest pixel of the mask image counts."""
        pixels = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.width * self.height).astype(np.bool_)
        rows = (np.arange(height) * 2 + 1) * self.height // (2 * height)
        columns = (np.arange(width) * 2 + 1) * self.width // (2 * width)
        found: BoolArray = pixels.reshape(self.height, self.width)[rows][:, columns]
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the size and the compressed pixels as JSON."""
        return {"size": [self.width, self.height], "bits": base64.b64encode(zlib.compress(self.bits, 9)).decode()}


Region = Polygon | MaskImage


def region_from_json(value: Any) -> Region:
    """Return the region of a JSON value: a list of points is a polygon, and an object is a mask image.

    Raises:
        ValueError: the value is neither a polygon nor a mask image.
    """
    if isinstance(value, Mapping):
        try:
            width, height = (int(side) for side in value["size"])
            return MaskImage(width, height, zlib.decompress(base64.b64decode(value["bits"], validate=True)))
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise ValueError("is not a mask image with `size` and `bits`") from error
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{json.dumps(value)[:40]} is not a list of points")
    points = []
    for point in value:
        fits = isinstance(point, Sequence) and len(point) == 2
        if not fits or not all(isinstance(part, int | float) and not isinstance(part, bool) for part in point):
            raise ValueError(f"{json.dumps(point)[:40]} is not a point [x, y]")
        points.append((float(point[0]), float(point[1])))
    return Polygon(tuple(points))


@dataclass(frozen=True)
class Regions:
    """The regions of one camera. The object is false in a condition if it has no region.

    Attributes:
        ignore: these parts of the picture are hidden.
        only: if this is not empty, everything outside of these parts is hidden.
    """

    ignore: tuple[Region, ...] = ()
    only: tuple[Region, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ignore or self.only)

    def __or__(self, other: Regions) -> Regions:
        """Return the regions of both objects, without duplicates."""
        return Regions(tuple(dict.fromkeys(self.ignore + other.ignore)), tuple(dict.fromkeys(self.only + other.only)))

    def hidden(self, width: int, height: int) -> BoolArray:
        """Return which pixels are hidden, completely or in part, (height, width) bool."""
        fine = max(1, min(_SAMPLES_PER_SIDE, _FINE_PX // max(width, height)))
        wide, tall = width * fine, height * fine
        found = np.full((tall, wide), bool(self.only))
        for region in self.only:
            found &= ~region.inside(wide, tall)
        for region in self.ignore:
            found |= region.inside(wide, tall)
        return np.asarray(found.reshape(height, fine, width, fine).any(axis=(1, 3)))

    @property
    def sha256(self) -> str:
        """Hash of the regions; "" if there are no regions. Their order does not matter."""
        if not self:
            return ""
        parts = [sorted(json.dumps(region.to_json(), sort_keys=True) for region in some) for some in (self.ignore, self.only)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def to_json(self) -> dict[str, Any] | None:
        """Return the JSON that is stored with the events; None if there are no regions."""
        if not self:
            return None
        return {"ignore": [region.to_json() for region in self.ignore], "only": [region.to_json() for region in self.only]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | None) -> Regions:
        """Return the regions that `to_json` stored; raise ValueError if the document does not describe regions."""
        if document is None:
            return NO_REGIONS
        ignore, only = (tuple(map(region_from_json, document.get(name, ()))) for name in ("ignore", "only"))
        return cls(ignore, only)


NO_REGIONS = Regions()


@dataclass(frozen=True)
class CameraRegions:
    """The regions of every camera of a scan.

    Attributes:
        by_name: name of a camera, or glob like `gate*` -> regions. `*` means every camera.
    """

    by_name: Mapping[str, Regions] = field(default_factory=dict)

    def __or__(self, other: CameraRegions) -> CameraRegions:
        """Return the regions of both objects, camera by camera."""
        names = dict.fromkeys([*self.by_name, *other.by_name])
        return CameraRegions({name: self.by_name.get(name, NO_REGIONS) | other.by_name.get(name, NO_REGIONS) for name in names})

    def of(self, camera: str) -> Regions:
        """Return the regions of all names and globs that match the camera."""
        found = NO_REGIONS
        for name, regions in self.by_name.items():
            if _fits(name, camera):
                found |= regions
        return found

    def unknown(self, cameras: Iterable[str]) -> list[str]:
        """Return the names and globs that match none of the cameras."""
        known = tuple(cameras)
        return [name for name in self.by_name if not any(_fits(name, camera) for camera in known)]


def _fits(name: str, camera: str) -> bool:
    return name == camera or fnmatchcase(camera, name)


class Blanker:
    """Hides regions in clips of one size.

    Hidden pixels get the median brightness of the visible pixels of the same frame. So hidden pixels change with the light like
    the rest of the frame.

    Args:
        regions: the regions to hide.
        width, height: size of the frames.
    """

    def __init__(self, regions: Regions, width: int, height: int) -> None:
        self._hidden = regions.hidden(width, height)
        shown = np.flatnonzero(~self._hidden)
        self._sample = shown[:: max(1, len(shown) // _SHOWN_SAMPLES)]

    def blank(self, frames: ByteArray) -> None:
        """Replace the hidden pixels of the frames (T, H, W, C) uint8 in place."""
        count, height, width, channels = frames.shape
        fill = np.full((count, 1, 1, channels), 128, np.uint8)
        if len(self._sample):
            seen = frames.reshape(count, height * width, channels)[:, self._sample]
            fill[:, 0, 0] = np.sort(seen, axis=1)[:, len(self._sample) // 2]
        np.copyto(frames, fill, where=self._hidden[None, :, :, None])
