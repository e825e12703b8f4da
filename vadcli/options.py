"""The options of every command as frozen dataclasses, each written down once.

A field's metadata carries its help text and choices: the command line, the documentation and the run's record are made
from it. `config.resolve` fills a set from the command line, the environment and TOML files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from vadcli.errors import UsageError
from vadcli.types import Calibration, Thresholds

DEFAULT_OUT = Path("vadcli-out")
DETECTOR_CHOICES = ("auto", "motion")
MASK_CHOICES = ("none", "video", "rle", "both")
DURATION = re.compile(r"(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|h|d)?", re.ASCII)
UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


def option(
    default: Any,
    text: str,
    *,
    panel: str,
    short: str = "",
    choices: Sequence[str] = (),
    metavar: str = "",
    default_text: str = "",
) -> Any:
    """A dataclass field that is also a command-line option, a TOML key and an environment variable."""
    metadata = {
        "help": text,
        "panel": panel,
        "short": short,
        "choices": tuple(choices),
        "metavar": metavar,
        "default_text": default_text,
    }
    return field(default=default, metadata=metadata)


PANELS = ("Which videos", "Detector", "Events", "Outputs", "Running", "Talking")
FIND, HOW, EVENTS, OUTPUT, RUNNING, TALK = PANELS
DecoderChoice = Literal["auto", "decord", "ffmpeg"]


@dataclass(frozen=True)
class ThresholdOptions:
    """How scores become events; None keeps the detector's own default."""

    threshold: float | None = option(
        None, "An event opens at this score, 0-1.", panel=EVENTS, default_text="the detector's own"
    )
    low: float | None = option(
        None, "It closes below this score.", panel=EVENTS, default_text="the detector's own, at most --threshold"
    )
    alarms_per_hour: float | None = option(
        None,
        "Set --threshold to the score that footage like the camera's own reaches this often (calibrated detectors).",
        panel=EVENTS,
    )
    min_duration: str | None = option(
        None, "Drop events shorter than this.", panel=EVENTS, metavar="TIME", default_text="the detector's own"
    )
    merge_gap: str | None = option(
        None, "Merge events closer than this.", panel=EVENTS, metavar="TIME", default_text="the detector's own"
    )
    pad: str | None = option(
        None, "Add this much at both ends of an event.", panel=EVENTS, metavar="TIME", default_text="the detector's own"
    )

    def __post_init__(self) -> None:
        for name in ("threshold", "low"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise UsageError(f"--{name} {value:g} is not a score", hint="scores lie between 0 and 1")
        if self.threshold is not None and self.alarms_per_hour is not None:
            raise UsageError("--threshold and --alarms-per-hour both set the threshold", hint="give one of them")
        if self.alarms_per_hour is not None and not self.alarms_per_hour > 0:
            raise UsageError(f"--alarms-per-hour {self.alarms_per_hour:g} must be above 0")
        for name in ("min_duration", "merge_gap", "pad"):
            if getattr(self, name) is not None:
                parse_duration(getattr(self, name), name)

    def thresholds(self, default: Thresholds, calibration: Calibration | None) -> Thresholds:
        """The thresholds to cut events with.

        Args:
            default: the detector's own.
            calibration: how its scores read as alarms an hour.

        Raises:
            UsageError: --alarms-per-hour for scores that are not calibrated, or thresholds that contradict each other.
        """
        high = default.high if self.threshold is None else self.threshold
        if self.alarms_per_hour is not None:
            if calibration is None:
                raise UsageError("--alarms-per-hour: these scores are not calibrated", hint="give --threshold instead")
            high = calibration.score_at(self.alarms_per_hour)
        low = min(default.low, high) if self.low is None else self.low
        if low > high:
            raise UsageError(f"--low {low:g} is above the threshold {high:g}", hint="an event must close below where it opens")

        def seconds(name: str) -> float:
            text = getattr(self, name)
            return float(getattr(default, f"{name}_s")) if text is None else parse_duration(text, name)

        return Thresholds(high, low, seconds("min_duration"), seconds("merge_gap"), seconds("pad"))


@dataclass(frozen=True)
class TalkOptions:
    """How much is said, and where. stdout carries data only; all of this goes to stderr."""

    json: bool = option(False, "One JSON object a line on stdout.", panel=TALK)
    quiet: bool = option(False, "Say only errors and failed files.", panel=TALK, short="-q")
    verbose: bool = option(False, "Say more: each decision, full tracebacks.", panel=TALK, short="-v")
    log_file: Path | None = option(None, "Also write the log here, rotated at 10 MB.", panel=TALK, metavar="FILE")


@dataclass(frozen=True)
class FindOptions:
    """Which files are videos."""

    recursive: bool = option(True, "Walk into sub-folders.", panel=FIND)
    include: tuple[str, ...] = option(
        (),
        "Only files matching this glob (name or relative path), whatever their suffix; repeatable.",
        panel=FIND,
        metavar="GLOB",
    )
    exclude: tuple[str, ...] = option(
        (), "Leave out files and folders matching this glob; repeatable.", panel=FIND, metavar="GLOB"
    )
    files_from: Path | None = option(
        None, "Also take the files listed here, one a line or NUL-separated; - reads stdin.", panel=FIND, metavar="FILE"
    )
    follow_links: bool = option(False, "Follow symbolic links to folders.", panel=FIND)
    frames_as_video: bool = option(False, "A folder of numbered images is a video.", panel=FIND)
    fps: float | None = option(None, "Frame rate of folders of images.", panel=FIND, default_text="10")
    min_age: str = option(
        "0s", "Leave out files changed more recently than this: they may still be recorded.", panel=FIND, metavar="TIME"
    )
    allow_empty: bool = option(False, "Exit 0 when there is no video.", panel=FIND)

    def __post_init__(self) -> None:
        parse_duration(self.min_age, "min_age")
        if self.fps is not None and not self.fps > 0:
            raise UsageError(f"--fps {self.fps:g} must be above 0")


@dataclass(frozen=True)
class DecodeOptions:
    """How frames are read."""

    decoder: DecoderChoice = option("auto", "Force a decoder.", panel=RUNNING, choices=("auto", "decord", "ffmpeg"))
    decode_timeout: str = option(
        "60s", "Give up on a file whose decoder makes no progress for this long.", panel=RUNNING, metavar="TIME"
    )
    decode_memory: int = option(4096, "Give up on a file whose decoder takes more than this.", panel=RUNNING, metavar="MIB")

    def __post_init__(self) -> None:
        if parse_duration(self.decode_timeout, "decode_timeout") <= 0:
            raise UsageError("--decode-timeout must be above 0")
        if self.decode_memory < 64:
            raise UsageError(
                f"--decode-memory {self.decode_memory} MiB is too little to decode anything", hint="give at least 64"
            )


@dataclass(frozen=True)
class ScanOptions(FindOptions, DecodeOptions, ThresholdOptions, TalkOptions):
    """Everything `vadcli scan` can be told."""

    categories: str = option(
        "",
        "What to look for, in your own words, separated by commas; @NAME is a preset, @FILE a list of your own.",
        panel=HOW,
        short="-c",
        metavar="LIST",
    )
    detector: str = option(
        "auto", "auto takes the best one whose weights are here.", panel=HOW, short="-d", choices=DETECTOR_CHOICES
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:N.", panel=HOW)
    precision: str = option(
        "auto", "Number format of models that run on a GPU.", panel=HOW, choices=("auto", "fp16", "bf16", "fp32")
    )
    batch_size: int | None = option(None, "Clips scored in one call.", panel=HOW, default_text="the detector's own")
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
        for base in (FindOptions, DecodeOptions, ThresholdOptions):
            base.__post_init__(self)
        for name in ("batch_size", "interval", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value} must be at least 1")
        if self.sample_fps is not None and not self.sample_fps > 0:
            raise UsageError(f"--sample-fps {self.sample_fps:g} must be above 0")
        if self.interval is not None and self.sample_fps is not None:
            raise UsageError("--interval and --sample-fps both set the sampling", hint="give one of them")
        if self.max_runtime is not None:
            parse_duration(self.max_runtime, "max_runtime")
        parse_duration(self.checkpoint_every, "checkpoint_every")
        parse_shard(self.shard)


@dataclass(frozen=True)
class EventsOptions(ThresholdOptions, TalkOptions):
    """Everything `vadcli events` can be told."""

    format: str = option("json", "What to print.", panel=OUTPUT, choices=("json", "csv", "vtt", "edl"))
    to: Path | None = option(None, "Write one file a video into this folder instead of printing.", panel=OUTPUT, metavar="DIR")
    write: bool = option(False, "Also rewrite the stored events documents.", panel=OUTPUT)
    validate: bool = option(False, "Check the stored documents against the published schema, and stop.", panel=OUTPUT)
    include: tuple[str, ...] = option((), "Only videos matching this glob; repeatable.", panel=FIND, metavar="GLOB")
    fail_on_event: bool = option(False, "Exit 10 when there are events.", panel=RUNNING)


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


def parse_duration(text: str, name: str) -> float:
    """Seconds of `90`, `90s`, `15m`, `8h`, `2d` or `500ms`.

    Raises:
        UsageError: it is none of these.
    """
    match = DURATION.fullmatch(str(text).strip())
    if match is None:
        flag = name.replace("_", "-")
        raise UsageError(f"--{flag} {text!r} is not a length of time", hint="write 90s, 15m, 8h or 2d")
    return float(match["value"]) * UNIT_S[match["unit"]]


def parse_shard(text: str | None) -> tuple[int, int]:
    """(i, n) of `i/n`, 1 <= i <= n; (1, 1) where there is none.

    Raises:
        UsageError: it is not a shard.
    """
    if text is None:
        return 1, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip(), re.ASCII)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise UsageError(f"--shard {text!r} is not I/N", hint="write e.g. --shard 2/8, counting from 1")
    return part, parts


def parse_categories(text: str) -> tuple[str, ...]:
    """The categories of `a, b, @preset, @file.txt`, in order, each once.

    Raises:
        UsageError: a preset or file that is not there.
    """
    found: dict[str, None] = {}
    for part in (piece.strip() for piece in text.split(",")):
        for word in _preset(part[1:]) if part.startswith("@") else (part,):
            if word:
                found.setdefault(word)
    return tuple(found)


def preset_names() -> list[str]:
    """Names of the category lists that come with vadcli."""
    return sorted(
        entry.name.removesuffix(".txt")
        for entry in resources.files("vadcli.categories").iterdir()
        if entry.name.endswith(".txt")
    )


def _preset(name: str) -> Iterator[str]:
    if name in preset_names():
        text = resources.files("vadcli.categories").joinpath(f"{name}.txt").read_text(encoding="utf-8")
    else:
        try:
            text = Path(name).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"@{name} is neither a category preset nor a readable file", hint=f"presets: {', '.join(preset_names())}"
            ) from error
    for line in text.splitlines():
        yield line.partition("#")[0].strip()


def effective(options: Any) -> dict[str, Any]:
    """An option set as JSON values, for the run's record."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return list(value)
        return str(value) if isinstance(value, Path) else value

    return {item.name: plain(getattr(options, item.name)) for item in fields(options)}


def default_of(item: Field[Any]) -> Any:
    """A field's default value."""
    return item.default if item.default is not MISSING else None
