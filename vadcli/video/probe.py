"""Finds out what a video holds without decoding it: the time of every frame, size, rotation, frame rate.

The packets of the video stream are read once, in file order. Packets that show nothing are left out, and the times of the
others are put into the order of presentation. The frames found must be those that `ffmpeg -i X -fps_mode passthrough` shows.

The file has three parts: `probe`; the arithmetic from packet times to frame times (`build_timeline`); and the check for packets
of VP8 and VP9 that show nothing (`HIDDEN`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np

from vadcli.errors import NoVideoStream, ProbeError
from vadcli.types import BoolArray, IndexArray, VideoInfo
from vadcli.video import container as media
from vadcli.video.images import probe_folder

NO_TIME = int(np.iinfo(np.int64).min)
"""Marks a time that the container does not state."""
_DEFAULT_FPS = 25.0
_CLOCK_JUMP_S = 0.25  # smaller steps back are no restart: the demuxer guessed a time
_BEGIN_AT_KEY = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "vp8", "vp9", "av1"})
_ROUNDING_S = 0.0011  # if times are in milliseconds, 30 frames per second become steps of 33 and 34


def probe(path: Path, *, fps: float | None = None) -> VideoInfo:
    """Describe a video file or a folder of numbered images without decoding it.

    Args:
        path: the file or the folder.
        fps: frames per second of a folder of images (default 10); ignored for files, which state their own rate.

    Raises:
        UnsafeContainer: the file could make a decoder open other files or sockets.
        NoVideoStream: the file has only sound or data, or the folder has no images.
        ProbeError: the file cannot be read, is cut short, or is not a video.
    """
    if path.is_dir():
        return probe_folder(path, fps=fps)
    name = media.printable(path)
    with media.open_media(path) as opened:
        stream = media.pick_stream(opened, name)
        packets = _read_packets(opened, stream, name)
        return _describe(path, opened, stream, packets)


@dataclass
class _Packets:
    """The packets of one stream: one entry per shown frame, in decoding order.

    The entries are in arrays and not in lists, because a video of one day has millions of frames.
    """

    pts: array[int] = field(default_factory=lambda: array("q"))
    dts: array[int] = field(default_factory=lambda: array("q"))
    duration: array[int] = field(default_factory=lambda: array("q"))
    keyframe: bytearray = field(default_factory=bytearray)
    hidden_by_edit: int = 0
    hidden_key: bool = False  # an edit list hides a keyframe that later frames refer to
    cut_off: int = 0  # frames that the file's index lists beyond the end of the file

    def add(self, packet: Any) -> None:
        """Append a packet that shows a frame."""
        self.pts.append(NO_TIME if packet.pts is None else packet.pts)
        self.dts.append(NO_TIME if packet.dts is None else packet.dts)
        self.duration.append(packet.duration or 0)
        self.keyframe.append(packet.is_keyframe)


def _read_packets(opened: Any, stream: Any, name: str) -> _Packets:
    packets = _Packets()
    is_hidden = HIDDEN.get(stream.codec_context.codec.canonical_name)
    for other in opened.streams:
        if other.index != stream.index and hasattr(other, "discard"):
            other.discard = av.stream.Discard.all  # so that the sound is not read
    try:
        for packet in opened.demux(stream):
            if packet.size == 0:
                continue
            if packet.is_discard:
                packets.hidden_by_edit += 1
                packets.hidden_key = packets.hidden_key or packet.is_keyframe
            elif is_hidden is None or not is_hidden(packet):
                packets.add(packet)
    except av.error.FFmpegError as error:  # packets read before the damage are still used
        if not packets.pts:
            raise ProbeError(f"{name}: no packet of the video stream can be read: {error.strerror}") from error
    if not packets.pts:
        raise NoVideoStream(f"{name}: the video stream has no frames", hint="the start of the recording may be missing")
    packets.cut_off = _count_cut_off(opened, stream)
    return packets


def _count_cut_off(opened: Any, stream: Any) -> int:
    """Return how many frames an MP4's index lists beyond the end of the file; 0 if the file was not cut short."""
    if not opened.format.name.startswith("mov"):
        return 0
    size = opened.size
    return sum(entry.pos >= size and not entry.is_discard for entry in stream.index_entries)


def _describe(path: Path, opened: Any, stream: Any, packets: _Packets) -> VideoInfo:
    demuxer = opened.format.name.split(",")[0]
    time_base = Fraction(stream.time_base)
    nominal = stream.average_rate or stream.guessed_rate or stream.base_rate
    tick_rate = 1 / time_base
    frame_ticks = max(1, round(tick_rate / nominal)) if nominal else max(1, round(tick_rate / Fraction(_DEFAULT_FPS)))
    codec = str(stream.codec_context.codec.canonical_name)
    timeline = build_timeline(
        np.frombuffer(packets.pts, np.int64),
        np.frombuffer(packets.dts, np.int64),
        np.frombuffer(packets.duration, np.int64),
        np.frombuffer(packets.keyframe, np.bool_),
        frame_ticks=frame_ticks,
        jump_ticks=round(_CLOCK_JUMP_S / time_base) if media.can_jump(demuxer) else None,
        timed=media.has_times(demuxer),
        needs_key=codec in _BEGIN_AT_KEY and not packets.hidden_key,
        cut_off=packets.cut_off,
    )
    degrees = media.display_matrix_degrees(opened, stream.index)
    rotation = _quarter_turn(degrees)
    width, height = int(stream.codec_context.width), int(stream.codec_context.height)
    if rotation in (90, 270):
        width, height = height, width
    return VideoInfo(
        path=path,
        demuxer=demuxer,
        codec=codec,
        stream_index=int(stream.index),
        width=width,
        height=height,
        rotation=rotation,
        time_base=time_base,
        pts=timeline.pts,
        fps=_average_fps(timeline, time_base, nominal),
        duration_s=float((int(timeline.pts[-1]) - int(timeline.pts[0]) + timeline.last_ticks) * time_base),
        vfr=_is_vfr(timeline.pts, time_base),
        edit_list=packets.hidden_by_edit > 0,
        shown_pts=timeline.shown_pts,
        keyframes=timeline.keyframes,
        created=_created(opened, stream),
    )


def _created(opened: Any, stream: Any) -> str:
    """Return the time at which the recording was made, as the container says it; "" if it does not say it."""
    # Apple's own tag has the time zone, and it survives an export, which sets creation_time again.
    told = (opened.metadata.get("com.apple.quicktime.creationdate"), opened.metadata.get("creation_time"))
    return next((text for text in (*told, stream.metadata.get("creation_time")) if text), "")


def _quarter_turn(degrees: float | None) -> int:
    """Return 0, 90, 180 or 270. As in ffmpeg, an angle counts only if it is within one degree of a quarter turn."""
    if degrees is None:
        return 0
    nearest = round(degrees / 90.0) * 90
    return nearest % 360 if abs(degrees - nearest) < 1.0 else 0


def _average_fps(timeline: Timeline, time_base: Fraction, nominal: Fraction | None) -> float:
    span = int(timeline.pts[-1]) - int(timeline.pts[0])
    if span > 0:
        return float((len(timeline.pts) - 1) / (span * time_base))
    return float(nominal) if nominal else _DEFAULT_FPS


def _is_vfr(pts: IndexArray, time_base: Fraction) -> bool:
    if len(pts) < 3:
        return False
    steps = np.diff(pts)
    slack = max(2.0, _ROUNDING_S / float(time_base))
    return bool(int(steps.max()) - int(steps.min()) > slack)


@dataclass(frozen=True)
class Timeline:
    """The frames of a stream in presentation order.

    Attributes:
        pts: (N,) int64, strictly increasing.
        shown_pts: (N,) int64, the times that a decoder reports, with repeats and jumps back; empty if they equal `pts`.
        keyframes: (K,) int64 rows at which decoding can begin, according to the container.
        last_ticks: duration of the last frame in ticks of the time base.
    """

    pts: IndexArray
    shown_pts: IndexArray
    keyframes: IndexArray
    last_ticks: int


def build_timeline(
    pts: IndexArray,
    dts: IndexArray,
    duration: IndexArray,
    keyframe: BoolArray,
    *,
    frame_ticks: int,
    jump_ticks: int | None,
    timed: bool,
    needs_key: bool,
    cut_off: int = 0,
) -> Timeline:
    """Return the frames of packets in presentation order; the packets are given in decoding order.

    Args:
        pts, dts, duration, keyframe: one entry per shown frame; NO_TIME for an unknown time, 0 for an unknown duration.
        frame_ticks: a frame's nominal duration, used if the container states none.
        jump_ticks: if the decoding time falls by more than this, the clock has restarted; None if the clock never restarts.
        timed: False for elementary streams: they have no times, so frames are counted.
        needs_key: True if a decoder shows nothing before the first keyframe. This matters if a recording begins between
            keyframes.
        cut_off: number of frames that the file lists after the last packet but no longer contains; their times are guessed.
    """
    lasting = np.where(duration > 0, duration, frame_ticks)
    if not timed or bool(np.all(pts == NO_TIME)):
        times = _counted(dts, lasting, timed)
        order = np.arange(len(times))
    else:
        times = _filled(pts, lasting)
        order = _presentation_order(times, dts, jump_ticks)
    if needs_key and bool(keyframe.any()):
        order = _from_first_key(order, int(np.argmax(keyframe)))
    shown = np.concatenate([times[order], times[order].max() + frame_ticks * np.arange(1, cut_off + 1)])
    increasing = _increasing(shown, np.concatenate([lasting[order], np.full(cut_off, frame_ticks)]))
    return Timeline(
        pts=increasing,
        shown_pts=shown if np.any(shown != increasing) else shown[:0],
        keyframes=np.flatnonzero(keyframe[order]).astype(np.int64),
        last_ticks=int(lasting[order[-1]]),
    )


def _counted(dts: IndexArray, lasting: IndexArray, timed: bool) -> IndexArray:
    if timed and not bool(np.any(dts == NO_TIME)):
        return dts
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lasting[:-1])])


def _filled(pts: IndexArray, lasting: IndexArray) -> IndexArray:
    """Replace each missing time by the time of the frame before plus the duration of that frame."""
    times = pts.copy()
    missing = np.flatnonzero(pts == NO_TIME)
    for i in missing.tolist():
        times[i] = times[i - 1] + lasting[i - 1] if i else pts[pts != NO_TIME][0]
    return times


def _presentation_order(times: IndexArray, dts: IndexArray, jump_ticks: int | None) -> IndexArray:
    """Return the indices sorted by time. If the clock restarts, the parts before and after are sorted separately."""
    if jump_ticks is None:
        return np.argsort(times, kind="stable")
    known = np.flatnonzero(dts != NO_TIME)
    falls = np.flatnonzero(np.diff(dts[known]) < -jump_ticks)
    cuts = [0, *known[falls + 1].tolist(), len(times)]
    return np.concatenate([a + np.argsort(times[a:b], kind="stable") for a, b in pairwise(cuts)])


def _from_first_key(order: IndexArray, first_key: int) -> IndexArray:
    """Leave out all frames that are decoded or shown before the first keyframe."""
    shown = order[int(np.flatnonzero(order == first_key)[0]) :]
    return shown[shown >= first_key]


def _increasing(shown: IndexArray, lasting: IndexArray) -> IndexArray:
    """Make times strictly increase.

    A time that repeats or jumps back becomes the end of the frame before. After a jump back, all later frames move by the same
    amount.
    """
    steps = np.diff(shown)
    if bool(np.all(steps > 0)):
        return shown
    result = shown.copy()
    moved = 0
    for i in range(1, len(result)):
        wanted = int(shown[i]) + moved
        if wanted <= result[i - 1]:
            repeat = shown[i] == shown[i - 1]
            wanted = int(result[i - 1]) + int(lasting[i - 1])
            moved = moved if repeat else wanted - int(shown[i])
        result[i] = wanted
    return result


def _vp8_hidden(packet: Any) -> bool:
    """Whether a packet shows nothing. RFC 6386, 9.1: bit 4 of the first byte is show_frame."""
    return not memoryview(packet)[0] >> 4 & 1


def _vp9_hidden(packet: Any) -> bool:
    """Whether a packet shows nothing: none of its frames is shown (VP9 bitstream specification, 6.2 and annex B)."""
    data = memoryview(packet)
    return not any(_vp9_shows(data[start : start + size]) for start, size in _vp9_frames(data))


def _vp9_frames(data: memoryview) -> list[tuple[int, int]]:
    """Return (start, size) of each frame in a packet. If the packet is not a superframe, it is one frame."""
    marker = data[-1]
    if marker >> 5 != 0b110:
        return [(0, len(data))]
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = len(data) - 2 - count * width
    if index < 0 or data[index] != marker:
        return [(0, len(data))]
    frames, start = [], 0
    for k in range(count):
        at = index + 1 + k * width
        size = int.from_bytes(data[at : at + width], "little")
        frames.append((start, size))
        start += size
    return frames


def _vp9_shows(frame: memoryview) -> bool:
    if len(frame) == 0 or frame[0] >> 6 != 0b10:
        return len(frame) > 0  # not a VP9 frame: let the decoder decide
    first = frame[0]
    show_existing = 2 if first >> 4 & 3 == 3 else 3  # bit number; in profile 3, a reserved bit comes before it
    return bool(first >> show_existing & 1 or first >> (show_existing - 2) & 1)  # frame_type is between these bits


HIDDEN: Mapping[str, Callable[[Any], bool]] = {"vp8": _vp8_hidden, "vp9": _vp9_hidden}
"""Codec name -> function that says whether a packet shows nothing. Other codecs have no such packets."""
