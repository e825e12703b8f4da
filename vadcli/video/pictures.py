"""Reads the frames and the sound of a video that is rendered.

`FrameFeed` yields an image for every frame; a lost frame gets the image of the previous frame.

`add_sound` adds the sound of the video to the rendered MP4. An ffmpeg process does this, so if the audio track is broken, only
the sound is missing. If a file was joined from several recordings, its clock restarts at the beginning of each part. The rows
of the video continue where the clock stopped (see `vadcli.video.probe`). But the sound still has the times in the file. So
each part of the sound is moved by as many seconds as its frames.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import av
import numpy as np

from vadcli.errors import DecodeError, DecoderHung, VideoError
from vadcli.types import ByteArray, VideoInfo
from vadcli.types.text import how_many
from vadcli.video.container import open_media
from vadcli.video.ffmpeg import ffmpeg_path
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, Finished, Item, Opened
from vadcli.video.probe import CLOCK_JUMP_S, LONGEST_GAP_S, MOST_ODD
from vadcli.video.supervisor import die_with_parent


def clock_shifts(info: VideoInfo) -> tuple[float, ...]:
    """Return one number per part of a video: the seconds by which its rows are later than in the file.

    A part ends where the clock restarts or jumps; the result is empty if this never happens. A few frames with odd times do not
    count as a part.
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


JOINED_ROWS = 100
"""If two requested frames are less than this apart, both are read in one span.

This costs less than starting a decoder at a keyframe for each requested frame.
"""


class FrameFeed:
    """Yields the images of one video by frame number. A `ClipLoader` reads them.

    Args:
        loader: it must deliver every frame, in color.
        clip_frames: how many frames the loader's clips have.
        source: the video file or folder of images.
        video: relative path of the video.
        frames: how many frames the video is known to have.
        fps: frame rate of a folder of images.
    """

    def __init__(self, loader: ClipLoader, clip_frames: int, source: Path, *, video: str, frames: int, fps: float) -> None:
        self._loader, self._clip_frames = loader, clip_frames
        self._source, self._video, self._frames, self._fps = source, video, frames, fps
        self._info: VideoInfo | None = None
        self._lost = 0
        self._ends: list[str] = []

    @property
    def info(self) -> VideoInfo:
        """The probe's description of the video; RuntimeError before the first image is read."""
        if self._info is None:
            raise RuntimeError("no image was read yet")
        return self._info

    def problems(self) -> list[str]:
        """Return what went wrong so far, one line per problem."""
        lost = (
            [f"{how_many(self._lost, 'frame')} could not be decoded; the previous frame is shown instead"] if self._lost else []
        )
        return lost + self._ends

    def pictures(self, first: int, last: int) -> Generator[tuple[int, ByteArray], None, None]:
        """Yield each frame number in [first, last) with its image (H, W, 3), up to the end of the video.

        An image is valid until the next image is requested. A lost frame gets the image of the previous frame. Raises
        VideoError if no image could be decoded.
        """
        part = last < self._frames
        row, shown = first, None
        with closing(self._items(spans=((first, last),)) if part else self._items(first // self._clip_frames)) as items:
            for item in items:
                if isinstance(item, Opened):
                    continue
                if isinstance(item, Finished):
                    if row < last and shown is None:
                        raise item.error or DecodeError(f"{self._source}: no frame could be decoded from frame {row} on")
                    if row < last:  # yield the frames up to the known end of the video
                        whole = part and not item.error  # only a part was requested, and it was read to its end
                        end = self.info.frames if whole else item.rows.first + len(item.rows)
                        known = max(row, min(last, end))
                        self._lost += known - row
                        yield from ((gone, cast(ByteArray, shown)) for gone in range(row, known))
                        if known < last:
                            why = item.error.message if item.error else "the file now has fewer frames than were scored"
                            self._ends.append(f"ends at frame {known} of {self._frames}: {why}")
                    continue
                seen = False
                for index, own, lost in _rows_of(item, row, last):
                    self._lost += lost
                    seen = seen or not lost
                    picture = own if seen or shown is None else shown
                    yield from ((between, picture) for between in range(row, index + 1))
                    row = index + 1
                if row >= last and not part:  # a request for a part ends by itself, so its decoder process continues
                    return
                if item.clip.valid.any():
                    shown = item.clip.frames[-1].copy()

    def at_rows(self, rows: Sequence[int]) -> Generator[tuple[int, ByteArray], None, None]:
        """Yield these ordered frame numbers, each with its image (H, W, 3); lost frames are left out.

        An image is valid until the next image is requested. Raises VideoError if the video failed before the first image.
        """
        wanted, found = set(rows), False
        with closing(self._items(spans=join_rows(rows))) as items:
            for item in items:
                if isinstance(item, ClipReady):
                    for row, picture, lost in _rows_of(item, 0, self._frames):
                        if row in wanted and not lost:
                            found = True
                            yield row, picture
                elif isinstance(item, Finished) and item.error:
                    if not found:
                        raise item.error
                    self._ends.append(item.error.message)

    def _items(self, start_clip: int = 0, spans: tuple[tuple[int, int], ...] = ()) -> Generator[Item, None, None]:
        request = ClipRequest(self._video, self._source, fps=self._fps, start_clip=start_clip, spans=spans)
        with closing(cast(Generator[Item, None, None], self._loader.run([request]))) as items:
            for item in items:
                if isinstance(item, Opened):
                    self._info = item.info
                yield item


def join_rows(rows: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return spans [first, last) that contain these ordered frames; frames that are close share a span."""
    spans: list[tuple[int, int]] = []
    for row in rows:
        first = spans.pop()[0] if spans and row - spans[-1][1] < JOINED_ROWS else row
        spans.append((first, row + 1))
    return tuple(spans)


def _rows_of(item: ClipReady, first: int, last: int) -> Iterator[tuple[int, ByteArray, bool]]:
    """Yield (frame number, image, lost) for those frames of a clip that are in [first, last), each once."""
    clip = item.clip
    for index, picture, valid in zip(clip.frame_index.tolist(), clip.frames, clip.valid.tolist(), strict=True):
        if first <= index < last:
            yield index, picture, not valid
            first = index + 1


_AUDIO_STREAM = re.compile(r"^\s*Stream #0:\d+.*?: Audio: (\w+)", re.MULTILINE)
_START = re.compile(r"^\s*Duration: .*\bstart: (-?[\d.]+)", re.MULTILINE)
_HIDDEN_AT_MOST_S = 0.05
_BIT_RATE = "160k"


@dataclass(frozen=True)
class Sound:
    """A video's first audio stream.

    Attributes:
        codec: ffmpeg's name of the codec.
        earliest_s: time of the file's earliest packet; the sound starts there or later.
        shifts_s: the seconds by which each part of the sound must be moved, if the clock restarts in the file; else empty.
        problem: a message if a part of the sound can't be used; else empty.
    """

    codec: str
    earliest_s: float
    shifts_s: tuple[float, ...] = ()
    problem: str = ""


def find_sound(info: VideoInfo, *, timeout_s: float = 60.0) -> Sound | None:
    """Return the first audio stream according to the file's header; None if the video has no sound.

    If the clock restarts in the file, the whole file is read to find the parts of the sound. Raises DecoderHung if the header
    could not be read within the time limit.
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
    pictures: Path, target: Path, *, info: VideoInfo, sound: Sound, start_s: float, duration_s: float, timeout_s: float = 60.0
) -> None:
    """Write an MP4 of a silent video and the source's first audio stream, synchronized as in the source.

    AAC is copied if almost nothing has to be cut off; otherwise the sound is encoded again as AAC. Sound before the first frame
    is left out.

    Args:
        pictures: a silent MP4 that starts at time 0.
        target: the file to write.
        info: the video that the sound comes from.
        sound: the result of `find_sound`.
        start_s: time of the first frame, measured from the source's first pts.
        duration_s: duration of the silent MP4.
        timeout_s: the time limit in seconds, in addition to `duration_s`.

    Raises:
        DecodeError: ffmpeg failed; the message has ffmpeg's last line.
        DecoderHung: ffmpeg took too long.
    """
    zero_s = float(info.pts[0] * info.time_base) + start_s
    may_seek = start_s > 0 and not sound.shifts_s  # if the clock restarts, a time can be in several parts
    seek = ["-noaccurate_seek", "-seek_timestamp", "1", "-ss", f"{zero_s:.6f}"] if may_seek else []
    # A copy still contains the sound that is cut off. An edit list hides this sound, but some players ignore edit lists.
    may_copy = sound.codec == "aac" and not sound.shifts_s and zero_s - sound.earliest_s < _HIDDEN_AT_MOST_S
    # The filters pad or trim the sound so that it starts at time 0. So the encoded track needs no edit list.
    filters = "atrim=start=0,aresample=async=1:first_pts=0"
    if sound.shifts_s:  # move each part of the sound
        restarted = f"gt(N,0)*max(lt(T,ld(1)-{CLOCK_JUMP_S}),gt(T,ld(1)+{LONGEST_GAP_S}))"
        steps = np.diff(sound.shifts_s).tolist()
        moved = "".join(f"+gte(ld(0),{part + 1})*{step:.6f}" for part, step in enumerate(steps))
        shifting = f"asetpts='st(0,ld(0)+{restarted});st(1,T);PTS+({sound.shifts_s[0]:.6f}{moved})/TB'"
        filters = f"{shifting},{filters}"
    encode = ["-c:a", "aac", "-b:a", _BIT_RATE, "-ac", "2", "-af", filters]
    arguments = [
        *("-i", f"file:{pictures}"),
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
    """Return the input arguments for this file. They name the demuxer and allow only plain files."""
    return ["-protocol_whitelist", "file", "-f", info.demuxer.split(",")[0], "-i", f"file:{info.path}"]


def run_ffmpeg(
    arguments: list[str], info: VideoInfo, *, verbosity: str, timeout_s: float, what: str = "read no sound"
) -> subprocess.CompletedProcess[str]:
    """Run ffmpeg with these arguments on a video, and return its exit code and messages.

    Raises DecoderHung if ffmpeg took longer than `timeout_s`. The message then contains `what`, such as "read no sound".
    """
    command = [ffmpeg_path(), "-nostdin", "-hide_banner", "-v", verbosity, *arguments]
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
