"""Finds the frames to which no other frame refers. If a decoder leaves them out, the other frames stay the same.

`reference_counter` returns a function that takes the packets of a stream and says whether each one is a reference. It reads
only the headers of coded pictures. ffmpeg leaves out the same frames at `-skip_frame noref`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vadcli.types import BoolArray, IndexArray, VideoInfo
from vadcli.video.headers import marked_units, sized_units

ReferenceCounter = Callable[[Any], bool | None]
"""Takes a packet and returns True if it is a reference; None if it is unsafe to leave out frames of this stream."""

SKIPPED_SHARE = 0.25
"""If only a smaller share of the frames can be left out, all frames are decoded. This costs little more, and the samples are
evenly spaced."""
WIDEST = 2
"""References may be at most this many sampling intervals apart."""

_H264_SLICES = frozenset({1, 2, 5})
_B_PICTURE_MPEG2, _B_PICTURE_MPEG4 = 3, 2


def reference_counter(codec: str, extradata: bytes | None) -> ReferenceCounter | None:
    """Return a new counter for one stream; None if frames of this codec are never left out.

    Args:
        codec: ffmpeg's name of the decoder.
        extradata: the headers that the container stores for the whole stream.
    """
    data = extradata or b""
    if codec == "h264":
        return _H264(data)
    if codec == "hevc":
        return _Hevc(data)
    if codec in ("mpeg1video", "mpeg2video"):
        return _mpeg2
    return _mpeg4 if codec == "mpeg4" else None


def sampled_references(info: VideoInfo, interval: int) -> IndexArray | None:
    """Return the rows to sample if only references are decoded: the reference that is nearest to each `interval`-th row.

    Two samples are never closer than half the interval. None if all frames must be decoded: the file may be damaged, few frames
    can be left out, or references are too far apart.
    """
    kept = np.flatnonzero(info.reference)
    if interval == 1 or not len(kept) or info.missing or len(kept) > (1 - SKIPPED_SHARE) * info.frames:
        return None
    apart = np.diff(kept, prepend=0, append=info.frames - 1)
    if int(apart.max()) > WIDEST * interval:
        return None
    places = np.arange(0, info.frames, interval)
    after = np.clip(np.searchsorted(kept, places), 1, len(kept) - 1) if len(kept) > 1 else np.zeros(len(places), np.int64)
    before = np.maximum(after - 1, 0)
    nearest = np.where(kept[after] - places < places - kept[before], kept[after], kept[before])
    return _thinned(nearest[np.diff(nearest, prepend=-1) > 0], -(-interval // 2))  # each once; they are in order


def sampled_keyframes(info: VideoInfo, interval: int) -> IndexArray | None:
    """Return the rows to sample if only keyframes are decoded, at least `interval` apart.

    None if all frames are keyframes, or if the container names none.
    """
    return _thinned(info.keyframes, interval) if 0 < len(info.keyframes) < info.frames else None


def needed_for(info: VideoInfo, rows: IndexArray) -> tuple[BoolArray | None, bool]:
    """Return flags of the rows that must be decoded for the images of `rows`, and True if they are the keyframes.

    The flags (N,) bool mark the keyframes if all of `rows` are keyframes, or else the references if all of `rows` are
    references. None if neither is so, or if too few frames could be left out: then all frames must be decoded.
    """
    keys = np.zeros(info.frames, np.bool_)
    keys[info.keyframes] = True
    for flags, only_keys in ((keys, True), (info.reference, False)):
        if len(info.reference) and not info.missing and flags[rows].all() and flags.mean() <= 1 - SKIPPED_SHARE:
            return flags, only_keys
    return None, False


def _thinned(rows: IndexArray, apart: int) -> IndexArray:
    """Return the rows without those that are less than `apart` after the row that was kept before."""
    if len(rows) < 2 or int(np.diff(rows).min()) >= apart:
        return rows
    kept = [int(rows[0])]
    for row in rows[1:].tolist():
        if row - kept[-1] >= apart:
            kept.append(row)
    return np.array(kept, np.int64)


def can_skip(info: VideoInfo) -> bool:
    """Whether a decoder may leave out frames: the times in the file are exact, so the other frames still find their rows."""
    return not info.guessed_times and not len(info.shown_pts) and info.one_frame_per_packet and not info.edit_list


class _H264:
    """H.264 (ITU-T H.264, 7.4.1): nal_ref_idc is 0 if no other picture refers to this one."""

    def __init__(self, extradata: bytes) -> None:
        self._length_bytes = extradata[4] % 4 + 1 if len(extradata) > 6 and extradata[0] == 1 else 0

    def __call__(self, packet: Any) -> bool | None:
        return _agreed(unit[0] >> 5 & 3 != 0 for unit in _units(packet, self._length_bytes) if unit[0] & 31 in _H264_SLICES)


class _Hevc:
    """HEVC (ITU-T H.265, 7.4.2.2): even types up to 14 are not referred to by pictures of the same sub-layer.

    But pictures of a higher sub-layer may refer to them. So all frames that are left out must be in the highest sub-layer.
    """

    def __init__(self, extradata: bytes) -> None:
        self._length_bytes = (extradata[21] & 3) + 1 if len(extradata) > 22 and extradata[0] == 1 else 0
        self._highest = 0
        self._lowest_left_out = 8

    def __call__(self, packet: Any) -> bool | None:
        kinds = []
        for unit in _units(packet, self._length_bytes):
            kind, layer = unit[0] >> 1 & 63, (unit[0] & 1) << 5 | unit[1] >> 3 if len(unit) > 1 else 0
            if kind > 31 or layer or len(unit) < 2:
                continue
            level = (unit[1] & 7) - 1
            kinds.append(kind > 14 or kind % 2 == 1)
            self._highest = max(self._highest, level)
            if not kinds[-1]:
                self._lowest_left_out = min(self._lowest_left_out, level)
        return None if self._lowest_left_out < self._highest else _agreed(kinds)


def _mpeg2(packet: Any) -> bool | None:
    """MPEG-1 and MPEG-2 (ITU-T H.262, 6.3.9): no picture refers to a B picture."""
    pictures = (unit for unit in marked_units(bytes(packet)) if unit[0] == 0 and len(unit) > 2)
    return _agreed(unit[2] >> 3 & 7 != _B_PICTURE_MPEG2 for unit in pictures)


def _mpeg4(packet: Any) -> bool | None:
    """MPEG-4 part 2 (ISO/IEC 14496-2, 6.3.5): no picture refers to a B picture."""
    pictures = (unit for unit in marked_units(bytes(packet)) if unit[0] == 0xB6 and len(unit) > 1)
    return _agreed(unit[1] >> 6 != _B_PICTURE_MPEG4 for unit in pictures)


def _units(packet: Any, length_bytes: int) -> Iterator[bytes]:
    data = bytes(packet)
    return sized_units(data, length_bytes) if length_bytes else marked_units(data)


def _agreed(parts: Any) -> bool | None:
    """Return the answer on which all parts of a packet agree; None if they differ. A packet without a picture is kept."""
    said = set(parts)
    return None if len(said) > 1 else said != {False}
