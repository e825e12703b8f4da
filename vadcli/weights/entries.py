"""The manifest of known weights (weights.toml), and the folder for weights on this machine."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from vadcli.errors import WeightsError
from vadcli.weights.checksums import FileSum, parse_sums

HOME_VARIABLE = "VADCLI_WEIGHTS"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One entry of the manifest.

    Attributes:
        name: the main name in `weights pull` and `--model`.
        kind: a public base model, an image-text encoder (for the detector `concept`), or a LAVIDA folder.
        purpose: use of the weights, in words.
        licence: the licence of the weights.
        repo_id: repository on the hub; empty for a LAVIDA folder.
        revision: branch, tag or commit in this repository; None means its default branch.
        download_gb: rounded total size of the files in GB, only to inform users; None if unknown.
        files: file name -> hash and size, for files whose hash is known before a pull.
        parts: LAVIDA folders only: sub-folder -> name of its base model.
        aliases: other names of the same files.
        published: LAVIDA folders only: whether somebody has published trained weights.
        note: other information for the user.
    """

    name: str
    kind: Literal["base", "encoder", "lavida"]
    purpose: str
    licence: str
    repo_id: str = ""
    revision: str | None = None
    download_gb: float | None = None
    files: Mapping[str, FileSum] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    published: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("base", "encoder", "lavida") or (self.kind == "lavida") == self.on_hub:
            raise ValueError(f"{self.name}: a base model or encoder needs a repo_id, and a LAVIDA folder must not have one")

    @property
    def on_hub(self) -> bool:
        """True if `weights pull` fetches the entry's files from one repository of the hub."""
        return bool(self.repo_id)

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the entry, the main one first."""
        return (self.name, *self.aliases)


def home() -> Path:
    """Return the folder of the LAVIDA folders and of the lock files of fetched base models.

    It is the value of the environment variable VADCLI_WEIGHTS, or by default a folder in the user's data directory.
    """
    from platformdirs import user_data_path

    named = os.environ.get(HOME_VARIABLE)
    return Path(named).expanduser() if named else user_data_path("vadcli") / "weights"


@cache
def manifest() -> dict[str, Entry]:
    """Return all entries of weights.toml by name, in the order of the file."""
    document = tomllib.loads(resources.files("vadcli").joinpath("weights.toml").read_text(encoding="utf-8"))
    return parse_manifest(document)


def parse_manifest(document: Mapping[str, Any]) -> dict[str, Entry]:
    """Return the entries of a parsed manifest by their main names.

    Raises:
        ValueError, TypeError: the document is not a manifest, a part is not on the hub, or two
            entries have the same name or repository.
        KeyError: a part is not in the manifest, or a file has no hash or no size.
    """
    if document.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"weights.toml has format_version {document.get('format_version')!r}, not {FORMAT_VERSION}")
    entries = {}
    for name, table in document.items():
        if name != "format_version":
            own = {"files": parse_sums(table.get("files", {})), "aliases": tuple(table.get("aliases", ()))}
            entries[name] = Entry(name, **{**table, **own})
    for what, found in (
        ("name", [name for item in entries.values() for name in item.names]),
        ("repository", [item.repo_id for item in entries.values() if item.on_hub]),
    ):
        if twice := next((value for value in found if found.count(value) > 1), None):
            raise ValueError(f"two entries have the {what} {twice}: make one an alias of the other")
    for item in entries.values():
        for part in item.parts.values():
            if not entries[part].on_hub:
                raise ValueError(f"{item.name}: its part {part} is not a base model")
    return entries


def known(name: str) -> Entry | None:
    """Return the entry with that name or alias; None if no entry has it."""
    return next((item for item in manifest().values() if name in item.names), None)


def nearest(name: str) -> str | None:
    """Return the name in the manifest that is most similar to a misspelt name; None if no name is similar."""
    names = [one for item in manifest().values() for one in item.names]
    return next(iter(difflib.get_close_matches(name, names, n=1)), None)


def entry(name: str) -> Entry:
    """Return the entry with that name or alias.

    Raises:
        WeightsError: no entry has this name.
    """
    found = known(name)
    if found is None:
        hint = f"did you mean {near}?" if (near := nearest(name)) else f"known: {', '.join(manifest())}"
        raise WeightsError(f"no weights are called {name!r}", hint=hint)
    return found
