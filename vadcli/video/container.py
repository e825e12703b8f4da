"""Opens a media file for demuxing, and only that file.

ffmpeg's libraries follow references: a concat script, an HLS or DASH playlist or an SDP text named .mp4 makes them open other
files and sockets. So the format that they detect is held against a list of real containers before its demuxer reads
anything (`format_whitelist` is checked between the two), and nothing but plain files can be opened (`protocol_whitelist`).
No frame is read here.

Which frames ffmpeg scales and hands over: one `select` expression and its exact twin in Python.
"""

from __future__ import annotations

import math
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np

from vadcli.errors import NoVideoStream, ProbeError, UnsafeContainer
from vadcli.types import IndexArray, VideoInfo

_VIDEO = (
    "mov matroska avi mpegts mpeg mpegvideo m4v flv live_flv asf asf_o ogg gif apng webp_anim ivf obu h264 hevc vvc evc h261 "
    "h263 vc1 vc1test mjpeg mjpeg_2000 smjpeg mxf gxf nut rm dv wtv yuv4mpegpipe dhav ifv luodat nsv nuv cavsvideo avs2 avs3 "
    "dirac pva lxf ty hxvs"
)
_SOUND = "mp3 aac wav flac aiff au caf amr ac3 eac3 dts ape tta w64 wv"  # opened to be able to say that they hold no video
_ALLOWED = ",".join((_VIDEO + " " + _SOUND).split())

_UNTIMED = frozenset(
    {"mpegvideo", "m4v", "h264", "hevc", "vvc", "evc", "h261", "h263", "vc1", "cavsvideo", "avs2", "avs3"}
    | {"dirac", "mjpeg", "mjpeg_2000"}
)
_DECODING_TIMES = frozenset({"avi", "asf", "asf_o"})
_REORDERING = frozenset({"h264", "hevc", "vc1", "wmv3"})
_JUMPING = frozenset({"mpegts", "mpeg", "flv", "live_flv", "dhav", "pva", "wtv", "ty"})

_log_level = threading.Lock()


def has_times(demuxer: str) -> bool:
    """False for elementary streams, which carry frames without times."""
    return demuxer not in _UNTIMED


def has_exact_pts(demuxer: str, codec: str) -> bool:
    """False where packets carry no time of presentation, so that a decoder's pts can be shifted against the probe's."""
    return demuxer not in _UNTIMED and not (demuxer in _DECODING_TIMES and codec in _REORDERING)


def can_jump(demuxer: str) -> bool:
    """True where files may be cut and joined anywhere, so that the clock may start anew; they store decoding times."""
    return demuxer in _JUMPING


def shown(path: Path) -> str:
    """The path as one printable line: control characters and bytes that are not UTF-8 are written as %XX."""
    return "".join(c if c.isprintable() else "".join(f"%{byte:02X}" for byte in os.fsencode(c)) for c in str(path))


def open_media(path: Path) -> Any:
    """An open `av.container.InputContainer` of this file; the caller closes it.

    Raises:
        UnsafeContainer: a playlist, script, manifest, session description or any other format that isn't a plain container.
        ProbeError: missing, unreadable, empty, not a regular file, or not a media file at all.
    """
    name = shown(path)
    try:
        status = path.stat()
    except OSError as error:
        raise ProbeError(f"{name}: can't be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ProbeError(f"{name}: not a regular file", hint="scan files or folders of images")
    if status.st_size == 0:
        raise ProbeError(f"{name}: the file is empty (0 bytes)")
    try:
        return _open(path)
    except av.error.FFmpegError as error:
        raise _refusal(path, name, error) from error


def _open(path: Path) -> Any:
    options = {"format_whitelist": _ALLOWED, "protocol_whitelist": "file"}
    return av.open(f"file:{path}", options=options, metadata_errors="replace")


def _refusal(path: Path, name: str, error: av.error.FFmpegError) -> ProbeError:
    """Why it can't be opened: ffmpeg's libraries say more in their log than in their error, so it is opened once more."""
    with _listening(av.logging.ERROR) as heard, suppress(av.error.FFmpegError):
        _open(path).close()
    for _, source, said in heard:
        if "not on whitelist" in said:
            return UnsafeContainer(f"{name}: not a video container: ffmpeg's format '{source}' is not allowed")
    detail = f" ({heard[-1][2].strip()})" if heard else ""
    if isinstance(error, av.error.InvalidDataError):
        return ProbeError(f"{name}: not a readable video file{detail}", hint="cut short, still being written, or no video")
    return ProbeError(f"{name}: can't be read: {error.strerror}{detail}")


@contextmanager
def _listening(level: int) -> Iterator[list[tuple[int, str, str]]]:
    """(level, who, what) of what ffmpeg's libraries log meanwhile, down to this level."""
    with _log_level:
        before = av.logging.get_level()
        av.logging.set_level(level)
        try:
            with av.logging.Capture(local=False) as heard:
                yield heard
        finally:
            av.logging.set_level(before)


def pick_stream(container: Any, name: str) -> Any:
    """The video stream that ffmpeg would pick: most pixels, with a bonus for the default one; cover pictures don't count.

    Raises:
        NoVideoStream: there is none.
        ProbeError: there is one, of a codec that is not known or without a size.
    """
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams if stream.type == "video" and not stream.disposition & cover]
    if not streams:
        raise NoVideoStream(f"{name}: no video stream")
    usable = [stream for stream in streams if stream.codec_context is not None and stream.codec_context.width > 0]
    if not usable:
        raise ProbeError(f"{name}: the video stream's codec or size can't be told", hint="it may be damaged or of a rare codec")
    return max(usable, key=lambda stream: (_preference(stream), -stream.index))


def _preference(stream: Any) -> int:
    default = bool(stream.disposition & av.stream.Disposition.default)
    return int(stream.codec_context.width) * int(stream.codec_context.height) + 5_000_000 * default


def display_matrix_degrees(container: Any, stream_index: int) -> float | None:
    """Degrees clockwise that the stream's display matrix asks for; None without one.

    PyAV shows the matrix nowhere else than in ffmpeg's own description of the file.
    """
    with _listening(av.logging.INFO):
        described = container.dumps_format()
    section = re.search(rf"Stream #0:{stream_index}\b(.*?)(?=\n  Stream #|\Z)", described, re.DOTALL)
    matrix = re.search(r"display ?matrix: rotation of (\S+) degrees", section[1], re.IGNORECASE) if section else None
    if not matrix:
        return None
    degrees = float(matrix[1])
    return 0.0 if math.isnan(degrees) else -degrees % 360.0  # a matrix that can't be a rotation reads nan


_INDEXED = frozenset({"mov", "matroska"})
_CLEAN_KEYFRAMES = frozenset({"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "vp8", "vp9", "av1", "mjpeg"})
_SAFE_ROUNDING = 0.4  # rows; nearer to a half, two machines could round differently


@dataclass(frozen=True)
class Grid:
    """Constant frame rate: a frame's row follows from its pts, so that a lost frame moves no other.

    Attributes:
        origin: pts of row 0.
        rows_a_tick: 1 / frame duration.
        interval: rows with index % interval == 0 are selected.
        first_pts: frames before are not selected.
    """

    origin: int
    rows_a_tick: float
    interval: int
    first_pts: int

    @property
    def expression(self) -> str:
        """For ffmpeg's select filter."""
        row = f"floor((pts-({self.origin}))*{self.rows_a_tick!r}+0.5)"
        return f"gte(pts,{self.first_pts})*not(mod({row},{self.interval}))"

    def takes(self, shown: int, pts: int | None) -> bool:
        """Whether ffmpeg selects the frame; ask once a frame, in order.

        Args:
            shown: how many frames were shown before it.
            pts: its time.
        """
        if pts is None or pts < self.first_pts:
            return False
        return math.floor((pts - self.origin) * self.rows_a_tick + 0.5) % self.interval == 0


@dataclass(frozen=True)
class Count:
    """Frames counted from the first that is shown.

    Attributes:
        first: frames before are not selected.
        interval: counted from the first frame shown.
    """

    first: int
    interval: int

    @property
    def expression(self) -> str:
        """For ffmpeg's select filter."""
        return f"gte(n,{self.first})*not(mod(n,{self.interval}))"

    def takes(self, shown: int, pts: int | None) -> bool:
        """As in `Grid`."""
        return shown >= self.first and shown % self.interval == 0


@dataclass
class Since:
    """Frames counted from a time on; ffmpeg keeps the count in the expression's first variable.

    Attributes:
        first_pts: frames before are neither counted nor selected.
        first_row: row of the first frame counted.
        interval: rows with index % interval == 0 are selected.
    """

    first_pts: int
    first_row: int
    interval: int
    _counted: int = field(default=0, repr=False)

    @property
    def expression(self) -> str:
        """For ffmpeg's select filter."""
        row = f"{self.first_row - 1}+ld(0)"
        return f"if(gte(pts,{self.first_pts}),st(0,ld(0)+1)*0+not(mod({row},{self.interval})),0)"

    def takes(self, shown: int, pts: int | None) -> bool:
        """As in `Grid`."""
        if pts is None or pts < self.first_pts:
            return False
        self._counted += 1
        return (self.first_row - 1 + self._counted) % self.interval == 0


Selection = Grid | Count | Since


def choose_selection(info: VideoInfo, interval: int, start: int, *, sought: bool, every_image: bool) -> Selection:
    """How ffmpeg is to select the sampled rows.

    Args:
        info: the video.
        interval: rows with index % interval == 0 are sampled.
        start: first row wanted.
        sought: True where ffmpeg begins at a keyframe instead of the beginning; only after `seek_row` allowed it.
        every_image: select all rows from `start` on, for files in which frames turned out to be lost or unforeseen.
    """
    timed = has_exact_pts(info.demuxer, info.codec) and len(info.shown_pts) == 0
    first_pts = int(info.pts[min(start, info.frames - 1)])
    grid = find_grid(info.pts, interval, first_pts) if timed and not every_image else None
    if grid is not None:
        return grid
    if sought:
        return Since(first_pts, start, 1 if every_image else interval)
    return Count(0, 1) if every_image else Count(start, interval)


def seek_row(info: VideoInfo, start: int) -> int | None:
    """The row at which decoding can begin so that rows from `start` on come out as in an undisturbed read.

    None where only the beginning will do: containers without an index of keyframes, times that repeat or jump back, codecs
    whose keyframes don't clear the decoder's memory.
    """
    trusted = info.demuxer in _INDEXED and info.codec in _CLEAN_KEYFRAMES and not info.edit_list and len(info.shown_pts) == 0
    if not trusted or start == 0:
        return None
    before = info.keyframes[info.keyframes <= min(start, info.frames - 1)]
    return int(before[-1]) if len(before) and before[-1] > 0 else None


def find_grid(pts: IndexArray, interval: int, first_pts: int) -> Grid | None:
    """The grid on which all these frames lie, or None where their rate varies."""
    if len(pts) < 2:
        return None
    span = int(pts[-1]) - int(pts[0])
    rows_a_tick = (len(pts) - 1) / span
    rows = (pts - pts[0]) * rows_a_tick
    if float(np.abs(rows - np.arange(len(pts))).max()) > _SAFE_ROUNDING:
        return None
    return Grid(int(pts[0]), rows_a_tick, interval, first_pts)
