"""Make videos of unusual sizes and lengths, to test reports and rendered videos.

    python examples/odd_shapes.py demo/shapes

writes one camera per kind of video: portrait, rotated only by its metadata, 4K, 240 lines, irregular frame times, one hour
long, half a second long. Each video shows a scene of the archive, with its anomaly. Only the shortest video has no anomaly.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
from synthetic_archive import Script, film

SEED = 7
WIDTH = 960
SECONDS = 20.0
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "24", "-pix_fmt", "yuv420p")
QUIET, ODD = Script("plaza", "morning"), Script("plaza", "noon", "cyclist")
LOOPS = 90
"""How often the normal video is repeated before and after the video with the anomaly, for one hour in total."""


@dataclass(frozen=True)
class Shape:
    """One video, and how ffmpeg makes it from a scene of the archive.

    Attributes:
        video: relative path of the new video.
        before, after: ffmpeg's options before and after its input.
    """

    video: str
    after: Sequence[str]
    before: Sequence[str] = ()


SHAPES = (
    Shape("upright/phone.mp4", ("-vf", "crop=ih*9/16:ih:iw*.36:0", *X264)),
    Shape("4k/roof.mp4", ("-t", "14", "-vf", "scale=3840:-2", *X264)),
    Shape("240p/old.avi", ("-vf", "scale=426:240,fps=10", "-c:v", "mpeg4", "-q:v", "5")),
    Shape("irregular/web.mkv", ("-vf", r"select=lt(mod(n\,17)\,9)", "-fps_mode", "vfr", *X264)),
    Shape("short/clip.mp4", ("-ss", "10", "-t", "0.5", *X264)),
    Shape("short/frame.mp4", ("-ss", "11", "-frames:v", "1", *X264)),
)


def ffmpeg(*arguments: str) -> None:
    """Run ffmpeg, which prints its errors."""
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments], check=True, stdin=subprocess.DEVNULL)


def make_shapes(out: Path, *, with_hour: bool = True) -> list[str]:
    """Write every shape, or all but the one-hour video; returns their relative paths."""
    with tempfile.TemporaryDirectory() as folder:
        films = Path(folder)
        for script in (QUIET, ODD):
            film(script, films, seconds=SECONDS, width=WIDTH, seed=SEED)
        odd, quiet = films / ODD.video, films / QUIET.video
        for shape in SHAPES:
            target = out / shape.video
            target.parent.mkdir(parents=True, exist_ok=True)
            ffmpeg(*shape.before, "-i", str(odd), *shape.after, "-an", str(target))
        videos = [*(shape.video for shape in SHAPES), turned(odd, out)]
        return [*videos, hour(quiet, odd, films, out)] if with_hour else videos


def turned(odd: Path, out: Path) -> str:
    """Write a video whose frames are stored rotated, with a header that tells players to rotate them."""
    video = "turned/helmet.mp4"
    side = odd.with_name("side.mp4")
    ffmpeg("-i", str(odd), "-vf", "transpose=2", *X264, "-an", str(side))
    (out / video).parent.mkdir(parents=True, exist_ok=True)
    ffmpeg("-display_rotation", "-90", "-i", str(side), "-c", "copy", str(out / video))
    return video


def hour(quiet: Path, odd: Path, work: Path, out: Path) -> str:
    """Write a video of one hour: the normal video again and again, with the anomaly in the middle."""
    video = "hour/gate.mp4"
    small = []
    for source in (quiet, odd):
        small.append(work / f"small-{source.name}")
        ffmpeg("-i", str(source), "-vf", "scale=320:-2", *X264, "-an", str(small[-1]))
    listed = work / "list.txt"
    lines = [f"file '{path}'" for path in [small[0]] * LOOPS + [small[1]] + [small[0]] * LOOPS]
    listed.write_text("\n".join(lines))
    (out / video).parent.mkdir(parents=True, exist_ok=True)
    ffmpeg("-f", "concat", "-safe", "0", "-i", str(listed), "-c", "copy", str(out / video))
    return video


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make footage of unusual shapes.")
    parser.add_argument("out", type=Path, help="folder to write the footage to")
    options = parser.parse_args()
    for video in make_shapes(options.out):
        print(options.out / video)


if __name__ == "__main__":
    main()
