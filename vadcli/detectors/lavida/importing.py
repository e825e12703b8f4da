"""Builds a LAVIDA folder from base models, for `vadcli weights import`.

The source of each part is found and checked. Its files are linked or copied. A SAM2.1 checkpoint in Meta's format is converted.
The folder has a temporary name until it is complete.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Sam2VideoModel

from vadcli import weights
from vadcli.detectors.lavida.checkpoint import check_model, create, load_preset, read_model, write_config
from vadcli.detectors.lavida.model import LavidaConfig
from vadcli.detectors.lavida.sam2 import sam2_config, transformers_state
from vadcli.detectors.lavida.text import SEG, add_seg, build_prompt
from vadcli.detectors.running import as_weights_error, quiet
from vadcli.errors import OutputError, UsageError, VadcliError, WeightsError
from vadcli.store.atomic import Scratch
from vadcli.types.text import size_text

TEXT_FILES = ("*.json", "*.txt", "*.jinja", "LICENSE*")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens_map*", "added_tokens*", "LICENSE*")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_TYPES = {"mllm": ("qwen2_vl",), "text": ("clip", "clip_text_model"), "sam2": ("sam2_video", "sam2")}
OPTION = {"mllm": "--qwen", "text": "--clip", "sam2": "--sam2"}
META_SUFFIXES = (".pt", ".pth")


@dataclass(frozen=True)
class Sources:
    """The files that the user names for the parts of a model.

    If qwen, sam2 or clip is None, the files of this base model are taken from the cache of the Hugging Face hub.

    Attributes:
        qwen: a transformers folder of Qwen2-VL.
        sam2: a transformers folder of SAM2.1, or Meta's own .pt file.
        clip: a transformers folder of CLIP, or of CLIP's text model alone.
        own: a safetensors file with the trained tensors of LAVIDA's own part.
        lora: a folder of the library PEFT, with LoRA adapters for the language model.
    """

    qwen: Path | None = None
    sam2: Path | None = None
    clip: Path | None = None
    own: Path | None = None
    lora: Path | None = None

    def of(self, part: str) -> Path | None:
        """Return the user's path for the base model mllm, text or sam2; None if the user gave no path."""
        return {"mllm": self.qwen, "text": self.clip, "sam2": self.sam2}[part]


@dataclass
class Imported:
    """What `import_lavida` built, and from which files.

    Attributes:
        folder: the LAVIDA folder.
        trained: True if LAVIDA's own part (the file `Sources.own`) is marked as trained.
        linked: files that are hard links to the user's files.
        copied: files that are copies of the user's files.
        converted: parts whose files were converted, and parts with random weights.
        notes: warnings and other remarks for the user.
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


def import_lavida(
    preset: str,
    dest: Path,
    sources: Sources,
    *,
    random_weights: bool = False,
    seed: int = 0,
    force: bool = False,
    say: Callable[[str], None] | None = None,
) -> Imported:
    """Build a LAVIDA folder. Return how its files were made.

    Args:
        preset: the name of a preset, which contains the sizes, the prompt and the sampling of the model.
        dest: the folder to create.
        sources: the files for the parts.
        random_weights: True to give random weights to a base model that is not on this machine. Such a model detects nothing.
        seed: seed of the random weights.
        force: True to replace an existing LAVIDA folder.
        say: a function that is called with one line of text at each step.

    Raises:
        UsageError: no preset has this name, or `dest` exists.
        WeightsError: a part is missing, is damaged, has the wrong size or is a pickle.
        VadcliError: the disk is full, or `dest` can't be written.
    """
    config = load_preset(preset)
    if dest.exists() or dest.is_symlink():
        if not force:
            raise UsageError(f"{dest}: already exists", hint="choose another folder with --to, or replace it with --force")
        real = dest.is_dir() and not dest.is_symlink()
        if not (real and (not any(dest.iterdir()) or "format_version" in read_config(dest))):
            raise UsageError(
                f"{dest}: not a LAVIDA folder, so --force does not replace it", hint="choose another folder with --to"
            )
    paths = find_parts(config, sources, random_weights=random_weights)
    check_extras(sources)
    need_room(config, paths, sources, dest)
    result = Imported(dest)
    say = say or (lambda line: None)
    with quiet(), _disk_errors(dest), Scratch(dest.absolute().parent / ".importing") as scratch:
        folder = scratch.folder / dest.name
        _build(config, paths, sources, folder, result, seed=seed, say=say)
        weights.share(folder)
        say("hashing every file")
        weights.write_checksums(folder)
        weights.check_lavida_folder(folder)
        # `write_folder` is not used: after a kill, the next import removes the many GB that a `Scratch` has left.
        replaced = scratch.folder / "replaced" if dest.exists() else None
        if replaced:
            dest.rename(replaced)
        try:
            folder.rename(dest)
        except OSError:
            if replaced:
                replaced.rename(dest)
            raise
    return result


def _build(
    config: LavidaConfig,
    paths: Mapping[str, Path | None],
    sources: Sources,
    folder: Path,
    result: Imported,
    *,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Write every file of the folder except its checksums."""
    drawn = [part for part, source in paths.items() if source is None]
    if drawn:
        say(f"{', '.join(drawn)}: random weights, seed {seed}")
        create(config.name, folder, seed=seed)
        result.notes.append(f"{', '.join(drawn)}: random weights (seed {seed}); the model detects nothing until it is trained")
        result.converted += drawn
        if len(drawn) < len(paths):
            (folder / weights.OWN_NAME).unlink(missing_ok=True)
    builders = {"mllm": place_model, "text": _build_text, "sam2": _build_sam2}
    for part, source in paths.items():
        if source is not None:
            say(f"{part}: from {source}")
            shutil.rmtree(folder / part, ignore_errors=True)
            (folder / part).mkdir(parents=True)
            builders[part](source, folder / part, result)
            try:
                check_model(part, folder / part)
            except WeightsError as error:  # the user does not know the temporary folder, only the source
                message = error.message.replace(str(folder / part), str(source))
                raise WeightsError(message, hint=error.hint) from error
    _fit_tokenizer(folder / "mllm", config, result)
    if sources.own is not None:
        (folder / weights.OWN_NAME).unlink(missing_ok=True)
        result.trained = weights.read_header(sources.own).metadata.get("trained") == "true"
        place(sources.own, folder / weights.OWN_NAME, result)
        if not result.trained:
            result.notes.append(f"{sources.own} is not marked as trained, so the folder counts as untrained")
    if sources.lora is not None:
        (folder / "lora").mkdir()
        for name in ADAPTER_FILES:
            place(sources.lora / name, folder / "lora" / name, result)
    names = {part: str(source) if source else f"random, seed {seed}" for part, source in paths.items()}
    names |= {"own": str(sources.own)} if sources.own else {}
    write_config(replace(config, trained=result.trained, seed=seed, sources=names), folder)


def _build_text(source: Path, folder: Path, result: Imported) -> None:
    """Write the text model of a CLIP folder. A folder with only a text model is linked or copied."""
    if model_type(source) == "clip_text_model":
        place_model(source, folder, result)
        return
    model = read_model("text", source, extras_matter=False, dtype="auto")
    model.save_pretrained(folder)
    result.converted.append("text")
    for path in files_of(source, TOKENIZER_FILES):
        place(path, folder / path.name, result, link=False)


def _build_sam2(source: Path, folder: Path, result: Imported) -> None:
    if source.suffix in META_SUFFIXES:
        convert_meta(source, folder)
        result.converted.append("sam2")
        return
    if model_type(source) == "sam2":
        result.notes.append(f"{source} is SAM2's model for images: it has no video memory, so masks can't be propagated")
    place_model(source, folder, result)


def _fit_tokenizer(folder: Path, config: LavidaConfig, result: Imported) -> None:
    """Add the token `<SEG>` if it is missing. Check that the tokenizer can encode the prompt."""
    with as_weights_error(folder):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if SEG not in tokenizer.get_vocab():
            add_seg(tokenizer)
            tokenizer.save_pretrained(folder)
            result.notes.append(f"{SEG} was added to the tokenizer")
        build_prompt(tokenizer, ["fire"], config.prompt)
    seg = int(tokenizer.convert_tokens_to_ids(SEG))
    shapes = (
        shape
        for path in sorted(folder.glob("*.safetensors"))
        for name, (_, shape) in weights.read_header(path).tensors.items()
        if name.endswith("embed_tokens.weight")
    )
    rows = next(shapes, (0,))[0]
    if seg >= rows:
        result.notes.append(
            f"{SEG} is token {seg}, but the embedding has only {rows} rows; loading the model enlarges the embedding"
        )


@contextmanager
def _disk_errors(dest: Path) -> Iterator[None]:
    """If files can't be written, raise a VadcliError of one line, with a hint."""
    try:
        yield
    except OutputError as error:
        hint = "choose a writable folder with --to; no incomplete folder is left"
        raise OutputError(f"{dest}: can't be created: {error.message}", hint=hint) from error
    except VadcliError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT) and "No space left" not in str(error):
            raise
        hint = "free some space, or choose another folder with --to; no incomplete folder is left"
        raise VadcliError(f"{dest}: no space left on the device", hint=hint) from error


def find_parts(config: LavidaConfig, sources: Sources, *, random_weights: bool) -> dict[str, Path | None]:
    """Return the folder or file of each base model.

    The value `None` means that the model gets random weights.

    Raises:
        WeightsError: a base model can't be used, or is not on this machine and `random_weights` is False.
    """
    known = weights.manifest()[config.name].parts if config.name in weights.manifest() else {}
    paths: dict[str, Path | None] = {}
    missing = []
    for part in MODEL_TYPES:
        source = sources.of(part) or (weights.base_folder(known[part]) if part in known else None)
        paths[part] = source
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
    return paths


def _check_part(part: str, source: Path, config: LavidaConfig) -> None:
    """Raise WeightsError if a base model is damaged, is of the wrong kind, or has the wrong width."""
    if part == "sam2" and source.suffix in META_SUFFIXES:
        if not source.is_file():
            raise WeightsError(
                f"{source}: the file does not exist", hint="name Meta's SAM2.1 .pt file or a transformers folder"
            )
        return
    kind = model_type(source)
    if kind not in MODEL_TYPES[part]:
        wanted = " or ".join(MODEL_TYPES[part])
        raise WeightsError(f"{source}: its config.json has the model_type {kind!r}, not {wanted}", hint=f"check {OPTION[part]}")
    files = sorted(source.glob("*.safetensors"))
    if not files:
        hint = "convert the model with transformers' save_pretrained; pickles are not read"
        raise WeightsError(f"{source}: contains no .safetensors file", hint=hint)
    for path in files:
        weights.read_header(path)
    document = read_config(source)
    inner = document.get("text_config", document)
    width = inner.get("hidden_size", document.get("hidden_size"))
    sizes = config.parts.mllm.get("text_config", {}) if part == "mllm" else config.parts.text if part == "text" else {}
    wanted_width = sizes.get("hidden_size", width)
    if width is not None and width != wanted_width:
        hint = "choose a preset with this width; `vadcli weights list` shows the presets"
        raise WeightsError(f"{source}: its width is {width}, but {config.name} needs {wanted_width}", hint=hint)


def check_extras(sources: Sources) -> None:
    """Check the files of LAVIDA's own part and of the adapters, if the user named them.

    Raises:
        WeightsError: a file is damaged, missing or of another kind.
    """
    if sources.own is not None:
        tensors = weights.read_header(sources.own).tensors
        if not any(name.startswith("projector.") for name in tensors):
            hint = "name the lavida.safetensors that `vadcli train` wrote"
            raise WeightsError(f"{sources.own}: has no projector, so it is not LAVIDA's own part", hint=hint)
    if sources.lora is not None:
        for name in ADAPTER_FILES:
            if not (sources.lora / name).is_file():
                hint = "save the adapter with PEFT's save_pretrained as safetensors"
                raise WeightsError(f"{sources.lora}: not a PEFT adapter: {name} is missing", hint=hint)
        weights.read_header(sources.lora / ADAPTER_FILES[1])


def need_room(config: LavidaConfig, paths: Mapping[str, Path | None], sources: Sources, dest: Path) -> None:
    """Raise VadcliError if the disk has no room for the files that must be copied or converted."""
    parent = next(folder for folder in dest.absolute().parents if folder.exists())
    known = weights.manifest()[config.name].parts if config.name in weights.manifest() else {}
    wanted = 0.0
    for part, source in paths.items():
        if source is None:  # random weights are float32, so they need twice as much space as the published weights
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


def place_model(source: Path, folder: Path, result: Imported) -> None:
    """Put the safetensors, config and tokenizer of `source` into `folder`, which must exist."""
    for path in files_of(source, ("*.safetensors",)):
        place(path, folder / path.name, result)
    for path in files_of(source, TEXT_FILES):
        place(path, folder / path.name, result, link=False)


def place(source: Path, target: Path, result: Imported, *, link: bool = True) -> None:
    """Make a hard link to a file, or a copy if no link is possible.

    `link` must be False if the new file may be changed later: a change in a hard link also changes the source.
    """
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
    """Return the files whose names match a pattern, sorted by name, without checksums.json."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != weights.CHECKSUMS_NAME)
    return [folder / name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def can_link(path: Path, folder: Path) -> bool:
    """Return True if a hard link should be possible: a safetensors file on the disk of `folder`."""
    return path.suffix == ".safetensors" and path.stat().st_dev == folder.stat().st_dev


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a model folder; {} if the file does not contain a JSON object.

    Raises:
        WeightsError: the file does not exist or can't be read.
    """
    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        hint = "name a folder that was written by transformers' save_pretrained"
        raise WeightsError(f"{folder}: not a model folder: its config.json can't be read", hint=hint) from error
    return document if isinstance(document, dict) else {}


def model_type(folder: Path) -> str:
    """Return the `model_type` in a folder's config.json, which is the kind of model."""
    return str(read_config(folder).get("model_type"))


OLD_HINT = "is the file older than SAM2.1? fetch facebook/sam2.1-hiera-small"

# Meta's four models. A key is (channels of the first stage, number of blocks), as in the sam2 package.
META_SIZES: dict[tuple[int, int], dict[str, Any]] = {
    (96, 12): {"blocks": (1, 2, 7, 2), "global_blocks": (5, 7, 9)},
    (96, 16): {"blocks": (1, 2, 11, 2), "global_blocks": (7, 10, 13)},
    (112, 24): {"num_heads": 2, "blocks": (2, 3, 16, 3), "global_blocks": (12, 16, 20), "background": (14, 14)},
    (144, 48): {"num_heads": 2, "blocks": (2, 6, 36, 4), "windows": (8, 4, 16, 8), "global_blocks": (23, 33, 43)},
}


def convert_meta(path: Path, folder: Path) -> None:
    """Convert Meta's SAM2.1 checkpoint to a transformers folder. Only the names of the tensors change.

    Raises:
        WeightsError: the file is not one of Meta's SAM2.1 checkpoints.
    """
    try:
        document = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        tensors: dict[str, Any] = dict(document["model"])
        if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise TypeError(path)
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        hint = "fetch Meta's file again; a pickle is refused if it contains anything except tensors"
        raise WeightsError(f"{path}: not Meta's SAM2.1 checkpoint", hint=hint) from error
    blocks = {name.split(".")[3] for name in tensors if name.startswith("image_encoder.trunk.blocks.")}
    embed = tensors.get("image_encoder.trunk.patch_embed.proj.weight")
    size = META_SIZES.get((len(embed), len(blocks))) if embed is not None else None
    if embed is None or size is None:
        raise WeightsError(f"{path}: not one of Meta's four SAM2.1 sizes", hint="fetch facebook/sam2.1-hiera-small")
    with torch.device("meta"):
        model = Sam2VideoModel(sam2_config(embed_dim=len(embed), **size))
    try:
        converted = transformers_state(tensors)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}", hint=OLD_HINT) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(shapes.keys() | converted.keys()):
        if shapes.get(name) != (tuple(converted[name].shape) if name in converted else None):
            raise WeightsError(f"{path}: {name} is missing or has the wrong shape", hint=OLD_HINT)
    model.load_state_dict(converted, assign=True)
    model.save_pretrained(folder)
