"""Count the frames that `vadcli verify` decodes after a scan for motion.

    python -m benchmarks.verify FOOTAGE... [--camera-from all] [--seed N]

A simple function of the brightness takes the place of the language model, because the answers do not change which clips are
read. To reach a clip, a decoder may have to decode frames from the keyframe before the clip. These frames count, too.
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
    """Reads frames, and appends their number to the file in the environment variable VADCLI_DECODED."""

    def __init__(self, info: Any, request: Any, **options: Any) -> None:
        super().__init__(info, request, **options)
        first = request.start if info.demuxer == "images" else seek_row(info, request.start) or 0
        end = min(request.stop or info.frames, info.frames)
        decoded = end - first if request.needed is None else int(request.needed[first:end].sum())
        with open(os.environ[LOG], "a", encoding="ascii") as file:
            file.write(f"{decoded}\n")


class Brightness:
    """Takes the place of a multimodal model, and answers by brightness."""

    name = "brightness"
    clip_frames, clip_s, max_area_px = 8, 8.0, 64 * 64
    batch_size = parallel = 1

    def prepare(self) -> None:
        """Do nothing, because there are no weights to load."""

    def ask(self, frames: Any, questions: Any) -> Any:
        """Return the mean brightness of each clip as the answer to each question."""
        return np.repeat(frames.mean(axis=(1, 2, 3, 4))[:, None], len(questions), axis=1).astype(np.float32)

    def describe(self, frames: Any) -> str:
        """Return a dash."""
        return "-"

    def fingerprint(self) -> dict[str, object]:
        """Return the name."""
        return {"asker": self.name}


@dataclass(frozen=True)
class Counted:
    """Numbers of frames and clips.

    Attributes:
        scanned: frames that the scan decoded.
        total: frames of all videos.
        asked: clips that the model was asked about.
        decoded: frames that were decoded for these clips.
    """

    scanned: int
    total: int
    asked: int
    decoded: int


def count(footage: Sequence[Path], folder: Path, *, camera_from: str, seed: int = 0) -> Counted:
    """Scan and verify footage, with the results in `folder`, and return the numbers of decoded frames."""
    out, log = folder / "out", folder / "decoded"
    results = list(vadcli.scan(footage, out=out, detector="motion", camera_from=camera_from))
    counting = LoaderOptions(reader="benchmarks.verify:CountingReader")
    with patch.dict(os.environ, {LOG: str(log)}), patch("vadcli.verifying.steps.loader_options", lambda options: counting):
        done = verify_all(out, VerifyOptions(seed=seed), Brightness())
    decoded = sum(map(int, log.read_text().split()))
    total = sum(int(document.video["frames"] or 0) for document in vadcli.events(out).documents)
    return Counted(sum(result.decoded_frames for result in results), total, done.asked, decoded)


def main() -> None:
    """Scan and verify footage, and print the numbers of decoded frames."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", nargs="+", type=Path)
    parser.add_argument("--camera-from", default="folder", choices=("folder", "file", "all"))
    parser.add_argument("--seed", type=int, default=0, help="seed of the clips that are drawn at random")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = count(given.footage, Path(folder), camera_from=given.camera_from, seed=given.seed)
    print(f"the scan decoded {found.scanned} of {found.total} frames")
    print(
        f"verify: {found.asked} clips, {found.decoded} decoded frames, {100 * found.decoded / found.total:.1f} % of all frames"
    )


if __name__ == "__main__":
    main()
