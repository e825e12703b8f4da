"""The detector `ask`: a multimodal language model answers one yes-or-no question per category.

This file has the options, the questions, and the protocol of a model that answers them. It does not load torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vadcli.detectors.mllm import CompressionOption, is_mllm
from vadcli.errors import UsageError
from vadcli.options.categories import Category, read_categories, template_sentences
from vadcli.options.groups import AUTO_MODEL
from vadcli.types import ByteArray, FloatArray

DEFAULT_ASK_MODEL = "qwen2-vl-2b"
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
class AskOptions(CompressionOption):
    """The options of the detector `ask`, which are a part of LAVIDA's options."""

    @property
    def ask_model(self) -> str:
        """The name of the model that answers: --model, or DEFAULT_ASK_MODEL if --model is `auto`."""
        return DEFAULT_ASK_MODEL if self.model == AUTO_MODEL else self.model

    def is_ready(self) -> bool:
        """True if the user named a usable model, or if the default model and a GPU are on this machine.

        `--detector auto` then chooses `ask`. Without a GPU, a scan would take many times longer than the footage.
        """
        from vadcli import weights

        if self.model != AUTO_MODEL:
            return is_mllm(self.model)
        if self.device == "cpu" or weights.base_folder(DEFAULT_ASK_MODEL) is None:
            return False
        import torch

        return torch.cuda.is_available()


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
    questions = []
    for category in categories:
        for text in (category.name, *category.means, *category.looks_like):
            if CONTROL in text:
                raise UsageError(
                    f"--categories: {text!r} contains {CONTROL!r}, which starts a control token", hint="use plain words"
                )
        # The sentences of a bare word only repeat the word, in forms for image-text encoders.
        means = () if category.means == template_sentences(category.name) else category.means[:MOST_SENTENCES]
        shown = f"{category.name}, such as: {'; '.join(means)}" if means else category.name
        harmless = " or ".join(category.looks_like[:MOST_SENTENCES])
        questions.append(Question(category.name, SHOWS.format(shown), SHOWS.format(harmless) if harmless else ""))
    return tuple(questions)


class Asker(Protocol):
    """A model that answers questions about clips.

    The answers about a clip depend neither on the other clips nor on the other questions of a call. Several threads may call
    the model.
    """

    @property
    def name(self) -> str:
        """The model as the user named it."""

    @property
    def clip_frames(self) -> int:
        """T, the number of frames per clip."""

    @property
    def clip_s(self) -> float:
        """Seconds that a clip covers. The frames are clip_s / T apart."""

    @property
    def max_area_px(self) -> int:
        """Largest useful area of a frame. The model makes larger frames smaller."""

    @property
    def batch_size(self) -> int:
        """How many clips of one call fit into memory. Known after `prepare`."""

    @property
    def parallel(self) -> int:
        """How many threads should call the model at the same time. Known after `prepare`."""

    def prepare(self) -> None:
        """Load the model. Later calls do nothing.

        Raises:
            DeviceError, WeightsError: the device or the weights are missing or unsuitable.
        """

    def ask(self, frames: ByteArray, questions: Sequence[Question]) -> FloatArray:
        """Return the log-odds of yes (N, Q) float32, of Q questions about N clips of one size.

        If the log-odds of the question about look-alikes are above 0, they are subtracted.

        Args:
            frames: (N, T, H, W, 3) uint8.
            questions: Q questions.
        """

    def describe(self, frames: ByteArray) -> str:
        """Return the model's own sentence about one clip (T, H, W, 3) uint8. Deterministic."""

    def fingerprint(self) -> dict[str, object]:
        """Return everything that changes the answers to a question about a clip, as JSON. Loads no weights."""


def load_asker(
    model: str,
    *,
    device: str = "auto",
    precision: str = "auto",
    compression: float | None = None,
    batch_size: int | None = None,
    compile: bool = False,
) -> Asker:
    """Return the model of a name or of a transformers folder. `prepare` reads its weights.

    Raises:
        UsageError: the name or folder does not exist.
        WeightsError: the model is not on this machine, or it is of another kind.
    """
    from vadcli.detectors import keep_compiler_cache

    keep_compiler_cache()
    from vadcli.detectors.ask.qwen import QwenAsker

    return QwenAsker(model, device=device, precision=precision, compression=compression, batch_size=batch_size, compile=compile)
