"""The options of the commands that work with the results in OUT, such as `events` and `report`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.options.groups import (
    EVENTS,
    FIND,
    HOW,
    LAST_RUN,
    OUTPUT,
    RUNNING,
    DecodeOptions,
    DetectorOptions,
    ExitOptions,
    FindOptions,
    HeadOptions,
    TalkOptions,
    ThresholdOptions,
    WhenOptions,
    check_above_zero,
    check_counts,
    check_durations,
    flag_of,
    option,
    same,
)
from vadcli.options.scan import DEFAULT_OUT, ScanOptions, check_cluster
from vadcli.registry import DATA_SETS, EXPORTERS
from vadcli.types.text import is_remote, no_folder

CONTAINERS = ("mp4", "mkv", "same")
REPORT_FORMATS = ("html", "markdown", "json", "email")
SEARCH_FORMATS = ("table", "csv", "html")


def _check_footage(folder: Path | None) -> None:
    if folder is not None and not (is_remote(folder) or folder.is_dir()):
        hint = "name the folder that contains the footage now"
        raise UsageError(f"--footage {folder}: {no_folder(folder)}", hint=hint)


def _check_is_folder(to: Path | None, hint: str) -> None:
    if str(to) == "-":
        raise UsageError("--to -: this command writes a folder, not stdout", hint=hint)


def _check_since(since: str | None) -> None:
    if since == LAST_RUN:
        hint = "give a time or an age like 24h"
        raise UsageError(f"--since {LAST_RUN} does not work with this command", hint=hint)


@dataclass(frozen=True)
class EventsOptions(ThresholdOptions, HeadOptions, WhenOptions, ExitOptions, TalkOptions):
    """The options of `vadcli events`."""

    format: str = option("json", "Format of the events.", panel=OUTPUT, choices=tuple(EXPORTERS), own_variable=True)
    to: Path | None = option(
        None,
        "Write files into this folder instead of printing: one for all videos or, in some formats, one per video.",
        panel=OUTPUT,
        metavar="DIR",
        own_variable=True,
    )
    write: bool = option(
        False,
        "Also update the events files in OUT. Later scans use the thresholds and the review of this command.",
        panel=OUTPUT,
    )
    forget: bool = option(
        False,
        "Remove the thresholds and the review that --write has stored. Later scans use their own thresholds.",
        panel=OUTPUT,
    )
    validate: bool = option(
        False,
        "Only check the events files in OUT against the published schema.",
        panel=OUTPUT,
        cli_only="run `vadcli events OUT --validate`",
    )
    review: Path | None = option(
        None,
        "Leave out the events that this review marks as false. The report page saves reviews.",
        panel=OUTPUT,
        metavar="FILE",
    )
    keep_false: bool = option(False, "Keep the events that are marked as false in the stored review.", panel=OUTPUT)
    verify: bool = option(
        True,
        "Use the answers that `vadcli verify` stored. With --no-verify, make the events from the scan's scores alone.",
        panel=OUTPUT,
        own_variable=True,
    )
    init_truth: bool = option(
        False,
        "Print the events in the format of ground truth (`vadcli eval --root`). You can correct them by hand.",
        panel=OUTPUT,
        cli_only="run `vadcli events OUT --init-truth`",
    )
    calibrate: Path | None = option(
        None,
        "Only print the thresholds that this review suggests, with the precision and the alarms per hour at each threshold.",
        panel=OUTPUT,
        metavar="FILE",
        cli_only="run `vadcli events OUT --calibrate FILE`",
    )
    preview: bool = option(
        False,
        "Only print a table: the number of events and the alarms per hour at several thresholds.",
        panel=OUTPUT,
        cli_only="run `vadcli events OUT --preview`",
    )
    include: tuple[str, ...] = option((), "Only videos that match this glob; repeatable.", panel=FIND, metavar="GLOB")
    category: tuple[str, ...] = option(
        (),
        "Only events whose category matches this glob; repeatable. `anomaly` also matches events without a category.",
        panel=FIND,
        metavar="GLOB",
    )

    def __post_init__(self) -> None:
        ThresholdOptions.__post_init__(self)
        HeadOptions.__post_init__(self)
        _check_since(self.since)
        WhenOptions.__post_init__(self)
        _check_is_folder(self.to, "leave --to out: then the events are printed")
        if self.keep_false and (self.write or self.review is not None):
            raise UsageError("--keep-false can't be used with --write or --review", hint="--forget removes the stored review")
        if self.calibrate is not None and self.format not in ("json", "csv"):
            raise UsageError(f"--calibrate can't print thresholds as {self.format}", hint="give --format json or csv")
        if not self.preview:
            return
        alone = ("to", "write", "forget", "validate", "init_truth", "calibrate", "since", "between")
        if given := [name for name in alone if getattr(self, name)]:
            raise UsageError(f"--preview can't be used with {flag_of(given[0])}", hint="give one of them")
        if self.format not in ("json", "csv"):
            raise UsageError(f"--preview can't print thresholds as {self.format}", hint="give --json or --format csv")


@dataclass(frozen=True)
class ReportOptions(DecodeOptions, WhenOptions, ExitOptions, TalkOptions):
    """The options of `vadcli report`."""

    since: str | None = option(
        None,
        "Only what happened at this time or later: a time like 2026-11-27T06:00, an age like 24h, or last-run (only the videos "
        "that the last run scanned).",
        panel=FIND,
        metavar="WHEN",
    )
    include: tuple[str, ...] = same(EventsOptions, "include")
    footage: Path | None = option(
        None, "Folder that contains the footage now.", panel=FIND, metavar="DIR", default_text="where the scan found it"
    )
    format: str = option(
        "html",
        "Format of the report: html is a page with pictures, the others are summaries without pictures.",
        panel=OUTPUT,
        choices=REPORT_FORMATS,
        own_variable=True,
    )
    to: Path | None = option(
        None,
        "File to write; - is stdout.",
        panel=OUTPUT,
        metavar="FILE",
        default_text="OUT/report.html; a summary goes to stdout",
        own_variable=True,
    )
    assets: Path | None = option(
        None,
        "Save pictures, clips and curves as files in this folder, and not inside the page. The page needs this folder.",
        panel=OUTPUT,
        metavar="DIR",
    )
    title: str = option(
        "",
        "Heading of the page, or subject of the mail.",
        panel=OUTPUT,
        default_text="the name of OUT; in a mail, also the counts",
    )
    thumbnails: int = option(3, "Number of pictures per event; 0 for none.", panel=OUTPUT, metavar="N")
    pictured: int = option(
        200, "Show pictures of at most this many events, the highest scores first.", panel=OUTPUT, metavar="N"
    )
    clips: bool = option(False, "Also include a video clip of each event that has pictures.", panel=OUTPUT, own_variable=True)
    clip_length: str = option(
        "60s",
        "Maximum length of a clip. From a longer event, only the part around the highest score is cut.",
        panel=OUTPUT,
        metavar="TIME",
    )
    max_mb: float = option(
        5.0, "Without --assets: stop adding pictures and clips when the page reaches this size.", panel=OUTPUT, metavar="MB"
    )
    mail_from: str = option("", "Sender of the mail.", panel=OUTPUT, metavar="ADDRESS", default_text="vadcli at this machine")
    mail_to: tuple[str, ...] = option((), "Recipient of the mail; repeatable.", panel=OUTPUT, metavar="ADDRESS")

    def __post_init__(self) -> None:
        DecodeOptions.__post_init__(self)
        WhenOptions.__post_init__(self)
        _check_footage(self.footage)
        for name in ("thumbnails", "pictured"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} {getattr(self, name)} must be at least 0")
        check_above_zero(self, "max_mb")
        check_durations(self, "clip_length", above_zero=True)
        if self.format != "html" and (self.assets is not None or self.clips):
            raise UsageError(f"--format {self.format} has no pictures", hint="leave --assets and --clips out")
        if str(self.to) == "-" and self.assets is not None:
            raise UsageError("--assets: a page on stdout can't use files in a folder", hint="name a file with --to")
        for address in (self.mail_from, *self.mail_to):
            if address and ("@" not in address or any(character in address for character in "\r\n")):
                raise UsageError(f"{address!r} is not a mail address")


@dataclass(frozen=True)
class RenderOptions(FindOptions, DecodeOptions, TalkOptions):
    """The options of `vadcli render`."""

    out: Path = option(DEFAULT_OUT, "Folder with the scan's results.", panel=OUTPUT, short="-o", metavar="DIR")
    events_only: bool = option(False, "Write one video per event instead of the whole video.", panel=OUTPUT)
    pad: str = option(
        "2s", "With --events-only: time to include before and after an event.", panel=OUTPUT, metavar="TIME", own_variable=True
    )
    side_by_side: bool = option(
        False, "Show the original frame on the left and the annotated frame on the right.", panel=OUTPUT
    )
    max_height: int | None = option(None, "Scale taller videos down to this height in pixels.", panel=OUTPUT, metavar="PX")
    force: bool = option(False, "Render all videos, even those that were rendered before.", panel=RUNNING)

    def __post_init__(self) -> None:
        FindOptions.__post_init__(self)
        DecodeOptions.__post_init__(self)
        check_durations(self, "pad")
        if self.max_height is not None and self.max_height < 16:
            raise UsageError(f"--max-height {self.max_height} is too small to be visible", hint="give at least 16")


@dataclass(frozen=True)
class ClipsOptions(DecodeOptions, WhenOptions, TalkOptions):
    """The options of `vadcli clips`."""

    include: tuple[str, ...] = same(EventsOptions, "include")
    camera: tuple[str, ...] = option((), "Only cameras that match this glob; repeatable.", panel=FIND, metavar="GLOB")
    category: tuple[str, ...] = same(EventsOptions, "category")
    footage: Path | None = same(ReportOptions, "footage")
    to: Path | None = option(
        None, "Folder for the clips.", panel=OUTPUT, metavar="DIR", default_text="OUT/clips", own_variable=True
    )
    before: str = option(
        "5s", "Time to include before an event; a clip may begin earlier, at a keyframe.", panel=OUTPUT, metavar="TIME"
    )
    after: str = option("5s", "Time to include after an event.", panel=OUTPUT, metavar="TIME")
    container: str = option(
        "mp4",
        "Container of the clips; same means the footage's container. If the container can't store a clip, mkv is used.",
        panel=OUTPUT,
        choices=CONTAINERS,
    )
    force: bool = option(False, "Cut all clips, even those that were cut before.", panel=RUNNING)

    def __post_init__(self) -> None:
        DecodeOptions.__post_init__(self)
        _check_since(self.since)
        WhenOptions.__post_init__(self)
        check_durations(self, "before", "after")
        _check_is_folder(self.to, "name a folder")
        _check_footage(self.footage)


@dataclass(frozen=True)
class SearchOptions(DecodeOptions, WhenOptions, TalkOptions):
    """The options of `vadcli search`."""

    image: Path | None = option(None, "Search for what this picture shows, instead of a text.", panel=FIND, metavar="FILE")
    top: int = option(20, "Number of results to show.", panel=FIND, metavar="N")
    camera: tuple[str, ...] = same(ClipsOptions, "camera")
    include: tuple[str, ...] = same(EventsOptions, "include")
    since: str | None = same(ReportOptions, "since")
    footage: Path | None = same(ReportOptions, "footage")
    encoder: str = option(
        "", "Encoder of the stored vectors.", panel=HOW, metavar="NAME|DIR", default_text="the scan's encoder"
    )
    device: str = same(DetectorOptions, "device")
    format: str = option(
        "table", "Format of the result; html is a page with pictures.", panel=OUTPUT, choices=SEARCH_FORMATS, own_variable=True
    )
    to: Path | None = option(
        None,
        "File to write.",
        panel=OUTPUT,
        metavar="FILE",
        default_text="stdout; OUT/search.html for a page",
        own_variable=True,
    )

    def __post_init__(self) -> None:
        DecodeOptions.__post_init__(self)
        WhenOptions.__post_init__(self)
        _check_footage(self.footage)
        check_counts(self, "top")


@dataclass(frozen=True)
class PruneOptions(TalkOptions):
    """The options of `vadcli prune`."""

    include: tuple[str, ...] = same(EventsOptions, "include")
    missing: bool = option(True, "Remove the results of videos and cameras that no longer exist.", panel=FIND)
    older_than: str | None = option(
        None, "Also remove the results of videos that started more than this time ago.", panel=FIND, metavar="TIME"
    )
    footage: Path | None = same(ReportOptions, "footage")
    dry_run: bool = option(False, "Only list what would be removed.", panel=RUNNING)

    def __post_init__(self) -> None:
        check_durations(self, "older_than", above_zero=True)
        _check_footage(self.footage)


@dataclass(frozen=True)
class StatusOptions(TalkOptions):
    """The options of `vadcli status`."""

    watch: bool = option(False, "Repeat until no scan is running.", panel=RUNNING)
    every: str = option("1s", "With --watch: time between two reports.", panel=RUNNING, metavar="TIME")

    def __post_init__(self) -> None:
        check_durations(self, "every", above_zero=True)


DEFAULT_VERIFIER = "qwen2-vl-2b"
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)


def parse_share(text: str, name: str) -> float:
    """Return the share in [0, 1] of a text such as `15%` or `0.15`.

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
        "Model to ask: a name of `vadcli weights list`, or a folder.",
        panel=HOW,
        metavar="MODEL",
        own_variable=True,
    )
    categories: str = option(
        "",
        "What to ask about, in your own words, separated by commas. @NAME is a list of vadcli; @FILE is your own list.",
        panel=HOW,
        short="-c",
        metavar="LIST",
        default_text="the scan's categories, or else danger, crime, violence, accidents and emergencies",
    )
    share: str = option(
        "15%", "Ask about this share of each camera's footage: the parts with the highest scores.", panel=HOW, metavar="SHARE"
    )
    audit: str = option(
        "1%",
        "Also ask about this share of all other clips, drawn at random, to estimate how much the scan misses.",
        panel=HOW,
        metavar="SHARE",
    )
    seed: int = option(0, "Seed of the random draw.", panel=HOW)
    device: str = same(DetectorOptions, "device")
    precision: str = same(DetectorOptions, "precision")
    batch_size: int | None = same(DetectorOptions, "batch_size")
    compression: float | None = option(
        None,
        "Share of the visual tokens that the model reads, above 0 and at most 1; a smaller share is faster.",
        panel=HOW,
        default_text="1",
    )
    include: tuple[str, ...] = same(EventsOptions, "include")
    footage: Path | None = same(ReportOptions, "footage")
    refine_masks: bool = option(
        False,
        "Also replace the coarse stored masks of confirmed events by the outlines that SAM2 finds (sam2.1-hiera-small).",
        panel=OUTPUT,
    )
    describe: bool = option(
        False, "Also let the model write a sentence about each confirmed event. The sentence may be wrong.", panel=OUTPUT
    )
    limit: int | None = option(
        None, "Ask about at most this many clips; the next run continues.", panel=RUNNING, metavar="N", default_text="no limit"
    )
    max_runtime: str | None = same(ScanOptions, "max_runtime")
    checkpoint_every: str = option(
        "30s",
        "Time between two checkpoints. If the run is killed, at most this much work is lost.",
        panel=RUNNING,
        metavar="TIME",
    )
    runner: str = same(ScanOptions, "runner")
    ray_address: str = same(ScanOptions, "ray_address")
    ray_cpus: int | None = same(ScanOptions, "ray_cpus")
    ray_gpus: float | None = same(ScanOptions, "ray_gpus")
    dry_run: bool = option(
        False,
        "Only print the number of clips to ask about and the estimated time. The estimate needs the model.",
        panel=RUNNING,
    )

    def __post_init__(self) -> None:
        DecodeOptions.__post_init__(self)
        if parse_share(self.share, "share") == 0:
            raise UsageError(f"--share {self.share} asks about nothing", hint="write for example --share 15%")
        parse_share(self.audit, "audit")
        check_counts(self, "limit", "batch_size")
        if self.compression is not None and not 0.0 < self.compression <= 1.0:
            raise UsageError(f"--compression {self.compression:g} must be above 0 and at most 1")
        check_durations(self, "max_runtime", "checkpoint_every")
        check_cluster(self)
        _check_footage(self.footage)


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
        False, "Compute frame and category metrics from sampled frames only. Other frames only repeat a score.", panel=HOW
    )
    endpoints: bool = option(
        False,
        "Add a frame with label 0 and score 0, and a frame with label 1 and score 1, as some published evaluators do. "
        "This raises the figures.",
        panel=HOW,
    )
    pixel_size: str = option(
        "full",
        "Resize masks and ground truth to HEIGHTxWIDTH first; full keeps their size. Papers on Ped2 use 158x238.",
        panel=HOW,
        metavar="HxW",
    )
    bootstrap: int = option(
        1000, "Number of random resamples of the videos, for confidence intervals: at least 100, or 0 for none.", panel=HOW
    )
    confidence: float = option(0.95, "Confidence level of the intervals.", panel=HOW)
    seed: int = option(0, "Seed of the resamples.", panel=HOW)
    compare: bool = option(
        False,
        "Show several OUT side by side, with their differences from the first. This is the default if you name several OUT.",
        panel=HOW,
    )
    init: bool = option(
        False,
        "Print the events as CSV instead of figures. Correct the CSV by hand to use it as ground truth.",
        panel=EVENTS,
        cli_only="run `vadcli eval OUT --init`",
    )
    from_frames: bool = option(
        False,
        "Print the ground truth of --dataset as CSV with times in seconds, instead of figures.",
        panel=EVENTS,
        cli_only="run `vadcli eval OUT --from-frames`",
    )
    format: str = option(
        "table",
        "Format of the figures.",
        panel=OUTPUT,
        choices=("table", "markdown", "latex"),
        own_variable=True,
        cli_only="give the result to `to_markdown` or `to_latex` of vadcli.evaluation",
    )
    plots: Path | None = option(
        None,
        "Also write plots into this folder: curves, timelines of scores, and frames of likely false and missed alarms.",
        panel=OUTPUT,
        metavar="DIR",
    )
    save: bool = option(True, "Save the figures in OUT/eval/.", panel=RUNNING)

    def __post_init__(self) -> None:
        if self.bootstrap != 0 and self.bootstrap < FEWEST_RESAMPLES:
            raise UsageError(
                f"--bootstrap {self.bootstrap} gives too few resamples for an interval",
                hint=f"give at least {FEWEST_RESAMPLES}, or 0 for none",
            )
        if not 0.0 < self.confidence < 1.0:
            raise UsageError(f"--confidence {self.confidence:g} must be between 0 and 1")
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
