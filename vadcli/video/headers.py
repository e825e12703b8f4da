"""Reads the headers of coded pictures: does a packet show a frame, and do other frames refer to it?

Not every packet is a frame that a player shows (`frame_counter`). A codec can store reference pictures that are never shown
(VP8, VP9), or a frame as two fields in two packets (H.264, MPEG-2). In MPEG-4, a picture that is "not coded" only shows the
previous frame for longer.

If a decoder leaves out the frames to which no other frame refers (`reference_counter`), the other frames stay the same. ffmpeg
leaves out the same frames at `-skip_frame noref`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_MARK = b"\0\0\1"
_HEADER_BYTES = 48  # every header that is read here is shorter
_SPS_BYTES = 512
_H264_SLICES = frozenset({1, 2, 5})
_H264_SPS, _H264_PPS = 7, 8
_B_PICTURE_MPEG2, _B_PICTURE_MPEG4 = 3, 2


class Shows(enum.Enum):
    """The ways in which a packet can show a frame."""

    FRAME = enum.auto()
    FRAME_AND_NEXT = enum.auto()  # two frames; the second counts as the frame of the next packet
    MORE = enum.auto()  # the second field of the previous frame, or a command to show the previous frame for longer
    NOTHING = enum.auto()


FrameCounter = Callable[[Any], Shows]
"""Takes the next packet in decoding order and returns what it shows."""

ReferenceCounter = Callable[[Any], bool | None]
"""Takes a packet and returns True if it is a reference; None if it is unsafe to leave out frames of this stream."""


def frame_counter(codec: str, extradata: bytes | None) -> FrameCounter | None:
    """Return a new counter for one stream; None if every packet of this codec shows one frame.

    `codec` is ffmpeg's name of the decoder; `extradata` are the headers that the container stores for the whole stream.
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
    """VP9 bitstream specification, 6.2 and annex B: a packet is hidden if none of its frames is shown."""
    data = memoryview(packet)
    marker = data[-1]
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = len(data) - 2 - count * width
    sizes = [len(data)]
    if marker >> 5 == 0b110 and index >= 0 and data[index] == marker:  # a superframe: several frames, then their sizes
        sizes = [int.from_bytes(data[at : at + width], "little") for at in range(index + 1, len(data) - 1, width)]
    start = 0
    for size in sizes:
        frame = data[start : start + size]
        start += size
        if not len(frame):
            continue
        first = frame[0]
        if first >> 6 != 0b10:
            return Shows.FRAME  # not a VP9 frame: it counts as shown, and the decoder reports the damage
        show_existing = 2 if first >> 4 & 3 == 3 else 3  # number of the bit; profile 3 has a reserved bit before it
        if first >> show_existing & 1 or first >> (show_existing - 2) & 1:  # frame_type is between these bits
            return Shows.FRAME
    return Shows.NOTHING


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
    """Pairs fields. Two fields are one frame if they have opposite parity and the same number."""

    def __init__(self) -> None:
        self._waiting: tuple[bool, int] | None = None  # parity and number of a first field; its second field must follow

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

    def __init__(self, extradata: bytes) -> None:
        self._sps: dict[int, _Sps] = {}
        self._pps: dict[int, int] = {}  # id of the picture parameters -> id of the sequence parameters
        self._fields = _Fields()
        self._length_bytes = _h264_length_bytes(extradata)
        for unit in _avcc_units(extradata) if self._length_bytes else _marked_units(extradata):
            self._learn(unit)

    def __call__(self, packet: Any) -> Shows:
        if self._sps and all(sps.frames_only for sps in self._sps.values()) and not packet.is_keyframe:
            return Shows.FRAME  # the stream has no fields; new parameters come only with a keyframe
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
        """Return (is it a bottom field, frame_num) of a slice; the first value is None for a whole frame."""
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
    """Yield the beginning of each unit that follows a start code."""
    at = data.find(_MARK)
    while at >= 0:
        if at + 3 < len(data):
            yield data[at + 3 : at + 3 + _SPS_BYTES]
        at = data.find(_MARK, at + 3)


def _units(packet: Any, length_bytes: int) -> Iterator[bytes]:
    """Yield the beginning of each unit of a packet. If `length_bytes` is 0, units follow start codes."""
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
    """Whether the first picture of an MPEG-1 or MPEG-2 packet is intra-coded (ITU-T H.262, 6.3.9).

    A decoder can begin at such a picture. In a damaged file, the container's flag can be wrong: the flag then describes the
    last picture that seems to be in the packet.
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
    """MPEG-4 part 2 (ISO/IEC 14496-2, 6.2.3, 6.2.5): if vop_coded is 0, the previous picture stays.

    DivX packs two pictures into one packet. A packet without a coded picture follows, so that there are as many packets as
    pictures. This second packet shows the second picture of the first packet.
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
        """Read how many bits a time has, if the data has the header of a video object layer."""
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
    """Return a new counter for one stream; None if frames of this codec are never left out."""
    data = extradata or b""
    if codec == "hevc":
        return _HevcReferences(data)
    if codec == "h264":
        length_bytes = _h264_length_bytes(data)
        # ITU-T H.264, 7.4.1: nal_ref_idc is 0 if no other picture refers to this picture.
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
    """HEVC (ITU-T H.265, 7.4.2.2): a picture of an even type up to 14 is not a reference in its sub-layer.

    But a picture of a higher sub-layer may refer to it. So all frames that are left out must be in the highest sub-layer.
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
    """Return the answer of all parts of a packet; None if they differ; True if there is no part."""
    answers = set(parts)
    return None if len(answers) > 1 else answers != {False}
