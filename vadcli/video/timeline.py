"""Makes the timeline of a video: the times of its frames, from the times of its packets.

A row is the index of a frame in presentation order.

Times in files are often wrong: they are missing, repeat, jump or go back. The rules, in this order:

- The row of a frame gets the time that the file states. A single frame with a wrong time does not change the times of the next
  rows.
- If two frames have the same time, the row of the second frame gets the next tick. To make room, the time base becomes finer.
- If the times of a few frames do not fit between the times of the frames around them, these few frames get new times that are
  evenly spaced.
- If the clock restarts, or jumps forward by more than a day, the times of the rows continue where the clock stopped. So they
  are times since the start of the recording, and not times on the camera's clock. A shorter jump forward is a gap in the
  recording, and the times of the rows keep this gap.
- If the file does not state the time of every frame, the times are guessed from decoding times and durations. If so, the reader
  ignores times: it matches the first frame of a decoder with the first row, and so on (`Timeline.guessed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from vadcli.types import BoolArray, IndexArray

NO_TIME = int(np.iinfo(np.int64).min)
"""Marks a time that the container does not state."""
CLOCK_JUMP_S = 0.25
"""If a time goes back by more than this, the clock has restarted. If it goes back by less, the demuxer guessed a wrong time."""
LONGEST_GAP_S = 86_400.0
"""If a time goes forward by more than this, there was no gap in the recording: somebody set the camera's clock."""
MOST_ODD = 8
"""If more than this many successive frames have odd times, the clock has changed."""
_DEEPEST_REORDER = 16  # packets; no codec shows a frame later than this after the packet of the frame
_UNANNOUNCED_REORDER = 4  # packets; the same limit if the header does not state that frames are reordered
_FAR_STEPS = 32  # two times are far apart if they differ by more than this many median steps
_MOST_REPEATS = 2  # if more than this many frames before a keyframe have its time or a later time, the clock restarted
_LONG_STEP = 4  # frames; after a longer step, the times of the next frames are compared too
_FINER = 1000  # new ticks per tick if times repeat
_LARGEST = 1 << 61  # differences of smaller times fit into 64 bits


@dataclass(frozen=True)
class Timeline:
    """The frames of a stream in presentation order.

    Attributes:
        pts: (N,) int64, strictly increasing, in ticks of the given time base divided by `finer`.
        shown_pts: (N,) int64, the times that a decoder reports, in the same ticks; empty if they equal `pts`.
        keyframes: (K,) int64 rows at which decoding can begin, according to the container.
        last_ticks: duration of the last frame in the same ticks.
        finer: number of parts into which each tick was divided because times repeat; 1 if no time repeats.
        guessed: True if the container does not state all times or has odd times. If so, decoders may report other times.
        order: (N - cut_off,) int64, the index of the packet of each row. The rows of frames that were cut off have no packet.
    """

    pts: IndexArray
    shown_pts: IndexArray
    keyframes: IndexArray
    last_ticks: int
    finer: int = 1
    guessed: bool = False
    order: IndexArray = field(default_factory=lambda: np.empty(0, np.int64), repr=False)


@dataclass(frozen=True)
class PacketTimes:
    """The times of the packets that show a frame, in decoding order and in ticks.

    Attributes:
        pts, dts: (N,) int64, `NO_TIME` if a time is unknown.
        duration: (N,) int64, 0 if a duration is unknown.
        keyframe: (N,) bool.
    """

    pts: IndexArray
    dts: IndexArray
    duration: IndexArray
    keyframe: BoolArray


def build_timeline(
    packets: PacketTimes,
    *,
    frame_ticks: int,
    longest_gap_ticks: int,
    jump_ticks: int | None,
    timed: bool,
    needs_key: bool,
    reorders: bool = True,
    cut_off: int = 0,
) -> Timeline:
    """Return the frames of a stream in presentation order.

    Args:
        packets: one entry per shown frame.
        frame_ticks: a frame's nominal duration, used if the container states no duration.
        longest_gap_ticks: a longer step forward means that somebody set the clock; a shorter step is a gap in the recording.
        jump_ticks: if the decoding time falls by more than this, the clock has restarted; None if files of this format do not
            store decoding times.
        timed: False for elementary streams: they have no times, so frames are counted.
        needs_key: True if a decoder shows nothing before the first keyframe. This matters if a recording begins between
            keyframes.
        reorders: False if frames are shown in decoding order.
        cut_off: number of frames that the index lists after the last packet of `packets`, but that the file no longer contains.
            Their times are guessed.
    """
    pts, dts, keyframe = _bounded(packets.pts), _bounded(packets.dts), packets.keyframe
    lasting = np.where(packets.duration > 0, packets.duration, frame_ticks)
    guessed = not timed or bool(np.any(pts == NO_TIME))
    order, begins = np.arange(len(pts)), np.zeros(len(pts), np.bool_)
    if not timed or bool(np.all(pts == NO_TIME)):
        times = _counted(pts, dts, lasting, timed)
    elif guessed and (steady := _from_decoding_times(pts, dts, lasting)) is not None:
        times = steady
    else:
        times = _filled(pts, lasting)
        order, begins = _presentation_order(times, replace(packets, pts=pts, dts=dts), jump_ticks, reorders)
    if needs_key and bool(keyframe.any()):  # keep only frames that are decoded and shown from the first keyframe on
        first_key = int(np.argmax(keyframe))
        begin = int(np.flatnonzero(order == first_key)[0])
        kept = begin + np.flatnonzero(order[begin:] >= first_key)
        order, begins = order[kept], begins[kept]
    shown = np.concatenate([times[order], times[order].max() + frame_ticks * np.arange(1, cut_off + 1)])
    lasting = np.concatenate([lasting[order], np.full(cut_off, frame_ticks)])
    increasing, finer, odd = _increasing_times(shown, lasting, longest_gap_ticks, frozenset(np.flatnonzero(begins).tolist()))
    shown = np.clip(shown, -_LARGEST // finer, _LARGEST // finer) * finer
    return Timeline(
        pts=increasing,
        shown_pts=shown if np.any(shown != increasing) else shown[:0],
        keyframes=np.flatnonzero(keyframe[order]).astype(np.int64),
        last_ticks=int(lasting[-1]) * finer,
        finer=finer,
        guessed=guessed or odd,
        order=order.astype(np.int64),
    )


def _bounded(times: IndexArray) -> IndexArray:
    return np.where(times == NO_TIME, NO_TIME, np.clip(times, -_LARGEST, _LARGEST))


def _counted(pts: IndexArray, dts: IndexArray, lasting: IndexArray, timed: bool) -> IndexArray:
    """Return times for a stream without presentation times.

    These are the decoding times, the demuxer's estimates, or sums of durations.
    """
    if timed and not bool(np.any(dts == NO_TIME)):
        return dts
    summed = np.concatenate([np.zeros(1, np.int64), np.cumsum(lasting[:-1])])
    if bool(np.any(pts == NO_TIME)):
        return summed
    demuxed = np.sort(pts) - pts.min()
    plausible = bool(np.all(np.diff(demuxed) > 0)) and summed[-1] <= 2 * demuxed[-1] <= 4 * summed[-1]
    return demuxed if plausible else summed


def _from_decoding_times(pts: IndexArray, dts: IndexArray, lasting: IndexArray) -> IndexArray | None:
    """Return a time per packet from the decoding times, for a stream in which some packets have no pts.

    Return None if these times contradict the known pts.

    Why decoding times can be used: at a constant frame rate, the pts in ascending order are the decoding times plus a constant,
    even if frames are reordered.
    """
    # A demuxer may give the same decoding time to two packets. If so, the file states the time of the second packet only.
    doubled = np.append(dts[1:] == dts[:-1], False)
    dts = np.where(doubled, NO_TIME, dts)
    known = np.flatnonzero((pts != NO_TIME) & (dts != NO_TIME))
    if not len(known):
        return None
    decoded = _filled(dts, lasting)
    times = decoded + (pts[known[0]] - dts[known[0]])
    ordered = np.sort(times)
    nearest = np.clip(np.searchsorted(ordered, pts[known]), 1, len(ordered) - 1) if len(ordered) > 1 else np.zeros(1, np.int64)
    apart = np.minimum(np.abs(ordered[nearest] - pts[known]), np.abs(ordered[nearest - 1] - pts[known]))
    return times if bool(np.all(apart * 4 <= lasting[known])) else None


def _filled(stated: IndexArray, lasting: IndexArray) -> IndexArray:
    """Replace each missing time by the end of the previous frame (its time plus its duration)."""
    times = stated.copy()
    missing = np.flatnonzero(stated == NO_TIME)
    for i in missing.tolist():
        times[i] = times[i - 1] + lasting[i - 1] if i else stated[stated != NO_TIME][0]
    return times


def _presentation_order(
    times: IndexArray, packets: PacketTimes, jump_ticks: int | None, reorders: bool
) -> tuple[IndexArray, BoolArray]:
    """Return the indices of the packets in presentation order, and flags (P,) bool in the same order.

    A flag is True if the clock restarts at this packet. The packets before a restart and the packets after it are sorted
    separately.
    """
    dts, odd = packets.dts, _odd_packets(times)
    right = np.flatnonzero(~odd)
    cuts = [0]
    if jump_ticks is not None:
        known = np.flatnonzero(dts[right] != NO_TIME)
        falls = np.flatnonzero(np.diff(dts[right][known]) < -jump_ticks)
        cuts += known[falls + 1].tolist()
    begins = np.zeros(len(right), np.bool_)
    begins[cuts] = True
    if jump_ticks is None and reorders:
        at_keys = _restarts_at_keys(times[right], packets.keyframe[right])
        begins[at_keys] = True
        cuts += sorted({*_restarts(times[right]), *at_keys})
    order = np.concatenate([a + _order_of_part(times[right[a:b]], reorders) for a, b in pairwise([*cuts, len(right)])])
    order = right[order]
    # A packet with an odd time is placed after the packet that was decoded before it. There is one exception if frames are
    # reordered: if one gap between the times near this place is much wider than the others, the packet is placed in this gap.
    for i in np.flatnonzero(odd).tolist():
        before = int(np.flatnonzero(order == i - 1)[0])
        place = before + 1
        first = max(0, before - MOST_ODD)
        steps = np.diff(times[order[first : before + MOST_ODD]])
        if reorders and len(steps) and steps.max() > 1.5 * np.median(steps):
            place = first + int(np.argmax(steps)) + 1
        order, begins = np.insert(order, place, i), np.insert(begins, place, False)
    return order, begins


def _odd_packets(times: IndexArray) -> BoolArray:
    """Return flags (P,) bool, True for packets whose times are far from the times around them."""
    odd = np.zeros(len(times), np.bool_)
    steps = np.abs(np.diff(times))
    far = _far_ticks(times)
    for i in (np.flatnonzero(steps > far) + 1).tolist():
        if odd[i - 1]:
            continue
        after = times[i : i + _FAR_STEPS]
        back = np.flatnonzero(np.abs(after[: MOST_ODD + 1] - times[i - 1]) <= far)
        if len(back) and np.all(np.abs(after[back[0] :] - times[i]) > far) and len(after) > MOST_ODD:
            odd[i : i + back[0]] = True
    return odd


def _restarts(times: IndexArray) -> list[int]:
    """Return the packets at which the clock has restarted.

    A packet at which the clock has restarted has an earlier time than each of the 16 packets before it. Packet 1 is also
    returned if the time of packet 0 is far later than the times of the next packets.
    """
    moved = np.abs(np.argsort(times, kind="stable") - np.arange(len(times)))
    if len(times) <= _DEEPEST_REORDER or moved.max() <= _DEEPEST_REORDER:
        return []
    before = np.lib.stride_tricks.sliding_window_view(times, _DEEPEST_REORDER)[:-1].min(axis=1)
    restarts: list[int] = (np.flatnonzero(times[_DEEPEST_REORDER:] < before) + _DEEPEST_REORDER).tolist()
    return [1, *restarts] if times[0] - times[1:_DEEPEST_REORDER].max() > _far_ticks(times) else restarts


def _restarts_at_keys(times: IndexArray, keyframe: BoolArray) -> list[int]:
    """Return the keyframes at which the clock has restarted.

    Several packets before such a keyframe have later times than the keyframe.
    """
    restarts, begin = [], 0
    for k in np.flatnonzero(keyframe).tolist():
        if np.count_nonzero(times[max(begin, k - _DEEPEST_REORDER) : k] >= times[k]) > _MOST_REPEATS:
            restarts.append(k)
            begin = k
    return restarts


def _far_ticks(times: IndexArray) -> int:
    """Return the difference, in ticks, above which two packet times count as far apart."""
    return _FAR_STEPS * max(1, int(np.median(np.abs(np.diff(times))))) if len(times) > 1 else 0


def _order_of_part(times: IndexArray, reorders: bool) -> IndexArray:
    order = np.argsort(times, kind="stable")
    decoded = np.arange(len(times))
    moved = np.abs(order - decoded)
    if reorders or not moved.any():
        return order
    steps = np.diff(times[order])
    usual = float(np.median(steps))
    changed = steps[(moved[1:] > 0) | (moved[:-1] > 0)]
    even = 0.75 * usual < float(changed.min()) and float(changed.max()) < 1.5 * usual
    # The header says that no frame is reordered, but the times say the opposite. If the sorted times have even steps, the
    # times are right; otherwise the header is right.
    return order if even and int(moved.max()) <= _UNANNOUNCED_REORDER else decoded


def _increasing_times(
    shown: IndexArray, lasting: IndexArray, longest_gap: int, parts: frozenset[int]
) -> tuple[IndexArray, int, bool]:
    """Return strictly increasing times, the number of new ticks per old tick, and a flag.

    The flag is True if times that did not fit were replaced.
    """
    steps = np.diff(shown)
    if bool(np.all((steps > 0) & (steps <= longest_gap))) and _in_range(shown, 1):
        return shown, 1, False
    times, odd = _never_falling(shown.tolist(), lasting.tolist(), longest_gap, parts)
    values = np.array(times, dtype=object)  # Python's integers, because a sum of times may need more than 64 bits
    new = np.concatenate([[True], values[1:] != values[:-1]]).astype(bool)
    rows = np.arange(len(new), dtype=np.int64)
    repeats = rows - np.maximum.accumulate(np.where(new, rows, 0))  # how many rows before each row have the same time
    finer = 1
    if repeats.any():
        finer = _FINER
        while finer <= repeats.max():
            finer *= 10
    if not _in_range([times[0], times[-1]], finer):
        times = [time - times[0] for time in times]
    return np.array([time * finer for time in times], np.int64) + repeats, finer, odd


def _never_falling(
    shown: Sequence[int], lasting: Sequence[int], longest_gap: int, parts: frozenset[int]
) -> tuple[list[int], bool]:
    """Return times that never fall, even where the clock restarts; and True if times were replaced.

    Times are replaced if they do not fit between the times around them.
    """
    result, odd = [shown[0]], False
    moved, last, i = 0, shown[0], 1  # ticks that are added to times; the last time that is not odd, without `moved`
    while i < len(shown):
        fitting = _next_fitting_row(shown, i, last, longest_gap, long=_LONG_STEP * lasting[i - 1])
        if fitting > i and not (shown[i] < last and i in parts):
            before, after = result[-1], shown[fitting] + moved
            result += [before + (after - before) * (k + 1) // (fitting - i + 1) for k in range(fitting - i)]
            i, odd = fitting, True
        elif not 0 <= shown[i] - last <= longest_gap:
            moved = result[-1] + lasting[i - 1] - shown[i]
        result.append(shown[i] + moved)
        last = shown[i]
        i += 1
    return result, odd


def _next_fitting_row(shown: Sequence[int], i: int, last: int, longest_gap: int, *, long: int) -> int:
    """Return the first row from `i` on whose time can follow the time `last`.

    If none of the `MOST_ODD` rows after `i` has such a time, return `i`.
    """
    step = shown[i] - last
    if 0 <= step <= min(long, longest_gap):
        return i
    for k in range(i + 1, min(i + 1 + MOST_ODD, len(shown))):
        if 0 <= shown[k] - last <= longest_gap and (step < 0 or shown[k] < shown[i]):
            return k
    return i


def _in_range(times: Sequence[int] | IndexArray, finer: int) -> bool:
    return max(abs(int(times[0])), abs(int(times[-1]))) * finer < _LARGEST
