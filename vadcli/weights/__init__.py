"""Finds, lists, checks and fetches weights. It builds no model.

This file finds and checks LAVIDA folders (the value of `--model`; `vadcli.detectors.lavida.checkpoint` lists the files in such
a folder). `files` reads the manifest of known weights and compares files with their hashes. `hub` fetches, finds and deletes
public base models and encoders.

The first pull compares the files with the sizes and hashes on the hub. It writes the commit and the hashes to a lock file.
Later pulls and checks require the same bytes. Only safetensors, JSON and text files are fetched, never a pickle. Only `pull`
uses the network, and a scan never calls it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vadcli
from vadcli.errors import WeightsError
from vadcli.types.text import did_you_mean, no_folder
from vadcli.weights.files import (
    CHECKSUMS_NAME,
    Entry,
    FileSum,
    Header,
    Verified,
    all_names,
    entry,
    file_names,
    fingerprint,
    home,
    known,
    looks_like_path,
    manifest,
    read_header,
    read_json,
    refuse_pickles,
    share_file,
    verify,
    write_checksums,
)
from vadcli.weights.hub import Pulled, Removed, base_folder, pull, pulled_folder, read_lock, remove, verify_pulled

__all__ = [
    "CHECKSUMS_NAME",
    "Entry",
    "FileSum",
    "Header",
    "Pulled",
    "Removed",
    "Verified",
    "WeightsStatus",
    "base_folder",
    "check_lavida_folder",
    "entry",
    "find",
    "fingerprint",
    "home",
    "is_toy",
    "is_trained",
    "known",
    "locate",
    "manifest",
    "pull",
    "pulled_folder",
    "read_header",
    "refuse_pickles",
    "remove",
    "share",
    "status",
    "verify",
    "verify_pulled",
    "write_checksums",
]


PARTS = ("mllm", "text", "sam2")
OWN_NAME = "lavida.safetensors"
MAKE_ONE = (
    "no public LAVIDA checkpoint exists yet: build one with `vadcli weights import` and train it with `vadcli train`, "
    "or use the detector motion"
)


@dataclass(frozen=True)
class WeightsStatus:
    """One line of `vadcli weights list`.

    Attributes:
        name: a name in the manifest, or the name of a folder under `home()`.
        kind: base, encoder or lavida.
        folder: the folder of the weights; None if they are not on this machine.
        trained: True if a LAVIDA folder is trained; None for other weights, and if the folder is absent.
        bytes: size on this machine; None if the weights are not on this machine.
        commit: the commit of a base model that was pulled.
        entry: the entry in the manifest; None if the weights are not in the manifest.
        trouble: why the weights cannot be used; empty if they can be used.
        is_toy: True if a LAVIDA folder was trained only on the synthetic world.
    """

    name: str
    kind: str
    folder: Path | None
    trained: bool | None = None
    bytes: int | None = None
    commit: str | None = None
    entry: Entry | None = None
    trouble: str = ""
    is_toy: bool = False

    @property
    def state(self) -> str:
        """The status: "damaged", "absent", "trained", "toy", "untrained", or "here" for weights other than LAVIDA's."""
        if self.trouble:
            return "damaged"
        if self.folder is None:
            return "absent"
        if self.trained is None:
            return "here"
        return "untrained" if not self.trained else "toy" if self.is_toy else "trained"

    def to_json(self) -> dict[str, Any]:
        """Return the object that `vadcli weights list --json` prints.

        If the manifest does not list the weights, the fields that come from the manifest are null.
        """
        listed = self.entry
        return {
            "name": self.name,
            "aliases": list(listed.aliases) if listed else [],
            "kind": self.kind,
            "state": self.state,
            "folder": str(self.folder) if self.folder else None,
            "bytes": self.bytes,
            "commit": self.commit,
            "trouble": self.trouble or None,
            "repo_id": listed.repo_id or None if listed else None,
            "licence": listed.licence if listed else None,
            "purpose": listed.purpose if listed else None,
            "download_gb": listed.download_gb if listed else None,
            "parts": dict(listed.parts) if listed else {},
            "published": listed.published if listed else None,
            "note": listed.note or None if listed else None,
        }


def locate(model: str) -> Path:
    """Return the LAVIDA folder that `--model` names.

    Args:
        model: a path (if the text contains a path separator) or the name of a folder. The folder with
            this name is searched under `home()`, then in the checkout of vadcli, then in the package.

    Raises:
        WeightsError: the folder does not exist, or it is not a complete LAVIDA folder.
    """
    item = known(model)
    if item is not None and item.on_hub and not Path(model).is_dir():
        if item.kind == "encoder":
            hint = f"the detector `concept` uses it: --detector concept --encoder {item.name}"
            raise WeightsError(f"{model}: this is an encoder, not a LAVIDA folder", hint=hint)
        hint = f"it is {item.purpose}; `--detector ask` uses Qwen2-VL, and `vadcli weights import` builds a LAVIDA folder"
        raise WeightsError(f"{model}: this is a base model, not a LAVIDA folder", hint=hint)
    folder = find(model)
    check_lavida_folder(folder)
    return folder


def share(folder: Path) -> None:
    """Make the safetensors files of a folder readable for everyone who may read the folder.

    The library `safetensors` writes files that only their owner can read. Symbolic links and files with
    several hard links are not changed, because somebody else may use them.
    """
    for path in folder.rglob("*.safetensors"):
        if not path.is_symlink() and path.stat().st_nlink == 1:
            share_file(path, path.parent)


def find(name: str) -> Path:
    """Return the folder with this path or name: a LAVIDA folder, a base model or an encoder.

    A base model or an encoder must be complete. A LAVIDA folder is not checked.

    Raises:
        WeightsError: the folder is not on this machine, or a base model or encoder is not complete.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if looks_like_path(name):
        raise WeightsError(f"{name}: {no_folder(path)}", hint=MAKE_ONE)
    item = known(name)
    if item is not None and item.on_hub:
        return pulled_folder(name)
    folder = next((folder for folder in _candidates(name) if folder.is_dir()), None)
    if folder is not None:
        return folder
    if item is not None:
        raise WeightsError(f"{name}: not on this machine; {item.note}", hint="or use the detector motion: it needs no weights")
    names = [*(item.name for item in manifest().values() if item.kind == "lavida"), *_own_names()]
    hint = did_you_mean(name, all_names()) or MAKE_ONE
    raise WeightsError(f"no LAVIDA weights are called {name!r}; known: {', '.join(names)}", hint=hint)


def is_trained(folder: Path) -> bool:
    """Return True if both config.json and lavida.safetensors state that the weights are trained.

    Raises:
        WeightsError: config.json cannot be read, or the header of lavida.safetensors is damaged.
    """
    if _config(folder).get("trained") is not True or not (folder / OWN_NAME).is_file():
        return False
    return read_header(folder / OWN_NAME).metadata.get("trained") == "true"


def is_toy(folder: Path) -> bool:
    """Return True if config.json states that the weights were trained only on the synthetic world.

    Raises:
        WeightsError: config.json cannot be read.
    """
    try:
        stages = _config(folder)["sources"]["training"]
        return {str(data["name"]) for stage in stages for data in stage["recipe"]["data"]} == {"synthetic"}
    except (KeyError, TypeError):
        return False


def check_lavida_folder(folder: Path) -> None:
    """Check the config, the parts and all safetensors headers of a LAVIDA folder. Loads no tensors.

    Raises:
        WeightsError: something is missing or damaged, or the folder contains a pickle.
    """
    _config(folder)
    missing = [part for part in PARTS if not (folder / part / "config.json").is_file()]
    if missing:
        hint = "build the folder again with `vadcli weights import`"
        raise WeightsError(
            f"{folder}: incomplete LAVIDA folder: {', '.join(f'{part}/' for part in missing)} missing", hint=hint
        )
    refuse_pickles(folder)


def status() -> list[WeightsStatus]:
    """Return the status of all weights in the manifest, then of the other folders under `home()`.

    Does not hash the files.
    """
    statuses = []
    for item in manifest().values():
        if not item.on_hub:
            statuses.append(_lavida_status(item.name, item))
            continue
        try:
            lock, folder = read_lock(item), base_folder(item.name)
        except WeightsError as error:
            statuses.append(WeightsStatus(item.name, item.kind, None, entry=item, trouble=error.message))
            continue
        size, commit = (_size(folder), lock.commit if lock else None) if folder else (None, None)
        statuses.append(WeightsStatus(item.name, item.kind, folder, bytes=size, commit=commit, entry=item))
    return [*statuses, *(_lavida_status(name, None) for name in _own_names())]


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        document = read_json(path)
    except FileNotFoundError as error:
        hint = "name the folder that `vadcli weights import` or `vadcli train` wrote"
        raise WeightsError(f"{folder}: not a LAVIDA folder: it has no config.json", hint=hint) from error
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{path}: can't be read: {error}", hint="build the folder again with `vadcli weights import`"
        ) from error
    if "format_version" not in document:
        hint = "if this is a transformers folder: `vadcli weights import` builds a LAVIDA folder from such parts"
        raise WeightsError(f"{folder}: not a LAVIDA folder: its config.json has no format_version", hint=hint)
    return document


def _candidates(name: str) -> Iterator[Path]:
    """Yield the paths where a LAVIDA folder with this name can be, the preferred path first."""
    yield home() / name
    package = Path(vadcli.__file__).parent
    if (package.parent / "pyproject.toml").is_file():
        yield package.parent / "weights" / name
    yield package / "weights" / name


def _own_names() -> list[str]:
    try:
        folders = sorted(path for path in home().iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []
    return [path.name for path in folders if known(path.name) is None and (path / "config.json").is_file()]


def _lavida_status(name: str, item: Entry | None) -> WeightsStatus:
    folder = next((folder for folder in _candidates(name) if folder.is_dir()), None)
    if folder is None:
        return WeightsStatus(name, "lavida", None, entry=item)
    try:
        check_lavida_folder(folder)
        return WeightsStatus(name, "lavida", folder, is_trained(folder), _size(folder), entry=item, is_toy=is_toy(folder))
    except WeightsError as error:
        return WeightsStatus(name, "lavida", folder, entry=item, trouble=error.message)
    except OSError as error:
        trouble = f"{error.filename}: {error.strerror}"
        return WeightsStatus(name, "lavida", folder, entry=item, trouble=trouble)


def _size(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in file_names(folder))
