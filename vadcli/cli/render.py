"""`vadcli render`: scanned footage to videos with masks, scores and events burnt in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vadcli.cli._shared import RenderDisplay, emit_json, log, set_up_talk, with_options
from vadcli.options import RenderOptions

if TYPE_CHECKING:
    from vadcli.rendering import Progress, RenderResult

MOST_LISTED = 3

Paths = Annotated[list[Path] | None, typer.Argument(metavar="FOOTAGE...", help="The files and folders that were scanned.")]


@with_options(RenderOptions, section="render")
def render(*, paths: Paths = None, options: RenderOptions) -> None:
    """Burn masks, score curve, time and event captions into MP4 videos.

    Name the same FOOTAGE as in the scan, or any part of it.

    \b
    Examples:
      vadcli render ./footage
      vadcli render ./footage/cam1 --events-only --pad 5s --out results
    """  # noqa: D301
    from vadcli.api import render_all

    set_up_talk(options)

    @contextmanager
    def watch(video: str) -> Iterator[Progress]:
        with closing(RenderDisplay(video, options)) as display:
            yield display.advance

    incomplete = False
    for result in render_all(paths or [], options, watch=watch):
        _say(result, options)
        incomplete |= bool(result.problems)
    if incomplete:
        raise typer.Exit(3)


def _say(result: RenderResult, options: RenderOptions) -> None:
    if result.skipped:
        log.info("%s: rendered already (--force renders again)", result.video)
        return
    files = [str(path) for path in result.files]
    if options.json:
        emit_json({"type": "rendered", "video": result.video, "files": files, "problems": list(result.problems)})
    for problem in result.problems:
        log.error("%s: %s", result.video, problem)
    if not result.problems or files:
        log.info("%s: %s", result.video, _listed(files) if files else "no events")


def _listed(files: list[str]) -> str:
    """Name all files, or the first and the last of many."""
    return ", ".join(files) if len(files) <= MOST_LISTED else f"{len(files)} files, {files[0]} to {Path(files[-1]).name}"
