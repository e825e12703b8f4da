"""Describes a video without decoding it: the times of its frames, size, rotation and frame rate.

The probe reads the packets of the video stream once, in file order. It drops packets that show no frame (`headers`), and sorts
the other packets by the times of their frames (`timeline`). The probe must find exactly the frames that
`ffmpeg -i X -fps_mode passthrough` shows. A row is the index of a frame in this order.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from vadcli.errors import NoVideoStream, ProbeError
from vadcli.types import VideoInfo
from vadcli.video import container as media
from vadcli.video.decoders import probe_folder
from vadcli.video.headers import Shows, begins_intra, frame_counter, reference_counter
from vadcli.video.sampling import can_skip
from vadcli.video.timeline import CLOCK_JUMP_S, LONGEST_GAP_S, NO_TIME, PacketTimes, build_timeline

_DEFAULT_FPS = 25.0
_BEGIN_AT_KEY = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "vp8", "vp9", "av1"})
_SKIPPING = frozenset({"matroska", "avi", "asf", "asf_o", "flv", "live_flv", "nut", "ogg", "rm", "apng"})
"""Demuxers that skip damage and log an error.

The errors of other demuxers (MXF, MOV, MPEG-TS) are ignored, because healthy files cause them too.
"""
_LIVE_ENDS = "ended prematurely"  # not an error: a live recording declares no length, and may end anywhere
_MPEG = frozenset({"mpeg1video", "mpeg2video"})
_LONGEST_PIXEL = 5.0  # longer side of a pixel / shorter side; a larger ratio, such as 1000:1, is a mistake in the file
_MOST_TRIES = 1 << 20  # if the demuxer returns no packet in this many calls, the file counts as ended
_ROUNDING_S = 0.0011  # if times are rounded to ms, a constant rate of 30 frames per second has steps of 33 and 34 ms


def probe(path: Path, *, fps: float | None = None) -> VideoInfo:
    """Describe a video file or a folder of numbered images without decoding it.

    Args:
        path: the file or the folder.
        fps: frames per second of a folder of images (default 10). Ignored for a file, because files state their rate.

    Raises:
        UnsafeContainer: the file could make a decoder open other files or sockets.
        NoVideoStream: the file has only sound or data, or the folder has no images.
        ProbeError: the file cannot be read, is cut short, or is not a video.
    """
    if path.is_dir():
        return probe_folder(path, fps=fps)
    name = media.path_text(path)
    messages: list[media.Message] = []
    with media.open_media(path, messages=messages) as opened:
        stream = media.pick_stream(opened, name)
        others = media.OtherStreams(stream)
        with media.listening() as later_messages:
            packets = _read_packets(opened, stream, name, others)
        demuxer = opened.format.name
        if not packets.damage and demuxer.split(",")[0] in _SKIPPING:
            messages += later_messages
            errors = [text.strip().rstrip(".") for _, source, text in messages if source == demuxer and _LIVE_ENDS not in text]
            packets.damage = f"the file is damaged: {errors[0]}" if errors else ""
        packets.damage = packets.damage or media.missing_end(path, demuxer)
        return _with_missing(_describe(path, opened, stream, packets), opened, stream, packets, others)


@dataclass
class _Packets:
    """The packets of one stream: one entry per shown frame, in decoding order.

    Arrays need less memory than lists, and a video of one day has millions of frames.
    """

    pts: array[int] = field(default_factory=lambda: array("q"))
    dts: array[int] = field(default_factory=lambda: array("q"))
    duration: array[int] = field(default_factory=lambda: array("q"))
    keyframe: bytearray = field(default_factory=bytearray)
    reference: bytearray = field(default_factory=bytearray)
    may_skip: bool = True  # decoders can safely leave out frames to which no other frame refers
    hidden_by_edit: int = 0  # number of packets that an edit list hides
    hidden_key: bool = False  # an edit list hides a keyframe that later frames refer to
    cut_off: int = 0  # number of frames that the index lists, but that would come after the end of the file
    begun: bool = False  # a keyframe was read
    packed: bool = False  # some packets contain two frames, so decoders report other times
    one_frame_each: bool = True  # every packet shows one frame, or is a reference picture that is never shown
    read: int = 0  # number of packets with data, including packets that show no frame
    empty: int = 0  # number of packets without data
    damage: str = ""  # where the container could not be read, and why

    def add(self, packet: Any, reference: bool | None, *, keyframe: bool) -> None:
        """Append a packet that shows a frame."""
        self.reference.append(reference is not False)
        self.may_skip = self.may_skip and reference is not None and not packet.is_corrupt
        self.pts.append(NO_TIME if packet.pts is None else packet.pts)
        self.dts.append(NO_TIME if packet.dts is None else packet.dts)
        self.duration.append(packet.duration or 0)
        self.keyframe.append(keyframe)
        self.begun = self.begun or keyframe

    def prolong(self, packet: Any) -> None:
        """Make the last frame longer by the duration of a packet that shows no new frame."""
        self.one_frame_each = False
        if self.duration and self.duration[-1] > 0:
            self.duration[-1] += packet.duration or 0

    def note_damage(self, why: str) -> None:
        """Store the reason why the container cannot be read from this packet on. Later reasons are ignored."""
        self.damage = self.damage or f"the file is damaged after {self.read} packets: {why}"


def _across_holes(opened: Any, packets: _Packets) -> Iterator[Any]:
    """Yield the packets of all video streams. Continue after a hole: a part of the file without a packet.

    If a demuxer finds no packet for a while (MPEG-TS: in 64 kB), it asks to be called again. This function calls the demuxer
    again, as ffmpeg does.
    """
    tries = 0
    while tries < _MOST_TRIES:
        try:
            for packet in media.video_packets(opened):
                tries = 0
                yield packet
            return
        except av.error.BlockingIOError:
            packets.note_damage("a part of it cannot be read")
            tries += 1


def _read_packets(opened: Any, stream: Any, name: str, others: media.OtherStreams) -> _Packets:
    packets, demuxer = _Packets(), opened.format.name.split(",")[0]
    codec, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata
    count, refers = frame_counter(codec, extradata), reference_counter(codec, extradata)
    try:
        for packet in _across_holes(opened, packets):
            if packet.stream_index != stream.index:
                others.add(packet)
                continue
            if packet.size == 0:
                packets.empty += packet.dts is not None
                if packet.dts is not None:  # the recorder dropped a frame; at the end of the file, dts is None
                    packets.prolong(packet)
                continue
            packets.read += 1
            if packet.is_corrupt and not media.can_jump(demuxer):
                packets.note_damage("a packet is cut off")
            others.add_own()
            shows = count(packet) if count else Shows.FRAME
            if packet.is_discard:
                packets.hidden_by_edit += 1
                packets.hidden_key = packets.hidden_key or packet.is_keyframe
            elif shows in (Shows.FRAME, Shows.FRAME_AND_NEXT):
                keyframe = packet.is_keyframe or (codec in _MPEG and not packets.begun and begins_intra(packet))
                packets.add(packet, refers(packet) if refers else None, keyframe=keyframe)
                packets.packed = packets.packed or shows is Shows.FRAME_AND_NEXT
            elif shows is Shows.MORE:
                packets.prolong(packet)
    except av.error.FFmpegError as error:  # the packets before the damage are still used
        if not packets.pts:
            raise ProbeError(f"{name}: no packet of the video stream can be read: {error.strerror}") from error
        packets.note_damage(str(error.strerror))
    if not packets.pts:
        raise NoVideoStream(f"{name}: the video stream has no frames", hint="the start of the recording may be missing")
    index = stream.index_entries if demuxer == "mov" else ()
    packets.cut_off = sum(entry.pos >= opened.size and not entry.is_discard for entry in index)
    if demuxer == "avi" and packets.read + packets.empty < len(stream.index_entries):
        packets.note_damage("not all of the frames in its index can be found")
    return packets


def _describe(path: Path, opened: Any, stream: Any, packets: _Packets) -> VideoInfo:
    demuxer, codec = opened.format.name.split(",")[0], str(stream.codec_context.codec.canonical_name)
    time_base = Fraction(stream.time_base)
    nominal = stream.average_rate or stream.guessed_rate or stream.base_rate or Fraction(_DEFAULT_FPS)
    frame_ticks = max(1, round(1 / time_base / nominal))
    # These arrays share their memory with `packets`.
    pts, dts, duration = (np.frombuffer(times, np.int64) for times in (packets.pts, packets.dts, packets.duration))
    timeline = build_timeline(
        PacketTimes(pts, dts, duration, np.frombuffer(packets.keyframe, np.bool_)),
        frame_ticks=frame_ticks,
        longest_gap_ticks=max(round(LONGEST_GAP_S / time_base), frame_ticks),
        jump_ticks=round(CLOCK_JUMP_S / time_base) if media.can_jump(demuxer) else None,
        timed=media.has_times(demuxer),
        reorders=stream.codec_context.has_b_frames or bool(np.any((pts != dts) & (pts != NO_TIME) & (dts != NO_TIME))),
        needs_key=codec in _BEGIN_AT_KEY and not packets.hidden_key,
        cut_off=packets.cut_off,
    )
    time_base /= timeline.finer
    width, height, rotation = _display_size(stream, media.display_matrix_degrees(opened, stream.index))
    frames, span = len(timeline.pts), int(timeline.pts[-1]) - int(timeline.pts[0])
    steps = np.diff(timeline.pts)
    duration_s = float((span + timeline.last_ticks) * time_base)
    info = VideoInfo(
        path=path,
        demuxer=demuxer,
        codec=codec,
        stream_index=int(stream.index),
        width=width,
        height=height,
        rotation=rotation,
        time_base=time_base,
        pts=timeline.pts,
        fps=float((frames - 1) / (span * time_base)) if span > 0 else float(nominal),
        duration_s=duration_s,
        vfr=frames > 2 and int(steps.max()) - int(steps.min()) > max(2.0, _ROUNDING_S / float(time_base)),
        edit_list=packets.hidden_by_edit > 0,
        shown_pts=timeline.shown_pts,
        keyframes=timeline.keyframes,
        created=media.recording_start(opened, stream, duration_s),
        guessed_times=timeline.guessed or packets.packed or not media.has_exact_pts(demuxer, codec),
        one_frame_per_packet=packets.one_frame_each and not packets.packed,
    )
    may_skip = packets.may_skip and not packets.damage and not packets.cut_off and can_skip(info)
    return replace(info, reference=np.frombuffer(packets.reference, np.bool_)[timeline.order]) if may_skip else info


def _with_missing(info: VideoInfo, opened: Any, stream: Any, packets: _Packets, others: media.OtherStreams) -> VideoInfo:
    """Return `info` with the number of missing frames, the reason, and a note about other streams."""
    first_s = float(int(info.pts[0]) * info.time_base)
    end_s = first_s + info.duration_s
    stated = np.frombuffer(packets.pts, np.int64)
    if bool(np.any(stated != NO_TIME)):  # like the declared length, these times include jumps of the clock
        end_s = max(end_s, float(int(stated.max()) * Fraction(stream.time_base)))
    longest_s = float(int(np.diff(info.pts).max()) * info.time_base) if info.frames > 1 else 0.0
    read = media.Read(packets.read, first_s, end_s, info.fps, longest_s)
    missing, reason = others.missing(read, unlisted=media.unlisted_streams(opened) if media.can_jump(info.demuxer) else 0)
    # If somebody set the camera's clock forward during the recording, the declared length is too long. So it is not used.
    was_set = len(info.shown_pts) > 1 and float(np.diff(info.shown_pts).max() * info.time_base) > LONGEST_GAP_S
    cut = 0 if was_set else media.missing_frames(opened, stream, info.path, read)
    if cut:
        reason = "; ".join(filter(None, ["the file ends before the length that it declares", reason]))
    elif packets.damage and not missing:
        missing, reason = 1, packets.damage
    described = {s.index: f"{s.index} ({media.describe(s)})" for s in opened.streams if s.type == "video"}
    return replace(
        info,
        missing=missing + cut,
        missing_reason=reason,
        note=others.note(described),
        probe_options=media.probe_options(opened),
    )


def _display_size(stream: Any, degrees: float | None) -> tuple[int, int, int]:
    """Return width and height as a player shows them, and the rotation: 0, 90, 180 or 270 degrees.

    If pixels are not square, the width is stretched and the height stays, as in ffplay and VLC. The aspect ratio of the pixels
    is taken from the container or, if the container states none, from the codec.
    """
    width, height = int(stream.codec_context.width), int(stream.codec_context.height)
    aspect = float(stream.sample_aspect_ratio or 1)
    # If an encoder scales to whole pixels, it writes an aspect ratio like 1280:1281. Such pixels count as square.
    by_rounding = abs(width * aspect - width) <= 1 or abs(height / aspect - height) <= 1
    if not by_rounding and 1 / _LONGEST_PIXEL <= aspect <= _LONGEST_PIXEL:
        width = max(1, round(width * aspect))
    rotation, nearest = 0, round((degrees or 0.0) / 90.0) * 90
    if degrees is not None and abs(degrees - nearest) < 1.0:  # other angles are ignored, as in ffmpeg
        rotation = nearest % 360
    return (height, width, rotation) if rotation in (90, 270) else (width, height, rotation)
