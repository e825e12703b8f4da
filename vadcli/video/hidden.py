"""Which packets show nothing: VP8's and VP9's alternate references, told from the first bytes of the frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def _vp8_hidden(packet: Any) -> bool:
    """RFC 6386, 9.1: bit 4 of the first byte is show_frame."""
    return not memoryview(packet)[0] >> 4 & 1


def _vp9_hidden(packet: Any) -> bool:
    """VP9 bitstream specification, 6.2 and annex B: hidden where no frame of the packet is shown."""
    data = memoryview(packet)
    return not any(_vp9_shows(data[start : start + size]) for start, size in _vp9_frames(data))


def _vp9_frames(data: memoryview) -> list[tuple[int, int]]:
    """(start, size) of the frames of a superframe; the whole packet where it is none."""
    marker = data[-1]
    if marker >> 5 != 0b110:
        return [(0, len(data))]
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = len(data) - 2 - count * width
    if index < 0 or data[index] != marker:
        return [(0, len(data))]
    frames, start = [], 0
    for k in range(count):
        at = index + 1 + k * width
        size = int.from_bytes(data[at : at + width], "little")
        frames.append((start, size))
        start += size
    return frames


def _vp9_shows(frame: memoryview) -> bool:
    if len(frame) == 0 or frame[0] >> 6 != 0b10:
        return len(frame) > 0  # not a VP9 frame: let the decoder judge
    first = frame[0]
    show_existing = 2 if first >> 4 & 3 == 3 else 3  # the bit; profile 3 has one reserved bit more before it
    return bool(first >> show_existing & 1 or first >> (show_existing - 2) & 1)  # frame_type stands between it and show_frame


HIDDEN: Mapping[str, Callable[[Any], bool]] = {"vp8": _vp8_hidden, "vp9": _vp9_hidden}
"""Codec name -> whether a packet shows nothing."""
