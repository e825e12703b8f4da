"""What `vadcli bench` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.options.fields import HOW, RUNNING, option, same
from vadcli.options.groups import PRESET_MARK, DetectorOptions, TalkOptions
from vadcli.options.parsing import parse_numbers

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
