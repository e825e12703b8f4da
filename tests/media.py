"""Makes small test videos whose frames show their own number and orientation.

A frame is a grey picture. The white rectangle at the top left is the orientation mark. In the lower half, BITS bars show the
bits of the frame's number: white for 1, black for 0. `read_index` and `is_upright` read these marks from a decoded frame of any
size, even after a lossy codec.
"""

from __future__ import annotations

import functools
import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.patience import PATIENCE_S

BITS = 8
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

CODECS: dict[str, tuple[str, tuple[str, ...]]] = {
    "h264": (".mp4", ("-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-pix_fmt", "yuv420p")),
    "hevc": (".mp4", ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none", "-pix_fmt", "yuv420p10le")),
    "mpeg4": (".avi", ("-c:v", "mpeg4", "-q:v", "2", "-pix_fmt", "yuv420p")),
    "mpeg1": (".mpeg", ("-c:v", "mpeg1video", "-q:v", "2", "-pix_fmt", "yuv420p")),
    "mpegts": (".ts", ("-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-pix_fmt", "yuv420p")),
    "vp8": (".webm", ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "1M", "-pix_fmt", "yuv420p")),
    "vp9": (".webm", ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "1M", "-pix_fmt", "yuv420p")),
    "av1": (".mkv", ("-c:v", "libsvtav1", "-preset", "12", "-svtav1-params", "lp=1", "-pix_fmt", "yuv420p")),
    "ffv1": (".mkv", ("-c:v", "ffv1", "-pix_fmt", "gray")),
    "mjpeg": (".avi", ("-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p")),
    "gif": (".gif", ()),
}
"""Name -> (suffix, encoder arguments)."""


@functools.cache
def ffmpeg_exe() -> str:
    """Return the ffmpeg of imageio-ffmpeg, so that the test videos do not depend on the machine."""
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def run_ffmpeg(*arguments: str, stdin: bytes | None = None) -> str:
    """Run ffmpeg, and return its messages; an existing output file is replaced."""
    command = [ffmpeg_exe(), "-hide_banner", "-y", "-threads", "1", *(["-nostdin"] if stdin is None else []), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=PATIENCE_S, check=False)
    messages = done.stderr.decode(errors="replace")
    assert done.returncode == 0, f"{' '.join(command)}\n{messages[-2000:]}"
    return messages


def picture(index: int, width: int = 96, height: int = 64) -> NDArray[np.uint8]:
    """Return the grey picture (H, W) of frame `index`."""
    image = np.full((height, width), 64, np.uint8)
    image[: height // 2, : width // 4] = 255
    edges = np.linspace(0, width, BITS + 1).astype(int)
    for bit in range(BITS):
        image[height // 2 :, edges[bit] : edges[bit + 1]] = 255 if index >> bit & 1 else 0
    return image


def read_index(image: NDArray[np.uint8]) -> int:
    """Return the number (modulo 2**BITS) of a decoded upright frame, (H, W) or (H, W, C)."""
    gray = image if image.ndim == 2 else image.mean(axis=2)
    height, width = gray.shape
    edges = np.linspace(0, width, BITS + 1)
    row = gray[int(height * 0.6) : int(height * 0.9)].mean(axis=0)
    bars = [row[round(a + (b - a) * 0.3) : max(round(a + (b - a) * 0.7), round(a + (b - a) * 0.3) + 1)].mean()
            for a, b in itertools.pairwise(edges)]  # fmt: skip
    return sum(1 << bit for bit, bar in enumerate(bars) if bar > 128)


def is_upright(image: NDArray[np.uint8]) -> bool:
    """Return True if the orientation mark is at the top left."""
    gray = image if image.ndim == 2 else image.mean(axis=2)
    height, width = gray.shape
    mark = gray[: max(1, height * 3 // 8), : max(1, width // 5)].mean()
    rest = gray[: max(1, height * 3 // 8), width * 3 // 8 :].mean()
    return bool(mark > 180 and rest < 130)


def make_video(
    path: Path,
    codec: str = "h264",
    *,
    frames: int = 24,
    fps: int = 25,
    size: tuple[int, int] = (96, 64),
    gop: int = 8,
    audio: bool = False,
    options: Sequence[str] = (),
    draw: Callable[[int, int, int], np.ndarray] | None = None,
) -> Path:
    """Make a video of `frames` numbered pictures.

    Args:
        path: the suffix chooses the container; `CODECS` has a fitting suffix per codec.
        options: ffmpeg's output options, for example ("-vf", "setpts=...").
        draw: function of (number, width, height) that returns another grey picture (height, width).
    """
    raw = b"".join((draw or picture)(i, *size).tobytes() for i in range(frames))
    _, encoder = CODECS[codec]
    sound = ("-f", "lavfi", "-i", f"sine=frequency=440:duration={frames / fps}") if audio else ()
    source = ("-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{size[0]}x{size[1]}", "-r", str(fps), "-i", "pipe:0")
    group = ("-g", str(gop)) if codec not in ("gif", "mjpeg", "ffv1") else ()
    run_ffmpeg(*source, *sound, *encoder, *group, "-threads", "1", *options, f"file:{path}", stdin=raw)
    return path


def remux(source: Path, target: Path, *, before: Iterable[str] = (), after: Iterable[str] = ()) -> Path:
    """Copy the packets into another file; `before` and `after` are ffmpeg's input and output options."""
    run_ffmpeg(*before, "-i", f"file:{source}", "-c", "copy", *after, f"file:{target}")
    return target


def make_rotated(path: Path, degrees_clockwise: int, **options: object) -> Path:
    """Make a video like a phone's: a player has to turn the stored frames clockwise by these degrees."""
    upright = {0: None, 90: "transpose=cclock", 180: "hflip,vflip", 270: "transpose=clock"}[degrees_clockwise]
    stored = path.with_name(f"stored-{path.name}")
    make_video(stored, options=("-vf", upright) if upright else (), **options)  # type: ignore[arg-type]
    remux(stored, path, before=("-display_rotation:v:0", str(-degrees_clockwise)))
    stored.unlink()
    return path


def make_vfr(path: Path, codec: str = "h264", **options: object) -> Path:
    """Make a video in which every third frame lasts twice as long, and frame 9 much longer."""
    pace = "setpts='(N+floor(N/3)+gt(N,9)*25)/(10*TB)',settb=1/1000"
    return make_video(path, codec, options=("-vf", pace, "-fps_mode", "passthrough"), **options)  # type: ignore[arg-type]


def make_edit_list(path: Path, *, skip_s: float = 0.55, **options: object) -> Path:
    """Make an MP4 that was cut between two keyframes, so that its edit list hides the first packets."""
    whole = path.with_name(f"whole-{path.name}")
    make_video(whole, **options)  # type: ignore[arg-type]
    remux(whole, path, before=("-ss", str(skip_s)))
    whole.unlink()
    return path


def make_audio_only(path: Path) -> Path:
    """Make a file with sound and without video."""
    run_ffmpeg("-f", "lavfi", "-i", "sine=frequency=440:duration=1", "-c:a", "aac", f"file:{path}")
    return path


def truncate(source: Path, target: Path, share: float) -> Path:
    """Write a copy with only the first `share` of the bytes."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def damage(source: Path, target: Path, *, start: float = 0.4, length: int = 400, seed: int = 0) -> Path:
    """Write a copy in which `length` bytes from `start` (a share of the file) are random."""
    shutil.copyfile(source, target)
    data = bytearray(target.read_bytes())
    at = int(len(data) * start)
    noise = np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8).tobytes()
    data[at : at + length] = noise[: max(0, len(data) - at)]
    target.write_bytes(data)
    return target


def break_packet(source: Path, target: Path, index: int) -> Path:
    """Write a copy in which packet `index`, in decoding order, cannot be decoded at all."""
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data = bytearray(source.read_bytes())
    at, size = packets[index].pos, packets[index].size
    assert at is not None
    data[at : at + size] = b"\xff" * size
    target.write_bytes(data)
    return target


def make_image_folder(folder: Path, frames: int = 12, *, suffix: str = ".png", size: tuple[int, int] = (96, 64)) -> Path:
    """Make a folder of numbered images without leading zeros, so that the alphabetical order is wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(frames):
        Image.fromarray(picture(i, *size)).save(folder / f"frame{i}{suffix}")
    return folder
