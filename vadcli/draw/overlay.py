"""Draws the frames of a rendered video: the picture with its heat map, and a panel below it.

Only the heat map, stripes on hidden regions and a border during events are drawn over the picture. So the rest of the picture
stays visible, for example the camera's time stamp. `Lettering` chooses fonts for texts in any script, if this machine has a
font for it.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vadcli.draw import (
    BAR,
    DIM,
    EVENT,
    LIMIT,
    NORMAL,
    PANEL,
    TEXT,
    TRACK,
    WHOLE_UP_TO_S,
    Colour,
    HeatLayer,
    HiddenLayer,
    ScoreCurve,
    level_y,
)
from vadcli.errors import OutputError
from vadcli.store.events import EventsDocument
from vadcli.types import ByteArray, ScoreTable
from vadcli.types.text import clock_ms

ELLIPSIS = "…"

# Pillow's built-in font has only ASCII. Text in other scripts needs a font of this machine. Pillow searches the system's font
# folders for these file names.
SYSTEM_FACES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "WenQuanYi Zen Hei.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "msyh.ttc",
)


class Lettering:
    """Measures texts in one font size, and chooses a font for each text.

    Args:
        size_px: font size (the height of an em).

    Attributes:
        face: the built-in font.
        cap_px: height of a capital letter.
    """

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px
        built_in = ImageFont.load_default(size_px)
        if not isinstance(built_in, ImageFont.FreeTypeFont):
            hint = "reinstall it from a wheel: pip install --force-reinstall pillow"
            raise OutputError("this build of Pillow has no scalable font", hint=hint)
        self.face = built_in
        self.cap_px = -self.face.getbbox("H", anchor="ls")[1]

    def centred_baseline(self, height_px: int) -> int:
        """Return the baseline at which capitals and digits are centred in a line of this height."""
        return round((height_px + self.cap_px) / 2)

    def width_px(self, text: str) -> int:
        """Return the width of the text if it is drawn with `face_for(text)`."""
        return math.ceil(self.face_for(text).getlength(text))

    def face_for(self, text: str) -> ImageFont.FreeTypeFont:
        """Return a font that has every letter of the text, or the built-in font if no font has every letter."""
        if covers(self.face, text):
            return self.face
        return next((face for face in _system_faces(self.size_px) if covers(face, text)), self.face)

    def readable(self, text: str) -> str:
        """Return the text on one line.

        If no font has all letters, accents are removed, and unknown letters become "?".
        """
        line = " ".join(text.split())
        if covers(self.face_for(line), line):
            return line
        plain = (mark for mark in unicodedata.normalize("NFKD", line) if not unicodedata.combining(mark))
        return "".join(mark if covers(self.face, mark) else "?" for mark in plain)

    def fit(self, text: str, room_px: int) -> str:
        """Return the text; if it is too wide, cut its end and add "…". Return "" if nothing fits."""
        if self.width_px(text) <= room_px:
            return text
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if self.width_px(text[:middle].rstrip() + ELLIPSIS) <= room_px:
                low = middle
            else:
                high = middle - 1
        return text[:low].rstrip() + ELLIPSIS if low else ""


def covers(face: ImageFont.FreeTypeFont, text: str) -> bool:
    """True if the font has a glyph for every letter of the text."""
    return all(_has_glyph(face, mark) for mark in set(text))


@lru_cache(maxsize=4096)
def _has_glyph(face: ImageFont.FreeTypeFont, mark: str) -> bool:
    if mark.isspace() or unicodedata.category(mark) == "Cf":
        return True
    return bytes(face.getmask(mark)) != bytes(face.getmask("\uffff"))


@lru_cache(maxsize=16)
def _system_faces(size_px: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    faces = []
    for name in SYSTEM_FACES:
        try:
            faces.append(ImageFont.truetype(name, size_px))
        except OSError:
            continue
    return tuple(faces)


MIN_CANVAS_PX = 240  # a narrower picture is enlarged by an integer factor
MIN_TYPE_PX = 12
MIN_SMALL_PX = 10
MAX_SIDE_PX = 4096
MAX_MACROBLOCKS = 36864  # blocks of 16×16 px: the limit of H.264 level 5.2; common hardware plays no higher level
_INK: Colour = (24, 18, 4)  # colour of text on a background in the colour of events
_TIME_OF_DAY_EM = 40  # the least width of a canvas that has room for the date and the time of day
_LINE_EM = 1.5  # height of a plate: the background of one line of text


@dataclass(frozen=True)
class Geometry:
    """The positions of all parts on the canvas, in pixels.

    Attributes:
        width, height: size of the canvas; both are even.
        enlarge: integer factor by which the picture is enlarged.
        picture_x: left edge of each picture. There are one or two pictures.
        picture_width, picture_height: size of a picture after it is enlarged.
        type_px: size of the text.
        caption_below: True if the caption has a line of its own.
    """

    width: int
    height: int
    enlarge: int
    picture_x: tuple[int, ...]
    picture_width: int
    picture_height: int
    type_px: int
    caption_below: bool

    @classmethod
    def of(cls, width: int, height: int, *, side_by_side: bool = False) -> Geometry:
        """Return the canvas for pictures of this size."""
        enlarge = max(1, min(-(-MIN_CANVAS_PX // width), MAX_SIDE_PX // 2 // max(width, height)))
        wide, tall = width * enlarge, height * enlarge
        gap = max(2, wide // 160) if side_by_side else 0
        pictures = 2 * wide + gap if side_by_side else wide
        canvas = max(MIN_CANVAS_PX, pictures + pictures % 2)
        left = (canvas - pictures) // 2
        starts = (left, left + wide + gap) if side_by_side else (left,)
        type_px = max(MIN_TYPE_PX, round(min(canvas, tall) / 34), round(canvas / 80))
        below = canvas < 30 * type_px
        panel = round(type_px * (7.6 if below else 6.0))
        panel += (tall + panel) % 2
        return cls(canvas, tall + panel, enlarge, starts, wide, tall, type_px, below)

    @property
    def plays_anywhere(self) -> bool:
        """True if common H.264 players can play a video of this size."""
        blocks = -(-self.width // 16) * -(-self.height // 16)
        return blocks <= MAX_MACROBLOCKS and max(self.width, self.height) <= MAX_SIDE_PX


class Overlay:
    """Draws the frames of one rendered video. Parts that look the same in all frames are drawn only once.

    The caption below the picture names the event. Between events, the caption names the video.

    Args:
        table: the video's scores.
        document: the video's events with their thresholds, the hidden parts of the picture, and the start time of the video.
        geometry: the canvas. If it has two pictures, the left picture is the original, and the right picture is annotated.
        end_s: end of the last frame, in seconds.
        mask_level: the outline of a mask is drawn around the pixels with at least this value (0-255). None takes the mask level
            of the document's thresholds.
    """

    def __init__(
        self, table: ScoreTable, document: EventsDocument, geometry: Geometry, *, end_s: float, mask_level: int | None = None
    ) -> None:
        self.geometry = geometry
        self._table, self._events = table, document.events
        self._thresholds, regions = document.thresholds, document.regions
        self._start = document.start if document.start and document.start.is_recorded else None
        self._event_of_row = np.full(len(table), -1, dtype=np.int32)
        for number, event in enumerate(self._events):
            self._event_of_row[event.start_frame : event.end_frame] = number
        self._end_s = end_s
        self._line_px = max(1, round(geometry.type_px / 9))
        level = document.thresholds.mask_level if mask_level is None else mask_level
        self._heat = HeatLayer(geometry.picture_width, geometry.picture_height, line_px=self._line_px, level=level)
        hidden = regions.hidden(geometry.picture_width, geometry.picture_height) if regions else None
        self._hidden = None if hidden is None else HiddenLayer(hidden, stripe_px=max(6, geometry.type_px))
        self._type = Lettering(geometry.type_px)
        self._small = Lettering(round(0.6 * geometry.type_px))
        self._lay_out_panel(end_s)
        self._plate = lru_cache(maxsize=4)(self._draw_plate)
        self._event_words = lru_cache(maxsize=4)(self._name_event)
        self._fit_title = lru_cache(maxsize=1)(lambda room_px: self._type.fit(self._type.readable(table.video), room_px))

    def draw(self, picture: ByteArray, row: int, mask: ByteArray | None = None) -> ByteArray:
        """Return one frame of the rendered video.

        Args:
            picture: (H, W, 3) uint8 RGB.
            row: the frame's row in the scores.
            mask: (h, w) uint8, 0–255 = pixel score 0–1, or None if no mask is stored. Give the same array object until the
                mask changes.

        Returns:
            (geometry.height, geometry.width, 3) uint8 RGB.
        """
        geometry = self.geometry
        canvas = np.empty((geometry.height, geometry.width, 3), dtype=np.uint8)
        tall, wide = geometry.picture_height, geometry.picture_width
        shown = picture
        if geometry.enlarge > 1:
            shown = picture.repeat(geometry.enlarge, axis=0).repeat(geometry.enlarge, axis=1)
        end = 0
        for left in geometry.picture_x:
            canvas[:tall, end:left] = PANEL
            end = left + wide
            canvas[:tall, left:end] = shown
        canvas[:tall, end:] = PANEL
        left = geometry.picture_x[-1]
        target = canvas[:tall, left : left + wide]
        if self._hidden is not None:
            self._hidden.draw(target)
        if mask is not None:
            self._heat.draw(target, mask)
        if self._event_of_row[row] >= 0:  # during an event, draw the border
            thick = min(2 * self._line_px, tall, wide)
            for edge in (target[:thick], target[-thick:], target[:, :thick], target[:, -thick:]):
                edge[:] = EVENT
        if geometry.width - end == 1:
            canvas[:tall, -1] = canvas[:tall, -2]  # this extra column makes the width even
        canvas[tall:] = np.asarray(self._panel(row))
        return canvas

    def _lay_out_panel(self, end_s: float) -> None:
        geometry = self.geometry
        em = geometry.type_px
        height = geometry.height - geometry.picture_height
        self._margin = round(0.5 * em)
        self._head_y = round(0.3 * em)
        lines = 2 if geometry.caption_below else 1
        curve_y = self._head_y + round((_LINE_EM + 0.3) * em) * lines
        width = geometry.width - 2 * self._margin
        strip = max(4, round(0.3 * em))
        short = end_s <= WHOLE_UP_TO_S
        bottom = height - round(0.45 * em)
        self._strip_y = bottom - strip
        curve_height = (bottom if short else self._strip_y - max(2, round(0.18 * em))) - curve_y
        self._curve_at = (self._margin, curve_y)
        self._curve = ScoreCurve(self._table, self._events, self._thresholds, width=width, height=curve_height, end_s=end_s)
        self._ground = Image.new("RGB", (geometry.width, height), PANEL)
        if not short:
            self._ground.paste(self._curve.strip(width, strip), (self._margin, self._strip_y))
        self._strip_px = 0 if short else strip

    def _panel(self, row: int) -> Image.Image:
        panel = self._ground.copy()
        draw = ImageDraw.Draw(panel)
        at_s = float(self._table.timestamp[row])
        self._draw_head(panel, draw, row, at_s)
        curve, playhead = self._curve.window(at_s)
        left, top = self._curve_at
        panel.paste(curve, self._curve_at)
        small = self._small
        if small.size_px >= MIN_SMALL_PX:  # write the high threshold above its line
            line = top + round(level_y(self._thresholds.high, curve.height))
            above = line - 2 * self._line_px
            at = (left + self._margin // 2, above if above - small.size_px > top else line + small.size_px + self._line_px)
            level = f"{self._thresholds.high:.2f}"
            draw.text(at, level, font=small.face, fill=LIMIT, anchor="ls", stroke_width=2, stroke_fill=TRACK)
        half = self._line_px // 2
        x = left + playhead - half
        draw.rectangle((x, top, x + self._line_px - 1, top + curve.height - 1), fill=TEXT)
        if self._strip_px:
            x = left + min(round(at_s / self._end_s * self._curve.width), self._curve.width - 1) - self._line_px
            over = max(1, self._line_px // 2)
            box = (x, self._strip_y - over, x + 2 * self._line_px, self._strip_y + self._strip_px + over - 1)
            draw.rectangle(box, fill=TEXT, outline=PANEL)
        return panel

    def _draw_head(self, panel: Image.Image, draw: ImageDraw.ImageDraw, row: int, at_s: float) -> None:
        """Draw the time on the left, the score on the right, and the caption between them."""
        geometry, lettering = self.geometry, self._type
        em, face = geometry.type_px, lettering.face
        baseline = self._head_y + lettering.centred_baseline(round(_LINE_EM * em))
        number = int(self._event_of_row[row])
        colour = EVENT if number >= 0 else NORMAL
        clock = clock_ms(at_s)
        draw.text((self._margin, baseline), clock, font=face, fill=TEXT, anchor="ls")
        left = self._margin + lettering.width_px(clock)
        if self._start is not None and geometry.width >= _TIME_OF_DAY_EM * em:
            left += round(0.7 * em)
            date = f"{self._start.at(at_s):%Y-%m-%d %H:%M:%S}"
            draw.text((left, baseline), date, font=face, fill=DIM, anchor="ls")
            left += lettering.width_px(date)
        score = f"{self._table.score[row]:.2f}"
        right = geometry.width - self._margin
        draw.text((right, baseline), score, font=face, fill=colour, anchor="rs")
        right -= lettering.width_px("0.00") + round(0.35 * em)
        if geometry.width >= 24 * em:
            draw.text((right, baseline), "score", font=face, fill=DIM, anchor="rs")
            right -= lettering.width_px("score")
        gap = em
        top = self._head_y
        if geometry.caption_below:
            left, right, gap, top = self._margin, geometry.width - self._margin, 0, top + round((_LINE_EM + 0.15) * em)
        room = right - left - 2 * gap - em
        ground, ink = (EVENT, _INK) if number >= 0 else (BAR, TEXT)
        if not self._table.decode_ok[row]:
            caption = lettering.fit("frame lost", room)
        elif number >= 0:
            caption = self._event_words(number, room)
        else:
            caption, ground, ink = self._fit_title(room), PANEL, DIM
        if caption:  # "" if there is no room
            panel.paste(self._plate(caption, ground, ink), (left + gap, top))

    def _name_event(self, number: int, room_px: int) -> str:
        """Return the event's number, category and peak score; the category is cut if the room is too small."""
        event, lettering = self._events[number], self._type
        begin, end = f"Event {event.id}", f"peak {event.peak_score:.2f}"
        dot = "  ·  "
        if event.category or event.verified:
            category = lettering.readable(", ".join(part for part in (event.category, event.verified) if part))
            left = room_px - lettering.width_px(begin + dot + dot + end)
            category = lettering.fit(category, left)
            if category:
                return dot.join((begin, category, end))
        return lettering.fit(begin + dot + end, room_px)

    def _draw_plate(self, text: str, ground: Colour, ink: Colour) -> Image.Image:
        """Return a picture of text on a background with rounded corners."""
        em, lettering = self.geometry.type_px, self._type
        inset = round(0.5 * em) if ground != PANEL else 0
        size = (lettering.width_px(text) + 2 * inset, round(_LINE_EM * em))
        big = Image.new("RGB", (size[0] * 4, size[1] * 4), PANEL)
        ImageDraw.Draw(big).rounded_rectangle((0, 0, big.width - 1, big.height - 1), radius=round(1.4 * em), fill=ground)
        plate = big.reduce(4)
        baseline = lettering.centred_baseline(size[1])
        ImageDraw.Draw(plate).text((inset, baseline), text, font=lettering.face_for(text), fill=ink, anchor="ls")
        return plate
