"""Finds and checks the sources of a LAVIDA folder's parts, and links or copies their files."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadcli import weights
from vadcli.errors import VadcliError, WeightsError
from vadcli.types.text import size_text

if TYPE_CHECKING:
    from vadcli.detectors.lavida.config import LavidaConfig

TEXT_FILES = ("*.json", "*.txt", "*.jinja", "LICENSE*")


@dataclass
class Imported:
    """A LAVIDA folder that was built.

    Attributes:
        folder: the folder.
        trained: True if LAVIDA's own part (`Sources.own`) is marked as trained.
        linked: files that are hard links to their source.
        copied: files that are copies of their source.
        converted: parts that were converted or drawn at random.
        notes: warnings and other facts for the user.
    """

    folder: Path
    trained: bool = False
    linked: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the document that `vadcli weights import --json` prints."""
        return {**asdict(self), "folder": str(self.folder)}


def place_model(source: Path, folder: Path, result: Imported) -> None:
    """Put the safetensors, config and tokenizer of `source` into `folder`, which must exist."""
    for path in files_of(source, ("*.safetensors",)):
        place(path, folder / path.name, result)
    for path in files_of(source, TEXT_FILES):
        place(path, folder / path.name, result, link=False)


def place(source: Path, target: Path, result: Imported, *, link: bool = True) -> None:
    """Link or copy a file. Don't link a file that may be changed later: its source would change too."""
    name = target.relative_to(target.parents[1] if target.name != weights.OWN_NAME else target.parent).as_posix()
    if link:
        try:
            os.link(source.resolve(), target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
                raise
        else:
            result.linked.append(name)
            return
    shutil.copy2(source, target)
    result.copied.append(name)


def files_of(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Return the files of a folder whose names match a pattern, sorted, without the file of checksums."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != weights.CHECKSUMS_NAME)
    return [folder / name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def can_link(path: Path, folder: Path) -> bool:
    """True if a weights file can probably be linked into `folder`: both are on the same file system."""
    return path.suffix == ".safetensors" and path.stat().st_dev == folder.stat().st_dev


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model folder's config.json.

    Raises:
        WeightsError: the file does not exist or can't be read.
    """
    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = "name a folder that was written by transformers' save_pretrained"
        raise WeightsError(f"{folder}: not a model folder: its config.json can't be read", hint=hint) from error
    return document if isinstance(document, dict) else {}


def model_type(folder: Path) -> str:
    """Return transformers' name of the folder's architecture."""
    return str(read_config(folder).get("model_type"))


ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_TYPES = {"mllm": ("qwen2_vl",), "text": ("clip", "clip_text_model"), "sam2": ("sam2_video", "sam2")}
OPTION = {"mllm": "--qwen", "text": "--clip", "sam2": "--sam2"}
META_SUFFIXES = (".pt", ".pth")


@dataclass(frozen=True)
class Sources:
    """The sources of the parts. A base model that is None is taken from the cache of the Hugging Face hub.

    Attributes:
        qwen: a transformers folder of Qwen2-VL.
        sam2: a transformers folder of SAM2.1, or Meta's own .pt file.
        clip: a transformers folder of CLIP, or of its text model.
        own: trained safetensors of LAVIDA's own part.
        lora: a PEFT folder with adapters for the language model.
    """

    qwen: Path | None = None
    sam2: Path | None = None
    clip: Path | None = None
    own: Path | None = None
    lora: Path | None = None

    def of(self, part: str) -> Path | None:
        """Return the path of mllm, text or sam2, if given."""
        return {"mllm": self.qwen, "text": self.clip, "sam2": self.sam2}[part]


def find_parts(config: LavidaConfig, sources: Sources, *, random_weights: bool) -> dict[str, Path | None]:
    """Return the checked source of each part, by part; None for a part that gets random weights.

    Raises:
        WeightsError: a part is not on this machine and random weights are not allowed, or a part is
            damaged, is a pickle, is another model or has the wrong size.
    """
    known = weights.manifest()[config.name].parts if config.name in weights.manifest() else {}
    found: dict[str, Path | None] = {}
    missing = []
    for part in MODEL_TYPES:
        given = sources.of(part)
        found[part] = given or (weights.base_folder(known[part]) if part in known else None)
        source = found[part]
        if source is not None:
            _check_part(part, source, config)
        elif part in known:
            missing.append(f"{part} ({known[part]})")
        else:
            missing.append(part)
    if missing and not random_weights:
        options = "/".join(OPTION[name.split(" ", maxsplit=1)[0]] for name in missing)
        pull = f"fetch the public base models with `vadcli weights pull {config.name}`, " if known else ""
        hint = f"{pull}name a local folder with {options}, or add --random-weights"
        raise WeightsError(f"{config.name}: no base model for {', '.join(missing)} on this machine", hint=hint)
    return found


def _check_part(part: str, source: Path, config: LavidaConfig) -> None:
    """Raise WeightsError if a source is damaged, is another model or has another width than the preset."""
    if part == "sam2" and source.suffix in META_SUFFIXES:
        if not source.is_file():
            raise WeightsError(
                f"{source}: the file does not exist", hint="name Meta's SAM2.1 .pt file or a transformers folder"
            )
        return
    kind = model_type(source)
    if kind not in MODEL_TYPES[part]:
        wanted = " or ".join(MODEL_TYPES[part])
        raise WeightsError(f"{source}: its config.json says {kind!r}, not {wanted}", hint=f"check {OPTION[part]}")
    files = sorted(source.glob("*.safetensors"))
    if not files:
        hint = "convert it with transformers' save_pretrained; pickles are not read"
        raise WeightsError(f"{source}: contains no .safetensors file", hint=hint)
    for path in files:
        weights.read_header(path)
    document = read_config(source)
    inner = document.get("text_config", document)
    width = inner.get("hidden_size", document.get("hidden_size"))
    sizes = config.parts.mllm.get("text_config", {}) if part == "mllm" else config.parts.text if part == "text" else {}
    wanted_width = sizes.get("hidden_size", width)
    if width is not None and width != wanted_width:
        hint = "choose the preset of that size; `vadcli weights list` shows them"
        raise WeightsError(f"{source}: its width is {width}, but {config.name} needs {wanted_width}", hint=hint)


def check_extras(sources: Sources) -> None:
    """Check the files of LAVIDA's own part and of the adapters.

    Raises:
        WeightsError: a file is something else, or is damaged.
    """
    if sources.own is not None:
        tensors = weights.read_header(sources.own).tensors
        if not any(name.startswith("projector.") for name in tensors):
            hint = "name the lavida.safetensors that `vadcli train` wrote"
            raise WeightsError(f"{sources.own}: has no projector, so it is not LAVIDA's own part", hint=hint)
    if sources.lora is not None:
        for name in ADAPTER_FILES:
            if not (sources.lora / name).is_file():
                hint = "save it with PEFT's save_pretrained as safetensors"
                raise WeightsError(f"{sources.lora}: not a PEFT adapter: it has no {name}", hint=hint)
        weights.read_header(sources.lora / ADAPTER_FILES[1])


def need_room(config: LavidaConfig, found: Mapping[str, Path | None], sources: Sources, dest: Path) -> None:
    """Raise VadcliError if the disk has too little free space for the new files."""
    parent = next(folder for folder in dest.absolute().parents if folder.exists())
    known = weights.manifest()[config.name].parts if config.name in weights.manifest() else {}
    wanted = 0.0
    for part, source in found.items():
        if source is None:  # random weights are float32, twice the published size
            wanted += 2e9 * (weights.entry(known[part]).download_gb or 0.0) if part in known else 0.0
        else:
            files = [source] if source.is_file() else files_of(source, ("*.safetensors", *TEXT_FILES))
            rewritten = source.is_file() or model_type(source) == "clip"
            wanted += sum(path.stat().st_size for path in files if rewritten or not can_link(path, parent))
    if sources.own is not None and not can_link(sources.own, parent):
        wanted += sources.own.stat().st_size
    free = shutil.disk_usage(parent).free
    if wanted > free:
        hint = "free some space, or use --to to choose a folder on the disk of the sources, where links need no space"
        raise VadcliError(f"{dest}: needs {size_text(wanted)}, but only {size_text(free)} are free", hint=hint)
