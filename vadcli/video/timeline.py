"""Packet times -> the times of the frames that a player shows; pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vadcli.types import IndexArray


@dataclass(frozen=True)
class Timeline:
    """The frames of a stream in presentation order.

    Attributes:
        pts: (N,) int64, strictly increasing.
        shown_pts: (N,) int64, as a decoder reports them: with repeats and jumps back; empty where they are `pts`.
        keyframes: (K,) int64 rows at which the container says that decoding can begin.
        last_ticks: duration of the last frame.
    """

    pts: IndexArray
    shown_pts: IndexArray
    keyframes: IndexArray
    last_ticks: int


def build_timeline(
    pts: Sequence[int | None],
    dts: Sequence[int | None],
    duration: Sequence[int],
    keyframe: Sequence[bool],
    *,
    frame_ticks: int,
    jump_ticks: int | None,
    timed: bool,
    needs_key: bool,
) -> Timeline:
    """Order packets (given in decoding order) by presentation.

    Args:
        pts, dts, duration, keyframe: one entry a shown frame; None where the container has no time, 0 where it has no duration.
        frame_ticks: a frame's nominal duration, for where the container says nothing.
        jump_ticks: a fall of the decoding time by more than this is a new start of the clock; None: it has none.
        timed: False for elementary streams, whose times are counted, not read.
        needs_key: True where a decoder shows nothing of what comes before the first keyframe (recordings cut at any packet).
    """
    lasting = np.asarray([ticks if ticks > 0 else frame_ticks for ticks in duration], np.int64)
    keys = np.asarray(keyframe, bool)
    if not timed or all(value is None for value in pts):
        times = _counted(dts, lasting, timed)
        order = np.arange(len(times))
    else:
        times = _filled(pts, lasting)
        order = _presentation_order(times, dts, jump_ticks)
    if needs_key and keys.any():
        order = _from_first_key(order, int(np.argmax(keys)))
    shown = times[order]
    increasing = _increasing(shown, lasting[order])
    return Timeline(
        pts=increasing,
        shown_pts=shown if np.any(shown != increasing) else shown[:0],
        keyframes=np.flatnonzero(keys[order]).astype(np.int64),
        last_ticks=int(lasting[order][-1]),
    )


def _counted(dts: Sequence[int | None], lasting: IndexArray, timed: bool) -> IndexArray:
    known = [value for value in dts if value is not None]
    if timed and len(known) == len(dts):
        return np.asarray(known, np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lasting[:-1])])


def _filled(pts: Sequence[int | None], lasting: IndexArray) -> IndexArray:
    """A missing time is the one before + the frame's duration."""
    times = np.empty(len(pts), np.int64)
    last = next(value for value in pts if value is not None)
    for i, value in enumerate(pts):
        times[i] = last = value if value is not None else (last + int(lasting[i - 1]) if i else last)
    return times


def _presentation_order(times: IndexArray, dts: Sequence[int | None], jump_ticks: int | None) -> IndexArray:
    """Stable order by time, within stretches between which the clock starts anew."""
    if jump_ticks is None:
        return np.argsort(times, kind="stable")
    cuts, last = [0], None
    for i, decoded in enumerate(dts):
        if decoded is not None:
            if last is not None and decoded < last - jump_ticks:
                cuts.append(i)
            last = decoded
    cuts.append(len(times))
    return np.concatenate([a + np.argsort(times[a:b], kind="stable") for a, b in pairwise(cuts)])


def _from_first_key(order: IndexArray, first_key: int) -> IndexArray:
    """Without what is decoded before the first keyframe, and what follows it but is to be shown before it."""
    shown = order[int(np.flatnonzero(order == first_key)[0]) :]
    return shown[shown >= first_key]


def _increasing(shown: IndexArray, lasting: IndexArray) -> IndexArray:
    """Strictly increasing times: a repeat or a jump back goes on from the frame before, and what follows moves with it."""
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
