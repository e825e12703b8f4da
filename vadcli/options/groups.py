"""Declares the groups of options that several commands share, and reads durations, shards and lists.

`option()` declares an option once, as a dataclass field with its help text. The command line, the TOML keys, the
environment variables and the reference page are made from these fields.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, get_args

from vadcli.errors import UsageError
from vadcli.registry import DETECTOR_OPTIONS, DETECTORS
from vadcli.types import Calibration, DayWindow, DecoderChoice, Thresholds, TimeRules, TimeSource, When
from vadcli.types.wall_clock import compile_time_pattern, zone_named

DURATION = re.compile(r"(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|h|d)?", re.ASCII)
UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


def flag_of(name: str) -> str:
    """Return the flag of an option on the command line, such as `--min-age` for the option `min_age`."""
    return f"--{name.replace('_', '-')}"


def parse_duration(text: str, name: str) -> float:
    """Return the number of seconds of a duration, such as `90`, `90s`, `15m`, `8h`, `2d` or `500ms`.

    Raises:
        UsageError: the text is not a duration.
    """
    match = DURATION.fullmatch(str(text).strip())
    if match is None:
        raise UsageError(f"{flag_of(name)} {text!r} is not a duration", hint="write 90s, 15m, 8h or 2d")
    return float(match["value"]) * UNIT_S[match["unit"]]


def check_durations(options: Any, *names: str, above_zero: bool = False) -> None:
    """Raise UsageError if one of the options called `names` is not a duration.

    With `above_zero`, a duration of 0 is an error, too.
    """
    for name in names:
        text = getattr(options, name)
        if text is not None and parse_duration(text, name) == 0 and above_zero:
            raise UsageError(f"{flag_of(name)} {text} must be above 0")


def check_counts(options: Any, *names: str) -> None:
    """Raise UsageError if one of the options called `names` has a value below 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"{flag_of(name)} {value} must be at least 1")


def check_above_zero(options: Any, *names: str) -> None:
    """Raise UsageError if an option in `names` has a value of 0 or less."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UsageError(f"{flag_of(name)} {value:g} must be above 0")


def parse_shard(text: str | None) -> tuple[int, int]:
    """Return (i, n) of `i/n`, 1 <= i <= n; (1, 1) for None.

    Raises:
        UsageError: the text is not a shard.
    """
    if text is None:
        return 1, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip(), re.ASCII)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise UsageError(f"--shard {text!r} is not I/N", hint="write e.g. --shard 2/8, counting from 1")
    return part, parts


def parse_numbers(text: str, name: str) -> tuple[float, ...]:
    """Return the numbers of a text such as `1,0.5,0.2`, in the order of the text and without repeats.

    Raises:
        UsageError: the text is empty, or a part of it is not a finite number.
    """
    try:
        numbers = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise UsageError(f"{flag_of(name)} {text!r} is not a list of numbers", hint="separate the numbers by commas")
    return numbers


def option(
    default: Any,
    text: str,
    *,
    panel: str,
    short: str = "",
    choices: Sequence[str] = (),
    metavar: str = "",
    default_text: str = "",
    own_variable: bool = False,
    why_ignored: str = "",
    cli_only: str = "",
) -> Any:
    """Return a dataclass field that is also a command-line option, a TOML key and an environment variable.

    The environment variable of an option `min_age` is `VADCLI_MIN_AGE`. Set `own_variable` if several commands have an option
    of this name with different meanings. In this case, the variable's name contains the command: `VADCLI_EVENTS_FORMAT`.

    An option of one detector may say why other detectors ignore it, such as `why_ignored="chooses its own frame size"`. If the
    user sets the option and the scan uses another detector, this reason is logged as a warning.

    If the functions of the library can't use the option, `cli_only` says what to do instead.
    """
    metadata = {
        "help": text,
        "panel": panel,
        "short": short,
        "choices": tuple(choices),
        "metavar": metavar,
        "default_text": default_text,
        "own_variable": own_variable,
        "why_ignored": why_ignored,
        "cli_only": cli_only,
    }
    return field(default=default, metadata=metadata)


def same(kind: type[Any], name: str) -> Any:
    """Return a copy of a field of another option set, so that two commands can have the same option."""
    original = next(item for item in fields(kind) if item.name == name)
    return field(default=original.default, metadata=original.metadata)


PANELS = ("Which videos", "Detector", "Events", "Outputs", "Running", "Messages and settings")
FIND, HOW, EVENTS, OUTPUT, RUNNING, TALK = PANELS


def effective(options: Any) -> dict[str, Any]:
    """Return the values of an option set as JSON values, for the run record."""

    def plain(value: Any) -> Any:
        """Return a value as a JSON value."""
        if isinstance(value, tuple):
            return list(value)
        return str(value) if isinstance(value, Path) else value

    return {item.name: plain(getattr(options, item.name)) for item in fields(options)}


def default_of(item: Field[Any]) -> Any:
    """Return a field's default value; None if it has no default."""
    return item.default if item.default is not MISSING else None


PRESET_MARK = "preset:"
"""`--model preset:NAME` means random weights with the sizes of this preset, even if a model of this name is installed."""
DETECTOR_CHOICES = ("auto", *DETECTORS)
AUTO_MODEL = "auto"
DEFAULT_MODEL = "lavida-7b"
"""The model that `auto` means for the detector `lavida`."""


@dataclass(frozen=True)
class ThresholdOptions:
    """The thresholds and durations of events. The value `None` means the detector's own default."""

    threshold: float | None = option(
        None, "An event starts when the score reaches this value, 0-1.", panel=EVENTS, default_text="the detector's own"
    )
    low: float | None = option(
        None,
        "An event ends when the score falls below this value.",
        panel=EVENTS,
        default_text="the detector's own, at most --threshold",
    )
    alarms_per_hour: float | None = option(
        None,
        "Set the threshold so that normal footage of the camera gives this many alarms per hour (only calibrated detectors).",
        panel=EVENTS,
    )
    min_duration: str | None = option(
        None, "Drop events that are shorter than this.", panel=EVENTS, metavar="TIME", default_text="the detector's own"
    )
    merge_gap: str | None = option(
        None,
        "Merge events that are closer together than this.",
        panel=EVENTS,
        metavar="TIME",
        default_text="the detector's own",
    )
    pad: str | None = option(
        None, "Extend events by this time at both ends.", panel=EVENTS, metavar="TIME", default_text="the detector's own"
    )

    def __post_init__(self) -> None:
        for name in ("threshold", "low"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise UsageError(f"--{name} {value:g} is outside 0-1", hint="scores lie between 0 and 1")
        if self.threshold is not None and self.alarms_per_hour is not None:
            raise UsageError("--threshold and --alarms-per-hour both set the threshold", hint="give one of them")
        check_above_zero(self, "alarms_per_hour")
        check_durations(self, "min_duration", "merge_gap", "pad")

    def thresholds(self, default: Thresholds, calibration: Calibration | None) -> Thresholds:
        """Return the thresholds with which events are made from scores.

        Args:
            default: the values for options that the user does not give. Usually these are the detector's default thresholds.
            calibration: translates scores to alarms per hour; None if the scores are not calibrated.

        Raises:
            UsageError: --alarms-per-hour is given but the scores are not calibrated, or --low is above the threshold.
        """
        high = default.high if self.threshold is None else self.threshold
        if self.alarms_per_hour is not None:
            if calibration is None:
                raise UsageError("--alarms-per-hour: the scores are not calibrated", hint="give --threshold instead")
            high = calibration.score_at(self.alarms_per_hour)
        low = min(default.low, high) if self.low is None else self.low
        if low > high:
            raise UsageError(
                f"--low {low:g} is above the threshold {high:g}", hint="an event can't end at a higher score than it starts at"
            )

        def seconds(name: str) -> float:
            """Return the duration that the user gave; without one, the default duration."""
            text = getattr(self, name)
            return float(getattr(default, f"{name}_s")) if text is None else parse_duration(text, name)

        return Thresholds(high, low, seconds("min_duration"), seconds("merge_gap"), seconds("pad"))


_OBJECTS = "the function returns objects"
_LOGGER = 'set the level and the handlers of logging.getLogger("vadcli")'


@dataclass(frozen=True)
class TalkOptions:
    """Which messages a command writes, and where. Data goes to stdout, and all messages go to stderr."""

    json: bool = option(False, "Print one JSON object per line on stdout.", panel=TALK, cli_only=_OBJECTS)
    quiet: bool = option(False, "Report only warnings, errors and failed files.", panel=TALK, short="-q", cli_only=_LOGGER)
    verbose: bool = option(False, "Report more: each decision and full tracebacks.", panel=TALK, short="-v", cli_only=_LOGGER)
    log_file: Path | None = option(
        None, "Also write the log to this file, which is rotated at 10 MB.", panel=TALK, metavar="FILE", cli_only=_LOGGER
    )


_NO_EXIT = "a function has no exit code; look at its results"


@dataclass(frozen=True)
class ExitOptions:
    """What makes the exit code non-zero."""

    fail_on_event: bool = option(False, "Exit with code 10 if there are events.", panel=RUNNING, cli_only=_NO_EXIT)
    events_first: bool = option(
        False,
        "With --fail-on-event: if there are events and some videos failed, exit with code 10, not 3.",
        panel=RUNNING,
        cli_only=_NO_EXIT,
    )

    def exit_code(self, *, lost: bool, events: bool) -> int:
        """Return the exit code of a command without a fatal error.

        Args:
            lost: True if some videos failed or are partial.
            events: True if there are events.
        """
        if self.fail_on_event and events and (self.events_first or not lost):
            return 10
        return 3 if lost else 0


@dataclass(frozen=True)
class FindOptions:
    """Which files are videos."""

    recursive: bool = option(True, "Include sub-folders.", panel=FIND)
    include: tuple[str, ...] = option(
        (),
        "Only files whose name or relative path matches this glob, even if their suffix is not that of a video; repeatable.",
        panel=FIND,
        metavar="GLOB",
    )
    exclude: tuple[str, ...] = option(
        (), "Leave out files and folders that match this glob; repeatable.", panel=FIND, metavar="GLOB"
    )
    files_from: Path | None = option(
        None,
        "Also scan the files in this list, separated by line ends or NUL bytes; - reads the list from stdin.",
        panel=FIND,
        metavar="FILE",
    )
    follow_links: bool = option(False, "Follow symbolic links to folders.", panel=FIND)
    frames_as_video: bool = option(False, "Treat a folder of numbered images as a video.", panel=FIND)
    fps: float | None = option(None, "Frame rate of folders of images.", panel=FIND, default_text="10")
    min_age: str = option(
        "0s",
        "Leave out files that changed within the last TIME, because a camera may still be writing them.",
        panel=FIND,
        metavar="TIME",
    )
    allow_empty: bool = option(False, "Exit with code 0 if no video is found.", panel=FIND)

    def __post_init__(self) -> None:
        check_durations(self, "min_age")
        check_above_zero(self, "fps")


@dataclass(frozen=True)
class DecodeOptions:
    """The decoder and its limits."""

    decoder: DecoderChoice = option("auto", "Decoder to use.", panel=RUNNING, choices=get_args(DecoderChoice))
    decode_timeout: str = option(
        "60s", "Give up on a file if its decoder makes no progress for this long.", panel=RUNNING, metavar="TIME"
    )
    decode_memory: int = option(
        4096, "Give up on a file if its decoder uses more memory than this.", panel=RUNNING, metavar="MIB"
    )

    def __post_init__(self) -> None:
        check_durations(self, "decode_timeout", above_zero=True)
        if self.decode_memory < 64:
            raise UsageError(
                f"--decode-memory {self.decode_memory} MiB is too little to decode anything", hint="give at least 64"
            )


@dataclass(frozen=True)
class DetectorOptions:
    """The detector, its categories, model and device. A detector adds its own options in a subclass.

    `model_option` is the name of the option that chooses the detector's weights.
    """

    model_option: ClassVar[str] = "model"

    categories: str = option(
        "",
        "What to look for, in your own words, separated by commas. @NAME is a list of vadcli; @FILE is your own list.",
        panel=HOW,
        short="-c",
        metavar="LIST",
        default_text="@general",
    )
    detector: str = option(
        "auto",
        "Detector to use; auto is the best detector whose weights are installed. motion needs no weights.",
        panel=HOW,
        short="-d",
        choices=DETECTOR_CHOICES,
    )
    model: str = option(
        AUTO_MODEL,
        "Weights of the detector: a folder, or a name of `vadcli weights list`; auto is qwen2-vl-2b for ask, and lavida-7b for "
        "lavida.",
        panel=HOW,
        metavar="MODEL",
    )
    device: str = option("auto", "Device to use, which is auto, cpu, cuda (all GPUs) or cuda:N.", panel=HOW)
    precision: str = option(
        "auto",
        "Number format; auto is fp16 on a GPU and fp32 on a CPU (encoders: bf16 on a CPU with AMX).",
        panel=HOW,
        choices=("auto", "fp16", "bf16", "fp32"),
    )
    batch_size: int | None = option(
        None, "Number of clips that are scored together.", panel=HOW, default_text="as memory allows"
    )
    attribute: bool = option(True, "Find the category of each event, with a second pass over the event's peak.", panel=HOW)
    compile: bool = option(
        False, "Compile the model first (torch.compile). The command starts later, but scores faster.", panel=HOW
    )

    def __post_init__(self) -> None:
        check_counts(self, "batch_size")


@dataclass(frozen=True)
class RegionOptions:
    """The parts of the picture that a scan hides."""

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


LAST_RUN = "last-run"
FIRST_SOURCES = ("container", "container-local", "name", "modified")


@dataclass(frozen=True)
class TimeOptions:
    """Where the start time of a video comes from."""

    time_zone: str = option(
        "",
        "Time zone of the cameras' clocks and of the times you give, like Europe/Berlin or +01:00.",
        panel=EVENTS,
        metavar="ZONE",
        default_text="this machine's time zone",
    )
    time_from: str = option(
        "",
        "Read the start time of a video from its path, with a pattern like %Y-%m-%d/%H.%M.%S. Or name the source to try first: "
        "container, container-local, name or modified.",
        panel=EVENTS,
        metavar="PATTERN",
        default_text="container, then name, then modified",
    )

    def __post_init__(self) -> None:
        self.time_rules()

    def time_rules(self) -> TimeRules:
        """Return the rules by which the start of a video is found.

        Raises:
            UsageError: the time zone or the pattern can't be read.
        """
        try:
            zone_named(self.time_zone)
        except ValueError as error:
            hint = "write a name like Europe/Berlin, UTC, or an offset like +01:00"
            raise UsageError(f"--time-zone {self.time_zone}: {error}", hint=hint) from error
        given = bool(self.time_zone or self.time_from)
        if not self.time_from or self.time_from in FIRST_SOURCES:
            first = TimeSource(self.time_from.removesuffix("-local") or "container")
            return TimeRules(self.time_zone, first, self.time_from == "container-local", given=given)
        try:
            return TimeRules(self.time_zone, pattern=compile_time_pattern(self.time_from), given=given)
        except ValueError as error:
            hint = "write fields like %Y%m%d_%H%M%S, a regular expression with (?P<year>...), or " + ", ".join(FIRST_SOURCES)
            raise UsageError(f"--time-from {self.time_from!r}: {error}", hint=hint) from error


@dataclass(frozen=True)
class WhenOptions(TimeOptions):
    """The choice of events by wall-clock time."""

    since: str | None = option(
        None,
        "Only what happened at this time or later: a time like 2026-11-27T06:00, or an age like 24h.",
        panel=FIND,
        metavar="WHEN",
    )
    between: str | None = option(
        None, "Only what happened between these times of day, like 22:00-06:00.", panel=FIND, metavar="FROM-TO"
    )

    def __post_init__(self) -> None:
        TimeOptions.__post_init__(self)
        self.when()

    def when(self) -> When:
        """Return the choice of events by time. `--since last-run` is left out, because it is not a time.

        Raises:
            UsageError: a time can't be read.
        """
        since = None if self.since in (None, LAST_RUN) else parse_since(self.since, self.time_zone)
        try:
            return When(since, None if self.between is None else DayWindow.parse(self.between))
        except ValueError as error:
            raise UsageError(f"--between {self.between!r}: {error}", hint="write e.g. 22:00-06:00") from error


def parse_since(text: str, zone: str = "") -> datetime:
    """Return the time that `--since` means, with its time zone.

    Raises:
        UsageError: the text is neither a time nor a duration.
    """
    try:
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=zone_named(zone)).astimezone(UTC)
    except ValueError:
        pass
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text, "since"))
    except (UsageError, OverflowError) as error:
        hint = "give a time like 2026-11-27T06:00, or how long ago, like 24h"
        raise UsageError(f"--since {text!r} is not understood", hint=hint) from error


@dataclass(frozen=True)
class HeadOptions:
    """The head that judges the events."""

    head: Path | None = option(
        None,
        "Folder of a head from `vadcli learn`. The head judges events by the stored vectors of their frames.",
        panel=EVENTS,
        metavar="DIR",
    )
    head_threshold: float | None = option(
        None, "With --head: keep an event if the head's score reaches this value, 0-1.", panel=EVENTS, default_text="0.5"
    )
    embeddings: tuple[str, ...] = option(
        (),
        "Also read vectors from this output folder, for a head that needs two encoders; repeatable.",
        panel=EVENTS,
        metavar="DIR",
    )

    def __post_init__(self) -> None:
        if self.head_threshold is None:
            return
        if self.head is None:
            raise UsageError("--head-threshold needs --head")
        if not 0.0 <= self.head_threshold <= 1.0:
            raise UsageError(f"--head-threshold {self.head_threshold:g} is outside 0-1")


def options_class(detector: str) -> type[DetectorOptions]:
    """Return the options class of a detector: `DetectorOptions` if the detector has no options of its own.

    Raises:
        UsageError: the class is in another package, which can't be imported.
    """
    kind: type[DetectorOptions] = DETECTOR_OPTIONS.load(detector) if detector in DETECTOR_OPTIONS else DetectorOptions
    return kind


def ignored_options(options: DetectorOptions, detector: str) -> Iterator[tuple[str, str]]:
    """Yield each option that the user has set but the detector ignores: its flag, and the reason.

    Options without a reason (`why_ignored` of `option`) are left out.
    """
    used = {item.name for item in fields(options_class(detector))}
    for item in fields(options):
        why = item.metadata.get("why_ignored")
        if why and item.name not in used and getattr(options, item.name) != item.default:
            yield flag_of(f"no_{item.name}" if getattr(options, item.name) is False else item.name), why


def with_detector_options(kind: type[Any]) -> type[Any]:
    """Return a subclass of `kind` with the options of every detector.

    If `kind` and a detector have the same option, the field of `kind` is used.
    """
    loaded: list[type[Any]] = []
    for name in DETECTOR_OPTIONS:
        with suppress(UsageError):  # the detector's package is broken: the error is reported when this detector is used
            loaded.append(DETECTOR_OPTIONS.load(name))
    # Two detectors may have the same class of options, or one class may be a subclass of the other. Python does not
    # allow the same base twice, or a class before its subclass. So each class is used once, and a class with a subclass in the
    # list is left out.
    own = [base for base in dict.fromkeys(loaded) if not any(issubclass(other, base) and other is not base for other in loaded)]

    def check(self: Any) -> None:
        """Check the options of the command and of each detector."""
        for part in (kind, *own):
            part.__post_init__(self)

    attributes = {"__module__": "vadcli.options", "__doc__": kind.__doc__, "__post_init__": check}
    return dataclass(frozen=True)(type(kind.__name__, (kind, *own), attributes))
