"""Checks files of weights: compares hashes with checksums.json, checks safetensors headers, refuses pickles.

It loads no tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vadcli.errors import WeightsError

CHECKSUMS_NAME = "checksums.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
HEADER_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_JSON_BYTES = 64_000_000
DTYPE_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
DTYPE_BITS |= {"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}
PICKLE = re.compile(rb"PK\x03\x04|\x80[\x02-\x05][^\x00]")  # torch's zip files, plain pickles
LFS_MAGIC = b"version "


@dataclass(frozen=True)
class FileSum:
    """The expected hash and length of a file.

    Attributes:
        sha256: the hash of the file's contents, as 64 lower-case hex digits.
        bytes: the length of the file.
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
    """The result of comparing a folder with its checksums; names are relative, with `/`.

    Attributes:
        folder: the folder that was checked.
        checked: number of listed files.
        missing: listed files that do not exist.
        changed: listed files whose contents differ from the list.
        extra: files that are not listed.
    """

    folder: Path
    checked: int
    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if nothing is missing, changed or extra."""
        return not (self.missing or self.changed or self.extra)

    def to_json(self) -> dict[str, Any]:
        """Return what `vadcli weights verify --json` prints."""
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
        metadata: name -> any text.
        tensors: name -> (dtype as safetensors spells it, shape).
    """

    metadata: Mapping[str, str]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]


def write_checksums(folder: Path) -> Path:
    """Hash every file of a folder, write checksums.json atomically and return its path.

    Raises:
        WeightsError: the folder has a pickle, or a .safetensors file that is not in this format.
    """
    refuse_pickles(folder)
    sums = {name: file_sum(folder / name) for name in file_names(folder)}
    path = folder / CHECKSUMS_NAME
    write_json(path, {name: item.to_json() for name, item in sums.items()})
    return path


def verify(folder: Path) -> Verified:
    """Return how the files of a folder differ from checksums.json; every file is hashed.

    Raises:
        WeightsError: checksums.json is missing or damaged, or it lists a pickle or a .safetensors
            file that is not in this format.
    """
    if not folder.is_dir():
        raise WeightsError(f"{folder}: the folder does not exist", hint="`vadcli weights list` shows all weights")
    result = compare(folder, read_checksums(folder))
    if result.ok:
        refuse_pickles(folder)
    return result


def compare(folder: Path, listed: Mapping[str, FileSum], *, extras_matter: bool = True) -> Verified:
    """Return how the files of a folder differ from their expected hashes and sizes."""
    here = set(file_names(folder))
    missing = tuple(name for name in listed if not (folder / name).is_file())
    changed = tuple(name for name, item in listed.items() if name not in missing and not _fits(folder / name, item))
    extra = tuple(sorted(here - listed.keys())) if extras_matter else ()
    return Verified(folder, len(listed), missing, changed, extra)


def fingerprint(folder: Path) -> str:
    """Return one SHA-256 over all files of a folder, with or without a checksums.json.

    If all sizes match checksums.json, no file is missing or extra, and no file is newer than that list,
    the listed hashes are used and the files are not read. `verify` always reads every file.
    """
    sums = _believable(folder) or {name: file_sum(folder / name).sha256 for name in file_names(folder)}
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
        KeyError, TypeError: an entry has another form.
    """
    for name in document:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in name:
            raise ValueError(f"{name!r} is not a file of this folder")
    return {name: FileSum(str(item["sha256"]), int(item["bytes"])) for name, item in document.items()}


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file. Checks the header and the length of the file, but reads no tensor.

    Raises:
        WeightsError: the file is missing, a pickle, a Git LFS pointer, damaged or cut short.
    """
    if path.exists() and not path.is_file():
        raise WeightsError(f"{path}: not a file", hint="name a .safetensors file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(HEADER_LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            text = file.read(length) if HEADER_LENGTH_BYTES + length <= size and length <= MAX_HEADER_BYTES else b""
    except OSError as error:
        raise WeightsError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    try:
        header = _parse_header(json.loads(text), size - HEADER_LENGTH_BYTES - length)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path}: {_what_it_is(start, error)}", hint="fetch or make it again; only safetensors are read"
        ) from error
    return header


def refuse_pickles(folder: Path) -> None:
    """Check the name of every file, and the header of every .safetensors file.

    Raises:
        WeightsError: a file is a pickle, or a .safetensors file is not in this format.
    """
    for name in file_names(folder):
        if name.lower().endswith(PICKLE_SUFFIXES):
            raise WeightsError(f"{folder / name}: may be a pickle, which runs code when loaded", hint="remove or convert it")
        if name.endswith(".safetensors"):
            read_header(folder / name)


def file_names(folder: Path) -> list[str]:
    """Return the relative, sorted names of all files except checksums.json and hidden files.

    Links to folders are followed, except a link to a folder that contains the link.
    """

    def walk(here: Path, above: frozenset[Path]) -> Iterator[Path]:
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


def git_object_id(path: Path) -> str:
    """Return git's object id of a file. The hub declares this id if the file is not in Git LFS."""

    def sha1() -> Any:
        return hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)

    with path.open("rb") as file:
        make: Callable[[], Any] = sha1
        return str(hashlib.file_digest(file, make).hexdigest())


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
        raise ValueError(f"{path}: nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: not a JSON object")
    return document


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
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
    """Make a file readable for everyone who may read `folder`, if this user is allowed to change it."""
    with suppress(OSError):
        path.chmod(folder.stat().st_mode & 0o666)


def _fits(path: Path, item: FileSum) -> bool:
    return path.stat().st_size == item.bytes and file_sum(path) == item


def _believable(folder: Path) -> dict[str, str] | None:
    """Return the SHA-256 of each file from checksums.json; None if names, sizes or times of the files do not match it."""
    try:
        listed = read_checksums(folder)
        written_ns = (folder / CHECKSUMS_NAME).stat().st_mtime_ns
        if set(listed) != set(file_names(folder)):
            return None
        states = {name: (folder / name).stat() for name in listed}
    except (WeightsError, OSError):
        return None
    if any(state.st_size != listed[name].bytes or state.st_mtime_ns > written_ns for name, state in states.items()):
        return None
    return {name: item.sha256 for name, item in listed.items()}


def _parse_header(document: Any, data_bytes: int) -> Header:
    """Return the header if its tensors fill the file without gaps; raises ValueError, KeyError or TypeError otherwise."""
    if not isinstance(document, dict) or not isinstance(document.get("__metadata__", {}), dict):
        raise TypeError(type(document))
    metadata = document.pop("__metadata__", {})
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    spans: list[tuple[int, int]] = []
    for name, item in document.items():
        dtype, shape = str(item["dtype"]), tuple(int(extent) for extent in item["shape"])
        begin, end = (int(offset) for offset in item["data_offsets"])
        bits = DTYPE_BITS.get(dtype, 0)
        for extent in shape:
            bits *= extent
        if begin > end or (bits and bits != 8 * (end - begin)):
            raise ValueError(f"tensor {name!r} has a size that doesn't match its shape")
        tensors[name] = (dtype, shape)
        spans.append((begin, end))
    spans.sort()
    if any(before[1] != after[0] for before, after in zip([(0, 0), *spans], spans, strict=False)):
        raise ValueError("its tensors overlap or leave gaps")
    wanted = spans[-1][1] if spans else 0
    if wanted > data_bytes:
        raise ValueError(f"it is cut short: {wanted - data_bytes} bytes are missing")
    if wanted < data_bytes:
        raise ValueError(f"it has {data_bytes - wanted} extra bytes after its tensors")
    return Header({str(key): str(value) for key, value in metadata.items()}, tensors)


def _what_it_is(start: bytes, error: Exception) -> str:
    if PICKLE.match(start):
        return "a pickle called .safetensors, which is not allowed"
    if start == LFS_MAGIC:
        return "a Git LFS pointer, not the weights themselves"
    if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"damaged safetensors file: {error}"
    return "not a safetensors file: its header is damaged"
