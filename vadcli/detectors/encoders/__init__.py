"""Image-text encoders: they turn pictures and sentences into vectors that can be compared.

The files of an encoder are a transformers folder with config.json, safetensors and a tokenizer. A file preprocessor_config.json
can change how a picture is resized and normalised. `vadcli.registry.ENCODERS` lists the families of encoders; the keys are the
values of `model_type` in config.json.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from vadcli import weights
from vadcli.detectors import check_device, digest, keep_compiler_cache
from vadcli.errors import UsageError, WeightsError
from vadcli.registry import ENCODERS
from vadcli.types import ByteArray, FloatArray
from vadcli.types.text import did_you_mean, no_folder
from vadcli.weights.files import read_json
from vadcli.weights.hub import read_lock

PREPROCESSING_VERSION = 1
"""Increase this if a change of the code gives another vector for the same picture or sentence."""
PRECISIONS = ("auto", "fp16", "bf16", "fp32")
DEFAULT_SIZE_PX = 224
"""The side of a picture if config.json does not contain a size, as in Google's folders. It is transformers' default."""
SMALL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.json",
    "chat_template.jinja",
)
"""The files besides the weights that can change a vector."""
HASHED_BYTES = 2**25
"""The number of bytes that are hashed at a time.

The number is large because, after each block, the thread may have to wait for other threads, for example for a thread that
imports modules.
"""
NOT_WHOLE = "the files are incomplete or damaged: fetch the folder again"


class Encoder(Protocol):
    """Turns pictures and sentences into unit vectors.

    If a sentence describes a picture, the vectors of both have a high cosine. The vector of a picture does not depend on
    the other pictures of the call.

    Attributes:
        name: the name or folder by which the user chose the encoder.
        width: D, the length of a vector.
        size_px: S, the side of the square picture that the model reads.
        temperature: differences of cosines are divided by this number.
        max_tokens: the largest number of tokens in a sentence.
    """

    name: str
    width: int
    size_px: int
    temperature: float
    max_tokens: int

    def encode_images(self, frames: ByteArray) -> FloatArray:
        """Return the vectors (N, D) float32 of pictures (N, H, W, 3) uint8.

        Pictures are squashed (stretched to a square S × S), not cropped.
        """

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Return the vectors (M, D) float32 of M sentences.

        Raises:
            UsageError: a sentence has more than `max_tokens` tokens.
        """

    def patch_map(self, frames: ByteArray) -> FloatArray:
        """Return the vectors (N, h, w, D) float32 of the patches of squashed pictures (N, H, W, 3) uint8."""

    def text_tokens(self, text: str) -> int:
        """Return the number of tokens of a sentence, including special tokens; it may be above `max_tokens`."""


def load_encoder(name: str, *, device: str = "auto", precision: str = "auto") -> Encoder:
    """Return an encoder. It reads its weights when it encodes the first picture or sentence.

    Args:
        name: a name of the weights manifest, such as `siglip2-b32`, or a transformers folder.
        device: auto, cpu, cuda or cuda:N. Auto is the first GPU, or else the CPU.
        precision: auto, fp16, bf16 or fp32. Auto is fp16 on a GPU, bf16 on a CPU with AMX, and fp32 on other CPUs.

    Raises:
        UsageError: an argument is wrong, for example `name` is not the name of an encoder.
        DeviceError: this machine does not have the device.
        WeightsError: the weights are missing, or can't be used.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision!r} does not exist", hint=f"choose one of {', '.join(PRECISIONS)}")
    check_device(device)
    folder = encoder_folder(name)
    family, _ = _family_and_config(folder)
    weight_files(folder)
    keep_compiler_cache()
    encoder: Encoder = ENCODERS.load(family)(name, folder, device=device, precision=precision)
    return encoder


def encoder_folder(name: str) -> Path:
    """Return the folder of an encoder. The files in the folder are not checked.

    Raises:
        UsageError: the name or folder does not exist, or the name is not an encoder's name.
        WeightsError: the encoder is not on this machine.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    names = [alias for item in weights.manifest().values() if item.kind == "encoder" for alias in item.names]
    choose = f"choose one of {', '.join(names)}, or a transformers folder"
    if os.sep in name or (os.altsep and os.altsep in name) or name.startswith("~"):
        raise UsageError(f"--encoder {name}: {no_folder(path)}", hint=choose)
    item = weights.known(name)
    if item is None:
        raise UsageError(f"no encoder is called {name!r}", hint=did_you_mean(name, names) or choose)
    if item.kind != "encoder":
        raise UsageError(f"{name} is not an encoder: it is {item.purpose}", hint=choose)
    return weights.pulled_folder(name)


def encoder_size_px(name: str) -> int:
    """Return the side of the square picture that an encoder reads, in pixels. Only config.json is read.

    Raises:
        UsageError, WeightsError: as in `load_encoder`.
    """
    folder = encoder_folder(name)
    _, config = _family_and_config(folder)
    vision = config.get("vision_config")
    side = vision.get("image_size", DEFAULT_SIZE_PX) if isinstance(vision, dict) else DEFAULT_SIZE_PX
    if type(side) is not int or side < 1:
        raise WeightsError(f"{folder / 'config.json'}: image_size {side!r} is not a number of pixels", hint=NOT_WHOLE)
    return side


def encoder_area_px(name: str) -> int:
    """Return the area of a frame, in pixels, above which the vectors of an encoder do not get better."""
    return encoder_size_px(name) ** 2 * 16 // 9  # a 16:9 frame with this area is as high as the encoder's square picture


def encoder_fingerprint(name: str, *, precision: str = "auto") -> dict[str, object]:
    """Return everything that changes an encoder's vectors, as a JSON object. Loads no model.

    The object contains the hashes from `model_hashes`, and `precision` as the user wrote it, for example `auto`. So a scan on a
    GPU and a search on a CPU can use the same vectors.

    Raises:
        UsageError, WeightsError: as in `load_encoder`.
    """
    folder = encoder_folder(name)
    family, _ = _family_and_config(folder)
    files = model_hashes(name, folder)
    return {"encoder": family, "preprocessing": PREPROCESSING_VERSION, "precision": precision, "files": files}


def model_hashes(name: str, folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each model file that can change the results. The keys are the file names.

    For weights from `vadcli weights pull`, the hashes are read from the lock file. `vadcli weights verify` compares this file
    with the weights.

    Args:
        name: a name of the weights manifest, or a folder.
        folder: the transformers folder of the model.

    Raises:
        WeightsError: as in `weight_files`.
    """
    item = None if Path(name).expanduser().is_dir() else weights.known(name)
    lock = read_lock(item) if item else None
    hashes = {}
    for path in (*(path for file in SMALL_FILES if (path := folder / file).is_file()), *weight_files(folder)):
        listed = lock.files.get(path.name) if lock else None
        state = path.stat()
        hashes[path.name] = listed.sha256 if listed else _file_hash(path, state.st_size, state.st_mtime_ns)
    return hashes


def encoder_key(fingerprint: Mapping[str, object]) -> str:
    """Return a hash of a fingerprint, except its precision. Vectors with the same hash can be compared."""
    return digest({name: value for name, value in fingerprint.items() if name != "precision"})


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a transformers folder, and check their headers.

    Raises:
        WeightsError: the folder has no safetensors files, or a safetensors file is missing, cut off or damaged.
    """
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (folder / names[0]).is_file():
        if not index.is_file():
            raise WeightsError(
                f"{folder}: has no model.safetensors; only safetensors are read, because a pickle can run code",
                hint="convert the model with transformers' save_pretrained",
            )
        try:
            names = sorted({str(file) for file in read_json(index)["weight_map"].values()})
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightsError(f"{index}: not a list of weight files", hint=NOT_WHOLE) from error
    if elsewhere := next((file for file in names if Path(file).name != file), None):
        raise WeightsError(f"{index}: {elsewhere!r} is not a file of this folder", hint=NOT_WHOLE)
    for file in names:
        weights.read_header(folder / file)
    return tuple(folder / file for file in names)


def _family_and_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the model_type and the config of a folder. Raises WeightsError if no encoder has this type."""
    path = folder / "config.json"
    try:
        config = read_json(path)
    except OSError as error:
        hint = "name a transformers folder of CLIP or SigLIP"
        raise WeightsError(f"{folder}: not an encoder: config.json is missing or can't be read", hint=hint) from error
    except ValueError as error:
        raise WeightsError(f"{path}: not a JSON object", hint=NOT_WHOLE) from error
    family = config.get("model_type")
    if family in ENCODERS:
        return str(family), config
    reason = f"its model_type is {family!r}" if family else "its config.json has no model_type"
    hint = f"use a model of type {' or '.join(ENCODERS)}"
    if family == "siglip2":
        hint = "its pictures have no fixed size (NaFlex): use a SigLIP 2 model with a size in its name, such as siglip2-b32"
    raise WeightsError(f"{folder}: not an encoder that vadcli can use: {reason}", hint=hint)


@lru_cache(maxsize=256)
def _file_hash(path: Path, size: int, mtime_ns: int) -> str:
    """Return the SHA-256 of a file.

    The file is read again only if its size or modification time has changed.
    """
    sha256 = hashlib.sha256()
    # The memory comes from mmap and not from malloc. After malloc has freed a block of this size, it keeps all smaller blocks
    # that are freed later, for example tensors of the weights, and does not return them to the system.
    with path.open("rb", buffering=0) as file, mmap.mmap(-1, HASHED_BYTES) as pages, memoryview(pages) as block:
        while count := file.readinto(block):
            sha256.update(block[:count])
    return sha256.hexdigest()
