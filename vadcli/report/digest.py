"""The night in a few lines, for a mail or another program: what happened, where, and what could not be read."""

from __future__ import annotations

import socket
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vadcli import __version__
from vadcli.report.archive import Archive, VideoStory
from vadcli.report.facts import clock, counted, lasting, run_facts
from vadcli.report.html import by_importance
from vadcli.types import Event

DIGEST_FORMAT_VERSION = 1
MOST_EVENTS = 20
MOST_FAILURES = 50
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_[]#|<>~"})


def headline(archive: Archive) -> str:
    """One line: how many events in how much footage, and what failed."""
    text = f"{counted(archive.events, 'event')} in {lasting(archive.footage_s)} of footage"
    failed = len(archive.failures)
    return f"{text}, {counted(failed, 'video')} not read or not whole" if failed else text


def to_json(archive: Archive) -> dict[str, Any]:
    """Every event and failure as JSON values, the highest peaks first."""
    newest = archive.newest
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
        "videos": len(archive.videos),
        "footage_s": round(archive.footage_s, 3),
        "events": [
            {"video": video.video, "camera": video.camera, **event.to_json()} for video, event in by_importance(archive)
        ],
        "failures": [
            {
                "video": video.video,
                "status": str(video.status),
                "reason": video.reason,
                "lost_frames": video.lost_frames,
            }
            for video in archive.failures
        ],
        "problems": list(archive.problems),
    }


def to_markdown(archive: Archive) -> str:
    """A few lines of Markdown: the headline, the highest events, what could not be read."""
    lines = [f"# {_plain(archive.name)}: {headline(archive)}", ""]
    shown = by_importance(archive)[:MOST_EVENTS]
    if shown:
        lines += ["| score | camera | video | starts | lasts | category |", "|---|---|---|---|---|---|"]
        lines += [f"| {' | '.join(map(_plain, _cells(video, event)))} |" for video, event in shown]
        lines += ["", *_more(archive.events - len(shown), "event")]
    if archive.failures:
        lines += ["## Not read, or not whole", ""]
        lines += [
            f"- {_plain(video.video)}: {video.status}: {_plain(video.reason)}" for video in archive.failures[:MOST_FAILURES]
        ]
        lines += ["", *_more(len(archive.failures) - MOST_FAILURES, "video")]
    lines += [f"- {_plain(problem)}" for problem in archive.problems]
    lines += [f"{name}: {_plain(value)}  " for name, value in run_facts(archive)]
    return "\n".join(lines) + "\n"


def to_email(archive: Archive, *, sender: str = "", recipients: tuple[str, ...] = (), subject: str = "") -> str:
    """A whole message, plain text and HTML, for `sendmail -t` or any mailer's standard input.

    Args:
        archive: what it tells of.
        sender: an address; `vadcli@` this machine where empty.
        recipients: addresses for To.
        subject: the headline where empty.
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
    environment = Environment(loader=PackageLoader("vadcli.report", "page"), autoescape=True, undefined=StrictUndefined)
    shown = by_importance(archive)[:MOST_EVENTS]
    page = environment.get_template("mail.html.j2").render(
        headline=headline(archive),
        events=[_cells(video, event) for video, event in shown],
        more=" ".join(_more(archive.events - len(shown), "event")),
        failures=archive.failures[:MOST_FAILURES],
        more_failures=" ".join(_more(len(archive.failures) - MOST_FAILURES, "video")),
        problems=archive.problems,
        facts=run_facts(archive),
    )
    message.add_alternative(page, subtype="html")
    return message.as_bytes().decode("ascii")


def _text(archive: Archive) -> str:
    lines = [headline(archive), ""]
    shown = by_importance(archive)[:MOST_EVENTS]
    for video, event in shown:
        score, _, name, starts, lasts, category = _cells(video, event)
        lines.append(f"{score}  {name}  {starts}  {lasts}" + (f"  {category}" if event.category else ""))
    lines += ["", *_more(archive.events - len(shown), "event")] if shown else []
    if archive.failures:
        lines.append("Not read, or not whole:")
        lines += [f"  {video.video}: {video.status}: {video.reason}" for video in archive.failures[:MOST_FAILURES]]
        lines += ["", *_more(len(archive.failures) - MOST_FAILURES, "video")]
    lines += [*archive.problems, *(f"{name}: {value}" for name, value in run_facts(archive))]
    return "\n".join(lines) + "\n"


def _cells(video: VideoStory, event: Event) -> tuple[str, str, str, str, str, str]:
    lasts = lasting(event.end_s - event.start_s)
    return f"{event.peak_score:.3f}", video.camera, video.video, clock(event.start_s), lasts, event.category or ""


def _more(number: int, noun: str) -> list[str]:
    """A line and an empty one that say how many are not shown; nothing where all are."""
    return [f"and {counted(number, f'more {noun}')}", ""] if number > 0 else []


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return " ".join(text.split()).translate(_MARKDOWN)
