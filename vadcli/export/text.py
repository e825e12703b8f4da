"""Writes events as JSON, CSV and WebVTT. Players show WebVTT as captions or chapters.

This module also makes the labels and captions of events for all other formats.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence

from vadcli.export import Exporter, all_videos, each_video
from vadcli.store.events import EventsDocument
from vadcli.types import Event
from vadcli.types.text import clock_ms

UNNAMED = "anomaly"
"""The label of an event without a category."""


def label(event: Event) -> str:
    """Return the event's category, or `UNNAMED` if it has none."""
    return event.category or UNNAMED


def caption(event: Event) -> str:
    """Return the event's label and peak score; then the head's score and the second model's answer, if it has them."""
    judged = f", head {event.head_score:.2f}" if event.head_score is not None else ""
    said = f", {event.verified}" if event.verified else ""
    return f"{label(event)} {event.peak_score:.2f}{judged}{said}"


def one_line(text: str) -> str:
    """Return the text without line breaks, for formats that are read line by line."""
    return " ".join(text.split())


def recorded_at(document: EventsDocument, event: Event) -> str:
    """Return the wall-clock time at which the event starts, such as 2026-11-29 14:03:22.

    Returns "" if the time is not known, or only known from the time of the file's last change.
    """
    start = document.start
    return f"{start.at(event.start_s):%Y-%m-%d %H:%M:%S}" if start and start.is_recorded else ""


_NOT_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def legal_in_xml(text: str) -> str:
    """Return the text after replacing the characters that XML does not allow, not even in escaped form."""
    return _NOT_XML.sub("\ufffd", text)


CSV_COLUMNS = (
    "video",
    "camera",
    "id",
    "start_s",
    "end_s",
    "peak_s",
    "start_frame",
    "end_frame",
    "peak_frame",
    "peak_score",
    "mean_score",
    "category",
    "bbox_x",
    "bbox_y",
    "bbox_width",
    "bbox_height",
    "start_time",
    "end_time",
    "time_source",
    "verification",
    "verified_by",
    "description",
)


def to_json(documents: Iterable[EventsDocument]) -> str:
    """Return one JSON array of all documents."""
    return json.dumps([document.to_json() for document in documents], indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(documents: Iterable[EventsDocument]) -> str:
    """Return a header row and one row per event of all videos; a cell without a value is empty.

    The last column is the head's score, if a head judged the events of a video.
    """
    documents = list(documents)
    columns = (*CSV_COLUMNS, "head_score") if any(document.head for document in documents) else CSV_COLUMNS
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for document in documents:
        writer.writerows(_csv_row(document, event, columns) for event in document.events)
    return text.getvalue()


def _csv_row(document: EventsDocument, event: Event, columns: Sequence[str]) -> list[object]:
    values = {
        "head_score": None,
        "video": document.video["path"],
        "camera": document.video["camera"],
        **document.event_json(event),
    }
    values["verification"] = str(event.verification.answer) if event.verification else None
    values["verified_by"] = event.verification.model if event.verification else None
    values["description"] = event.description.text if event.description else None
    values["time_source"] = str(document.start.source) if document.start else None
    values.update(zip(("bbox_x", "bbox_y", "bbox_width", "bbox_height"), event.bbox or (None,) * 4, strict=True))
    return ["" if values[name] is None else values[name] for name in columns]


def to_vtt(document: EventsDocument) -> str:
    """Return WebVTT captions of one video, with one cue per event. A second line has its wall-clock time, if this is known."""
    blocks = ["WEBVTT"]
    for event in document.events:
        start_ms = round(event.start_s * 1000)
        end_ms = max(round(event.end_s * 1000), start_ms + 1)
        span = " --> ".join(clock_ms(ms / 1000, hour_digits=2) for ms in (start_ms, end_ms))
        lines = [str(event.id), span, _escaped(caption(event)), recorded_at(document, event)]
        blocks.append("\n".join(line for line in lines if line))
    return "\n\n".join(blocks) + "\n"


def _escaped(text: str) -> str:
    return one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


JSON = Exporter(all_videos(to_json), ".json")
CSV = Exporter(all_videos(to_csv), ".csv")
VTT = Exporter(each_video(to_vtt), ".vtt", one_video=True)
