"""Reads the frames of a video in order, with decord, ffmpeg or Pillow (`FrameReader`).

With the decoder choice `auto`, decord reads a video if all of these conditions are true. The reason: decord starts no process.

- The video is short, and the file is not damaged.
- The caller needs gray frames.
- decord is known to read files of this kind correctly (see `vadcli.video.decoders`).

ffmpeg reads all other videos. On long videos, it is at least as fast as decord. It also reports in which frames it concealed
damage.

The rows are the same for every decoder: one row per frame that a player shows, in presentation order, without gaps. Lost frames
have rows too. `RowMatcher` finds the row of a decoded frame: it compares the frame's time with the times that the probe found.
If the file's times are guessed, `RowMatcher` counts frames instead.
"""

from __future__ import annotations

import enum
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np

from vadcli.errors import DecodeError
from vadcli.types import DecoderChoice, DecoderName, PixelFormat, VideoInfo
from vadcli.video.container import path_text
from vadcli.video.decoders import Backend, DecordFrames, Frame, ImageFrames, ReadRequest, can_read, is_short
from vadcli.video.ffmpeg import DamageFound, FfmpegFrames
from vadcli.video.sampling import choose_selection, seek_row

__all__ = ["Frame", "FrameReader", "ReadRequest"]


@dataclass(frozen=True)
class Row:
    """Index and pts of one frame of the video."""

    index: int
    pts: int


class SeekMissed(Exception):
    """Raised if, after a seek, a decoder begins after the requested row, or at a time that no row has."""


class RowMatcher:
    """Finds the row of each shown frame. Call `place` for the frames of one decoder in order.

    Frames are matched by time: a frame belongs to the row whose time differs from the frame's time by less than half the
    duration of a frame. There is one exception: if the times of the rows are guessed, repeat or jump back, a decoder may report
    other times. In this case, frames are matched by order, and count as lost only if the decoder reported an error.

    If the probe did not find a frame, the frame gets a new row after the last row that was placed. In a damaged file, a frame
    may come too late: if its row already counts as lost, the frame gets no row.

    Args:
        info: the probe's description of the video.
        sought: the row to which the decoder seeks; the decoder may begin at an earlier row. None if the decoder reads from the
            beginning.
    """

    def __init__(self, info: VideoInfo, *, sought: int | None = None) -> None:
        self._expected = info.shown_pts if len(info.shown_pts) else info.pts
        self._pts = info.pts
        self._guessed = info.guessed_times
        self._monotone = bool(np.all(np.diff(self._expected) > 0))
        self._frame_ticks = max(1, round(1 / (info.fps * info.time_base)))
        # If an MPEG-4 stream ends with packets without a coded picture, ffmpeg 6.1 and later show the last frame once more.
        self._ends_with_repeat = info.codec == "mpeg4" and not info.one_frame_per_packet
        self._shift = 0
        self._begun = False
        self._sought = sought
        self._next = 0  # position in the probe's frames
        self._added = 0  # frames that the probe did not find
        self._last_pts: int | None = None

    def place(self, pts: int | None, *, after_error: bool = False) -> tuple[list[Row], Row | None]:
        """Return the rows that were lost before this frame, and the row of this frame.

        The row is None if the frame is repeated or comes too late.

        Args:
            pts: time of the frame in the probe's time base; None if unknown.
            after_error: True if the decoder reported an error after the previous frame.

        Raises:
            SeekMissed: the decoder began after `sought`, or at a time that no row has.
        """
        if not self._begun:
            self._begun = True
            known = np.flatnonzero(self._expected == pts) if pts is not None else self._expected[:0]
            if self._sought is not None:
                if len(known) != 1 or known[0] > self._sought:
                    raise SeekMissed
                self._next = int(known[0])
            elif pts is not None and (self._guessed or len(known) == 0):
                self._shift = pts - int(self._expected[0])
        position = self._position(pts, after_error)
        if position is None:
            return [], self._unforeseen(pts)
        lost = [self._foreseen(k) for k in range(self._next, position)]
        row = self._foreseen(position)
        self._next = position + 1
        if self._guessed and pts is not None:
            self._shift = pts - int(self._expected[position])
        return lost, row

    def _position(self, pts: int | None, after_error: bool) -> int | None:
        """Return the frame's index in the probe's list of frames; None if the list has no such frame.

        Only frames from index `_next` on are compared.
        """
        following = self._next if self._next < len(self._expected) else None
        if following is None or pts is None or (self._guessed and not after_error):
            return following
        wanted = pts - self._shift
        if self._expected[following] == wanted:
            return following
        if not self._monotone:
            later = np.flatnonzero(self._expected[following:] == wanted)
            return following + int(later[0]) if len(later) else following
        after = int(np.searchsorted(self._expected, wanted))
        near = [k for k in (after - 1, after) if following <= k < len(self._expected)]
        best = min(near, key=lambda k: abs(int(self._expected[k]) - wanted), default=None)
        return best if best is not None and 2 * abs(int(self._expected[best]) - wanted) < self._frame_ticks else None

    def _foreseen(self, position: int) -> Row:
        return self._row(position + self._added, int(self._pts[position]))

    def _unforeseen(self, pts: int | None) -> Row | None:
        """Return a new row for a frame that the probe did not find; None for a repeated or late frame."""
        if self._ends_with_repeat and self._next == len(self._expected):
            return None
        time = None if pts is None else pts - self._shift
        ordered = self._monotone and not self._guessed
        if time is not None and ordered and bool(np.any(self._expected[: self._next] == time)):
            return None
        index = self._next + self._added
        self._added += 1
        if (time is None or not self._monotone) and self._last_pts is not None:
            return self._row(index, self._last_pts + self._frame_ticks)
        return self._row(index, time or 0)

    def _row(self, index: int, pts: int) -> Row:
        if self._last_pts is not None and pts <= self._last_pts:
            pts = self._last_pts + 1
        self._last_pts = pts
        return Row(index, pts)


class _Outcome(enum.Enum):
    """How the work of one decoder ended."""

    ENDED = enum.auto()
    NOTHING = enum.auto()  # no frame was shown
    UNSAFE = enum.auto()  # a needed frame is damaged or missing; from this frame on, all frames must be decoded
    UNSELECTED = enum.auto()  # ffmpeg did not select a sampled row, so ffmpeg's frame numbers differ from the row numbers


class FrameReader:
    """Iterates over the rows of a video from `request.start` on, in order and without gaps.

    The rows end where the file ends, so there may be fewer rows than `info.frames`. Do not share a reader between threads.
    Close the reader, or use it in a `with` statement, because the reader may have started ffmpeg.

    Attributes:
        decoder: the decoder that delivered the last frame.
        complaints: the decoder's last messages.
        note: why ffmpeg read the video after decord failed; empty if decord did not fail.

    Raises:
        DecodeError: no suitable decoder is installed, or no frame can be decoded.
    """

    def __init__(self, info: VideoInfo, request: ReadRequest, *, decoder: DecoderChoice = "auto", threads: int = 0) -> None:
        self.decoder = DecoderName.IMAGES if info.demuxer == "images" else DecoderName.FFMPEG
        self.complaints = ""
        self._info = info
        self._request = request
        self.note = ""
        self._choice = decoder
        self._threads = threads
        with_decord = decoder == "decord"
        if decoder == "auto" and info.demuxer != "images" and request.pixel_format is PixelFormat.GRAY and is_short(info):
            with_decord = can_read(info, upright=True)
        if with_decord:
            self.decoder = DecoderName.DECORD  # set before decord is used, because decord may crash
        self._due = request.start  # the next row to yield
        self._last_pts: int | None = None
        self._rows = self._read()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Frame:
        frame = next(self._rows)
        if self._last_pts is not None and frame.pts <= self._last_pts:
            # After a second start of ffmpeg in a damaged file, the frames may have other times than after the first start.
            frame = replace(frame, pts=self._last_pts + 1)
        self._last_pts = frame.pts
        return frame

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the decoder. A second call does nothing."""
        self._rows.close()

    def _read(self) -> Generator[Frame, None, None]:
        if self._info.demuxer == "images":
            images = ImageFrames(self._info, self._request)
            yield from self._deliver(images, RowMatcher(self._info, sought=self._due))
        elif self._choice == "decord":
            yield from self._read_decord(checked=False)
        elif self._choice == "auto" and self.decoder is DecoderName.DECORD:
            try:
                yield from self._read_decord(checked=True)
            except DecodeError as error:  # the file is damaged or differs from the probe; no frame was yielded yet
                self.complaints = error.message
                why = error.message.removeprefix(f"{path_text(self._info.path)}: ")  # the caller names the file
                self.note = f"decord failed, so ffmpeg read the video: {why}"
                yield from self._read_ffmpeg(threads=1)
        else:
            yield from self._read_ffmpeg(threads=self._threads)

    def _read_decord(self, *, checked: bool) -> Generator[Frame, None, None]:
        if not can_read(self._info):
            raise DecodeError(f"{path_text(self._info.path)}: decord cannot read this kind of file", hint="use --decoder auto")
        frames = DecordFrames(self._info, self._request, threads=self._threads, checked=checked)
        self.decoder = DecoderName.DECORD
        yield from self._deliver(frames, RowMatcher(self._info, sought=self._due))

    def _read_ffmpeg(self, *, threads: int) -> Generator[Frame, None, None]:
        """Yield all rows from the next row on.

        Begin with the fastest options. If these prove unsafe for the file, start ffmpeg again with slower options.
        """
        info, request = self._info, self._request
        self.decoder = DecoderName.FFMPEG
        may_seek, every_image, skips = True, False, request.needed is not None
        while True:
            row = seek_row(info, self._due) if may_seek else None
            seek_pts = None if row is None else int(info.pts[row])
            selection = choose_selection(
                info,
                request.interval,
                self._due,
                sought=row is not None,
                every_image=every_image,
                sampled=request.sampled,
            )
            skip = "" if not skips else "nokey" if request.only_keys else "noref"
            # ffmpeg gives each frame to the next thread, also a frame that is left out. A thread with such a frame has no work,
            # so ffmpeg needs more threads than cores. Above 16 threads, ffmpeg prints a warning.
            used = max(threads, min(16, 4 * threads)) if threads > 1 else threads
            backend = FfmpegFrames(info, request.shape, selection, seek_pts=seek_pts, threads=used, skip=skip)
            deliver = self._deliver_needed if skips else self._deliver
            try:
                outcome = yield from deliver(backend, RowMatcher(info, sought=row))
            except SeekMissed:
                may_seek = False
                continue
            except DamageFound:
                threads = 1
                continue
            if outcome is _Outcome.ENDED:
                return
            if outcome is _Outcome.UNSAFE:
                skips = False
            elif outcome is _Outcome.UNSELECTED and not every_image:
                every_image = True
            elif row is not None:
                may_seek = False
            else:
                raise DecodeError(
                    f"{path_text(info.path)}: no frame can be decoded",
                    hint=f"the decoder reports: {self.complaints}" if self.complaints else "",
                )

    def _deliver(self, backend: Backend, matcher: RowMatcher) -> Generator[Frame, None, _Outcome]:
        """Yield the rows of one decoder from row `_due` on, then close the decoder."""
        outcome = _Outcome.NOTHING
        try:
            for frame in backend:
                outcome = _Outcome.ENDED
                lost, row = matcher.place(frame.pts, after_error=frame.after_error)
                for lost_row in lost:
                    if self._is_wanted(lost_row):
                        self._due = lost_row.index + 1
                        yield Frame(lost_row.index, lost_row.pts, ok=False, image=None)
                if row is None:
                    continue
                if self._is_past(row):
                    return outcome
                if self._is_wanted(row):
                    sampled = self._request.samples(row.index)
                    if sampled and not frame.selected:
                        return _Outcome.UNSELECTED
                    self._due = row.index + 1
                    yield Frame(row.index, row.pts, frame.ok, frame.image if sampled else None)
            return outcome
        finally:
            backend.close()
            self.complaints = backend.complaints or self.complaints

    def _deliver_needed(self, backend: Backend, matcher: RowMatcher) -> Generator[Frame, None, _Outcome]:
        """Do the work of `_deliver` for a decoder that leaves out frames.

        The rows of the frames that are left out count as undamaged.

        At the first sign of damage, stop with the outcome UNSAFE. A decoder with several threads raises `DamageFound` before
        the first damaged frame, and is replaced by a decoder with one thread. So the number of threads does not change the
        result.
        """
        request, info = self._request, self._info
        assert request.needed is not None
        end = info.frames if request.stop is None else min(request.stop, info.frames)
        try:
            for frame in backend:
                lost, row = matcher.place(frame.pts)
                foreseen = row is not None and row.index < info.frames and row.pts == info.pts[row.index]
                if row is None or not foreseen or not frame.ok or frame.after_error:
                    return _Outcome.UNSAFE
                sampled = request.samples(row.index)
                if sampled and not frame.selected and self._is_wanted(row):
                    return _Outcome.UNSAFE
                if any(request.needed[lost_row.index] for lost_row in lost if self._is_wanted(lost_row)):
                    return _Outcome.UNSAFE
                yield from self._left_out(min(row.index, end))
                if self._is_past(row):
                    return _Outcome.ENDED
                if self._is_wanted(row):
                    self._due = row.index + 1
                    yield Frame(row.index, row.pts, True, frame.image if sampled else None)
            if request.needed[self._due : end].any():
                return _Outcome.UNSAFE
            yield from self._left_out(end)
            return _Outcome.ENDED
        finally:
            backend.close()
            self.complaints = backend.complaints or self.complaints

    def _left_out(self, end: int) -> Iterator[Frame]:
        """Yield the rows from `_due` to `end`, whose frames the decoder left out."""
        for index in range(self._due, end):
            self._due = index + 1
            yield Frame(index, int(self._info.pts[index]), True, None)

    def _is_wanted(self, row: Row) -> bool:
        return row.index >= self._due and not self._is_past(row)

    def _is_past(self, row: Row) -> bool:
        return self._request.stop is not None and row.index >= self._request.stop
