"""Which parts of LAVIDA a training changes, by name, and the low-rank adapters of its language model.

A part that isn't trained asks for no gradients, so nothing of it is recorded: frozen encoders run as under no_grad, and
gradients still reach what is trained behind them, such as the decoder's projections of the high-resolution features.

What a training keeps on disk: what is trained, and where it stands, so that it goes on as if it had never stopped.

    FOLDER/checkpoints/step-000100/
      lavida.safetensors, lora/   what is trained, as in a LAVIDA folder
      optimizer.safetensors       AdamW's moments by the names of the parameters
      random.safetensors          states of the random generators, a row a process
      state.json                  where the training stands, and of which recipe and data

A checkpoint appears whole under its name or not at all. No pickles.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vadcli import weights
from vadcli.detectors.lavida.checkpoint import ADAPTERS, OWN
from vadcli.detectors.lavida.model import Lavida
from vadcli.errors import DocumentError, UsageError
from vadcli.store.atomic import output_error

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
        # Of the prompt encoder only these two are ever read: LAVIDA's prompt is neither points nor boxes nor a mask.
        "prompt_encoder": (
            "masks.sam2.prompt_encoder.not_a_point_embed.",
            "masks.sam2.prompt_encoder.no_mask_embed.",
        ),
        "projector": ("projector.",),
        "sight": ("mllm.sight.",),
        "pooling": ("mllm.pooling.",),
    }
)
"""Parts and the beginnings of their parameters' names; the first that fits counts. Adapters are a part of their own, `lora`."""
PAPER = (LORA, "tokens", "lm_head", "projector", "mask_decoder", "prompt_encoder")
"""What the paper trains (3.9)."""
ADDITIONS = ("sight", "pooling")
"""What only a model made from nothing may have."""
WHOLE = tuple(part for part in PARTS if part not in ADDITIONS)
"""Everything of the paper that takes part in scoring."""
REST = "rest"
"""Parameters of no part: SAM2's video memory and the prompts that LAVIDA doesn't give."""


def part_of(name: str) -> str:
    """The part that a parameter of Lavida belongs to, by its name."""
    if ".lora_" in name:
        return LORA
    return next((part for part, starts in PARTS.items() if name.startswith(starts)), REST)


def set_up(model: Lavida, trained: Collection[str], *, masks: int, freeze: Collection[str] = ()) -> None:
    """Make a model ready to train: adapters added, everything else frozen, the decoder's choice of mask settled.

    Args:
        model: changed in place; new adapters are drawn from torch's current generator.
        trained: names of parts.
        masks: 3 trains the decoder's three masks as the paper does, which suits a decoder whose single mask is trained already;
            1 trains the single one, and from then on it alone is read.
        freeze: dotted names of modules that stay as they are though their part is trained.

    Raises:
        UsageError: no such part or module, or both `lora` and the whole language model.
    """
    unknown = sorted(set(trained) - {*PARTS, LORA})
    if unknown:
        raise UsageError(f"LAVIDA has no part {unknown[0]!r} to train", hint=f"choose among {', '.join((*PARTS, LORA))}")
    if LORA in trained and "language_model" in trained:
        raise UsageError("lora and language_model can't both be trained", hint="leave one of them out of `train`")
    if LORA in trained:
        add_adapters(model)
    for name, value in model.named_parameters():
        value.requires_grad_(part_of(name) in trained)
    modules = dict(model.named_modules())
    for name in freeze:
        if name not in modules:
            raise UsageError(f"LAVIDA has no module {name!r} to freeze", hint="name one like projector.frame_semantics")
        modules[name].requires_grad_(False)
    if masks == 1:
        use_single_mask(model)


def set_precision(model: Lavida, dtype: torch.dtype) -> None:
    """Keep what is trained in fp32, and the rest of what scoring reads in `dtype`; buffers stay as they are."""
    for name, value in model.named_parameters():
        if value.requires_grad or part_of(name) != REST:
            value.data = value.data.to(torch.float32 if value.requires_grad else dtype)


def add_adapters(model: Lavida) -> None:
    """Give the language model low-rank adapters as its config's `lora` says, drawn from torch's current generator.

    Raises:
        UsageError: peft isn't installed.
    """
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


def use_single_mask(model: Lavida) -> None:
    """Let the decoder's single mask stand, stable or not: right where the other three were never trained."""
    sam2 = model.masks.sam2  # type: ignore[attr-defined]
    sam2.mask_decoder.dynamic_multimask_via_stability = False
    sam2.config.mask_decoder_config.dynamic_multimask_via_stability = False


def compress_by(model: Lavida, ratio: float) -> None:
    """Set the compression that a model is trained and stored with."""
    model.config = replace(model.config, compression=replace(model.config.compression, ratio=ratio))


def checkpoint_activations(model: Lavida) -> None:
    """Let the language model's layers compute their activations again on the way back instead of keeping them."""
    qwen, how = model.mllm.qwen, {"use_reentrant": False}
    if hasattr(qwen, "activation_checkpointing_enable"):  # its name since transformers 5.23
        qwen.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:
        qwen.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What is trained, in the model's order; a tensor that two names share comes once, by the first."""
    yield from ((name, value) for name, value in model.named_parameters() if value.requires_grad)


ADAPTER_FILE = "adapter_model.safetensors"
STATE = "state.json"
OWN_PARTS = ("projector", "sight", "pooling")
"""What no base model has, so that a LAVIDA folder's own part is never without it."""


@dataclass(frozen=True)
class TrainerState:
    """Where a training stands.

    Attributes:
        step: steps done.
        best: highest validation figure so far; None before the first.
        best_step: after which step that was.
        waited: validations since.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    waited: int = 0


def save_trained(model: Lavida, folder: Path) -> None:
    """Write what is trained and nothing else: `lavida.safetensors` and, where there are adapters, lora/.

    What no base model has is written in any case: a LAVIDA folder's own part is never without it.
    """
    own, adapters = _trained(model)
    folder.mkdir(parents=True, exist_ok=True)
    _save(own, folder / OWN, {"trained": "true"})
    if adapters:
        (folder / ADAPTERS).mkdir(exist_ok=True)
        rule = model.mllm.qwen.peft_config["default"]
        document = {key: _plain(value) for key, value in sorted(rule.to_dict().items())}
        (folder / ADAPTERS / "adapter_config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        _save(adapters, folder / ADAPTERS / ADAPTER_FILE, {"format": "pt"})
    weights.share(folder)


@torch.no_grad()
def load_trained(model: Lavida, folder: Path) -> None:
    """Put what `save_trained` wrote back into a model that is set up to train the same.

    Raises:
        DocumentError: the files are damaged or of another training.
    """
    own, adapters = _trained(model)
    for path, tensors in ((folder / OWN, own), (folder / ADAPTERS / ADAPTER_FILE, adapters)):
        if tensors:
            found = _load(path)
            strange = sorted(set(found) ^ set(tensors)) or [
                name for name in tensors if tensors[name].shape != found[name].shape
            ]
            if strange:
                raise DocumentError(f"{path}: {strange[0]!r} doesn't fit", hint="was it trained by another recipe?")
            for name, value in tensors.items():
                value.copy_(found[name])


def write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder that appears under its name when it is done; one of that name is replaced.

    Raises:
        OutputError: no space, no permission.
    """
    temporary, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old"))
    try:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        _sync(temporary)
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise output_error(folder, error) from error


class Checkpoints:
    """The checkpoints of one training, newest last; all but the newest few are removed.

    Args:
        folder: of all of them.
        keep: how many.
        identity: what must be the same for a training to go on: fingerprints of recipe and data.
    """

    def __init__(self, folder: Path, *, keep: int, identity: Mapping[str, str]) -> None:
        self.folder, self.keep, self.identity = folder, keep, dict(identity)

    def all(self) -> list[Path]:
        """Those that are whole."""
        return sorted(path for path in self.folder.glob("step-*") if (path / STATE).is_file())

    def save(self, model: Lavida, optimizer: Any, *, progress: TrainerState, random: Tensor, scaler: Mapping[str, Any]) -> None:
        """Write one, and remove the oldest.

        Args:
            model: what is trained of it.
            optimizer: a torch AdamW over `trained_parameters` in their order.
            progress: where the training stands.
            random: (processes, N) uint8 from `random_state`.
            scaler: the fp16 loss scale's state; empty where there is none.
        """

        def write(folder: Path) -> None:
            save_trained(model, folder)
            _save(_moments(model, optimizer), folder / "optimizer.safetensors", {})
            _save({"random": random}, folder / "random.safetensors", {})
            document = {"progress": asdict(progress), "scaler": dict(scaler), **self.identity}
            (folder / STATE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

        write_whole(self.folder / f"step-{progress.step:08d}", write)
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def load(self, model: Lavida, optimizer: Any) -> tuple[TrainerState, Tensor, dict[str, Any]] | None:
        """Put the newest one back; None where there is none.

        Returns:
            Where the training stands, the generators' states, the loss scale's state.

        Raises:
            DocumentError: it is damaged, or of another recipe or data.
        """
        found = self.all()
        if not found:
            return None
        path = found[-1]
        try:
            document = json.loads((path / STATE).read_text(encoding="utf-8"))
            progress = TrainerState(**document["progress"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DocumentError(f"{path / STATE}: can't be read: {error}", hint="remove this checkpoint") from error
        for name, value in self.identity.items():
            if document.get(name) != value:
                hint = "train into another folder, or go on with what it was begun with"
                raise DocumentError(f"{path}: was begun with another {name}", hint=hint)
        load_trained(model, path)
        _put_moments(model, optimizer, _load(path / "optimizer.safetensors"))
        return progress, _load(path / "random.safetensors")["random"], dict(document["scaler"])


def random_state(device: torch.device) -> Tensor:
    """(N,) uint8 of this process's generators: torch's own, and the GPU's where there is one."""
    parts = [torch.get_rng_state()]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device))
    return torch.cat(parts)


def set_random_state(state: Tensor, device: torch.device) -> None:
    """The inverse of `random_state`."""
    own = len(torch.get_rng_state())
    torch.set_rng_state(state[:own].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[own:].clone(), device)


def _trained(model: Lavida) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors by the names of the model's state dict, and those of its adapters by peft's."""
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


def _moments(model: Lavida, optimizer: Any) -> dict[str, Tensor]:
    found = {}
    for name, value in trained_parameters(model):
        for key, moment in optimizer.state.get(value, {}).items():
            found[f"{key}/{name}"] = moment
    return found


def _put_moments(model: Lavida, optimizer: Any, moments: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    places = {name: place for place, (name, _) in enumerate(trained_parameters(model))}
    for key, moment in moments.items():
        kind, _, name = key.partition("/")
        if name not in places:
            raise DocumentError(f"the optimizer's {name!r} isn't trained", hint="was it trained by another recipe?")
        state.setdefault(places[name], {})[kind] = moment
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, metadata=metadata)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DocumentError(f"{path}: can't be read: {error}", hint="remove this checkpoint") from error
    return found


def _plain(value: Any) -> Any:
    """A JSON value of one of peft's options; sets in order, so that the same adapters give the same bytes."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)


def _sync(folder: Path) -> None:
    """See that what was written is on the disk before it gets its name."""
    for path in [*folder.rglob("*"), folder]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
