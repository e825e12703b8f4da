"""Makes reports of events and failures, as a page or as a digest. Also searches for moments.

`archive` reads the stored results, counts them, chooses the results that a report lists, and writes sentences about them.
`pictures` makes score curves, thumbnails and one picture per camera that are small enough for a page. `html` writes the page
and the digests of a report.
"""

from __future__ import annotations

import base64
import csv
import errno
import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vadcli import __version__
from vadcli.errors import DocumentError, UsageError, VideoError
from vadcli.options import ReportOptions, SearchOptions, parse_duration
from vadcli.rendering import RenderSettings, render_video
from vadcli.reporting.archive import Archive, Counts, Summaries, VideoSummary, collect
from vadcli.reporting.html import Shown, asset, by_importance, make_page, policy, template, to_email, to_json, to_markdown
from vadcli.reporting.pictures import (
    EventKey,
    InFolder,
    InPage,
    Strip,
    camera_frames,
    packed_curves,
    read_picture,
    strips,
)
from vadcli.store import OutputLayout, event_clip, json_text, matches, printable, stored_layout
from vadcli.store.atomic import Scratch, output_error, writing
from vadcli.store.events import read_events
from vadcli.types import BoolArray, Event, TimeArray
from vadcli.types.text import clock, how_many, no_folder
from vadcli.video.loader import loader_options

if TYPE_CHECKING:
    from vadcli.vectors import Moment

log = logging.getLogger("vadcli")

STDOUT = Path("-")
CURVE_SHARE = 0.2  # the score curves may use this share of a page's size
POINTS_BESIDE = 4_000_000  # points of all curves together, if the curves are in files beside the page
CLIP_HEIGHT_PX = 480
COLUMNS = ("video", "camera", "start_s", "end_s", "peak_s", "peak_frame", "score", "similarity", "start_time", "end_time")
"""The columns of a search result as CSV."""


@dataclass(frozen=True)
class WrittenReport:
    """A report, or the result of a search.

    Attributes:
        archive: the events and failures that the report shows, or the videos in which the search found moments.
        text: the page, digest or table.
        file: the file that was written. None if no file was written, because the text is for stdout.
    """

    archive: Archive
    text: str
    file: Path | None


def read_archive(out: Path, options: ReportOptions) -> Archive:
    """Return the results of the scans in a folder, for the times and videos that the options choose.

    Raises:
        UsageError: the folder does not exist, or has no results.
    """
    if not out.is_dir():
        raise UsageError(f"{out}: {no_folder(out)}", hint="name the output folder of a scan")
    when, rules = options.when(), options.time_rules()
    return collect(OutputLayout(out), since=options.since, include=options.include, between=when.between, rules=rules)


def make_report(archive: Archive, options: ReportOptions) -> WrittenReport:
    """Write the page or digest of an archive to `options.to`, and return the report.

    If the report can't be written, an earlier file at `options.to` stays as it is.

    Raises:
        OutputError: the report can't be written.
    """
    to = options.to or (archive.layout.out / "report.html" if options.format == "html" else STDOUT)
    with ExitStack() as stack:
        write = None if to == STDOUT else stack.enter_context(_file(to))
        scratch = stack.enter_context(Scratch(archive.layout.scratch))
        folder = None if options.assets is None else stack.enter_context(InFolder(options.assets, to))
        if options.format == "html":
            text = _page(archive, folder, scratch, options)
        elif options.format == "json":
            text = json_text(to_json(archive))
        elif options.format == "email":
            subject = printable(options.title)
            text = to_email(archive, sender=options.mail_from, recipients=options.mail_to, subject=subject)
        else:
            text = to_markdown(archive)
        if write is not None:
            write(text)
        if folder is not None:
            folder.settle()
    return WrittenReport(archive, text, None if to == STDOUT else to)


@contextmanager
def _file(to: Path) -> Iterator[Callable[[str], None]]:
    """Check that a file can be written, before much work is done. Yield a function that writes the text of the file.

    Raises:
        OutputError: the file can't be written.
    """
    if to.exists() and not to.is_file():  # a pipe or a device must not be replaced by a file

        def write(text: str) -> None:
            """Write the text into the pipe or device."""
            with writing(to):
                to.write_text(text, encoding="utf-8")

        if to.is_dir():
            raise output_error(to, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
        yield write
        return
    with Scratch(to.absolute().parent / f".{to.name}.tmp") as beside:
        yield partial(beside.write_text, to)


def _page(archive: Archive, folder: InFolder | None, scratch: Scratch, options: ReportOptions) -> str:
    """Return the HTML page of a report. Assets are stored in `folder`; if `folder` is None, they are part of the page."""
    decode = loader_options(options)
    problems: list[str] = []
    room = int(options.max_mb * 1e6)
    points = int(room * CURVE_SHARE * 3 / 4) if folder is None else POINTS_BESIDE
    scored = archive.cameras if archive.is_whole else {}
    curves = packed_curves(archive.layout, scored, budget=points, problems=problems)
    pictured = by_importance(archive)[: options.pictured]
    thumbnails: dict[EventKey, Strip] = {}
    if options.thumbnails:
        thumbnails = dict(
            strips(archive, pictured, count=options.thumbnails, root=options.footage, decode=decode, problems=problems)
        )
    clips = _clips(archive, pictured, scratch=scratch, options=options, problems=problems) if options.clips else {}
    frames = {}
    if options.thumbnails and archive.is_whole:
        frames = camera_frames(archive, most=options.pictured, root=options.footage, decode=decode)
    shown = Shown(curves, thumbnails, clips, frames)
    problems = [printable(line) for line in problems]
    title = printable(options.title)
    for line in problems:
        log.warning("%s", line)
    if folder is not None:
        return make_page(archive, shown, folder, problems=problems, title=title)
    # Make the page without pictures and clips first. Its size shows how many bytes --max-mb leaves for pictures and clips.
    bare = make_page(archive, Shown(curves, {}, {}), InPage(0), problems=problems, title=title)
    store = InPage(max(0, room - len(bare.encode())))
    page = make_page(archive, shown, store, problems=problems, title=title)
    if store.refused:
        log.warning(
            "%s left out, because the page would become larger than --max-mb %g",
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
        """Return the path of the rendered video in the other folder."""
        return OutputLayout(self.elsewhere).rendered(video)


def _clips(
    archive: Archive,
    pictured: list[tuple[VideoSummary, Event]],
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
    keys = {(video.video, event.id) for video, event in pictured}
    clips = {}
    for video in sorted({video for video, _ in keys}):
        source = archive.footage(video, options.footage)
        if source is None:
            continue
        try:
            result = render_video(source, video=video, layout=layout, settings=settings, scratch=scratch)
            problems.extend(f"{video}: clips: {line}" for line in result.problems)
        except (DocumentError, VideoError) as error:
            problems.append(f"{video}: no clips: {error.message}")
        for key in (key for key in keys if key[0] == video):
            path = event_clip(layout.rendered(video), key[1])
            if path.exists():
                clips[key] = path.read_bytes()
    return clips


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        query: the text, or the name of the picture.
        archive: the archive that was searched, with the videos in which moments were found.
        moments: the moments that were found, the best first.
        problems: one line per file that could not be read.
    """

    query: str
    archive: Archive
    moments: list[Moment]
    problems: list[str]


def search_all(out: Path, text: str, options: SearchOptions) -> SearchResult:
    """Return the moments that fit a sentence or a picture best, with the archive and the problems.

    Raises:
        UsageError, WeightsError: as in `vadcli.search`.
    """
    from vadcli.vectors import at_times, encoders_in, find, query_vector, rows_in

    if bool(text) == (options.image is not None):
        raise UsageError("search needs a text or --image FILE", hint='for example: vadcli search OUT "a red car"')
    layout = stored_layout(out)
    if options.to is not None:
        with _file(options.to):  # to fail before the encoder is loaded
            pass
    problems: list[str] = []
    encoders = encoders_in(layout)
    first = next(encoders, None)
    if first is None:
        raise UsageError(f"{out}: contains no stored vectors", hint="scan with --detector concept first")
    summaries = Summaries(layout, since=options.since, include=options.include, rules=options.time_rules(), problems=[])
    when = options.when()

    @lru_cache(maxsize=options.top)
    def summary_of(video: str) -> VideoSummary | None:
        """Return the summary of a video; None if its events document can't be read."""
        with suppress(DocumentError):
            return summaries.of(read_events(layout.events(video)))
        return None

    def rows_of(video: str, timestamp: TimeArray) -> BoolArray | None:
        """Return which frames lie in the chosen times; None if the video is left out."""
        summary = summary_of(video)  # None if the options do not choose the video, or if its events document can't be read
        return np.zeros(len(timestamp), np.bool_) if summary is None else rows_in(timestamp, summary.start, when)

    chosen = ((name, key) for name, key in chain([first], encoders) if options.encoder in ("", name))
    name, key = next(chosen, (options.encoder, ""))
    picture = None if options.image is None else read_picture(options.image)
    query = query_vector(name, key, device=options.device, text=text, picture=picture)
    moments = find(
        layout,
        query,
        encoder_key=key,
        top=options.top,
        keep=lambda video, camera: matches(video, options.include) and matches(camera, options.camera),
        rows=rows_of,
        problems=problems,
    )
    summaries_found = {moment.video: summary for moment in moments if (summary := summary_of(moment.video))}
    moments = [at_times(moment, summaries_found[moment.video].start) for moment in moments]
    archive = Archive(layout, summaries.runs, tuple(summaries_found.values()), Counts(), ())
    return SearchResult(text or str(options.image), archive, moments, problems)


def write_search(result: SearchResult, options: SearchOptions) -> WrittenReport:
    """Return the result of a search as a table, as CSV or as a page.

    A page is written to `options.to` or to `search.html`. A table or CSV is written only if `options.to` is given. If pictures
    of a video can't be made, one line is added to the problems of `result`.

    Raises:
        OutputError: the file can't be written.
    """
    if options.format == "html":
        text = _search_page(result, options)
    else:
        text = _search_csv(result) if options.format == "csv" else _search_table(result)
    to = options.to or (result.archive.layout.out / "search.html" if options.format == "html" else None)
    if to is not None:
        with _file(to) as write:
            write(text)
    return WrittenReport(result.archive, text, to)


def _search_table(result: SearchResult) -> str:
    """Return one line per moment: score, date and time if known, times in the video, and video."""
    lines = [
        "  ".join((f"{moment.score:.2f}", *_when(moment), f"{clock(moment.start_s)}-{clock(moment.end_s)}", moment.video))
        for moment in result.moments
    ]
    return "".join(f"{line}\n" for line in lines) or "nothing found\n"


def _when(moment: Moment) -> list[str]:
    """Return the date and time of a moment in its camera's time zone; empty if they are unknown."""
    return [moment.start_time[:19].replace("T", " ")] if moment.start_time else []


def _search_csv(result: SearchResult) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(moment, name) for name in COLUMNS] for moment in result.moments)
    return file.getvalue()


def _search_page(result: SearchResult, options: SearchOptions) -> str:
    """Return one HTML file with a picture of each moment whose footage is found."""
    summaries = {summary.video: summary for summary in result.archive.videos}
    peaks = []
    for number, moment in enumerate(result.moments, 1):
        # `strips` makes pictures of events only. So make an event that has only the best frame of the moment.
        peak = Event(
            id=number,
            start_frame=moment.peak_frame,
            end_frame=moment.peak_frame + 1,
            start_s=moment.peak_s,
            end_s=moment.peak_s,
            peak_frame=moment.peak_frame,
            peak_s=moment.peak_s,
            peak_score=moment.score,
            mean_score=moment.score,
        )
        peaks.append((summaries[moment.video], peak))
    decode = loader_options(options)
    pictures = dict(strips(result.archive, peaks, count=1, root=options.footage, decode=decode, problems=result.problems))
    cards = []
    for number, moment in enumerate(result.moments, 1):
        strip = pictures.get((moment.video, number))
        cards.append(
            {
                "moment": moment,
                "when": " ".join(_when(moment)),
                "picture": base64.b64encode(strip.frames[0]).decode() if strip else "",
                "size": (strip.width, strip.height) if strip else (0, 0),
            }
        )
    style = asset("page.css") + asset("search.css")
    return template("search.html.j2").render(
        result=result,
        cards=cards,
        made=datetime.now(UTC),
        version=__version__,
        style=style,
        policy=policy("", style, beside=False),
    )
