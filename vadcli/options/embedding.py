"""The options of `vadcli embed`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vadcli.errors import UsageError
from vadcli.options.groups import HOW, OUTPUT, RUNNING, DecodeOptions, DetectorOptions, FindOptions, TalkOptions, option, same
from vadcli.options.scan import ScanOptions
from vadcli.registry import DETECTOR_OPTIONS


@dataclass(frozen=True)
class EmbedOptions(FindOptions, DecodeOptions, TalkOptions):
    """The options of `vadcli embed`."""

    root: Path | None = same(ScanOptions, "root")
    camera_from: str = same(ScanOptions, "camera_from")
    encoder: str = same(DETECTOR_OPTIONS.load("concept"), "encoder")
    device: str = same(DetectorOptions, "device")
    precision: str = same(DetectorOptions, "precision")
    sample_fps: float = option(2.0, "Embed about this many frames per second.", panel=HOW)
    out: Path = same(ScanOptions, "out")
    npy: Path | None = option(
        None, "Also write the vectors of each video to this folder, as a NumPy array (frames, D).", panel=OUTPUT, metavar="DIR"
    )
    npy_crops: int = option(
        0,
        "With --npy: write (frames, N, D) for heads that read N crops. Each crop gets the whole frame's vector.",
        panel=OUTPUT,
    )
    workers: int = option(1, "Number of decoder processes.", panel=RUNNING)
    force: bool = option(False, "Embed videos again whose vectors are already stored.", panel=RUNNING)

    def __post_init__(self) -> None:
        FindOptions.__post_init__(self)
        DecodeOptions.__post_init__(self)
        if not self.sample_fps > 0:
            raise UsageError(f"--sample-fps {self.sample_fps:g} must be above 0")
        if self.workers < 1:
            raise UsageError(f"--workers {self.workers} must be at least 1")
        if self.npy_crops < 0 or (self.npy_crops and self.npy is None):
            raise UsageError("--npy-crops needs --npy, and a number of at least 1")
