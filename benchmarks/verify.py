"""Counts the frames that `vadcli verify` decodes after a scan for motion.

    python -m benchmarks.verify FOOTAGE... [--camera-from all] [--seed N]

The model is a stand-in that answers by brightness: which clips are read does not depend on the answers. Frames between a
keyframe and the part that follows it count too, unless the decoder leaves them out.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import vadcli
from vadcli.options import VerifyOptions
from vadcli.verifying import verify_all
from vadcli.video.loader import LoaderOptions
from vadcli.video.reader import FrameReader
from vadcli.video.sampling import seek_row

LOG = "VADCLI_DECODED"


class CountingReader(FrameReader):
    """Writes the number of decoded frames to the file that the environment names."""

    def __init__(self, info: Any, request: Any, **options: Any) -> None:
        super().__init__(info, request, **options)
        first = request.start if info.demuxer == "images" else seek_row(info, request.start) or 0
        end = min(request.stop or info.frames, info.frames)
        decoded = end - first if request.needed is None else int(request.needed[first:end].sum())
        with open(os.environ[LOG], "a", encoding="ascii") as file:
            file.write(f"{decoded}\n")


class Brightness:
    """A stand-in for a multimodal model."""

    name = "brightness"
    clip_frames, clip_s, max_area_px = 8, 8.0, 64 * 64
    batch_size = parallel = 1

    def prepare(self) -> None:
        """There is nothing to load."""

    def ask(self, frames: Any, questions: Any) -> Any:
        """The mean brightness for each question."""
        return np.repeat(frames.mean(axis=(1, 2, 3, 4))[:, None], len(questions), axis=1).astype(np.float32)

    def describe(self, frames: Any) -> str:
        """Nothing."""
        return "-"

    def fingerprint(self) -> dict[str, object]:
        """Its name."""
        return {"asker": self.name}


@dataclass(frozen=True)
class Counted:
    """What was read.

    Attributes:
        scanned: frames decoded by the scan.
        total: frames of all videos.
        asked: clips that the model was asked about.
        decoded: frames decoded for them.
    """

    scanned: int
    total: int
    asked: int
    decoded: int


def count(footage: Sequence[Path], folder: Path, *, camera_from: str, seed: int = 0) -> Counted:
    """Scan and verify footage, with the results in a folder, and return what was read."""
    out, log = folder / "out", folder / "decoded"
    results = list(vadcli.scan(footage, out=out, detector="motion", camera_from=camera_from))
    counting = LoaderOptions(reader="benchmarks.verify:CountingReader")
    with patch.dict(os.environ, {LOG: str(log)}), patch("vadcli.verifying.steps.loader_options", lambda options: counting):
        done = verify_all(out, VerifyOptions(seed=seed), Brightness())
    decoded = sum(map(int, log.read_text().split()))
    total = sum(int(document.video["frames"] or 0) for document in vadcli.events(out).documents)
    return Counted(sum(result.decoded_frames for result in results), total, done.asked, decoded)


def main() -> None:
    """Scan, verify, and print what was decoded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", nargs="+", type=Path)
    parser.add_argument("--camera-from", default="folder", choices=("folder", "file", "all"))
    parser.add_argument("--seed", type=int, default=0, help="which clips are drawn at random")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = count(given.footage, Path(folder), camera_from=given.camera_from, seed=given.seed)
    print(f"{found.scanned} frames decoded by the scan, of {found.total}")
    print(f"{found.asked} clips asked, {found.decoded} frames decoded: {100 * found.decoded / found.total:.1f} % of all")


if __name__ == "__main__":
    main()
