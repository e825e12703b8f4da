"""Files from their source into the folder that is being built: linked where possible, copied else."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vadcli import weights
from vadcli.errors import WeightsError

OWN_NAME = "lavida.safetensors"
TEXT_FILES = ("*.json", "*.txt", "*.jinja", "LICENSE*")


@dataclass
class Imported:
    """A LAVIDA folder that was built.

    Attributes:
        folder: where.
        trained: its own part was trained.
        linked, copied: files that share their bytes with their source, or hold their own.
        converted: parts that were rewritten or drawn.
        notes: what else a person should know.
    """

    folder: Path
    trained: bool = False
    linked: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As `vadcli weights import --json` prints it."""
        return {
            "folder": str(self.folder),
            "trained": self.trained,
            "linked": self.linked,
            "copied": self.copied,
            "converted": self.converted,
            "notes": self.notes,
        }


def place_model(source: Path, folder: Path, result: Imported) -> None:
    """Put a transformers folder's safetensors, configuration and tokenizer into `folder`, which is there already."""
    for path in files_of(source, ("*.safetensors",)):
        place(path, folder / path.name, result)
    for path in files_of(source, TEXT_FILES):
        place(path, folder / path.name, result, link=False)


def place(source: Path, target: Path, result: Imported, *, link: bool = True) -> None:
    """Link or copy a file. What may be written to later must not be linked: the source would change with it."""
    name = target.relative_to(target.parents[1] if target.name != OWN_NAME else target.parent).as_posix()
    if link:
        try:
            os.link(source.resolve(), target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
                raise
        else:
            result.linked.append(name)
            return
    shutil.copy2(source, target)
    result.copied.append(name)


def files_of(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files of a folder whose names match, sorted."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != weights.CHECKSUMS_NAME)
    return [folder / name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def can_link(path: Path, folder: Path) -> bool:
    """Whether a file of weights is likely to become a link in `folder`: both lie on one file system."""
    return path.suffix == ".safetensors" and path.stat().st_dev == folder.stat().st_dev


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json.

    Raises:
        WeightsError: there is none that can be read.
    """
    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = "name a folder that transformers' save_pretrained wrote"
        raise WeightsError(f"{folder}: not a model folder: its config.json can't be read", hint=hint) from error
    return document if isinstance(document, dict) else {}


def model_type(folder: Path) -> str:
    """What transformers calls the folder's architecture."""
    return str(read_config(folder).get("model_type"))
