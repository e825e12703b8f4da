"""Deletes models that `weights pull` fetched, and their lock files.

Only the revision in the lock file is deleted from the cache of huggingface_hub, and huggingface_hub
itself deletes it. Files that another program fetched, LAVIDA folders and a user's own folders are
not deleted.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vadcli.errors import VadcliError, WeightsError
from vadcli.weights.entries import Entry, entry, home, known, manifest
from vadcli.weights.hub import lock_paths, read_lock

OWN_FOLDER = "delete the folder yourself if you no longer need it"


@dataclass(frozen=True)
class Removed:
    """A model that is no longer on this machine.

    Attributes:
        name: the model's main name in the manifest.
        commit: the commit whose files were deleted.
        freed_bytes: how much disk space the removal freed. If a LAVIDA folder shares a file by a hard
            link, deleting the file in the cache frees no space.
        kept_bytes: size of the files of other revisions of the same repository. They stay in the cache.
    """

    name: str
    commit: str
    freed_bytes: int
    kept_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return what `vadcli weights remove --json` prints."""
        return {"name": self.name, "commit": self.commit, "freed_bytes": self.freed_bytes, "kept_bytes": self.kept_bytes}


def remove(name: str, *, say: Callable[[str], None] = lambda line: None) -> Removed:
    """Delete a pulled model from the hub's cache, and delete its lock file. Does not use the network.

    Args:
        name: a name or alias of the manifest.
        say: is called with one line per fact that the user should know, such as other names of the same files.

    Raises:
        WeightsError: the name is unknown, is a folder, or was not fetched by vadcli.
        VadcliError: a file cannot be deleted; the lock file is kept, so the command can be repeated.
    """
    item = _removable(name)
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
    freed, kept = _delete_revision(item, lock.commit)
    for path in lock_paths(item):
        path.unlink(missing_ok=True)
    if kept:
        from vadcli.types.text import size_text  # not at the top: it loads numpy, which finding weights does not need

        say(f"{item.name}: other revisions of {item.repo_id} stay in the cache ({size_text(kept)})")
    return Removed(item.name, lock.commit, freed, kept)


def _removable(name: str) -> Entry:
    """Return the manifest entry of a name. Raises WeightsError if its files are not kept in the hub's cache."""
    item = known(name)
    if item is not None and item.on_hub:
        return item
    if item is not None:
        parts = f"; its base models can be removed: {', '.join(item.parts.values())}" if item.parts else ""
        raise WeightsError(f"{name}: this command does not remove LAVIDA folders", hint=OWN_FOLDER + parts)
    is_path = os.sep in name or (os.altsep is not None and os.altsep in name) or name.startswith("~")
    if is_path or Path(name).is_dir() or (home() / name).is_dir():
        raise WeightsError(f"{name}: this command does not remove your own folders", hint=OWN_FOLDER)
    return entry(name)  # raises the error for an unknown name


def _delete_revision(item: Entry, commit: str) -> tuple[int, int]:
    """Delete one revision from the hub's cache. Returns how many bytes were freed and how many stay."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir
    from huggingface_hub.file_download import repo_folder_name

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return 0, 0
    revisions = [
        revision
        for repo in cache.repos
        if repo.repo_type == "model" and repo.repo_id == item.repo_id
        for revision in repo.revisions
    ]
    kept = {file.blob_path: file.size_on_disk for one in revisions if one.commit_hash != commit for file in one.files}
    files = [file for one in revisions if one.commit_hash == commit for file in one.files]
    own = {file.blob_path: file.size_on_disk for file in files if file.blob_path not in kept}
    # if a LAVIDA folder has a hard link to a file, deleting the file frees no space
    freed = sum(size for path, size in own.items() if path.stat().st_nlink == 1)
    if files:
        with _quiet_hub():
            cache.delete_revisions(commit).execute()
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=item.repo_id, repo_type="model")
    left = next((path for path in (folder / "snapshots" / commit, *own) if path.exists()), None)
    if left is not None:
        hint = f"check that you may write there and repeat, or delete {folder} yourself"
        raise VadcliError(f"{left}: can't be deleted", hint=hint)
    return freed, sum(kept.values())


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Hide the tracebacks that huggingface_hub prints if it cannot delete a file. vadcli reports this in one line."""
    from huggingface_hub.utils import logging as hub_logging

    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
