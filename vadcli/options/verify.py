"""The options of `vadcli verify`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.options.groups import (
    HOW,
    OUTPUT,
    RUNNING,
    DecodeOptions,
    DetectorOptions,
    ExitOptions,
    TalkOptions,
    option,
    parse_duration,
    same,
)
from vadcli.options.results import EventsOptions, ReportOptions
from vadcli.options.scan import ScanOptions
from vadcli.types.urls import is_remote

DEFAULT_VERIFIER = "qwen2-vl-2b"
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)


def parse_share(text: str, name: str) -> float:
    """Returns the share in [0, 1] of a text such as `15%` or `0.15`.

    Raises:
        UsageError: the text is not a share.
    """
    match = _PERCENT.fullmatch(text.strip())
    try:
        share = float(match[1]) / 100 if match else float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise UsageError(f"--{name} {text!r} is not a share from 0% to 100%", hint=f"write for example --{name} 15%")
    return share


@dataclass(frozen=True)
class VerifyOptions(DecodeOptions, ExitOptions, TalkOptions):
    """The options of `vadcli verify`."""

    model: str = option(
        DEFAULT_VERIFIER,
        "Model that is asked: a name of `vadcli weights list`, or a folder.",
        panel=HOW,
        metavar="MODEL",
        own_variable=True,
    )
    categories: str = option(
        "",
        "What to ask about, in your own words, separated by commas. @NAME is a list that comes with vadcli, @FILE is your own.",
        panel=HOW,
        short="-c",
        metavar="LIST",
        default_text="those of the scan; if it has none: danger, crime, violence, accidents and emergencies",
    )
    share: str = option(
        "15%", "Ask about this share of each camera's footage, where the scan scored highest.", panel=HOW, metavar="SHARE"
    )
    audit: str = option(
        "1%", "Also ask about this share of the rest, drawn at random, to estimate what is missed.", panel=HOW, metavar="SHARE"
    )
    seed: int = option(0, "Seed of the random draw.", panel=HOW)
    device: str = same(DetectorOptions, "device")
    precision: str = same(DetectorOptions, "precision")
    batch_size: int | None = same(DetectorOptions, "batch_size")
    compression: float | None = option(
        None, "Share of the visual tokens that the model reads, above 0 up to 1; less is faster.", panel=HOW, default_text="1"
    )
    include: tuple[str, ...] = same(EventsOptions, "include")
    footage: Path | None = same(ReportOptions, "footage")
    refine_masks: bool = option(
        False,
        "Also replace the blobs of stored masks in confirmed events by the outlines that SAM2 finds there "
        "(sam2.1-hiera-small).",
        panel=OUTPUT,
    )
    describe: bool = option(
        False, "Also let the model write a sentence about each confirmed event. It may be wrong.", panel=OUTPUT
    )
    limit: int | None = option(
        None, "Ask about at most this many clips; the next run continues.", panel=RUNNING, metavar="N", default_text="no limit"
    )
    max_runtime: str | None = same(ScanOptions, "max_runtime")
    checkpoint_every: str = option("30s", "At most this much work is lost if a run is killed.", panel=RUNNING, metavar="TIME")
    dry_run: bool = option(
        False, "Only print how many clips would be asked, and how long this would take. Loads the model.", panel=RUNNING
    )

    def __post_init__(self) -> None:
        DecodeOptions.__post_init__(self)
        if parse_share(self.share, "share") == 0:
            raise UsageError(f"--share {self.share} asks about nothing", hint="write for example --share 15%")
        parse_share(self.audit, "audit")
        for name in ("limit", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value} must be at least 1")
        if self.compression is not None and not 0.0 < self.compression <= 1.0:
            raise UsageError(f"--compression {self.compression:g} is not above 0 and at most 1")
        for name in ("max_runtime", "checkpoint_every"):
            if getattr(self, name) is not None:
                parse_duration(getattr(self, name), name)
        if self.footage is not None and not (is_remote(self.footage) or self.footage.is_dir()):
            raise UsageError(f"--footage {self.footage}: the folder does not exist")
