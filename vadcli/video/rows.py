"""Which row of the video a decoded frame is: the probe's frames reconciled with those that a decoder shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vadcli.types import VideoInfo
from vadcli.video.container import has_exact_pts


@dataclass(frozen=True)
class Row:
    """A row of the video: its index and its pts."""

    index: int
    pts: int


class SeekMissed(Exception):
    """A decoder began after the row that it was sent to, or at a time that names no row."""


class RowMatcher:
    """Gives each shown frame its row; feed it the frames of one decoder in order.

    A frame is matched by its pts. Where the container has no times of its own, all of the decoder's may be shifted by the same
    amount. A frame that the probe did not foresee gets a row of its own between its neighbours; one that comes after its row
    was given up (damaged files show frames out of order) gets none.

    Args:
        info: what the probe foresaw.
        sought: the row that the decoder was sent to; it may begin there or earlier. None: it begins at the beginning.
    """

    def __init__(self, info: VideoInfo, *, sought: int | None = None) -> None:
        self._expected = info.shown_pts if len(info.shown_pts) else info.pts
        self._pts = info.pts
        self._exact = has_exact_pts(info.demuxer, info.codec)
        self._monotone = bool(np.all(np.diff(self._expected) > 0))
        self._frame_ticks = max(1, round(1 / (info.fps * info.time_base)))
        self._shift = 0
        self._begun = False
        self._sought = sought
        self._next = 0  # position in the probe's frames
        self._added = 0  # frames that the probe did not foresee
        self._last_pts: int | None = None

    def place(self, pts: int | None) -> tuple[list[Row], Row | None]:
        """The rows lost before this frame, and its own row; None where it comes too late.

        Raises:
            SeekMissed: the decoder began after the row that it was sent to.
        """
        if not self._begun:
            self._begin(pts)
        if pts is None:
            position = self._next if self._next < len(self._expected) else None
        else:
            position = self._find(pts - self._shift)
            if position is None and np.any(self._expected[: self._next] == pts - self._shift):
                return [], None
        if position is None:
            return [], self._extra(pts)
        lost = [self._foreseen(k) for k in range(self._next, position)]
        row = self._foreseen(position)
        self._next = position + 1
        return lost, row

    def _begin(self, pts: int | None) -> None:
        self._begun = True
        known = np.flatnonzero(self._expected == pts) if pts is not None else self._expected[:0]
        if self._sought is not None:
            if len(known) != 1 or known[0] > self._sought:
                raise SeekMissed
            self._next = int(known[0])
        elif pts is not None and (not self._exact or len(known) == 0):
            self._shift = pts - int(self._expected[0])

    def _find(self, wanted: int) -> int | None:
        """The next position at which the probe foresaw this time."""
        if self._next >= len(self._expected):
            return None
        if self._expected[self._next] == wanted:
            return self._next
        if not self._monotone:
            later = np.flatnonzero(self._expected[self._next :] == wanted)
            return self._next + int(later[0]) if len(later) else None
        position = int(np.searchsorted(self._expected, wanted))
        found = self._next < position < len(self._expected) and self._expected[position] == wanted
        return position if found else None

    def _foreseen(self, position: int) -> Row:
        return self._row(position + self._added, int(self._pts[position]))

    def _extra(self, pts: int | None) -> Row:
        index = self._next + self._added
        self._added += 1
        if pts is None and self._last_pts is not None:
            return self._row(index, self._last_pts + self._frame_ticks)
        return self._row(index, 0 if pts is None else pts - self._shift)

    def _row(self, index: int, pts: int) -> Row:
        if self._last_pts is not None and pts <= self._last_pts:
            pts = self._last_pts + 1
        self._last_pts = pts
        return Row(index, pts)
