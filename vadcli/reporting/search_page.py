"""Searches an archive, and writes the result as a table, as CSV, or as an HTML page with pictures."""

from __future__ import annotations

import base64
import csv
import io
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np

from vadcli import __version__
from vadcli.errors import DocumentError, UsageError
from vadcli.options import SearchOptions
from vadcli.reporting.archive import Archive, Counts
from vadcli.reporting.html import asset, policy, template
from vadcli.reporting.pictures import read_picture, strips
from vadcli.reporting.stories import Stories, VideoStory
from vadcli.searching import Moment, at_times, encoders_in, find, query_vector, rows_in
from vadcli.store import OutputLayout, matches
from vadcli.store.events import read_events
from vadcli.types import BoolArray, Event, TimeArray
from vadcli.types.text import clock
from vadcli.video.loader import LoaderOptions

COLUMNS = ("video", "camera", "start_s", "end_s", "peak_s", "peak_frame", "score", "similarity", "start_time", "end_time")


@dataclass(frozen=True)
class Found:
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


def search_all(out: Path, text: str, options: SearchOptions) -> Found:
    """Return the moments that `vadcli.search` finds, with the searched archive and the problems.

    Raises:
        UsageError, WeightsError: as in `vadcli.search`.
    """
    if bool(text) == (options.image is not None):
        raise UsageError("search needs a text or --image FILE", hint='for example: vadcli search OUT "a red car"')
    if not out.is_dir():
        raise UsageError(f"{out}: the folder does not exist", hint="name the --out folder of a scan")
    layout = OutputLayout(out)
    problems: list[str] = []
    stored = encoders_in(layout)
    first = next(stored, None)
    if first is None:
        raise UsageError(f"{out}: contains no stored vectors", hint="scan with --detector concept first")
    if not layout.has_results:
        raise UsageError(f"{out}: contains no results of a scan", hint="name the --out folder of a scan")
    chooser = Stories(layout, since=options.since, include=options.include, rules=options.time_rules(), problems=[])
    when = options.when()

    @lru_cache(maxsize=options.top)
    def story_of(video: str) -> VideoStory | None:
        with suppress(DocumentError):
            return chooser.of(read_events(layout.events(video)))
        return None

    def rows_of(video: str, timestamp: TimeArray) -> BoolArray | None:
        story = story_of(video)  # None if the video is not chosen, or its document can't be read
        return np.zeros(len(timestamp), np.bool_) if story is None else rows_in(timestamp, story.start, when)

    asked = ((name, key) for name, key in chain([first], stored) if options.encoder in ("", name))
    name, key = next(asked, (options.encoder, ""))
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
    found = {one.video: story for one in moments if (story := story_of(one.video))}
    moments = [at_times(one, found[one.video].start) for one in moments]
    archive = Archive(layout, chooser.runs, tuple(found.values()), Counts(), ())
    return Found(text or str(options.image), archive, moments, problems)


def to_table(found: Found) -> str:
    """Return one line per moment: score, date and time if known, times in the video, and video."""
    lines = [
        "  ".join((f"{one.score:.2f}", *_when(one), f"{clock(one.start_s)}-{clock(one.end_s)}", one.video))
        for one in found.moments
    ]
    return "".join(f"{line}\n" for line in lines) or "nothing found\n"


def _when(moment: Moment) -> list[str]:
    """Return the date and time of a moment in its camera's time zone; empty if they are unknown."""
    return [moment.start_time[:19].replace("T", " ")] if moment.start_time else []


def to_csv(found: Found) -> str:
    """Return the moments as CSV with a header."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(one, name) for name in COLUMNS] for one in found.moments)
    return file.getvalue()


def to_page(found: Found, *, root: Path | None, decode: LoaderOptions) -> str:
    """Return one HTML file with a picture of each moment whose footage is found.

    Args:
        found: the result. One line is added to its `problems` per video whose pictures can't be made.
        root: the folder that holds the footage now; None if the footage is still where it was scanned.
    """
    stories = {story.video: story for story in found.archive.videos}
    wanted = []
    for number, one in enumerate(found.moments, 1):
        # Thumbnails are made from events: here, an event of one frame.
        peak = Event(
            id=number,
            start_frame=one.peak_frame,
            end_frame=one.peak_frame + 1,
            start_s=one.peak_s,
            end_s=one.peak_s,
            peak_frame=one.peak_frame,
            peak_s=one.peak_s,
            peak_score=one.score,
            mean_score=one.score,
        )
        wanted.append((stories[one.video], peak))
    made = dict(strips(found.archive, wanted, count=1, root=root, decode=decode, problems=found.problems))
    style = asset("page.css") + asset("search.css")
    cards = []
    for number, moment in enumerate(found.moments, 1):
        strip = made.get((moment.video, number))
        picture = base64.b64encode(strip.frames[0]).decode() if strip else ""
        cards.append(
            {
                "moment": moment,
                "when": " ".join(_when(moment)),
                "picture": picture,
                "size": (strip.width, strip.height) if strip else (0, 0),
            }
        )
    return template("search.html.j2").render(
        found=found,
        cards=cards,
        made=datetime.now(UTC),
        version=__version__,
        style=style,
        policy=policy("", style, beside=False),
    )
