"""The options of `scan`, `embed`, `learn`, `bench` and `weights`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from vadcli.errors import UsageError
from vadcli.options.groups import (
    DEFAULT_MODEL,
    FIND,
    HOW,
    OUTPUT,
    PRESET_MARK,
    RUNNING,
    DecodeOptions,
    DetectorOptions,
    ExitOptions,
    FindOptions,
    HeadOptions,
    RegionOptions,
    TalkOptions,
    ThresholdOptions,
    TimeOptions,
    check_above_zero,
    check_counts,
    check_durations,
    flag_of,
    option,
    options_class,
    parse_numbers,
    parse_shard,
    same,
)
from vadcli.registry import BENCHED, DETECTORS, HAS_ENCODER, HEADS, RUNNERS
from vadcli.types import DecodingChoice

DEFAULT_OUT = Path("vadcli-out")
MASK_CHOICES = ("none", "video", "rle", "both")


@dataclass(frozen=True)
class ScanOptions(
    FindOptions,
    DecodeOptions,
    DetectorOptions,
    RegionOptions,
    ThresholdOptions,
    HeadOptions,
    TimeOptions,
    ExitOptions,
    TalkOptions,
):
    """The options of `vadcli scan`."""

    root: Path | None = option(
        None,
        "Names of videos and cameras are relative to this folder. The first scan stores it in OUT; later scans use it again.",
        panel=FIND,
        metavar="DIR",
        default_text="the root in OUT; in the first scan, the folder that contains all PATHS",
    )
    interval: int | None = option(
        None, "Score every Nth frame.", panel=HOW, metavar="N", default_text="from the detector's rate and the video's fps"
    )
    sample_fps: float | None = option(
        None, "Score about this many frames per second.", panel=HOW, default_text="the detector's own"
    )
    decode: DecodingChoice = option(
        "auto",
        "Decode and sample all frames, only reference frames (those that other frames need), or only keyframes.",
        panel=HOW,
        choices=get_args(DecodingChoice),
        default_text="auto: reference for motion, else all",
    )
    camera_from: str = option(
        "folder", "What counts as one camera: a folder, a file, or all files.", panel=HOW, choices=("folder", "file", "all")
    )
    refit: bool | None = option(
        None,
        "Fit all cameras again and scan their videos again; with --no-refit, keep all camera models that exist.",
        panel=HOW,
        default_text="fit a camera again if it was fitted on little footage, and there is now twice as much",
    )
    seed: int = option(0, "Seed of the random sample of footage on which a camera is fitted.", panel=HOW)
    out: Path = option(
        DEFAULT_OUT, "Folder for the results. This folder is never scanned.", panel=OUTPUT, short="-o", metavar="DIR"
    )
    masks: str = option(
        "none", "Also write pixel scores: as a video, as run lengths, or both.", panel=OUTPUT, choices=MASK_CHOICES
    )
    propagate_masks: bool = option(
        False,
        "Between sampled frames, let SAM2 follow each mask from frame to frame, instead of repeating the mask; slower.",
        panel=OUTPUT,
    )
    refine_masks: bool = option(
        False,
        "In events, replace coarse masks by the outlines that SAM2 finds (sam2.1-hiera-small); slower.",
        panel=OUTPUT,
    )
    workers: int | None = option(
        None, "Number of decoder processes.", panel=RUNNING, default_text="one per core, at most one per video"
    )
    force: bool = option(False, "Scan all videos, even those that are done.", panel=RUNNING)
    skip_existing: bool = option(
        True, "Skip videos that are done with the same options; --no-skip-existing is the same as --force.", panel=RUNNING
    )
    retry_failed: bool = option(False, "Repeat the scan of videos that failed or are partial.", panel=RUNNING)
    shard: str | None = option(
        None, "Divide the videos into N parts, and scan only part I, e.g. 2/8.", panel=RUNNING, metavar="I/N"
    )
    max_runtime: str | None = option(
        None,
        "Stop after this time. The next run continues where this run stopped.",
        panel=RUNNING,
        metavar="TIME",
        default_text="no limit",
    )
    checkpoint_every: str = option(
        "30s",
        "Time between two checkpoints. If the scan is killed, at most this much work is lost.",
        panel=RUNNING,
        metavar="TIME",
    )
    runner: str = option(
        "local", "Where the work is done: on this machine, or on a Ray cluster.", panel=RUNNING, choices=tuple(RUNNERS)
    )
    ray_address: str = option(
        "",
        "Address of a running Ray cluster, or auto to find the one on this machine.",
        panel=RUNNING,
        default_text="none: Ray starts on this machine for this run",
    )
    ray_cpus: int | None = option(
        None,
        "Cores per worker of the cluster.",
        panel=RUNNING,
        default_text="the node's cores, shared among its GPUs; 4 without a GPU",
    )
    ray_gpus: float | None = option(
        None,
        "GPUs per worker of the cluster, such as 0.5.",
        panel=RUNNING,
        default_text="1 if the node has a GPU and the model can use it",
    )
    dry_run: bool = option(False, "List what would be scanned, and stop.", panel=RUNNING)
    verify: str = option(
        "", "Run `vadcli verify --model MODEL` after the scan.", panel=RUNNING, metavar="MODEL", default_text="no"
    )
    on_event: str = option(
        "", "Run this shell command once per new event, with the event as JSON on its stdin.", panel=RUNNING, metavar="COMMAND"
    )
    on_event_timeout: str = option(
        "60s",
        "Kill a command of --on-event, with all its processes, if it takes longer than this.",
        panel=RUNNING,
        metavar="TIME",
    )

    def __post_init__(self) -> None:
        for base in (FindOptions, DecodeOptions, DetectorOptions, ThresholdOptions, HeadOptions, TimeOptions):
            base.__post_init__(self)
        check_counts(self, "interval", "workers")
        check_above_zero(self, "sample_fps")
        if self.interval is not None and self.sample_fps is not None:
            raise UsageError("--interval and --sample-fps both set the sampling", hint="give one of them")
        for name in ("propagate_masks", "refine_masks"):
            if getattr(self, name) and self.masks == "none":
                raise UsageError(f"{flag_of(name)}: no masks are written", hint="add --masks video, rle or both")
        check_durations(self, "max_runtime", "checkpoint_every")
        check_durations(self, "on_event_timeout", above_zero=True)
        parse_shard(self.shard)
        check_cluster(self)


def check_cluster(options: Any) -> None:
    """Raise UsageError if an option for a cluster is out of range, or is given without a cluster."""
    check_counts(options, "ray_cpus")
    if options.ray_gpus is not None and not options.ray_gpus >= 0:
        raise UsageError(f"--ray-gpus {options.ray_gpus:g} must be at least 0")
    if options.runner != "ray" and (options.ray_address or options.ray_cpus or options.ray_gpus):
        raise UsageError("--ray-address, --ray-cpus and --ray-gpus need a cluster", hint="add --runner ray")


@dataclass(frozen=True)
class EmbedOptions(FindOptions, DecodeOptions, TalkOptions):
    """The options of `vadcli embed`."""

    root: Path | None = same(ScanOptions, "root")
    camera_from: str = same(ScanOptions, "camera_from")
    encoder: str = same(options_class(HAS_ENCODER), "encoder")
    device: str = same(DetectorOptions, "device")
    precision: str = same(DetectorOptions, "precision")
    sample_fps: float = option(2.0, "Embed about this many frames per second.", panel=HOW)
    out: Path = same(ScanOptions, "out")
    npy: Path | None = option(
        None, "Also write the vectors of each video to this folder, as a NumPy array (frames, D).", panel=OUTPUT, metavar="DIR"
    )
    npy_crops: int = option(
        0,
        "With --npy: write arrays (frames, N, D) for heads that read N crops (parts) per frame; all get the frame's vector.",
        panel=OUTPUT,
    )
    workers: int = option(1, "Number of decoder processes.", panel=RUNNING)
    force: bool = option(False, "Embed all videos, even those that have stored vectors.", panel=RUNNING)

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
        None, "Learn from the verdicts of this review. The report page saves reviews.", panel=HOW, metavar="FILE"
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
        (),
        "Also read vectors from this output folder, for a head that needs two encoders; repeatable.",
        panel=HOW,
        metavar="DIR",
    )
    recall: float = option(
        0.95,
        "Share of the true events that the head must keep. False alarms are counted at the threshold that keeps this share.",
        panel=HOW,
    )
    seed: int = option(0, "Seed of the cross-validation and of the training.", panel=HOW)
    include: tuple[str, ...] = option((), "Only videos that match this glob; repeatable.", panel=FIND, metavar="GLOB")
    to: Path | None = option(
        None,
        "Folder to create for the head.",
        panel=OUTPUT,
        metavar="DIR",
        default_text="none: the head is tested but not written",
        own_variable=True,
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


_BENCHED: Any = options_class(BENCHED)  # it has more options than `DetectorOptions`
LEAST_FRAME_PX = 28 * 28
"""Smallest area of a frame in pixels: such a frame gives a single visual token."""


@dataclass(frozen=True)
class BenchOptions(TalkOptions):
    """The options of `vadcli bench`."""

    detectors: str = option(
        "",
        "Compare these detectors, e.g. motion,concept,ask=MODEL,lavida=MODEL. Without it, settings of LAVIDA are compared.",
        panel=HOW,
        metavar="LIST",
    )
    categories: str = same(DetectorOptions, "categories")
    model: str = option(
        DEFAULT_MODEL, "Weights of LAVIDA: a folder, or a name of `vadcli weights list`.", panel=HOW, metavar="MODEL"
    )
    device: str = same(DetectorOptions, "device")
    precision: str = same(DetectorOptions, "precision")
    drop_static: bool = same(_BENCHED, "drop_static")
    compile: bool = same(DetectorOptions, "compile")
    sam2: str = same(_BENCHED, "sam2")
    random_weights: bool = option(
        False,
        "Use random weights if --model is a name. Speed and memory are those of the real weights, but the scores are useless.",
        panel=HOW,
    )
    ratios: str = option("1,0.5,0.2", "Compression ratios (shares of the visual tokens) to measure.", panel=HOW, metavar="LIST")
    batch_sizes: str = option("1,4,8", "Batch sizes to measure, in clips.", panel=HOW, metavar="LIST")
    frame_px: int | None = option(
        None,
        "Area of a frame for the language model, in pixels; a larger area gives more visual tokens.",
        panel=HOW,
        metavar="PX",
        default_text="the model's own",
    )
    clips: int | None = option(
        None,
        "End a round after this many clips, even before --seconds have passed.",
        panel=RUNNING,
        metavar="N",
        own_variable=True,
    )
    seconds: float = option(5.0, "Length of a round (one measurement) in seconds.", panel=RUNNING)
    rounds: int = option(3, "Number of times that each setting is measured.", panel=RUNNING)
    workers: int | None = option(None, "Number of decoder processes.", panel=RUNNING, default_text="one per core")

    def __post_init__(self) -> None:
        check_counts(self, "clips", "rounds", "workers")
        check_above_zero(self, "seconds")
        if self.frame_px is not None and self.frame_px < LEAST_FRAME_PX:
            raise UsageError(
                f"--frame-px {self.frame_px} is less than one visual token", hint=f"give at least {LEAST_FRAME_PX}"
            )
        self.ratio_list()
        self.batch_size_list()
        for name, _ in self.compared():
            if name not in DETECTORS:
                raise UsageError(f"--detectors: no detector is called {name!r}", hint=f"choose from {', '.join(DETECTORS)}")

    def compared(self) -> tuple[tuple[str, str], ...]:
        """Return the name and the model of each detector to compare; the model is "" for the default."""
        parts = [part.strip().partition("=") for part in self.detectors.split(",") if part.strip()]
        return tuple((name.strip(), model.strip()) for name, _, model in parts)

    def ratio_list(self) -> tuple[float, ...]:
        """Return --ratios as numbers.

        Raises:
            UsageError: a ratio is not in (0, 1].
        """
        ratios = parse_numbers(self.ratios, "ratios")
        if not all(0 < ratio <= 1 for ratio in ratios):
            raise UsageError(f"--ratios {self.ratios}: not all are between 0 and 1", hint="give numbers above 0 and at most 1")
        return ratios

    def batch_size_list(self) -> tuple[int, ...]:
        """Return --batch-sizes as numbers.

        Raises:
            UsageError: a batch size is not a whole number of at least 1.
        """
        sizes = parse_numbers(self.batch_sizes, "batch_sizes")
        if not all(size >= 1 and size == int(size) for size in sizes):
            raise UsageError(
                f"--batch-sizes {self.batch_sizes}: not all are whole numbers of at least 1", hint="write e.g. 1,4,8"
            )
        return tuple(int(size) for size in sizes)

    def detector_options(self) -> DetectorOptions:
        """Return the options of the LAVIDA detector."""
        shared = ("categories", "model", "device", "precision", "drop_static", "compile", "sam2")
        values = {name: getattr(self, name) for name in shared}
        if self.random_weights and not Path(self.model).is_dir():
            values["model"] = f"{PRESET_MARK}{self.model.removeprefix(PRESET_MARK)}"
        options: DetectorOptions = _BENCHED(**values, detector=BENCHED, allow_untrained=self.random_weights)
        return options

    def options_of(self, name: str, model: str) -> DetectorOptions:
        """Return the options of one of the detectors to compare."""
        if name == BENCHED:
            return replace(self, model=model or self.model).detector_options()
        kind = options_class(name)
        values = {part: getattr(self, part) for part in ("categories", "device", "precision", "compile")}
        if model:
            values[kind.model_option] = model
        return kind(**values, detector=name)


@dataclass(frozen=True)
class WeightsPullOptions(TalkOptions):
    """The options of `vadcli weights pull`."""

    update: bool = option(False, "Fetch the repository's newest revision instead of the pinned one.", panel=RUNNING)


@dataclass(frozen=True)
class WeightsImportOptions(TalkOptions):
    """The options of `vadcli weights import`."""

    qwen: Path | None = option(
        None, "Folder of Qwen2-VL in the layout of Hugging Face.", panel=HOW, metavar="DIR", default_text="the pulled model"
    )
    sam2: Path | None = option(
        None,
        "Folder of SAM2.1 in the layout of Hugging Face, or Meta's .pt file.",
        panel=HOW,
        metavar="PATH",
        default_text="the pulled model",
        own_variable=True,
    )
    clip: Path | None = option(
        None, "Folder of CLIP in the layout of Hugging Face.", panel=HOW, metavar="DIR", default_text="the pulled model"
    )
    own: Path | None = option(
        None, "Trained weights of the parts that only LAVIDA has (.safetensors).", panel=HOW, metavar="FILE"
    )
    lora: Path | None = option(None, "PEFT adapters of the language model.", panel=HOW, metavar="DIR")
    random_weights: bool = option(
        False,
        "Use random weights in place of a base model that is not found. LAVIDA detects nothing with random weights.",
        panel=HOW,
        own_variable=True,
    )
    seed: int = option(0, "Seed of the random weights.", panel=HOW)
    to: Path | None = option(
        None,
        "Folder to create.",
        panel=OUTPUT,
        metavar="DIR",
        default_text="the preset's name in the weights folder",
        own_variable=True,
    )
    force: bool = option(False, "Replace an existing LAVIDA folder.", panel=RUNNING)
