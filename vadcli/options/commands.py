"""Everything that each command can be told.

What `vadcli bench` can be told.

What `vadcli report` and `vadcli status` can be told.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.options.groups import (
    FIND,
    HOW,
    OUTPUT,
    PRESET_MARK,
    RUNNING,
    DecodeOptions,
    DetectorOptions,
    FindOptions,
    TalkOptions,
    ThresholdOptions,
    option,
    parse_duration,
    parse_numbers,
    parse_shard,
    same,
)
from vadcli.registry import EXPORTERS

DEFAULT_OUT = Path("vadcli-out")
MASK_CHOICES = ("none", "video", "rle", "both")


@dataclass(frozen=True)
class ScanOptions(FindOptions, DecodeOptions, DetectorOptions, ThresholdOptions, TalkOptions):
    """Everything `vadcli scan` can be told."""

    interval: int | None = option(
        None, "Score every Nth frame.", panel=HOW, metavar="N", default_text="from the detector's rate and the video's fps"
    )
    sample_fps: float | None = option(
        None, "Score about this many frames a second.", panel=HOW, default_text="the detector's own"
    )
    camera_from: str = option("folder", "What makes up one camera.", panel=HOW, choices=("folder", "file", "all"))
    refit: bool = option(False, "Learn the cameras anew; all their videos are scanned again.", panel=HOW)
    seed: int = option(0, "Seed of the sample that a camera is learned from.", panel=HOW)
    out: Path = option(DEFAULT_OUT, "Where results go; never scanned itself.", panel=OUTPUT, short="-o", metavar="DIR")
    masks: str = option("none", "Also write pixel scores.", panel=OUTPUT, choices=MASK_CHOICES)
    propagate_masks: bool = option(
        False, "Between sampled frames carry masks by SAM2's memory instead of holding them; slower.", panel=OUTPUT
    )
    workers: int | None = option(None, "Decoder processes.", panel=RUNNING, default_text="one a core, at most one a video")
    force: bool = option(False, "Scan again what is done.", panel=RUNNING)
    skip_existing: bool = option(True, "Skip what is done with the same options; --no-skip-existing is --force.", panel=RUNNING)
    retry_failed: bool = option(False, "Try failed and partial videos again.", panel=RUNNING)
    shard: str | None = option(None, "Scan only part I of N of the videos, e.g. 2/8.", panel=RUNNING, metavar="I/N")
    max_runtime: str | None = option(
        None, "Stop after this long; the next run goes on from there.", panel=RUNNING, metavar="TIME", default_text="no limit"
    )
    checkpoint_every: str = option("30s", "Longest work that a kill can cost.", panel=RUNNING, metavar="TIME")
    dry_run: bool = option(False, "List what would be scanned, and stop.", panel=RUNNING)
    fail_on_event: bool = option(False, "Exit 10 when there are events.", panel=RUNNING)

    def __post_init__(self) -> None:
        for base in (FindOptions, DecodeOptions, DetectorOptions, ThresholdOptions):
            base.__post_init__(self)
        for name in ("interval", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value} must be at least 1")
        if self.sample_fps is not None and not self.sample_fps > 0:
            raise UsageError(f"--sample-fps {self.sample_fps:g} must be above 0")
        if self.interval is not None and self.sample_fps is not None:
            raise UsageError("--interval and --sample-fps both set the sampling", hint="give one of them")
        if self.propagate_masks and self.masks == "none":
            raise UsageError("--propagate-masks: no masks are written", hint="add --masks video, rle or both")
        if self.propagate_masks and self.sam2 == "package":
            raise UsageError("--propagate-masks: the sam2 package can't do that here", hint="leave --sam2 at transformers")
        if self.max_runtime is not None:
            parse_duration(self.max_runtime, "max_runtime")
        parse_duration(self.checkpoint_every, "checkpoint_every")
        parse_shard(self.shard)


@dataclass(frozen=True)
class EventsOptions(ThresholdOptions, TalkOptions):
    """Everything `vadcli events` can be told."""

    format: str = option("json", "What to print.", panel=OUTPUT, choices=tuple(EXPORTERS))
    to: Path | None = option(
        None,
        "Write files into this folder instead of printing, one a video where the format goes by videos.",
        panel=OUTPUT,
        metavar="DIR",
    )
    write: bool = option(False, "Also rewrite the stored events documents.", panel=OUTPUT)
    validate: bool = option(False, "Check the stored documents against the published schema, and stop.", panel=OUTPUT)
    review: Path | None = option(
        None, "Leave out the events that this review, saved from the report's page, calls false.", panel=OUTPUT, metavar="FILE"
    )
    calibrate: Path | None = option(
        None,
        "Print the thresholds that this review speaks for, each with its precision and alarms an hour, and stop.",
        panel=OUTPUT,
        metavar="FILE",
    )
    include: tuple[str, ...] = option((), "Only videos matching this glob; repeatable.", panel=FIND, metavar="GLOB")
    fail_on_event: bool = option(False, "Exit 10 when there are events.", panel=RUNNING)

    def __post_init__(self) -> None:
        ThresholdOptions.__post_init__(self)
        if self.calibrate is not None and self.format not in ("json", "csv"):
            raise UsageError(f"--calibrate: thresholds are no {self.format}", hint="give --format json or csv")


@dataclass(frozen=True)
class RenderOptions(FindOptions, DecodeOptions, TalkOptions):
    """Everything `vadcli render` can be told."""

    out: Path = option(DEFAULT_OUT, "Where the scan's results are.", panel=OUTPUT, short="-o", metavar="DIR")
    events_only: bool = option(False, "Cut one clip an event instead of the whole video.", panel=OUTPUT)
    pad: str = option("2s", "With --events-only: footage before and after an event.", panel=OUTPUT, metavar="TIME")
    side_by_side: bool = option(False, "The untouched picture on the left, the annotated one on the right.", panel=OUTPUT)
    max_height: int | None = option(None, "Shrink taller videos to this many pixels.", panel=OUTPUT, metavar="PX")
    force: bool = option(False, "Render again what is there.", panel=RUNNING)

    def __post_init__(self) -> None:
        FindOptions.__post_init__(self)
        DecodeOptions.__post_init__(self)
        parse_duration(self.pad, "pad")
        if self.max_height is not None and self.max_height < 16:
            raise UsageError(f"--max-height {self.max_height} is too small to see", hint="give at least 16")


@dataclass(frozen=True)
class WeightsPullOptions(TalkOptions):
    """Everything `vadcli weights pull` can be told."""

    update: bool = option(False, "Take the repository's newest state in place of the pinned one.", panel=RUNNING)


@dataclass(frozen=True)
class WeightsImportOptions(TalkOptions):
    """Everything `vadcli weights import` can be told."""

    qwen: Path | None = option(
        None, "Folder of Qwen2-VL as transformers saves it.", panel=HOW, metavar="DIR", default_text="what was pulled"
    )
    sam2: Path | None = option(
        None,
        "Folder of SAM2.1 as transformers saves it, or Meta's .pt file.",
        panel=HOW,
        metavar="PATH",
        default_text="the same",
    )
    clip: Path | None = option(
        None, "Folder of CLIP as transformers saves it.", panel=HOW, metavar="DIR", default_text="the same"
    )
    own: Path | None = option(None, "LAVIDA's own part, trained: a .safetensors file.", panel=HOW, metavar="FILE")
    lora: Path | None = option(None, "PEFT adapters of the language model.", panel=HOW, metavar="DIR")
    random_weights: bool = option(
        False, "Draw the base models that are not found, by the preset's sizes; such a model detects nothing.", panel=HOW
    )
    seed: int = option(0, "Seed of what is drawn.", panel=HOW)
    to: Path | None = option(
        None, "The folder to make.", panel=OUTPUT, metavar="DIR", default_text="the preset's name where weights lie"
    )
    force: bool = option(False, "Replace the LAVIDA folder that is there.", panel=RUNNING)


LEAST_FRAME_PX = 28 * 28
"""Pixels of one visual token of one frame."""


@dataclass(frozen=True)
class BenchOptions(TalkOptions):
    """Everything `vadcli bench` can be told."""

    categories: str = same(DetectorOptions, "categories")
    model: str = same(DetectorOptions, "model")
    device: str = same(DetectorOptions, "device")
    precision: str = same(DetectorOptions, "precision")
    drop_static: bool = same(DetectorOptions, "drop_static")
    compile: bool = same(DetectorOptions, "compile")
    sam2: str = same(DetectorOptions, "sam2")
    random_weights: bool = option(
        False, "Draw weights of the model's real sizes where there are none: as slow and as large, and blind.", panel=HOW
    )
    ratios: str = option("1,0.5,0.2", "Compression ratios to measure.", panel=HOW, metavar="LIST")
    batch_sizes: str = option("1,4,8", "Clips a call to measure.", panel=HOW, metavar="LIST")
    frame_px: int | None = option(
        None,
        "Area of a frame for the language model, in pixels: more of them, more visual tokens.",
        panel=HOW,
        metavar="PX",
        default_text="the model's own",
    )
    clips: int | None = option(None, "Clips a round, if they come before --seconds.", panel=RUNNING, metavar="N")
    seconds: float = option(5.0, "Seconds a round.", panel=RUNNING)
    rounds: int = option(3, "How often every setting takes its turn.", panel=RUNNING)
    workers: int | None = option(None, "Decoder processes.", panel=RUNNING, default_text="one a core")

    def __post_init__(self) -> None:
        for name in ("clips", "rounds", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} {value} must be at least 1")
        if not self.seconds > 0:
            raise UsageError(f"--seconds {self.seconds:g} must be above 0")
        if self.frame_px is not None and self.frame_px < LEAST_FRAME_PX:
            raise UsageError(
                f"--frame-px {self.frame_px} is less than one visual token", hint=f"give at least {LEAST_FRAME_PX}"
            )
        self.ratio_list()
        self.batch_size_list()

    def ratio_list(self) -> tuple[float, ...]:
        """--ratios as numbers.

        Raises:
            UsageError: one of them is no share.
        """
        ratios = parse_numbers(self.ratios, "ratios")
        if not all(0 < ratio <= 1 for ratio in ratios):
            raise UsageError(f"--ratios {self.ratios}: not all are shares", hint="give numbers above 0, at most 1")
        return ratios

    def batch_size_list(self) -> tuple[int, ...]:
        """--batch-sizes as numbers.

        Raises:
            UsageError: one of them is no whole number from 1 on.
        """
        sizes = parse_numbers(self.batch_sizes, "batch_sizes")
        if not all(size >= 1 and size == int(size) for size in sizes):
            raise UsageError(f"--batch-sizes {self.batch_sizes}: not all are numbers of clips", hint="write e.g. 1,4,8")
        return tuple(int(size) for size in sizes)

    def detector_options(self) -> DetectorOptions:
        """The detector's own options among these."""
        shared = ("categories", "model", "device", "precision", "drop_static", "compile", "sam2")
        values = {name: getattr(self, name) for name in shared}
        if self.random_weights and not Path(self.model).is_dir():
            values["model"] = f"{PRESET_MARK}{self.model.removeprefix(PRESET_MARK)}"
        return DetectorOptions(**values, detector="lavida", allow_untrained=self.random_weights)


REPORT_FORMATS = ("html", "markdown", "json", "email")


@dataclass(frozen=True)
class ReportOptions(DecodeOptions, TalkOptions):
    """Everything `vadcli report` can be told."""

    since: str | None = option(
        None,
        "Only what runs worked on that began then or later: last-run, a time like 2026-11-27T06:00, or how long ago, like 24h.",
        panel=FIND,
        metavar="WHEN",
    )
    include: tuple[str, ...] = option((), "Only videos matching this glob; repeatable.", panel=FIND, metavar="GLOB")
    footage: Path | None = option(
        None, "Where the footage is now.", panel=FIND, metavar="DIR", default_text="where it was scanned"
    )
    format: str = option("html", "A page, or a digest for a mail or a program.", panel=OUTPUT, choices=REPORT_FORMATS)
    to: Path | None = option(
        None,
        "The file to write; - is stdout.",
        panel=OUTPUT,
        metavar="FILE",
        default_text="OUT/report.html; digests go to stdout",
    )
    assets: Path | None = option(
        None,
        "Put pictures, clips and curves into this folder instead of the page; both move together.",
        panel=OUTPUT,
        metavar="DIR",
    )
    title: str = option("", "The page's heading, or the mail's subject.", panel=OUTPUT, default_text="the folder's name")
    thumbnails: int = option(3, "Pictures an event, 0 for none.", panel=OUTPUT, metavar="N")
    pictured: int = option(200, "Events with pictures at most, the highest scores first.", panel=OUTPUT, metavar="N")
    clips: bool = option(False, "Also a playable clip of each of these events.", panel=OUTPUT)
    clip_length: str = option(
        "60s", "At most so much of an event in its clip, around the highest score.", panel=OUTPUT, metavar="TIME"
    )
    max_mb: float = option(
        5.0, "Without --assets: leave out pictures and clips beyond this size of page.", panel=OUTPUT, metavar="MB"
    )
    mail_from: str = option("", "The mail's sender.", panel=OUTPUT, metavar="ADDRESS", default_text="vadcli at this machine")
    mail_to: tuple[str, ...] = option((), "The mail's recipient; repeatable.", panel=OUTPUT, metavar="ADDRESS")
    fail_on_event: bool = option(False, "Exit 10 when there are events.", panel=RUNNING)

    def __post_init__(self) -> None:
        DecodeOptions.__post_init__(self)
        for name in ("thumbnails", "pictured"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} {getattr(self, name)} must be at least 0")
        if not self.max_mb > 0:
            raise UsageError(f"--max-mb {self.max_mb:g} must be above 0")
        if parse_duration(self.clip_length, "clip_length") <= 0:
            raise UsageError(f"--clip-length {self.clip_length} must be above 0")
        if self.format != "html" and (self.assets is not None or self.clips):
            raise UsageError(f"--format {self.format} holds no pictures", hint="leave --assets and --clips out")
        if str(self.to) == "-" and self.assets is not None:
            raise UsageError("--assets: a page on stdout can't name files beside it", hint="name a file with --to")
        for address in (self.mail_from, *self.mail_to):
            if address and ("@" not in address or any(character in address for character in "\r\n")):
                raise UsageError(f"{address!r} is not a mail address")


@dataclass(frozen=True)
class StatusOptions(TalkOptions):
    """Everything `vadcli status` can be told."""

    watch: bool = option(False, "Look again until no scan is running.", panel=RUNNING)
    every: str = option("1s", "With --watch: how often.", panel=RUNNING, metavar="TIME")

    def __post_init__(self) -> None:
        if parse_duration(self.every, "every") <= 0:
            raise UsageError("--every must be above 0")
