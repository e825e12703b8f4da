"""The parts of LAVIDA that a training trains or freezes, and the training's checkpoints.

    OUT/checkpoints/step-00000100/
      lavida.safetensors, lora/   trained weights, as in a LAVIDA folder
      optimizer.safetensors       AdamW's moments for each parameter
      random.safetensors          states of the random generators, one row per process
      state.json                  progress of the training; fingerprints of the recipe and the data

A training that continues from a checkpoint gives the same result as a training without interruption.
A checkpoint has a temporary name until it is complete. No file is a pickle, so loading a file runs no code.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vadcli import weights
from vadcli.detectors.lavida.checkpoint import ADAPTERS
from vadcli.detectors.lavida.model import Lavida
from vadcli.errors import DocumentError, UsageError
from vadcli.store.atomic import write_folder
from vadcli.types.text import error_text, structure

LORA = "lora"
PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "vision_tower": ("mllm.qwen.model.visual.",),
        "tokens": ("mllm.qwen.model.language_model.embed_tokens.",),
        "lm_head": ("mllm.qwen.lm_head.",),
        "language_model": ("mllm.qwen.model.language_model.",),
        "text": ("text.clip.",),
        "image_encoder": ("masks.sam2.vision_encoder.", "masks.sam2.no_memory_embedding"),
        "mask_decoder": ("masks.sam2.mask_decoder.",),
        # Only these two parameters are used, because LAVIDA gives SAM2 no point, box or mask as prompt.
        "prompt_encoder": (
            "masks.sam2.prompt_encoder.not_a_point_embed.",
            "masks.sam2.prompt_encoder.no_mask_embed.",
        ),
        "projector": ("projector.",),
        "sight": ("mllm.sight.",),
        "pooling": ("mllm.pooling.",),
    }
)
"""The prefixes of parameter names, by part. If several parts match a name, the first part counts. `lora` is not listed."""
OPTIONAL_PARTS = ("sight", "pooling")
"""Parts that only a model trained from random weights may have."""
REST = "rest"
"""The name for all other parameters: SAM2's video memory, and those parts of SAM2's prompt encoder that LAVIDA does not use."""


def part_of(name: str) -> str:
    """Return the name of the part that a parameter belongs to: a key of `PARTS`, `LORA` or `REST`."""
    if ".lora_" in name:
        return LORA
    return next((part for part, starts in PARTS.items() if name.startswith(starts)), REST)


def set_up(model: Lavida, trained: Collection[str], *, masks: int, freeze: Collection[str] = ()) -> None:
    """Prepare a model for training: add adapters, and freeze all parameters that are not trained.

    Args:
        model: changed in place. The weights of new adapters are random, from torch's current generator.
        trained: names of the parts to train.
        masks: number of masks per prompt that the decoder learns. 3 is as in the paper, and needs a decoder with
            trained weights. 1 makes the decoder always answer with its single mask.
        freeze: dotted names of modules in trained parts; these modules stay frozen.

    Raises:
        UsageError: a part or module does not exist, `trained` has both `lora` and `language_model`, or the
            library `peft` is not installed.
    """
    unknown = sorted(set(trained) - {*PARTS, LORA})
    if unknown:
        raise UsageError(f"LAVIDA has no part {unknown[0]!r} to train", hint=f"choose among {', '.join((*PARTS, LORA))}")
    if LORA in trained and "language_model" in trained:
        raise UsageError("lora and language_model cannot both be trained", hint="leave one of them out of `train`")
    if LORA in trained:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise UsageError("low-rank adapters need the peft package", hint="pip install 'vadcli[train]'") from error
        lora = model.config.lora
        rule = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=rf"model\.language_model\..*\.({'|'.join(map(re.escape, lora.targets))})",
        )
        inject_adapter_in_model(rule, model.mllm.qwen)
    for name, value in model.named_parameters():
        value.requires_grad_(part_of(name) in trained)
    modules = dict(model.named_modules())
    for name in freeze:
        if name not in modules:
            raise UsageError(f"LAVIDA has no module {name!r} to freeze", hint="name one like projector.frame_semantics")
        modules[name].requires_grad_(False)
    if masks == 1:
        sam2 = model.masks.sam2  # type: ignore[attr-defined]
        sam2.mask_decoder.dynamic_multimask_via_stability = False
        sam2.config.mask_decoder_config.dynamic_multimask_via_stability = False


def set_precision(model: Lavida, dtype: torch.dtype) -> None:
    """Convert trained parameters to fp32 and frozen parameters to `dtype`, except the frozen parameters of `REST`."""
    for name, value in model.named_parameters():
        if value.requires_grad or part_of(name) != REST:
            value.data = value.data.to(torch.float32 if value.requires_grad else dtype)


def checkpoint_activations(model: Lavida) -> None:
    """Turn on gradient checkpointing in the language model.

    Gradient checkpointing saves memory: activations are not stored, but computed again in the backward pass.
    """
    qwen, how = model.mllm.qwen, {"use_reentrant": False}
    if hasattr(qwen, "activation_checkpointing_enable"):  # the name in `transformers` 5.23 and later
        qwen.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:
        qwen.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the name and value of each trained parameter once, in the model's order."""
    yield from ((name, value) for name, value in model.named_parameters() if value.requires_grad)


ADAPTER_FILE = "adapter_model.safetensors"
STATE = "state.json"
OWN_PARTS = ("projector", "sight", "pooling")
"""Parts that LAVIDA adds to its base models."""


@dataclass(frozen=True)
class TrainerState:
    """The progress of a training.

    Attributes:
        step: number of completed steps.
        best: highest frame AUC of all validations; None before the first validation.
        best_step: `step` at the validation with the highest AUC.
        waited: number of validations since the one with the highest AUC.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    waited: int = 0


def save_trained(model: Lavida, folder: Path) -> None:
    """Write `lavida.safetensors` with the trained weights, and lora/ if the model has adapters.

    The parts in `OWN_PARTS` are always written, because a LAVIDA folder needs them.
    """
    own, adapters = _trained(model)
    folder.mkdir(parents=True, exist_ok=True)
    _save(own, folder / weights.OWN_NAME, {"trained": "true"})
    if adapters:
        (folder / ADAPTERS).mkdir(exist_ok=True)
        rule = model.mllm.qwen.peft_config["default"]
        document: dict[str, Any] = {}
        for key, value in sorted(rule.to_dict().items()):
            if isinstance(value, set | frozenset):
                document[key] = sorted(value)  # so that equal adapters give equal bytes
            else:
                document[key] = value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)
        (folder / ADAPTERS / "adapter_config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        _save(adapters, folder / ADAPTERS / ADAPTER_FILE, {"format": "pt"})
    weights.share(folder)


@torch.no_grad()
def load_trained(model: Lavida, folder: Path) -> None:
    """Load the weights from `save_trained` into a model.

    Before this, `set_up` must have prepared the model with the same arguments as the trained model.

    Raises:
        DocumentError: the files are damaged or belong to another training.
    """
    own, adapters = _trained(model)
    for path, tensors in ((folder / weights.OWN_NAME, own), (folder / ADAPTERS / ADAPTER_FILE, adapters)):
        if tensors:
            stored = _load(path)
            strange = sorted(set(stored) ^ set(tensors)) or [
                name for name in tensors if tensors[name].shape != stored[name].shape
            ]
            if strange:
                raise DocumentError(f"{path}: {strange[0]!r} does not fit the model", hint="is the file from another recipe?")
            for name, value in tensors.items():
                value.copy_(stored[name])


class Checkpoints:
    """The checkpoints of one training. Old checkpoints are removed.

    Args:
        folder: folder of all checkpoints.
        keep: number of checkpoints to keep.
        identity: fingerprints of recipe and data. `load` refuses a checkpoint with other fingerprints.
    """

    def __init__(self, folder: Path, *, keep: int, identity: Mapping[str, str]) -> None:
        self.folder, self.keep, self.identity = folder, keep, dict(identity)

    def all(self) -> list[Path]:
        """Return the complete checkpoints, newest last."""
        return sorted(path for path in self.folder.glob("step-*") if (path / STATE).is_file())

    def save(self, model: Lavida, optimizer: Any, *, progress: TrainerState, random: Tensor, scaler: Mapping[str, Any]) -> None:
        """Write a checkpoint, and remove old ones.

        Args:
            model: the model. Only trained parameters are written.
            optimizer: a torch AdamW with all `trained_parameters` of the model, in the same order.
            progress: progress of the training.
            random: (processes, N) uint8 from `random_state`, one row per process.
            scaler: state of the loss scaler, which only fp16 uses; empty for another precision.
        """

        def write(folder: Path) -> None:
            """Write the checkpoint into this folder."""
            save_trained(model, folder)
            moments = {
                f"{key}/{name}": moment
                for name, value in trained_parameters(model)
                for key, moment in optimizer.state.get(value, {}).items()
            }
            _save(moments, folder / "optimizer.safetensors", {})
            _save({"random": random}, folder / "random.safetensors", {})
            document = {"progress": asdict(progress), "scaler": dict(scaler), **self.identity}
            (folder / STATE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

        write_folder(self.folder / f"step-{progress.step:08d}", write)
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def load(self, model: Lavida, optimizer: Any) -> tuple[TrainerState, Tensor, dict[str, Any]] | None:
        """Load the newest checkpoint into model and optimizer.

        Returns:
            `progress`, `random` and `scaler`, as they were given to `save`. None if no checkpoint exists.

        Raises:
            DocumentError: the checkpoint is damaged, or belongs to another recipe or other data.
        """
        paths = self.all()
        if not paths:
            return None
        path = paths[-1]
        try:
            document = json.loads((path / STATE).read_text(encoding="utf-8"))
            progress = structure(TrainerState, document["progress"], "progress")
            scaler = dict(document["scaler"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DocumentError(
                f"{path / STATE}: cannot be read: {error_text(error)}", hint="remove this checkpoint"
            ) from error
        for name, value in self.identity.items():
            if document.get(name) != value:
                hint = f"use another output folder, or the {name} of this checkpoint"
                raise DocumentError(f"{path}: the checkpoint was written with another {name}", hint=hint)
        load_trained(model, path)
        state: dict[int, dict[str, Tensor]] = {}
        places = {name: place for place, (name, _) in enumerate(trained_parameters(model))}
        for key, moment in _load(path / "optimizer.safetensors").items():
            kind, _, name = key.partition("/")
            if name not in places:
                raise DocumentError(
                    f"the checkpoint has an optimizer state for {name!r}, which is not trained",
                    hint="was the checkpoint written with another recipe?",
                )
            state.setdefault(places[name], {})[kind] = moment
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return progress, _load(path / "random.safetensors")["random"], scaler


def random_state(device: torch.device) -> Tensor:
    """Return the state of torch's random generators for CPU and `device`, as (N,) uint8."""
    parts = [torch.get_rng_state()]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device))
    return torch.cat(parts)


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Set torch's generators to a state that `random_state` returned."""
    own = len(torch.get_rng_state())
    torch.set_rng_state(state[:own].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[own:].clone(), device)


def _trained(model: Lavida) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors to store, by name: the parameters, and the adapters with the names that the library `peft` uses."""
    own: dict[str, Tensor] = {}
    adapters: dict[str, Tensor] = {}
    for name, value in model.named_parameters():
        part = part_of(name)
        if part == LORA:
            inside = name.removeprefix("mllm.qwen.").replace(".default.", ".")
            adapters[f"base_model.model.{inside}"] = value.detach()
        elif value.requires_grad or part in OWN_PARTS:
            own[name] = value.detach()
    return own, adapters


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, metadata=metadata)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DocumentError(f"{path}: cannot be read: {error}", hint="remove this checkpoint") from error
    return tensors
