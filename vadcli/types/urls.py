"""Paths of footage in object stores. `s3://bucket/a.mp4` becomes `Path("s3:/bucket/a.mp4")`, because pathlib drops a slash."""

from __future__ import annotations

import os
import re
from pathlib import Path

STORES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
"""Protocol of a URL -> the extra of vadcli that reads it."""
_REMOTE = re.compile(rf"({'|'.join(STORES)}):/+(?=[^/])")


def is_remote(path: Path | str) -> bool:
    """True if a path or URL is in an object store."""
    return _REMOTE.match(str(path)) is not None


def shown(path: Path) -> str:
    """Returns a path as messages and run records show it: the URL of an object, or the path itself."""
    return _REMOTE.sub(r"\1://", str(path), count=1)


def may_exist(path: Path) -> bool:
    """True if a file exists. Also True if it is in an object store, because the store is not asked."""
    return is_remote(path) or os.path.exists(path)
