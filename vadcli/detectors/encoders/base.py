"""The common code of CLIP and SigLIP: it reads a transformers folder, makes chunks of a fixed size, and tokenises sentences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoTokenizer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vadcli import weights
from vadcli.detectors.encoders import NOT_WHOLE, encoder_fingerprint, weight_files
from vadcli.detectors.encoders.pixels import PixelRules, read_rules
from vadcli.detectors.lavida.running import devices_for, dtype_for
from vadcli.detectors.loading import as_weights_error, quiet
from vadcli.errors import UsageError, WeightsError
from vadcli.types import ByteArray, FloatArray

CPU_CHUNK, GPU_CHUNK = 8, 32
"""How many pictures or sentences the model computes at a time. The last chunk is filled up with zeros: matrix products of
another size may round differently, and a vector would then depend on the number of pictures or sentences in the call."""
UNUSED = ("logit_scale", "logit_bias")
"""Tensors that only training needs."""


class TransformersEncoder(ABC):
    """An encoder in a transformers folder. `vadcli.detectors.encoders.Encoder` describes the attributes.

    Args:
        name: the encoder as the user named it.
        folder: a folder with config.json, safetensors and a tokenizer.
        device, precision: as in `load_encoder`, already checked.

    Raises:
        WeightsError: the config cannot be used, or the safetensors do not contain what it describes.
    """

    temperature: float
    width: int
    defaults: ClassVar[PixelRules]
    text_step: ClassVar[int]
    """Sentences are padded to a multiple of this number of tokens, or to `max_tokens` if it is 0."""

    def __init__(self, name: str, folder: Path, *, device: str, precision: str) -> None:
        self.name, self.folder, self.precision = name, folder, precision
        self.device = devices_for(device)[0]
        self.dtype = dtype_for(precision, self.device)
        self.chunk = CPU_CHUNK if self.device.type == "cpu" else GPU_CHUNK
        with loading(folder):
            self.config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
            with torch.device("meta"):
                expected = AutoModel.from_config(self.config).state_dict()
        check_tensors(folder, {key: tuple(value.shape) for key, value in expected.items() if key not in UNUSED})
        self.size_px = int(self.config.vision_config.image_size)
        self.max_tokens = int(self.config.text_config.max_position_embeddings)
        side = self.size_px // int(self.config.vision_config.patch_size)
        self.grid = (side, side)
        self.rules = read_rules(folder, PixelRules(self.size_px, self.defaults.mode, self.defaults.mean, self.defaults.std))

    def encode_images(self, frames: ByteArray) -> FloatArray:
        """Returns (N, D) float32 of unit length for (N, H, W, 3) uint8."""
        return self._for_chunks(frames, self.image_vectors, (self.width,))

    def patch_map(self, frames: ByteArray) -> FloatArray:
        """Returns (N, h, w, D) float32 of unit length for (N, H, W, 3) uint8."""
        return self._for_chunks(frames, self.patch_vectors, (*self.grid, self.width))

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Returns (M, D) float32 of unit length.

        Raises:
            UsageError: a sentence has more than `max_tokens` tokens.
        """
        found = np.empty((len(texts), self.width), np.float32)
        by_length: dict[int, list[tuple[int, list[int]]]] = {}
        for place, text in enumerate(texts):
            ids = self.token_ids(text)
            if len(ids) > self.max_tokens:
                raise UsageError(
                    f"{self.name} reads at most {self.max_tokens} tokens, and a sentence has {len(ids)}: {text[:60]!r}…",
                    hint="shorten it, or make two sentences of it",
                )
            length = (
                min(-(-len(ids) // self.text_step) * self.text_step, self.max_tokens) if self.text_step else self.max_tokens
            )
            by_length.setdefault(length, []).append((place, ids + [self.tokenizer.pad_token_id] * (length - len(ids))))
        for rows in by_length.values():
            for start in range(0, len(rows), self.chunk):
                part = rows[start : start + self.chunk]
                padded = torch.tensor([row for _, row in part])  # (n, L)
                with torch.inference_mode():
                    filled = F.pad(padded, (0, 0, 0, self.chunk - len(part))).to(self.device)
                    found[[place for place, _ in part]] = unit(self.text_vectors(filled))[: len(part)]
        return found

    def token_ids(self, text: str) -> list[int]:
        """Returns the token ids of a sentence, including special tokens. They are not padded and not cut off."""
        ids: list[int] = self.tokenizer(text, padding=False, truncation=False, verbose=False)["input_ids"]
        return ids

    def text_tokens(self, text: str) -> int:
        """Returns the number of tokens of a sentence, including special tokens."""
        return len(self.token_ids(text))

    def fingerprint(self) -> dict[str, object]:
        """Returns everything that changes a vector, as JSON."""
        return encoder_fingerprint(self.name, precision=self.precision)

    @abstractmethod
    def image_vectors(self, pixels: Tensor) -> Tensor:
        """Returns (N, D) for (N, 3, S, S)."""

    @abstractmethod
    def patch_vectors(self, pixels: Tensor) -> Tensor:
        """Returns (N, h·w, D) for (N, 3, S, S)."""

    @abstractmethod
    def text_vectors(self, ids: Tensor) -> Tensor:
        """Returns (M, D) for (M, L) token ids."""

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's own tokenizer."""
        with loading(self.folder):
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    def read_half(self, kind: Any, config: Any) -> Any:
        """Returns the image or the text half of the model, ready to compute.

        Raises:
            WeightsError: the files cannot be read, or a tensor is missing or has the wrong shape.
        """
        with loading(self.folder):
            model, info = kind.from_pretrained(
                self.folder,
                config=config,
                dtype=self.dtype,
                attn_implementation=OWN_ATTENTION,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
            if info["missing_keys"]:  # transformers would use random values and only warn
                raise WeightsError(f"{self.folder}: {min(info['missing_keys'])} is missing", hint=NOT_WHOLE)
        # The files are mapped into memory, where a tensor can have any address. Rounding in a matrix product depends on the
        # address, so tensors are copied to aligned addresses. Token tables have no products, so they stay mapped: the table of
        # SigLIP 2 has 786 MB, and a sentence reads only a few rows.
        tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
        for values in model.parameters():
            if id(values) not in tables:
                values.data = values.data.to(self.device, copy=True)
        return model.requires_grad_(False).eval().to(self.device)

    def _for_chunks(self, frames: ByteArray, step: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> FloatArray:
        """Returns the results of `step` for the frames, (N, *shape). They are computed in chunks of one size."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"frames are {frames.dtype} of shape {frames.shape}; give (N, H, W, 3) uint8")
        found = np.empty((len(frames), *shape), np.float32)
        for start in range(0, len(frames), self.chunk):
            part = np.require(frames[start : start + self.chunk], requirements=["C", "W"])
            with torch.inference_mode():
                pixels = self.rules.apply(torch.from_numpy(part).to(self.device), self.dtype)
                pixels = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, self.chunk - len(part)))
                found[start : start + len(part)] = unit(step(pixels))[: len(part)].reshape(len(part), *shape)
        return found


def read_values(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Returns softmax(q·kᵀ/√d)·v, (N, heads, A, d), for queries (N, heads, A, d) and keys and values (N, heads, T, d).

    On a CPU, each picture is computed separately. For several pictures at once, torch would use threads with differently
    aligned buffers, and a picture's vector would then depend on its place in the chunk.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    rows = [slice(number, number + 1) for number in range(len(query))]
    masks = [None] * len(rows) if mask is None else [mask.expand(len(rows), -1, -1, -1)[row] for row in rows]
    return torch.cat(
        [
            F.scaled_dot_product_attention(query[row], key[row], value[row], attn_mask=own, is_causal=causal)
            for row, own in zip(rows, masks, strict=True)
        ]
    )


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Splits (N, T, W) into (N, heads, T, W / heads)."""
    return tokens.view(*tokens.shape[:2], heads, -1).transpose(1, 2)


def _attention(module: Any, *parts: Any, is_causal: bool | None = None, **_: Any) -> tuple[Tensor, None]:
    """Lets transformers call `read_values`: gets query, key, value and mask; returns (N, A, heads, d)."""
    query, key, value, mask = parts
    causal = mask is None and (module.is_causal if is_causal is None else is_causal)
    return read_values(query, key, value, mask=mask, causal=causal).transpose(1, 2), None


OWN_ATTENTION = "vadcli"
AttentionInterface.register(OWN_ATTENTION, _attention)
AttentionMaskInterface.register(OWN_ATTENTION, sdpa_mask)


def unit(vectors: Tensor) -> FloatArray:
    """Returns the vectors (…, D), scaled to length 1, as float32 on the CPU."""
    found: FloatArray = F.normalize(vectors.float(), dim=-1).cpu().numpy()
    return found


def check_tensors(folder: Path, expected: dict[str, tuple[int, ...]]) -> None:
    """Compares the headers of a folder's safetensors with the expected shapes (name -> shape). Reads no tensor.

    Raises:
        WeightsError: a tensor is missing or has another shape.
    """
    found = {name: shape for path in weight_files(folder) for name, (_, shape) in weights.read_header(path).tensors.items()}
    missing = [name for name in expected if name not in found]
    wrong = [name for name in expected if name in found and found[name] != expected[name]]
    if missing:
        raise WeightsError(f"{folder}: {missing[0]} is missing (and {len(missing) - 1} more tensors)", hint=NOT_WHOLE)
    if wrong:
        shapes = f"{found[wrong[0]]}, not {expected[wrong[0]]}"
        raise WeightsError(f"{folder}: {wrong[0]} has shape {shapes}: config.json is of another model", hint=NOT_WHOLE)


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Stops transformers from writing to stderr, and turns its errors about a folder into a WeightsError of one line."""
    with quiet(), as_weights_error(folder, NOT_WHOLE):
        yield
