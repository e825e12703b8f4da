"""Chooses the root of a scan: the folder that the names of videos and cameras are relative to.

The first scan into OUT chooses it, and every run record stores it. Later scans use the same root, whatever paths they are
given, so that a video or a camera never changes its name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import tee
from pathlib import Path

from vadcli.engine.given import absolute
from vadcli.errors import UsageError
from vadcli.types.text import is_remote, shown


class OutsideRoot(UsageError):
    """A path is not below the root of the output folder."""


def choose_root(
    given: Sequence[Path], *, asked: Path | None, stored: Iterable[Path], out: Path
) -> tuple[Path | None, list[Path]]:
    """Return the root, and the given paths as paths below it. The root is None if no root is stored and no --root is given.

    Args:
        given: absolute paths of files and folders.
        asked: the user's --root, or None.
        stored: the roots in the run records of the output folder, the newest first.
        out: the output folder, for messages.

    Raises:
        UsageError: another root is stored, or a path is not below the root.
    """
    if asked is not None:
        root = _checked(absolute([asked])[0], stored, out)
        below = _all_below(given, root)
        if below is None:
            raise UsageError(
                f"{shown(_first_outside(given, root))}: not below --root {shown(asked)}",
                hint="name a folder that contains all PATHS",
            )
        return root, below
    newest = None
    for root in stored:
        newest = newest or root
        below = _all_below(given, root)
        if below is not None:
            return root, below
    if newest is None:
        return None, list(given)
    raise _outside(_first_outside(given, newest), newest, out)


def _checked(asked: Path, stored: Iterable[Path], out: Path) -> Path:
    """Return --root in the form in which it is stored. A new root is accepted only if none of the stored roots exists."""
    if not (is_remote(asked) or os.path.isdir(asked)):
        raise UsageError(f"--root {asked}: the folder does not exist")
    roots, again = tee(stored)
    for root in roots:
        if root == asked or os.path.realpath(root) == os.path.realpath(asked):
            return root
    there = next((root for root in again if is_remote(root) or os.path.isdir(root)), None)
    if there is not None:
        raise UsageError(
            f"--root {asked}: the names in {out} are relative to {shown(there)}", hint="leave --root out, or give another --out"
        )
    return asked


def _outside(path: Path, root: Path, out: Path) -> OutsideRoot:
    message = f"{shown(path)}: not below {shown(root)}, to which the names in {out} are relative"
    if is_remote(path) or is_remote(root):
        return OutsideRoot(message, hint="give another --out")
    if not os.path.isdir(root):
        return OutsideRoot(message, hint=f"if the footage has moved, give the folder that replaces {root} with --root")
    both = os.path.commonpath([path, root])
    return OutsideRoot(message, hint=f"give another --out, or scan both into a new --out with --root {both}")


def _first_outside(given: Sequence[Path], root: Path) -> Path:
    return next(path for path in given if _below(path, root) is None)


def _all_below(given: Sequence[Path], root: Path) -> list[Path] | None:
    found = [below for path in given if (below := _below(path, root)) is not None]
    return found if len(found) == len(given) else None


def _below(path: Path, root: Path) -> Path | None:
    """Return the path as a path below the root, even if it leads there through a link. None if it is outside of the root."""
    if path.is_relative_to(root):
        return path
    if is_remote(path) or is_remote(root):
        return None
    real, real_root = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    return root / real.relative_to(real_root) if real.is_relative_to(real_root) else None
