"""Files from their source into the folder that is being built: linked where possible, copied else.

Where the parts of a LAVIDA folder come from, looked over before anything is built.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadcli import weights
from vadcli.errors import VadcliError, WeightsError

if TYPE_CHECKING:
    from vadcli.detectors.lavida.config import LavidaConfig

OWN_NAME = "lavida.safetensors"
TEXT_FILES = ("*.json", "*.txt", "*.jinja", "LICENSE*")


@dataclass
class Imported:
    """A LAVIDA folder that was built.

    Attributes:
        folder: where.
        trained: its own part was trained.
        linked, copied: files that share their bytes with their source, or hold their own.
        converted: parts that were rewritten or drawn.
        notes: what else a person should know.
    """

    folder: Path
    trained: bool = False
    linked: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As `vadcli weights import --json` prints it."""
        return {
            "folder": str(self.folder),
            "trained": self.trained,
            "linked": self.linked,
            "copied": self.copied,
            "converted": self.converted,
            "notes": self.notes,
        }


def place_model(source: Path, folder: Path, result: Imported) -> None:
    """Put a transformers folder's safetensors, configuration and tokenizer into `folder`, which is there already."""
    for path in files_of(source, ("*.safetensors",)):
        place(path, folder / path.name, result)
    for path in files_of(source, TEXT_FILES):
        place(path, folder / path.name, result, link=False)


def place(source: Path, target: Path, result: Imported, *, link: bool = True) -> None:
    """Link or copy a file. What may be written to later must not be linked: the source would change with it."""
    name = target.relative_to(target.parents[1] if target.name != OWN_NAME else target.parent).as_posix()
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
    """The files of a folder whose names match, sorted."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != weights.CHECKSUMS_NAME)
    return [folder / name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def can_link(path: Path, folder: Path) -> bool:
    """Whether a file of weights is likely to become a link in `folder`: both lie on one file system."""
    return path.suffix == ".safetensors" and path.stat().st_dev == folder.stat().st_dev


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json.

    Raises:
        WeightsError: there is none that can be read.
    """
    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = "name a folder that transformers' save_pretrained wrote"
        raise WeightsError(f"{folder}: not a model folder: its config.json can't be read", hint=hint) from error
    return document if isinstance(document, dict) else {}


def model_type(folder: Path) -> str:
    """What transformers calls the folder's architecture."""
    return str(read_config(folder).get("model_type"))


ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_TYPES = {"mllm": ("qwen2_vl",), "text": ("clip", "clip_text_model"), "sam2": ("sam2_video", "sam2")}
OPTION = {"mllm": "--qwen", "text": "--clip", "sam2": "--sam2"}
META_SUFFIXES = (".pt", ".pth")


@dataclass(frozen=True)
class Sources:
    """Where parts come from; what is None is looked up in the hub's cache, by the manifest.

    Attributes:
        qwen: a transformers folder of Qwen2-VL.
        sam2: a transformers folder of SAM2.1, or Meta's own .pt file.
        clip: a transformers folder of CLIP, or of its text model.
        own: trained safetensors of LAVIDA's own part.
        lora: a PEFT folder with adapters of the language model.
    """

    qwen: Path | None = None
    sam2: Path | None = None
    clip: Path | None = None
    own: Path | None = None
    lora: Path | None = None

    def of(self, part: str) -> Path | None:
        """The path given for mllm, text or sam2."""
        return {"mllm": self.qwen, "text": self.clip, "sam2": self.sam2}[part]


def find_parts(config: LavidaConfig, sources: Sources, *, random_weights: bool) -> dict[str, Path | None]:
    """Part -> its source, looked over; None where it is to be drawn.

    Raises:
        WeightsError: a part is not here and not to be drawn, or what is here is damaged, a pickle, another model or size.
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
        pull = f"`vadcli weights pull {config.name}` fetches what is public, " if known else ""
        hint = f"{pull}{options} names a local one, --random-weights draws it"
        raise WeightsError(f"{config.name}: no base model for {', '.join(missing)} on this machine", hint=hint)
    return found


def _check_part(part: str, source: Path, config: LavidaConfig) -> None:
    """Refuse what is no such model, has no safetensors, is damaged or doesn't fit the preset's widths."""
    if part == "sam2" and source.suffix in META_SUFFIXES:
        if not source.is_file():
            raise WeightsError(f"{source}: there is no such file", hint="name Meta's SAM2.1 .pt file or a transformers folder")
        return
    kind = model_type(source)
    if kind not in MODEL_TYPES[part]:
        wanted = " or ".join(MODEL_TYPES[part])
        raise WeightsError(f"{source}: its config.json says {kind!r}, not {wanted}", hint=f"check {OPTION[part]}")
    files = sorted(source.glob("*.safetensors"))
    if not files:
        hint = "convert it with transformers' save_pretrained elsewhere; pickles are not read"
        raise WeightsError(f"{source}: no safetensors in it", hint=hint)
    for path in files:
        weights.read_header(path)
    document = read_config(source)
    inner = document.get("text_config", document)
    width = inner.get("hidden_size", document.get("hidden_size"))
    sizes = config.parts.mllm.get("text_config", {}) if part == "mllm" else config.parts.text if part == "text" else {}
    wanted_width = sizes.get("hidden_size", width)
    if width is not None and width != wanted_width:
        hint = "choose the preset of that size, `vadcli weights list` names them"
        raise WeightsError(f"{source}: {width} wide where {config.name} wants {wanted_width}", hint=hint)


def check_extras(sources: Sources) -> None:
    """Look over the own part and the adapters.

    Raises:
        WeightsError: they are something else, or damaged.
    """
    if sources.own is not None:
        tensors = weights.read_header(sources.own).tensors
        if not any(name.startswith("projector.") for name in tensors):
            hint = "name the lavida.safetensors that `vadcli train` wrote"
            raise WeightsError(f"{sources.own}: holds no projector: not LAVIDA's own part", hint=hint)
    if sources.lora is not None:
        for name in ADAPTER_FILES:
            if not (sources.lora / name).is_file():
                hint = "save it with PEFT's save_pretrained, as safetensors"
                raise WeightsError(f"{sources.lora}: not a PEFT adapter: it has no {name}", hint=hint)
        weights.read_header(sources.lora / ADAPTER_FILES[1])


def need_room(config: LavidaConfig, found: Mapping[str, Path | None], sources: Sources, dest: Path) -> None:
    """Refuse to begin where what has to be copied, converted or drawn is larger than the free space."""
    parent = next(folder for folder in dest.absolute().parents if folder.exists())
    known = weights.manifest()[config.name].parts if config.name in weights.manifest() else {}
    wanted = 0.0
    for part, source in found.items():
        if source is None:  # in float32, twice what is published
            wanted += 2e9 * (weights.entry(known[part]).download_gb or 0.0) if part in known else 0.0
        else:
            files = [source] if source.is_file() else files_of(source, ("*.safetensors", *TEXT_FILES))
            rewritten = source.is_file() or model_type(source) == "clip"
            wanted += sum(path.stat().st_size for path in files if rewritten or not can_link(path, parent))
    if sources.own is not None and not can_link(sources.own, parent):
        wanted += sources.own.stat().st_size
    free = shutil.disk_usage(parent).free
    if wanted > free:
        hint = "free space, or choose another folder with --to; on the disk of the sources nothing is copied"
        raise VadcliError(f"{dest}: {wanted / 1e9:.1f} GB to write and {free / 1e9:.1f} GB free", hint=hint)
