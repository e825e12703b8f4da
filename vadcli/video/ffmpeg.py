"""Child processes: they don't outlive their parent, and what they hold can be told.

Which ffmpeg is called.

ffmpeg as a decoder: one child process that decodes, turns, selects, scales and pipes raw pictures.

Every frame that ffmpeg decodes is announced on its stderr (`-debug_ts`) with its time, before the select filter; a frame that
it concealed is announced as corrupt by the same thread, in the line before. The line may begin with half a line of another
thread's: ffmpeg describes its output, in pieces, while it decodes on. So times and damage of all frames come along
although only the selected ones are scaled and piped. ffmpeg exits with 0 on files that end too early: what came is compared
with the probe by the caller.

A decoder with several threads may copy a frame's damage flag before the thread that finds the damage has set it, but it
never shows the frame before the error is logged. So a decoder with threads gives up at the first error (`DamageFound`), and the
caller goes on with one thread, where the flags are exact.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import ffmpeg
import numpy as np
import psutil

from vadcli.errors import DecodeError
from vadcli.types import ByteArray, PixelFormat, VideoInfo
from vadcli.video.container import Selection, shown
from vadcli.video.images import Shown

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when its parent dies, even by SIGKILL; call it first thing in the child.

    Fit for `preexec_fn`: it takes no lock and imports nothing. On systems without the call it does nothing, and a child
    there ends by the broken pipe instead. The parent is the thread that made the child: start children from threads
    that live as long as the children are wanted.

    Args:
        parent: its process id where the caller knows it; a parent that died before the call is then noticed too.
    """
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:  # it died before the call: nobody would send the signal
        os._exit(1)


def private_mib(process: psutil.Process) -> float:
    """Resident MiB of a process that it shares with no other, so neither libraries nor shared memory; 0 if it is gone."""
    try:
        memory = process.memory_info()
    except (psutil.Error, OSError):
        return 0.0
    return float(memory.rss - getattr(memory, "shared", 0)) / 2**20


def families(elders: Sequence[psutil.Process]) -> list[list[psutil.Process]]:
    """Each process with all that it started, directly or not, and that still runs, itself first.

    One look at the machine's processes for all of them: looking takes longest, and beside threads that feed a GPU it counts.
    """
    children: dict[int, list[psutil.Process]] = defaultdict(list)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            children[process.ppid()].append(process)
    return [[elder, *_descendants(elder.pid, children)] for elder in elders]


def _descendants(pid: int, children: dict[int, list[psutil.Process]]) -> list[psutil.Process]:
    found, pids, seen = [], [pid], {pid}
    while pids:
        for child in children.get(pids.pop(), ()):
            if child.pid not in seen:  # numbers given anew while looking could close a circle
                seen.add(child.pid)
                found.append(child)
                pids.append(child.pid)
    return found


_INSTALL_HINT = "pip install imageio-ffmpeg, install ffmpeg, or set VADCLI_FFMPEG to its path"


@functools.cache
def ffmpeg_path() -> str:
    """The ffmpeg to call: VADCLI_FFMPEG, else the system's, else the one that imageio-ffmpeg brings.

    Raises:
        DecodeError: there is none, or VADCLI_FFMPEG names a file that can't be run.
    """
    named = os.environ.get("VADCLI_FFMPEG")
    if named:
        found = shutil.which(named)
        if not found:
            raise DecodeError(f"VADCLI_FFMPEG={named} is not a program that can be run", hint=_INSTALL_HINT)
        return found
    system = shutil.which("ffmpeg")
    if system:
        return system
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise DecodeError("no ffmpeg found", hint=_INSTALL_HINT) from error


@functools.cache
def ffmpeg_version() -> tuple[int, int]:
    """(major, minor) of `ffmpeg_path()`; builds from git without a number count as the newest.

    Raises:
        DecodeError: it can't be run.
    """
    path = ffmpeg_path()
    try:
        said = subprocess.run([path, "-hide_banner", "-version"], capture_output=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise DecodeError(f"{path} does not run: {error}", hint=_INSTALL_HINT) from error
    match = re.search(rb"version n?(\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else (1000, 0)


# Searched for, not matched, once a frame has come: until then lines may tell of the file, in its own words.
_DECODED = re.compile(rb"(?:\[[^\]]*\] )*decoder -> .*?pts:(-?\d+|NOPTS)")
_CORRUPT = re.compile(rb"(?:\[[^\]]*\] )*\[(?:warning|error|fatal)\] .*corrupt decoded frame")
_COMPLAINT = re.compile(rb"^\[(?!vost|graph|swscaler|out#)[^\]]*\].* ?\[(?:warning|error|fatal|panic)\]")
_DECODER_ERROR = re.compile(rb"^\[(\w+) @ 0x[0-9a-f]+\] \[(?:error|fatal|panic)\]")
_BEFORE_FIRST_KEY = re.compile(
    rb"non-existing PPS|no frame!|Invalid frame dimensions 0x0|[PSV]PS.*(?:out of range|does not exist)"
)
_KEPT_COMPLAINTS = 5
_LONGEST_COMPLAINT = 300
_LISTENER_END_S = 1.0
_F_SETPIPE_SZ = 1031  # fcntl; Linux
_PIPE_BYTES = 1 << 20
_PIXELS = {PixelFormat.GRAY: "gray", PixelFormat.RGB: "rgb24"}

_Decoded = tuple[int | None, bool]  # pts, ok


class DamageFound(Exception):
    """A decoder with several threads met an error: which frames are damaged can be told with one thread only."""


class FfmpegFrames:
    """A Backend over one ffmpeg process. Not safe to share between threads.

    Args:
        info: what the probe says of the file.
        shape: (H, W, C) of the images wanted.
        selection: which frames come with an image.
        seek_pts: begin at the keyframe at or before this time; None begins at the beginning.
        threads: decoder threads; 0 lets ffmpeg choose. With 1, frames are flagged exactly; else iterating raises DamageFound
            before the first frame that may be damaged.

    Raises:
        DecodeError: ffmpeg is missing or can't be started.
    """

    def __init__(
        self,
        info: VideoInfo,
        shape: tuple[int, int, int],
        selection: Selection,
        *,
        seek_pts: int | None = None,
        threads: int = 0,
    ) -> None:
        self.complaints = ""
        self._shape = shape
        self._selection = selection
        self._codec = info.codec.encode()
        self._exact = threads == 1
        self._decoded: queue.SimpleQueue[list[_Decoded] | type[DamageFound] | None] = queue.SimpleQueue()
        command = build_command(info, shape, selection, seek_pts=seek_pts, threads=threads)
        environment = {key: value for key, value in os.environ.items() if key != "FFREPORT"}  # would write a log file
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the one who reads, who ends ffmpeg in his own time
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - takes no lock, see its docstring
            )
        except OSError as error:
            raise DecodeError(f"{shown(info.path)}: {command[0]} can't be started: {error.strerror}") from error
        self._pictures = cast(io.RawIOBase, self._process.stdout)
        _widen(self._pictures)
        self._listener = threading.Thread(target=self._listen, args=(cast(io.RawIOBase, self._process.stderr),), daemon=True)
        self._listener.start()

    def __iter__(self) -> Iterator[Shown]:
        """What ffmpeg decodes, in the order of presentation."""
        for count, (pts, ok) in enumerate(self._announced()):
            selected = self._selection.takes(count, pts)
            image = self._read_picture() if selected else None
            if selected and image is None:  # ffmpeg ended between decoding the frame and handing it over
                break
            yield Shown(pts, ok, selected, image)
        status = self._process.wait()
        if status:
            self.complaints = "; ".join(filter(None, [self.complaints, f"ffmpeg ended with status {status}"]))

    def close(self) -> None:
        """Kill ffmpeg and wait for it; a second call does nothing."""
        if self._pictures.closed:
            return
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # the group: a wrapper script may have children of its own
            self._process.wait()
        self._pictures.close()
        self._listener.join(_LISTENER_END_S)

    def _announced(self) -> Iterator[_Decoded]:
        while (batch := self._decoded.get()) is not None:
            if not isinstance(batch, list):
                raise batch
            yield from batch

    def _read_picture(self) -> ByteArray | None:
        image = np.empty(self._shape, np.uint8)
        rest = memoryview(image.data).cast("B")
        while rest:
            got = self._pictures.readinto(rest)
            if not got:
                return None
            rest = rest[got:]
        return image

    def _listen(self, stderr: io.RawIOBase) -> None:
        """Drain stderr so that ffmpeg never waits for a reader; runs in a thread of its own until ffmpeg has ended."""
        complaints: deque[bytes] = deque(maxlen=_KEPT_COMPLAINTS)
        begun = corrupt = False
        unfinished = b""
        with stderr:
            while chunk := stderr.read(1 << 16):
                lines = (unfinished + chunk).split(b"\n")
                unfinished = lines.pop()
                batch: list[_Decoded] = []
                for line in lines:
                    decoded = _DECODED.search(line) if begun else _DECODED.match(line)
                    if decoded:
                        batch.append((None if decoded[1] == b"NOPTS" else int(decoded[1]), not corrupt))
                        begun, corrupt = True, False
                    elif _CORRUPT.match(line) or (begun and line.endswith(b"corrupt decoded frame")):
                        corrupt = True
                    elif _COMPLAINT.search(line):
                        complaints.append(line[:_LONGEST_COMPLAINT])
                        self.complaints = _readable(complaints)
                        waits = not begun and _BEFORE_FIRST_KEY.search(line)  # a recording cut at any packet
                        if not self._exact and not waits and self._is_damage(line):
                            self._decoded.put(batch)
                            self._decoded.put(DamageFound)
                            batch = []
                self._decoded.put(batch)
        self._decoded.put(None)

    def _is_damage(self, line: bytes) -> bool:
        said = _DECODER_ERROR.match(line)
        return said is not None and (said[1] == self._codec or said[1].startswith(b"lib"))


def build_command(
    info: VideoInfo, shape: tuple[int, int, int], selection: Selection, *, seek_pts: int | None, threads: int
) -> list[str]:
    """The ffmpeg command line; arguments as in `FfmpegFrames`."""
    height, width, channels = shape
    pixels = _PIXELS[PixelFormat.GRAY if channels == 1 else PixelFormat.RGB]
    before: dict[str, object] = {
        "f": info.demuxer,
        "protocol_whitelist": "file",
        "threads": threads,
        "copyts": None,
        "reinit_filter": 0,  # a new graph at a change of size would count frames from 0 again; scale follows the change itself
    }
    if seek_pts is not None:
        before |= {"ss": f"{float(seek_pts * info.time_base):.6f}", "noaccurate_seek": None, "seek_timestamp": 1}
    passthrough = {"fps_mode": "passthrough"} if ffmpeg_version() >= (5, 1) else {"vsync": "passthrough"}
    picked = ffmpeg.input("file:", **before)[str(info.stream_index)].filter("select", selection.expression)
    counted = picked.filter("setpts", "N")  # times that jump back would trouble the muxer
    scaled = counted.filter("scale", width, height, flags="bilinear", out_range="full").filter("format", pixels)
    # Without the file's own words, which would come among the frames' lines.
    output = ffmpeg.output(scaled, "pipe:1", format="rawvideo", map_metadata=-1, **passthrough)
    quiet = ("-nostdin", "-hide_banner", "-nostats", "-loglevel", "repeat+level+info", "-debug_ts")
    command: list[str] = output.global_args(*quiet).compile(cmd=ffmpeg_path())
    command[command.index("file:")] = f"file:{info.path}"  # ffmpeg-python can't take names that are not UTF-8
    return command


def _widen(pipe: io.RawIOBase) -> None:
    """A pipe that holds a few pictures spares switches between the processes; a refusal does no harm."""
    try:
        import fcntl

        fcntl.fcntl(pipe, _F_SETPIPE_SZ, _PIPE_BYTES)
    except (ImportError, OSError):
        pass


def _readable(lines: deque[bytes]) -> str:
    """Complaints without the addresses that change from run to run."""
    text = "; ".join(line.decode(errors="replace") for line in lines)
    return re.sub(r" @ 0x[0-9a-f]+", "", text)
