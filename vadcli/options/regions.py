"""The options for the parts of the picture, and the sizes of things, that a scan looks at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.options.groups import HOW, option


@dataclass(frozen=True)
class RegionOptions:
    """The parts of the picture, and the sizes of things, that a scan looks at."""

    min_size: float | None = option(
        None,
        "Ignore moving things whose height is below this, in percent of the picture's height (motion detector).",
        panel=HOW,
        metavar="PERCENT",
    )
    motion_detail: float = option(
        1.0,
        "Work on frames that are this many times wider and higher than about 360x240, for small things in large pictures "
        "(motion detector). 2 takes about four times as long.",
        panel=HOW,
        metavar="FACTOR",
    )
    still: bool = option(
        False,
        "Also find what appears and then stays for 10 seconds or more, such as an abandoned bag (motion detector).",
        panel=HOW,
    )
    ignore: Path | None = option(
        None,
        "Hide parts of the picture, such as a clock or a tree: polygons per camera (JSON), or a mask image (white is hidden).",
        panel=HOW,
        metavar="FILE",
    )
    only: Path | None = option(
        None,
        "Hide everything except these parts of the picture: polygons per camera (JSON), or a mask image (white is visible).",
        panel=HOW,
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        if self.min_size is not None and not 0 < self.min_size < 100:
            raise UsageError(f"--min-size {self.min_size:g} is outside 0-100", hint="give a share of the height in percent")
        if not 1 <= self.motion_detail <= 4:
            raise UsageError(
                f"--motion-detail {self.motion_detail:g} is outside 1-4", hint="1 is the default; 2 is enough for 1080p"
            )
