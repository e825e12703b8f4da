"""Finds out why a video is not complete: its file is cut short, or the machine is at fault.

Containers declare their length in different ways: as a number of frames (AVI, IVF), as the duration of the video stream (the
tags of Matroska, fragmented MP4, MXF) or as the duration of the longest stream (Matroska and FLV without tags). Headers are
often wrong by a few frames. So a file counts as cut short only if much is missing, or if it is smaller than the size that it
declares. The index of an MP4 is more exact than a declared length; see `probe`.

A fault of the machine is temporary: for example, a network share is lost, memory runs out, or a program is being updated. Then
nothing is stored for the video, so the next run tries again. Errors in the content of a file can look the same. The libraries
of ffmpeg report "Input/output error" if a file is cut short, and "Cannot allocate memory" if a header asks for too much. So
these two errors count as faults of the machine only if they also appear without ffmpeg.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import struct
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av
import psutil

from vadcli.errors import NotFinished
from vadcli.video.container import open_media, printable

_PER_STREAM = frozenset({"gxf", "mxf", "wtv", "nsv", "smjpeg", "lxf"})
_LONGEST_STREAM = frozenset({"matroska", "flv", "live_flv", "rm", "asf", "asf_o"})

_SURELY_CUT_FRAMES = 1.5
_USUAL_ERROR_S = 1.0
_USUAL_SHARE = 0.01
_LARGEST_ERROR_S = 10.0
_TAKES_OVER_S = 1.0  # the video streams of a file usually end less than this apart
_HELD_BACK = 3  # number of packets of a program stream that ffmpeg delivers only at the end of the file
_NOTHING: Counter[int] = Counter()
_HEADER_BYTES = 1 << 16
_MOST_FRAMES = 1 << 29  # half a year at 30 frames per second
_TAIL_BYTES = 1 << 12
_OGG_LAST = 4


@dataclass(frozen=True)
class Read:
    """The number and times of the packets that the probe has read from the video stream.

    Attributes:
        packets: number of all packets, also those that show nothing.
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
    """Counts the packets that other video streams have before and after the stream that is read."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._counts: Counter[int] = Counter()
        self._before: Counter[int] = Counter()
        self._recent: deque[Counter[int]] = deque(maxlen=_HELD_BACK)

    def add(self, packet: Any) -> None:
        """Count a packet of another video stream."""
        self._counts[packet.stream_index] += packet.size > 0

    def own(self) -> None:
        """Register a packet of the stream that is read. Call `add` and `own` in the file order of the packets."""
        if not self._recent:
            self._before = self._counts.copy()
        self._recent.append(self._counts.copy() if self._counts else _NOTHING)

    def missing(self, read: Read, *, unlisted: int) -> tuple[int, str]:
        """Return how many frames of other video streams come before or after this stream, and a message.

        Args:
            read: the packets of this stream.
            unlisted: number of video streams that begin in the middle of the file; their packets are not known.
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
        """Return a sentence about the streams that are left out; empty if there are none."""
        if not self._counts:
            return ""
        others = ", ".join(described.get(index, str(index)) for index in sorted(self._counts))
        return f"only video stream {self._stream.index} was read; left out: {others}"


def missing_frames(opened: Any, stream: Any, path: Path, read: Read) -> int:
    """Return how many frames are missing at the end, according to the length that the file declares."""
    demuxer = opened.format.name.split(",")[0]
    frames = stream.frames or 0
    if demuxer == "ivf":
        return _beyond(frames / read.fps, read.packets / read.fps, path, demuxer, read)
    if demuxer == "avi":  # empty frames are in the declared number and in the index
        if frames > _MOST_FRAMES:
            return 0  # a placeholder: the recorder could not go back to the header at the end of the recording
        tick_s = float(stream.time_base)
        end_s = max(read.end_s, len(stream.index_entries) * tick_s)
        return _beyond(frames * tick_s, end_s, path, demuxer, read)
    declared, of_this_stream = _declared_s(opened, stream, path, demuxer)
    if not declared:
        return 0
    # Some muxers count the duration from 0 and others from the first frame. The larger value gives no false alarm.
    end_s = max(read.end_s, read.end_s - read.first_s)
    missing = _beyond(declared, end_s, path, demuxer, read)
    if not missing or of_this_stream:
        return missing
    with suppress(av.error.FFmpegError, IndexError), open_media(path) as whole:  # the sound may be longer than the video
        for packet in whole.demux():  # from the start, because many files without an end have no index for seeking
            if packet.size and packet.pts is not None:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return _beyond(declared, end_s, path, demuxer, read)


def _beyond(declared_s: float, end_s: float, path: Path, demuxer: str, read: Read) -> int:
    """Return how many frames are missing before the declared end; 0 if the difference is usual."""
    if is_cut(path, demuxer):
        bound_s = _SURELY_CUT_FRAMES / read.fps
    else:
        usual_s = max(_USUAL_ERROR_S, min(_LARGEST_ERROR_S, _USUAL_SHARE * declared_s))
        bound_s = max(usual_s, 2 * read.longest_s)
    missing_s = declared_s - end_s
    return round(missing_s * read.fps) if missing_s > bound_s else 0


def _declared_s(opened: Any, stream: Any, path: Path, demuxer: str) -> tuple[float, bool]:
    """Return the declared duration in seconds, or 0, and True if it belongs to this stream alone."""
    whole = (opened.duration or 0) / av.time_base
    own = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if demuxer == "matroska":
        # Tags that were copied from a longer file are wrong. The smaller value gives no false alarm.
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


def is_cut(path: Path, demuxer: str) -> bool:
    """Whether the file is a Matroska, AVI or FLV file that is smaller than the size that it declares."""
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

    These three formats declare no length. But GIF and APNG mark the end of the file, and Ogg numbers its pages.
    """
    check = _ENDS.get(demuxer)
    if check is None:
        return ""
    with suppress(IndexError), path.open("rb") as file:
        problem = check(file, os.fstat(file.fileno()).st_size)
        return f"the file is damaged: {problem}" if problem else ""
    return "the file is damaged: its end is missing"


def _gif_end(file: BinaryIO, size: int) -> str:
    """Check a GIF89a file: it has blocks and then a trailer. A block has parts of up to 255 bytes."""
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
    """Check an Ogg file (RFC 3533, section 6): each stream's pages are numbered and its last page is marked."""
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
    """Return the byte at which the segment ends; 0 if its size is unknown, as in a live recording."""
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
    """Return the byte at which the last RIFF chunk ends; files of more than 1 GB have several chunks."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if name != b"RIFF" or length in (0, 0xFFFFFFFF):
            return position
        position += 8 + length + length % 2
    return position


def _flv_bytes(file: BinaryIO, size: int) -> int:
    found = re.search(rb"\0\x08filesize\0(.{8})", file.read(_HEADER_BYTES), re.DOTALL)
    return int(struct.unpack(">d", found[1])[0]) if found else 0


_DECLARED_BYTES: Mapping[str, Callable[[BinaryIO, int], int]] = {
    "matroska": _matroska_bytes,
    "avi": _avi_bytes,
    "flv": _flv_bytes,
}

_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_LIVE = 1


def _asf_s(path: Path) -> float:
    """Return the play duration in an ASF header, in seconds; 0 if there is none, or in a live recording."""
    with suppress(OSError, struct.error), path.open("rb") as file:
        _, found, properties = file.read(_HEADER_BYTES).partition(_ASF_FILE_PROPERTIES)
        if found:
            # The skipped fields: object size, file id, file size, creation date, packets. The durations are in 100 ns, preroll
            # in ms.
            play, _, preroll_ms, flags = struct.unpack_from("<QQQI", properties, 8 + 16 + 8 + 8 + 8)
            return 0.0 if flags & _ASF_LIVE else max(0.0, play / 1e7 - preroll_ms / 1e3)
    return 0.0


MACHINE_ERRORS = frozenset(
    {
        *(errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.ENOLINK, errno.EREMOTEIO, errno.ENOMEDIUM),
        *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET),
        *(errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ESHUTDOWN, errno.EBUSY),
        *(errno.EACCES, errno.EMFILE, errno.ENFILE, errno.EKEYEXPIRED, errno.EKEYREVOKED, errno.EUCLEAN),
    }
)
"""System errors that no content of a file can cause."""

_SAMPLE_BYTES = 1 << 16
_READ_BYTES = 1 << 22
_SCARCE_BYTES = 256 << 20


def check_machine(path: Path, messages: str) -> None:
    """Raise NotFinished if the machine is the reason why a video could not be read completely.

    Args:
        path: the file, or the folder of images.
        messages: all messages about the problem.
    """
    name = printable(path)
    for number in sorted(MACHINE_ERRORS):
        if os.strerror(number) in messages:
            raise NotFinished(f"{name}: can't be read at the moment: {os.strerror(number)}")
    if os.strerror(errno.ENOMEM) in messages or "MemoryError" in messages:
        try:  # is there little memory even now, without the video?
            is_scarce = psutil.virtual_memory().available < _SCARCE_BYTES
            with closing(mmap.mmap(-1, _SCARCE_BYTES)):
                pass
        except (OSError, ValueError):
            is_scarce = True
        if is_scarce:
            raise NotFinished(f"{name}: the machine has too little memory at the moment")
    whole = os.strerror(errno.EIO) in messages  # True: read every file completely; False: read samples
    try:
        files = [path]
        if path.is_dir():
            entries = sorted(entry for entry in path.iterdir() if entry.is_file())
            files = entries if whole else entries[:1] + entries[-1:]
        for each in files:
            with each.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                while whole and file.read(_READ_BYTES):
                    pass
                for start in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
                    os.pread(file.fileno(), _SAMPLE_BYTES, start)
    except OSError as error:
        raise NotFinished(f"{name}: can't be read at the moment: {error.strerror}") from error
