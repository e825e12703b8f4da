"""Fetches, checks, finds and deletes public base models of the Hugging Face hub.

The files are in the Hugging Face cache on this machine.

The library `huggingface_hub` reads its own environment variables: HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN for the network,
HF_HOME and HF_HUB_CACHE for the folder of its cache. `home()/.locks` has one lock file per pulled model. A lock file has the
commit, and the size and hash of every file. `remove` deletes only the revision in the lock file, and no file of the user or of
another program.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadcli.errors import VadcliError, WeightsError
from vadcli.types.text import size_text
from vadcli.weights.files import (
    PICKLE_SUFFIXES,
    Entry,
    FileSum,
    Verified,
    compare,
    entry,
    file_sum,
    home,
    known,
    looks_like_path,
    manifest,
    parse_sums,
    read_header,
    read_json,
    write_json,
)

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

CONVERTER = "SFconvertbot"  # an account of the hub that adds safetensors to repositories with pickles
DISK_FULL = ("No space left", "os error 28", "Disk quota exceeded")
OWN_FOLDER = "delete the folder yourself if you no longer need it"
# The tokenizers need tokenizer.json, or vocab.json and merges.txt. SigLIP 2 also has a tokenizer.model, which is not needed.
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
        files: the hash and size of every fetched file; the keys are the file names.
    """

    repo_id: str
    commit: str
    files: Mapping[str, FileSum]


def base_folder(name: str) -> Path | None:
    """Return the folder of a base model in the Hugging Face cache; None if the model is absent or incomplete.

    This also finds a model that another program fetched, if the model has safetensors. The network is not used.
    """
    item = entry(name)
    lock = read_lock(item)
    folder = cached_snapshot(item, lock.commit if lock else item.revision)
    if folder is None or lock is None:
        return folder
    return folder if all(has_size(folder / file, listed.bytes) for file, listed in lock.files.items()) else None


def pulled_folder(name: str) -> Path:
    """Return the folder of a base model in the Hugging Face cache.

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
            f"{name}: vadcli has not fetched these weights, or their files are gone", hint=f"run `vadcli weights pull {name}`"
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
        raise WeightsError(f"{path}: not a lock file of fetched weights", hint="delete this file and pull again") from error
    return lock if lock.repo_id == item.repo_id else None


def lock_paths(item: Entry) -> list[Path]:
    """Return the possible paths of a model's lock file.

    The first path has the model's main name and is used now. The other paths have the model's aliases. Older versions used
    these paths.
    """
    return [home() / ".locks" / f"{name}.json" for name in item.names]


def cached_snapshot(item: Entry, revision: str | None, *, whole: bool = True) -> Path | None:
    """Return the folder of a model's snapshot in the Hugging Face cache; None if the cache has no such snapshot.

    Args:
        item: the model.
        revision: the revision; None is the default branch, or the newest complete snapshot if the cache has
            no default branch.
        whole: True if the snapshot must have a config and all safetensors files that the snapshot's index lists.
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
            models = [folder for folder in (repository / "snapshots").glob("*") if _is_model(folder)]
            return max(models, key=lambda folder: folder.stat().st_mtime_ns, default=None)
        return Path(partial) if partial and not whole else None
    return folder if not whole or _is_model(folder) else None


def snapshot(item: Entry, revision: str | None, *, local: bool) -> Path:
    """Return the folder of a revision, or of the default branch.

    Fetch absent files, unless `local` is True.
    """
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(item.repo_id, revision=revision, local_files_only=local, **PATTERNS))


def repo_folder(item: Entry) -> Path:
    """Return the folder of a model's repository in the Hugging Face cache."""
    from huggingface_hub import constants  # the other modules of huggingface_hub are slow to import

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
    """Return True if the file exists and has this size; None allows any size."""
    return path.is_file() and (size is None or path.stat().st_size == size)


@dataclass(frozen=True)
class Declared:
    """The length and the hash of a file on the hub.

    The hub states the SHA-256 of a large file, and the git object id of a small file.
    """

    bytes: int | None
    sha256: str | None
    git_id: str | None

    def fits(self, path: Path) -> bool:
        """Return True if the file has the declared length and hash."""
        if not path.is_file() or (self.bytes is not None and path.stat().st_size != self.bytes):
            return False
        if self.sha256 is not None:
            return file_sum(path).sha256 == self.sha256
        from huggingface_hub.utils.sha import git_hash

        return self.git_id is None or git_hash(path.read_bytes()) == self.git_id


@dataclass(frozen=True)
class Pulled:
    """A base model that is on this machine after a pull.

    Attributes:
        name: the model's name in the manifest.
        folder: the folder of its files in the Hugging Face cache.
        commit: the commit of the files.
        bytes: the total size of the files.
        fetched: False if all files were already on this machine.
    """

    name: str
    folder: Path
    commit: str
    bytes: int
    fetched: bool

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `vadcli weights pull --json` prints."""
        return {**vars(self), "folder": str(self.folder)}


def pull(
    name: str, *, update: bool = False, progress: bool = False, say: Callable[[str], None] = lambda line: None
) -> tuple[Pulled, ...]:
    """Fetch a base model, or all base models of a LAVIDA folder.

    Files that are already on this machine are verified, and are fetched again if they are damaged. An
    interrupted download continues where it stopped.

    Args:
        name: a name of the manifest.
        update: fetch the newest revision of the repository instead of the pinned revision.
        progress: let the library `huggingface_hub` draw progress bars on stderr.
        say: a function that gets one line of text per step.

    Raises:
        WeightsError: the name is unknown, the entry has no files on the hub, the repository does not
            exist or this user has no access to it, or files have wrong hashes.
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


def _pull_base(item: Entry, *, update: bool, progress: bool, say: Callable[[str], None]) -> Pulled:
    from huggingface_hub import constants

    if update:
        item = replace(item, revision=None, files={})
    lock = None if update else read_lock(item)
    if lock and (folder := cached_snapshot(item, lock.commit)) and compare(folder, lock.files, extras_matter=False).ok:
        return _pulled(item, folder, lock, fetched=False)
    if constants.HF_HUB_OFFLINE:
        return _pull_offline(item, lock, say)
    with _hub_errors(item):
        commit, declared = _declaration(item, lock, say)
        folder = _download(item, commit, declared, progress=progress, say=say)
    lock = Lock(item.repo_id, commit, {file: file_sum(folder / file) for file in sorted(declared)})
    files = {name: listed.to_json() for name, listed in lock.files.items()}
    write_json(lock_paths(item)[0], {"format_version": 1, "repo_id": lock.repo_id, "commit": commit, "files": files})
    return _pulled(item, folder, lock, fetched=True)


@contextmanager
def _hub_errors(item: Entry) -> Iterator[None]:
    """Turn an error inside the `with` block into an error with a message of one line and a hint.

    The block fetches files of `item`.
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
            f"{where}: the hub no longer has the pinned revision", hint="use --update to get the newest revision"
        ) from error
    except errors.HfHubHTTPError as error:
        raise VadcliError(f"{where}: the hub answered with status {error.response.status_code}", hint=later) from error
    except Exception as error:
        text = " ".join(str(error).split())
        if any(words in text for words in DISK_FULL) or getattr(error, "errno", None) in (28, 122):
            hint = f"free some space, or set HF_HOME to a folder on a larger disk; {later}"
            raise VadcliError(f"{where}: no space left on the device", hint=hint) from error
        if isinstance(error, PermissionError):
            raise VadcliError(f"{error.filename}: {error.strerror}", hint="set HF_HOME to a folder you can write to") from error
        library = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError | RuntimeError | ValueError) and not library.startswith("httpx"):
            raise
        hint = f"check the network, or HF_ENDPOINT if you use a mirror; {later}"
        raise VadcliError(f"{where}: can't be fetched: {text[:200] or type(error).__name__}", hint=hint) from error


def _pull_offline(item: Entry, lock: Lock | None, say: Callable[[str], None]) -> Pulled:
    """Return a model from the cache without a check of its files. This is allowed only if the model has no lock file.

    Raises:
        WeightsError: the model is not in the cache, or it has a lock file. In the second case, the caller has found that the
            model's files differ from the lock file.
    """
    folder = cached_snapshot(item, lock.commit if lock else item.revision)
    if folder is None or lock is not None:  # the caller has found that the files differ from the lock file
        what = "the files in the cache are damaged or incomplete" if folder else "it is not in the cache"
        raise WeightsError(f"{item.name}: HF_HUB_OFFLINE is set and {what}", hint="unset HF_HUB_OFFLINE and pull again")
    say(f"{item.name}: HF_HUB_OFFLINE is set: files are taken from the cache without a check, because no lock file exists")
    files = {file: file_sum(folder / file) for file in _wanted_files(path.name for path in folder.iterdir())}
    return _pulled(item, folder, Lock(item.repo_id, folder.name, files), fetched=False)


def _declaration(item: Entry, lock: Lock | None, say: Callable[[str], None]) -> tuple[str, dict[str, Declared]]:
    """Return the commit to fetch and its expected files.

    Both come from the lock file or, if no lock file exists, from the hub.
    """
    if lock is not None:
        return lock.commit, {file: Declared(listed.bytes, listed.sha256, None) for file, listed in lock.files.items()}
    from huggingface_hub import HfApi

    api = HfApi()
    info = api.model_info(item.repo_id, revision=item.revision, files_metadata=True)
    if not any(name.endswith(".safetensors") for name in _repository_files(info)):
        info = _converted(api, item, info)
        say(f"{item.repo_id} itself has only pickles; using the safetensors that the hub's {CONVERTER} made from them")
    siblings = _repository_files(info)
    declared = {}
    for name in _wanted_files(siblings):
        pinned, file = item.files.get(name), siblings[name]
        size = file.lfs.size if file.lfs else file.size
        declared[name] = (
            Declared(pinned.bytes, pinned.sha256, None)
            if pinned
            else Declared(size, file.lfs.sha256 if file.lfs else None, None if file.lfs else file.blob_id)
        )
    return str(info.sha), declared


def _converted(api: Any, item: Entry, original: ModelInfo) -> ModelInfo:
    """Return the hub's own pull request that adds safetensors to a repository with pickles.

    The hub makes these safetensors from the pickles, with the account whose name is `CONVERTER`.

    Raises:
        WeightsError: no such pull request exists for the pickles of this revision.
    """

    def pickles(info: ModelInfo) -> dict[str, str]:
        """Return the hash of each pickle file of a revision; the keys are the file names."""
        return {name: file.lfs.sha256 for name, file in _repository_files(info).items() if name.endswith(".bin") and file.lfs}

    requests = api.get_repo_discussions(item.repo_id, author=CONVERTER, discussion_type="pull_request")
    for request in requests:
        if request.author != CONVERTER or request.status not in ("open", "draft"):
            continue
        info = api.model_info(item.repo_id, revision=f"refs/pr/{request.num}", files_metadata=True)
        if any(name.endswith(".safetensors") for name in _repository_files(info)) and pickles(info) == pickles(original):
            return info  # type: ignore[no-any-return]
    raise WeightsError(
        f"{item.repo_id} has no safetensors, and pickles are not fetched",
        hint="convert it with transformers' save_pretrained and give the folder to `vadcli weights import`",
    )


def _download(
    item: Entry, commit: str, declared: Mapping[str, Declared], *, progress: bool, say: Callable[[str], None]
) -> Path:
    """Fetch all files, check them and return their folder. A file with a wrong hash is fetched once more."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not progress:
        disable_progress_bars()
    here = cached_snapshot(item, commit, whole=False)
    absent = [file for name, file in declared.items() if here is None or not has_size(here / name, file.bytes)]
    missing_bytes = sum(file.bytes or 0 for file in absent)
    cache = Path(constants.HF_HUB_CACHE).absolute()
    disk = next(parent for parent in (cache, *cache.parents) if parent.exists())
    free = shutil.disk_usage(disk).free
    if missing_bytes > free:
        raise VadcliError(
            f"{item.name}: {size_text(missing_bytes)} to fetch, but only {size_text(free)} is free at {disk}",
            hint="free some space, or set HF_HOME to a folder on a larger disk",
        )
    say(f"{item.name}: fetching {size_text(missing_bytes)} from {item.repo_id} at {commit[:12]}")
    folder = snapshot(item, commit, local=False)
    for name in (name for name, expected in declared.items() if not expected.fits(folder / name)):
        say(f"{item.name}: {name} differs from the file on the hub; fetching it again")
        path = Path(hf_hub_download(item.repo_id, name, revision=commit, force_download=True))
        if not declared[name].fits(path):
            path.resolve().unlink()
            raise WeightsError(
                f"{path}: fetched twice, but it still differs from the file in {item.repo_id} at {commit[:12]}",
                hint="perhaps a proxy or mirror changes files, or the repository was rewritten: try --update",
            )
    for name in declared:
        if name.endswith(".safetensors"):
            read_header(folder / name)
    return folder


def _wanted_files(names: Iterable[str]) -> list[str]:
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    return sorted(filter_repo_objects(names, **PATTERNS))


def _repository_files(info: ModelInfo) -> dict[str, RepoSibling]:
    return {file.rfilename: file for file in info.siblings or []}


def _pulled(item: Entry, folder: Path, lock: Lock, *, fetched: bool) -> Pulled:
    return Pulled(item.name, folder, lock.commit, sum(listed.bytes for listed in lock.files.values()), fetched)


@dataclass(frozen=True)
class Removed:
    """A model that is no longer on this machine.

    Attributes:
        name: the model's main name in the manifest.
        commit: the commit whose files were deleted.
        freed_bytes: freed disk space. A file that a LAVIDA folder shares by a hard link frees no space.
        kept_bytes: size of the files that stay in the cache, because other revisions of the same repository use them.
    """

    name: str
    commit: str
    freed_bytes: int
    kept_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `vadcli weights remove --json` prints."""
        return dict(vars(self))


def remove(name: str, *, say: Callable[[str], None] = lambda line: None) -> Removed:
    """Delete a pulled model from the Hugging Face cache, and delete its lock file. The network is not used.

    Args:
        name: a name or alias in the manifest.
        say: a function that gets lines of text for the user, for example about other names of the same files.

    Raises:
        WeightsError: the name is unknown, is a folder, or was not fetched by vadcli.
        VadcliError: a file cannot be deleted; the lock file is kept, so the command can be repeated.
    """
    item = known(name)
    if item is None:
        if looks_like_path(name) or Path(name).is_dir() or (home() / name).is_dir():
            raise WeightsError(f"{name}: this command does not remove your own folders", hint=OWN_FOLDER)
        item = entry(name)  # raises the error for an unknown name
    if not item.on_hub:
        parts = f"; its base models can be removed: {', '.join(item.parts.values())}" if item.parts else ""
        raise WeightsError(f"{name}: this command does not remove LAVIDA folders", hint=OWN_FOLDER + parts)
    try:
        lock = read_lock(item)
    except WeightsError as error:
        raise WeightsError(
            error.message, hint=f"delete the lock file, run `vadcli weights pull {item.name}`, then repeat"
        ) from error
    if lock is None:
        hint = f"if another program fetched {item.repo_id}, `hf cache rm model/{item.repo_id}` removes it"
        raise WeightsError(f"{name}: not fetched by vadcli, so there is nothing to remove", hint=hint)
    other_names = ", ".join(other for other in item.names if other != name)
    if other_names:
        say(f"{name}: the same files are also called {other_names}")
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
    """Delete one revision of a repository from the Hugging Face cache, and return the freed and the kept bytes.

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
    other_revisions = [revision for revision in revisions if revision.commit_hash != commit]
    kept = {file.blob_path: file.size_on_disk for revision in other_revisions for file in revision.files}
    files = [file for revision in revisions if revision.commit_hash == commit for file in revision.files]
    own = {file.blob_path: file.size_on_disk for file in files if file.blob_path not in kept}
    # If a LAVIDA folder has a hard link to a file, deleting the file in the cache frees no space.
    freed = sum(size for path, size in own.items() if path.stat().st_nlink == 1)
    if files:
        level = hub_logging.get_verbosity()
        hub_logging.set_verbosity(logging.ERROR)  # hides the library's tracebacks about files that cannot be deleted
        try:
            cache.delete_revisions(commit).execute()
        finally:
            hub_logging.set_verbosity(level)
    left = next((path for path in (folder / "snapshots" / commit, *own) if path.exists()), None)
    if left is not None:
        hint = f"check that you may write there and repeat, or delete {folder} yourself"
        raise VadcliError(f"{left}: can't be deleted", hint=hint)
    return freed, sum(kept.values())
