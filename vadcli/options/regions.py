"""The options of what a scan looks at within the picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vadcli.options.groups import HOW, option


@dataclass(frozen=True)
class RegionOptions:
    """Which parts of the picture are looked at."""

    ignore: Path | None = option(
        None,
        "Hide parts of the picture, such as a clock or a tree: polygons per camera (JSON), or a mask image (white is hidden).",
        panel=HOW,
        metavar="FILE",
    )
    only: Path | None = option(
        None,
        "Hide everything but parts of the picture: polygons per camera (JSON), or a mask image (white is looked at).",
        panel=HOW,
        metavar="FILE",
    )
