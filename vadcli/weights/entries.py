"""The manifest of known weights (weights.toml), and the folder for weights on this machine.

`one_line` turns the errors of huggingface_hub into short messages with advice.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from vadcli.errors import VadcliError, WeightsError
from vadcli.weights.checksums import FileSum, parse_sums

HOME_VARIABLE = "VADCLI_WEIGHTS"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One entry of the manifest.

    Attributes:
        name: the main name in `weights pull` and `--model`.
        kind: a public base model, an image-text encoder (for the detector `concept`), or a LAVIDA folder.
        purpose: what the weights are for.
        licence: the licence of the weights.
        repo_id: repository on the hub; empty for a LAVIDA folder.
        revision: branch, tag or commit in this repository; None means its default branch.
        download_gb: rounded total size of the files in GB, only to inform users; None if unknown.
        files: name -> hash and size, for files whose hash is known before a pull.
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
    """Return the folder that contains the LAVIDA folders and the lock files of fetched base models.

    The environment variable VADCLI_WEIGHTS names it. Without the variable, it is in the user's data directory.
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


DISK_FULL = ("No space left", "os error 28", "Disk quota exceeded")


@contextmanager
def one_line(item: Entry) -> Iterator[None]:
    """Turn errors of the `with` block into vadcli's own errors. The block fetches `item`.

    Raises:
        WeightsError: the repository or revision does not exist, or this user has no access to it.
        VadcliError: the network does not work, the hub has a problem, or the disk is full.
    """
    from huggingface_hub import errors

    where = f"{item.name}: {item.repo_id}"
    later = "the files fetched so far are kept; run the same command again to continue"
    try:
        yield
    except VadcliError:
        raise
    except errors.GatedRepoError as error:
        hint = f"accept its terms at https://huggingface.co/{item.repo_id} and log in with `hf auth login`"
        raise WeightsError(f"{where}: you need to ask for access to this repository", hint=hint) from error
    except errors.RepositoryNotFoundError as error:
        hint = "it may have moved or be private: log in with `hf auth login`, or give `weights import` a local folder"
        raise WeightsError(f"{where}: the hub has no such repository", hint=hint) from error
    except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        raise WeightsError(
            f"{where}: the hub no longer has the pinned revision", hint="use --update to get the newest"
        ) from error
    except errors.HfHubHTTPError as error:
        raise VadcliError(f"{where}: the hub answered {error.response.status_code}", hint=later) from error
    except Exception as error:
        text = " ".join(str(error).split())
        if any(words in text for words in DISK_FULL) or getattr(error, "errno", None) in (28, 122):
            hint = f"free space, or set HF_HOME to a folder on a larger disk; {later}"
            raise VadcliError(f"{where}: no space left on the device", hint=hint) from error
        if isinstance(error, PermissionError):
            raise VadcliError(f"{error.filename}: {error.strerror}", hint="set HF_HOME to a folder you can write to") from error
        library = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError | RuntimeError | ValueError) and not library.startswith("httpx"):
            raise
        hint = f"check the network, or HF_ENDPOINT if you use a mirror; {later}"
        raise VadcliError(f"{where}: can't be fetched: {text[:200] or type(error).__name__}", hint=hint) from error
