"""Runs the ffmpeg program to decode frames (`FfmpegFrames`) and to add sound to a video (`add_sound`).

To decode, ffmpeg runs as a child process. It decodes and rotates all frames, and scales and pipes only the selected frames.

How the caller learns the times and the damage of all frames: with the option `-debug_ts`, ffmpeg writes a line to stderr for
each decoded frame, before the select filter runs. If ffmpeg has concealed damage in a frame, it writes a line "corrupt decoded
frame" before the line of this frame. Another thread of ffmpeg writes the description of the output at the same time, in pieces.
So a line may begin with half of another line. If a file ends too early, ffmpeg still exits with 0. So the caller compares the
frames with the probe's frames.

Why one thread after damage: with several threads, ffmpeg's damage flags are not exact. The flag of a frame may be copied before
the thread that finds the damage has set it. If frames consist of two fields, ffmpeg 5.1 also flags undamaged frames. But ffmpeg
always logs an error before it shows the damaged frame. So a decoder with several threads stops at the first error or flag
(`DamageFound`). The caller then continues with a decoder that has one thread, whose flags are exact.

How the sound stays synchronous: if a file was joined from several recordings, its clock restarts at the beginning of each
part. The rows of the video continue where the clock stopped (see `vadcli.video.timeline`). But the sound still has the times of
the file. So the times of each part of the sound are shifted. The shift in seconds is the same as for the frames of this part.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import queue
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import cast

import av
import ffmpeg
import numpy as np

from vadcli.errors import DecodeError, DecoderHung, NotFinished, ToolError, VideoError
from vadcli.types import ByteArray, PixelFormat, VideoInfo
from vadcli.video.container import open_media, path_text
from vadcli.video.decoders import DecodedFrame
from vadcli.video.sampling import Count, Selection
from vadcli.video.supervisor import die_with_parent
from vadcli.video.timeline import CLOCK_JUMP_S, LONGEST_GAP_S, MOST_ODD

_INSTALL_HINT = "run `pip install imageio-ffmpeg`, install ffmpeg, or set VADCLI_FFMPEG to the path of ffmpeg"


@functools.cache
def ffmpeg_path() -> str:
    """Return the path of the ffmpeg program.

    This is VADCLI_FFMPEG if it is set, otherwise the system's ffmpeg, otherwise the ffmpeg of imageio-ffmpeg.

    Raises:
        ToolError: no ffmpeg was found, or VADCLI_FFMPEG names a file that is not a program.
    """
    named = os.environ.get("VADCLI_FFMPEG")
    if named:
        program = shutil.which(named)
        if not program:
            raise ToolError(f"VADCLI_FFMPEG={named} is not a program that can be run", hint=_INSTALL_HINT)
        return program
    system = shutil.which("ffmpeg")
    if system:
        return system
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise ToolError("ffmpeg was not found", hint=_INSTALL_HINT) from error


@functools.cache
def ffmpeg_version() -> tuple[int, int]:
    """Return (major, minor) of ffmpeg's version; a build without a number counts as the newest version.

    Raises:
        ToolError: ffmpeg does not run.
    """
    path = ffmpeg_path()
    try:
        output = subprocess.run([path, "-hide_banner", "-version"], capture_output=True, timeout=30, check=True).stdout
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "no message"
        raise ToolError(f"{path} does not run: exit code {error.returncode}: {last}", hint=_INSTALL_HINT) from error
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolError(f"{path} does not run: {error}", hint=_INSTALL_HINT) from error
    match = re.search(rb"version n?(\d+)\.(\d+)", output)
    return (int(match[1]), int(match[2])) if match else (1000, 0)


# This text marks the line of a decoded frame. Before the first frame, ffmpeg also prints metadata of the file, which may
# contain the same text. So until the first frame, the text is accepted only at the start of a line; later, anywhere in a line.
_DECODED = re.compile(rb"(?:\[[^\]]*\] )*decoder -> .*?pts:(-?\d+|NOPTS)(?: .*\btime_base:(\d+)/(\d+))?")
_CORRUPT = re.compile(rb"(?:\[[^\]]*\] )*\[(?:warning|error|fatal)\] .*corrupt decoded frame")
_COMPLAINT = re.compile(rb"^\[(?!vost|graph|swscaler|out#)[^\]]*\].* ?\[(?:warning|error|fatal|panic)\]")
_DECODER_ERROR = re.compile(rb"^\[(\w+) @ 0x[0-9a-f]+\] \[(?:error|fatal|panic)\]")
_BEFORE_FIRST_KEY = re.compile(
    rb"non-existing PPS|no frame!|Invalid frame dimensions 0x0|[PSV]PS.*(?:out of range|does not exist)"
)
_NEVER_FLAG_DAMAGE = frozenset({b"mjpeg", b"cinepak", b"msvideo1", b"gif", b"ffv1", b"zmbv"})
"""Decoders that do not flag damaged frames.

They decode one frame after another, so the frame after an error message is the damaged frame.
"""
_KEPT_COMPLAINTS = 5
_LONGEST_COMPLAINT = 300
_LISTENER_END_S = 1.0
_F_SETPIPE_SZ = 1031  # F_SETPIPE_SZ of fcntl, Linux only
_PIPE_BYTES = 1 << 20
_PIXELS = {PixelFormat.GRAY: "gray", PixelFormat.RGB: "rgb24"}

_AUDIO_STREAM = re.compile(r"^\s*Stream #0:\d+.*?: Audio: (\w+)", re.MULTILINE)
_START = re.compile(r"^\s*Duration: .*\bstart: (-?[\d.]+)", re.MULTILINE)
_HIDDEN_AT_MOST_S = 0.05
_BIT_RATE = "160k"

_BUSY_ERRORS = frozenset({errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE})
_ENDED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_Decoded = tuple[int | None, bool, bool]  # pts, ok, after_error


class DamageFound(Exception):
    """Raised if a decoder with several threads finds an error.

    Such a decoder does not know which frames are damaged.
    """


class FfmpegFrames:
    """A `Backend` that reads one video with an ffmpeg process. Do not share it between threads.

    Args:
        info: the probe's description of the file.
        shape: (H, W, C) of the images.
        selection: which frames get an image.
        seek_pts: ffmpeg starts at the last keyframe that is not after this time; None starts at the beginning.
        threads: decoder threads; 0 lets ffmpeg choose. With 1, `ok` is False for exactly the damaged frames. With any other
            number, the iteration raises DamageFound before the first frame that may be damaged.
        skip: which frames ffmpeg leaves out: "noref" (frames to which no other frame refers), "nokey" (all but keyframes), or
            "" for none.

    Raises:
        ToolError: ffmpeg is missing or cannot be started.
        NotFinished: the machine has no memory or no free process for ffmpeg.
    """

    def __init__(
        self,
        info: VideoInfo,
        shape: tuple[int, int, int],
        selection: Selection,
        *,
        seek_pts: int | None = None,
        threads: int = 0,
        skip: str = "",
    ) -> None:
        self.complaints = ""
        self._path = info.path
        self._shape = shape
        self._selection = selection
        self._codec = info.codec.encode()
        self._time_base = info.time_base
        self._exact = threads == 1
        self._decoded: queue.SimpleQueue[list[_Decoded] | type[DamageFound] | None] = queue.SimpleQueue()
        command = build_command(info, shape, selection, seek_pts=seek_pts, threads=threads, skip=skip)
        environment = {key: value for key, value in os.environ.items() if key != "FFREPORT"}  # FFREPORT starts a log file
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=environment,
                start_new_session=True,  # Ctrl-C must reach only this process, and this process ends ffmpeg
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - takes no lock, see its docstring
            )
        except OSError as error:
            kind = NotFinished if error.errno in _BUSY_ERRORS else ToolError
            raise kind(f"{path_text(info.path)}: {command[0]} cannot be started: {error.strerror}") from error
        self._pipe = cast(io.RawIOBase, self._process.stdout)
        with suppress(ImportError, OSError):  # with room for a few images in the pipe, the two processes switch less often
            import fcntl

            fcntl.fcntl(self._pipe, _F_SETPIPE_SZ, _PIPE_BYTES)
        self._listener = threading.Thread(target=self._listen, args=(cast(io.RawIOBase, self._process.stderr),), daemon=True)
        self._listener.start()

    def __iter__(self) -> Iterator[DecodedFrame]:
        """Yield every frame that ffmpeg decodes, in presentation order."""
        for count, (pts, ok, after_error) in enumerate(self._announced()):
            selected = self._selection.takes(count, pts)
            image = self._read_image() if selected else None
            if selected and image is None:  # ffmpeg ended after it announced the frame and before it piped the image
                break
            yield DecodedFrame(pts, ok, selected, image, after_error)
        status = self._process.wait()
        if status in {code for number in _ENDED_FROM_OUTSIDE for code in (-number, 128 + number)}:
            name = path_text(self._path)
            raise NotFinished(f"{name}: ffmpeg was ended from outside (status {status}), perhaps because memory ran out")
        if status:
            self.complaints = "; ".join(filter(None, [self.complaints, f"ffmpeg ended with status {status}"]))

    def close(self) -> None:
        """Kill ffmpeg and wait until it has ended. A second call does nothing."""
        if self._pipe.closed:
            return
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # the group, because VADCLI_FFMPEG may be a script with children
            self._process.wait()
        self._pipe.close()
        self._listener.join(_LISTENER_END_S)

    def _announced(self) -> Iterator[_Decoded]:
        while (batch := self._decoded.get()) is not None:
            if not isinstance(batch, list):
                raise batch
            yield from batch

    def _read_image(self) -> ByteArray | None:
        image = np.empty(self._shape, np.uint8)
        rest = memoryview(image.data).cast("B")
        while rest:
            count = self._pipe.readinto(rest)
            if not count:
                return None
            rest = rest[count:]
        return image

    def _listen(self, stderr: io.RawIOBase) -> None:
        """Read stderr until ffmpeg ends.

        This runs in a separate thread, so that ffmpeg never waits for room in the pipe.
        """
        complaints: deque[bytes] = deque(maxlen=_KEPT_COMPLAINTS)
        begun = corrupt = failed = False
        unfinished = b""
        with stderr:
            while chunk := stderr.read(1 << 16):
                lines = (unfinished + chunk).split(b"\n")
                unfinished = lines.pop()
                batch: list[_Decoded] = []
                for line in lines:
                    decoded = _DECODED.search(line) if begun else _DECODED.match(line)
                    if decoded:
                        ok = not (corrupt or (failed and self._codec in _NEVER_FLAG_DAMAGE))
                        batch.append((self._ticks(decoded), ok, failed or corrupt))
                        begun, corrupt, failed = True, False, False
                        continue
                    damage = False
                    if _CORRUPT.match(line) or (begun and line.endswith(b"corrupt decoded frame")):
                        corrupt = damage = True
                    elif _COMPLAINT.search(line):
                        complaints.append(line[:_LONGEST_COMPLAINT])
                        text = "; ".join(complaint.decode(errors="replace") for complaint in complaints)
                        self.complaints = re.sub(r" @ 0x[0-9a-f]+", "", text)  # addresses differ from run to run
                        # Until the first keyframe, some errors are normal: they say that the decoder waits for a keyframe.
                        waits = not begun and _BEFORE_FIRST_KEY.search(line)
                        error = _DECODER_ERROR.match(line)
                        damage = not waits and error is not None and (error[1] == self._codec or error[1].startswith(b"lib"))
                        failed = failed or damage
                    if damage and not self._exact:  # pass on the frames before the damage, and end the iteration
                        self._decoded.put(batch)
                        self._decoded.put(DamageFound)
                        batch = []
                self._decoded.put(batch)
        self._decoded.put(None)

    def _ticks(self, decoded: re.Match[bytes]) -> int | None:
        """Return the frame's time in the probe's time base, with the rounding of ffmpeg's filters."""
        if decoded[1] == b"NOPTS":
            return None
        pts = int(decoded[1])
        if decoded[2] is None:
            return pts
        up = int(decoded[2]) * self._time_base.denominator
        down = int(decoded[3]) * self._time_base.numerator
        return pts if up == down else (2 * abs(pts) * up + down) // (2 * down) * (1 if pts >= 0 else -1)


def build_command(
    info: VideoInfo, shape: tuple[int, int, int], selection: Selection, *, seek_pts: int | None, threads: int, skip: str = ""
) -> list[str]:
    """Return the ffmpeg command line; for the arguments see `FfmpegFrames`."""
    height, width, channels = shape
    pixels = _PIXELS[PixelFormat.GRAY if channels == 1 else PixelFormat.RGB]
    before: dict[str, object] = {
        "f": info.demuxer,
        "protocol_whitelist": "file",
        **info.probe_options,
        "threads": threads,
        "copyts": None,
        # If the frame size changes, ffmpeg must not make new filters, because they would count frames from 0 again. The scale
        # filter adapts to the new size by itself.
        "reinit_filter": 0,
    }
    before |= {"skip_frame": skip} if skip else {}
    if seek_pts is not None:
        before |= {"ss": f"{float(seek_pts * info.time_base):.6f}", "noaccurate_seek": None, "seek_timestamp": 1}
    passthrough = {"fps_mode": "passthrough"} if ffmpeg_version() >= (5, 1) else {"vsync": "passthrough"}
    # The selection is in the probe's time base, but the decoder may use another time base.
    timed = ffmpeg.input("file:", **before)[str(info.stream_index)].filter("settb", str(info.time_base))
    picked = timed.filter("select", selection.expression)
    counted = picked.filter("setpts", "N")  # frame numbers replace times, because the muxer rejects times that jump back
    scaled = counted.filter("scale", width, height, flags="bilinear", out_range="full").filter("format", pixels)
    # Without map_metadata=-1, ffmpeg prints texts from the file between the lines that announce frames.
    output = ffmpeg.output(scaled, "pipe:1", format="rawvideo", map_metadata=-1, **passthrough)
    quiet = ("-nostdin", "-hide_banner", "-nostats", "-loglevel", "repeat+level+info", "-debug_ts")
    command: list[str] = output.global_args(*quiet).compile(cmd=ffmpeg_path())
    command[command.index("file:")] = f"file:{info.path}"  # ffmpeg-python fails on names that are not UTF-8
    return command


def check_ffmpeg() -> None:
    """Raise ToolError if ffmpeg cannot even decode two gray frames.

    This check shows whether ffmpeg or the video is the cause of a failure.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gray.y4m"
        path.write_bytes(b"YUV4MPEG2 W16 H16 F25:1 C420jpeg\n" + 2 * (b"FRAME\n" + bytes(16 * 16 * 3 // 2)))
        pts = np.arange(2, dtype=np.int64)
        info = VideoInfo(path, "yuv4mpegpipe", "rawvideo", 0, 16, 16, 0, Fraction(1, 25), pts, 25.0, 0.08)
        frames = FfmpegFrames(info, (16, 16, 1), Count(0, 1), threads=1)
        try:
            shown = len(list(frames))
        except NotFinished:
            shown = 0
        finally:
            frames.close()
    if not shown:
        text = f"{ffmpeg_path()} decodes nothing: {frames.complaints or 'no message'}"
        raise ToolError(text, hint=_INSTALL_HINT)


def clock_shifts(info: VideoInfo) -> tuple[float, ...]:
    """Return, for each part of a video, by how many seconds the times of its rows exceed the times in the file.

    A part ends where the clock restarts or jumps. The result is empty if this never happens. A few frames with odd times do
    not count as a part.
    """
    if not len(info.shown_pts):
        return ()
    shifts = (info.pts - info.shown_pts) * float(info.time_base)
    runs = np.split(shifts, np.flatnonzero(np.abs(np.diff(shifts)) > CLOCK_JUMP_S) + 1)
    per_part: list[float] = []
    for run in runs:
        shift = float(np.median(run))
        if len(run) > MOST_ODD and (not per_part or abs(shift - per_part[-1]) > CLOCK_JUMP_S):
            per_part.append(shift)
    return tuple(per_part) if len(per_part) > 1 or any(abs(shift) > CLOCK_JUMP_S for shift in per_part) else ()


@dataclass(frozen=True)
class Sound:
    """A video's first audio stream.

    Attributes:
        codec: ffmpeg's name of the codec.
        earliest_s: time of the file's earliest packet; the sound starts there or later.
        shifts_s: the seconds by which each part of the sound must be moved, if the clock restarts in the file; empty if not.
        problem: a message if a part of the sound can't be used; empty if all of it can be used.
    """

    codec: str
    earliest_s: float
    shifts_s: tuple[float, ...] = ()
    problem: str = ""


def find_sound(info: VideoInfo, *, timeout_s: float = 60.0) -> Sound | None:
    """Return the first audio stream in the file's header; None if the video has no sound.

    If the clock restarts in the file, the whole file is read, to find where each part of the sound begins.

    Raises:
        DecoderHung: the header could not be read within the time limit.
    """
    if info.images:
        return None
    described = run_ffmpeg(source_arguments(info), info, verbosity="info", timeout_s=timeout_s).stderr
    audio, start = _AUDIO_STREAM.search(described), _START.search(described)
    if not audio:
        return None
    shifts, problem = clock_shifts(info), ""
    if shifts:
        parts, last_s = 1, None
        with suppress(VideoError, av.error.FFmpegError), open_media(info.path) as opened:
            for packet in opened.demux(opened.streams.audio[0]):
                if packet.pts is None:
                    continue
                at_s = float(packet.pts * packet.time_base)
                parts += last_s is not None and not -CLOCK_JUMP_S <= at_s - last_s <= LONGEST_GAP_S
                last_s = at_s
        if parts != len(shifts):
            problem = (
                f"the sound is right only until the clock restarts: {len(shifts)} parts of the video, {parts} of the sound"
            )
    return Sound(audio[1], float(start[1]) if start else 0.0, shifts, problem)


def add_sound(
    silent_video: Path,
    target: Path,
    *,
    info: VideoInfo,
    sound: Sound,
    start_s: float,
    duration_s: float,
    timeout_s: float = 60.0,
) -> None:
    """Write an MP4 of a silent video and the source's first audio stream, synchronized as in the source.

    The sound is copied if it is AAC and almost nothing has to be cut off at the start. Otherwise, the sound is encoded again as
    AAC. Sound before the first frame is left out.

    Args:
        silent_video: an MP4 without sound that starts at time 0.
        target: the file to write.
        info: the video that the sound comes from.
        sound: the result of `find_sound`.
        start_s: at which time of the source the silent video starts, in seconds from the source's first pts.
        duration_s: duration of the silent MP4.
        timeout_s: the time limit in seconds, in addition to `duration_s`.

    Raises:
        DecodeError: ffmpeg failed; the message has ffmpeg's last line.
        DecoderHung: ffmpeg took too long.
    """
    zero_s = float(info.pts[0] * info.time_base) + start_s
    may_seek = start_s > 0 and not sound.shifts_s  # if the clock restarts, this time may occur in several parts
    seek = ["-noaccurate_seek", "-seek_timestamp", "1", "-ss", f"{zero_s:.6f}"] if may_seek else []
    # A copy contains sound from before the first frame. An edit list hides this sound, but some players ignore edit lists.
    may_copy = sound.codec == "aac" and not sound.shifts_s and zero_s - sound.earliest_s < _HIDDEN_AT_MOST_S
    # The filters pad or trim the sound, so that it starts at time 0 and needs no edit list.
    filters = "atrim=start=0,aresample=async=1:first_pts=0"
    if sound.shifts_s:  # move each part of the sound
        restarted = f"gt(N,0)*max(lt(T,ld(1)-{CLOCK_JUMP_S}),gt(T,ld(1)+{LONGEST_GAP_S}))"
        steps = np.diff(sound.shifts_s).tolist()
        moved = "".join(f"+gte(ld(0),{part + 1})*{step:.6f}" for part, step in enumerate(steps))
        shifting = f"asetpts='st(0,ld(0)+{restarted});st(1,T);PTS+({sound.shifts_s[0]:.6f}{moved})/TB'"
        filters = f"{shifting},{filters}"
    encode = ["-c:a", "aac", "-b:a", _BIT_RATE, "-ac", "2", "-af", filters]
    arguments = [
        *("-i", f"file:{silent_video}"),
        *seek,
        *("-itsoffset", f"{-zero_s:.6f}"),
        *source_arguments(info),
        *("-map", "0:v:0", "-map", "1:a:0", "-c:v", "copy"),
        *(["-c:a", "copy"] if may_copy else encode),
        *("-copyts", "-t", f"{duration_s:.6f}", "-movflags", "+faststart", "-f", "mp4", f"file:{target}"),
    ]
    done = run_ffmpeg(["-y", *arguments], info, verbosity="error", timeout_s=timeout_s + duration_s)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ffmpeg ended with status {done.returncode}"]
        raise DecodeError(f"{info.path}: the sound can't be read; ffmpeg reports: {lines[-1]}")


def source_arguments(info: VideoInfo) -> list[str]:
    """Return ffmpeg's arguments for reading this file: the demuxer, the path, and the rule to open only plain files."""
    return ["-protocol_whitelist", "file", "-f", info.demuxer.split(",")[0], "-i", f"file:{info.path}"]


def run_ffmpeg(
    arguments: list[str], info: VideoInfo, *, verbosity: str, timeout_s: float, what: str = "read no sound"
) -> subprocess.CompletedProcess[str]:
    """Run ffmpeg with these arguments, and return its exit code and messages.

    Args:
        arguments: ffmpeg's command line after the global options, which this function adds.
        info: the video that ffmpeg reads.
        verbosity: ffmpeg's log level.
        timeout_s: time limit in seconds.
        what: words for the error message "ffmpeg WHAT within 60 s", such as "read no sound".

    Raises:
        DecoderHung: ffmpeg took longer than `timeout_s`.
    """
    command = [ffmpeg_path(), "-nostdin", "-hide_banner", "-v", f"repeat+{verbosity}", *arguments]
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
    except subprocess.TimeoutExpired as error:
        raise DecoderHung(f"{info.path}: ffmpeg {what} within {timeout_s:.0f} s") from error
