"""What is read while measuring: videos of the user's own, or some made for the purpose and gone afterwards.

Is there room for a model's weights? Counted before any is drawn: the system's own answer is to kill the process.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from vadcli.detectors.lavida.checkpoint import random_model
from vadcli.detectors.lavida.config import LavidaConfig, load_preset, preset_names
from vadcli.detectors.lavida.detector import LavidaDetector
from vadcli.detectors.lavida.running import devices_for, dtype_for
from vadcli.errors import DeviceError, VadcliError
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


CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
HALVES = (torch.float16, torch.bfloat16)


def need_memory(detector: LavidaDetector) -> None:
    """Refuse a detector whose drawn weights alone are larger than what is free on one of its devices. Takes under a second.

    Raises:
        DeviceError: they are; the hint names what would fit.
    """
    if detector.folder is not None:
        return
    precision = detector.options.precision
    for device in devices_for(detector.options.device):
        dtype, free = dtype_for(precision, device), free_bytes(device)
        wanted = weights_bytes(detector.config, dtype)
        if wanted <= free:
            continue
        number = str(dtype).removeprefix("torch.")
        message = f"{detector.config.name}: its weights take {_gb(wanted)} in {number}, and {device} has {_gb(free)} free"
        raise DeviceError(message, hint=_what_fits(detector.config, dtype, free))


def weights_bytes(config: LavidaConfig, dtype: torch.dtype) -> int:
    """What a preset's parameters and buffers take; counted on a model without memory."""
    model = random_model(config, device="meta", dtype=dtype)
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; for a CPU the host's, at most what this process's container may have."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = int(psutil.virtual_memory().available)
    for path in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # absent, or `max`
            free = min(free, int(path.read_text()) - int(psutil.Process().memory_info().rss))
    return max(0, free)


def _what_fits(config: LavidaConfig, dtype: torch.dtype, free: int) -> str:
    """The same model in half precision and smaller presets, the largest first, with their sizes."""
    fitting = []
    half = weights_bytes(config, torch.bfloat16)
    if dtype not in HALVES and half <= free:
        fitting.append(f"--precision bf16 ({_gb(half)})")
    sizes = {name: weights_bytes(load_preset(name), dtype) for name in preset_names() if name != config.name}
    smaller = sorted((size, name) for name, size in sizes.items() if size <= free)
    fitting += [f"--model {name} ({_gb(size)})" for size, name in reversed(smaller)]
    return f"what fits: {', '.join(fitting)}" if fitting else "end other programs, or use a machine with more memory"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
