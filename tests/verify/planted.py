"""A fake detector and a fake asker whose results are easy to predict, and an archive for them.

The asker answers yes for clips with a bright frame. In one video of the archive, a bright object jumps about. In another video,
a dark object jumps about. The third video has neither.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tests.fakes import DifferenceDetector
from tests.media import make_video
from tests.runs import local_scan
from vadcli.detectors.ask import Question
from vadcli.engine.plan import make_plan
from vadcli.options import ScanOptions
from vadcli.types import ByteArray, FloatArray, FrameScores, RawTrack, Thresholds

FPS, SECONDS = 5, 120
JUMPS_S = (60, 72)
VIDEOS = {"a.mp4": "calm", "b.mp4": "bright", "c.mp4": "dark"}


class BrightAsker:
    """Answers with log-odds that rise with the brightness of the brightest frame.

    Each category has its own offset.

    Args:
        name: name of the asker.
        log: a file that gets one line per clip and category of each call; None writes no file.
        slow_s: how long each call waits.
    """

    clip_frames = 8
    clip_s = 8.0
    max_area_px = 48 * 48
    batch_size = 3
    parallel = 1

    def __init__(self, name: str = "planted", *, log: Path | None = None, slow_s: float = 0.0) -> None:
        self.name, self.log, self.slow_s = name, log, slow_s
        self.asked: list[str] = []  # the category of each question about each clip
        self.described = 0

    def prepare(self) -> None:
        """Do nothing, because there are no weights to load."""

    def ask(self, frames: ByteArray, questions: Sequence[Question]) -> FloatArray:
        """Return log-odds (N, Q) for clips (N, 8, H, W, 3)."""
        time.sleep(self.slow_s)
        brightness = frames.astype(np.float32).mean(axis=(2, 3, 4)).max(axis=1)
        self.asked += [question.category for _ in brightness for question in questions]
        if self.log is not None:
            with self.log.open("a") as file:
                file.writelines(f"{question.category}\n" for _ in brightness for question in questions)
        offsets = np.array([len(question.category) / 10 for question in questions], np.float32)
        return (brightness[:, None] - 116.0) / 2.0 - offsets

    def describe(self, frames: ByteArray) -> str:
        """Return a sentence with the brightness."""
        self.described += 1
        return f"A thing with a brightness of {frames.max()} jumps."

    def fingerprint(self) -> dict[str, object]:
        """Return the name of the asker."""
        return {"asker": "bright", "name": self.name}


class CalibratedDifference(DifferenceDetector):
    """A detector with logits between -2 and 1, as a calibrated detector gives them."""

    thresholds = Thresholds(high=0.5, low=0.4, merge_gap_s=2.0)

    def finish(self, track: RawTrack) -> FrameScores:
        """Return logits that rise with the change between frames."""
        return FrameScores(np.clip((track.raw[:, 0] - 4) / 2, -2, 1).astype(np.float32), moving_camera=None)


def load_planted(model: str, **_: object) -> BrightAsker:
    """Return an asker; another package would name such a function in its entry points."""
    return BrightAsker(model)


def load_slowly(model: str, **_: object) -> BrightAsker:
    """Return a slow asker with a log in the working folder."""
    return BrightAsker(model, log=Path("asked.log"), slow_s=0.2)


class MortalAsker(BrightAsker):
    """Ends its process at the third call. Calls of all processes in the working folder count."""

    def ask(self, frames: ByteArray, questions: Sequence[Question]) -> FloatArray:
        """Return the answers of BrightAsker, or end the process."""
        answers = super().ask(frames, questions)
        calls = Path("calls")
        calls.mkdir(exist_ok=True)
        (calls / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        if len(list(calls.iterdir())) == 3:
            os._exit(1)
        return answers


def load_mortal(model: str, **_: object) -> BrightAsker:
    """Return an asker that ends its process once."""
    return MortalAsker(model, log=Path("asked.log"))


def draw_yard(kind: str, index: int, width: int, height: int) -> np.ndarray:
    """Return a picture of a grey yard with a small object that moves slowly.

    In the videos "bright" and "dark", a large object jumps about from 60 to 72 s.
    """
    image = np.full((height, width), 110, np.uint8)
    image[30:40, index % width : index % width + 6] = 140
    if kind != "calm" and JUMPS_S[0] <= index / FPS < JUMPS_S[1]:
        x, y = int(48 + 30 * np.sin(index * 2.1)), int(24 + 12 * np.sin(index * 1.3))
        image[max(0, y - 12) : y + 12, max(0, x - 12) : x + 12] = 255 if kind == "bright" else 0
    return image


def make_yard(path: Path, kind: str, *, seconds: int = SECONDS) -> Path:
    """Make a video of the yard with a keyframe every two seconds."""
    return make_video(path, frames=FPS * seconds, fps=FPS, gop=2 * FPS, draw=partial(draw_yard, kind))


def make_archive(folder: Path) -> Path:
    """Make an archive: three videos of one camera."""
    (folder / "yard").mkdir(parents=True)
    for name, kind in VIDEOS.items():
        make_yard(folder / "yard" / name, kind)
    return folder


def scanned(footage: Path, out: Path, **options: object) -> Path:
    """Scan the archive with `CalibratedDifference`, and return the output folder."""
    given = ScanOptions(out=out, workers=1, **options)  # type: ignore[arg-type]
    scan = local_scan(make_plan([footage], given, out=out), given, CalibratedDifference(), command=["vadcli"])
    for _ in scan.run():
        pass
    return out
