"""Reads the headers of coded pictures: which packets show a frame, and which do not.

Not every packet is a frame that a player shows. A codec can store reference pictures that are never shown (VP8, VP9), a frame
as two fields in two packets (H.264, MPEG-2), or a packet that only says that the frame before stays (MPEG-4: "not coded").
`frame_counter` returns a function that takes the packets of a stream in decoding order and returns what each of them shows.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_MARK = b"\0\0\1"
_HEADER_BYTES = 48  # headers that say what is shown are shorter
_SPS_BYTES = 512


class Shows(enum.Enum):
    """What a packet shows."""

    FRAME = enum.auto()
    FRAME_AND_NEXT = enum.auto()  # two frames; the second counts as the frame of the next packet
    MORE = enum.auto()  # nothing new, but the other field of the frame before, or a command to show that frame for longer
    NOTHING = enum.auto()


FrameCounter = Callable[[Any], Shows]
"""Takes the next packet in decoding order and returns what it shows."""


def frame_counter(codec: str, extradata: bytes | None) -> FrameCounter | None:
    """Return a new counter for one stream; None if every packet of this codec shows one frame.

    Args:
        codec: ffmpeg's name of the decoder.
        extradata: the headers that the container stores for the whole stream.
    """
    if codec == "vp8":
        return _vp8
    if codec == "vp9":
        return _vp9
    if codec == "h264":
        return _H264(extradata or b"")
    if codec == "mpeg2video":
        return _Mpeg2()
    if codec == "mpeg4":
        return _Mpeg4(extradata or b"")
    return _dirac if codec == "dirac" else None


def _vp8(packet: Any) -> Shows:
    """RFC 6386, 9.1: bit 4 of the first byte is show_frame."""
    return Shows.FRAME if memoryview(packet)[0] >> 4 & 1 else Shows.NOTHING


def _vp9(packet: Any) -> Shows:
    """VP9 bitstream specification, 6.2 and annex B: a packet is hidden if none of its frames is shown."""
    data = memoryview(packet)
    shown = any(_vp9_shows(data[start : start + size]) for start, size in _vp9_frames(data))
    return Shows.FRAME if shown else Shows.NOTHING


def _vp9_frames(data: memoryview) -> list[tuple[int, int]]:
    """Return (start, size) of each frame in a packet. If the packet is not a superframe, it is one frame."""
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
        return len(frame) > 0  # not a VP9 frame: it counts as shown, and the decoder reports the damage
    first = frame[0]
    show_existing = 2 if first >> 4 & 3 == 3 else 3  # bit number; in profile 3, a reserved bit comes before it
    return bool(first >> show_existing & 1 or first >> (show_existing - 2) & 1)  # frame_type is between these bits


def _dirac(packet: Any) -> Shows:
    """Dirac and VC-2 (SMPTE ST 2042-1, 10.5): bit 3 of a parse code says that a picture follows."""
    data = bytes(packet)
    at = 0
    while len(data) >= at + 13 and data[at : at + 4] == b"BBCD":
        if data[at + 4] & 8:
            return Shows.FRAME
        size = int.from_bytes(data[at + 5 : at + 9], "big")
        if not size:
            return Shows.NOTHING  # the end of the sequence
        at += size
    return Shows.FRAME if at < len(data) else Shows.NOTHING


class _Bits:
    """Reads bits from the beginning of some bytes; after their end, all bits are 0."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def u(self, count: int) -> int:
        """Return the next `count` bits as a number."""
        self._left -= count
        if self._left < 0:
            return 0
        return self._value >> self._left & ((1 << count) - 1)

    def ue(self) -> int:
        """Return the next Exp-Golomb number."""
        zeros = 0
        while self._left > 0 and not self.u(1):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)


class _Fields:
    """Pairs fields: two fields of opposite parity that follow each other and have the same number are one frame."""

    def __init__(self) -> None:
        self._waiting: tuple[bool, int] | None = None  # parity and number of a field whose other half has not come yet

    def begins_frame(self, bottom: bool | None, number: int) -> bool:
        """Whether a coded picture is a new frame; `bottom` is None if it is a whole frame."""
        if bottom is not None and self._waiting == (not bottom, number):
            self._waiting = None
            return False
        self._waiting = None if bottom is None else (bottom, number)
        return True


@dataclass(frozen=True)
class _Sps:
    frames_only: bool
    separate_planes: bool
    frame_num_bits: int


class _H264:
    """H.264 (ITU-T H.264, 7.3): a packet may hold one field, two fields or a frame."""

    _SLICES = frozenset({1, 2, 5})
    _SPS, _PPS = 7, 8

    def __init__(self, extradata: bytes) -> None:
        self._sps: dict[int, _Sps] = {}
        self._pps: dict[int, int] = {}  # pps id -> sps id
        self._fields = _Fields()
        self._length_bytes = extradata[4] % 4 + 1 if len(extradata) > 6 and extradata[0] == 1 else 0
        for unit in _avcc_units(extradata) if self._length_bytes else marked_units(extradata):
            self._learn(unit)

    def __call__(self, packet: Any) -> Shows:
        if self._sps and all(sps.frames_only for sps in self._sps.values()) and not packet.is_keyframe:
            return Shows.FRAME  # without fields; new parameters come only with a keyframe
        data = bytes(packet)
        pictures = new = 0
        for unit in sized_units(data, self._length_bytes) if self._length_bytes else marked_units(data):
            self._learn(unit)
            if unit[0] & 31 in self._SLICES and len(unit) > 1 and unit[1] & 0x80:  # the first slice of a picture
                pictures += 1
                new += self._fields.begins_frame(*self._picture(unit))
        return Shows.MORE if pictures and not new else Shows.FRAME

    def _learn(self, unit: bytes) -> None:
        kind = unit[0] & 31 if unit else 0
        if kind == self._SPS:
            number, sps = _read_sps(_Bits(_unescaped(unit[1:_SPS_BYTES])))
            self._sps[number] = sps
        elif kind == self._PPS:
            bits = _Bits(_unescaped(unit[1:_HEADER_BYTES]))
            self._pps[bits.ue()] = bits.ue()

    def _picture(self, unit: bytes) -> tuple[bool | None, int]:
        """Return (True for a bottom field, frame_num) of a slice; the first value is None for a whole frame."""
        bits = _Bits(_unescaped(unit[1:_HEADER_BYTES]))
        bits.ue()  # first_mb_in_slice
        bits.ue()  # slice_type
        sps = self._sps.get(self._pps.get(bits.ue(), -1))
        if sps is None or sps.frames_only:
            return None, 0
        if sps.separate_planes:
            bits.u(2)
        number = bits.u(sps.frame_num_bits)
        return (bool(bits.u(1)), number) if bits.u(1) else (None, number)


def _read_sps(bits: _Bits) -> tuple[int, _Sps]:
    profile = bits.u(8)
    bits.u(16)
    number = bits.ue()
    separate = False
    if profile in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
        chroma = bits.ue()
        separate = chroma == 3 and bool(bits.u(1))
        bits.ue(), bits.ue(), bits.u(1)
        if bits.u(1):
            for k in range(12 if chroma == 3 else 8):
                if bits.u(1):
                    _skip_scaling(bits, 16 if k < 6 else 64)
    frame_num_bits = bits.ue() + 4
    order = bits.ue()
    if order == 0:
        bits.ue()
    elif order == 1:
        bits.u(1), bits.ue(), bits.ue()
        for _ in range(min(bits.ue(), 255)):
            bits.ue()
    bits.ue(), bits.u(1), bits.ue(), bits.ue()
    return number, _Sps(bool(bits.u(1)), separate, frame_num_bits)


def _skip_scaling(bits: _Bits, count: int) -> None:
    last = following = 8
    for _ in range(count):
        if following:
            code = bits.ue()
            following = (last + (-(code // 2) if code % 2 == 0 else (code + 1) // 2)) % 256
        last = following or last


def _unescaped(data: bytes) -> bytes:
    return data.replace(b"\0\0\3", b"\0\0")


def marked_units(data: bytes) -> Iterator[bytes]:
    """Yield the beginning of each unit that follows a start code."""
    at = data.find(_MARK)
    while at >= 0:
        if at + 3 < len(data):
            yield data[at + 3 : at + 3 + _SPS_BYTES]
        at = data.find(_MARK, at + 3)


def sized_units(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """Yield the beginning of each unit that follows its size."""
    at = 0
    while at + length_bytes < len(data):
        size = int.from_bytes(data[at : at + length_bytes], "big")
        at += length_bytes
        if size:
            yield data[at : at + min(size, _SPS_BYTES)]
        at += size


def _avcc_units(extradata: bytes) -> Iterator[bytes]:
    """Yield the parameter sets of an avcC record (ISO/IEC 14496-15, 5.3.3)."""
    at = 5
    for mask in (31, 255):
        count = extradata[at] & mask if at < len(extradata) else 0
        at += 1
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2], "big")
            if size:
                yield extradata[at + 2 : at + 2 + size]
            at += 2 + size


def begins_intra(packet: Any) -> bool:
    """Whether the first picture of an MPEG-1 or MPEG-2 packet is intra-coded (ITU-T H.262, 6.3.9): a decoder can begin there.

    The container's flag can be wrong in a damaged file: it describes the last picture that seems to be in the packet.
    """
    data = bytes(packet)
    at = data.find(b"\0\0\1\0")
    return 0 <= at < len(data) - 5 and data[at + 5] >> 3 & 7 == 1


class _Mpeg2:
    """MPEG-2 (ITU-T H.262, 6.2.3): picture_structure says whether a picture is a field."""

    def __init__(self) -> None:
        self._fields = _Fields()

    def __call__(self, packet: Any) -> Shows:
        data = bytes(packet)
        pictures = new = 0
        at = data.find(b"\0\0\1\0")
        while at >= 0:
            number = int.from_bytes(data[at + 4 : at + 6], "big") >> 6  # temporal_reference
            extension = data.find(b"\0\0\1\xb5", at + 4, at + 4 + _HEADER_BYTES)
            structure = data[extension + 6] & 3 if extension >= 0 and extension + 6 < len(data) else 3
            pictures += 1
            new += self._fields.begins_frame(None if structure in (0, 3) else structure == 2, number)
            at = data.find(b"\0\0\1\0", at + 4)
        return Shows.MORE if pictures and not new else Shows.FRAME


class _Mpeg4:
    """MPEG-4 part 2 (ISO/IEC 14496-2, 6.2.3 and 6.2.5): vop_coded = 0 means that the picture before stays.

    DivX packs two pictures into one packet. A packet without a coded picture follows, so that there are as many packets as
    pictures. This second packet shows the second picture of the first.
    """

    def __init__(self, extradata: bytes) -> None:
        self._increment_bits = 1
        self._packed = False
        self._learn(extradata)

    def __call__(self, packet: Any) -> Shows:
        data = bytes(packet)
        if packet.is_keyframe:
            self._learn(data)
        coded = 0
        at = data.find(b"\0\0\1\xb6")
        if at < 0:
            return Shows.FRAME  # no MPEG-4 picture: it counts as shown, and the decoder reports the damage
        while at >= 0:
            coded += self._is_coded(data[at + 4 : at + _HEADER_BYTES])
            at = data.find(b"\0\0\1\xb6", at + 4)
        shown = coded > 0 or self._packed
        self._packed = coded > 1 or (coded == 1 and self._packed)
        if coded > 1:
            return Shows.FRAME_AND_NEXT
        return Shows.FRAME if shown else Shows.MORE

    def _is_coded(self, header: bytes) -> bool:
        bits = _Bits(header)
        bits.u(2)  # vop_coding_type
        for _ in range(len(header) * 8):  # modulo_time_base
            if not bits.u(1):
                break
        bits.u(1 + self._increment_bits + 1)
        return bool(bits.u(1))

    def _learn(self, data: bytes) -> None:
        """Find out how many bits a time has. Do nothing if the data has no header of a video object layer."""
        at = data.find(_MARK)
        while at >= 0 and not (at + 3 < len(data) and 0x20 <= data[at + 3] <= 0x2F):
            at = data.find(_MARK, at + 3)
        if at < 0:
            return
        bits = _Bits(data[at + 4 : at + 4 + _HEADER_BYTES])
        version = 1
        bits.u(9)
        if bits.u(1):
            version = bits.u(4)
            bits.u(3)
        if bits.u(4) == 15:
            bits.u(16)
        if bits.u(1):
            bits.u(3)
            if bits.u(1):
                bits.u(79)
        if bits.u(2) == 3 and version != 1:
            bits.u(4)
        bits.u(1)
        self._increment_bits = max(1, (bits.u(16) - 1).bit_length())
