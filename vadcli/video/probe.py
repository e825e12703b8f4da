"""What a video holds, told without decoding it: every frame's time, size, rotation, frame rate.

The packets of the stream are read once, in file order, and their times put into the order of presentation. The truth to agree
with is what `ffmpeg -i X -fps_mode passthrough` shows.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from vadcli.errors import NoVideoStream, ProbeError
from vadcli.types import IndexArray, VideoInfo
from vadcli.video import container as media
from vadcli.video.hidden import HIDDEN
from vadcli.video.image_frames import probe_folder
from vadcli.video.timeline import NO_TIME, Timeline, build_timeline

_DEFAULT_FPS = 25.0
_CLOCK_JUMP_S = 0.25  # smaller falls are guesses of the demuxer's
_BEGIN_AT_KEY = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "vp8", "vp9", "av1"})
_ROUNDING_S = 0.0011  # containers that count milliseconds show a constant rate as 33 and 34


def probe(path: Path, *, fps: float | None = None) -> VideoInfo:
    """What is known of a video file or a folder of numbered images.

    Args:
        path: the file or the folder.
        fps: frames a second of a folder of images (default 10); files tell their own.

    Raises:
        UnsafeContainer: the file could make a decoder open other files or sockets.
        NoVideoStream: it holds sound or data only; the folder holds no images.
        ProbeError: it can't be read, is cut short, or is no video.
    """
    if path.is_dir():
        return probe_folder(path, fps=fps)
    name = media.shown(path)
    with media.open_media(path) as opened:
        stream = media.pick_stream(opened, name)
        packets = _read_packets(opened, stream, name)
        return _describe(path, opened, stream, packets)


@dataclass
class _Packets:
    """What demuxing one stream gave: one entry a shown frame, in decoding order; compact, as a day has millions of them."""

    pts: array[int] = field(default_factory=lambda: array("q"))
    dts: array[int] = field(default_factory=lambda: array("q"))
    duration: array[int] = field(default_factory=lambda: array("q"))
    keyframe: bytearray = field(default_factory=bytearray)
    hidden_by_edit: int = 0
    hidden_key: bool = False  # an edit list hides a keyframe that what follows builds on
    cut_off: int = 0  # listed in the file's index, but beyond its end

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
            other.discard = av.stream.Discard.all  # spares reading the sound
    try:
        for packet in opened.demux(stream):
            if packet.size == 0:
                continue
            if packet.is_discard:
                packets.hidden_by_edit += 1
                packets.hidden_key = packets.hidden_key or packet.is_keyframe
            elif is_hidden is None or not is_hidden(packet):
                packets.add(packet)
    except av.error.FFmpegError as error:  # what was read before the damage still counts
        if not packets.pts:
            raise ProbeError(f"{name}: no packet of the video stream can be read: {error.strerror}") from error
    if not packets.pts:
        raise NoVideoStream(f"{name}: the video stream holds no frames", hint="the recording may be cut off at its start")
    packets.cut_off = _count_cut_off(opened, stream)
    return packets


def _count_cut_off(opened: Any, stream: Any) -> int:
    """Frames that an MP4's index promises and the end of a truncated file took away."""
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
    )


def _quarter_turn(degrees: float | None) -> int:
    """ffmpeg turns by a quarter only where the matrix is within one degree of it; other angles keep the frame's size."""
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
