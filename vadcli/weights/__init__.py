"""The weights that vadcli knows, where they lie on this machine, and whether they are what they should be.

A LAVIDA folder (what `--model` names) holds config.json, the transformers folders mllm/, text/ and sam2/, the own part
lavida.safetensors, perhaps a PEFT adapter in lora/, and checksums.json. `entries` is what exists by name, `checksums` holds
files against their hashes, `hub` fetches public base models, `folders` finds LAVIDA folders. Nothing here builds a model.

The manifest carries no hash, size or commit that nobody has checked. The first pull therefore takes what the hub itself
declares (the resolved commit, sizes, SHA-256 of large files, git object ids of small ones), holds the download against that
and pins it in a lock file: later pulls and verifications mean those very bytes. Only safetensors, JSON and text are fetched,
never a pickle. Nothing here but `pull` touches the network, and no scan calls it.

LAVIDA folders on this machine: found by path or name, looked over, listed. Nothing is loaded or fetched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vadcli
from vadcli.errors import WeightsError
from vadcli.weights.checksums import (
    CHECKSUMS_NAME,
    FileSum,
    Header,
    Verified,
    file_names,
    fingerprint,
    read_header,
    read_json,
    refuse_pickles,
    share_file,
    verify,
    write_checksums,
)
from vadcli.weights.entries import Entry, entry, home, manifest
from vadcli.weights.hub import Pulled, base_folder, pull, read_lock, verify_pulled

__all__ = [
    "CHECKSUMS_NAME",
    "Entry",
    "FileSum",
    "Header",
    "Pulled",
    "Verified",
    "WeightsStatus",
    "base_folder",
    "check_folder",
    "entry",
    "find",
    "fingerprint",
    "home",
    "is_trained",
    "locate",
    "manifest",
    "pull",
    "read_header",
    "refuse_pickles",
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
    "or use --detector motion"
)


@dataclass(frozen=True)
class WeightsStatus:
    """One line of `vadcli weights list`.

    Attributes:
        name: the manifest's, or that of a folder under `home()`.
        kind: base or lavida.
        folder: where it lies; None where it is not here.
        trained: of a LAVIDA folder that is here; None else.
        bytes: size of what is here; None where it is not.
        commit: of a base model that was pulled.
        entry: the manifest's entry, if it has one.
        trouble: why what is here can't be used; empty where it can.
    """

    name: str
    kind: str
    folder: Path | None
    trained: bool | None = None
    bytes: int | None = None
    commit: str | None = None
    entry: Entry | None = None
    trouble: str = ""

    @property
    def state(self) -> str:
        """One word: damaged, absent, here, trained or untrained."""
        if self.trouble:
            return "damaged"
        if self.folder is None:
            return "absent"
        return "here" if self.trained is None else "trained" if self.trained else "untrained"

    def to_json(self) -> dict[str, Any]:
        """As `vadcli weights list --json` prints it; the manifest's fields where there is an entry."""
        known = self.entry
        return {
            "name": self.name,
            "kind": self.kind,
            "state": self.state,
            "folder": str(self.folder) if self.folder else None,
            "bytes": self.bytes,
            "commit": self.commit,
            "trouble": self.trouble or None,
            "repo_id": known.repo_id or None if known else None,
            "licence": known.licence if known else None,
            "purpose": known.purpose if known else None,
            "download_gb": known.download_gb if known else None,
            "parts": dict(known.parts) if known else {},
            "published": known.published if known else None,
            "note": known.note or None if known else None,
        }


def locate(model: str) -> Path:
    """The LAVIDA folder that `--model` names: a path > a name under `home()` > a name in the checkout or the package.

    Args:
        model: an existing folder, anything with a path separator, or a name.

    Raises:
        WeightsError: it is not there, or what is there is no LAVIDA folder that can be loaded.
    """
    known = manifest().get(model)
    if known is not None and known.kind == "base" and not Path(model).is_dir():
        hint = f"build a LAVIDA folder of it: `vadcli weights import`; it is {known.purpose}"
        raise WeightsError(f"{model}: a base model, not a LAVIDA folder", hint=hint)
    folder = find(model)
    check_folder(folder)
    return folder


def share(folder: Path) -> None:
    """Let those read a folder's tensors who may read the folder: safetensors writes files for their owner alone.

    Files that have another name elsewhere too stay as they are: they are somebody else's.
    """
    for path in folder.rglob("*.safetensors"):
        if not path.is_symlink() and path.stat().st_nlink == 1:
            share_file(path, path.parent)


def find(name: str) -> Path:
    """The folder that a path or any name stands for, base models included; what is in it is not looked at.

    Raises:
        WeightsError: it is not on this machine.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if os.sep in name or (os.altsep and os.altsep in name) or name.startswith("~"):
        raise WeightsError(f"{name}: there is no such folder", hint=MAKE_ONE)
    known = manifest().get(name)
    if known is not None and known.kind == "base":
        cached = base_folder(name)
        if cached is None:
            raise WeightsError(f"{name}: not on this machine, or not whole", hint=f"run `vadcli weights pull {name}`")
        return cached
    found = next((folder for folder in _candidates(name) if folder.is_dir()), None)
    if found is not None:
        return found
    if known is not None:
        raise WeightsError(
            f"{name}: not on this machine; {known.note}", hint="or use --detector motion, which needs no weights"
        )
    names = [*(item.name for item in manifest().values() if item.kind == "lavida"), *_own_names()]
    raise WeightsError(f"no LAVIDA weights are called {name!r}; known: {', '.join(names)}", hint=MAKE_ONE)


def is_trained(folder: Path) -> bool:
    """Whether the folder's own part was trained: its config.json and the file itself both have to say so.

    Raises:
        WeightsError: there is no readable config.json, or the own part's header is damaged.
    """
    if _config(folder).get("trained") is not True or not (folder / OWN_NAME).is_file():
        return False
    return read_header(folder / OWN_NAME).metadata.get("trained") == "true"


def check_folder(folder: Path) -> None:
    """Look over a LAVIDA folder without loading it: its config and parts are there, every safetensors header is sound.

    Raises:
        WeightsError: something is missing or damaged, or there is a pickle.
    """
    _config(folder)
    missing = [part for part in PARTS if not (folder / part / "config.json").is_file()]
    if missing:
        hint = "build the folder anew with `vadcli weights import`"
        raise WeightsError(
            f"{folder}: not a whole LAVIDA folder: {', '.join(f'{part}/' for part in missing)} missing", hint=hint
        )
    refuse_pickles(folder)


def status() -> list[WeightsStatus]:
    """Everything of the manifest, then what else lies under `home()`; cheap: no file is hashed."""
    found = [_base_status(item) if item.kind == "base" else _lavida_status(item.name, item) for item in manifest().values()]
    return [*found, *(_lavida_status(name, None) for name in _own_names())]


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        document = read_json(path)
    except FileNotFoundError as error:
        hint = "name the folder that `vadcli weights import` or `vadcli train` wrote"
        raise WeightsError(f"{folder}: not a LAVIDA folder: it has no config.json", hint=hint) from error
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{path}: can't be read: {error}", hint="build the folder anew with `vadcli weights import`"
        ) from error
    if "format_version" not in document:
        hint = "a transformers folder is one part of it: `vadcli weights import` puts them together"
        raise WeightsError(f"{folder}: not a LAVIDA folder: its config.json has no format_version", hint=hint)
    return document


def _candidates(name: str) -> Iterator[Path]:
    """Where a LAVIDA folder of that name may lie, the first first."""
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
    return [path.name for path in folders if path.name not in manifest() and (path / "config.json").is_file()]


def _base_status(item: Entry) -> WeightsStatus:
    try:
        lock, folder = read_lock(item), base_folder(item.name)
    except WeightsError as error:
        return WeightsStatus(item.name, item.kind, None, entry=item, trouble=error.message)
    size = _size(folder) if folder else None
    return WeightsStatus(item.name, item.kind, folder, bytes=size, commit=lock.commit if lock and folder else None, entry=item)


def _lavida_status(name: str, item: Entry | None) -> WeightsStatus:
    folder = next((folder for folder in _candidates(name) if folder.is_dir()), None)
    if folder is None:
        return WeightsStatus(name, "lavida", None, entry=item)
    try:
        check_folder(folder)
        return WeightsStatus(name, "lavida", folder, is_trained(folder), _size(folder), entry=item)
    except WeightsError as error:
        return WeightsStatus(name, "lavida", folder, entry=item, trouble=error.message)
    except OSError as error:
        trouble = f"{error.filename}: {error.strerror}"
        return WeightsStatus(name, "lavida", folder, entry=item, trouble=trouble)


def _size(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in file_names(folder))
