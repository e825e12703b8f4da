"""Finds the parts of a file that was joined from several recordings, and moves the sound of each part to its frames.

The clock of such a file restarts at the beginning of a part. The rows of the video continue where the clock stopped (see
`vadcli.video.timeline`). The sound still has the times in the file, so each part of it must be moved by as much as the frames.
"""

from __future__ import annotations

from contextlib import suppress

import av
import numpy as np

from vadcli.errors import VideoError
from vadcli.types import VideoInfo
from vadcli.video.container import open_media
from vadcli.video.timeline import CLOCK_JUMP_S, LONGEST_GAP_S, MOST_ODD


def clock_shifts(info: VideoInfo) -> tuple[float, ...]:
    """Return, for each part of a video, how many seconds its rows are later than their times in the file.

    Empty if the clock neither restarts nor jumps. A few frames with odd times do not count as a part.
    """
    if not len(info.shown_pts):
        return ()
    shifts = (info.pts - info.shown_pts) * float(info.time_base)
    runs = np.split(shifts, np.flatnonzero(np.abs(np.diff(shifts)) > CLOCK_JUMP_S) + 1)
    found: list[float] = []
    for run in runs:
        shift = float(np.median(run))
        if len(run) > MOST_ODD and (not found or abs(shift - found[-1]) > CLOCK_JUMP_S):
            found.append(shift)
    return tuple(found) if len(found) > 1 or any(abs(shift) > CLOCK_JUMP_S for shift in found) else ()


def sound_parts(info: VideoInfo) -> int:
    """Return into how many parts restarts of the clock divide the first audio stream."""
    count, last = 1, None
    with suppress(VideoError, av.error.FFmpegError), open_media(info.path) as opened:
        for packet in opened.demux(opened.streams.audio[0]):
            if packet.pts is None:
                continue
            at = float(packet.pts * packet.time_base)
            if last is not None and not -CLOCK_JUMP_S <= at - last <= LONGEST_GAP_S:
                count += 1
            last = at
    return count


def shifting_filter(shifts: tuple[float, ...]) -> str:
    """Return the ffmpeg filter that moves each part of the sound; `shifts` is in seconds, one per part."""
    steps = np.diff(shifts).tolist()
    restarted = f"gt(N,0)*max(lt(T,ld(1)-{CLOCK_JUMP_S}),gt(T,ld(1)+{LONGEST_GAP_S}))"
    moved = "".join(f"+gte(ld(0),{part + 1})*{step:.6f}" for part, step in enumerate(steps))
    return f"asetpts='st(0,ld(0)+{restarted});st(1,T);PTS+({shifts[0]:.6f}{moved})/TB'"
