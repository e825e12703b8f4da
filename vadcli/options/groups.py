"""Options that commands share, by what they are about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.options.fields import EVENTS, FIND, HOW, RUNNING, TALK, DecoderChoice, option, parse_duration
from vadcli.types import Calibration, Thresholds

PRESET_MARK = "preset:"
"""Before a preset's name, where `--model` means random weights of its sizes though a model of that name is here."""
DETECTOR_CHOICES = ("auto", "lavida", "motion")
DEFAULT_MODEL = "lavida-7b"


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
class DetectorOptions:
    """Which detector, on what, and how it computes."""

    categories: str = option(
        "",
        "What to look for, in your own words, separated by commas; @NAME is a preset, @FILE a list of your own.",
        panel=HOW,
        short="-c",
        metavar="LIST",
        default_text="@general",
    )
    detector: str = option(
        "auto",
        "lavida reads the categories and needs weights; motion needs none. auto takes lavida with --model or trained weights.",
        panel=HOW,
        short="-d",
        choices=DETECTOR_CHOICES,
    )
    model: str = option(
        DEFAULT_MODEL, "LAVIDA's weights: a folder, or a name of `vadcli weights list`.", panel=HOW, metavar="MODEL"
    )
    device: str = option("auto", "auto, cpu, cuda (every GPU there is), cuda:N.", panel=HOW)
    precision: str = option(
        "auto", "Number format; auto is fp16 on a GPU, else fp32.", panel=HOW, choices=("auto", "fp16", "bf16", "fp32")
    )
    batch_size: int | None = option(None, "Clips scored in one call.", panel=HOW, default_text="as memory allows")
    compression: float | None = option(
        None,
        "Share of the visual tokens that the language model reads, 0-1.",
        panel=HOW,
        metavar="R",
        default_text="the model's own, 0.2",
    )
    mask_gate: str | None = option(
        None,
        "Masks of frames in which nothing is found: hard clears them, soft weakens them, off leaves them.",
        panel=HOW,
        choices=("hard", "soft", "off"),
        default_text="the model's own, hard",
    )
    drop_static: bool = option(
        False, "Leave out image patches that stay as they are throughout a clip (fixed cameras; quicker).", panel=HOW
    )
    attribute: bool = option(True, "Say which category an event shows, by a second look at its peak.", panel=HOW)
    allow_untrained: bool = option(
        False, "Scan with LAVIDA's own part drawn at random where it was never trained; the scores mean nothing.", panel=HOW
    )
    compile: bool = option(False, "Compile the model first (torch.compile): slow to start, then quicker.", panel=HOW)
    sam2: str = option(
        "transformers", "Which code runs SAM2; both give the same masks.", panel=HOW, choices=("transformers", "package")
    )

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size} must be at least 1")
        if self.compression is not None and not 0.0 < self.compression <= 1.0:
            raise UsageError(f"--compression {self.compression:g} is not a share", hint="give a number above 0, at most 1")
