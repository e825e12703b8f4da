"""Reads the root of an output folder: the folder that the names of videos and cameras are relative to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from vadcli.errors import DocumentError
from vadcli.store import OutputLayout, told_paths
from vadcli.store.run_log import read_run


def stored_roots(layout: OutputLayout) -> Iterator[Path]:
    """Yield the roots in the run records of an output folder, the newest first, each once.

    Today, an output folder has one root. Older versions took the common ancestor of each scan's paths, so an old folder may
    have several roots. If a folder has no results, the roots of its ended runs are left out. Unreadable records are skipped.
    """
    has_results = _has_results(layout)
    seen: set[str] = set()
    for path in chain([layout.run_json], sorted(layout.iter_runs(), reverse=True)):
        with suppress(DocumentError):
            run = read_run(path, head=True)
            if run.info.root and run.info.root not in seen and (has_results or run.end is None):
                seen.add(run.info.root)
                yield from map(Path, told_paths(run.info.root))


def _has_results(layout: OutputLayout) -> bool:
    cameras = layout.camera(".").parent
    found = (next(files, None) for files in (layout.iter_events(), layout.iter_checkpoints(), cameras.glob("**/*.json")))
    return any(found)
