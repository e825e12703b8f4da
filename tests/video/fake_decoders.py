"""A fake prober and fake readers, whose behaviour a JSON file describes in place of a video.

For example, {"rows": 40, "fps": 10, "lost": [3], "at": 20, "do": "hang"} is a video of 40 frames, of which frame 3 cannot be
decoded, and at frame 20 the reader hangs. All pixels of row r have the value r % 251 + 1.

`LoaderOptions` names the prober and the reader, so that the loader's processes import and run them. This file imports no test
tools, so that these processes start quickly.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from vadcli.errors import DecodeError, ProbeError
from vadcli.types import DecoderName, VideoInfo
from vadcli.video.decoders import Frame, ReadRequest
from vadcli.video.supervisor import die_with_parent

PROBER = "tests.video.fake_decoders:probe"
READER = "tests.video.fake_decoders:Reader"


def write(path: Path, **story: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(story))
    return path


def probe(path: Path, *, fps: float | None = None) -> VideoInfo:
    try:
        story = json.loads(path.read_text())
    except ValueError as error:
        raise ProbeError(f"{path}: not a story", hint="write JSON") from error
    if story.get("do") == "segfault while probing":
        os.kill(os.getpid(), signal.SIGSEGV)
    rate = fps or story.get("fps", 10)
    pts = np.arange(story["rows"], dtype=np.int64) * 10 + 50
    width, height = story.get("size", (8, 6))
    return VideoInfo(path, "fake", "fake", 0, width, height, 0, Fraction(1, 100), pts, float(rate), len(pts) / rate)


class Reader:
    decoder = DecoderName.FFMPEG

    def __init__(self, info: VideoInfo, request: ReadRequest, *, decoder: str, threads: int) -> None:
        self.complaints = f"{decoder} {threads}"
        self._request = request
        self._story = json.loads(info.path.read_text())
        self._path = info.path

    def __iter__(self) -> Iterator[Frame]:
        story, wanted = self._story, self._request
        stop = story["rows"] if wanted.stop is None else min(wanted.stop, story["rows"])
        for row in range(wanted.start, stop):
            if row == story.get("at"):
                act(story["do"], self._path)
            ok = row not in story.get("lost", ())
            shape = (wanted.height, wanted.width, wanted.pixel_format.channels)
            image = np.full(shape, row % 251 + 1, np.uint8) if ok and row % wanted.interval == 0 else None
            time.sleep(story.get("row_s", 0))
            yield Frame(row, row * 10 + 50, ok, image)

    def close(self) -> None:
        if "when_read" in self._story:
            Path(self._story["when_read"]).touch()


_kept: list[bytearray] = []


def acting(path: Path) -> Path:
    """Return the file that a reader makes just before it does the `do` of a video. It contains the number of its process."""
    return Path(f"{path}.acting")


def enough(path: Path) -> Path:
    """Return the file whose creation ends the `do` "read on slowly" of a video."""
    return Path(f"{path}.enough")


def act(what: str, path: Path) -> None:
    acting(path).write_text(str(os.getpid()))
    if what in _ACTS:
        _ACTS[what]()
    elif what == "raise a decode error":
        raise DecodeError(f"{path}: the stream is cut", hint="record again")
    elif what == "raise anything":
        raise RuntimeError("what now")
    elif what == "grow":
        with path.open("a") as file:
            file.write(" ")
    elif what == "vanish":
        path.unlink()
    elif what == "read on slowly":
        _read_on(path, count=1 << 10, pause_s=0.02)
    elif what == "read on for ever":
        _read_on(Path("/dev/zero"), count=1 << 16, pause_s=0.0)
    else:
        raise AssertionError(what)


def _hang_with_a_child() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    subprocess.Popen(sleep, preexec_fn=partial(die_with_parent, os.getpid()))  # noqa: PLW1509 - as decoders start ffmpeg
    time.sleep(600)


def _exit() -> None:
    print("the library gave up", file=sys.stderr, flush=True)
    os._exit(7)


def _eat_memory() -> None:
    while True:
        _kept.append(bytearray(os.urandom(1 << 20) * 8))
        time.sleep(0.05)


_ACTS: dict[str, Callable[[], object]] = {
    "hang": lambda: time.sleep(600),
    "hang in C with the lock held": lambda: ctypes.PyDLL(None).sleep(600),
    "hang with a child": _hang_with_a_child,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": _exit,
    "eat memory": _eat_memory,
    "leak": lambda: _kept.append(bytearray(b"x") * (120 << 20)),
}


def _read_on(path: Path, *, count: int, pause_s: float) -> None:
    with path.open("rb", buffering=0) as file:
        while not enough(path).exists():
            file.read(count)
            time.sleep(pause_s)


class FirstDecordReader(Reader):
    """Pretends to be decord for `auto`, and ffmpeg otherwise.

    `do` happens only to decord, unless the JSON has `both`.
    """

    def __init__(self, info: VideoInfo, request: ReadRequest, *, decoder: str, threads: int) -> None:
        super().__init__(info, request, decoder=decoder, threads=threads)
        if decoder == "auto":
            self.decoder = DecoderName.DECORD
        elif not self._story.get("both"):
            self._story.pop("at", None)


class JumpingReader(Reader):
    """A reader that skips one row."""

    def __iter__(self) -> Iterator[Frame]:
        yield from (frame for frame in super().__iter__() if frame.index != 5)


class EmptyReader(Reader):
    """A reader that gives no row."""

    def __iter__(self) -> Iterator[Frame]:
        yield from ()


class ShortReader(Reader):
    """A reader that ends in the middle of the video without an error."""

    def __iter__(self) -> Iterator[Frame]:
        yield from (frame for frame in super().__iter__() if frame.index < self._story["rows"] // 2)
