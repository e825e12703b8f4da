"""The options of heads: those of commands that use a head, and those of `vadcli learn`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.options.groups import EVENTS, FIND, HOW, OUTPUT, RUNNING, TalkOptions, option
from vadcli.registry import HEADS


@dataclass(frozen=True)
class HeadOptions:
    """The head that judges the events."""

    head: Path | None = option(
        None, "Judge the events by this head, which `vadcli learn` wrote; it reads stored vectors.", panel=EVENTS, metavar="DIR"
    )
    head_threshold: float | None = option(
        None, "With --head: keep an event if the head's score reaches this value, 0-1.", panel=EVENTS, default_text="0.5"
    )
    embeddings: tuple[str, ...] = option(
        (), "Also read vectors from this output folder, for a head of two encoders; repeatable.", panel=EVENTS, metavar="DIR"
    )

    def __post_init__(self) -> None:
        if self.head_threshold is None:
            return
        if self.head is None:
            raise UsageError("--head-threshold needs --head")
        if not 0.0 <= self.head_threshold <= 1.0:
            raise UsageError(f"--head-threshold {self.head_threshold:g} is outside 0-1")


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
