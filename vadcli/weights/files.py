"""Reads the manifest of known weights (weights.toml), and checks hashes and headers of their files.

Loads no tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from vadcli.errors import WeightsError
from vadcli.types.text import did_you_mean, no_folder

HOME_VARIABLE = "VADCLI_WEIGHTS"
FORMAT_VERSION = 1
CHECKSUMS_NAME = "checksums.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
HEADER_LENGTH_BYTES = 8
MAX_JSON_BYTES = 64_000_000
PICKLE = re.compile(rb"PK\x03\x04|\x80[\x02-\x05][^\x00]")  # the first bytes of torch's zip files and of plain pickles
LFS_MAGIC = b"version "


@dataclass(frozen=True)
class FileSum:
    """The expected hash and length of a file.

    Attributes:
        sha256: SHA-256 of the file, as 64 lower-case hex digits.
        bytes: the length of the file in bytes.
    """

    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        if len(self.sha256) != 64 or not set(self.sha256) <= set("0123456789abcdef") or self.bytes < 0:
            raise ValueError(f"not a SHA-256 and a size: {self.sha256!r}, {self.bytes!r}")

    def to_json(self) -> dict[str, Any]:
        """Return the file's entry in checksums.json."""
        return {"sha256": self.sha256, "bytes": self.bytes}


@dataclass(frozen=True)
class Verified:
    """The differences between a folder and its list of checksums. File names are relative, with `/`.

    Attributes:
        folder: the folder that was checked.
        checked: number of files in the list.
        missing: files of the list that do not exist.
        changed: files whose size or hash differs from the list.
        extra: files that are not in the list.
    """

    folder: Path
    checked: int
    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if no file is missing, changed or extra."""
        return not (self.missing or self.changed or self.extra)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `vadcli weights verify --json` prints."""
        return {
            "folder": str(self.folder),
            "ok": self.ok,
            "checked": self.checked,
            "missing": list(self.missing),
            "changed": list(self.changed),
            "extra": list(self.extra),
        }


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Attributes:
        metadata: the texts in the header, by key.
        tensors: the dtype (as safetensors names it) and the shape of each tensor; the keys are the names of the tensors.
    """

    metadata: Mapping[str, str]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]


def write_checksums(folder: Path) -> Path:
    """Hash every file of a folder, write checksums.json atomically and return its path.

    Raises:
        WeightsError: the folder has a pickle or a damaged safetensors file, see `refuse_pickles`.
    """
    refuse_pickles(folder)
    sums = {name: file_sum(folder / name) for name in file_names(folder)}
    path = folder / CHECKSUMS_NAME
    write_json(path, {name: item.to_json() for name, item in sums.items()})
    return path


def verify(folder: Path) -> Verified:
    """Return how the files of a folder differ from checksums.json; every file is hashed.

    Raises:
        WeightsError: checksums.json is missing or damaged. Also if no file differs, but the folder has a pickle or a damaged
            safetensors file, see `refuse_pickles`.
    """
    if not folder.is_dir():
        raise WeightsError(f"{folder}: {no_folder(folder)}", hint="`vadcli weights list` shows all weights")
    result = compare(folder, read_checksums(folder))
    if result.ok:
        refuse_pickles(folder)
    return result


def compare(folder: Path, listed: Mapping[str, FileSum], *, extras_matter: bool = True) -> Verified:
    """Return how the files of a folder differ from the listed hashes and sizes.

    Args:
        folder: the folder.
        listed: the expected hash and size of each file, by file name.
        extras_matter: True also reports files that are not listed.
    """
    missing, changed = [], []
    for name, item in listed.items():
        path = folder / name
        if not path.is_file():
            missing.append(name)
        elif path.stat().st_size != item.bytes or file_sum(path) != item:
            changed.append(name)
    extra = [name for name in file_names(folder) if name not in listed] if extras_matter else []
    return Verified(folder, len(listed), tuple(missing), tuple(changed), tuple(extra))


def fingerprint(folder: Path) -> str:
    """Return one SHA-256 over all files of a folder. The folder does not need a checksums.json.

    The hashes in checksums.json are used if this list fits the folder: the list has exactly the files of
    the folder, every size is right, and no file is newer than the list. Otherwise all files are hashed.
    """
    names = file_names(folder)
    try:
        listed = read_checksums(folder)
        written_ns = (folder / CHECKSUMS_NAME).stat().st_mtime_ns
        states = {name: (folder / name).stat() for name in listed}
        fits = set(listed) == set(names) and all(
            state.st_size == listed[name].bytes and state.st_mtime_ns <= written_ns for name, state in states.items()
        )
    except (WeightsError, OSError):
        listed, fits = {}, False
    if not fits:
        listed = {name: file_sum(folder / name) for name in names}
    sums = {name: item.sha256 for name, item in listed.items()}
    text = json.dumps(dict(sorted(sums.items())), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_checksums(folder: Path) -> dict[str, FileSum]:
    """Return the contents of the folder's checksums.json.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    path = folder / CHECKSUMS_NAME
    hint = "make the folder again: `vadcli weights import` and `vadcli train` write this file"
    if not path.is_file():
        raise WeightsError(f"{path}: missing, so the files can't be checked", hint=hint)
    try:
        return parse_sums(read_json(path))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: not a list of checksums", hint=hint) from error


def parse_sums(document: Mapping[str, Any]) -> dict[str, FileSum]:
    """Return checksums from parsed JSON.

    Raises:
        ValueError: a name points outside the folder, or a hash or size is not valid.
        KeyError, TypeError: an entry is not a hash and a size.
    """
    for name in document:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in name:
            raise ValueError(f"{name!r} is not a file of this folder")
    return {name: FileSum(str(item["sha256"]), int(item["bytes"])) for name, item in document.items()}


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file. Check the header and the file's length, but read no tensor.

    Raises:
        WeightsError: the file is missing, a pickle, a Git LFS pointer, damaged or cut short.
    """
    hint = "fetch or make it again; only safetensors are read"
    if path.exists() and not path.is_file():
        raise WeightsError(f"{path}: not a file", hint="name a .safetensors file")
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_LENGTH_BYTES)
        if PICKLE.match(start):
            raise WeightsError(f"{path}: a pickle file with the suffix .safetensors; pickles are not allowed", hint=hint)
        if start == LFS_MAGIC:
            raise WeightsError(f"{path}: a Git LFS pointer, not the weights themselves", hint=hint)
        with safe_open(path, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (`opened` is not a dict)
            tensors = {name: (str(item.get_dtype()), tuple(item.get_shape())) for name, item in slices.items()}
            return Header(opened.metadata() or {}, tensors)
    except OSError as error:
        raise WeightsError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except SafetensorError as error:
        reason = str(error).rpartition("deserializing header: ")[2]
        raise WeightsError(f"{path}: cut short, damaged or not a safetensors file: {reason}", hint=hint) from error


def refuse_pickles(folder: Path) -> None:
    """Check the names of all files of a folder, and the headers of all .safetensors files.

    Raises:
        WeightsError: a file may be a pickle, or a .safetensors file is damaged or has another format.
    """
    for name in file_names(folder):
        if name.lower().endswith(PICKLE_SUFFIXES):
            raise WeightsError(
                f"{folder / name}: may be a pickle, which runs code when loaded",
                hint="remove the file, or convert it to safetensors",
            )
        if name.endswith(".safetensors"):
            read_header(folder / name)


def file_names(folder: Path) -> list[str]:
    """Return the sorted, relative names of all files except checksums.json and hidden files.

    Links to folders are followed, except links to a folder above them.
    """

    def walk(here: Path, above: frozenset[Path]) -> Iterator[Path]:
        """Yield the files below `here`. Yield nothing if `here` is a link to a folder in `above`."""
        real = here.resolve()
        if real in above:
            return
        for path in here.iterdir():
            if path.name.startswith("."):
                continue
            if path.is_dir():
                yield from walk(path, above | {real})
            elif path.is_file() and path != folder / CHECKSUMS_NAME:
                yield path

    return sorted(path.relative_to(folder).as_posix() for path in walk(folder, frozenset()))


def file_sum(path: Path) -> FileSum:
    """Return the hash and length of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileSum(digest.hexdigest(), file.tell())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ValueError: the file is not a JSON object, is too large, or is nested too deeply.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: too large for a JSON file of weights")
    try:
        document = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError(f"{path}: the JSON is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: not a JSON object")
    return document


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    # No helper of `store` is used, because `weights` is on the same level.
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=".", suffix=".tmp", delete=False) as file:
        temporary = Path(file.name)
        try:
            json.dump(document, file, indent=2, ensure_ascii=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
            share_file(temporary, path.parent)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def share_file(path: Path, folder: Path) -> None:
    """Give a file the read and write permissions of `folder`. Do nothing if this user may not change them."""
    with suppress(OSError):
        path.chmod(folder.stat().st_mode & 0o666)


@dataclass(frozen=True)
class Entry:
    """One entry of the manifest.

    Attributes:
        name: the main name, for `weights pull` and `--model`.
        kind: a public base model, an image-text encoder (for the detector `concept`), or a LAVIDA folder.
        purpose: what the weights are used for.
        licence: the licence of the weights.
        repo_id: repository on the hub; empty for a LAVIDA folder.
        revision: branch, tag or commit in this repository; None means the default branch.
        download_gb: rounded total size of the files in GB, only for messages; None if unknown.
        files: the hash and size of each file whose hash is known before a pull; the keys are the file names.
        parts: LAVIDA folders only: the name of the base model in each sub-folder; the keys are the sub-folders.
        aliases: other names of the same files.
        published: LAVIDA folders only: True if somebody has published trained weights.
        note: more information for messages.
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
        """All names of the entry, the main name first."""
        return (self.name, *self.aliases)


def home() -> Path:
    """Return the folder that contains the LAVIDA folders, and the lock files of fetched base models.

    The environment variable VADCLI_WEIGHTS names this folder. The default is a folder in the user's data directory.
    """
    from platformdirs import user_data_path

    folder = os.environ.get(HOME_VARIABLE)
    return Path(folder).expanduser() if folder else user_data_path("vadcli") / "weights"


@cache
def manifest() -> dict[str, Entry]:
    """Return all entries of weights.toml by name, in the order of the file."""
    document = tomllib.loads(resources.files("vadcli").joinpath("weights.toml").read_text(encoding="utf-8"))
    return parse_manifest(document)


def parse_manifest(document: Mapping[str, Any]) -> dict[str, Entry]:
    """Return the entries of a parsed manifest; the keys are their main names.

    Raises:
        ValueError, TypeError: the document is not a manifest, a part of a LAVIDA folder is not on the
            hub, or two entries have the same name or repository.
        KeyError: a part of a LAVIDA folder is not in the manifest, or a file has no hash or no size.
    """
    if document.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"weights.toml has format_version {document.get('format_version')!r}, not {FORMAT_VERSION}")
    entries = {}
    for name, table in document.items():
        if name != "format_version":
            parsed = {"files": parse_sums(table.get("files", {})), "aliases": tuple(table.get("aliases", ()))}
            entries[name] = Entry(name, **{**table, **parsed})
    for what, values in (
        ("name", [name for item in entries.values() for name in item.names]),
        ("repository", [item.repo_id for item in entries.values() if item.on_hub]),
    ):
        if repeated := next((value for value in values if values.count(value) > 1), None):
            raise ValueError(f"two entries have the same {what}, {repeated}: make one entry an alias of the other")
    for item in entries.values():
        for part in item.parts.values():
            if not entries[part].on_hub:
                raise ValueError(f"{item.name}: its part {part} is not a base model")
    return entries


def known(name: str) -> Entry | None:
    """Return the entry with this name or alias; None if the manifest has no such entry."""
    return next((item for item in manifest().values() if name in item.names), None)


def all_names() -> list[str]:
    """Return all names and aliases in the manifest."""
    return [name for item in manifest().values() for name in item.names]


def entry(name: str) -> Entry:
    """Return the entry with this name or alias.

    Raises:
        WeightsError: the manifest has no such entry.
    """
    item = known(name)
    if item is None:
        hint = did_you_mean(name, all_names()) or f"known: {', '.join(manifest())}"
        raise WeightsError(f"no weights are called {name!r}", hint=hint)
    return item


def looks_like_path(name: str) -> bool:
    """Return True if the value of an option is a path of a folder, and not a name of weights."""
    return os.sep in name or (os.altsep is not None and os.altsep in name) or name.startswith("~")
