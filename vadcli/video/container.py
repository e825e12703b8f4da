"""Opens a media file safely, and chooses which of its frames ffmpeg delivers. Decodes nothing.

Opening: ffmpeg's libraries follow references in a file. If a concat script, an HLS or DASH playlist or an SDP text is named
.mp4, they open other files and sockets. Two options prevent this. With `format_whitelist`, the detected format must be in a
list of real containers before its demuxer reads anything. With `protocol_whitelist`, ffmpeg can open only plain files.

Selecting: a `Selection` has the same rule in two forms: as an expression for ffmpeg's `select` filter, and in Python. The
caller uses the Python form to know which frames come with an image.
"""

from __future__ import annotations

import math
import os
import re
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av
import av.logging
import numpy as np

from vadcli.errors import NoVideoStream, ProbeError, UnsafeContainer
from vadcli.types import VideoInfo
from vadcli.types.wall_clock import EARLIEST, iso, parse_created

_VIDEO = (
    "mov matroska avi mpegts mpeg mpegvideo m4v flv live_flv asf asf_o ogg gif apng webp_anim ivf obu h264 hevc vvc evc h261 "
    "h263 vc1 vc1test mjpeg mjpeg_2000 smjpeg mxf gxf nut rm dv wtv yuv4mpegpipe dhav ifv luodat nsv nuv cavsvideo avs2 avs3 "
    "dirac pva lxf ty hxvs"
)
_SOUND = "mp3 aac wav flac aiff au caf amr ac3 eac3 dts ape tta w64 wv"  # allowed so that the error can say "no video stream"
_ALLOWED = ",".join((_VIDEO + " " + _SOUND).split())

_UNTIMED = frozenset(
    {"mpegvideo", "m4v", "h264", "hevc", "vvc", "evc", "h261", "h263", "vc1", "cavsvideo", "avs2", "avs3"}
    | {"dirac", "mjpeg", "mjpeg_2000"}
)
_DECODING_TIMES = frozenset({"avi", "asf", "asf_o"})
_REORDERING = frozenset({"h264", "hevc", "vc1", "wmv3"})
_JUMPING = frozenset({"mpegts", "mpeg", "flv", "live_flv", "dhav", "pva", "wtv", "ty"})  # decoding times show restarts

_LONGER_LOOK = {"probesize": str(256 << 20), "analyzeduration": "3600000000", "formatprobesize": str(16 << 20)}
"""The limits of a second try to open a file: bytes and microseconds to find the streams, bytes to detect the format.

The first try reads 5 MB. This is too little if, for example, the recording begins inside a long group of pictures, or its video
starts long after its sound.
"""
_MOTION_JPEG_PARTS = frozenset({"jpeg_pipe", "mpjpeg"})
"""ffmpeg's names for a sequence of JPEG images, raw or as a multipart stream. The demuxer `mjpeg` reads both."""
_MOTION_JPEG_SUFFIXES = frozenset({".mjpeg", ".mjpg"})
_PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})

_log_level = threading.Lock()


def has_times(demuxer: str) -> bool:
    """Whether the file stores times. Elementary streams (codec data without a container) store none."""
    return demuxer not in _UNTIMED


def has_exact_pts(demuxer: str, codec: str) -> bool:
    """Whether packets have presentation times. If not, a decoder may report other times than the probe."""
    return demuxer not in _UNTIMED and not (demuxer in _DECODING_TIMES and codec in _REORDERING)


def can_jump(demuxer: str) -> bool:
    """Whether the clock may restart within a file: files in this format are often cut and joined."""
    return demuxer in _JUMPING


def printable(path: Path) -> str:
    """Return the path as one printable line: control characters and bytes that are not UTF-8 become %XX."""
    return "".join(c if c.isprintable() else "".join(f"%{byte:02X}" for byte in os.fsencode(c)) for c in str(path))


def open_media(path: Path, *, heard: list[tuple[int, str, str]] | None = None) -> Any:
    """Return an opened `av.container.InputContainer`; the caller closes it.

    ffmpeg's messages are appended to `heard`.

    Raises:
        UnsafeContainer: the file is not a plain container but, for example, a playlist, script or session description.
        ProbeError: the file is missing, unreadable, empty, not a regular file, or not a media file.
    """
    name = printable(path)
    try:
        status = path.stat()
    except OSError as error:
        raise ProbeError(f"{name}: can't be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ProbeError(f"{name}: not a regular file", hint="scan files or folders of images")
    if status.st_size == 0:
        raise ProbeError(f"{name}: the file is empty (0 bytes)")
    with listening() as messages:
        try:
            opened = _open(path)
            if not _is_known(opened):
                opened.close()
                opened = _open(path, _LONGER_LOOK)
        except av.error.FFmpegError as error:
            opened = _open_after(path, name, error, messages)
    if heard is not None:
        heard += messages
    return opened


def longer_look(container: Any) -> dict[str, str]:
    """Return the options of `_LONGER_LOOK` that were needed to open a container; empty if none were needed."""
    return {name: value for name, value in container.options.items() if name in ("probesize", "analyzeduration")}


def _open(path: Path, more: Mapping[str, str] = MappingProxyType({}), *, demuxer: str | None = None) -> Any:
    options = {"format_whitelist": _ALLOWED, "protocol_whitelist": "file", **more}
    return av.open(f"file:{path}", format=demuxer, options=options, metadata_errors="replace")


def _is_known(container: Any) -> bool:
    """Whether ffmpeg has read enough: there is a video stream, and its size is known."""
    videos = [stream for stream in container.streams if stream.type == "video"]
    if not videos:
        return container.format.name not in _JUMPING and bool(len(container.streams))
    return any(stream.codec_context is not None and stream.codec_context.width > 0 for stream in videos)


def _open_after(path: Path, name: str, error: av.error.FFmpegError, heard: Sequence[tuple[int, str, str]]) -> Any:
    """Try again to open a file that ffmpeg did not recognize. If this fails, too, raise an error."""
    heard = list(heard)  # a copy, because the next attempts log messages, too
    refused = [source for _, source, message in heard if "not on whitelist" in message]
    with suppress(av.error.FFmpegError):
        if any(source in _MOTION_JPEG_PARTS for source in refused) and path.suffix.lower() not in _PICTURE_SUFFIXES:
            return _open(path, demuxer="mjpeg")
        if not refused and isinstance(error, av.error.InvalidDataError):
            named = "mjpeg" if path.suffix.lower() in _MOTION_JPEG_SUFFIXES else None
            opened = _open(path, _LONGER_LOOK, demuxer=named)
            if named is None or _is_known(opened):
                return opened
            opened.close()
    if refused:
        raise UnsafeContainer(f"{name}: not a video container: ffmpeg's format '{refused[0]}' is not allowed") from error
    detail = f" ({heard[-1][2].strip()})" if heard else ""  # the message is more exact than the error
    if isinstance(error, av.error.InvalidDataError | av.error.EOFError):
        hint = "it may be cut short, unfinished, or not a video"
        raise ProbeError(f"{name}: not a readable video file{detail}", hint=hint) from error
    raise ProbeError(f"{name}: can't be read: {error.strerror}{detail}") from error


@contextmanager
def listening(level: int = av.logging.ERROR) -> Iterator[list[tuple[int, str, str]]]:
    """Collect messages of ffmpeg's libraries inside the `with` block, as (level, source, message)."""
    with _log_level:
        before = av.logging.get_level()
        av.logging.set_level(level)
        try:
            with av.logging.Capture(local=False) as heard:
                yield heard
        finally:
            av.logging.set_level(before)


def pick_stream(container: Any, name: str) -> Any:
    """Return the video stream that ffmpeg would pick; never a cover picture.

    This is the stream with the most pixels; the default stream gets a bonus.

    Raises:
        NoVideoStream: the file has no video stream.
        ProbeError: the codec or the size of the video stream is unknown.
    """
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams if stream.type == "video" and not stream.disposition & cover]
    if not streams:
        raise NoVideoStream(f"{name}: no video stream")
    usable = [stream for stream in streams if stream.codec_context is not None and stream.codec_context.width > 0]
    if not usable:
        hint = "it may be damaged or use a rare codec"
        raise ProbeError(f"{name}: the codec or the size of the video stream is unknown", hint=hint)

    def preference(stream: Any) -> tuple[int, int]:
        pixels = int(stream.codec_context.width) * int(stream.codec_context.height)
        is_default = bool(stream.disposition & av.stream.Disposition.default)
        return pixels + 5_000_000 * is_default, -stream.index

    return max(usable, key=preference)


def video_packets(container: Any) -> Iterator[Any]:
    """Yield the packets of all video streams in file order, also of streams that begin later."""
    unread = set()
    for stream in container.streams:
        if stream.type != "video" or stream.disposition & av.stream.Disposition.attached_pic:
            unread.add(stream.index)
            if hasattr(stream, "discard"):
                stream.discard = av.stream.Discard.all
    with suppress(IndexError):  # PyAV raises this error at the end of a file if PyAV did not list one of the streams
        for packet in container.demux():
            if packet.stream_index not in unread:
                yield packet


def unlisted_streams(container: Any) -> int:
    """Return how many video streams have begun inside the file and are not listed in the container."""
    with listening(av.logging.INFO):
        described = container.dumps_format()
    listed = re.findall(r"^  Stream #0:(\d+)\b.*?: Video:", described, re.MULTILINE)
    return sum(int(index) >= len(container.streams) for index in listed)


def describe(stream: Any) -> str:
    """Return codec and size of a video stream, like `h264 640x480`."""
    context = stream.codec_context
    return f"{context.name} {context.width}x{context.height}" if context is not None and context.width else "unknown size"


def recording_start(container: Any, stream: Any, duration_s: float) -> str:
    """Return when the recording began, according to the container; "" if the container does not say."""
    tags = container.metadata
    # Apple's own tag has the time zone. An export keeps this tag, but writes a new creation_time.
    if apple := tags.get("com.apple.quicktime.creationdate"):
        return str(apple)
    created = str(tags.get("creation_time") or stream.metadata.get("creation_time") or "")
    ended = parse_created(created) if any(name.startswith("com.android.") for name in tags) else None
    if ended is None or ended.tzinfo is None or ended < EARLIEST:
        return created
    return iso(ended - timedelta(seconds=duration_s))  # Android writes the time at which a recording ends


def display_matrix_degrees(container: Any, stream_index: int) -> float | None:
    """Return the stream's clockwise rotation in degrees; None if it has no display matrix."""
    with listening(av.logging.INFO):
        described = container.dumps_format()  # PyAV gives no direct access to the matrix
    section = re.search(rf"Stream #0:{stream_index}\b(.*?)(?=\n  Stream #|\Z)", described, re.DOTALL)
    matrix = re.search(r"display ?matrix: rotation of (\S+) degrees", section[1], re.IGNORECASE) if section else None
    if not matrix:
        return None
    degrees = float(matrix[1])
    return 0.0 if math.isnan(degrees) else -degrees % 360.0  # ffmpeg prints nan for a matrix that is not a rotation


_INDEXED = frozenset({"mov", "matroska"})
_CLEAN_KEYFRAMES = frozenset({"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "vp8", "vp9", "av1", "mjpeg"})
_SAFE_ROUNDING = 0.4  # in rows; at a distance near 0.5, two machines could round to different rows


@dataclass(frozen=True)
class TimeGrid:
    """Selects frames by their pts, if the frame rate is constant. Lost frames do not shift other rows.

    Attributes:
        origin: pts of row 0.
        rows_per_tick: 1 / (duration of a frame in ticks of the time base).
        interval: rows with index % interval == 0 are selected.
        first_pts: frames before this time are not selected.
    """

    origin: int
    rows_per_tick: float
    interval: int
    first_pts: int

    @property
    def expression(self) -> str:
        """The expression for ffmpeg's select filter."""
        row = f"floor((pts-({self.origin}))*{self.rows_per_tick!r}+0.5)"
        return f"gte(pts,{self.first_pts})*not(mod({row},{self.interval}))"

    def takes(self, shown: int, pts: int | None) -> bool:
        """Whether ffmpeg selects the frame after `shown` frames. Call it for each frame, in order."""
        if pts is None or pts < self.first_pts:
            return False
        return math.floor((pts - self.origin) * self.rows_per_tick + 0.5) % self.interval == 0


@dataclass(frozen=True)
class Count:
    """Selects frames by their number, counted from the first frame shown.

    Attributes:
        first: frames before this number are not selected.
        interval: frames with number % interval == 0 are selected.
    """

    first: int
    interval: int

    @property
    def expression(self) -> str:
        """The expression for ffmpeg's select filter."""
        return f"gte(n,{self.first})*not(mod(n,{self.interval}))"

    def takes(self, shown: int, pts: int | None) -> bool:
        """Whether ffmpeg selects the frame; see `TimeGrid.takes`."""
        return shown >= self.first and shown % self.interval == 0


@dataclass
class CountSince:
    """Selects frames by their number, counted from a given time. ffmpeg counts in its variable 0.

    Attributes:
        first_pts: frames before this time are neither counted nor selected.
        first_row: row of the first frame that is counted.
        interval: rows with index % interval == 0 are selected.
    """

    first_pts: int
    first_row: int
    interval: int
    _counted: int = field(default=0, repr=False)

    @property
    def expression(self) -> str:
        """The expression for ffmpeg's select filter."""
        row = f"{self.first_row - 1}+ld(0)"
        return f"if(gte(pts,{self.first_pts}),st(0,ld(0)+1)*0+not(mod({row},{self.interval})),0)"

    def takes(self, shown: int, pts: int | None) -> bool:
        """Whether ffmpeg selects the frame; see `TimeGrid.takes`."""
        if pts is None or pts < self.first_pts:
            return False
        self._counted += 1
        return (self.first_row - 1 + self._counted) % self.interval == 0


Selection = TimeGrid | Count | CountSince


def choose_selection(info: VideoInfo, interval: int, start: int, *, sought: bool, every_image: bool) -> Selection:
    """Return the selection with which ffmpeg delivers the sampled rows.

    Args:
        info: the probe of the video.
        interval: rows with index % interval == 0 are sampled.
        start: first row to deliver.
        sought: True if ffmpeg starts at a keyframe and not at the beginning. Allowed only if `seek_row` returned a row.
        every_image: True selects at least all rows from `start` on. Use it after the decoder lost frames or delivered
            unexpected frames.
    """
    pts, first_pts = info.pts, int(info.pts[min(start, info.frames - 1)])
    if not info.guessed_times and not len(info.shown_pts) and not every_image and len(pts) > 1:
        rows_per_tick = (len(pts) - 1) / (int(pts[-1]) - int(pts[0]))
        rows = (pts - pts[0]) * rows_per_tick
        if float(np.abs(rows - np.arange(len(pts))).max()) <= _SAFE_ROUNDING:  # else the frame rate varies
            return TimeGrid(int(pts[0]), rows_per_tick, interval, first_pts)
    if sought:
        return CountSince(first_pts, start, 1 if every_image else interval)
    return Count(0, 1) if every_image else Count(start, interval)


def seek_row(info: VideoInfo, start: int) -> int | None:
    """Return the last keyframe at or before `start`; None if decoding must begin at the start."""
    if not can_seek(info) or start == 0:
        return None
    before = info.keyframes[info.keyframes <= min(start, info.frames - 1)]
    return int(before[-1]) if len(before) and before[-1] > 0 else None


def can_seek(info: VideoInfo) -> bool:
    """Whether decoding can begin at a keyframe: the file has an index, and its times are exact."""
    is_indexed = info.demuxer in _INDEXED and info.codec in _CLEAN_KEYFRAMES and not info.edit_list
    return is_indexed and len(info.shown_pts) == 0 and not info.guessed_times
