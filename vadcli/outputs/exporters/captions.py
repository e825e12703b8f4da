"""Events as WebVTT, which players show as captions or chapters."""

from __future__ import annotations

from vadcli.outputs.event_json import EventsDocument
from vadcli.outputs.exporters.words import caption, one_line


def to_vtt(document: EventsDocument) -> str:
    """WebVTT captions of one video: a cue an event, for any player."""
    blocks = ["WEBVTT"]
    for event in document.events:
        start_ms = round(event.start_s * 1000)
        end_ms = max(round(event.end_s * 1000), start_ms + 1)
        blocks.append(f"{event.id}\n{_clock(start_ms)} --> {_clock(end_ms)}\n{_escaped(caption(event))}")
    return "\n\n".join(blocks) + "\n"


def _clock(milliseconds: int) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}.{milliseconds:03d}"


def _escaped(text: str) -> str:
    return one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
