"""Draws score curves, heat maps and hidden regions for rendered videos, and writes the MP4 file.

The curve has two forms: a window around the current time, and a strip for the whole video. `overlay` puts the layers together.
Every player can play the MP4 file: it is H.264 with 4:2:0 colours and even sides. Each frame keeps its own time. The index is
at the start of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vadcli.types import BoolArray, ByteArray, Event, ScoreTable, Thresholds, TimeArray

Colour = tuple[int, int, int]

PANEL: Colour = (17, 21, 28)
TRACK: Colour = (30, 36, 46)
GRID: Colour = (42, 50, 62)
BAR: Colour = (58, 68, 84)
TEXT: Colour = (238, 241, 246)
DIM: Colour = (150, 160, 175)
NORMAL: Colour = (86, 180, 233)  # everybody can tell sky blue from orange, with any kind of colour vision
EVENT: Colour = (240, 164, 30)
LIMIT: Colour = (196, 204, 216)

WHOLE_UP_TO_S = 45.0  # if a video is not longer than this, the window shows the whole video
WINDOW_S = 30.0
_TRACK, _EVENT, _LIMIT = (np.array(colour, dtype=np.float32) for colour in (TRACK, EVENT, LIMIT))
_SMOOTH = 3  # the curve is drawn larger by this factor and then reduced, so that the line gets smooth edges


class ScoreCurve:
    """The score curve of one video.

    The curve is drawn in tiles, and only when a tile is needed. So a long video needs no more memory than a short video.

    Args:
        table: the scores.
        events: the video's events. Within events, the curve has another colour.
        thresholds: the levels to mark.
        width, height: size of the window in pixels.
        end_s: end of the last frame, in seconds.
    """

    def __init__(
        self,
        table: ScoreTable,
        events: Sequence[Event],
        thresholds: Thresholds,
        *,
        width: int,
        height: int,
        end_s: float,
    ) -> None:
        self.width, self.height, self.end_s = width, height, max(end_s, 1e-3)
        self.whole = end_s <= WHOLE_UP_TO_S
        self.s_per_px = (self.end_s if self.whole else WINDOW_S) / width
        self._timestamp, self._score = table.timestamp, table.score
        self._events, self._thresholds = tuple(events), thresholds
        self._tile = lru_cache(maxsize=3)(self._draw_tile)

    def window(self, at_s: float) -> tuple[Image.Image, int]:
        """Return a picture of the curve around a time, and the column of this time.

        The columns after this time are dimmed.
        """
        column = int(at_s / self.s_per_px)
        last = max(0, round(self.end_s / self.s_per_px) - self.width)
        left = min(max(0, column - self.width // 2), last)
        playhead = min(max(column - left, 0), self.width - 1)
        picture = Image.new("RGB", (self.width, self.height), TRACK)
        first = left // self.width
        for number in (first, first + 1):
            x = number * self.width - left
            if x >= self.width:
                continue
            past, future = self._tile(number)
            picture.paste(future, (x, 0))
            past_px = playhead - x
            if past_px > 0:
                picture.paste(past.crop((0, 0, min(past_px, self.width), self.height)), (x, 0))
        return picture, playhead

    def strip(self, width: int, height: int) -> Image.Image:
        """Return a bar for the whole video, with a mark per event. A mark is at least two pixels wide."""
        bar = Image.new("RGB", (width, height), BAR)
        draw = ImageDraw.Draw(bar)
        for event in self._events:
            left = round(event.start_s / self.end_s * width)
            right = max(left + 2, round(event.end_s / self.end_s * width))
            draw.rectangle((min(left, width - 2), 0, right - 1, height), fill=EVENT)
        return bar

    def _draw_tile(self, number: int) -> tuple[Image.Image, Image.Image]:
        """Return a normal and a dimmed picture of a tile; tile n starts at column n × width."""
        start_s = number * self.width * self.s_per_px
        in_event = np.zeros(self.width, dtype=bool)  # columns that an event touches
        for event in self._events:
            left = int(np.floor((event.start_s - start_s) / self.s_per_px))
            right = int(np.ceil((event.end_s - start_s) / self.s_per_px))
            in_event[max(left, 0) : max(right, left + 1, 0)] = True
        # The background: a vertical line every 1, 5 or 10 seconds, and a tint during events.
        ground = np.empty((self.height, self.width, 3), dtype=np.float32)
        ground[:] = TRACK
        step_s = next((step for step in (1, 5, 10) if self.s_per_px * self.width / step <= 9), 10)
        ticks = np.arange(np.ceil(start_s / step_s), (start_s / step_s + self.width * self.s_per_px / step_s)) * step_s
        columns = ((ticks - start_s) / self.s_per_px).astype(int)
        ground[:, columns[(columns > 0) & (columns < self.width)]] = GRID
        ground[:, in_event] += 0.16 * (_EVENT - ground[:, in_event])
        # The curve and the area below it.
        edges = start_s + np.arange(self.width * _SMOOTH + 1, dtype=np.float64) * (self.s_per_px / _SMOOTH)
        value = column_maxima(self._timestamp, self._score, edges)
        value[edges[:-1] > self.end_s] = np.nan
        fill, line = _strokes(value, self.height)
        colour = np.where(in_event[:, None], EVENT, NORMAL).astype(np.float32)[None]
        bright = _blend(_blend(ground, colour, 0.38 * fill), colour, line)
        # A dashed line at the high threshold and a dotted line at the low threshold. The dashes move together with the curve.
        thick = max(1, self.height // 48)
        column = round(start_s / self.s_per_px) + np.arange(self.width)
        for level, on, off in ((self._thresholds.high, 6, 4), (self._thresholds.low, 2, 6)):
            dash = column % (thick * (on + off)) < thick * on
            y = round(level_y(level, self.height))
            y = min(max(y - thick // 2, 0), self.height - thick)
            row = bright[y : y + thick, dash]
            bright[y : y + thick, dash] = row + 0.75 * (_LIMIT - row)
        dimmed = bright * 0.6 + _TRACK * 0.4
        return _image(bright), _image(dimmed)


def column_maxima(timestamp: TimeArray, score: NDArray[np.float32], edges: TimeArray) -> NDArray[np.float32]:
    """Return the highest score within each column. A frame keeps its score until the next frame.

    Args:
        timestamp: (N,) seconds, ascending.
        score: (N,).
        edges: (C + 1,) seconds, ascending: column c is [edges[c], edges[c + 1]).

    Returns:
        (C,) float32, NaN before the first frame.
    """
    begins = np.searchsorted(timestamp, edges[:-1], side="right") - 1  # the frame that is shown when the column begins
    ends = np.searchsorted(timestamp, edges[1:], side="left")
    value = np.full(len(edges) - 1, np.nan, dtype=np.float32)
    known = ends > 0
    first = np.maximum(begins[known], 0)
    if not len(first):
        return value
    low, high = int(first[0]), int(ends[known][-1])
    part = np.append(score[low:high], np.float32(0.0))  # reduceat accepts no index at the array's end
    bounds = np.stack([first - low, np.maximum(ends[known], first + 1) - low], axis=1).ravel()
    value[known] = np.maximum.reduceat(part, bounds)[::2]
    return value


def level_y(level: float, height: int) -> float:
    """Return the position of a score in pixels from the top, with a small margin at both edges."""
    margin = max(1.0, height * 0.06)
    return margin + (1.0 - level) * (height - 1 - 2 * margin)


def _strokes(value: NDArray[np.float32], height: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two opacity maps, (height, width, 1) in [0, 1].

    The first map shows the area under the curve, the second map shows the line of the curve.
    """
    tall, wide = height * _SMOOTH, len(value)
    zero, one = level_y(0.0, tall), level_y(1.0, tall)
    y = np.where(np.isnan(value), 4.0 * tall, zero + (one - zero) * value)
    area = Image.fromarray(((np.arange(tall)[:, None] >= y[None]) * np.uint8(255)).astype(np.uint8))
    line = Image.new("L", (wide, tall))
    thick = max(_SMOOTH, round(tall / 36))
    ImageDraw.Draw(line).line([(x, float(row)) for x, row in enumerate(y)], fill=255, width=thick)
    return _reduce(area), _reduce(line)


def _reduce(mask: Image.Image) -> NDArray[np.float32]:
    return np.asarray(mask.reduce(_SMOOTH), dtype=np.float32)[..., None] / 255.0


def _blend(ground: NDArray[np.float32], colour: NDArray[np.float32], opacity: NDArray[np.float32]) -> NDArray[np.float32]:
    return ground + (colour - ground) * opacity


def _image(picture: NDArray[np.float32]) -> Image.Image:
    pixels: ByteArray = np.clip(picture, 0, 255).round().astype(np.uint8)
    return Image.fromarray(pixels)


# The colours go from dark violet through red and orange to pale yellow. The brightness always rises. So the order of the
# colours is visible in a grey print, and to people with any kind of colour blindness.
RAMP = ((0.0, (62, 15, 114)), (0.3, (130, 30, 120)), (0.5, (205, 62, 70)), (0.75, (249, 142, 20)), (1.0, (255, 214, 92)))
FAINT = 0.15  # below this pixel score nothing is drawn
STRONG = 0.6  # from this pixel score on, the heat map has its highest opacity
MOST_OPAQUE = 0.55
OUTLINE_COLOUR = (255, 224, 130)

_AT = np.linspace(0.0, 1.0, 256)
_CHANNELS = [np.interp(_AT, [stop for stop, _ in RAMP], [colour[channel] for _, colour in RAMP]) for channel in range(3)]
_COLOURS = [int(value) for value in np.stack(_CHANNELS, axis=1).round().ravel()]
_RISE = np.clip((_AT - FAINT) / (STRONG - FAINT), 0.0, 1.0)
_OPACITY = [int(value) for value in (_RISE * _RISE * (3.0 - 2.0 * _RISE) * MOST_OPAQUE * 255).round()]
_VISIBLE = [255 if value else 0 for value in _OPACITY]


class HeatLayer:
    """Draws masks over pictures of one size.

    The same mask is drawn over several frames, until the next sampled frame. So a mask is prepared only once.

    Args:
        width, height: size of the pictures in pixels.
        line_px: thickness of the outline.
        level: the outline is drawn around the pixels with at least this score (0-255).
    """

    def __init__(self, width: int, height: int, *, line_px: int, level: int) -> None:
        self.size = (width, height)
        self.level = level
        self._shown = [255 if value >= level else seen for value, seen in enumerate(_VISIBLE)]
        self.line_px = line_px
        self._mask: ByteArray | None = None
        self._layer: tuple[tuple[int, int, int, int], Image.Image, Image.Image] | None = None

    def draw(self, picture: ByteArray, mask: ByteArray) -> None:
        """Blend a mask into a picture.

        Args:
            picture: (H, W, 3) uint8, changed in place.
            mask: (h, w) uint8, 0–255 = pixel score 0–1; any size. Do not change the array while this object uses it.
        """
        if mask is not self._mask:
            self._mask, self._layer = mask, self._prepare(mask)
        if self._layer is None:
            return
        _paste(picture, *self._layer)

    def _prepare(self, mask: ByteArray) -> tuple[tuple[int, int, int, int], Image.Image, Image.Image] | None:
        grey = Image.fromarray(mask)
        if grey.size != self.size:
            grey = grey.resize(self.size, Image.Resampling.BILINEAR)
        box = grey.point(self._shown).getbbox()
        if box is None:
            return None
        grey = grey.crop(box)
        colour = grey.copy()
        colour.putpalette(_COLOURS)
        rgb, opacity = colour.convert("RGB"), grey.point(_OPACITY)
        # The outline is the inner edge of the area. Where the area touches the border of the picture, no outline is drawn.
        area = np.asarray(grey) >= self.level
        inside, core = np.pad(area, self.line_px, mode="edge"), np.ones(area.shape, dtype=bool)
        for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
            y, x = down * self.line_px, right * self.line_px
            core &= inside[y : y + area.shape[0], x : x + area.shape[1]]
        outline = Image.fromarray((area & ~core).astype(np.uint8) * np.uint8(255))
        rgb.paste(OUTLINE_COLOUR, (0, 0), outline)
        opacity.paste(230, (0, 0), outline)
        return box, rgb, opacity


def _paste(picture: ByteArray, box: tuple[int, int, int, int], colour: Image.Image, opacity: Image.Image) -> None:
    """Blend a colour image into the box (left, top, right, bottom) of a picture, in place."""
    left, top, right, bottom = box
    patch = Image.fromarray(np.ascontiguousarray(picture[top:bottom, left:right]))
    patch.paste(colour, (0, 0), opacity)
    picture[top:bottom, left:right] = np.asarray(patch)


class HiddenLayer:
    """Draws dark stripes over the parts of a picture that were hidden from the detector.

    Args:
        hidden: (H, W) bool, as large as the pictures.
        stripe_px: distance between two stripes.
    """

    def __init__(self, hidden: BoolArray, *, stripe_px: int) -> None:
        self._layer: tuple[tuple[int, int, int, int], Image.Image, Image.Image] | None = None
        mask = Image.fromarray(hidden.astype(np.uint8) * np.uint8(255))
        box = mask.getbbox()
        if box is None:
            return
        left, top, right, bottom = box
        across = np.arange(left, right)[None, :] + np.arange(top, bottom)[:, None]
        stripes = across % stripe_px < max(1, stripe_px // 6)
        colour = np.where(stripes[..., None], np.array(DIM, np.uint8), np.array(PANEL, np.uint8))
        opacity = np.where(hidden[top:bottom, left:right], np.where(stripes, 200, 140), 0).astype(np.uint8)
        self._layer = box, Image.fromarray(colour), Image.fromarray(opacity)

    def draw(self, picture: ByteArray) -> None:
        """Mark the hidden parts of a (H, W, 3) uint8 picture, in place."""
        if self._layer is not None:
            _paste(picture, *self._layer)


FINEST_PER_S = 1_000_000  # the 32-bit times of an MP4 are too small for a finer time base
FALLBACK_TIME_BASE = Fraction(1, 90_000)
KEYFRAME_EVERY_S = 2.0
CRF = "21"  # x264's constant rate factor; a lower value means better quality
_HD_FROM_PX = 720  # players assume BT.601 colours in smaller pictures, and BT.709 in larger pictures
_SD_TAG, _HD_TAG = 6, 1  # the codes for SMPTE 170M and BT.709 in the standard H.273


class Mp4Writer:
    """Encodes RGB frames into a file, as a context manager.

    After an exception, the file is unusable. So give the path of a temporary file.

    Args:
        path: the file to write.
        width, height: size of every frame in pixels; both must be even.
        time_base: seconds per unit of the frames' pts.
        fps: approximate frames per second. It affects rate control and the distance between keyframes, but not the timing.
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
        preset: str = "veryfast",
    ) -> None:
        if width % 2 or height % 2:
            raise ValueError(f"H.264 in 4:2:0 needs even sides, not {width}x{height}")
        self._time_base = time_base
        self._stored_base = time_base if time_base.denominator <= FINEST_PER_S else FALLBACK_TIME_BASE
        self._last: int | None = None
        self._reformatter = VideoReformatter()
        self._container = av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"})
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": CRF, "preset": preset})
        context = self._stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.sample_aspect_ratio = Fraction(1)  # square pixels
        context.time_base = self._stored_base
        context.gop_size = max(1, round(KEYFRAME_EVERY_S * fps))
        hd = height >= _HD_FROM_PX
        self._colours = Colorspace.ITU709 if hd else Colorspace.ITU601
        context.color_range = ColorRange.MPEG
        context.colorspace = context.color_primaries = context.color_trc = _HD_TAG if hd else _SD_TAG

    def write(self, picture: ByteArray, pts: int) -> None:
        """Encode the next frame.

        Args:
            picture: (height, width, 3) uint8 RGB.
            pts: when the frame is shown, in units of `time_base`; this must be later than the pts of the previous frame.
        """
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(picture, format="rgb24"),
            format="yuv420p",
            dst_colorspace=self._colours,
            dst_color_range=ColorRange.MPEG,
        )
        at = round(pts * self._time_base / self._stored_base)
        frame.pts = self._last = at if self._last is None else max(at, self._last + 1)
        frame.time_base = self._stored_base
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
