"""Finds, verifies and deletes base models in the cache of huggingface_hub.

HF_HOME and HF_HUB_CACHE say where the cache is. `home()/.locks` has one lock file per pulled model,
with the commit and the size and hash of every file. `remove` deletes only the revision in the lock
file, and no file of the user or of another program. Only `snapshot` can use the network.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vadcli.errors import VadcliError, WeightsError
from vadcli.types.text import size_text
from vadcli.weights.checksums import PICKLE_SUFFIXES, FileSum, Verified, compare, parse_sums, read_json
from vadcli.weights.entries import Entry, entry, home, known, manifest

OWN_FOLDER = "delete the folder yourself if you no longer need it"
# The tokenizers need tokenizer.json, or vocab.json and merges.txt, but not SigLIP 2's tokenizer.model.
PATTERNS: Mapping[str, Any] = {
    "allow_patterns": ["*.safetensors", "*.json", "*.txt", "LICENSE*"],
    "ignore_patterns": [f"*{suffix}" for suffix in PICKLE_SUFFIXES],
}


@dataclass(frozen=True)
class Lock:
    """The contents of a lock file, which lists the fetched files of a base model.

    Attributes:
        repo_id: repository on the hub.
        commit: the commit of the fetched files.
        files: name -> hash and size of every fetched file.
    """

    repo_id: str
    commit: str
    files: Mapping[str, FileSum]


def base_folder(name: str) -> Path | None:
    """Return the folder of a base model in the hub's cache; None if it is absent or incomplete.

    Does not use the network. Also finds a model that another program fetched, if it has safetensors.
    """
    item = entry(name)
    lock = read_lock(item)
    folder = cached_snapshot(item, lock.commit if lock else item.revision)
    if folder is None or lock is None:
        return folder
    return folder if all(has_size(folder / file, known.bytes) for file, known in lock.files.items()) else None


def pulled_folder(name: str) -> Path:
    """Return the folder of a base model in the hub's cache.

    Raises:
        WeightsError: the model is absent or incomplete; the hint names the command that fetches it.
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


def lock_paths(item: Entry) -> list[Path]:
    """Return the possible paths of a model's lock file, the present one first; older versions used aliases."""
    return [home() / ".locks" / f"{name}.json" for name in item.names]


def cached_snapshot(item: Entry, revision: str | None, *, whole: bool = True) -> Path | None:
    """Return the folder of a model's snapshot in the hub's cache; None if there is no such snapshot.

    Without a revision, this is the default branch, or else the newest complete snapshot. If `whole`
    is True, the snapshot must have a config and all safetensors files that its index lists.
    """
    repository = repo_folder(item)
    if not repository.is_dir():
        return None
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot(item, revision, local=True)
    except (LocalEntryNotFoundError, OSError) as error:
        partial = getattr(error, "snapshot_path", None)
        if revision is None:  # the cache has no default branch if the model was fetched by commit or pull request
            found = [folder for folder in (repository / "snapshots").glob("*") if _is_model(folder)]
            return max(found, key=lambda folder: folder.stat().st_mtime_ns, default=None)
        return Path(partial) if partial and not whole else None
    return folder if not whole or _is_model(folder) else None


def snapshot(item: Entry, revision: str | None, *, local: bool) -> Path:
    """Return the folder of a revision, or of the default branch. Fetches absent files unless `local` is True."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(item.repo_id, revision=revision, local_files_only=local, **PATTERNS))


def repo_folder(item: Entry) -> Path:
    """Return the folder of a model in the hub's cache, without the slow imports of huggingface_hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / constants.REPO_ID_SEPARATOR.join(["models", *item.repo_id.split("/")])


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


def has_size(path: Path, size: int | None) -> bool:
    """True if the file exists and has this size; None fits every size."""
    return path.is_file() and (size is None or path.stat().st_size == size)


@dataclass(frozen=True)
class Removed:
    """A model that is no longer on this machine.

    Attributes:
        name: the model's main name in the manifest.
        commit: the commit whose files were deleted.
        freed_bytes: freed disk space, without files that a LAVIDA folder shares by a hard link.
        kept_bytes: size of the files of other revisions of the same repository, which stay in the cache.
    """

    name: str
    commit: str
    freed_bytes: int
    kept_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `vadcli weights remove --json` prints."""
        return dict(vars(self))


def remove(name: str, *, say: Callable[[str], None] = lambda line: None) -> Removed:
    """Delete a pulled model from the hub's cache, and delete its lock file. Does not use the network.

    Args:
        name: a name or alias of the manifest.
        say: is called with one line per fact that the user should know, such as other names of the same files.

    Raises:
        WeightsError: the name is unknown, is a folder, or was not fetched by vadcli.
        VadcliError: a file cannot be deleted; the lock file is kept, so the command can be repeated.
    """
    item = known(name)
    if item is None:
        is_path = os.sep in name or (os.altsep is not None and os.altsep in name) or name.startswith("~")
        if is_path or Path(name).is_dir() or (home() / name).is_dir():
            raise WeightsError(f"{name}: this command does not remove your own folders", hint=OWN_FOLDER)
        item = entry(name)  # raises the error for an unknown name
    if not item.on_hub:
        parts = f"; its base models can be removed: {', '.join(item.parts.values())}" if item.parts else ""
        raise WeightsError(f"{name}: this command does not remove LAVIDA folders", hint=OWN_FOLDER + parts)
    try:
        lock = read_lock(item)
    except WeightsError as error:
        raise WeightsError(error.message, hint=f"delete it, run `vadcli weights pull {item.name}`, then repeat") from error
    if lock is None:
        hint = f"if another program fetched {item.repo_id}, `hf cache rm model/{item.repo_id}` removes it"
        raise WeightsError(f"{name}: not fetched by vadcli, so there is nothing to remove", hint=hint)
    others = ", ".join(other for other in item.names if other != name)
    if others:
        say(f"{name}: the same files are also called {others}")
    for lavida in manifest().values():
        if item.name in lavida.parts.values():
            say(f"{name}: {lavida.name} is built from it; folders that are already built keep working")
    freed, kept = _delete_revision(item.repo_id, repo_folder(item), lock.commit)
    for path in lock_paths(item):
        path.unlink(missing_ok=True)
    if kept:
        say(f"{item.name}: other revisions of {item.repo_id} stay in the cache ({size_text(kept)})")
    return Removed(item.name, lock.commit, freed, kept)


def _delete_revision(repo_id: str, folder: Path, commit: str) -> tuple[int, int]:
    """Delete one revision of a repository from the hub's cache, and return the freed and the kept bytes.

    Args:
        repo_id: repository on the hub.
        folder: folder of the repository in the cache.
        commit: the revision.
    """
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir
    from huggingface_hub.utils import logging as hub_logging

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return 0, 0
    revisions = [
        revision for repo in cache.repos if repo.repo_type == "model" and repo.repo_id == repo_id for revision in repo.revisions
    ]
    kept = {file.blob_path: file.size_on_disk for one in revisions if one.commit_hash != commit for file in one.files}
    files = [file for one in revisions if one.commit_hash == commit for file in one.files]
    own = {file.blob_path: file.size_on_disk for file in files if file.blob_path not in kept}
    # A LAVIDA folder may have a hard link to a file. Then deleting the file in the cache frees no space.
    freed = sum(size for path, size in own.items() if path.stat().st_nlink == 1)
    if files:
        level = hub_logging.get_verbosity()
        hub_logging.set_verbosity(logging.ERROR)  # hides its tracebacks for files that cannot be deleted
        try:
            cache.delete_revisions(commit).execute()
        finally:
            hub_logging.set_verbosity(level)
    left = next((path for path in (folder / "snapshots" / commit, *own) if path.exists()), None)
    if left is not None:
        hint = f"check that you may write there and repeat, or delete {folder} yourself"
        raise VadcliError(f"{left}: can't be deleted", hint=hint)
    return freed, sum(kept.values())
