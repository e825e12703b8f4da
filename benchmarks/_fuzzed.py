"""Makes small videos of many formats, and damaged copies of them.

The same number always gives the same copy.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from _measure import FFMPEG

_H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-g", "6", "-pix_fmt", "yuv420p")
_SOUND = ("-c:a", "aac", "-b:a", "32k")
_SILENT = ("-an",)

FORMATS: Mapping[str, tuple[str, ...]] = {
    "h264.mp4": (*_H264, *_SOUND),
    "fragments.mp4": (*_H264, *_SILENT, "-movflags", "frag_keyframe+empty_moov"),
    "mpeg4.mov": ("-c:v", "mpeg4", "-g", "6", *_SOUND),
    "h264.mkv": (*_H264, "-c:a", "flac"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-g", "6", *_SILENT),
    "mpeg4.avi": ("-c:v", "mpeg4", "-bf", "1", "-g", "6", "-c:a", "mp2"),
    "h264.flv": (*_H264, *_SOUND),
    "h264.ts": (*_H264, *_SOUND),
    "mpeg2.mpg": ("-c:v", "mpeg2video", "-bf", "1", "-g", "6", "-c:a", "mp2", "-f", "vob"),
    "mpeg2.mxf": ("-c:v", "mpeg2video", "-g", "6", *_SILENT),
    "ffv1.nut": ("-c:v", "ffv1", *_SILENT),
    "theora.ogv": ("-c:v", "libtheora", "-g", "6", *_SILENT),
    "wmv2.wmv": ("-c:v", "wmv2", "-g", "6", "-c:a", "wmav2"),
    "stream.h264": (*_H264, *_SILENT),
    "stream.hevc": ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:pools=1:keyint=6", *_SILENT),
    "pictures.mjpeg": ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p", *_SILENT),
    "vp8.ivf": ("-c:v", "libvpx", "-deadline", "realtime", "-g", "6", *_SILENT),
    "palette.gif": _SILENT,
    "h263.3gp": ("-c:v", "h263", "-s", "128x96", "-g", "6", *_SILENT),
    "raw.y4m": ("-pix_fmt", "gray", "-s", "32x24", *_SILENT),
}
"""File name -> ffmpeg's arguments for the encoder. The suffix chooses the container."""

_NUMBERS = (b"\0", b"\xff", b"\x7f\xff", b"\0\0\0\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\x80\0\0\0", b"\xff" * 8)
_HEAD_BYTES = 600


@dataclass(frozen=True)
class Fuzzed:
    """One damaged file.

    Attributes:
        name: name of the file: its number and the suffix of its format; a few files have the suffix of another format.
        format: the key in `FORMATS` of the video that was damaged.
        steps: the changes that damaged the video, in words.
    """

    name: str
    format: str
    data: bytes
    steps: tuple[str, ...]


def make_seeds(folder: Path) -> dict[str, bytes]:
    """Return the bytes of the videos of `FORMATS` (12 frames, 64x48); missing videos are made."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = ("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=0.48")
    sound = ("-f", "lavfi", "-i", "sine=frequency=440:sample_rate=44100:duration=0.48")
    same = ("-fflags", "+bitexact", "-flags:v", "+bitexact", "-flags:a", "+bitexact", "-map_metadata", "-1", "-threads", "1")
    for name, how in FORMATS.items():
        target = folder / name
        if not target.exists():
            half = folder / f"half-{name}"
            command = [FFMPEG, "-v", "error", "-nostdin", "-y", *picture, *sound, *same, *how, f"file:{half}"]
            subprocess.run(command, check=True, timeout=120)
            half.rename(target)
    return {name: (folder / name).read_bytes() for name in FORMATS}


def fuzzed(number: int, seeds: Mapping[str, bytes], *, seed: int) -> Fuzzed:
    """Return damaged file `number`.

    Formats take turns; the same seed and number always give the same file.
    """
    rng = random.Random(f"{seed}/{number}")
    name = list(FORMATS)[number % len(FORMATS)]
    data, steps = seeds[name], []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        step = rng.choice(STEPS)
        data = step(data, rng, seeds)
        steps.append(step.__name__.strip("_"))
    suffix = Path(name).suffix
    if rng.random() < 0.04:
        suffix = Path(rng.choice(list(FORMATS))).suffix
        steps.append(f"renamed to {suffix}")
    return Fuzzed(f"{number:05d}{suffix}", name, data, tuple(steps))


Step = Callable[[bytes, random.Random, Mapping[str, bytes]], bytes]


def _flip(data: bytes, rng: random.Random, _: Mapping[str, bytes]) -> bytes:
    changed = bytearray(data)
    for _each in range(rng.choice((1, 2, 5, 20, 100)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flip_header(data: bytes, rng: random.Random, _: Mapping[str, bytes]) -> bytes:
    changed = bytearray(data)
    for _each in range(rng.choice((1, 3, 8)) if changed else 0):
        changed[_near_an_end(len(changed), rng)] = rng.randrange(256)
    return bytes(changed)


def _set_number(data: bytes, rng: random.Random, _: Mapping[str, bytes]) -> bytes:
    changed = bytearray(data)
    for _each in range(rng.choice((1, 2, 4)) if changed else 0):
        at, value = _near_an_end(len(changed), rng), rng.choice(_NUMBERS)
        value = rng.choice((value, value[::-1]))[: len(changed) - at]
        changed[at : at + len(value)] = value
    return bytes(changed)


def _cut_end(data: bytes, rng: random.Random, _: Mapping[str, bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _cut_start(data: bytes, rng: random.Random, _: Mapping[str, bytes]) -> bytes:
    return data[rng.randrange(len(data) + 1) :]


def _drop(data: bytes, rng: random.Random, _: Mapping[str, bytes]) -> bytes:
    start, end = _chunk(len(data), rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: random.Random, _: Mapping[str, bytes]) -> bytes:
    start, end = _chunk(len(data), rng)
    return data[:end] + data[start:end] * rng.choice((1, 1, 3, 30)) + data[end:]


def _zero(data: bytes, rng: random.Random, _: Mapping[str, bytes]) -> bytes:
    start, end = _chunk(len(data), rng)
    return data[:start] + bytes(end - start) + data[end:]


def _insert_zeros(data: bytes, rng: random.Random, _: Mapping[str, bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes(rng.choice((1, 7, 512, 70_000))) + data[at:]


def _noise(data: bytes, rng: random.Random, _: Mapping[str, bytes]) -> bytes:
    start, end = _chunk(len(data), rng)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def _swap(data: bytes, rng: random.Random, _: Mapping[str, bytes]) -> bytes:
    a, b, c, d = sorted(rng.randrange(len(data) + 1) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _splice(data: bytes, rng: random.Random, seeds: Mapping[str, bytes]) -> bytes:
    other = rng.choice(list(seeds.values()))
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _append(data: bytes, rng: random.Random, seeds: Mapping[str, bytes]) -> bytes:
    return data + rng.choice(list(seeds.values()))


STEPS: tuple[Step, ...] = (
    *(_flip, _flip_header, _flip_header, _set_number, _set_number, _cut_end, _cut_start, _drop, _repeat),
    *(_zero, _insert_zeros, _noise, _swap, _splice, _append),
)
"""The changes that can damage a file. Changes of headers are in the list twice, so they are twice as likely."""


def _near_an_end(size: int, rng: random.Random) -> int:
    """Return a position near the start or the end, where containers keep their headers and indexes."""
    at = rng.randrange(min(size, _HEAD_BYTES))
    return at if rng.random() < 0.6 else size - 1 - at


def _chunk(size: int, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(size + 1)
    return start, min(size, start + rng.choice((1, 16, 188, 1000, max(1, size // 4))))
