"""What is read while measuring: videos of the user's own, or some made for the purpose and gone afterwards."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vadcli.errors import VadcliError
from vadcli.video.ffmpeg import ffmpeg_path
from vadcli.video.loader import ClipRequest

MADE_FILES = 4
MADE_S = 10
MADE_FPS = 30
MADE_SIZE = (1280, 720)
TIMEOUT_S = 300


@dataclass(frozen=True)
class Footage:
    """Videos to be read over and over.

    Attributes:
        videos: name and path of each.
        warm_up: a small video that starts the decoders.
        scratch: a folder for what measuring writes.
        words: what it is, for people.
    """

    videos: tuple[tuple[str, Path], ...]
    warm_up: Path
    scratch: Path
    words: str

    def requests(self) -> Iterator[ClipRequest]:
        """The videos in turn, without end; names are never given twice."""
        turn = 0
        while True:
            for name, path in self.videos:
                yield ClipRequest(f"{turn}/{name}", path)
            turn += 1


def footage_of(videos: Sequence[tuple[str, Path]], scratch: Path, *, size: tuple[int, int] = MADE_SIZE) -> Footage:
    """The videos given, or ones of `size` made in `scratch` where there are none.

    Raises:
        VadcliError: ffmpeg can't make them.
    """
    warm_up = scratch / "warm-up.mp4"
    make_video(warm_up, size=(64, 64), seconds=1, hue=0)
    if videos:
        words = f"{len(videos)} video{'s' if len(videos) > 1 else ''} of the paths given"
        return Footage(tuple(videos), warm_up, scratch, words)
    made = [(f"{number}.mp4", scratch / f"{number}.mp4") for number in range(MADE_FILES)]
    for number, (_, path) in enumerate(made):
        make_video(path, size=size, seconds=MADE_S, hue=number * 360 // MADE_FILES)
    words = f"{MADE_FILES} made H.264 videos, {size[0]}x{size[1]}, {MADE_FPS} frames/s, {MADE_S} s each"
    return Footage(tuple(made), warm_up, scratch, words)


def make_video(path: Path, *, size: tuple[int, int], seconds: int, hue: int) -> None:
    """A noisy test picture in which things move.

    Raises:
        VadcliError: ffmpeg can't make it.
    """
    source = f"testsrc2=size={size[0]}x{size[1]}:rate={MADE_FPS}:duration={seconds},noise=alls=6:allf=t,hue=h={hue}"
    codec = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "60", "-pix_fmt", "yuv420p"]
    command = [ffmpeg_path(), "-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i", source, *codec, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VadcliError(f"no footage could be made: {error}", hint="name videos of your own") from error
    if done.returncode != 0:
        words = " ".join(done.stderr.decode(errors="replace").split())
        raise VadcliError(f"no footage could be made: ffmpeg: {words[-200:]}", hint="name videos of your own")
