"""Builds a LAVIDA folder from base models, for `vadcli weights import`.

The folder has a temporary name until it is complete. Meta's SAM2.1 checkpoints are converted to transformers folders, which
contain the same tensors under other names.
"""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Sam2VideoModel

from vadcli import weights
from vadcli.detectors.lavida.import_sources import (
    ADAPTER_FILES,
    META_SUFFIXES,
    Imported,
    Sources,
    check_extras,
    files_of,
    find_parts,
    model_type,
    need_room,
    place,
    place_model,
    read_config,
)
from vadcli.detectors.lavida.sam2_package import transformers_state
from vadcli.detectors.lavida.sam2_sizes import sam2_config
from vadcli.errors import OutputError, UsageError, VadcliError, WeightsError
from vadcli.store.atomic import Scratch

if TYPE_CHECKING:
    from vadcli.detectors.lavida.config import LavidaConfig

OLD_HINT = "is the file older than SAM2.1? fetch facebook/sam2.1-hiera-small"

# Meta's four sizes; the key is (channels of the first stage, number of blocks), as in the sam2 package.
META_SIZES: dict[tuple[int, int], dict[str, Any]] = {
    (96, 12): {"blocks": (1, 2, 7, 2), "global_blocks": (5, 7, 9)},
    (96, 16): {"blocks": (1, 2, 11, 2), "global_blocks": (7, 10, 13)},
    (112, 24): {"num_heads": 2, "blocks": (2, 3, 16, 3), "global_blocks": (12, 16, 20), "background": (14, 14)},
    (144, 48): {"num_heads": 2, "blocks": (2, 6, 36, 4), "windows": (8, 4, 16, 8), "global_blocks": (23, 33, 43)},
}


def convert_meta(path: Path, folder: Path) -> None:
    """Convert Meta's SAM2.1 checkpoint to a folder of transformers' Sam2VideoModel.

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
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(wanted.keys() | converted.keys()):
        if wanted.get(name) != (tuple(converted[name].shape) if name in converted else None):
            raise WeightsError(f"{path}: {name} is missing or has the wrong shape", hint=OLD_HINT)
    model.load_state_dict(converted, assign=True)
    model.save_pretrained(folder)


TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens_map*", "added_tokens*", "LICENSE*")


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
    """Build a LAVIDA folder.

    Args:
        preset: the preset with the model's sizes, prompt and sampling.
        dest: the folder to create.
        sources: the sources of the parts.
        random_weights: use random weights for a base model that is not found. The resulting model detects nothing.
        seed: seed of the random weights.
        force: replace an existing LAVIDA folder.
        say: called with one line of text at each step.

    Raises:
        UsageError: no preset has this name, or `dest` exists.
        WeightsError: a part is missing, is damaged, has the wrong size or is a pickle.
        VadcliError: the disk is full, or `dest` can't be written.
    """
    from vadcli.detectors.lavida.config import load_preset, preset_names
    from vadcli.detectors.running import quiet

    if preset not in preset_names():
        raise UsageError(f"no preset is called {preset!r}", hint=f"choose from: {', '.join(preset_names())}")
    config = load_preset(preset)
    if dest.exists() or dest.is_symlink():
        if not force:
            raise UsageError(f"{dest}: already exists", hint="choose another folder with --to, or replace it with --force")
        ours = dest.is_dir() and not dest.is_symlink() and (not any(dest.iterdir()) or "format_version" in read_config(dest))
        if not ours:
            raise UsageError(f"{dest}: not a LAVIDA folder, so --force does not replace it", hint="remove it yourself")
    found = find_parts(config, sources, random_weights=random_weights)
    check_extras(sources)
    need_room(config, found, sources, dest)
    result = Imported(dest)
    tell = say or (lambda line: None)
    with quiet(), _disk_errors(dest), Scratch(dest.absolute().parent / ".importing") as scratch:
        folder = scratch.folder / dest.name
        _build(config, found, sources, folder, result, seed=seed, say=tell)
        weights.share(folder)
        tell("hashing every file")
        weights.write_checksums(folder)
        weights.check_folder(folder)
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
    found: Mapping[str, Path | None],
    sources: Sources,
    folder: Path,
    result: Imported,
    *,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Write every file of the folder except its checksums."""
    from vadcli.detectors.lavida.checkpoint import check_model, create

    drawn = [part for part, source in found.items() if source is None]
    if drawn:
        say(f"drawing {', '.join(drawn)} at random, seed {seed}")
        create(config.name, folder, seed=seed)
        result.notes.append(f"{', '.join(drawn)} drawn at random (seed {seed}): this model detects nothing until it is trained")
        result.converted += drawn
        if len(drawn) < len(found):
            (folder / weights.OWN_NAME).unlink(missing_ok=True)
    builders = {"mllm": place_model, "text": _build_text, "sam2": _build_sam2}
    for part, source in found.items():
        if source is not None:
            say(f"{part}: from {source}")
            shutil.rmtree(folder / part, ignore_errors=True)
            (folder / part).mkdir(parents=True)
            builders[part](source, folder / part, result)
            try:
                check_model(part, folder / part)
            except WeightsError as error:  # the message must name the source and not the temporary folder
                message = error.message.replace(str(folder / part), str(source))
                raise WeightsError(message, hint=error.hint) from error
    _fit_tokenizer(folder / "mllm", config, result)
    if sources.own is not None:
        (folder / weights.OWN_NAME).unlink(missing_ok=True)
        result.trained = weights.read_header(sources.own).metadata.get("trained") == "true"
        place(sources.own, folder / weights.OWN_NAME, result)
        if not result.trained:
            result.notes.append(f"{sources.own} doesn't say that it was trained: the folder counts as untrained")
    if sources.lora is not None:
        (folder / "lora").mkdir()
        for name in ADAPTER_FILES:
            place(sources.lora / name, folder / "lora" / name, result)
    names = {part: str(source) if source else f"random, seed {seed}" for part, source in found.items()}
    names |= {"own": str(sources.own)} if sources.own else {}
    document = {**replace(config, trained=result.trained, seed=seed, sources=names).to_json(), "parts": {}}
    (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _build_text(source: Path, folder: Path, result: Imported) -> None:
    """Extract the text model from a CLIP folder, or copy a CLIP text folder unchanged."""
    if model_type(source) == "clip_text_model":
        place_model(source, folder, result)
        return
    from vadcli.detectors.lavida.checkpoint import read_model

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
    """Add `<SEG>` if the tokenizer lacks it, and check that the tokenizer can encode the prompt."""
    import transformers

    from vadcli.detectors.lavida.config import SEG
    from vadcli.detectors.lavida.text import add_seg, build_prompt
    from vadcli.detectors.running import as_weights_error

    with as_weights_error(folder):
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
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
            f"{SEG} is token {seg}, but the embedding has only {rows} rows: it is enlarged each time the model is loaded"
        )


@contextmanager
def _disk_errors(dest: Path) -> Iterator[None]:
    """Turn write errors into one line that names `dest` and says what to do."""
    try:
        yield
    except OutputError as error:
        reason = error.message.rpartition(": ")[2]
        hint = "choose a writable folder with --to; no incomplete folder is left"
        raise OutputError(f"{dest}: can't be created: {reason}", hint=hint) from error
    except VadcliError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT) and "No space left" not in str(error):
            raise
        hint = "free some space, or choose another folder with --to; no incomplete folder is left"
        raise VadcliError(f"{dest}: no space left on the device", hint=hint) from error
