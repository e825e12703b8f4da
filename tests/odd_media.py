"""Makes files that ffmpeg cannot make: field pictures, missing frames, unusual time stamps.

Unless a function states otherwise, frame i shows `media.picture(i)`. So `media.read_index` returns the number of a decoded
frame.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from tests import media

SIDE = 64  # width and height of the hand-made streams, in pixels
Picture = NDArray[np.uint8]


class Bits:
    """Bits that are joined to bytes."""

    def __init__(self) -> None:
        self._text: list[str] = []

    def u(self, *fields: tuple[int, int]) -> Bits:
        """Append (value, number of bits) pairs."""
        self._text += [format(value, f"0{count}b") for value, count in fields]
        return self

    def ue(self, *values: int) -> Bits:
        """Append Exp-Golomb numbers."""
        for value in values:
            code = format(value + 1, "b")
            self._text.append("0" * (len(code) - 1) + code)
        return self

    def code(self, text: str) -> Bits:
        """Append bits written as text."""
        self._text.append(text)
        return self

    def align(self) -> Bits:
        """Append zeros up to a whole byte."""
        self._text.append("0" * (-sum(map(len, self._text)) % 8))
        return self

    def data(self) -> bytes:
        """Return the bytes, filled up with zeros."""
        joined = "".join(self.align()._text)
        return bytes(int(joined[i : i + 8], 2) for i in range(0, len(joined), 8))


def h264_stream(kinds: str) -> bytes:
    """Return an H.264 stream of raw samples.

    Per frame, "f" makes two field pictures and "p" one frame picture.
    """
    sps = Bits().u((77, 8), (0, 8), (20, 8)).ue(0, 0, 0, 4, 1).u((0, 1)).ue(SIDE // 16 - 1, SIDE // 32 - 1)
    sps.u((0, 1), (0, 1), (1, 1), (0, 1), (1, 1), (0, 4), (1, 1), (1, 32), (50, 32), (1, 1), (0, 2), (0, 1))
    sps.u((1, 1), (1, 1)).ue(0, 0, 9, 9, 0, 1)
    pps = Bits().ue(0, 0).u((0, 2)).ue(0, 0, 0).u((0, 3)).ue(0, 0, 0).u((1, 1), (0, 2))
    stop = "1"
    parameters = _nal(0x67, sps.code(stop).data()) + _nal(0x68, pps.code(stop).data())
    out = b""
    for i, kind in enumerate(kinds):
        whole = media.picture(i, SIDE, SIDE)
        since = i % 10
        for bottom in (0, 1) if kind == "f" else (None,):
            idr = since == 0 and not bottom
            head = Bits().ue(0, 7, 0).u((since, 4), (0 if bottom is None else 1, 1))
            if bottom is not None:
                head.u((bottom, 1))
            if idr:
                head.ue(i // 10 % 2)
            head.u((2 * since + (bottom or 0), 8), (0, 2 if idr else 1)).ue(0, 1)
            samples = whole if bottom is None else whole[bottom::2]
            unit = _nal(0x65 if idr else 0x61, _raw_blocks(head, samples).code(stop).data())
            out += _nal(0x09, b"\xf0") + (parameters if idr else b"") + unit
    return out


def _raw_blocks(bits: Bits, samples: Picture) -> Bits:
    for y in range(0, len(samples), 16):
        for x in range(0, SIDE, 16):
            bits.ue(25).align()
            bits.u(*((int(value), 8) for value in samples[y : y + 16, x : x + 16].ravel()), *[(128, 8)] * 128)
    return bits


def _nal(header: int, payload: bytes) -> bytes:
    out, zeros = bytearray(), 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = 0 if byte else zeros + 1
    return b"\0\0\0\1" + bytes([header]) + bytes(out)


_DC_SIZES = ("100", "00", "01", "101", "110", "1110", "11110", "111110", "1111110")


def mpeg2_stream(kinds: str) -> bytes:
    """Return an MPEG-2 stream.

    Per frame, "f" makes two field pictures, "p" one frame picture, and "r" a frame picture whose first field is repeated.
    """
    sequence = b"\0\0\1\xb3" + Bits().u((SIDE, 12), (SIDE, 12), (1, 4), (3, 4), (9999, 18), (1, 1), (20, 10), (0, 3)).data()
    sequence += b"\0\0\1\xb5" + Bits().u((1, 4), (0x48, 8), (0, 1), (1, 2), (0, 4), (0, 12), (1, 1), (0, 8), (0, 8)).data()
    out, top = b"", 1
    for i, kind in enumerate(kinds):
        whole = media.picture(i, SIDE, SIDE)
        out += sequence + b"\0\0\1\xb8" + Bits().u((0, 12), (1, 1), (0, 12), (1, 1), (0, 6)).data()
        for structure in (1, 2) if kind == "f" else (3,):
            samples = whole if structure == 3 else whole[structure - 1 :: 2]
            whole_frame, repeat = int(structure == 3), int(kind == "r")
            out += b"\0\0\1\0" + Bits().u((0, 10), (1, 3), (0xFFFF, 16), (0, 1)).data()
            extension = Bits().u((8, 4), (0xFFFF, 16), (0, 2), (structure, 2), (top * whole_frame, 1), (whole_frame, 1), (0, 4))
            out += b"\0\0\1\xb5" + extension.u((repeat, 1), (whole_frame, 1), (whole_frame, 1), (0, 1)).data()
            out += b"".join(_mpeg2_slice(row, samples[16 * row : 16 * row + 16]) for row in range(len(samples) // 16))
        top = 1 - top if kind == "r" else top
    return out + b"\0\0\1\xb7"


def _mpeg2_slice(row: int, samples: Picture) -> bytes:
    bits, before = Bits().u((2, 5), (0, 1)), 128
    for x in range(0, SIDE, 16):
        bits.code("11")
        for dy, dx in ((0, 0), (0, 8), (8, 0), (8, 8)):
            value = int(samples[dy : dy + 8, x + dx : x + dx + 8].mean())
            change, before = value - before, value
            size = abs(change).bit_length()
            bits.code(_DC_SIZES[size])
            if size:
                bits.u((change if change > 0 else change + (1 << size) - 1, size))
            bits.code("10")
        bits.code("0010" * 2)
    return b"\0\0\1" + bytes([row + 1]) + bits.data()


def mpeg4_vops(folder: Path, frames: int, *, b_frames: int = 0) -> tuple[bytes, list[bytes]]:
    """Return the headers and the coded pictures (VOPs), in decoding order, of an MPEG-4 stream."""
    raw = b"".join(media.picture(i).tobytes() for i in range(frames))
    source = ("-f", "rawvideo", "-pix_fmt", "gray", "-s", "96x64", "-r", "25", "-i", "pipe:0")
    how = ("-c:v", "mpeg4", "-q:v", "3", "-g", "300", "-bf", str(b_frames), "-b_strategy", "0")
    stream = folder / "vops.m4v"
    media.run_ffmpeg(*source, *how, "-f", "m4v", f"file:{stream}", stdin=raw)
    data = stream.read_bytes()
    stream.unlink()
    first = data.find(b"\0\0\1\xb6")
    vops = [b"\0\0\1\xb6" + body for body in data[first + 4 :].split(b"\0\0\1\xb6")]
    return data[:first], [vop.split(b"\0\0\1\xb3")[0].split(b"\0\0\1\xb0")[0] for vop in vops]


def not_coded(vop: bytes) -> bytes:
    """Return a VOP that is not coded, with the time of `vop`; decoders repeat the last picture."""
    bits = "".join(format(byte, "08b") for byte in vop[4:12])
    position = 2
    while bits[position] == "1":
        position += 1
    position += 2 + 5 + 1
    header = "01" + bits[2:position] + "0"
    header += "0" + "1" * ((-len(header) - 1) % 8)
    return b"\0\0\1\xb6" + bytes(int(header[i : i + 8], 2) for i in range(0, len(header), 8))


def write_avi(path: Path, tag: bytes, chunks: Sequence[bytes], size: tuple[int, int] = (96, 64)) -> Path:
    """Write an AVI with 25 chunks per second; a chunk may be empty."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)

    width, height = size
    avih = struct.pack("<14I", 40000, 0, 0, 0x10, len(chunks), 0, 1, 65536, width, height, 0, 0, 0, 0)
    strh = b"vids" + tag + struct.pack("<IHHIIIIIIiI4h", 0, 0, 0, 0, 1, 25, 0, len(chunks), 65536, -1, 0, 0, 0, width, height)
    strf = struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, tag, width * height * 3, 0, 0, 0, 0)
    streams = chunk(b"LIST", b"strl" + chunk(b"strh", strh) + chunk(b"strf", strf))
    movi, index = b"movi", b""
    for number, body in enumerate(chunks):
        index += b"00dc" + struct.pack("<III", 0 if number else 0x10, len(movi), len(body))
        movi += chunk(b"00dc", body)
    header = chunk(b"LIST", b"hdrl" + chunk(b"avih", avih) + streams)
    path.write_bytes(chunk(b"RIFF", b"AVI " + header + chunk(b"LIST", movi) + chunk(b"idx1", index)))
    return path


def write_mkv(path: Path, source: Path, times_ms: Iterable[int]) -> Path:
    """Write a Matroska file with the packets of another file, and with these times in decoding order."""

    def element(number: str, body: bytes) -> bytes:
        return bytes.fromhex(number) + (len(body) | 1 << 56).to_bytes(8, "big") + body

    def whole(number: str, value: int) -> bytes:
        return element(number, value.to_bytes(8, "big"))

    with av.open(str(source)) as opened:
        stream = opened.streams.video[0]
        context = stream.codec_context
        packets = [(bytes(packet), packet.is_keyframe) for packet in opened.demux(stream) if packet.size]
        private, width, height = context.extradata or b"", context.width, context.height
    assert private[:1] == b"\1", "only H.264 as in MP4"
    head = element("1A45DFA3", element("4282", b"matroska") + whole("4287", 4) + whole("4285", 2))
    video = element("E0", whole("B0", width) + whole("BA", height))
    entry = whole("D7", 1) + whole("73C5", 1) + whole("83", 1) + element("86", b"V_MPEG4/ISO/AVC") + element("63A2", private)
    body = element("1549A966", whole("2AD7B1", 1_000_000)) + element("1654AE6B", element("AE", entry + video))
    for (data, key), time in zip(packets, times_ms, strict=True):
        block = b"\x81\0\0" + (b"\x80" if key else b"\0") + data
        body += element("1F43B675", whole("E7", time) + element("A3", block))
    path.write_bytes(head + element("18538067", body))
    return path


def retime_pes(source: Path, target: Path, change: Callable[[int, int], int | None]) -> Path:
    """Write a copy of a transport or program stream that has only video, with other time stamps.

    Args:
        source, target: the files.
        change: function of the number and the value of a time stamp (90,000 per second). It returns the new value, or None to
            remove the time stamp.
    """
    data = bytearray(source.read_bytes())
    at, seen = data.find(b"\0\0\1\xe0"), 0
    while at >= 0:
        flags, place = data[at + 7] >> 6, at + 9
        if flags & 2:
            stamps = [place, place + 5] if flags == 3 else [place]
            new = [change(seen, _stamp(data[at : at + 5])) for at in stamps]
            for position, value in zip(stamps, new, strict=True):
                if value is None:
                    data[at + 7] &= 0x3F
                    data[position : position + 5] = b"\xff" * 5
                else:
                    data[position : position + 5] = _stamped(data[position] >> 4, value)
            seen += 1
        at = data.find(b"\0\0\1\xe0", at + 4)
    target.write_bytes(data)
    return target


def _stamp(data: bytes) -> int:
    return (data[0] >> 1 & 7) << 30 | data[1] << 22 | data[2] >> 1 << 15 | data[3] << 7 | data[4] >> 1


def _stamped(mark: int, value: int) -> bytes:
    value %= 1 << 33
    parts = [mark << 4 | value >> 30 << 1 | 1, value >> 22, value >> 14 | 1, value >> 7, value << 1 | 1]
    return bytes(part & 255 for part in parts)
