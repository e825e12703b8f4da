"""Everything that each command can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.options.fields import FIND, HOW, OUTPUT, RUNNING, option
from vadcli.options.groups import DecodeOptions, DetectorOptions, FindOptions, TalkOptions, ThresholdOptions
from vadcli.options.parsing import parse_duration, parse_shard

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


EXPORT_FORMATS = ("json", "csv", "vtt", "edl", "otio", "fiftyone", "label-studio", "cvat")


@dataclass(frozen=True)
class EventsOptions(ThresholdOptions, TalkOptions):
    """Everything `vadcli events` can be told."""

    format: str = option("json", "What to print.", panel=OUTPUT, choices=EXPORT_FORMATS)
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
