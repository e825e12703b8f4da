"""What a training keeps on disk: what is trained, and where it stands, so that it goes on as if it had never stopped.

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
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vadcli import weights
from vadcli.detectors.lavida.checkpoint import ADAPTERS, OWN
from vadcli.detectors.lavida.model import Lavida
from vadcli.errors import DocumentError
from vadcli.outputs.atomic import output_error
from vadcli.train.parts import LORA, part_of, trained_parameters

ADAPTER_FILE = "adapter_model.safetensors"
STATE = "state.json"
OWN_PARTS = ("projector", "sight", "pooling")
"""What no base model has, so that a LAVIDA folder's own part is never without it."""


@dataclass(frozen=True)
class Progress:
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

    def save(self, model: Lavida, optimizer: Any, *, progress: Progress, random: Tensor, scaler: Mapping[str, Any]) -> None:
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

    def load(self, model: Lavida, optimizer: Any) -> tuple[Progress, Tensor, dict[str, Any]] | None:
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
            progress = Progress(**document["progress"])
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
