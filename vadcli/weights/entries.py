"""What weights there are by name: weights.toml as values, and the folder on this machine that LAVIDA folders lie in.

What huggingface_hub raises while it fetches, as one line and what to do about it.
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
    """One name of the manifest.

    Attributes:
        name: what `weights pull` and `--model` call it.
        kind: a public base model, or a LAVIDA folder.
        purpose: what it is for.
        licence: of the weights.
        repo_id: of the hub, base models only.
        revision: branch, tag or commit there; None is the repository's default branch.
        download_gb: what its files come to, rounded, for planning only; None where it isn't known.
        files: what is known for certain of its files beforehand.
        parts: of a LAVIDA folder: its sub-folder -> the base model behind it.
        published: of a LAVIDA folder: somebody has published trained weights.
        note: what else to know.
    """

    name: str
    kind: Literal["base", "lavida"]
    purpose: str
    licence: str
    repo_id: str = ""
    revision: str | None = None
    download_gb: float | None = None
    files: Mapping[str, FileSum] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    published: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("base", "lavida") or (self.kind == "base") != bool(self.repo_id):
            raise ValueError(f"{self.name}: a base model has a repository, a LAVIDA folder has none")


def home() -> Path:
    """Where LAVIDA folders and the locks of fetched base models lie: VADCLI_WEIGHTS, else the user's data directory."""
    from platformdirs import user_data_path

    named = os.environ.get(HOME_VARIABLE)
    return Path(named).expanduser() if named else user_data_path("vadcli") / "weights"


@cache
def manifest() -> dict[str, Entry]:
    """Every entry of weights.toml by name, in its order."""
    document = tomllib.loads(resources.files("vadcli").joinpath("weights.toml").read_text(encoding="utf-8"))
    return parse_manifest(document)


def parse_manifest(document: Mapping[str, Any]) -> dict[str, Entry]:
    """A manifest's entries; ValueError or TypeError where it is not one, KeyError where a part is no base entry."""
    if document.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"weights.toml has format_version {document.get('format_version')!r}, not {FORMAT_VERSION}")
    entries = {}
    for name, table in document.items():
        if name != "format_version":
            entries[name] = Entry(name, **{**table, "files": parse_sums(table.get("files", {}))})
    for item in entries.values():
        for part in item.parts.values():
            if entries[part].kind != "base":
                raise ValueError(f"{item.name}: its part {part} is no base model")
    return entries


def entry(name: str) -> Entry:
    """The manifest's entry of that name.

    Raises:
        WeightsError: there is none.
    """
    entries = manifest()
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        known = f"did you mean {near[0]}?" if near else f"known: {', '.join(entries)}"
        raise WeightsError(f"no weights are called {name!r}", hint=known)
    return entries[name]


DISK_FULL = ("No space left", "os error 28", "Disk quota exceeded")


@contextmanager
def one_line(item: Entry) -> Iterator[None]:
    """Turn the errors of the block, which fetches `item`, into vadcli's own.

    Raises:
        WeightsError: the repository or revision is not there, or not open to this user.
        VadcliError: no network, a hub in trouble, no space left.
    """
    from huggingface_hub import errors

    where = f"{item.name}: {item.repo_id}"
    later = "what has arrived is kept; run the same command again to go on"
    try:
        yield
    except VadcliError:
        raise
    except errors.GatedRepoError as error:
        hint = f"accept its terms at https://huggingface.co/{item.repo_id} and log in with `hf auth login`"
        raise WeightsError(f"{where} is open only to those who asked for access", hint=hint) from error
    except errors.RepositoryNotFoundError as error:
        hint = "it may have moved or be private: log in with `hf auth login`, or name a local folder to `weights import`"
        raise WeightsError(f"{where}: the hub has no such repository", hint=hint) from error
    except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        raise WeightsError(f"{where}: the pinned revision is gone from the hub", hint="take the newest: --update") from error
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
        hint = f"check the network, or HF_ENDPOINT where you use a mirror; {later}"
        raise VadcliError(f"{where}: can't be fetched: {text[:200] or type(error).__name__}", hint=hint) from error
