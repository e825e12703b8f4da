"""Packet times -> the times of the frames that a player shows; pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vadcli.types import BoolArray, IndexArray

NO_TIME = int(np.iinfo(np.int64).min)
"""Stands for a time that the container does not tell."""


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
    """Order packets (given in decoding order) by presentation.

    Args:
        pts, dts, duration, keyframe: one entry a shown frame; NO_TIME where the container has none, 0 where it has no duration.
        frame_ticks: a frame's nominal duration, for where the container says nothing.
        jump_ticks: a fall of the decoding time by more than this is a new start of the clock; None: it has none.
        timed: False for elementary streams, whose times are counted, not read.
        needs_key: True where a decoder shows nothing of what comes before the first keyframe (recordings cut at any packet).
        cut_off: frames that the file promises after the last packet and no longer holds; their times are guessed.
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
    """A missing time is the one before + the frame's duration."""
    times = pts.copy()
    missing = np.flatnonzero(pts == NO_TIME)
    for i in missing.tolist():
        times[i] = times[i - 1] + lasting[i - 1] if i else pts[pts != NO_TIME][0]
    return times


def _presentation_order(times: IndexArray, dts: IndexArray, jump_ticks: int | None) -> IndexArray:
    """Stable order by time, within stretches between which the clock starts anew."""
    if jump_ticks is None:
        return np.argsort(times, kind="stable")
    known = np.flatnonzero(dts != NO_TIME)
    falls = np.flatnonzero(np.diff(dts[known]) < -jump_ticks)
    cuts = [0, *known[falls + 1].tolist(), len(times)]
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
