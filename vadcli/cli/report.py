"""`vadcli report`: a page of what scans found and could not read, or a digest of it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vadcli.cli._shared import emit_json, loader_options, log, set_up_talk, with_options
from vadcli.errors import DocumentError, UsageError, VideoError
from vadcli.options import DEFAULT_OUT, ReportOptions, parse_duration
from vadcli.store import OutputLayout, printable
from vadcli.store.atomic import Scratch, writing

if TYPE_CHECKING:
    from vadcli.reporting.archive import Archive, VideoStory
    from vadcli.reporting.pictures import EventKey, InFolder, Strip
    from vadcli.types import Event

Out = Annotated[Path, typer.Argument(metavar="[OUT]", help="The scan's output folder.")]
STDOUT = Path("-")
CURVE_SHARE = 0.2
POINTS_BESIDE = 4_000_000
CLIP_HEIGHT_PX = 480


@with_options(ReportOptions, section="report")
def report(*, out: Out = DEFAULT_OUT, options: ReportOptions) -> None:
    """Make one HTML page of the events, the score curves and what could not be read, to work through in a browser.

    \b
    Examples:
      vadcli report vadcli-out
      vadcli report vadcli-out --since last-run --format email --mail-to guard@example.org | sendmail -t
      vadcli report vadcli-out --assets vadcli-out/report --to vadcli-out/report.html --clips
    """  # noqa: D301
    from vadcli.reporting.archive import collect

    set_up_talk(options)
    if not out.is_dir():
        raise UsageError(f"{out}: there is no such folder", hint="name the --out folder of a scan")
    layout = OutputLayout(out)
    archive = collect(layout, since=options.since, include=options.include)
    for line in archive.problems:
        log.error("%s", line)
    if options.json:
        from vadcli.reporting.html import to_json

        emit_json(to_json(archive))
    else:
        _write(archive, options.to or _default_target(layout, options), options)
    if archive.failures or archive.problems:
        raise typer.Exit(3)
    if options.fail_on_event and archive.events:
        raise typer.Exit(10)


def _default_target(layout: OutputLayout, options: ReportOptions) -> Path:
    return layout.out / "report.html" if options.format == "html" else STDOUT


def _write(archive: Archive, to: Path, options: ReportOptions) -> None:
    from vadcli.reporting.pictures import InFolder

    with ExitStack() as stack:
        scratch = stack.enter_context(Scratch(archive.layout.scratch))
        folder = None if options.assets is None else stack.enter_context(InFolder(options.assets, to))
        text = _page(archive, folder, scratch, options) if options.format == "html" else _digest(archive, options)
        if to == STDOUT:
            typer.echo(text, nl=False)
        elif to.exists() and not to.is_file():  # a pipe or a device is written into, never replaced
            with writing(to):
                to.write_text(text, encoding="utf-8")
        elif to.absolute().is_relative_to(archive.layout.out.absolute()):
            scratch.write_text(to, text)
        else:
            with Scratch(to.absolute().parent / f".{to.name}.tmp") as beside:
                beside.write_text(to, text)
        if folder is not None:
            folder.settle()
    if to != STDOUT:
        log.info("%s: %.1f MB", to, len(text.encode()) / 1e6)


def _digest(archive: Archive, options: ReportOptions) -> str:
    import json

    from vadcli.reporting.html import to_email, to_json, to_markdown

    if options.format == "json":
        return json.dumps(to_json(archive), ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    if options.format == "email":
        return to_email(archive, sender=options.mail_from, recipients=options.mail_to, subject=printable(options.title))
    return to_markdown(archive)


def _page(archive: Archive, folder: InFolder | None, scratch: Scratch, options: ReportOptions) -> str:
    from vadcli.reporting.html import Shown, by_importance, make_page
    from vadcli.reporting.pictures import InPage, packed_curves, strips

    decode = loader_options(options)
    problems: list[str] = []
    room = int(options.max_mb * 1e6)
    points = int(room * CURVE_SHARE * 3 / 4) if folder is None else POINTS_BESIDE
    curves = packed_curves(archive.layout, archive.cameras, budget=points, problems=problems)
    pictured = by_importance(archive)[: options.pictured]
    found: dict[EventKey, Strip] = {}
    if options.thumbnails:
        found = dict(
            strips(archive, pictured, count=options.thumbnails, root=options.footage, decode=decode, problems=problems)
        )
    clips = _clips(archive, pictured, scratch=scratch, options=options, problems=problems) if options.clips else {}
    shown = Shown(curves, found, clips)
    problems = [printable(line) for line in problems]
    title = printable(options.title)
    for line in problems:
        log.warning("%s", line)
    if folder is not None:
        return make_page(archive, shown, folder, problems=problems, title=title)
    bare = make_page(archive, Shown(curves, {}, {}), InPage(0), problems=problems, title=title)
    shelf = InPage(max(0, room - len(bare.encode())))
    page = make_page(archive, shown, shelf, problems=problems, title=title)
    if shelf.refused:
        log.warning("%d pictures and clips are left out: the page would pass --max-mb %g", shelf.refused, options.max_mb)
    return page


@dataclass(frozen=True)
class _ClipLayout(OutputLayout):
    """The scan's folder, with rendered files elsewhere.

    Attributes:
        elsewhere: where these go.
    """

    elsewhere: Path

    def rendered(self, video: str) -> Path:
        return OutputLayout(self.elsewhere).rendered(video)


def _clips(
    archive: Archive,
    pictured: list[tuple[VideoStory, Event]],
    *,
    scratch: Scratch,
    options: ReportOptions,
    problems: list[str],
) -> dict[EventKey, bytes]:
    """An MP4 of each event whose footage is still there; what can't be made goes to `problems`."""
    from vadcli.rendering import RenderSettings, event_clip, render_video

    layout = _ClipLayout(archive.layout.out, scratch.folder / "clips")
    most_s = parse_duration(options.clip_length, "clip_length")
    decode = loader_options(options)
    settings = RenderSettings(events_only=True, most_s=most_s, max_height_px=CLIP_HEIGHT_PX, decode=decode)
    wanted = {(video.video, event.id) for video, event in pictured}
    found = {}
    for video in sorted({video for video, _ in wanted}):
        source = archive.footage(video, options.footage)
        if source is None:
            continue
        try:
            result = render_video(source, video=video, layout=layout, settings=settings, scratch=scratch)
            problems.extend(f"{video}: clips: {line}" for line in result.problems)
        except (DocumentError, VideoError) as error:
            problems.append(f"{video}: no clips: {error.message}")
        for key in (key for key in wanted if key[0] == video):
            path = event_clip(layout.rendered(video), key[1])
            if path.exists():
                found[key] = path.read_bytes()
    return found
