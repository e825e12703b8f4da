"""A camera's model as a JSON file in cameras/. What it means is the detector's business."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from vadcli.errors import DocumentError
from vadcli.types import CameraModel

_REFIT = "fit the camera again with --refit"


def read_camera(path: Path) -> CameraModel:
    """A stored camera model.

    Raises:
        DocumentError: it is missing, damaged, or no camera model of this version.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DocumentError(f"{path}: can't be read: {error.strerror or error}", hint=_REFIT) from error
    except ValueError as error:
        raise DocumentError(f"{path}: not JSON: {error}", hint=_REFIT) from error
    if not isinstance(document, dict) or document.get("format_version") != 1:
        raise DocumentError(f"{path}: not a camera model of format version 1", hint=_REFIT)
    try:
        return CameraModel.from_json(document)
    except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
        detail = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DocumentError(f"{path}: not a camera model: {detail}", hint=_REFIT) from error


def write_camera(path: Path, model: CameraModel) -> None:
    """Write a camera model at `path`, a temporary that the caller renames.

    Raises:
        OSError: it can't be written.
        ValueError: a value of the model is not JSON.
    """
    text = json.dumps(model.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
