"""What huggingface_hub raises while it fetches, as one line and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vadcli.errors import VadcliError, WeightsError
from vadcli.weights.entries import Entry

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
