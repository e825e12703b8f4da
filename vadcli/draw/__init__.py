"""Draws rendered videos: the score curve, the heat map, the overlay of a frame, and the MP4 file.

Every player can play the MP4 file: it is H.264 with 4:2:0 colours and even sides. Each frame keeps its own time. The index is
at the start of the file.
"""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from vadcli.types import ByteArray

FINEST_PER_S = 1_000_000  # the 32-bit times of an MP4 are too small for a finer time base
FALLBACK_TIME_BASE = Fraction(1, 90_000)
KEYFRAME_EVERY_S = 2.0
_HD_FROM_PX = 720  # players assume BT.601 colours in smaller pictures, and BT.709 in larger pictures
_SD_TAG, _HD_TAG = 6, 1  # the codes for SMPTE 170M and BT.709 in the standard H.273


class Mp4Writer:
    """Encodes RGB frames into a file, as a context manager.

    After an exception, the file is unusable. So write to a temporary file.

    Args:
        path: the file to write.
        width, height: size of every frame in pixels, even.
        time_base: seconds per unit of the frames' pts.
        fps: approximate frames per second. It affects rate control and the distance between keyframes, but not the timing.
        crf: x264's constant rate factor; a lower value means better quality.
        preset: x264's preset.

    Raises:
        ValueError: the width or the height is odd.
        OSError: the file can't be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        height: int,
        time_base: Fraction,
        fps: float,
        crf: int = 21,
        preset: str = "veryfast",
    ) -> None:
        if width % 2 or height % 2:
            raise ValueError(f"H.264 in 4:2:0 needs even sides, not {width}x{height}")
        self._time_base = time_base
        self._kept = time_base if time_base.denominator <= FINEST_PER_S else FALLBACK_TIME_BASE
        self._last: int | None = None
        self._reformatter = VideoReformatter()
        self._container = av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"})
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": preset})
        context = self._stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.sample_aspect_ratio = Fraction(1)  # square pixels
        context.time_base = self._kept
        context.gop_size = max(1, round(KEYFRAME_EVERY_S * fps))
        hd = height >= _HD_FROM_PX
        self._colours = Colorspace.ITU709 if hd else Colorspace.ITU601
        context.color_range = ColorRange.MPEG
        context.colorspace = context.color_primaries = context.color_trc = _HD_TAG if hd else _SD_TAG

    def write(self, picture: ByteArray, pts: int) -> None:
        """Encode the next frame.

        Args:
            picture: (height, width, 3) uint8 RGB.
            pts: when the frame is shown, in units of `time_base`; it must be later than the previous frame.
        """
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(picture, format="rgb24"),
            format="yuv420p",
            dst_colorspace=self._colours,
            dst_color_range=ColorRange.MPEG,
        )
        at = round(pts * self._time_base / self._kept)
        frame.pts = self._last = at if self._last is None else max(at, self._last + 1)
        frame.time_base = self._kept
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> Mp4Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            with suppress(OSError, ValueError):
                self._container.close()
            return
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()
