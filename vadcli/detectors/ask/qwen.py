"""Connects `Asker` with a Qwen2-VL or Qwen3-VL folder and the devices that compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vadcli.detectors.ask import CLIP_FRAMES, CLIP_S, MAX_PX, PROMPT_VERSION, Question
from vadcli.detectors.batching import Workers
from vadcli.detectors.encoders import model_hashes
from vadcli.detectors.mllm import mllm_family, mllm_folder
from vadcli.errors import UsageError, WeightsError
from vadcli.types import ByteArray, FloatArray
from vadcli.weights.files import read_json

if TYPE_CHECKING:
    import torch

    from vadcli.detectors.ask.reader import Reader
    from vadcli.detectors.running import Runner


class QwenAsker:
    """Qwen2-VL or Qwen3-VL as an `Asker`, on one or several devices. Only `prepare` reads tensors.

    Args:
        model: a name of the weights manifest, or a transformers folder.
        device, precision: as in `DetectorOptions`.
        compression: share of the visual tokens that the language model reads; None means all.
        batch_size: clips per call; None means as many as fit into memory.
        compile: compile the layers of the model.

    Raises:
        UsageError: the name or folder does not exist, or the model cannot compress tokens.
        WeightsError: the model is not on this machine, or it is another kind of model.
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
            raise UsageError(f"--compression {compression:g}: not possible with {self.family}", hint="omit it, or use Qwen2-VL")
        self._device, self._precision, self._compile = device, precision, compile
        self._wanted_batch = batch_size
        self.batch_size = 1
        self._workers: Workers[_Worker] = Workers()

    @property
    def parallel(self) -> int:
        """The number of simultaneous calls: one on a CPU, or two per GPU, because one of them copies frames."""
        return self._workers.parallel

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices that compute; empty before `prepare`."""
        return self._workers.devices

    def prepare(self) -> None:
        """Load the model onto each device and find how many clips fit into memory. Later calls do nothing."""
        if self._workers.all:
            return
        from vadcli.detectors.running import Runner, devices_for

        self._workers.start(_Worker(self.load(device), Runner(device)) for device in devices_for(self._device))
        if self._wanted_batch:
            self.batch_size = self._wanted_batch
            return
        first, side = self._workers.all[0], int(MAX_PX**0.5)
        clip = np.zeros((CLIP_FRAMES, side, side, 3), np.uint8)
        # a long question, so that all usual ones fit too
        typical = (Question("", "Does this video clip show something? " + "It may look like this, or like that. " * 5),)
        self.batch_size = first.runner.find_batch_size(lambda clips: (first.reader.log_odds(clips, typical),), clip)

    def ask(self, frames: ByteArray, questions: Sequence[Question]) -> FloatArray:
        """Return log-odds (N, Q) float32; see `Asker.ask`."""
        found: FloatArray
        self.prepare()
        with self._workers.idle() as worker:
            (found,) = worker.runner.run(lambda clips: (worker.reader.log_odds(clips, questions),), _paired(frames))
        return found

    def describe(self, frames: ByteArray) -> str:
        """Return one sentence about one clip (T, H, W, 3); see `Asker.describe`."""
        import torch

        self.prepare()
        with self._workers.idle() as worker, torch.inference_mode():
            return worker.reader.describe(torch.from_numpy(_paired(frames[None])).to(worker.runner.device))

    def fingerprint(self) -> dict[str, object]:
        """Return the files, the precision and everything else that changes the answers."""
        return {
            "asker": self.family,
            "prompt": PROMPT_VERSION,
            "precision": self._precision,
            "compression": self.compression,
            "files": model_hashes(self.name, self.folder),
        }

    def load(self, device: torch.device) -> Reader:
        """Load the model onto a device.

        Raises:
            WeightsError: the files are incomplete or damaged, or "yes" and "no" are not single tokens.
        """
        import torch
        from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration, Qwen3VLForConditionalGeneration

        from vadcli.detectors.ask.reader import Qwen3Reader, Reader
        from vadcli.detectors.mllm.compress import CompressionOptions
        from vadcli.detectors.running import as_weights_error, attention_for, dtype_for, quiet, read_whole

        dtype = dtype_for(self._precision, device)
        if dtype is torch.float32:
            # By default, convolutions use TF32, whose results depend on the batch size.
            torch.backends.cudnn.allow_tf32 = False
        kinds = {
            "qwen2_vl": (Qwen2VLForConditionalGeneration, Reader),
            "qwen3_vl": (Qwen3VLForConditionalGeneration, Qwen3Reader),
        }
        model, reader_kind = kinds[self.family]
        qwen, _ = read_whole(model, self.folder, dtype=dtype, attn_implementation=attention_for(device, dtype))
        with quiet(), as_weights_error(self.folder):
            tokenizer: Any = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            if tokenizer.chat_template is None:  # some folders have it only in the processor's file
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
class _Worker:
    """One device with its model."""

    reader: Reader
    runner: Runner


def _paired(frames: ByteArray) -> ByteArray:
    """Repeat the last frame of clips (N, T, H, W, 3) if T is odd, because Qwen-VL reads frames in pairs."""
    return np.concatenate([frames, frames[:, -1:]], axis=1) if frames.shape[1] % 2 else frames
