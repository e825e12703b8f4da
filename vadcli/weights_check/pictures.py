"""The pictures that `vadcli weights check` draws, and the sentences that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from vadcli.types import ByteArray

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

SIDE_PX = 384
Colour = tuple[int, int, int]
COLOURS: Mapping[str, Colour] = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (245, 215, 40),
    "purple": (140, 50, 170),
    "black": (15, 15, 15),
}
WHITE, GREY = (255, 255, 255), (200, 200, 200)
WORDS = ("stop", "taxi", "open", "fire")


@dataclass(frozen=True)
class Question:
    """Drawn pictures, and sentences. An encoder must find the right sentence for each picture.

    Attributes:
        name: the test's name.
        what: description of the pictures.
        pictures: (N, SIDE_PX, SIDE_PX, 3) uint8.
        answers: per picture, the index of the right answer in `sentences`.
        sentences: per answer, several wordings. The mean of their embeddings is compared with the picture.
        needed: smallest number of right answers.
    """

    name: str
    what: str
    pictures: ByteArray
    answers: tuple[int, ...]
    sentences: tuple[tuple[str, ...], ...]
    needed: int


def questions() -> tuple[Question, ...]:
    """Return all questions, with drawn pictures. The pictures are the same every time."""
    return (_discs(), _shapes(), _stripes(), _words(), _day_and_night())


def clip_questions() -> tuple[Question, ...]:
    """Return yes/no questions about clips that show one picture all the time."""
    shapes = _shapes()
    ask = "Does this video clip show {}?"
    colours = tuple((ask.format(f"a {name} square"),) for name in COLOURS)
    squares = [drawn(partial(_shape, kind="square", x=192, y=192, colour=colour, size=2), WHITE) for colour in COLOURS.values()]
    every = range(0, len(shapes.pictures), 2)  # each shape at one of its two places
    asked = tuple((ask.format(wordings[0]),) for wordings in shapes.sentences)
    return (
        Question("squares", "a square in 6 colours", np.stack(squares), tuple(range(len(COLOURS))), colours, needed=5),
        Question("coloured shapes", shapes.what, shapes.pictures[every], tuple(range(len(asked))), asked, needed=6),
    )


def _discs() -> Question:
    pictures = [
        drawn(partial(disc, x=192, y=192, radius=140, colour=colour), ground)
        for colour in COLOURS.values()
        for ground in (WHITE, GREY)
    ]
    sentences = tuple(
        (f"a big {name} disc", f"a drawing of a large {name} circle", f"one {name} circle on a plain background")
        for name in COLOURS
    )
    answers = tuple(np.repeat(np.arange(len(COLOURS)), 2).tolist())
    return Question("discs", "a big disc in 6 colours", np.stack(pictures), answers, sentences, needed=10)


def _shapes() -> Question:
    things = [(name, kind) for name in ("red", "blue", "green") for kind in ("disc", "square", "triangle")]
    pictures = [
        drawn(partial(_shape, kind=kind, x=x, y=y, colour=COLOURS[name]), WHITE)
        for name, kind in things
        for x, y in ((192, 192), (130, 240))
    ]
    also = {"disc": "circle", "square": "square", "triangle": "triangle"}
    sentences = tuple((f"a {name} {kind}", f"a drawing of one {name} {also[kind]}") for name, kind in things)
    answers = tuple(np.repeat(np.arange(len(things)), 2).tolist())
    return Question("coloured shapes", "3 shapes in 3 colours", np.stack(pictures), answers, sentences, needed=11)


def _shape(pen: ImageDraw, *, kind: str, x: int, y: int, colour: Colour, size: int = 1) -> None:
    if kind == "disc":
        disc(pen, x, y, 70 * size, colour)
    elif kind == "square":
        pen.rectangle((x - 65 * size, y - 65 * size, x + 65 * size, y + 65 * size), fill=colour)
    else:
        pen.polygon([(x, y - 80 * size), (x - 80 * size, y + 60 * size), (x + 80 * size, y + 60 * size)], fill=colour)


def _stripes() -> Question:
    # Public encoders are weak at directions. An encoder that confuses all directions still has 4 + 2 right answers.
    column, row = np.meshgrid(np.arange(SIDE_PX) // 32 % 2, np.arange(SIDE_PX) // 32 % 2)
    patterns = (column, row, column ^ row, np.zeros_like(column))
    pairs = np.array([[WHITE, COLOURS["black"]], [COLOURS["yellow"], COLOURS["blue"]]], np.uint8)
    pictures = np.stack([pair[pattern] for pattern in patterns for pair in pairs])
    sentences = (
        ("vertical stripes", "a pattern of upright stripes from top to bottom"),
        ("horizontal stripes", "a pattern of level stripes from left to right"),
        ("a checkerboard", "a checkered pattern of squares"),
        ("a plain surface of one colour", "an empty picture without a pattern"),
    )
    return Question("stripes", "stripes, a checkerboard, no pattern", pictures, (0, 0, 1, 1, 2, 2, 3, 3), sentences, needed=5)


def _words() -> Question:
    from PIL import ImageFont

    font = ImageFont.load_default(110)

    def write(pen: ImageDraw, word: str, ink: Colour) -> None:
        pen.text((SIDE_PX / 2, SIDE_PX / 2), word.upper(), fill=ink, font=font, anchor="mm")

    pictures = [
        drawn(partial(write, word=word, ink=ink), ground)
        for word in WORDS
        for ink, ground in ((COLOURS["black"], WHITE), (WHITE, COLOURS["blue"]))
    ]
    sentences = tuple((f'the word "{word}"', f"a sign that says {word}", f'the written text "{word}"') for word in WORDS)
    return Question("words", "4 written words", np.stack(pictures), (0, 0, 1, 1, 2, 2, 3, 3), sentences, needed=6)


def _day_and_night() -> Question:
    # With two answers instead of six, random weights would be right in half of the cases.
    scenes = {"street": "a street with houses", "hills": "hills with a tree", "sea": "a boat on the sea"}
    pictures = [drawn(partial(_scene, kind=kind, night=night), WHITE) for kind in scenes for night in (False, True)]
    wordings = (("{} by day", "{} in bright daylight"), ("{} at night", "{} in the dark of the night"))
    sentences = tuple(tuple(one.format(scene) for one in wording) for scene in scenes.values() for wording in wordings)
    answers = tuple(range(len(sentences)))
    return Question("day and night", "3 scenes by day and at night", np.stack(pictures), answers, sentences, needed=4)


def _scene(pen: ImageDraw, kind: str, *, night: bool) -> None:
    """Draw a street, hills or the sea under the sun or the moon."""

    def lit(colour: Colour) -> Colour:
        return tuple(int(value * 0.18) for value in colour) if night else colour  # type: ignore[return-value]

    pen.rectangle((0, 0, SIDE_PX, SIDE_PX), fill=(10, 12, 38) if night else (120, 190, 250))
    disc(pen, 310, 65, 26 if night else 36, (235, 235, 215) if night else (255, 225, 60))
    for number in range(24):  # stars at fixed, scattered places; clouds by day
        if night:
            disc(pen, 17 + 97 * number % 370, 11 + 53 * number % 150, 2, WHITE)
        elif number < 4:
            disc(pen, 70 + 28 * number, 80 + 6 * (number % 2), 26, (250, 250, 250))
    if kind == "street":
        pen.rectangle((0, 290, SIDE_PX, SIDE_PX), fill=lit((110, 110, 115)))
        for left, top, colour in ((10, 140, (190, 120, 90)), (140, 180, (200, 190, 160)), (265, 120, (150, 150, 170))):
            pen.rectangle((left, top, left + 110, 290), fill=lit(colour))
            for x in range(left + 12, left + 90, 26):
                for y in range(top + 14, 270, 34):
                    window = (255, 215, 110) if night and (x + y) % 3 else lit((90, 120, 150))
                    pen.rectangle((x, y, x + 14, y + 20), fill=window)
        for x in range(0, SIDE_PX, 64):
            pen.rectangle((x, 334, x + 34, 340), fill=lit((240, 240, 240)))
    elif kind == "hills":
        pen.ellipse((-120, 210, 260, 560), fill=lit((70, 150, 60)))
        pen.ellipse((130, 240, 520, 600), fill=lit((95, 175, 70)))
        pen.rectangle((116, 190, 128, 250), fill=lit((110, 75, 45)))
        disc(pen, 122, 165, 42, lit((45, 115, 45)))
    else:
        pen.rectangle((0, 230, SIDE_PX, SIDE_PX), fill=lit((30, 105, 165)))
        pen.polygon([(120, 270), (260, 270), (235, 300), (145, 300)], fill=lit((150, 70, 45)))
        pen.polygon([(190, 150), (190, 262), (255, 262)], fill=lit((245, 245, 240)))


def disc(pen: ImageDraw, x: int, y: int, radius: int, colour: Colour) -> None:
    """Draw a filled circle around (x, y), in pixels."""
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def drawn(draw: Callable[[ImageDraw], object], ground: Colour) -> ByteArray:
    """Return the picture that `draw` draws on a plain background, (SIDE_PX, SIDE_PX, 3) uint8."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE_PX, SIDE_PX), ground)
    draw(ImageDraw.Draw(image))
    return np.asarray(image)
