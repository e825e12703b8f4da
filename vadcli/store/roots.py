"""The root of an output folder: the folder that the names of videos and cameras are relative to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vadcli.errors import DocumentError
from vadcli.store import OutputLayout, told_paths
from vadcli.store.run_log import read_run


def stored_roots(layout: OutputLayout) -> Iterator[Path]:
    """Yield the roots in the run records of an output folder, the newest first, each once; none if there are no results yet.

    A new output folder has one root. Older versions took the common ancestor of each scan's paths, so that there may be
    several. Records that cannot be read are skipped.
    """
    if not _has_results(layout):
        return
    seen: set[str] = set()
    yield from _new_roots(layout.run_json, seen)
    for path in sorted(layout.iter_runs(), reverse=True):
        yield from _new_roots(path, seen)


def _new_roots(record: Path, seen: set[str]) -> Iterator[Path]:
    with suppress(DocumentError):
        root = read_run(record, head=True).info.root
        if root and root not in seen:
            seen.add(root)
            yield from map(Path, told_paths(root))


def _has_results(layout: OutputLayout) -> bool:
    cameras = layout.camera(".").parent
    found = (next(files, None) for files in (layout.iter_events(), layout.iter_checkpoints(), cameras.glob("**/*.json")))
    return any(found)
