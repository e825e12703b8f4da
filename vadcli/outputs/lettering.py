"""Type for pictures: one face at one size, words cut to fit, scripts that the built-in face lacks."""

from __future__ import annotations

import math
import unicodedata
from functools import lru_cache

from PIL import ImageFont

from vadcli.errors import OutputError

ELLIPSIS = "…"

# Pillow's own face holds ASCII; other scripts need a face of the machine's. Pillow looks these names up where the
# system keeps its fonts.
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
    """One size of type.

    Args:
        size_px: height of an em.

    Attributes:
        face: the built-in face.
        cap_px: height of a capital.
    """

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px
        self.face = _built_in_face(size_px)
        self.cap_px = -self.face.getbbox("H", anchor="ls")[1]

    def centred_baseline(self, height_px: int) -> int:
        """Where the baseline is for capitals and figures to stand in the middle of a line of this height."""
        return round((height_px + self.cap_px) / 2)

    def width_px(self, text: str) -> int:
        """How wide the text is when it is drawn by `face_for(text)`."""
        return math.ceil(self.face_for(text).getlength(text))

    def face_for(self, text: str) -> ImageFont.FreeTypeFont:
        """The face that draws the text: the built-in one where it has every letter."""
        if covers(self.face, text):
            return self.face
        return next((face for face in _system_faces(self.size_px) if covers(face, text)), self.face)

    def readable(self, text: str) -> str:
        """The text on one line; letters that no face here has lose their accents or become "?"."""
        line = " ".join(text.split())
        if covers(self.face_for(line), line):
            return line
        plain = (mark for mark in unicodedata.normalize("NFKD", line) if not unicodedata.combining(mark))
        return "".join(mark if covers(self.face, mark) else "?" for mark in plain)

    def fit(self, text: str, room_px: int) -> str:
        """The longest beginning of the text that fits, with an ellipsis where it is cut; "" where not even that fits."""
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
    """Whether the face has a glyph for every letter of the text."""
    return all(_has_glyph(face, mark) for mark in set(text))


def _built_in_face(size_px: int) -> ImageFont.FreeTypeFont:
    face = ImageFont.load_default(size_px)
    if not isinstance(face, ImageFont.FreeTypeFont):
        raise OutputError(
            "this Pillow draws no scalable type", hint="reinstall it from a wheel: pip install --force-reinstall pillow"
        )
    return face


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
