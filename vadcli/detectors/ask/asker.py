"""The questions about a clip, and the protocol of models that answer them. Importing this file does not load torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vadcli.errors import UsageError
from vadcli.options.categories import Category, read_categories, template_sentences
from vadcli.types import ByteArray, FloatArray

CLIP_FRAMES, CLIP_S = 8, 8.0
"""A clip has one frame per second. Published results are better with 8 to 10 frames per clip than with one."""
MIN_PX, MAX_PX = 128 * 28 * 28, 256 * 28 * 28
"""Limits of the area of a frame. Each 28 × 28 px of a pair of frames become one visual token, so a clip has up to 1,024."""
PROMPT_VERSION = 1
"""Increase this if the same clip and question give another answer, because a prompt or the preparation of frames changed."""
MOST_SENTENCES = 3
"""A question quotes at most this many sentences of a category, so that it does not become longer than the clip."""
CONTROL = "<|"
SHOWS = "Does this video clip show {}?"


@dataclass(frozen=True)
class Question:
    """A question about one category. The asker adds the instruction how to answer.

    Attributes:
        category: the name of the category.
        text: a question about what the user looks for. Yes means that the clip shows it.
        look_alike: a question about harmless things that look similar; "" if none are known.
    """

    category: str
    text: str
    look_alike: str = ""


SEVERITY = (
    Question("danger", "Does this video clip show something dangerous?"),
    Question("crime", "Does this video clip show something illegal?"),
    Question("violence", "Does this video clip show violence?"),
    Question("accident", "Does this video clip show an accident?"),
    Question("emergency", "Does this video clip show somebody who needs help now?"),
)
"""The questions that are asked if the user names no category."""


class Asker(Protocol):
    """A model that answers questions about clips.

    The answers about a clip depend on neither the other clips nor the other questions of a call. Several threads may call it.

    Attributes:
        name: the model as the user named it.
        clip_frames: T, frames per clip.
        clip_s: seconds that a clip covers. The frames are clip_s / T apart.
        max_area_px: largest useful area of a frame; the model makes larger frames smaller.
        batch_size: clips per call that fit into memory; known after `prepare`.
        parallel: threads that may call it at the same time with profit; known after `prepare`.
    """

    @property
    def name(self) -> str:
        """Described in the class docstring."""
        ...

    @property
    def clip_frames(self) -> int:
        """Described in the class docstring."""
        ...

    @property
    def clip_s(self) -> float:
        """Described in the class docstring."""
        ...

    @property
    def max_area_px(self) -> int:
        """Described in the class docstring."""
        ...

    @property
    def batch_size(self) -> int:
        """Described in the class docstring."""
        ...

    @property
    def parallel(self) -> int:
        """Described in the class docstring."""
        ...

    def prepare(self) -> None:
        """Load the model. Later calls do nothing.

        Raises:
            DeviceError, WeightsError: the device or the weights are missing or unsuitable.
        """
        ...

    def ask(self, frames: ByteArray, questions: Sequence[Question]) -> FloatArray:
        """Return the log-odds (N, Q) float32, logit(yes) - logit(no), of each question about each of N clips of one size.

        If the answer to the question about look-alikes leans to yes, its log-odds are subtracted.

        Args:
            frames: (N, T, H, W, 3) uint8.
            questions: Q questions.
        """
        ...

    def describe(self, frames: ByteArray) -> str:
        """Return the model's own sentence about one clip (T, H, W, 3) uint8. Deterministic."""
        ...

    def fingerprint(self) -> dict[str, object]:
        """Return everything that changes the answers, apart from clips and questions, as JSON. Loads no weights."""
        ...


def questions_for(categories: str) -> tuple[Question, ...]:
    """Return the questions for the text of `--categories`, or SEVERITY if it is empty.

    Raises:
        UsageError: a list or file of categories does not exist or is damaged, or a text contains a control token.
    """
    return questions_about(read_categories(categories).categories) if categories else SEVERITY


def questions_about(categories: Iterable[Category]) -> tuple[Question, ...]:
    """Return one question per category.

    Raises:
        UsageError: a text contains a control token.
    """
    return tuple(map(_question, categories))


def _question(category: Category) -> Question:
    for text in (category.name, *category.means, *category.looks_like):
        if CONTROL in text:
            raise UsageError(
                f"--categories: {text!r} contains {CONTROL!r}, which starts a control token", hint="use plain words"
            )
    # The sentences of a bare word only repeat the word, in forms for image-text encoders.
    means = () if category.means == template_sentences(category.name) else category.means[:MOST_SENTENCES]
    shown = f"{category.name}, such as: {'; '.join(means)}" if means else category.name
    harmless = " or ".join(category.looks_like[:MOST_SENTENCES])
    return Question(category.name, SHOWS.format(shown), SHOWS.format(harmless) if harmless else "")
