"""Cuts a part out of a video file without encoding: an ffmpeg process copies the packets, from a keyframe on.

A player can begin only at a keyframe. So the part begins at the last keyframe at or before the wanted time, or at an earlier
keyframe if ffmpeg cannot find that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from vadcli.errors import DecodeError
from vadcli.types import VideoInfo
from vadcli.video.container import can_jump, has_times
from vadcli.video.pictures import clock_shifts, find_sound, run_ffmpeg, source_arguments

MUXERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".3gp": "3gp",
    ".mkv": "matroska",
    ".webm": "webm",
    ".avi": "avi",
    ".ts": "mpegts",
    ".mts": "mpegts",
    ".m2ts": "mpegts",
    ".mpg": "mpeg",
    ".mpeg": "mpeg",
    ".flv": "flv",
}
"""Suffix -> ffmpeg's name of the container that is written."""

# In containers other than MP4, ffmpeg seeks this much earlier if pictures are reordered (3/23 s in its source).
_SEEKS_EARLIER_S = 3 / 23
# In transport and program streams, ffmpeg seeks by decoding time, which is earlier than the time of presentation, and the copy
# begins at the next keyframe. So ffmpeg must seek to a little before the keyframe.
_DECODED_EARLIER_S = 0.1


@dataclass(frozen=True)
class Cut:
    """A part of a video, in seconds from its first frame.

    Attributes:
        start_s: time of the keyframe at which the part begins.
        end_s: time at which the part ends.
    """

    start_s: float
    end_s: float


def why_uncuttable(info: VideoInfo) -> str:
    """Return the reason why a video cannot be cut without encoding; "" if it can be cut."""
    if info.images:
        return "a folder of images has no packets to copy"
    if not has_times(info.demuxer):
        return "a raw stream has no times by which it could be cut"
    return "its clock restarts, so a time can be in several parts of the file" if clock_shifts(info) else ""


def plan_cut(info: VideoInfo, start_s: float, end_s: float) -> Cut:
    """Return the part of the video that contains all frames from `start_s` to `end_s` and begins at a keyframe."""
    times = info.timestamps(info.pts)
    keys = times[info.keyframes]
    before = keys[keys <= max(start_s, 0.0) + 1e-6]
    return Cut(float(before[-1]) if len(before) else 0.0, min(end_s, info.duration_s))


def cut_file(
    info: VideoInfo,
    target: Path,
    part: Cut,
    *,
    sound: bool = True,
    tags: Mapping[str, str] = MappingProxyType({}),
    timeout_s: float = 60.0,
) -> None:
    """Copy a part of a video, with all its sound, into a file. The suffix of `target` chooses the container.

    Args:
        info: the probe of the video.
        target: the file to write; its suffix is one of `MUXERS`.
        part: the part to copy.
        sound: False leaves out the sound.
        tags: metadata to write. The metadata of the source is left out, because its times would be wrong.
        timeout_s: the time limit in seconds, in addition to the length of the part.

    Raises:
        DecodeError: ffmpeg failed, perhaps because the container cannot hold the codec; the message has ffmpeg's first line.
        DecoderHung: ffmpeg took too long.
    """
    begin, begins_s = _begin(info, part.start_s, timeout_s)
    tagged = [word for name, value in tags.items() for word in ("-metadata", f"{name}={value}")]
    apple = ["-tag:v", "hvc1"] if info.codec == "hevc" and target.suffix in (".mp4", ".mov", ".m4v") else []
    arguments = [
        *("-y", "-fflags", "+genpts", *begin),
        *(word for name, value in info.look.items() for word in (f"-{name}", str(value))),
        *source_arguments(info),
        *("-map", f"0:{info.stream_index}", *(["-map", "0:a?"] if sound else [])),
        *("-c", "copy", "-t", f"{part.end_s - begins_s:.6f}", "-avoid_negative_ts", "make_zero"),
        *("-map_metadata", "-1", "-map_chapters", "-1", *tagged, *apple),
        *(["-movflags", "+faststart"] if MUXERS[target.suffix] in ("mp4", "mov") else []),
        *("-f", MUXERS[target.suffix], f"file:{target}"),
    ]
    done = run_ffmpeg(arguments, info, verbosity="error", timeout_s=timeout_s + part.end_s - part.start_s, what="cut nothing")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ffmpeg ended with status {done.returncode}"]
        raise DecodeError(f"{info.path}: can't be cut; ffmpeg reports: {lines[0]}")


def _begin(info: VideoInfo, start_s: float, timeout_s: float) -> tuple[list[str], float]:
    """Return the arguments that make ffmpeg begin at the keyframe at `start_s`, and the time from which `-t` counts."""
    zero_s = float(info.pts[0] * info.time_base)
    if start_s <= 0:
        sound = find_sound(info, timeout_s=timeout_s)  # sound before the first frame is copied too
        return [], min(0.0, sound.earliest_s - zero_s) if sound else 0.0
    seek_s = _seek_s(info, start_s)
    return ["-seek_timestamp", "1", "-ss", f"{zero_s + seek_s:.6f}"], seek_s


def _seek_s(info: VideoInfo, start_s: float) -> float:
    """Return the time to which ffmpeg must seek, so that it begins at the keyframe at `start_s`."""
    if can_jump(info.demuxer) and info.demuxer != "flv":
        return start_s - _DECODED_EARLIER_S
    little_s = 0.25 / info.fps  # times are rounded in some containers
    keys = info.timestamps(info.pts)[info.keyframes]
    later = keys[keys > start_s + little_s]
    room_s = float(later[0]) - start_s if len(later) else np.inf
    return start_s + little_s + (_SEEKS_EARLIER_S if room_s > _SEEKS_EARLIER_S + 2 * little_s else 0.0)
