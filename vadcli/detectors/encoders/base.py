"""The base class of CLIP and SigLIP: it reads a folder, makes pixels, and runs the networks.

Pictures are squashed, that is, stretched to a square. The image processor for CLIP in the library `transformers` would cut off
both sides of a wide picture, but an event can also happen at the sides.

The pixel values are almost the same as if an image processor of this library squashed the pictures. They differ by at most 1 if
the picture becomes smaller (3 in 1,000 values of an HD frame differ), and by at most 2 if the picture becomes larger. Here the
width is always resized before the height; recent versions of PIL resize the height of some tall pictures first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from vadcli import weights
from vadcli.detectors.encoders import NOT_WHOLE, weight_files
from vadcli.detectors.running import as_weights_error, devices_for, dtype_for, quiet
from vadcli.errors import UsageError, WeightsError
from vadcli.types import ByteArray, FloatArray
from vadcli.weights.files import read_json

CPU_CHUNK, GPU_CHUNK = 8, 32
"""The number of pictures or sentences that the model computes at a time.

The last chunk is filled up with zeros. In a smaller chunk, sums could be rounded differently. Then a vector would depend on the
number of pictures or sentences in the call.
"""
TABLE = "token_embedding.weight"
"""The end of the name of the token table, the tensor with one vector per token."""
MODES = {2: "bilinear", 3: "bicubic"}
"""The resize filters of CLIP and SigLIP, by the numbers that PIL uses for them."""
GPU_PICTURES = 8
"""The number of pictures that a GPU resizes at a time. 8 HD frames in float32 have 200 MB."""


@dataclass(frozen=True)
class PixelRules:
    """How pictures are resized and normalised.

    Attributes:
        side_px: S, the side of the square to which a picture is stretched.
        mode: the resize filter, bilinear or bicubic. Resizing is always antialiased.
        mean, std: mean and standard deviation of each RGB channel, after the values are multiplied by `scale`.
        scale: the factor by which values in 0-255 are multiplied.
    """

    side_px: int
    mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        if self.mode not in MODES.values() or len(self.mean) != 3 or len(self.std) != 3 or 0 in self.std:
            raise ValueError(f"pictures can't be resized and normalised by {self}")

    def apply(self, frames: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the pixels (N, 3, S, S) of frames (N, H, W, 3) uint8, squashed and normalised."""
        pixels = squash(frames, self.side_px, self.mode).float()
        factor = torch.tensor([self.scale / std for std in self.std], device=pixels.device)[:, None, None]
        shift = torch.tensor([-mean / std for mean, std in zip(self.mean, self.std, strict=True)], device=pixels.device)
        return pixels.mul_(factor).add_(shift[:, None, None]).to(dtype)


def squash(frames: Tensor, side_px: int, mode: str) -> Tensor:
    """Stretch frames (N, H, W, 3) uint8 to squares (N, 3, S, S). The results are whole numbers in 0-255."""
    pictures = frames.permute(0, 3, 1, 2)  # (N, 3, H, W); in memory, the channels are last
    if pictures.shape[-2:] == (side_px, side_px):
        return pictures.contiguous()
    if frames.device.type == "cpu":
        # For uint8 arrays with the channels last, torch computes with whole numbers, as PIL does. This is 20 times as fast as
        # with floats.
        return F.interpolate(pictures, size=(side_px, side_px), mode=mode, antialias=True)
    parts = (pictures[start : start + GPU_PICTURES] for start in range(0, len(pictures), GPU_PICTURES))
    return torch.cat([_in_two_steps(part.float(), side_px, mode) for part in parts])


def _in_two_steps(pictures: Tensor, side_px: int, mode: str) -> Tensor:
    """Resize the width and then the height of pictures (N, 3, H, W). Round after each step, as PIL does."""
    for size in ((pictures.shape[-2], side_px), (side_px, side_px)):
        pictures = F.interpolate(pictures, size=size, mode=mode, antialias=True).round_().clamp_(0, 255)
    return pictures


def read_rules(folder: Path, defaults: PixelRules) -> PixelRules:
    """Read how pictures are resized and normalised. Missing values are taken from `defaults`.

    Raises:
        WeightsError: the file is damaged, or asks for a resize filter that vadcli does not have.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        path = folder / "processor_config.json"  # version 5 of `transformers` stores the rules in this file
    if not path.is_file():
        return defaults
    try:
        document: dict[str, Any] = read_json(path)
        document = document.get("image_processor", document)
        changes: dict[str, Any] = {}
        if "resample" in document:
            changes["mode"] = MODES[document["resample"]]
        for name in ("mean", "std"):
            if document.get(f"image_{name}") is not None:
                changes[name] = tuple(float(value) for value in document[f"image_{name}"])
        if document.get("do_normalize") is False:
            changes.update(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        scale = document.get("rescale_factor", defaults.scale)
        changes["scale"] = 1.0 if document.get("do_rescale") is False else float(scale)
        return replace(defaults, **changes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "fetch the folder again; vadcli has the filters 2 (bilinear) and 3 (bicubic)"
        raise WeightsError(f"{path}: vadcli can't prepare pictures as in this file: {error!r}", hint=hint) from error


class TransformersEncoder(ABC):
    """The base class of CLIP and SigLIP. `Encoder` describes the attributes.

    Args:
        name: the encoder as the user named it.
        folder: a folder with config.json, safetensors and a tokenizer.
        device, precision: as in `load_encoder`, already checked.

    Raises:
        WeightsError: the config cannot be used, or the safetensors do not contain the tensors that the config describes.
    """

    temperature: float
    width: int
    defaults: ClassVar[PixelRules]
    text_step: ClassVar[int]
    """Sentences are padded to a multiple of this number of tokens. If it is 0, sentences are padded to `max_tokens`."""

    def __init__(self, name: str, folder: Path, *, device: str, precision: str) -> None:
        self.name, self.folder = name, folder
        self.device = devices_for(device)[0]
        self.dtype = encoder_dtype(precision, self.device)
        # For text on a CPU, `auto` always means fp32. There are few sentences, so bf16 would save little time.
        self.text_dtype = dtype_for(precision, self.device)
        self.chunk = CPU_CHUNK if self.device.type == "cpu" else GPU_CHUNK
        with loading(folder):
            self.config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
            with torch.device("meta"):
                expected = {**self.make_text().state_dict(), **self.make_vision().state_dict()}
        check_tensors(folder, {key: tuple(value.shape) for key, value in expected.items()})
        self.size_px = int(self.config.vision_config.image_size)
        self.max_tokens = int(self.config.text_config.max_position_embeddings)
        side = self.size_px // int(self.config.vision_config.patch_size)
        self.grid = (side, side)
        self.rules = read_rules(folder, PixelRules(self.size_px, self.defaults.mode, self.defaults.mean, self.defaults.std))

    def encode_images(self, frames: ByteArray) -> FloatArray:
        """Return the unit vectors (N, D) float32 of pictures (N, H, W, 3) uint8."""
        return self._for_chunks(frames, self.image_vectors, (self.width,))

    def patch_map(self, frames: ByteArray) -> FloatArray:
        """Return the unit vectors (N, h, w, D) float32 of the patches of pictures (N, H, W, 3) uint8."""
        return self._for_chunks(frames, self.patch_vectors, (*self.grid, self.width))

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Return the unit vectors (M, D) float32 of M sentences.

        Raises:
            UsageError: a sentence has more than `max_tokens` tokens.
        """
        vectors = np.empty((len(texts), self.width), np.float32)
        by_length: dict[int, list[tuple[int, list[int]]]] = {}  # by number of ids: pairs of sentence number and padded ids
        for number, text in enumerate(texts):
            ids = self.token_ids(text)
            if len(ids) > self.max_tokens:
                raise UsageError(
                    f"{self.name} reads at most {self.max_tokens} tokens, and a sentence has {len(ids)}: {text[:60]!r}…",
                    hint="shorten the sentence, or write two sentences",
                )
            length = (
                min(-(-len(ids) // self.text_step) * self.text_step, self.max_tokens) if self.text_step else self.max_tokens
            )
            by_length.setdefault(length, []).append((number, ids + [self.tokenizer.pad_token_id] * (length - len(ids))))
        for sentences in by_length.values():
            for start in range(0, len(sentences), self.chunk):
                part = sentences[start : start + self.chunk]
                padded = torch.tensor([ids for _, ids in part])  # (n, L)
                with torch.inference_mode():
                    filled = F.pad(padded, (0, 0, 0, self.chunk - len(part)))
                    vectors[[number for number, _ in part]] = unit(self.text_vectors(filled))[: len(part)]
        return vectors

    def token_ids(self, text: str) -> list[int]:
        """Return the token ids of a sentence, with special tokens and without padding. Nothing is cut off."""
        ids: list[int] = self.tokenizer(text, padding=False, truncation=False, verbose=False)["input_ids"]
        return ids

    def text_tokens(self, text: str) -> int:
        """Return the number of tokens of a sentence, including special tokens."""
        return len(self.token_ids(text))

    @abstractmethod
    def image_vectors(self, pixels: Tensor) -> Tensor:
        """Return the vectors (N, D) of pixels (N, 3, S, S)."""

    @abstractmethod
    def patch_vectors(self, pixels: Tensor) -> Tensor:
        """Return the patch vectors (N, h·w, D) of pixels (N, 3, S, S)."""

    @abstractmethod
    def text_vectors(self, ids: Tensor) -> Tensor:
        """Return the vectors (M, D) of token ids (M, L) on the CPU."""

    @abstractmethod
    def make_vision(self) -> nn.Module:
        """Return the network that encodes images, before its weights are loaded."""

    @abstractmethod
    def make_text(self) -> nn.Module:
        """Return the network that encodes texts, before its weights are loaded."""

    @cached_property
    def vision(self) -> Any:
        """The image half with its weights."""
        return self._read(self.make_vision, self.dtype)

    @cached_property
    def text(self) -> Any:
        """The text half with its weights."""
        return self._read(self.make_text, self.text_dtype)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the folder."""
        with loading(self.folder):
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    def _read(self, make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
        """Return the image half or the text half of the encoder.

        `make` builds this half. The weights are read from the folder.
        """
        with loading(self.folder):
            with torch.device("meta"):
                half = make()
            half.load_state_dict(read_tensors(self.folder, set(half.state_dict()), self.device, dtype), assign=True)
        return half.requires_grad_(False).eval()

    def _for_chunks(self, frames: ByteArray, step: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> FloatArray:
        """Return unit vectors (N, *shape) of frames: `step` gets the pixels of `chunk` frames at a time."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"frames are {frames.dtype} of shape {frames.shape}; give (N, H, W, 3) uint8")
        vectors = np.empty((len(frames), *shape), np.float32)
        for start in range(0, len(frames), self.chunk):
            part = np.require(frames[start : start + self.chunk], requirements=["C", "W"])
            with torch.inference_mode():
                pixels = self.rules.apply(torch.from_numpy(part).to(self.device), self.dtype)
                pixels = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, self.chunk - len(part)))
                vectors[start : start + len(part)] = unit(step(pixels))[: len(part)].reshape(len(part), *shape)
        return vectors


def encoder_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the image half: `auto` is fp16 on a GPU, bf16 on a CPU with AMX, else fp32.

    AMX, a part of some CPUs, multiplies matrices in bf16. With AMX, bf16 is 2.5 times as fast as fp32
    (benchmarks/results/concept.md).
    """
    # Older versions of torch do not have `get_capabilities`.
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if precision == "auto" and device.type == "cpu" and capabilities.get("amx_bf16"):
        return torch.bfloat16
    return dtype_for(precision, device)


def unit(vectors: Tensor) -> FloatArray:
    """Return vectors (…, D), scaled to length 1, as float32 on the CPU."""
    scaled: FloatArray = F.normalize(vectors.float(), dim=-1).cpu().numpy()
    return scaled


def check_tensors(folder: Path, expected: dict[str, tuple[int, ...]]) -> None:
    """Check that a folder's safetensors contain the expected tensors. Only headers are read.

    Raises:
        WeightsError: a tensor is missing or has another shape.
    """
    shapes = {name: shape for path in weight_files(folder) for name, (_, shape) in weights.read_header(path).tensors.items()}
    missing = [name for name in expected if name not in shapes]
    wrong = [name for name in expected if name in shapes and shapes[name] != expected[name]]
    if missing:
        more = f" ({len(missing)} tensors are missing)" if len(missing) > 1 else ""
        raise WeightsError(f"{folder}: {missing[0]} is missing{more}", hint=NOT_WHOLE)
    if wrong:
        differs = f"{wrong[0]} has shape {shapes[wrong[0]]}, not {expected[wrong[0]]}"
        raise WeightsError(f"{folder}: {differs}: config.json belongs to another model", hint=NOT_WHOLE)


def read_tensors(folder: Path, names: Set[str], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return tensors of a folder by name, on the device and in the dtype.

    The token table is an exception: it is not read into memory, stays on the CPU and has the dtype of the file. The table of
    SigLIP 2 has 786 MB, and a sentence needs only a few rows.

    All other tensors are copied. A tensor of a memory-mapped file can begin at any address, and the rounding of a matrix
    product depends on this address. The addresses of copies are aligned.
    """
    tensors = {}
    for path in weight_files(folder):
        for name in names & weights.read_header(path).tensors.keys():
            with safe_open(path, "pt") as file:  # opened once per tensor: an open file keeps all tensors in memory
                mapped = file.get_tensor(name)
            tensors[name] = mapped if name.endswith(TABLE) else mapped.to(device, dtype, copy=True)
    return tensors


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Silence the library `transformers`. Turn its errors about a folder into a WeightsError of one line."""
    with quiet(), as_weights_error(folder, NOT_WHOLE):
        yield
