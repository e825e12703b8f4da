"""Which frames ffmpeg scales and hands over: one `select` expression and its exact twin in Python."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from vadcli.types import IndexArray, VideoInfo
from vadcli.video.container import has_exact_pts

_INDEXED = frozenset({"mov", "matroska"})
_CLEAN_KEYFRAMES = frozenset({"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "vp8", "vp9", "av1", "mjpeg"})
_SAFE_ROUNDING = 0.4  # rows; nearer to a half, two machines could round differently


@dataclass(frozen=True)
class Grid:
    """Constant frame rate: a frame's row follows from its pts, so that a lost frame moves no other.

    Attributes:
        origin: pts of row 0.
        rows_a_tick: 1 / frame duration.
        interval: rows with index % interval == 0 are selected.
        first_pts: frames before are not selected.
    """

    origin: int
    rows_a_tick: float
    interval: int
    first_pts: int

    @property
    def expression(self) -> str:
        """For ffmpeg's select filter."""
        row = f"floor((pts-({self.origin}))*{self.rows_a_tick!r}+0.5)"
        return f"gte(pts,{self.first_pts})*not(mod({row},{self.interval}))"

    def takes(self, shown: int, pts: int | None) -> bool:
        """Whether ffmpeg selects the frame; ask once a frame, in order.

        Args:
            shown: how many frames were shown before it.
            pts: its time.
        """
        if pts is None or pts < self.first_pts:
            return False
        return math.floor((pts - self.origin) * self.rows_a_tick + 0.5) % self.interval == 0


@dataclass(frozen=True)
class Count:
    """Frames counted from the first that is shown.

    Attributes:
        first: frames before are not selected.
        interval: counted from the first frame shown.
    """

    first: int
    interval: int

    @property
    def expression(self) -> str:
        """For ffmpeg's select filter."""
        return f"gte(n,{self.first})*not(mod(n,{self.interval}))"

    def takes(self, shown: int, pts: int | None) -> bool:
        """As in `Grid`."""
        return shown >= self.first and shown % self.interval == 0


@dataclass
class Since:
    """Frames counted from a time on; ffmpeg keeps the count in the expression's first variable.

    Attributes:
        first_pts: frames before are neither counted nor selected.
        first_row: row of the first frame counted.
        interval: rows with index % interval == 0 are selected.
    """

    first_pts: int
    first_row: int
    interval: int
    _counted: int = field(default=0, repr=False)

    @property
    def expression(self) -> str:
        """For ffmpeg's select filter."""
        row = f"{self.first_row - 1}+ld(0)"
        return f"if(gte(pts,{self.first_pts}),st(0,ld(0)+1)*0+not(mod({row},{self.interval})),0)"

    def takes(self, shown: int, pts: int | None) -> bool:
        """As in `Grid`."""
        if pts is None or pts < self.first_pts:
            return False
        self._counted += 1
        return (self.first_row - 1 + self._counted) % self.interval == 0


Selection = Grid | Count | Since


def choose_selection(info: VideoInfo, interval: int, start: int, *, sought: bool, every_image: bool) -> Selection:
    """How ffmpeg is to select the sampled rows.

    Args:
        info: the video.
        interval: rows with index % interval == 0 are sampled.
        start: first row wanted.
        sought: True where ffmpeg begins at a keyframe instead of the beginning; only after `seek_row` allowed it.
        every_image: select all rows from `start` on, for files in which frames turned out to be lost or unforeseen.
    """
    timed = has_exact_pts(info.demuxer, info.codec) and len(info.shown_pts) == 0
    first_pts = int(info.pts[min(start, info.frames - 1)])
    grid = find_grid(info.pts, interval, first_pts) if timed and not every_image else None
    if grid is not None:
        return grid
    if sought:
        return Since(first_pts, start, 1 if every_image else interval)
    return Count(0, 1) if every_image else Count(start, interval)


def seek_row(info: VideoInfo, start: int) -> int | None:
    """The row at which decoding can begin so that rows from `start` on come out as in an undisturbed read.

    None where only the beginning will do: containers without an index of keyframes, times that repeat or jump back, codecs
    whose keyframes don't clear the decoder's memory.
    """
    trusted = info.demuxer in _INDEXED and info.codec in _CLEAN_KEYFRAMES and not info.edit_list and len(info.shown_pts) == 0
    if not trusted or start == 0:
        return None
    before = info.keyframes[info.keyframes <= min(start, info.frames - 1)]
    return int(before[-1]) if len(before) and before[-1] > 0 else None


def find_grid(pts: IndexArray, interval: int, first_pts: int) -> Grid | None:
    """The grid on which all these frames lie, or None where their rate varies."""
    if len(pts) < 2:
        return None
    span = int(pts[-1]) - int(pts[0])
    rows_a_tick = (len(pts) - 1) / span
    rows = (pts - pts[0]) * rows_a_tick
    if float(np.abs(rows - np.arange(len(pts))).max()) > _SAFE_ROUNDING:
        return None
    return Grid(int(pts[0]), rows_a_tick, interval, first_pts)
