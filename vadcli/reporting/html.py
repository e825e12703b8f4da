"""Writes a report as an HTML page, or writes a short version of it (a digest) as Markdown, JSON or a mail.

The page is one file that opens from disk without a network. Its content security policy allows only its own scripts, so that no
text in the data can run as a script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from vadcli import __version__
from vadcli.reporting.archive import MOST_VIDEOS, SOURCES, Archive, VideoSummary, no_events_text, run_facts, time_sources
from vadcli.reporting.pictures import AssetStore, EventKey, Strip, highest_score
from vadcli.store import printable
from vadcli.types import Event
from vadcli.types.text import clock, counted, length_text

SCRIPTS = ("uplot/uPlot.iife.min.js", "dom.js", "review.js", "regions.js", "timeline.js", "table.js", "main.js")
STYLES = ("uplot/uPlot.min.css", "page.css", "regions.css")
LIBRARIES = ("uPlot 1.6.32, MIT licence, © 2022 Leon Sorokin",)
EVENT_FIELDS = (
    "video", "id", "start_frame", "end_frame", "start_s", "end_s", "peak_s", "peak_score", "head_score", "category",
    "start_time", "verified", "described", "strip", "clip",
)  # fmt: skip
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Shown:
    """The curves, thumbnails and clips of a page.

    Attributes:
        curves: the score curve of each video, as `pictures.pack` returns it.
        strips: the thumbnails of some events, the most important first.
        clips: MP4 data of some events.
        frames: a frame of each camera as WebP data.
    """

    curves: Mapping[str, str]
    strips: Mapping[EventKey, Strip]
    clips: Mapping[EventKey, bytes]
    frames: Mapping[str, bytes] = field(default_factory=dict)


def make_page(archive: Archive, shown: Shown, assets: AssetStore, *, problems: Sequence[str], title: str = "") -> str:
    """Return the HTML of the page.

    Args:
        assets: where to store the curves, thumbnails and clips.
        problems: one line per curve, thumbnail or clip that could not be made.
        title: the heading; "" stands for the name of the archive's folder.

    Raises:
        OutputError: an asset can't be written.
    """
    data = _data(archive, shown, assets)
    script = "\n".join(map(asset, SCRIPTS))
    style = "\n".join(map(asset, STYLES))
    layout, ranked = archive.layout, by_importance(archive)
    first, learn = None, ""
    if ranked:
        video, event = ranked[0]
        keys = [(any_video.video, any_event.id) for any_video in archive.videos for any_event in any_video.events]
        first = {"video": video, "event": event, "place": keys.index((video.video, event.id))}
    if next(layout.iter_embeddings(), None) is not None:  # the path is absolute, so that the command works in any folder
        learn = f"vadcli learn {shlex.quote(str(layout.out.absolute()))} --review review.json --to my-head"
    return template("page.html.j2").render(
        archive=archive,
        title=title or archive.name,
        made=datetime.now(UTC),
        version=__version__,
        facts=run_facts(archive),
        problems=[*archive.problems, *problems],
        caveats=archive.caveats,
        first=first,
        no_events=None if archive.events else no_events_text(archive, highest_score(shown.curves.values())),
        time_sources=time_sources(archive),
        categories=sorted({event.category for video in archive.videos for event in video.events if event.category}),
        verified=any(event.verification for video in archive.videos for event in video.events),
        most_videos=MOST_VIDEOS,
        cameras=None if archive.is_whole else archive.busiest,
        out=shlex.quote(printable(str(layout.out))),
        learn=learn,
        libraries=LIBRARIES,
        policy=policy(script, style, beside=assets.beside),
        script=script,
        style=style,
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES),
    )


def by_importance(archive: Archive) -> list[tuple[VideoSummary, Event]]:
    """Return (video, event) for all listed events, the event with the highest peak score first."""
    events = [(video, event) for video in archive.videos for event in video.events]
    return sorted(events, key=lambda item: (-item[1].peak_score, item[0].video, item[1].id))


def _data(archive: Archive, shown: Shown, assets: AssetStore) -> dict[str, Any]:
    """Return the data for the page's scripts."""
    pictures: dict[EventKey, tuple[Any, str | None]] = {}
    for video, event in by_importance(archive):  # the highest score first, because the page may not have room for all pictures
        key = (video.video, event.id)
        strip, clip = shown.strips.get(key), shown.clips.get(key)
        thumbnails = None
        if strip:
            urls = [assets.put(frame, "image/webp") for frame in strip.frames]
            if all(urls):
                thumbnails = [strip.width, strip.height, [round(second, 2) for second in strip.seconds], urls]
        pictures[key] = thumbnails, assets.put(clip, "video/mp4") if clip else None
    events = [
        [
            place,
            event.id,
            event.start_frame,
            event.end_frame,
            round(event.start_s, 3),
            round(event.end_s, 3),
            round(event.peak_s, 3),
            event.peak_score,
            event.head_score,
            event.category,
            video.start.text_at(event.start_s) if video.start else None,
            event.verified,
            event.described,
            *pictures[video.video, event.id],
        ]
        for place, video in enumerate(archive.videos)
        for event in video.events
    ]
    # The browser stores a review under this key. All reports of a folder have the same key.
    key_text = f"{archive.layout.out.absolute()}\0{archive.newest.info.root if archive.newest else ''}"
    return {
        "archive": hashlib.sha256(key_text.encode(errors="surrogateescape")).hexdigest()[:16],
        "generator": f"vadcli {__version__}",
        "videos": [[video.video, video.camera, video.start and video.start.source] for video in archive.videos],
        "time_sources": SOURCES,
        **({} if archive.is_whole else {"no_curves": True}),
        "cameras": _cameras(archive, shown, assets),
        "fields": EVENT_FIELDS,
        "events": events,
    }


def _cameras(archive: Archive, shown: Shown, assets: AssetStore) -> list[dict[str, Any]]:
    """Return one object per camera: the camera's videos with their curves, one frame, and the hidden regions."""
    number = {video.video: place for place, video in enumerate(archive.videos)}
    cameras = []
    for place, (name, videos) in enumerate(archive.cameras.items()):
        at, spans, packed = 0.0, [], []
        for video in videos:
            spans.append([number[video.video], round(at, 3), round(video.duration_s, 3), video.thresholds.high])
            packed.append(shown.curves.get(video.video, ""))
            at += video.duration_s
        camera: dict[str, Any] = {"name": name, "spans": spans, "end_s": round(at, 3)}
        if assets.beside:
            camera["script"] = assets.put(f"vadcli.curves({place},{json.dumps(packed)})\n".encode(), "text/javascript")
        else:
            camera["curves"] = packed
        frame = shown.frames.get(name)
        camera["frame"] = assets.put(frame, "image/webp") if frame else None
        cameras.append({**camera, "regions": videos[-1].regions.to_json()})
    return cameras


def template(name: str, *, trim_blocks: bool = True) -> Template:
    """Return a template of the folder `page`. An undefined name in a template is an error."""
    environment = Environment(
        loader=PackageLoader("vadcli.reporting", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=trim_blocks
    )
    environment.filters |= {"clock": clock, "counted": counted, "length_text": length_text}
    return environment.get_template(name)


def policy(script: str, style: str, *, beside: bool) -> str:
    """Return the content security policy.

    It allows only this script and style and, if `beside` is True, files beside the page.
    """
    files = " file: 'self'" if beside else ""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_hash(script)}'{files}",
            f"style-src '{_hash(style)}'",
            f"img-src data:{files}",
            f"media-src data:{files}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def asset(name: str) -> str:
    """Return the text of a script or style of the folder `page`."""
    return resources.files("vadcli.reporting").joinpath(f"page/{name}").read_text("utf-8")


DIGEST_FORMAT_VERSION = 1
MOST_EVENTS = 20
MOST_FAILURES = 50
MOST_CAVEATS = 10
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_[]#|<>~"})


def headline(archive: Archive) -> str:
    """Return one line: the number of events, the length of the footage, and the number of failures."""
    text = f"{counted(archive.events, 'event')} in {length_text(archive.footage_s)} of footage"
    failed = archive.counts.total.lost
    return f"{text}, {counted(failed, 'video')} failed or partial" if failed else text


def to_json(archive: Archive) -> dict[str, Any]:
    """Return the report as a JSON object. The event with the highest peak score is first."""
    events = []
    for video, event in by_importance(archive):
        times = dict.fromkeys(("start_time", "end_time", "time_source"))
        if video.start is not None:
            times = {"start_time": video.start.text_at(event.start_s), "end_time": video.start.text_at(event.end_s)}
            times["time_source"] = str(video.start.source)
        events.append({"video": video.video, "camera": video.camera, **event.to_json(), **times})
    newest, verified, verification = archive.newest, archive.verification, None
    if verified:
        names = ("model", "start", "end", "confirmed", "rejected", "not_asked")
        verification = {name: getattr(verified, name) for name in names}
        verification["audit"] = vars(verified.audit) if verified.audit else None
    return {
        "format_version": DIGEST_FORMAT_VERSION,
        "generator": f"vadcli {__version__}",
        "runs": [run.path.name for run in archive.runs],
        "last_run": {
            "start": newest.start.isoformat(),
            "end": newest.end.isoformat() if newest.end else None,
            "exit_code": newest.exit_code,
        }
        if newest
        else None,
        "verification": verification,
        "videos": archive.counts.total.videos,
        "footage_s": round(archive.footage_s, 3),
        "events": events,
        **({} if archive.is_whole else {"unlisted": archive.unlisted}),
        "failures": [
            {
                "video": video.video,
                "status": str(video.status),
                "reason": video.reason,
                "lost_frames": video.lost_frames,
            }
            for video in archive.failures
        ],
        "caveats": archive.caveats,
        "problems": list(archive.problems),
    }


def to_markdown(archive: Archive) -> str:
    """Return a short report in Markdown: headline, events with high scores, failures, facts of the run."""
    lines = [f"# {_plain(archive.name)}: {headline(archive)}", ""]
    best = by_importance(archive)[:MOST_EVENTS]
    if best:
        lines += ["| score | when | camera | video | starts | lasts | category |", "|---|---|---|---|---|---|---|"]
        lines += [f"| {' | '.join(map(_plain, _cells(video, event)))} |" for video, event in best]
        lines += ["", *_more(archive.events - len(best), "event")]
    if archive.failures:
        lines += ["## Failed or partial", ""]
        lines += [
            f"- {_plain(video.video)}: {video.status}: {_plain(video.reason)}" for video in archive.failures[:MOST_FAILURES]
        ]
        lines += ["", *_more(archive.counts.total.lost - MOST_FAILURES, "video")]
    if archive.caveats:
        lines += ["## How far to trust the scores", ""]
        lines += [f"- {_plain(line)}" for line in archive.caveats[:MOST_CAVEATS]]
        lines += ["", *_more(len(archive.caveats) - MOST_CAVEATS, "caveat")]
    lines += [f"- {_plain(problem)}" for problem in archive.problems]
    lines += [f"{name}: {_plain(value)}  " for name, value in run_facts(archive)]
    return "\n".join(lines) + "\n"


def to_email(archive: Archive, *, sender: str = "", recipients: tuple[str, ...] = (), subject: str = "") -> str:
    """Return a complete mail (plain text and HTML) for the standard input of `sendmail -t`.

    Args:
        sender: the sender's address; "" stands for `vadcli@NAME` with the name of this machine.
        subject: the subject; "" stands for the name of the output folder and the headline.
    """
    message = EmailMessage()
    domain = socket.getfqdn()
    message["From"] = sender or Address("vadcli", "vadcli", domain if domain.isascii() else "localhost")
    if recipients:
        message["To"] = ", ".join(recipients)
    name = archive.name
    message["Subject"] = " ".join((subject or f"{name}: {headline(archive)}").split())
    message["Date"] = formatdate(localtime=False)
    message["Message-ID"] = make_msgid("vadcli", domain=domain if domain.isascii() else "localhost")
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(_text(archive))
    best = by_importance(archive)[:MOST_EVENTS]
    page = template("mail.html.j2", trim_blocks=False).render(
        headline=headline(archive),
        events=[_cells(video, event) for video, event in best],
        more=" ".join(_more(archive.events - len(best), "event")),
        failures=archive.failures[:MOST_FAILURES],
        more_failures=" ".join(_more(archive.counts.total.lost - MOST_FAILURES, "video")),
        caveats=archive.caveats[:MOST_CAVEATS],
        more_caveats=" ".join(_more(len(archive.caveats) - MOST_CAVEATS, "caveat")),
        problems=archive.problems,
        facts=run_facts(archive),
    )
    message.add_alternative(page, subtype="html")
    return message.as_bytes().decode("ascii")


def _text(archive: Archive) -> str:
    lines = [headline(archive), ""]
    best = by_importance(archive)[:MOST_EVENTS]
    for video, event in best:
        score, when, _, name, starts, lasts, category = _cells(video, event)
        lines.append("  ".join(part for part in (score, when, name, starts, lasts, category) if part))
    lines += ["", *_more(archive.events - len(best), "event")] if best else []
    if archive.failures:
        lines.append("Failed or partial:")
        lines += [f"  {video.video}: {video.status}: {video.reason}" for video in archive.failures[:MOST_FAILURES]]
        lines += ["", *_more(archive.counts.total.lost - MOST_FAILURES, "video")]
    if archive.caveats:
        lines += ["How far to trust the scores:", *(f"  {line}" for line in archive.caveats[:MOST_CAVEATS])]
        lines += ["", *_more(len(archive.caveats) - MOST_CAVEATS, "caveat")]
    lines += [*archive.problems, *(f"{name}: {value}" for name, value in run_facts(archive))]
    return "\n".join(lines) + "\n"


def _cells(video: VideoSummary, event: Event) -> tuple[str, str, str, str, str, str, str]:
    lasts = length_text(event.end_s - event.start_s)
    when = f"{video.start.at(event.start_s):%Y-%m-%d %H:%M:%S}" if video.start else ""
    category = ", ".join(part for part in (event.category, event.verified) if part)
    return f"{event.peak_score:.3f}", when, video.camera, video.video, clock(event.start_s), lasts, category


def _more(number: int, noun: str) -> list[str]:
    """Return two lines, such as `and 3 more events` and an empty line; no lines if the number is 0 or less."""
    return [f"and {counted(number, f'more {noun}')}", ""] if number > 0 else []


def _plain(text: str) -> str:
    """Return the text on one line, with every special character of Markdown escaped."""
    return " ".join(text.split()).translate(_MARKDOWN)
