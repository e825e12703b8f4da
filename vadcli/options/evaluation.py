"""Everything that `vadcli eval` can be told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.options.groups import EVENTS, HOW, OUTPUT, RUNNING, TalkOptions, option
from vadcli.registry import DATA_SETS

PIXEL_SIZE = re.compile(r"(\d+)x(\d+)", re.ASCII)
FEWEST_RESAMPLES = 100
LARGEST_SIDE_PX = 4096
METRIC_GROUPS = ("frame", "pixel", "region", "event", "range", "category")


@dataclass(frozen=True)
class EvalOptions(TalkOptions):
    """What is measured against which truth, and how it is shown."""

    dataset: str = option(
        "csv",
        f"Which ground truth: {', '.join(DATA_SETS)}; csv is a file of your own.",
        panel=HOW,
        metavar="NAME",
    )
    root: Path | None = option(
        None, "The data set's folder, or the CSV file (video,start_s,end_s[,category]).", panel=HOW, metavar="PATH"
    )
    allow_missing: bool = option(False, "Leave out videos that have no scores or no truth, instead of stopping.", panel=HOW)
    metrics: str = option(
        "",
        f"Which groups of metrics, separated by commas: {', '.join(METRIC_GROUPS)}.",
        panel=HOW,
        metavar="LIST",
        default_text="all there is truth for",
    )
    only_sampled: bool = option(
        False, "Frame and category metrics over the frames that the detector saw, without carried ones.", panel=HOW
    )
    endpoints: bool = option(
        False, "Append (0, 0) and (1, 1) to labels and scores, as some published evaluators do. It flatters.", panel=HOW
    )
    pixel_size: str = option(
        "full", "Resize masks and truth to HEIGHTxWIDTH first; papers on Ped2 use 158x238.", panel=HOW, metavar="HxW"
    )
    bootstrap: int = option(1000, "Resamples of the videos for intervals, 100 or more; 0 for none.", panel=HOW)
    confidence: float = option(0.95, "Share of the resamples inside an interval.", panel=HOW)
    seed: int = option(0, "Seed of the resamples.", panel=HOW)
    compare: bool = option(
        False, "Several OUT side by side, with paired differences to the first; implied by giving several.", panel=HOW
    )
    init: bool = option(
        False, "Print a CSV of the events found, to correct by hand into a ground truth, and stop.", panel=EVENTS
    )
    from_frames: bool = option(
        False, "Print the truth of --dataset, which is by frames, as a CSV in seconds, and stop.", panel=EVENTS
    )
    format: str = option("table", "How figures are printed.", panel=OUTPUT, choices=("table", "markdown", "latex"))
    plots: Path | None = option(
        None,
        "Also draw ROC, PR, score timelines, highest normal stretches and lowest true events here.",
        panel=OUTPUT,
        metavar="DIR",
    )
    save: bool = option(True, "Keep the figures in OUT/eval/.", panel=RUNNING)

    def __post_init__(self) -> None:
        if self.bootstrap != 0 and self.bootstrap < FEWEST_RESAMPLES:
            raise UsageError(
                f"--bootstrap {self.bootstrap} gives no interval worth the name",
                hint=f"at least {FEWEST_RESAMPLES}, or 0 for none",
            )
        if not 0.0 < self.confidence < 1.0:
            raise UsageError(f"--confidence {self.confidence:g} must lie between 0 and 1")
        if self.init and self.from_frames:
            raise UsageError("--init and --from-frames each print a table of their own", hint="give one of them")
        self.size()
        self.groups()

    def size(self) -> tuple[int, int] | None:
        """(height, width) that masks are resized to; None for the frames' own.

        Raises:
            UsageError: it is no size.
        """
        if self.pixel_size == "full":
            return None
        match = PIXEL_SIZE.fullmatch(self.pixel_size)
        if match is None or "0" in match.groups():
            raise UsageError(f"--pixel-size {self.pixel_size!r} is no size", hint="write HEIGHTxWIDTH, e.g. 158x238, or full")
        height, width = int(match[1]), int(match[2])
        if max(height, width) > LARGEST_SIDE_PX:
            raise UsageError(f"--pixel-size {self.pixel_size}: a side may have up to {LARGEST_SIDE_PX} pixels")
        return height, width

    def groups(self) -> tuple[str, ...]:
        """The chosen groups of metrics; empty for all.

        Raises:
            UsageError: one is not known.
        """
        names = tuple(name for name in (part.strip() for part in self.metrics.split(",")) if name)
        for name in names:
            if name not in METRIC_GROUPS:
                raise UsageError(f"--metrics: {name!r} is no group of metrics", hint=f"choose from {', '.join(METRIC_GROUPS)}")
        return names
