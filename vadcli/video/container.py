"""Opens a media file safely, describes its streams, and finds out whether its end is missing.

No frame is decoded here.

Opening. Some files contain references to other files and to network addresses: concat scripts, HLS and DASH playlists, SDP
texts. ffmpeg's libraries follow these references, even if the file is named .mp4. Two options prevent this. `format_whitelist`
is a list of real containers: ffmpeg refuses all other formats before their demuxer reads anything. With `protocol_whitelist`,
ffmpeg can open only plain files.

Missing ends. A container declares the length of the video in one of three ways:

- as a number of frames: AVI, IVF
- as the duration of the video stream: the tags of Matroska, fragmented MP4, MXF
- as the duration of the longest stream: Matroska and FLV without tags

This length is often wrong by a few frames. So a file counts as cut short only if many frames are missing, or if the file is
smaller than the size that its header declares. An MP4 has an index with the position of every frame. So for an MP4,
`vadcli.video.probe` counts the frames whose position is after the end of the file.
"""

from __future__ import annotations

import math
import os
import re
import stat
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import av
import av.logging

from vadcli.errors import NoVideoStream, ProbeError, UnsafeContainer
from vadcli.types.wall_clock import EARLIEST, iso, parse_created

Message = tuple[int, str, str]
"""A message of ffmpeg's libraries: its level, its source (such as a demuxer) and its text."""

_VIDEO = (
    "mov matroska avi mpegts mpeg mpegvideo m4v flv live_flv asf asf_o ogg gif apng webp_anim ivf obu h264 hevc vvc evc h261 "
    "h263 vc1 vc1test mjpeg mjpeg_2000 smjpeg mxf gxf nut rm dv wtv yuv4mpegpipe dhav ifv luodat nsv nuv cavsvideo avs2 avs3 "
    "dirac pva lxf ty hxvs"
)
_SOUND = "mp3 aac wav flac aiff au caf amr ac3 eac3 dts ape tta w64 wv"  # allowed, so that their error is "no video stream"
_ALLOWED = ",".join((_VIDEO + " " + _SOUND).split())

_UNTIMED = frozenset(
    {"mpegvideo", "m4v", "h264", "hevc", "vvc", "evc", "h261", "h263", "vc1", "cavsvideo", "avs2", "avs3"}
    | {"dirac", "mjpeg", "mjpeg_2000"}
)
_DECODING_TIMES = frozenset({"avi", "asf", "asf_o"})
_REORDERING = frozenset({"h264", "hevc", "vc1", "wmv3"})
# Formats of files that are often cut and joined. If the clock restarts in such a file, its decoding times jump back.
_JUMPING = frozenset({"mpegts", "mpeg", "flv", "live_flv", "dhav", "pva", "wtv", "ty"})

_LARGER_LIMITS = {"probesize": str(256 << 20), "analyzeduration": "3600000000", "formatprobesize": str(16 << 20)}
"""Limits for the second attempt to open a file: bytes and microseconds to find the streams, bytes to detect the format.

The first attempt reads 5 MB. This is too little if, for example, the first keyframe comes late, or if the video starts long
after the sound.
"""
_MOTION_JPEG_PARTS = frozenset({"jpeg_pipe", "mpjpeg"})
"""ffmpeg's names for a sequence of JPEG images, raw or as a multipart stream. The demuxer `mjpeg` reads both."""
_MOTION_JPEG_SUFFIXES = frozenset({".mjpeg", ".mjpg"})
_PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})

_PER_STREAM = frozenset({"gxf", "mxf", "wtv", "nsv", "smjpeg", "lxf"})
_LONGEST_STREAM = frozenset({"matroska", "flv", "live_flv", "rm", "asf", "asf_o"})

_SURELY_CUT_FRAMES = 1.5  # largest number of missing frames that is allowed if the file is smaller than its header declares
_USUAL_ERROR_S = 1.0  # a declared length is often wrong by this much, or by 1 % of the length, but by 10 s at most
_USUAL_SHARE = 0.01
_LARGEST_ERROR_S = 10.0
_TAKES_OVER_S = 1.0  # the ends of two video streams of a file usually differ by less
_HELD_BACK = 3  # number of packets of a program stream that ffmpeg delivers only at the end of the file
_NOTHING: Counter[int] = Counter()
_HEADER_BYTES = 1 << 16
_MOST_FRAMES = 1 << 29  # half a year at 30 frames per second
_TAIL_BYTES = 1 << 12
_OGG_LAST = 4

_log_level = threading.Lock()


def has_times(demuxer: str) -> bool:
    """Return False for elementary streams, which are codec data without a container and without times."""
    return demuxer not in _UNTIMED


def has_exact_pts(demuxer: str, codec: str) -> bool:
    """Return True if packets have presentation times.

    Without presentation times, a decoder may report other times than the probe finds.
    """
    return demuxer not in _UNTIMED and not (demuxer in _DECODING_TIMES and codec in _REORDERING)


def can_jump(demuxer: str) -> bool:
    """Return True if files in this format are often cut and joined, so that their clock may restart."""
    return demuxer in _JUMPING


def path_text(path: Path) -> str:
    """Return the path as one line for messages: control characters and non-UTF-8 bytes become %XX."""
    return "".join(c if c.isprintable() else "".join(f"%{byte:02X}" for byte in os.fsencode(c)) for c in str(path))


def open_media(path: Path, *, messages: list[Message] | None = None) -> Any:
    """Return an opened `av.container.InputContainer`; the caller closes it.

    Args:
        path: the file.
        messages: a list to which ffmpeg's messages are appended.

    Raises:
        UnsafeContainer: the file is not a plain container but, for example, a playlist or a script.
        ProbeError: the file is missing, unreadable, empty, not a regular file, or not a media file.
    """
    name = path_text(path)
    try:
        status = path.stat()
    except OSError as error:
        raise ProbeError(f"{name}: can't be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ProbeError(f"{name}: not a regular file", hint="scan files or folders of images")
    if status.st_size == 0:
        raise ProbeError(f"{name}: the file is empty (0 bytes)")
    with listening() as logged:
        try:
            opened = _open(path)
            if not _is_known(opened):
                opened.close()
                opened = _open(path, _LARGER_LIMITS)
        except av.error.FFmpegError as error:
            opened = _open_again(path, name, error, logged)
    if messages is not None:
        messages += logged
    return opened


def probe_options(container: Any) -> dict[str, str]:
    """Return the options that a decoder needs to find the streams.

    The result is empty if the first attempt to open the file was enough.
    """
    return {name: value for name, value in container.options.items() if name in ("probesize", "analyzeduration")}


def _open(path: Path, more: Mapping[str, str] = MappingProxyType({}), *, demuxer: str | None = None) -> Any:
    options = {"format_whitelist": _ALLOWED, "protocol_whitelist": "file", **more}
    return av.open(f"file:{path}", format=demuxer, options=options, metadata_errors="replace")


def _is_known(container: Any) -> bool:
    """Return True if ffmpeg has read enough of the file to find a video stream and its size."""
    videos = [stream for stream in container.streams if stream.type == "video"]
    if not videos:
        return container.format.name not in _JUMPING and bool(len(container.streams))
    return any(stream.codec_context is not None and stream.codec_context.width > 0 for stream in videos)


def _open_again(path: Path, name: str, error: av.error.FFmpegError, logged: Sequence[Message]) -> Any:
    """Try again to open a file that ffmpeg did not recognize. If this fails too, raise an error.

    Args:
        path: the file.
        name: the file's name for messages.
        error: the error of the first attempt.
        logged: what ffmpeg logged in the first attempt.
    """
    logged = list(logged)  # a copy, because the next attempts append their messages
    refused = [source for _, source, text in logged if "not on whitelist" in text]
    with suppress(av.error.FFmpegError):
        if any(source in _MOTION_JPEG_PARTS for source in refused) and path.suffix.lower() not in _PICTURE_SUFFIXES:
            return _open(path, demuxer="mjpeg")
        if not refused and isinstance(error, av.error.InvalidDataError):
            named = "mjpeg" if path.suffix.lower() in _MOTION_JPEG_SUFFIXES else None
            opened = _open(path, _LARGER_LIMITS, demuxer=named)
            if named is None or _is_known(opened):
                return opened
            opened.close()
    if refused:
        raise UnsafeContainer(f"{name}: not a video container: ffmpeg's format '{refused[0]}' is not allowed") from error
    detail = f" ({logged[-1][2].strip().rstrip('.')})" if logged else ""  # ffmpeg's message is more exact than the error
    if isinstance(error, av.error.InvalidDataError | av.error.EOFError):
        hint = "it may be cut short, unfinished, or not a video"
        raise ProbeError(f"{name}: not a readable video file{detail}", hint=hint) from error
    raise ProbeError(f"{name}: can't be read: {error.strerror}{detail}") from error


@contextmanager
def listening(level: int = av.logging.ERROR) -> Iterator[list[Message]]:
    """Collect the messages that ffmpeg's libraries log inside the `with` block."""
    with _log_level:
        before = av.logging.get_level()
        av.logging.set_level(level)
        try:
            with av.logging.Capture(local=False) as messages:
                # PyAV leaves out a message that equals the last message, even if the last message was about another file.
                av.logging.log(av.logging.FATAL, "", "a new file")
                messages.clear()
                yield messages
        finally:
            av.logging.set_level(before)


def pick_stream(container: Any, name: str) -> Any:
    """Return the video stream that ffmpeg would pick; never a cover picture.

    This is the default stream, unless another stream has at least 5 million pixels more.

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
        """Return the key by which ffmpeg compares streams."""
        pixels = int(stream.codec_context.width) * int(stream.codec_context.height)
        is_default = bool(stream.disposition & av.stream.Disposition.default)
        return pixels + 5_000_000 * is_default, -stream.index

    return max(usable, key=preference)


def video_packets(container: Any) -> Iterator[Any]:
    """Yield the packets of all video streams in file order.

    This includes streams that begin in the middle of the file.
    """
    ignored = set()
    for stream in container.streams:
        if stream.type != "video" or stream.disposition & av.stream.Disposition.attached_pic:
            ignored.add(stream.index)
            if hasattr(stream, "discard"):
                stream.discard = av.stream.Discard.all
    with suppress(IndexError):  # PyAV raises this error at the end of a file if PyAV did not list one of the streams
        for packet in container.demux():
            if packet.stream_index not in ignored:
                yield packet


def unlisted_streams(container: Any) -> int:
    """Return the number of video streams that PyAV does not list.

    These streams begin in the middle of the file.
    """
    with listening(av.logging.INFO):
        described = container.dumps_format()
    video_streams = re.findall(r"^  Stream #0:(\d+)\b.*?: Video:", described, re.MULTILINE)
    return sum(int(index) >= len(container.streams) for index in video_streams)


def describe(stream: Any) -> str:
    """Return codec and size of a video stream, like `h264 640x480`."""
    context = stream.codec_context
    return f"{context.name} {context.width}x{context.height}" if context is not None and context.width else "unknown size"


def recording_start(container: Any, stream: Any, duration_s: float) -> str:
    """Return the time at which the recording began; "" if the container does not state it."""
    tags = container.metadata
    # Apple's own tag has the time zone. A program that exports the video keeps this tag, but writes a new creation_time.
    if apple := tags.get("com.apple.quicktime.creationdate"):
        return str(apple)
    created = str(tags.get("creation_time") or stream.metadata.get("creation_time") or "")
    ended = parse_created(created) if any(name.startswith("com.android.") for name in tags) else None
    if ended is None or ended.tzinfo is None or ended < EARLIEST:
        return created
    return iso(ended - timedelta(seconds=duration_s))  # Android writes the time at which a recording ends


def display_matrix_degrees(container: Any, stream_index: int) -> float | None:
    """Return the stream's clockwise rotation in degrees; None if the stream has no display matrix."""
    with listening(av.logging.INFO):
        described = container.dumps_format()  # PyAV gives no direct access to the matrix
    section = re.search(rf"Stream #0:{stream_index}\b(.*?)(?=\n  Stream #|\Z)", described, re.DOTALL)
    matrix = re.search(r"display ?matrix: rotation of (\S+) degrees", section[1], re.IGNORECASE) if section else None
    if not matrix:
        return None
    degrees = float(matrix[1])
    return 0.0 if math.isnan(degrees) else -degrees % 360.0  # ffmpeg prints nan for a matrix that is not a rotation


@dataclass(frozen=True)
class Read:
    """The number and times of the packets that the probe has read from the video stream.

    Attributes:
        packets: number of all packets, including packets that show no frame.
        first_s, end_s: time of the first frame and end of the last frame on the container's clock.
        fps: average frames per second.
        longest_s: the longest time from one frame to the next.
    """

    packets: int
    first_s: float
    end_s: float
    fps: float
    longest_s: float


class OtherStreams:
    """Counts the packets of all video streams except the chosen stream, which the probe reads.

    For each of these streams, it counts the packets before the first packet of the chosen stream, and the packets after the
    last packet of the chosen stream.

    Call `add` and `add_own` in the order in which the file contains the packets.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._counts: Counter[int] = Counter()
        self._before: Counter[int] = Counter()
        self._recent: deque[Counter[int]] = deque(maxlen=_HELD_BACK)

    def add(self, packet: Any) -> None:
        """Count a packet of a stream that is not the chosen stream."""
        self._counts[packet.stream_index] += packet.size > 0

    def add_own(self) -> None:
        """Register a packet of the chosen stream."""
        if not self._recent:
            self._before = self._counts.copy()
        self._recent.append(self._counts.copy() if self._counts else _NOTHING)

    def missing(self, read: Read, *, unlisted: int) -> tuple[int, str]:
        """Return how many frames of the video are only in other streams, and a message about these streams.

        A recorder may change to another stream in the middle of a recording. If so, this other stream has many packets before
        the first packet of the chosen stream, or after the last packet of the chosen stream.

        Args:
            read: the packets of the chosen stream.
            unlisted: number of video streams that begin in the middle of the file. Their packets were not counted.
        """
        last = self._recent[0] if self._recent else _NOTHING
        beyond = {index: self._before[index] + count - last[index] for index, count in self._counts.items()}
        continued = {index: count for index, count in beyond.items() if count > max(2.0, _TAKES_OVER_S * read.fps)}
        if not continued and unlisted:
            return max(1, round(read.longest_s * read.fps) - 1), "another video stream begins in the middle and is not read"
        if not continued:
            return 0, ""
        streams = ", ".join(map(str, sorted(continued)))
        return sum(continued.values()), f"the video continues in another stream ({streams}), which is not read"

    def note(self, described: Mapping[int, str]) -> str:
        """Return a sentence about the video streams that are not read; "" if all are read.

        Args:
            described: the description of each video stream; the keys are the indices of the streams.
        """
        if not self._counts:
            return ""
        others = ", ".join(described.get(index, str(index)) for index in sorted(self._counts))
        return f"only video stream {self._stream.index} was read; left out: {others}"


def missing_frames(opened: Any, stream: Any, path: Path, read: Read) -> int:
    """Return how many frames are missing at the end.

    This is the length that the file declares, minus the length that was read.
    """
    demuxer = opened.format.name.split(",")[0]
    frames = stream.frames or 0
    if demuxer == "ivf":
        return _beyond(frames / read.fps, read.packets / read.fps, path, demuxer, read)
    if demuxer == "avi":  # the declared number and the index include empty frames
        if frames > _MOST_FRAMES:
            return 0  # the recorder has not replaced this number at the end of the recording
        tick_s = float(stream.time_base)
        end_s = max(read.end_s, len(stream.index_entries) * tick_s)
        return _beyond(frames * tick_s, end_s, path, demuxer, read)
    declared, of_this_stream = _declared_s(opened, stream, path, demuxer)
    if not declared:
        return 0
    # Some muxers count the duration from time 0, others from the first frame. The file does not say which. So the later end is
    # used, so that a complete file never seems to be cut short.
    end_s = max(read.end_s, read.end_s - read.first_s)
    missing = _beyond(declared, end_s, path, demuxer, read)
    if not missing or of_this_stream:
        return missing
    with suppress(av.error.FFmpegError, IndexError), open_media(path) as whole:  # the sound may be longer than the video
        for packet in whole.demux():  # from the start: a file whose end is missing often has no index for seeking
            if packet.size and packet.pts is not None:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return _beyond(declared, end_s, path, demuxer, read)


def _beyond(declared_s: float, end_s: float, path: Path, demuxer: str, read: Read) -> int:
    """Return how many frames are missing between the last frame that was read and the declared end.

    The result is 0 if the difference is small: declared lengths are often a little wrong.
    """
    if is_truncated(path, demuxer):
        bound_s = _SURELY_CUT_FRAMES / read.fps
    else:
        usual_s = max(_USUAL_ERROR_S, min(_LARGEST_ERROR_S, _USUAL_SHARE * declared_s))
        bound_s = max(usual_s, 2 * read.longest_s)
    missing_s = declared_s - end_s
    return round(missing_s * read.fps) if missing_s > bound_s else 0


def _declared_s(opened: Any, stream: Any, path: Path, demuxer: str) -> tuple[float, bool]:
    """Return the declared duration in seconds (0 if unknown), and True if it is the duration of `stream`.

    The second result is False if the file declares only the duration of its longest stream.
    """
    whole = (opened.duration or 0) / av.time_base
    own = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if demuxer == "matroska":
        # The duration in a DURATION tag is too long if the tag was copied from a longer file. So the smallest of the declared
        # durations is used.
        texts = [text.strip("\0 ") for name, text in stream.metadata.items() if name.split("-")[0] == "DURATION"]
        matches = [match for text in texts if (match := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", text))]
        tagged = [int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) for match in matches]
        return min([whole, *tagged]), bool(texts)
    if demuxer in ("asf", "asf_o"):
        return _asf_s(path), False  # ffmpeg does not report the duration of a file that is cut short
    if demuxer == "mov":
        is_fragmented = len(stream.index_entries) > (stream.frames or 0)
        return (own if is_fragmented else 0.0), True
    if demuxer in _PER_STREAM:
        return own, True
    return (whole if demuxer in _LONGEST_STREAM else 0.0), False


def is_truncated(path: Path, demuxer: str) -> bool:
    """Return True if a Matroska, AVI or FLV file is smaller than the size that its header declares."""
    declared = _DECLARED_BYTES.get(demuxer)
    if declared is None:
        return False
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return declared(file, size) > size
    except (OSError, struct.error, IndexError):
        return False


def missing_end(path: Path, demuxer: str) -> str:
    """Return a message if the end of a GIF, APNG or Ogg file is missing; "" otherwise.

    These three formats declare no length. But GIF and APNG files have a mark at their end, and the pages of Ogg have numbers.
    """
    check = _ENDS.get(demuxer)
    if check is None:
        return ""
    with suppress(IndexError), path.open("rb") as file:
        problem = check(file, os.fstat(file.fileno()).st_size)
        return f"the file is damaged: {problem}" if problem else ""
    return "the file is damaged: its end is missing"


def _gif_end(file: BinaryIO, size: int) -> str:
    """Check that a GIF89a file has only blocks and then a trailer. A block has parts of up to 255 bytes."""
    file.seek(10)
    _skip_palette(file, file.read(1)[0])
    file.seek(2, os.SEEK_CUR)
    while mark := file.read(1):
        if mark == b"\x3b":
            return ""
        if mark == b"\x21":
            file.seek(1, os.SEEK_CUR)
        elif mark == b"\x2c":
            file.seek(8, os.SEEK_CUR)
            _skip_palette(file, file.read(1)[0])
            file.seek(1, os.SEEK_CUR)
        else:
            return "there are unknown bytes between its frames"
        while length := file.read(1)[0]:
            file.seek(length, os.SEEK_CUR)
    return "its end is missing"


def _skip_palette(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        file.seek(3 << (flags & 7) + 1, os.SEEK_CUR)


def _apng_end(file: BinaryIO, size: int) -> str:
    file.seek(max(0, size - _TAIL_BYTES))
    return "" if b"IEND" in file.read() else "its end is missing"


def _ogg_end(file: BinaryIO, size: int) -> str:
    """Check that an Ogg file has all pages.

    A page has a number, and the last page of a stream has a mark (RFC 3533, 6).
    """
    last: dict[bytes, int] = {}  # serial number of a stream -> number of its last page, until the stream ends
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(27)
        if head[:4] != b"OggS":
            return "there are unknown bytes between its pages"
        serial, number = head[14:18], int.from_bytes(head[18:22], "little")
        if serial in last and number != last[serial] + 1:
            return f"page {last[serial] + 1} of a stream is missing"
        if head[5] & _OGG_LAST:
            last.pop(serial, None)  # an appended file may use the same serial number again
        else:
            last[serial] = number
        position += 27 + head[26] + sum(file.read(head[26]))
    return "its end is missing" if position > size or last else ""


_ENDS: Mapping[str, Callable[[BinaryIO, int], str]] = {"gif": _gif_end, "apng": _apng_end, "ogg": _ogg_end}


def _matroska_bytes(file: BinaryIO, size: int) -> int:
    """Return where the segment ends, in bytes; 0 if its size is unknown, as in a live recording."""
    position = 0
    for _ in range(4):  # the EBML header, perhaps padding, then the segment
        file.seek(position)
        head = file.read(16)
        id_length = 9 - head[0].bit_length()
        length = 9 - head[id_length].bit_length()
        value = int.from_bytes(head[id_length : id_length + length], "big") & ((1 << 7 * length) - 1)
        if head[:4] == b"\x18\x53\x80\x67":
            return 0 if value == (1 << 7 * length) - 1 else position + id_length + length + value
        position += id_length + length + value
    return 0


def _avi_bytes(file: BinaryIO, size: int) -> int:
    """Return where the last RIFF chunk ends, in bytes.

    Files of more than 1 GB have several chunks.
    """
    position = 0
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if name != b"RIFF" or length in (0, 0xFFFFFFFF):
            return position
        position += 8 + length + length % 2
    return position


def _flv_bytes(file: BinaryIO, size: int) -> int:
    field = re.search(rb"\0\x08filesize\0(.{8})", file.read(_HEADER_BYTES), re.DOTALL)
    return int(struct.unpack(">d", field[1])[0]) if field else 0


_DECLARED_BYTES: Mapping[str, Callable[[BinaryIO, int], int]] = {
    "matroska": _matroska_bytes,
    "avi": _avi_bytes,
    "flv": _flv_bytes,
}

_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_LIVE = 1


def _asf_s(path: Path) -> float:
    """Return the play duration in an ASF header, in seconds; 0 if it is unknown, as in a live recording."""
    with suppress(OSError, struct.error), path.open("rb") as file:
        _, mark, properties = file.read(_HEADER_BYTES).partition(_ASF_FILE_PROPERTIES)
        if mark:
            # The skipped fields are object size, file id, file size, creation date and packets. Durations are in units of
            # 100 ns, and preroll is in ms.
            play, _, preroll_ms, flags = struct.unpack_from("<QQQI", properties, 8 + 16 + 8 + 8 + 8)
            return 0.0 if flags & _ASF_LIVE else max(0.0, play / 1e7 - preroll_ms / 1e3)
    return 0.0
