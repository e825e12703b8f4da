"""Fetches public base models from the Hugging Face hub, checks them and writes their lock files.

HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN control how huggingface_hub fetches files into its cache.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadcli.errors import VadcliError, WeightsError
from vadcli.types.text import size_text
from vadcli.weights.cache import PATTERNS, Lock, cached_snapshot, has_size, lock_paths, read_lock, snapshot
from vadcli.weights.checksums import compare, file_sum, read_header, write_json
from vadcli.weights.entries import Entry, entry

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

CONVERTER = "SFconvertbot"  # an account of the hub that adds safetensors to repositories with pickles
DISK_FULL = ("No space left", "os error 28", "Disk quota exceeded")


@dataclass(frozen=True)
class Declared:
    """The length of a file on the hub, and its SHA-256 (large files) or git object id (small files)."""

    bytes: int | None
    sha256: str | None
    git_id: str | None

    def fits(self, path: Path) -> bool:
        """True if the file has the declared length and hash."""
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
        """Return the JSON object that `vadcli weights pull --json` prints."""
        return {**vars(self), "folder": str(self.folder)}


def pull(
    name: str, *, update: bool = False, progress: bool = False, say: Callable[[str], None] = lambda line: None
) -> tuple[Pulled, ...]:
    """Fetch a base model, or all base models of a LAVIDA folder.

    Files that are already here are verified, and are fetched again if they are damaged. An interrupted
    download continues where it stopped.

    Args:
        name: a name of the manifest.
        update: fetch the newest state of the repository instead of the pinned one.
        progress: let huggingface_hub draw progress bars on stderr.
        say: is called with one line per step.

    Raises:
        WeightsError: the name is unknown, there is nothing to fetch, the repository does not exist or
            this user has no access to it, or files have wrong hashes.
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
        return _offline(item, lock, say)
    with _one_line(item):
        commit, declared = _declaration(item, lock, say)
        folder = _download(item, commit, declared, progress=progress, say=say)
    lock = Lock(item.repo_id, commit, {file: file_sum(folder / file) for file in sorted(declared)})
    files = {name: known.to_json() for name, known in lock.files.items()}
    write_json(lock_paths(item)[0], {"format_version": 1, "repo_id": lock.repo_id, "commit": commit, "files": files})
    return _pulled(item, folder, lock, fetched=True)


@contextmanager
def _one_line(item: Entry) -> Iterator[None]:
    """Turn the errors of a block that fetches `item` into errors of one line with advice."""
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


def _offline(item: Entry, lock: Lock | None, say: Callable[[str], None]) -> Pulled:
    """Return a cached model without a check. It must have no lock file, which would need a check."""
    folder = cached_snapshot(item, lock.commit if lock else item.revision)
    if folder is None or lock is not None:
        what = "the files in the cache are damaged or incomplete" if folder else "it is not in the cache"
        raise WeightsError(f"{item.name}: HF_HUB_OFFLINE is set and {what}", hint="unset it and pull again")
    say(f"{item.name}: HF_HUB_OFFLINE is set: files are taken from the cache without a check, because no lock file exists")
    files = {file: file_sum(folder / file) for file in _wanted(path.name for path in folder.iterdir())}
    return _pulled(item, folder, Lock(item.repo_id, folder.name, files), fetched=False)


def _declaration(item: Entry, lock: Lock | None, say: Callable[[str], None]) -> tuple[str, dict[str, Declared]]:
    """Return the commit to fetch and its declared files, from the lock or else from the hub."""
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
    """Return the pull request in which the hub's converter made safetensors from the same pickles."""

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
    """Fetch all files and check them. A file with a wrong hash is fetched once more."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not progress:
        disable_progress_bars()
    here = cached_snapshot(item, commit, whole=False)
    absent = [known for name, known in declared.items() if here is None or not has_size(here / name, known.bytes)]
    missing_bytes = sum(known.bytes or 0 for known in absent)
    cache = Path(constants.HF_HUB_CACHE).absolute()
    disk = next(parent for parent in (cache, *cache.parents) if parent.exists())
    free = shutil.disk_usage(disk).free
    if missing_bytes > free:
        raise VadcliError(
            f"{item.name}: {size_text(missing_bytes)} to fetch, but only {size_text(free)} is free at {disk}",
            hint="free space, or set HF_HOME to a folder on a larger disk",
        )
    say(f"{item.name}: fetching {size_text(missing_bytes)} from {item.repo_id} at {commit[:12]}")
    folder = snapshot(item, commit, local=False)
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


def _wanted(names: Iterable[str]) -> list[str]:
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    return sorted(filter_repo_objects(names, **PATTERNS))


def _siblings(info: ModelInfo) -> dict[str, RepoSibling]:
    return {file.rfilename: file for file in info.siblings or []}


def _pulled(item: Entry, folder: Path, lock: Lock, *, fetched: bool) -> Pulled:
    return Pulled(item.name, folder, lock.commit, sum(known.bytes for known in lock.files.values()), fetched)
