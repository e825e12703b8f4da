"""Self-tests of weights that are on this machine: `vadcli weights check`.

A hash does not show whether an encoder understands a picture. `check_encoder` tests this with drawn
pictures: the right sentence for a picture must have a higher cosine than the sentences for the other
pictures. `check_asker` asks a language model yes/no questions about drawn pictures. `check_masks`
asks a mask decoder for the disc around a point. A test fails with random weights, swapped colour
channels or a tokenizer with wrong rules. Some answers may be wrong, because public encoders are weak
at some tasks, such as the direction of stripes.

`CHECKS` lists the tests by the `model_type` of a transformers config. Nothing uses the network.
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
from vadcli.weights.checksums import read_json
from vadcli.weights_check.pictures import COLOURS, GREY, WHITE, Colour, Question, clip_questions, disc, drawn, questions

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

    from vadcli.detectors.ask import Asker
    from vadcli.detectors.encoders import Encoder

LEAST_MARGIN = 1e-4  # a smaller difference of two cosines may come from rounding, so it does not count as an answer
LEAST_SAME = 0.99  # smallest cosine of a sentence in lower case with the same sentence in capitals
LEAST_IOU = 0.8


@dataclass(frozen=True)
class CheckResult:
    """The result of one test.

    Attributes:
        name: the test's name.
        what: description of the pictures and the comparison.
        measure: name of the measure. "margin" is the cosine of the right sentence minus the highest
            cosine of a wrong sentence, as a mean over the pictures. "log-odds" is the same with the
            log-odds of yes/no questions. "cosine", "length" and "IoU" are the worst value of all.
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
        name: a name of `vadcli weights list`, or a transformers folder.

    Raises:
        WeightsError: the weights are not on this machine or cannot be loaded, or they have no test.
    """
    folder = weights.find(name)
    path = folder / "config.json"
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        message = f"{folder}: not a transformers folder: config.json can't be read: {error}"
        raise WeightsError(message, hint="fetch the folder again, or give another one") from error
    if "format_version" in config:
        hint = "test a model that it is built from, such as `vadcli weights check sam2.1-hiera-small`"
        raise WeightsError(f"{name}: a LAVIDA folder has no self-test of its own", hint=hint)
    kind = str(config.get("model_type"))
    if kind not in CHECKS:
        raise WeightsError(f"{name}: there is no self-test of a {kind!r} model", hint=f"there are tests of {', '.join(CHECKS)}")
    return CHECKS[kind](folder)


def check_encoder(encoder: Encoder) -> list[CheckResult]:
    """Return the results of all questions, and of two tests of the vectors alone.

    Args:
        encoder: any image-text encoder. It encodes about fifty pictures and a hundred sentences.
    """
    lengths: list[FloatArray] = []
    results = []
    asked = questions()
    for question in asked:
        images = encoder.encode_images(question.pictures)  # (N, D)
        wordings = [encoder.encode_text(list(wording)) for wording in question.sentences]
        lengths += [np.linalg.norm(vectors, axis=-1) for vectors in (images, *wordings)]
        texts = np.stack([vectors.mean(axis=0) for vectors in wordings])  # (K, D)
        texts /= np.maximum(1e-12, np.linalg.norm(texts, axis=1, keepdims=True))
        results.append(_ranked(question, images @ texts.T))
    # CLIP and SigLIP were trained on lower-case text, so their tokenizers must turn capitals into small letters.
    sentences = [wording[0] for question in asked for wording in question.sentences]
    small, capital = (encoder.encode_text(lines) for lines in (sentences, [line.upper() for line in sentences]))
    cosines, count = (small * capital).sum(axis=1), len(sentences)
    what, right = "sentences in capitals mean the same", int((cosines > LEAST_SAME).sum())
    results.append(CheckResult("capitals", what, "cosine", _finite(cosines.min()), right, count, count))
    norms = np.concatenate(lengths)
    worst, right = norms[np.argmax(np.abs(np.nan_to_num(norms) - 1))], int((np.abs(norms - 1) < 0.01).sum())
    what, count = "all vectors have length 1", len(norms)
    return [*results, CheckResult("unit length", what, "length", _finite(worst), right, count, count)]


def check_asker(asker: Asker) -> list[CheckResult]:
    """Return the results of yes/no questions about clips. The right one must have the highest log-odds of "yes".

    Args:
        asker: any `Asker`. It answers six questions about each of six clips, and nine about each of nine clips.
    """
    from vadcli.detectors.ask import Question as YesNo

    results = []
    for question in clip_questions():
        asked = [YesNo("", text) for (text,) in question.sentences]
        clips = (np.repeat(picture[None, None], asker.clip_frames, axis=1) for picture in question.pictures)
        log_odds = np.concatenate([asker.ask(clip, asked) for clip in clips])  # one clip at a time: small memory
        results.append(_ranked(question, log_odds, "log-odds"))
    return results


def _ranked(question: Question, cosines: FloatArray, measure: str = "margin") -> CheckResult:
    """Return the result of a question from the cosines or log-odds (N, K) of N pictures and K answers."""
    rows = np.arange(len(question.answers))
    right = cosines[rows, question.answers]
    wrong = cosines.copy()
    wrong[rows, question.answers] = -np.inf
    margins = right - wrong.max(axis=1)
    value, found = _finite(margins.mean()), int((margins > LEAST_MARGIN).sum())
    return CheckResult(question.name, question.what, measure, value, found, len(rows), question.needed)


def _finite(value: Any) -> float:
    return float(value) if math.isfinite(value) else -1.0


Segment = Callable[[ByteArray, FloatArray], BoolArray]
"""Maps frames (N, H, W, 3) uint8 and one point (x, y) in pixels per frame (N, 2) to masks (N, H, W)."""


def check_masks(segment: Segment) -> list[CheckResult]:
    """Test that the mask at a point is the disc around it, first with one disc and then with two discs."""
    places = [(192, 192, 90), (120, 150, 60), (250, 230, 80), (150, 260, 50)]  # x, y, radius in pixels
    neighbours = [(340, 340, 35), (300, 300, 45), (90, 90, 45), (280, 90, 45)]
    colours = list(COLOURS.values())
    shown = [(*place, colour) for place, colour in zip(places, colours, strict=False)]
    beside = [(*place, colour) for place, colour in zip(neighbours, colours[1:], strict=False)]
    truth = [drawn(partial(_draw_discs, discs=[(*place, WHITE)]), (0, 0, 0))[..., 0] > 127 for place in places]
    points = np.array([place[:2] for place in places], np.float32)

    def test(name: str, what: str, pictures: list[list[tuple[int, int, int, Colour]]], needed: int) -> CheckResult:
        masks = segment(np.stack([drawn(partial(_draw_discs, discs=discs), GREY) for discs in pictures]), points)
        overlaps = [float((mask & disc).sum() / (mask | disc).sum()) for mask, disc in zip(masks, truth, strict=True)]
        right = sum(overlap >= LEAST_IOU for overlap in overlaps)
        return CheckResult(name, what, "IoU", min(overlaps), right, len(overlaps), needed)

    pairs = [[one, other] for one, other in zip(shown, beside, strict=True)]
    return [
        test("disc", "a disc from a point at its centre", [[one] for one in shown], len(places)),
        test("one of two discs", "the disc at the point, and not its neighbour", pairs, len(places) - 1),
    ]


def _draw_discs(pen: ImageDraw, discs: list[tuple[int, int, int, Colour]]) -> None:
    for one in discs:
        disc(pen, *one)


def sam2_segment(folder: Path) -> Segment:
    """Return a function that computes masks from points with a SAM2 model, in float32 on the CPU.

    `--refine-masks` uses the same model and the same code, with a box as a second prompt.

    Raises:
        WeightsError: the folder cannot be loaded as SAM2.
    """
    from vadcli.detectors.refining import Sam2Refiner

    refiner = Sam2Refiner(str(folder), device="cpu", precision="fp32")
    refiner.prepare()

    def segment(frames: ByteArray, points: FloatArray) -> BoolArray:
        height, width = frames.shape[1:3]
        masks = [refiner.segment(*one, width, height) for one in zip(frames, points[:, None, None], strict=True)]
        return np.concatenate(masks)

    return segment


def _check_encoder_folder(folder: Path) -> list[CheckResult]:
    from vadcli.detectors.encoders import load_encoder

    return check_encoder(load_encoder(str(folder)))


def _check_sam2_folder(folder: Path) -> list[CheckResult]:
    return check_masks(sam2_segment(folder))


def _check_asker_folder(folder: Path) -> list[CheckResult]:
    from vadcli.detectors.ask import load_asker

    return check_asker(load_asker(str(folder)))


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
