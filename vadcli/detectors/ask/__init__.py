"""The detector `ask`: a multimodal language model answers one yes-or-no question per category.

This file has the questions, the class `QwenAsker` that answers them, and the detector. The network is in `reader`, and is
loaded by `prepare`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vadcli.detectors import CATEGORY_THRESHOLDS, ClipModel, digest, keep_compiler_cache
from vadcli.detectors.batching import ModelCopies, PerCamera
from vadcli.detectors.calibration import CALIBRATION, CategoryTails
from vadcli.detectors.encoders import model_hashes
from vadcli.detectors.mllm import mllm_family, mllm_folder
from vadcli.detectors.options import AskOptions
from vadcli.errors import UsageError, WeightsError
from vadcli.options.categories import Category, read_categories, template_sentences
from vadcli.types import (
    BoolArray,
    ByteArray,
    Calibration,
    CameraModel,
    CameraSample,
    ClipBatch,
    ClipNeeds,
    ClipScores,
    FloatArray,
    FrameScores,
    MaskScale,
    PixelFormat,
    RawTrack,
    SizeRule,
    TimeArray,
)
from vadcli.weights.files import read_json

if TYPE_CHECKING:
    import torch

    from vadcli.detectors.ask.reader import Reader
    from vadcli.detectors.running import DeviceRunner

log = logging.getLogger("vadcli")

CLIP_FRAMES, CLIP_S = 8, 8.0
"""A clip has 8 frames, one per second. Published results are better with 8 to 10 frames per clip than with one frame."""
MIN_PX, MAX_PX = 128 * 28 * 28, 256 * 28 * 28
"""Limits of the area of a frame. In a pair of frames, 28 × 28 px become one visual token. A clip has up to 1,024 tokens."""
PROMPT_VERSION = 1
"""Increase this if a change of a prompt or of the frames gives another answer to the same question about the same clip."""
MOST_SENTENCES = 3
"""A question quotes at most this many sentences of a category, so that the question has fewer tokens than the clip."""
CONTROL = "<|"
"""The start of each control token of Qwen-VL."""
SHOWS = "Does this video clip show {}?"
VERSION = 1
"""Increase this if a change of the code gives other scores for the same answers."""
HOP_S = 4.0
"""Seconds from the start of one clip to the start of the next clip."""
SPREAD_FLOOR = 0.25
"""The smallest spread of a camera's log-odds.

Without this limit, tiny changes would be alarms for a camera whose frames are always equal. In half precision, even the
log-odds of equal frames differ by a few hundredths.
"""
SAME_CLIP_S = 1e-3
"""Two sampled frames belong to the same clip if the middles of their clips differ by less than this, in seconds."""


@dataclass(frozen=True)
class Question:
    """A question about one category. The asker adds the instruction to answer yes or no.

    Attributes:
        category: the name of the category.
        text: the question whether the clip shows the category.
        look_alike: the question whether the clip shows similar but harmless things; "" if no such things are known.
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
    """Return the questions for the text of `--categories`. If the text is empty, return SEVERITY.

    Raises:
        UsageError: the categories can't be read, or a sentence contains a control token such as <|im_end|>.
    """
    return questions_about(read_categories(categories).categories) if categories else SEVERITY


def questions_about(categories: Iterable[Category]) -> tuple[Question, ...]:
    """Return one question per category.

    Raises:
        UsageError: a sentence contains a control token such as <|im_end|>.
    """
    questions = []
    for category in categories:
        for text in (category.name, *category.means, *category.looks_like):
            if CONTROL in text:
                raise UsageError(
                    f"--categories: {text!r} contains {CONTROL!r}, which starts a control token", hint="use plain words"
                )
        # If the user gave only a word, `means` has template sentences for image-text encoders. A question needs only the word.
        means = () if category.means == template_sentences(category.name) else category.means[:MOST_SENTENCES]
        shown = f"{category.name}, such as: {'; '.join(means)}" if means else category.name
        harmless = " or ".join(category.looks_like[:MOST_SENTENCES])
        questions.append(Question(category.name, SHOWS.format(shown), SHOWS.format(harmless) if harmless else ""))
    return tuple(questions)


class Asker(ClipModel, Protocol):
    """A model that answers questions about clips. Several threads may call it at the same time.

    An answer depends only on one clip and one question. The other clips and questions of the call do not change it.
    """

    @property
    def name(self) -> str:
        """The name or folder by which the user chose the model."""

    @property
    def clip_frames(self) -> int:
        """T, the number of frames per clip."""

    @property
    def clip_s(self) -> float:
        """Length of a clip in seconds. Two consecutive frames of a clip are clip_s / T seconds apart."""

    @property
    def max_area_px(self) -> int:
        """Largest useful area of a frame in pixels. The model reduces larger frames to about this area."""

    def ask(self, frames: ByteArray, questions: Sequence[Question]) -> FloatArray:
        """Return the log-odds of yes (N, Q) float32, for Q questions about N clips of one size.

        The log-odds of a question's `look_alike` are subtracted if they are above 0.

        Args:
            frames: (N, T, H, W, 3) uint8.
            questions: Q questions.
        """

    def describe(self, frames: ByteArray) -> str:
        """Return one sentence in which the model describes a clip (T, H, W, 3) uint8. Deterministic."""


class QwenAsker:
    """Qwen2-VL or Qwen3-VL as an `Asker`, on one or several devices. Only `prepare` reads the weights.

    Args:
        model: a name of the weights manifest, or a transformers folder.
        device, precision: as in `DetectorOptions`.
        compression: the share of the visual tokens of a clip that the language model reads; None means all tokens.
        batch_size: clips per call; None means as many clips as fit into memory.
        compile: True if torch should compile the layers of the model.

    Raises:
        UsageError: the name or folder does not exist, or the model cannot compress tokens.
        WeightsError: the model is not on this machine, or it is not a Qwen-VL model.
    """

    clip_frames = CLIP_FRAMES
    clip_s = CLIP_S
    max_area_px = MAX_PX

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        precision: str = "auto",
        compression: float | None = None,
        batch_size: int | None = None,
        compile: bool = False,
    ) -> None:
        self.name = model
        self.folder = mllm_folder(model)
        self.family = mllm_family(self.folder)
        self.compression = 1.0 if compression is None else compression
        if self.compression < 1.0 and self.family != "qwen2_vl":
            raise UsageError(
                f"--compression {compression:g}: not possible with {self.family}", hint="omit the option, or use Qwen2-VL"
            )
        self._device, self._precision, self._compile = device, precision, compile
        self._wanted_batch = batch_size
        self.batch_size = 1
        self._copies: ModelCopies[_ReaderCopy] = ModelCopies()

    @property
    def parallel(self) -> int:
        """The number of threads that should call the model at the same time: one on a CPU, two per GPU.

        With a GPU, one thread copies frames while the other thread computes.
        """
        return self._copies.parallel

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices that run the model; empty before `prepare`."""
        return self._copies.devices

    def prepare(self) -> None:
        """Load the model, and measure how many clips fit into memory. Later calls do nothing."""
        if self._copies.all:
            return
        from vadcli.detectors.running import DeviceRunner, devices_for

        self._copies.start(_ReaderCopy(self.load(device), DeviceRunner(device)) for device in devices_for(self._device))
        if self._wanted_batch:
            self.batch_size = self._wanted_batch
            return
        first, side = self._copies.all[0], int(MAX_PX**0.5)
        clip = np.zeros((CLIP_FRAMES, side, side, 3), np.uint8)
        # The memory use is measured with a long question, so that usual questions need less memory.
        typical = (Question("", "Does this video clip show something? " + "It may look like this, or like that. " * 5),)
        self.batch_size = first.runner.find_batch_size(lambda clips: (first.reader.log_odds(clips, typical),), clip)

    def ask(self, frames: ByteArray, questions: Sequence[Question]) -> FloatArray:
        """Return log-odds (N, Q) float32; see `Asker.ask`."""
        log_odds: FloatArray
        self.prepare()
        with self._copies.idle() as copy:
            (log_odds,) = copy.runner.run(lambda clips: (copy.reader.log_odds(clips, questions),), _paired(frames))
        return log_odds

    def describe(self, frames: ByteArray) -> str:
        """Return one sentence about a clip (T, H, W, 3); see `Asker.describe`."""
        import torch

        self.prepare()
        with self._copies.idle() as copy, torch.inference_mode():
            return copy.reader.describe(torch.from_numpy(_paired(frames[None])).to(copy.runner.device))

    def fingerprint(self) -> dict[str, object]:
        """Return the hashes of the model's files, and all settings that change the answers."""
        return {
            "asker": self.family,
            "prompt": PROMPT_VERSION,
            "precision": self._precision,
            "compression": self.compression,
            "files": model_hashes(self.name, self.folder),
        }

    def load(self, device: torch.device) -> Reader:
        """Return the model, loaded onto a device.

        Raises:
            WeightsError: the files are incomplete or damaged, or "yes" and "no" are not single tokens.
        """
        keep_compiler_cache()
        import torch
        from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration, Qwen3VLForConditionalGeneration

        from vadcli.detectors.ask.reader import Qwen3Reader, Reader
        from vadcli.detectors.mllm.compress import CompressionOptions
        from vadcli.detectors.running import as_weights_error, attention_for, dtype_for, quiet, read_whole

        dtype = dtype_for(self._precision, device)
        if dtype is torch.float32:
            # With TF32, the default for convolutions, the results would depend on the batch size.
            torch.backends.cudnn.allow_tf32 = False
        kinds = {
            "qwen2_vl": (Qwen2VLForConditionalGeneration, Reader),
            "qwen3_vl": (Qwen3VLForConditionalGeneration, Qwen3Reader),
        }
        model, reader_kind = kinds[self.family]
        qwen, _ = read_whole(model, self.folder, dtype=dtype, attn_implementation=attention_for(device, dtype))
        with quiet(), as_weights_error(self.folder):
            tokenizer: Any = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            if tokenizer.chat_template is None:  # some folders store the template only in a file for the processor
                tokenizer.chat_template = read_json(self.folder / "chat_template.json")["chat_template"]
        try:
            reader = reader_kind(qwen, tokenizer, compression=CompressionOptions(ratio=self.compression))
        except ValueError as error:
            hint = "use an Instruct model of Qwen2-VL or Qwen3-VL with its own tokenizer"
            raise WeightsError(f"{self.folder}: {error}", hint=hint) from error
        if self._compile:
            for layer in qwen.model.language_model.layers:
                layer.compile(dynamic=True)
        return reader.to(device=device, dtype=dtype).eval()


@dataclass(frozen=True)
class _ReaderCopy:
    """A copy of the model on one device."""

    reader: Reader
    runner: DeviceRunner


def _paired(frames: ByteArray) -> ByteArray:
    """Return clips (N, T, H, W, 3) with an even T. If T is odd, the last frame is repeated."""
    # Qwen-VL reads frames in pairs.
    return np.concatenate([frames, frames[:, -1:]], axis=1) if frames.shape[1] % 2 else frames


class AskDetector:
    """Asks a multimodal language model about each clip. `Detector` describes the attributes.

    The score of a category is high if the log-odds of yes are higher than usual for this camera. Each clip gets one answer per
    category. Between the middles of two clips, the log-odds are interpolated. This detector makes no masks.

    Args:
        options: the user's options.
        asker: the model that answers; None means the model in `options`.

    Raises:
        UsageError: the list of categories can't be read, or the model does not exist.
        WeightsError: the model is not on this machine.
    """

    name = "ask"
    calibration: Calibration | None = CALIBRATION
    uses_categories = True
    fits_camera = True
    makes_masks = False
    mask_scale = MaskScale.SCORE
    thresholds = CATEGORY_THRESHOLDS

    def __init__(self, options: AskOptions, asker: Asker | None = None) -> None:
        self.options = options
        self.questions = questions_for(options.categories)
        if not self.questions:
            hint = "omit --categories to ask about danger, crime, violence, accidents and emergencies"
            raise UsageError(f"--categories {options.categories!r} contains no category", hint=hint)
        self.asker = asker or QwenAsker(
            options.ask_model,
            device=options.device,
            precision=options.precision,
            compression=options.compression,
            batch_size=options.batch_size,
            compile=options.compile,
        )
        self.categories = tuple(question.category for question in self.questions)
        self.channels = (*self.categories, "seconds to the middle of the clip")
        frames, rate_hz = self.asker.clip_frames, self.asker.clip_frames / self.asker.clip_s
        self.needs = ClipNeeds(
            frames=frames,
            overlap=frames - round(HOP_S * rate_hz),
            rate_hz=rate_hz,
            # Frames have twice the useful area. The model then resizes each frame to multiples of 28 px, and should never have
            # to enlarge a frame.
            size=SizeRule(2 * self.asker.max_area_px),
            pixel_format=PixelFormat.RGB,
            whole_bursts=True,
        )
        self._asker_state = self.asker.fingerprint()
        self._asker_key = digest(self._asker_state)
        self._questions_key = digest([asdict(question) for question in self.questions])
        self.weights: Mapping[str, str] = {self.asker.name: self._asker_key}
        # A camera model stores the answers of one asker to one list of questions. So the version depends on both.
        self.model_version = int(digest([self._asker_state, self._questions_key])[:12], 16)
        self._tails = PerCamera(lambda model: calibrate(model, len(self.questions)))

    @property
    def batch_size(self) -> int:
        """The number of clips per call of the asker."""
        return self.asker.batch_size

    @property
    def parallel(self) -> int:
        """The number of threads that may call the asker at the same time."""
        return self.asker.parallel

    def prepare(self) -> None:
        """Load the model. Later calls do nothing."""
        self.asker.prepare()
        if not self.options.categories:
            log.info("no --categories: asking about %s", ", ".join(self.categories))

    def fit(self, sample: CameraSample) -> CameraModel | None:
        """Return a camera model with the log-odds of the sample; None if the sample has no frame."""
        clips = [clip for clip in sample.clips if clip.valid.any()]
        if not clips:
            return None
        # Each call gets one clip: clips may have different sizes, and the camera model must not depend on the batch size.
        values = np.concatenate([self.asker.ask(clip.frames[None], self.questions) for clip in clips])
        seconds = sum(float(np.ptp(clip.timestamp[clip.valid])) for clip in clips)
        arrays = {"values": values.astype(np.float32)}
        return CameraModel(sample.camera, self.name, self.model_version, arrays, {"seconds": seconds})

    def score(self, batch: ClipBatch) -> ClipScores:
        """Return raw scores (B, T, C + 1): C log-odds, and the seconds from a frame to its clip's middle."""
        log_odds = self.asker.ask(batch.frames, self.questions)  # (B, C)
        frames = batch.frames.shape[1]
        middle = (batch.timestamp[:, :1] + batch.timestamp[:, -1:]) / 2  # (B, 1)
        to_middle = (middle - batch.timestamp).astype(np.float32)[..., None]  # (B, T, 1)
        return ClipScores(np.concatenate([np.repeat(log_odds[:, None], frames, axis=1), to_middle], axis=2))

    def finish(self, track: RawTrack) -> FrameScores:
        """Return the logits of a video, and the logits of each category."""
        if not len(track.timestamp):
            return FrameScores(np.zeros(0, np.float32))
        by_category = self._tails(track.model).logits(interpolate_scores(track.raw, track.timestamp))
        return FrameScores(by_category.max(axis=1), by_category=by_category)

    def fingerprint(self) -> dict[str, object]:
        """Return hashes of the model and of the questions, and the version."""
        return {
            "detector": self.name,
            "version": VERSION,
            "asker": self._asker_state,
            "asker_key": self._asker_key,
            "questions": self._questions_key,
        }


def calibrate(model: CameraModel | None, categories: int) -> CategoryTails:
    """Return the calibration for a camera, from its model (the result of `AskDetector.fit`)."""
    if model is None:
        return CategoryTails.unknown(categories)
    return CategoryTails.fit(model.arrays["values"], categories, seconds=float(model.values["seconds"]), floor=SPREAD_FLOOR)


def interpolate_scores(raw: FloatArray, timestamp: TimeArray) -> FloatArray:
    """Return log-odds (S, C) of frames, interpolated between the middles of clips.

    Before the middle of the first clip and after the middle of the last clip, the log-odds are constant.

    Args:
        raw: (S, C + 1) raw scores of the sampled frames, as `AskDetector.score` returns them.
        timestamp: (S,) seconds, increasing.
    """
    middle = timestamp + raw[:, -1]  # (S,)
    is_first: BoolArray = np.concatenate([[True], np.diff(middle) > SAME_CLIP_S])  # True for the first frame of each clip
    columns = [np.interp(timestamp, middle[is_first], column[is_first]) for column in raw[:, :-1].T]
    return np.stack(columns, axis=1).astype(np.float32)
