"""The options of the commands that work with vectors and labels: `vadcli embed`, `learn` and `eval`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.options.groups import (
    EVENTS,
    FIND,
    HOW,
    OUTPUT,
    RUNNING,
    DecodeOptions,
    DetectorOptions,
    FindOptions,
    TalkOptions,
    check_above_zero,
    check_counts,
    option,
    same,
)
from vadcli.options.scan import ScanOptions
from vadcli.registry import DATA_SETS, DETECTOR_OPTIONS, HEADS


@dataclass(frozen=True)
class EmbedOptions(FindOptions, DecodeOptions, TalkOptions):
    """The options of `vadcli embed`."""

    root: Path | None = same(ScanOptions, "root")
    camera_from: str = same(ScanOptions, "camera_from")
    encoder: str = same(DETECTOR_OPTIONS.load("concept"), "encoder")
    device: str = same(DetectorOptions, "device")
    precision: str = same(DetectorOptions, "precision")
    sample_fps: float = option(2.0, "Embed about this many frames per second.", panel=HOW)
    out: Path = same(ScanOptions, "out")
    npy: Path | None = option(
        None, "Also write the vectors of each video to this folder, as a NumPy array (frames, D).", panel=OUTPUT, metavar="DIR"
    )
    npy_crops: int = option(
        0,
        "With --npy: write (frames, N, D) for heads that read N crops. Each crop gets the whole frame's vector.",
        panel=OUTPUT,
    )
    workers: int = option(1, "Number of decoder processes.", panel=RUNNING)
    force: bool = option(False, "Embed videos again whose vectors are already stored.", panel=RUNNING)

    def __post_init__(self) -> None:
        FindOptions.__post_init__(self)
        DecodeOptions.__post_init__(self)
        check_above_zero(self, "sample_fps")
        check_counts(self, "workers")
        if self.npy_crops < 0 or (self.npy_crops and self.npy is None):
            raise UsageError("--npy-crops needs --npy, and a number of at least 1")


@dataclass(frozen=True)
class LearnOptions(TalkOptions):
    """The options of `vadcli learn`."""

    review: Path | None = option(
        None, "Learn from the verdicts of this review, which the report page saves.", panel=HOW, metavar="FILE"
    )
    labels: Path | None = option(
        None,
        "Learn from a CSV file of videos (video,label[,category]); label is normal or abnormal.",
        panel=HOW,
        metavar="FILE",
    )
    head: str = option(
        "",
        f"Kind of head: {', '.join(HEADS)}.",
        panel=HOW,
        metavar="NAME",
        default_text="logistic if there are at least 5 true and 20 false events, else retrieval; mil for --labels",
        own_variable=True,
    )
    embeddings: tuple[str, ...] = option(
        (), "Also read vectors from this output folder, for a head of two encoders; repeatable.", panel=HOW, metavar="DIR"
    )
    recall: float = option(
        0.95, "Share of the true events that must be kept; false alarms are compared at this share.", panel=HOW
    )
    seed: int = option(0, "Seed of the folds and of the training.", panel=HOW)
    include: tuple[str, ...] = option((), "Only videos matching this glob; repeatable.", panel=FIND, metavar="GLOB")
    to: Path | None = option(
        None, "Folder to create for the head.", panel=OUTPUT, metavar="DIR", default_text="only test it", own_variable=True
    )
    anyway: bool = option(False, "Write the head even if it is not better than the detector alone.", panel=RUNNING)
    force: bool = option(False, "Replace a head that is in the folder.", panel=RUNNING)

    def __post_init__(self) -> None:
        if (self.review is None) == (self.labels is None):
            raise UsageError("learn needs --review FILE or --labels FILE, and not both")
        if self.head and self.head not in HEADS:
            raise UsageError(
                f"--head {self.head!r}: no head of this kind is installed", hint=f"choose one of {', '.join(HEADS)}"
            )
        if not 0.0 < self.recall <= 1.0:
            raise UsageError(f"--recall {self.recall:g} must be above 0 and at most 1")


PIXEL_SIZE = re.compile(r"(\d+)x(\d+)", re.ASCII)
FEWEST_RESAMPLES = 100
LARGEST_SIDE_PX = 4096
METRIC_GROUPS = ("frame", "pixel", "region", "event", "range", "category", "severity")


@dataclass(frozen=True)
class EvalOptions(TalkOptions):
    """The options of `vadcli eval`."""

    dataset: str = option(
        "csv",
        f"Format of the ground truth: {', '.join(DATA_SETS)}; csv is your own file.",
        panel=HOW,
        metavar="NAME",
    )
    root: Path | None = option(
        None,
        "The data set's folder, or the CSV file (video,start_s,end_s[,category][,severity]).",
        panel=HOW,
        metavar="PATH",
        own_variable=True,  # VADCLI_ROOT is the folder that the names of videos are relative to
    )
    allow_missing: bool = option(
        False, "Leave out videos that have no scores or no ground truth, instead of stopping.", panel=HOW
    )
    metrics: str = option(
        "",
        f"Groups of metrics to compute, separated by commas: {', '.join(METRIC_GROUPS)}.",
        panel=HOW,
        metavar="LIST",
        default_text="all that the ground truth allows",
    )
    only_sampled: bool = option(
        False, "Compute frame and category metrics from sampled frames only, without scores carried forward.", panel=HOW
    )
    endpoints: bool = option(
        False,
        "Append (0, 0) and (1, 1) to labels and scores, as some published evaluators do; this raises the figures.",
        panel=HOW,
    )
    pixel_size: str = option(
        "full", "Resize masks and ground truth to HEIGHTxWIDTH first; papers on Ped2 use 158x238.", panel=HOW, metavar="HxW"
    )
    bootstrap: int = option(
        1000, "Number of resamples of the videos for confidence intervals, at least 100; 0 for none.", panel=HOW
    )
    confidence: float = option(0.95, "Confidence level of the intervals.", panel=HOW)
    seed: int = option(0, "Seed of the resamples.", panel=HOW)
    compare: bool = option(
        False, "Show several OUT side by side, with paired differences from the first. On if you name several OUT.", panel=HOW
    )
    init: bool = option(
        False, "Print the found events as CSV, and no figures. Correct the CSV by hand to use it as ground truth.", panel=EVENTS
    )
    from_frames: bool = option(False, "Print the ground truth of --dataset as CSV in seconds, and no figures.", panel=EVENTS)
    format: str = option(
        "table", "Format of the figures.", panel=OUTPUT, choices=("table", "markdown", "latex"), own_variable=True
    )
    plots: Path | None = option(
        None,
        "Also write plots into this folder: curves, timelines of scores, frames of likely false and missed alarms.",
        panel=OUTPUT,
        metavar="DIR",
    )
    save: bool = option(True, "Save the figures in OUT/eval/.", panel=RUNNING)

    def __post_init__(self) -> None:
        if self.bootstrap != 0 and self.bootstrap < FEWEST_RESAMPLES:
            raise UsageError(
                f"--bootstrap {self.bootstrap} is too few for an interval",
                hint=f"give at least {FEWEST_RESAMPLES}, or 0 for none",
            )
        if not 0.0 < self.confidence < 1.0:
            raise UsageError(f"--confidence {self.confidence:g} must lie between 0 and 1")
        if self.init and self.from_frames:
            raise UsageError("--init and --from-frames print different tables", hint="give one of them")
        self.size()
        self.groups()

    def size(self) -> tuple[int, int] | None:
        """Return the (height, width) to which masks are resized; None for the size of the frames.

        Raises:
            UsageError: the text is not a size.
        """
        if self.pixel_size == "full":
            return None
        match = PIXEL_SIZE.fullmatch(self.pixel_size)
        if match is None or "0" in match.groups():
            raise UsageError(
                f"--pixel-size {self.pixel_size!r} is not a size", hint="write HEIGHTxWIDTH, e.g. 158x238, or full"
            )
        height, width = int(match[1]), int(match[2])
        if max(height, width) > LARGEST_SIDE_PX:
            raise UsageError(f"--pixel-size {self.pixel_size}: a side may have up to {LARGEST_SIDE_PX} pixels")
        return height, width

    def groups(self) -> tuple[str, ...]:
        """Return the chosen groups of metrics; empty for all.

        Raises:
            UsageError: a group does not exist.
        """
        names = tuple(name for name in (part.strip() for part in self.metrics.split(",")) if name)
        for name in names:
            if name not in METRIC_GROUPS:
                raise UsageError(
                    f"--metrics: {name!r} is not a group of metrics", hint=f"choose from {', '.join(METRIC_GROUPS)}"
                )
        return names
