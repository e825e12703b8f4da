"""Reads the headers of coded pictures: does a packet show a frame, and do other frames refer to it?

`frame_counter`: some packets show no frame of their own. VP8 and VP9 have reference pictures that are never shown. H.264 and
MPEG-2 may store a frame as two fields in two packets. In MPEG-4, a picture that is "not coded" shows the previous frame for
longer.

`reference_counter`: if no other frame refers to a frame, a decoder can leave this frame out, and all other frames stay the
same. The rules find the same frames that ffmpeg leaves out with `-skip_frame noref`.

The docstrings name the sections of the standards, and the code uses the standards' names of fields.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_MARK = b"\0\0\1"
_HEADER_BYTES = 48  # every header that this file reads is shorter, except the parameters of a sequence (SPS)
_SPS_BYTES = 512
_H264_SLICES = frozenset({1, 2, 5})
_H264_SPS, _H264_PPS = 7, 8
_B_PICTURE_MPEG2, _B_PICTURE_MPEG4 = 3, 2


class Shows(enum.Enum):
    """How many new frames a packet shows."""

    FRAME = enum.auto()
    FRAME_AND_NEXT = enum.auto()  # two frames; the second frame counts as the frame of the next packet
    MORE = enum.auto()  # no new frame: the second field of the previous frame, or more time for the previous frame
    NOTHING = enum.auto()


FrameCounter = Callable[[Any], Shows]
"""Takes the next packet in decoding order and returns what it shows."""

ReferenceCounter = Callable[[Any], bool | None]
"""Takes a packet and returns True if other frames refer to the packet's frame.

Returns None if leaving out frames of this stream is unsafe.
"""


def frame_counter(codec: str, extradata: bytes | None) -> FrameCounter | None:
    """Return a new `FrameCounter` for one stream; None if every packet of this codec shows one frame.

    Args:
        codec: ffmpeg's name of the codec.
        extradata: the headers that the container stores for the whole stream.
    """
    if codec == "vp8":  # RFC 6386, 9.1: bit 4 of the first byte is show_frame
        return lambda packet: Shows.FRAME if memoryview(packet)[0] >> 4 & 1 else Shows.NOTHING
    if codec == "vp9":
        return _vp9
    if codec == "h264":
        return _H264(extradata or b"")
    if codec == "mpeg2video":
        return _Mpeg2()
    if codec == "mpeg4":
        return _Mpeg4(extradata or b"")
    return _dirac if codec == "dirac" else None


def _vp9(packet: Any) -> Shows:
    """Return FRAME if a packet has a frame that is shown (VP9 bitstream specification, 6.2 and annex B)."""
    data = memoryview(packet)
    marker = data[-1]
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = len(data) - 2 - count * width
    sizes = [len(data)]
    if marker >> 5 == 0b110 and index >= 0 and data[index] == marker:  # a superframe has several frames, then their sizes
        sizes = [int.from_bytes(data[at : at + width], "little") for at in range(index + 1, len(data) - 1, width)]
    start = 0
    for size in sizes:
        frame = data[start : start + size]
        start += size
        if not len(frame):
            continue
        first = frame[0]
        if first >> 6 != 0b10:
            return Shows.FRAME  # not a VP9 frame: it counts as a frame, and the decoder reports the damage
        show_existing = 2 if first >> 4 & 3 == 3 else 3  # number of the bit; in profile 3, a reserved bit comes before it
        # The bits are show_existing_frame and show_frame; frame_type is between them.
        if first >> show_existing & 1 or first >> (show_existing - 2) & 1:
            return Shows.FRAME
    return Shows.NOTHING


def _dirac(packet: Any) -> Shows:
    """Return FRAME if a Dirac or VC-2 packet has a picture: a parse code with bit 3 set (SMPTE ST 2042-1, 10.5)."""
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
    """Reads bits from some bytes, from the first bit on. After the last byte, all bits are 0."""

    def __init__(self, data: bytes, *, escaped: bool = False) -> None:
        data = data.replace(b"\0\0\3", b"\0\0") if escaped else data
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
    """Finds the two fields of a frame.

    A top field and a bottom field are one frame if they follow each other and their headers have the same frame number.
    """

    def __init__(self) -> None:
        self._waiting: tuple[bool, int] | None = None  # a first field whose second field has not come yet: (bottom, number)

    def begins_frame(self, bottom: bool | None, number: int) -> bool:
        """Return True if a coded picture begins a new frame.

        Args:
            bottom: True for a bottom field, False for a top field, None for a whole frame.
            number: the frame number in the header of the picture.
        """
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
    """Finds what H.264 packets show: one field, two fields or a frame (ITU-T H.264, 7.3)."""

    def __init__(self, extradata: bytes) -> None:
        self._sps: dict[int, _Sps] = {}
        self._pps: dict[int, int] = {}  # id of the picture parameters -> id of the sequence parameters
        self._fields = _Fields()
        self._length_bytes = _h264_length_bytes(extradata)
        for unit in _avcc_units(extradata) if self._length_bytes else _marked_units(extradata):
            self._learn(unit)

    def __call__(self, packet: Any) -> Shows:
        if self._sps and all(sps.frames_only for sps in self._sps.values()) and not packet.is_keyframe:
            return Shows.FRAME  # the stream has no fields, and only a keyframe could change that
        pictures = new = 0
        for unit in _units(packet, self._length_bytes):
            self._learn(unit)
            if unit[0] & 31 in _H264_SLICES and len(unit) > 1 and unit[1] & 0x80:  # the first slice of a picture
                pictures += 1
                new += self._fields.begins_frame(*self._picture(unit))
        return Shows.MORE if pictures and not new else Shows.FRAME

    def _learn(self, unit: bytes) -> None:
        kind = unit[0] & 31 if unit else 0
        if kind == _H264_SPS:
            number, sps = _read_sps(_Bits(unit[1:_SPS_BYTES], escaped=True))
            self._sps[number] = sps
        elif kind == _H264_PPS:
            bits = _Bits(unit[1:_HEADER_BYTES], escaped=True)
            self._pps[bits.ue()] = bits.ue()

    def _picture(self, unit: bytes) -> tuple[bool | None, int]:
        """Return the arguments `bottom` and `number` of `_Fields.begins_frame` from the header of a slice."""
        bits = _Bits(unit[1:_HEADER_BYTES], escaped=True)
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
            for k in range(12 if chroma == 3 else 8):  # the scaling lists
                count = 16 if k < 6 else 64
                last = following = 8
                for _ in range(count if bits.u(1) else 0):
                    if following:
                        code = bits.ue()
                        following = (last + (-(code // 2) if code % 2 == 0 else (code + 1) // 2)) % 256
                    last = following or last
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


def _marked_units(data: bytes) -> Iterator[bytes]:
    """Yield up to 512 bytes from the start of each unit. A start code comes before each unit."""
    at = data.find(_MARK)
    while at >= 0:
        if at + 3 < len(data):
            yield data[at + 3 : at + 3 + _SPS_BYTES]
        at = data.find(_MARK, at + 3)


def _units(packet: Any, length_bytes: int) -> Iterator[bytes]:
    """Yield up to 512 bytes from the start of each unit of a packet.

    Args:
        packet: the packet.
        length_bytes: size of the length field before each unit, in bytes; 0 if start codes separate the units.
    """
    data = bytes(packet)
    if not length_bytes:
        yield from _marked_units(data)
        return
    at = 0
    while at + length_bytes < len(data):
        size = int.from_bytes(data[at : at + length_bytes], "big")
        at += length_bytes
        if size:
            yield data[at : at + min(size, _SPS_BYTES)]
        at += size


def _h264_length_bytes(extradata: bytes) -> int:
    return extradata[4] % 4 + 1 if len(extradata) > 6 and extradata[0] == 1 else 0


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
    """Return True if the first picture of an MPEG-1 or MPEG-2 packet is intra-coded (ITU-T H.262, 6.3.9).

    A decoder can begin at such a picture. In a damaged file, the keyframe flag of a packet may be wrong: it describes the last
    picture that the demuxer finds in the packet, not the first.
    """
    data = bytes(packet)
    at = data.find(b"\0\0\1\0")
    return 0 <= at < len(data) - 5 and data[at + 5] >> 3 & 7 == 1


class _Mpeg2:
    """Finds what MPEG-2 packets show.

    picture_structure is 1 or 2 if a picture is a field (ITU-T H.262, 6.2.3).
    """

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
    """Finds what MPEG-4 packets show.

    If vop_coded is 0, the previous picture stays (ISO/IEC 14496-2, 6.2.3 and 6.2.5).

    DivX packs two pictures into one packet. The next packet has no coded picture, and counts as the packet of the second
    picture. So the number of packets is equal to the number of pictures.
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
            return Shows.FRAME  # no MPEG-4 picture: the packet counts as a frame, and the decoder reports the damage
        while at >= 0:
            bits = _Bits(data[at + 4 : at + _HEADER_BYTES])
            bits.u(2)  # vop_coding_type
            while bits.u(1):  # modulo_time_base
                pass
            bits.u(1 + self._increment_bits + 1)
            coded += bits.u(1)
            at = data.find(b"\0\0\1\xb6", at + 4)
        shown = coded > 0 or self._packed
        self._packed = coded > 1 or (coded == 1 and self._packed)
        if coded > 1:
            return Shows.FRAME_AND_NEXT
        return Shows.FRAME if shown else Shows.MORE

    def _learn(self, data: bytes) -> None:
        """Learn how many bits a time increment has, if the data contains the header of a video object layer."""
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


def reference_counter(codec: str, extradata: bytes | None) -> ReferenceCounter | None:
    """Return a new `ReferenceCounter` for one stream.

    Return None if this module has no rule for the codec. In this case, the decoder must decode all frames.
    """
    data = extradata or b""
    if codec == "hevc":
        return _HevcReferences(data)
    if codec == "h264":
        length_bytes = _h264_length_bytes(data)
        # If nal_ref_idc is 0, no other picture refers to this picture (ITU-T H.264, 7.4.1).
        return lambda packet: _agreed(
            unit[0] >> 5 & 3 != 0 for unit in _units(packet, length_bytes) if unit[0] & 31 in _H264_SLICES
        )
    # In MPEG, no picture refers to a B picture.
    if codec in ("mpeg1video", "mpeg2video"):  # ITU-T H.262, 6.3.9
        return lambda packet: _agreed(
            unit[2] >> 3 & 7 != _B_PICTURE_MPEG2 for unit in _units(packet, 0) if unit[0] == 0 and len(unit) > 2
        )
    if codec == "mpeg4":  # ISO/IEC 14496-2, 6.3.5
        return lambda packet: _agreed(
            unit[1] >> 6 != _B_PICTURE_MPEG4 for unit in _units(packet, 0) if unit[0] == 0xB6 and len(unit) > 1
        )
    return None


class _HevcReferences:
    """Finds HEVC packets to which no other packet refers.

    The nal_unit_type of such a packet is even and at most 14 (ITU-T H.265, 7.4.2.2).

    This rule is valid only within one sub-layer: pictures of a higher sub-layer may still refer to the packet. So a call
    returns None if a packet found in this way is below the highest sub-layer of the stream. In this case, the decoder decodes
    all frames.
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


def _agreed(parts: Iterable[bool]) -> bool | None:
    """Return the common value of all parts of a packet: None if the values differ, True if the packet has no parts."""
    values = set(parts)
    return None if len(values) > 1 else values != {False}
