"""Fetches public base models from the Hugging Face hub, pins their files and finds them again.

The files are in the cache of huggingface_hub, which HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE,
HF_ENDPOINT and HF_TOKEN control. `home()/.locks` has one lock file per base model, with the commit
and the size and hash of every file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadcli.errors import VadcliError, WeightsError
from vadcli.weights.checksums import (
    PICKLE_SUFFIXES,
    FileSum,
    Verified,
    compare,
    file_sum,
    git_object_id,
    parse_sums,
    read_header,
    read_json,
    write_json,
)
from vadcli.weights.entries import Entry, entry, home, one_line

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

# All tokenizers used here read tokenizer.json, or vocab.json and merges.txt. SigLIP 2's tokenizer.model has the same contents.
WANTED_FILES = ("*.safetensors", "*.json", "*.txt", "LICENSE*")
UNWANTED_FILES = tuple(f"*{suffix}" for suffix in PICKLE_SUFFIXES)
CONVERTER = "SFconvertbot"  # an account of the hub that adds safetensors to repositories with pickles


@dataclass(frozen=True)
class Declared:
    """What the hub declares about a file: its length, and its SHA-256 (large files) or git object id (small files)."""

    bytes: int | None
    sha256: str | None
    git_id: str | None

    def fits(self, path: Path) -> bool:
        """True if the file has the declared length and hash."""
        if not path.is_file() or (self.bytes is not None and path.stat().st_size != self.bytes):
            return False
        if self.sha256 is not None:
            return file_sum(path).sha256 == self.sha256
        return self.git_id is None or git_object_id(path) == self.git_id


@dataclass(frozen=True)
class Lock:
    """The contents of a lock file: which files of a base model were fetched.

    Attributes:
        repo_id: repository on the hub.
        commit: the commit of the fetched files.
        files: name -> hash and size of every fetched file.
    """

    repo_id: str
    commit: str
    files: Mapping[str, FileSum]


@dataclass(frozen=True)
class Pulled:
    """A base model that is on this machine after a pull.

    Attributes:
        name: the model's name in the manifest.
        folder: the folder of its files in the hub's cache.
        commit: the commit of the files.
        bytes: the total size of the files.
        fetched: False if all files were already here.
    """

    name: str
    folder: Path
    commit: str
    bytes: int
    fetched: bool

    def to_json(self) -> dict[str, Any]:
        """Return what `vadcli weights pull --json` prints."""
        return {**vars(self), "folder": str(self.folder)}


def pull(
    name: str, *, update: bool = False, progress: bool = False, say: Callable[[str], None] = lambda line: None
) -> tuple[Pulled, ...]:
    """Fetch a base model, or every base model that a LAVIDA folder is built from.

    Files that are already here are verified, and fetched again only if they are damaged. An
    interrupted download continues where it stopped.

    Args:
        name: a name of the manifest.
        update: fetch the newest state of the repository instead of the pinned one.
        progress: let huggingface_hub draw progress bars on stderr.
        say: is called with one line per step.

    Raises:
        WeightsError: the name is unknown, the entry has nothing to fetch, the repository does not exist
            or this user has no access to it, or files differ from what the hub declares.
        VadcliError: the network does not work, or the disk is full.
    """
    wanted = entry(name)
    if name in wanted.aliases:
        say(f"{name} is another name of {wanted.name}")
    if wanted.on_hub:
        return (_pull_base(wanted, update=update, progress=progress, say=say),)
    if not wanted.parts:
        raise WeightsError(f"{name}: there is nothing to fetch", hint=wanted.note)
    bases = [entry(part) for part in wanted.parts.values()]
    return tuple(_pull_base(base, update=update, progress=progress, say=say) for base in bases)


def base_folder(name: str) -> Path | None:
    """Return the folder of a base model in the hub's cache; None if it is absent or incomplete.

    Never uses the network. Also finds a model that another program fetched, if it has safetensors.
    """
    item = entry(name)
    lock = read_lock(item)
    folder = cached_snapshot(item, lock.commit if lock else item.revision)
    if folder is None or lock is None:
        return folder
    return folder if all(_has_size(folder / file, known.bytes) for file, known in lock.files.items()) else None


def pulled_folder(name: str) -> Path:
    """Return the folder of a base model in the hub's cache.

    Raises:
        WeightsError: the model is absent or incomplete; the hint names the command that fetches it and the download's size.
    """
    folder, item = base_folder(name), entry(name)
    if folder is None:
        size = f" ({item.download_gb:g} GB)" if item.download_gb else ""
        raise WeightsError(f"{name}: not on this machine, or incomplete", hint=f"run `vadcli weights pull {name}`{size}")
    return folder


def verify_pulled(name: str) -> Verified:
    """Return how the files of a fetched base model differ from its lock file; every file is hashed.

    Raises:
        WeightsError: the model was never pulled, or its folder does not exist any more.
    """
    item = entry(name)
    lock = read_lock(item)
    folder = cached_snapshot(item, lock.commit) if lock else None
    if lock is None or folder is None:
        raise WeightsError(
            f"{name}: vadcli has not fetched it, or its files are gone", hint=f"run `vadcli weights pull {name}`"
        )
    return compare(folder, lock.files, extras_matter=False)


def read_lock(item: Entry) -> Lock | None:
    """Return the lock of a fetched base model; None if no lock file exists for its repository.

    Raises:
        WeightsError: the lock file is damaged.
    """
    path = next((path for path in lock_paths(item) if path.is_file()), None)
    if path is None:
        return None
    try:
        document = read_json(path)
        lock = Lock(str(document["repo_id"]), str(document["commit"]), parse_sums(document["files"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: not a lock file of fetched weights", hint="delete it and pull again") from error
    return lock if lock.repo_id == item.repo_id else None


def _pull_base(item: Entry, *, update: bool, progress: bool, say: Callable[[str], None]) -> Pulled:
    from huggingface_hub import constants

    if update:
        item = replace(item, revision=None, files={})
    lock = None if update else read_lock(item)
    if lock and (folder := cached_snapshot(item, lock.commit)) and compare(folder, lock.files, extras_matter=False).ok:
        return _pulled(item, folder, lock, fetched=False)
    if constants.HF_HUB_OFFLINE:
        return _offline(item, lock, say)
    with one_line(item):
        commit, declared = _declaration(item, lock, say)
        folder = _download(item, commit, declared, progress=progress, say=say)
    lock = Lock(item.repo_id, commit, {file: file_sum(folder / file) for file in sorted(declared)})
    _write_lock(item, lock)
    return _pulled(item, folder, lock, fetched=True)


def _offline(item: Entry, lock: Lock | None, say: Callable[[str], None]) -> Pulled:
    """Return the model from the cache. Without a lock file, its files cannot be verified."""
    folder = cached_snapshot(item, lock.commit if lock else item.revision)
    if folder is None or lock is not None:
        what = "the files in the cache are damaged or incomplete" if folder else "it is not in the cache"
        raise WeightsError(f"{item.name}: HF_HUB_OFFLINE is set and {what}", hint="unset it and pull again")
    say(f"{item.name}: HF_HUB_OFFLINE is set: files are taken from the cache without a check, because no lock file exists")
    files = {file: file_sum(folder / file) for file in _wanted(path.name for path in folder.iterdir())}
    return _pulled(item, folder, Lock(item.repo_id, folder.name, files), fetched=False)


def _declaration(item: Entry, lock: Lock | None, say: Callable[[str], None]) -> tuple[str, dict[str, Declared]]:
    """Return the commit to fetch and the declared files: from the lock if there is one, else from the hub."""
    if lock is not None:
        return lock.commit, {file: Declared(known.bytes, known.sha256, None) for file, known in lock.files.items()}
    from huggingface_hub import HfApi

    api = HfApi()
    info = api.model_info(item.repo_id, revision=item.revision, files_metadata=True)
    if not any(name.endswith(".safetensors") for name in _siblings(info)):
        info = _converted(api, item, info)
        say(f"{item.repo_id} itself has only pickles; using the safetensors that the hub's {CONVERTER} made from them")
    siblings = _siblings(info)
    declared = {}
    for name in _wanted(siblings):
        known, file = item.files.get(name), siblings[name]
        size = file.lfs.size if file.lfs else file.size
        declared[name] = (
            Declared(known.bytes, known.sha256, None)
            if known
            else Declared(size, file.lfs.sha256 if file.lfs else None, None if file.lfs else file.blob_id)
        )
    return str(info.sha), declared


def _converted(api: Any, item: Entry, original: ModelInfo) -> ModelInfo:
    """Return the pull request in which the hub's converter made safetensors from the same pickles.

    Raises:
        WeightsError: the converter made no pull request, or the pickles have changed since.
    """

    def pickles(info: ModelInfo) -> dict[str, str]:
        return {name: file.lfs.sha256 for name, file in _siblings(info).items() if name.endswith(".bin") and file.lfs}

    requests = api.get_repo_discussions(item.repo_id, author=CONVERTER, discussion_type="pull_request")
    for request in requests:
        if request.author != CONVERTER or request.status not in ("open", "draft"):
            continue
        info = api.model_info(item.repo_id, revision=f"refs/pr/{request.num}", files_metadata=True)
        if any(name.endswith(".safetensors") for name in _siblings(info)) and pickles(info) == pickles(original):
            return info  # type: ignore[no-any-return]
    raise WeightsError(
        f"{item.repo_id} has no safetensors, and pickles are not fetched",
        hint="convert it with transformers' save_pretrained and give the folder to `vadcli weights import`",
    )


def _download(
    item: Entry, commit: str, declared: Mapping[str, Declared], *, progress: bool, say: Callable[[str], None]
) -> Path:
    """Fetch all files and check them. Fetches a file once more if it is not what the hub declares."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not progress:
        disable_progress_bars()
    here = cached_snapshot(item, commit, whole=False)
    absent = {name: known for name, known in declared.items() if here is None or not _has_size(here / name, known.bytes)}
    missing_bytes = sum(known.bytes or 0 for known in absent.values())
    _need_room(item, missing_bytes)
    from vadcli.types.text import size_text  # not at the top: it loads numpy, which finding weights does not need

    say(f"{item.name}: fetching {size_text(missing_bytes)} from {item.repo_id} at {commit[:12]}")
    folder = _snapshot(item, commit, local=False)
    for name in (name for name, known in declared.items() if not known.fits(folder / name)):
        say(f"{item.name}: {name} is not what the hub declares; fetching it again")
        path = Path(hf_hub_download(item.repo_id, name, revision=commit, force_download=True))
        if not declared[name].fits(path):
            path.resolve().unlink()
            raise WeightsError(
                f"{path}: fetched twice, but it is still not what {item.repo_id} declares at {commit[:12]}",
                hint="a proxy or mirror changes files, or the repository was rewritten: try --update",
            )
    for name in declared:
        if name.endswith(".safetensors"):
            read_header(folder / name)
    return folder


def _snapshot(item: Entry, revision: str | None, *, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    wanted, unwanted = list(WANTED_FILES), list(UNWANTED_FILES)
    path = snapshot_download(
        item.repo_id, revision=revision, local_files_only=local, allow_patterns=wanted, ignore_patterns=unwanted
    )
    return Path(path)


def cached_snapshot(item: Entry, revision: str | None, *, whole: bool = True) -> Path | None:
    """Return the folder of a model's snapshot in the hub's cache; None if no such snapshot is there.

    With `whole`, the snapshot must have a config and all safetensors that its index lists.
    """
    if not _repo_folder(item).is_dir():
        return None
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = _snapshot(item, revision, local=True)
    except (LocalEntryNotFoundError, OSError) as error:
        partial = getattr(error, "snapshot_path", None)
        if revision is None:
            return _any_snapshot(item)
        return Path(partial) if partial and not whole else None
    return folder if not whole or _is_model(folder) else None


def _repo_folder(item: Entry) -> Path:
    """Return the folder of a model in the hub's cache, without the imports of huggingface_hub that are slow."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / constants.REPO_ID_SEPARATOR.join(["models", *item.repo_id.split("/")])


def _any_snapshot(item: Entry) -> Path | None:
    """Return the newest complete snapshot of any revision of a model; None if no snapshot is complete.

    If a model was fetched by commit or pull request, the cache has no default branch.
    """
    found = [folder for folder in (_repo_folder(item) / "snapshots").glob("*") if _is_model(folder)]
    return max(found, key=lambda folder: folder.stat().st_mtime_ns, default=None)


def _is_model(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(path.is_file() for path in folder.glob("*.safetensors"))
    try:
        shards = set(read_json(index)["weight_map"].values())
    except (KeyError, ValueError, AttributeError, OSError):
        return False
    return all((folder / str(shard)).is_file() for shard in shards)


def _need_room(item: Entry, wanted_bytes: int) -> None:
    from huggingface_hub import constants

    from vadcli.types.text import size_text

    cache = Path(constants.HF_HUB_CACHE).absolute()
    folder = next(parent for parent in (cache, *cache.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if wanted_bytes > free:
        raise VadcliError(
            f"{item.name}: {size_text(wanted_bytes)} to fetch, but only {size_text(free)} is free at {folder}",
            hint="free space, or set HF_HOME to a folder on a larger disk",
        )


def _wanted(names: Iterable[str]) -> list[str]:
    def any_of(patterns: Iterable[str], name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return sorted(name for name in names if any_of(WANTED_FILES, name) and not any_of(UNWANTED_FILES, name))


def _siblings(info: ModelInfo) -> dict[str, RepoSibling]:
    return {file.rfilename: file for file in info.siblings or []}


def _has_size(path: Path, size: int | None) -> bool:
    return path.is_file() and (size is None or path.stat().st_size == size)


def _pulled(item: Entry, folder: Path, lock: Lock, *, fetched: bool) -> Pulled:
    return Pulled(item.name, folder, lock.commit, sum(known.bytes for known in lock.files.values()), fetched)


def lock_paths(item: Entry) -> list[Path]:
    """Return the possible paths of a model's lock file. The first uses the main name; older versions used an alias."""
    return [home() / ".locks" / f"{name}.json" for name in item.names]


def _write_lock(item: Entry, lock: Lock) -> None:
    files = {name: known.to_json() for name, known in lock.files.items()}
    write_json(lock_paths(item)[0], {"format_version": 1, "repo_id": lock.repo_id, "commit": lock.commit, "files": files})
