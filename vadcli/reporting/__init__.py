"""Makes reports of events and failures: an HTML page, or a digest for a mail or a program.

`stories` reads the results of the scans. `archive` counts them, chooses those that a report lists, and writes sentences about
them. `pictures` makes score curves, thumbnails and one picture per camera that are small enough for a page. `html` writes the
page and the digests. `search_page` writes the results of a search.
"""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vadcli.errors import DocumentError, UsageError, VideoError
from vadcli.options import ReportOptions, parse_duration
from vadcli.rendering import RenderSettings, render_video
from vadcli.reporting.archive import Archive, collect
from vadcli.reporting.html import Shown, by_importance, make_page, to_email, to_json, to_markdown
from vadcli.reporting.pictures import EventKey, InFolder, InPage, Strip, camera_frames, packed_curves, strips
from vadcli.reporting.stories import VideoStory
from vadcli.store import OutputLayout, event_clip, printable
from vadcli.store.atomic import Scratch, writing
from vadcli.types import Event
from vadcli.types.text import how_many
from vadcli.video.loader import loader_options

log = logging.getLogger("vadcli")

STDOUT = Path("-")
CURVE_SHARE = 0.2  # the score curves may take this share of a page's size
POINTS_BESIDE = 4_000_000  # points of all curves together, if the curves are in files beside the page
CLIP_HEIGHT_PX = 480


@dataclass(frozen=True)
class WrittenReport:
    """A report that was made.

    Attributes:
        archive: the events and failures that the report shows.
        text: the page or digest.
        file: the file that was written. None if the caller must print the text, because it is meant for stdout.
    """

    archive: Archive
    text: str
    file: Path | None


def read_archive(out: Path, options: ReportOptions) -> Archive:
    """Return the results of the scans in a folder, for the times and videos that the options choose.

    Raises:
        UsageError: the folder does not exist.
    """
    if not out.is_dir():
        raise UsageError(f"{out}: the folder does not exist", hint="name the --out folder of a scan")
    when, rules = options.when(), options.time_rules()
    return collect(OutputLayout(out), since=options.since, include=options.include, between=when.between, rules=rules)


def make_report(archive: Archive, options: ReportOptions) -> WrittenReport:
    """Return the page or digest of an archive, after writing it to `options.to`.

    If the report can't be made, an earlier report file is unchanged.

    Raises:
        OutputError: the report can't be written.
    """
    to = options.to or (archive.layout.out / "report.html" if options.format == "html" else STDOUT)
    with ExitStack() as stack:
        scratch = stack.enter_context(Scratch(archive.layout.scratch))
        folder = None if options.assets is None else stack.enter_context(InFolder(options.assets, to))
        if options.format == "html":
            text = _page(archive, folder, scratch, options)
        elif options.format == "json":
            text = json.dumps(to_json(archive), ensure_ascii=False, allow_nan=False, indent=2) + "\n"
        elif options.format == "email":
            subject = printable(options.title)
            text = to_email(archive, sender=options.mail_from, recipients=options.mail_to, subject=subject)
        else:
            text = to_markdown(archive)
        if to != STDOUT:
            _write(text, to, archive, scratch)
        if folder is not None:
            folder.settle()
    return WrittenReport(archive, text, None if to == STDOUT else to)


def _write(text: str, to: Path, archive: Archive, scratch: Scratch) -> None:
    if to.exists() and not to.is_file():  # a pipe or a device must not be replaced by a file
        with writing(to):
            to.write_text(text, encoding="utf-8")
    elif to.absolute().is_relative_to(archive.layout.out.absolute()):
        scratch.write_text(to, text)
    else:
        with Scratch(to.absolute().parent / f".{to.name}.tmp") as beside:
            beside.write_text(to, text)


def _page(archive: Archive, folder: InFolder | None, scratch: Scratch, options: ReportOptions) -> str:
    decode = loader_options(options)
    problems: list[str] = []
    room = int(options.max_mb * 1e6)
    points = int(room * CURVE_SHARE * 3 / 4) if folder is None else POINTS_BESIDE
    scored = archive.cameras if archive.is_whole else {}
    curves = packed_curves(archive.layout, scored, budget=points, problems=problems)
    pictured = by_importance(archive)[: options.pictured]
    found: dict[EventKey, Strip] = {}
    if options.thumbnails:
        found = dict(
            strips(archive, pictured, count=options.thumbnails, root=options.footage, decode=decode, problems=problems)
        )
    clips = _clips(archive, pictured, scratch=scratch, options=options, problems=problems) if options.clips else {}
    frames = {}
    if options.thumbnails and archive.is_whole:
        frames = camera_frames(archive, most=options.pictured, root=options.footage, decode=decode)
    shown = Shown(curves, found, clips, frames)
    problems = [printable(line) for line in problems]
    title = printable(options.title)
    for line in problems:
        log.warning("%s", line)
    if folder is not None:
        return make_page(archive, shown, folder, problems=problems, title=title)
    bare = make_page(archive, Shown(curves, {}, {}), InPage(0), problems=problems, title=title)
    store = InPage(max(0, room - len(bare.encode())))
    page = make_page(archive, shown, store, problems=problems, title=title)
    if store.refused:
        log.warning(
            "%s left out: with more, the page would be larger than --max-mb %g",
            how_many(store.refused, "picture or clip").replace("picture or clips", "pictures and clips"),
            options.max_mb,
        )
    return page


@dataclass(frozen=True)
class _ClipLayout(OutputLayout):
    """The layout of a scan's output folder, except that the rendered files are in another folder.

    Attributes:
        elsewhere: the folder for the rendered files.
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
    """Return the clip of each event whose footage is found, as MP4 data. Errors are added to `problems`."""
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
