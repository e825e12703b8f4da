"""`vadcli render`: scanned footage to videos with masks, scores and events burnt in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vadcli.cli._shared import RenderDisplay, emit_json, loader_options, log, set_up_talk, with_options
from vadcli.errors import DocumentError, NoVideoFound, UsageError, VideoError
from vadcli.options import RenderOptions, parse_duration

if TYPE_CHECKING:
    from vadcli.engine.plan import WorkUnit
    from vadcli.rendering import RenderSettings
    from vadcli.store import OutputLayout
    from vadcli.store.atomic import Scratch

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
    from vadcli.engine.plan import make_plan
    from vadcli.rendering import RenderSettings
    from vadcli.store import OutputLayout
    from vadcli.store.atomic import Scratch

    set_up_talk(options)
    if not options.out.is_dir():
        raise UsageError(f"{options.out}: there are no results", hint="scan first, or name the scan's folder with --out")
    layout = OutputLayout(options.out)
    plan = make_plan(paths or [], options, out=options.out, root=scanned_root(layout, paths or []))
    if not plan.units and not options.allow_empty:
        raise NoVideoFound(f"no video below {', '.join(plan.roots)}")
    settings = RenderSettings(
        events_only=options.events_only,
        pad_s=parse_duration(options.pad, "pad"),
        side_by_side=options.side_by_side,
        max_height_px=options.max_height,
        fps=options.fps,
        decode=loader_options(options),
    )
    with Scratch(layout.scratch) as scratch:
        lost = [unit.video for unit in plan.units if not _render_one(unit, layout, settings, scratch, options)]
    if lost:
        raise typer.Exit(3)


def scanned_root(layout: OutputLayout, paths: list[Path]) -> Path | None:
    """The folder that the results' names are relative to, where all paths lie below it; None where they do not."""
    from vadcli.store import told_paths
    from vadcli.store.run_record import read_run

    try:
        roots = map(Path, told_paths(read_run(layout.run_json).info.root))
    except DocumentError:
        return None
    return next((root for root in roots if all(Path(os.path.abspath(path)).is_relative_to(root) for path in paths)), None)


def _render_one(
    unit: WorkUnit, layout: OutputLayout, settings: RenderSettings, scratch: Scratch, options: RenderOptions
) -> bool:
    """Render a video; False where it could not be done, or not whole."""
    from vadcli.rendering import render_video

    done = layout.rendered(unit.video)
    if not options.force and not options.events_only and _is_newer(done, layout.events(unit.video)):
        log.info("%s: rendered already (--force renders again)", unit.video)
        return True
    display = RenderDisplay(unit.video, options)
    try:
        result = render_video(
            unit.path, video=unit.video, layout=layout, settings=settings, scratch=scratch, progress=display.advance
        )
    except (DocumentError, VideoError) as error:
        _say(unit.video, [], [str(error)], options)
        return False
    finally:
        display.close()
    _say(unit.video, [str(path) for path in result.files], list(result.problems), options)
    return not result.problems


def _say(video: str, files: list[str], problems: list[str], options: RenderOptions) -> None:
    if options.json:
        emit_json({"type": "rendered", "video": video, "files": files, "problems": problems})
    for problem in problems:
        log.error("%s: %s", video, problem)
    if not problems or files:
        log.info("%s: %s", video, _listed(files) if files else "no events")


def _listed(files: list[str]) -> str:
    """All of them, or the first and the last where they are many."""
    return ", ".join(files) if len(files) <= MOST_LISTED else f"{len(files)} files, {files[0]} to {Path(files[-1]).name}"


def _is_newer(path: Path, than: Path) -> bool:
    try:
        return path.stat().st_mtime_ns > than.stat().st_mtime_ns
    except OSError:
        return False
