"""Reads the user's file of hidden regions: JSON with polygons per camera, or a mask image for all cameras."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vadcli.errors import UsageError
from vadcli.types.media import CameraRegions, MaskImage, Region, Regions, region_from_json
from vadcli.types.text import SAVE_AS, NotText, decode_text

FORMAT_VERSION = 1
KINDS = ("ignore", "only")
EVERY_CAMERA = "*"
WHITE = 128
_LARGEST_SIDE_PX = 512  # larger mask images are reduced to this size, because they are stored with the results
_CHECK_PX = 512
_MOST_FAULTS = 10


def read_regions(path: Path, kind: str) -> CameraRegions:
    """Return the regions of a file.

    Args:
        path: a JSON file or an image.
        kind: `ignore` or `only`, the meaning of the white pixels of an image. A JSON file names both kinds itself.

    Raises:
        UsageError: the file can't be read. The message names all faults, up to ten.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--{kind} {path}: can't be read: {error.strerror or error}") from error
    faults: list[str] = []
    if data.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \r\n\t")[:1] in (b"{", b"["):
        found = {}
        for name, given in _cameras(path, data).items():
            if not isinstance(given, dict):
                faults.append(f"{_name(name)}: is not an object with `ignore` and `only`")
                continue
            faults += [f"{_name(name)}: `{key}` is not known; write ignore or only" for key in given if key not in KINDS]
            ignore, only = (tuple(_regions(name, kind, given.get(kind, []), path, faults)) for kind in KINDS)
            found[name] = Regions(ignore, only)
    else:
        try:
            region = (_image(path),)
        except ValueError as error:
            raise UsageError(f"--{kind} {path}: {error}", hint="give a regions file (JSON) or a mask image") from error
        found = {EVERY_CAMERA: Regions(ignore=region) if kind == "ignore" else Regions(only=region)}
    faults += [
        f"{_name(name)}: the regions hide the whole picture"
        for name, one in found.items()
        if one and one.hidden(_CHECK_PX, _CHECK_PX).all()
    ]
    if faults:
        more = [f"and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else []
        raise UsageError(f"{path}: {'; '.join(faults[:_MOST_FAULTS] + more)}")
    return CameraRegions(found)


def _cameras(path: Path, data: bytes) -> Mapping[str, Any]:
    """Return the JSON of each camera in a regions file."""
    try:
        document = json.loads(decode_text(data))
    except NotText as error:
        raise UsageError(f"{path}: {error}", hint=SAVE_AS) from error
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    version = document.get("format_version", document.get("version")) if isinstance(document, dict) else None
    if version != FORMAT_VERSION or not isinstance(document.get("cameras"), dict):
        raise UsageError(
            f"{path}: not a regions file of format version {FORMAT_VERSION}",
            hint='write {"format_version": 1, "cameras": {"NAME": {"ignore": [POLYGON, …]}}}, or draw it in the report',
        )
    cameras: Mapping[str, Any] = document["cameras"]
    return cameras


def _regions(camera: str, kind: str, given: Any, path: Path, faults: list[str]) -> Iterator[Region]:
    """Yield the regions of one camera and kind; add the faults of the file to `faults`."""
    if not isinstance(given, list):
        faults.append(f"{_name(camera)}: {kind} is not a list of polygons")
        return
    for place, value in enumerate(given):
        where = f"{_name(camera)}: {kind}[{place}]"
        try:
            yield _image(path.parent / value) if isinstance(value, str) else region_from_json(value)
        except ValueError as error:
            faults.append(f"{where}: {value}: {error}" if isinstance(value, str) else f"{where}: {error}")


def _image(path: Path) -> MaskImage:
    """Return the white pixels of an image. Raises ValueError if the image can't be read or has no white pixels."""
    from PIL import Image, ImageOps  # here, because every scan imports this file, and few have mask images

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = getattr(error, "strerror", None)  # the reason of the system; None if the file is not an image
        raise ValueError(f"can't be read: {why}" if why else "can't be read as an image") from error
    grey = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("L")
    grey.thumbnail((_LARGEST_SIDE_PX, _LARGEST_SIDE_PX), Image.Resampling.BOX)
    pixels = np.asarray(grey) >= WHITE
    if not pixels.any():
        raise ValueError("the mask image has no white pixel")
    return MaskImage.of(pixels)


def _name(camera: str) -> str:
    return "all cameras" if camera == EVERY_CAMERA else f"camera {camera}"
