"""Self-tests of weights that are on this machine: `vadcli weights check`.

Files with the right hash can still give wrong results, for example with a wrong tokenizer. So the model gets pictures that this
file draws:

- An image-text encoder compares each picture with several sentences. The right sentence must have the highest cosine
  (`check_encoder`).
- A language model answers yes/no questions about the pictures (`check_asker`).
- A mask decoder must find the disc around a point (`check_masks`).

A test can pass although some answers are wrong, because public encoders are weak at some tasks, such as the direction of
stripes. But damaged weights can't pass: random weights, swapped colour channels or wrong rules of the tokenizer give too few
right answers.

`CHECKS` has the tests for each `model_type` in the config.json of a Hugging Face model. Nothing is fetched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vadcli import weights
from vadcli.errors import WeightsError
from vadcli.types import BoolArray, ByteArray, FloatArray
from vadcli.weights.files import read_json

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

    from vadcli.detectors.ask import Asker
    from vadcli.detectors.encoders import Encoder

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

LEAST_MARGIN = 1e-4  # a smaller difference between two cosines may come from rounding, so the answer counts as wrong
LEAST_SAME = 0.99  # smallest cosine of a sentence in lower case with the same sentence in capitals
LEAST_IOU = 0.8  # smallest overlap of a mask with the drawn disc


@dataclass(frozen=True)
class CheckResult:
    """The result of one test.

    Attributes:
        name: the test's name.
        what: what the test compares, in words.
        measure: name of the measure:

            - margin: the cosine of the right sentence minus the highest cosine of a wrong sentence; mean over the pictures.
            - log-odds: as margin, but with the log-odds of yes/no questions.
            - cosine: the lowest cosine of a sentence with the same sentence in capitals.
            - length: of all vector lengths, the one that differs most from 1.
            - IoU: the lowest IoU of a mask.

        value: value of the measure.
        right: number of right answers.
        count: number of answers.
        needed: smallest number of right answers with which the test passes.
    """

    name: str
    what: str
    measure: str
    value: float
    right: int
    count: int
    needed: int

    @property
    def ok(self) -> bool:
        """True if enough answers are right."""
        return self.right >= self.needed

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `vadcli weights check --json` prints about one test."""
        return {
            "test": self.name,
            "what": self.what,
            "ok": self.ok,
            "measure": self.measure,
            "value": round(self.value, 6),
            "right": self.right,
            "count": self.count,
            "share": round(self.right / self.count, 4),
            "needed": self.needed,
        }


def check(name: str) -> list[CheckResult]:
    """Run all tests of the weights with this name and return the results.

    Args:
        name: a name of `vadcli weights list`, or a folder in the layout of Hugging Face.

    Raises:
        WeightsError: the weights are not on this machine or cannot be loaded, or they have no test.
    """
    folder = weights.find(name)
    path = folder / "config.json"
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        message = f"{folder}: not a transformers folder: config.json can't be read: {error}"
        raise WeightsError(message, hint="fetch the folder again, or name another folder") from error
    if "format_version" in config:
        hint = "test one of the base models that it is built from, such as `vadcli weights check sam2.1-hiera-small`"
        raise WeightsError(f"{name}: a LAVIDA folder has no self-test of its own", hint=hint)
    kind = str(config.get("model_type"))
    if kind not in CHECKS:
        raise WeightsError(
            f"{name}: no self-test exists for a {kind!r} model", hint=f"types with a self-test: {', '.join(CHECKS)}"
        )
    return CHECKS[kind](folder)


def check_encoder(encoder: Encoder) -> list[CheckResult]:
    """Return one result per test, one for capital letters, and one for the length of vectors.

    Args:
        encoder: any image-text encoder. About fifty pictures and a hundred sentences are encoded.
    """
    lengths: list[FloatArray] = []
    results = []
    tests = picture_tests()
    for test in tests:
        images = encoder.encode_images(test.pictures)  # (N, D)
        wordings = [encoder.encode_text(list(wording)) for wording in test.sentences]
        lengths += [np.linalg.norm(vectors, axis=-1) for vectors in (images, *wordings)]
        texts = np.stack([vectors.mean(axis=0) for vectors in wordings])  # (K, D)
        texts /= np.maximum(1e-12, np.linalg.norm(texts, axis=1, keepdims=True))
        results.append(_ranked(test, images @ texts.T))
    # CLIP and SigLIP were trained with lower-case text, so their tokenizers must turn capitals into small letters.
    sentences = [wording[0] for test in tests for wording in test.sentences]
    small, capital = (encoder.encode_text(lines) for lines in (sentences, [line.upper() for line in sentences]))
    cosines, count = (small * capital).sum(axis=1), len(sentences)
    what, right = "sentences in capitals mean the same", int((cosines > LEAST_SAME).sum())
    results.append(CheckResult("capitals", what, "cosine", _finite(cosines.min()), right, count, count))
    norms = np.concatenate(lengths)
    worst, right = norms[np.argmax(np.abs(np.nan_to_num(norms) - 1))], int((np.abs(norms - 1) < 0.01).sum())
    what, count = "all vectors have length 1", len(norms)
    return [*results, CheckResult("unit length", what, "length", _finite(worst), right, count, count)]


def check_asker(asker: Asker) -> list[CheckResult]:
    """Return the results of yes/no questions about clips.

    The right question must have the highest log-odds of "yes".

    Args:
        asker: any `Asker`. It is asked six questions about each of six clips, and nine questions about each of nine clips.
    """
    from vadcli.detectors.ask import Question

    results = []
    for test in clip_tests():
        asked = [Question("", text) for (text,) in test.sentences]
        clips = (np.repeat(picture[None, None], asker.clip_frames, axis=1) for picture in test.pictures)
        log_odds = np.concatenate([asker.ask(clip, asked) for clip in clips])  # one clip at a time, to save memory
        results.append(_ranked(test, log_odds, "log-odds"))
    return results


def _ranked(test: PictureTest, cosines: FloatArray, measure: str = "margin") -> CheckResult:
    """Return the result of a test. `cosines` may be cosines or log-odds (N pictures, K answers)."""
    rows = np.arange(len(test.answers))
    right = cosines[rows, test.answers]
    wrong = cosines.copy()
    wrong[rows, test.answers] = -np.inf
    margins = right - wrong.max(axis=1)
    value, right_answers = _finite(margins.mean()), int((margins > LEAST_MARGIN).sum())
    return CheckResult(test.name, test.what, measure, value, right_answers, len(rows), test.needed)


def _finite(value: Any) -> float:
    return float(value) if math.isfinite(value) else -1.0


Segment = Callable[[ByteArray, FloatArray], BoolArray]
"""Maps frames (N, H, W, 3) uint8 and one point (x, y) in pixels per frame (N, 2) to masks (N, H, W)."""


def check_masks(segment: Segment) -> list[CheckResult]:
    """Return the results of two tests: a mask decoder gets a point and must find the disc at this point.

    The pictures of the first test have one disc. The pictures of the second test have two discs.
    """
    places = [(192, 192, 90), (120, 150, 60), (250, 230, 80), (150, 260, 50)]  # x, y, radius in pixels
    neighbours = [(340, 340, 35), (300, 300, 45), (90, 90, 45), (280, 90, 45)]
    colours = list(COLOURS.values())
    shown = [(*place, colour) for place, colour in zip(places, colours, strict=False)]
    beside = [(*place, colour) for place, colour in zip(neighbours, colours[1:], strict=False)]
    truth = [drawn(partial(_draw_discs, discs=[(*place, WHITE)]), (0, 0, 0))[..., 0] > 127 for place in places]
    points = np.array([place[:2] for place in places], np.float32)

    def test(name: str, what: str, pictures: list[list[tuple[int, int, int, Colour]]], needed: int) -> CheckResult:
        """Return the result of a test with these pictures."""
        masks = segment(np.stack([drawn(partial(_draw_discs, discs=discs), GREY) for discs in pictures]), points)
        overlaps = [float((mask & disc).sum() / (mask | disc).sum()) for mask, disc in zip(masks, truth, strict=True)]
        right = sum(overlap >= LEAST_IOU for overlap in overlaps)
        return CheckResult(name, what, "IoU", min(overlaps), right, len(overlaps), needed)

    pairs = [[target, other] for target, other in zip(shown, beside, strict=True)]
    return [
        test("disc", "a disc from a point at its centre", [[target] for target in shown], len(places)),
        test("one of two discs", "the disc at the point, and not its neighbour", pairs, len(places) - 1),
    ]


def _draw_discs(pen: ImageDraw, discs: list[tuple[int, int, int, Colour]]) -> None:
    for x, y, radius, colour in discs:
        disc(pen, x, y, radius, colour)


def sam2_segment(folder: Path) -> Segment:
    """Return a function that computes masks from points with a SAM2 model, in float32 on the CPU.

    `--refine-masks` uses the same model and the same code, but also prompts the model with a box.

    Raises:
        WeightsError: the folder cannot be loaded as SAM2.
    """
    from vadcli.detectors.refining import Sam2Refiner

    refiner = Sam2Refiner(str(folder), device="cpu", precision="fp32")
    refiner.prepare()

    def segment(frames: ByteArray, points: FloatArray) -> BoolArray:
        """Return one mask per frame, for the object at the frame's point."""
        height, width = frames.shape[1:3]
        pairs = zip(frames, points[:, None, None], strict=True)
        return np.concatenate([refiner.segment(frame, point, width, height) for frame, point in pairs])

    return segment


def _check_encoder_folder(folder: Path) -> list[CheckResult]:
    from vadcli.detectors.encoders import load_encoder

    return check_encoder(load_encoder(str(folder)))


def _check_sam2_folder(folder: Path) -> list[CheckResult]:
    return check_masks(sam2_segment(folder))


def _check_asker_folder(folder: Path) -> list[CheckResult]:
    from vadcli.detectors.ask import QwenAsker

    return check_asker(QwenAsker(str(folder)))


CHECKS: Mapping[str, Callable[[Path], list[CheckResult]]] = {
    "clip": _check_encoder_folder,
    "siglip": _check_encoder_folder,
    "siglip2": _check_encoder_folder,
    "sam2": _check_sam2_folder,
    "sam2_video": _check_sam2_folder,
    "qwen2_vl": _check_asker_folder,
    "qwen3_vl": _check_asker_folder,
}
"""The tests for each `model_type` in config.json."""


@dataclass(frozen=True)
class PictureTest:
    """Drawn pictures and sentences: an encoder must find the right sentence for each picture.

    Attributes:
        name: the test's name.
        what: the pictures in words.
        pictures: (N, SIDE_PX, SIDE_PX, 3) uint8.
        answers: per picture, the index of the right answer in `sentences`.
        sentences: per answer, several wordings. The mean of the wordings' embeddings is compared with the picture.
        needed: smallest number of right answers with which the test passes.
    """

    name: str
    what: str
    pictures: ByteArray
    answers: tuple[int, ...]
    sentences: tuple[tuple[str, ...], ...]
    needed: int


def picture_tests() -> tuple[PictureTest, ...]:
    """Return all tests with pictures. Every call draws the same pictures."""
    return (_discs(), _shapes(), _stripes(), _words(), _day_and_night())


def clip_tests() -> tuple[PictureTest, ...]:
    """Return tests with yes/no questions about clips. All frames of a clip are the same picture."""
    shapes = _shapes()
    ask = "Does this video clip show {}?"
    colours = tuple((ask.format(f"a {name} square"),) for name in COLOURS)
    squares = [drawn(partial(_shape, kind="square", x=192, y=192, colour=colour, size=2), WHITE) for colour in COLOURS.values()]
    every = range(0, len(shapes.pictures), 2)  # the pictures show each shape at two places; take one of them
    asked = tuple((ask.format(wordings[0]),) for wordings in shapes.sentences)
    return (
        PictureTest("squares", "a square in 6 colours", np.stack(squares), tuple(range(len(COLOURS))), colours, needed=5),
        PictureTest("coloured shapes", shapes.what, shapes.pictures[every], tuple(range(len(asked))), asked, needed=6),
    )


def _discs() -> PictureTest:
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
    return PictureTest("discs", "a big disc in 6 colours", np.stack(pictures), answers, sentences, needed=10)


def _shapes() -> PictureTest:
    things = [(name, kind) for name in ("red", "blue", "green") for kind in ("disc", "square", "triangle")]
    pictures = [
        drawn(partial(_shape, kind=kind, x=x, y=y, colour=COLOURS[name]), WHITE)
        for name, kind in things
        for x, y in ((192, 192), (130, 240))
    ]
    also = {"disc": "circle", "square": "square", "triangle": "triangle"}
    sentences = tuple((f"a {name} {kind}", f"a drawing of one {name} {also[kind]}") for name, kind in things)
    answers = tuple(np.repeat(np.arange(len(things)), 2).tolist())
    return PictureTest("coloured shapes", "3 shapes in 3 colours", np.stack(pictures), answers, sentences, needed=11)


def _shape(pen: ImageDraw, *, kind: str, x: int, y: int, colour: Colour, size: int = 1) -> None:
    if kind == "disc":
        disc(pen, x, y, 70 * size, colour)
    elif kind == "square":
        pen.rectangle((x - 65 * size, y - 65 * size, x + 65 * size, y + 65 * size), fill=colour)
    else:
        pen.polygon([(x, y - 80 * size), (x - 80 * size, y + 60 * size), (x + 80 * size, y + 60 * size)], fill=colour)


def _stripes() -> PictureTest:
    # Public encoders confuse the directions of stripes, so `needed` is low. Two of the 8 pictures have horizontal stripes. An
    # encoder that says "vertical" for all stripes gives 6 right answers.
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
    return PictureTest(
        "stripes", "stripes, a checkerboard, no pattern", pictures, (0, 0, 1, 1, 2, 2, 3, 3), sentences, needed=5
    )


def _words() -> PictureTest:
    from PIL import ImageFont

    font = ImageFont.load_default(110)

    def write(pen: ImageDraw, word: str, ink: Colour) -> None:
        """Write the word in the middle of the picture."""
        pen.text((SIDE_PX / 2, SIDE_PX / 2), word.upper(), fill=ink, font=font, anchor="mm")

    pictures = [
        drawn(partial(write, word=word, ink=ink), ground)
        for word in WORDS
        for ink, ground in ((COLOURS["black"], WHITE), (WHITE, COLOURS["blue"]))
    ]
    sentences = tuple((f'the word "{word}"', f"a sign that says {word}", f'the written text "{word}"') for word in WORDS)
    return PictureTest("words", "4 written words", np.stack(pictures), (0, 0, 1, 1, 2, 2, 3, 3), sentences, needed=6)


def _day_and_night() -> PictureTest:
    # Each picture has six possible answers. If there were only two (day, night), random weights would be right in half of the
    # cases.
    scenes = {"street": "a street with houses", "hills": "hills with a tree", "sea": "a boat on the sea"}
    pictures = [drawn(partial(_scene, kind=kind, night=night), WHITE) for kind in scenes for night in (False, True)]
    wordings = (("{} by day", "{} in bright daylight"), ("{} at night", "{} in the dark of the night"))
    sentences = tuple(tuple(text.format(scene) for text in wording) for scene in scenes.values() for wording in wordings)
    answers = tuple(range(len(sentences)))
    return PictureTest("day and night", "3 scenes by day and at night", np.stack(pictures), answers, sentences, needed=4)


def _scene(pen: ImageDraw, kind: str, *, night: bool) -> None:
    """Draw a street, hills or the sea under the sun or the moon."""

    def lit(colour: Colour) -> Colour:
        """Return the colour by day or, darker, by night."""
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
