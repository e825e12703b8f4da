"""Events in other people's formats: JSON, CSV, WebVTT, CMX 3600 edit lists. Documents in, text out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator

from vadcli.outputs.event_json import EventsDocument
from vadcli.types import Event

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
)
_RECORD_START_S = 3600
"""Edited programmes start at one hour by custom."""


def to_json(documents: Iterable[EventsDocument]) -> str:
    """One JSON array of all documents."""
    return json.dumps([document.to_json() for document in documents], indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(documents: Iterable[EventsDocument]) -> str:
    """One row an event over all videos, a header row first; empty where there is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for document in documents:
        writer.writerows(_csv_row(document, event) for event in document.events)
    return text.getvalue()


def _csv_row(document: EventsDocument, event: Event) -> list[object]:
    values = {"video": document.video["path"], "camera": document.video["camera"], **event.to_json()}
    values.update(zip(("bbox_x", "bbox_y", "bbox_width", "bbox_height"), event.bbox or (None,) * 4, strict=True))
    return ["" if values[name] is None else values[name] for name in CSV_COLUMNS]


def to_vtt(document: EventsDocument) -> str:
    """WebVTT captions of one video: a cue an event, for any player."""
    blocks = ["WEBVTT"]
    for event in document.events:
        start_ms = round(event.start_s * 1000)
        end_ms = max(round(event.end_s * 1000), start_ms + 1)
        blocks.append(f"{event.id}\n{_clock(start_ms)} --> {_clock(end_ms)}\n{_escaped(_caption(event))}")
    return "\n\n".join(blocks) + "\n"


def _caption(event: Event) -> str:
    return f"{event.category or 'anomaly'} {event.peak_score:.2f}"


def _clock(milliseconds: int) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}.{milliseconds:03d}"


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_edl(document: EventsDocument) -> str:
    """A CMX 3600 edit list of one video: its events one after the other, in non-drop timecode at the video's frame rate.

    The format counts in whole frames a second: of 29.97 it makes 30, as editors do with such a file.

    Raises:
        ValueError: the document has events but no frame rate.
    """
    lines = [f"TITLE: {_line(document.video['path'])}", "FCM: NON-DROP FRAME"]
    if document.events:
        fps = document.video["fps"]
        if not fps:
            raise ValueError(f"{document.video['path']}: an edit list needs the video's frame rate")
        lines.extend(_edits(document, float(fps)))
    return "\n".join(lines) + "\n"


def _edits(document: EventsDocument, fps: float) -> Iterator[str]:
    nominal = max(1, round(fps))
    record = _RECORD_START_S * nominal
    for event in document.events:
        start = round(event.start_s * fps)
        end = max(round(event.end_s * fps), start + 1)
        times = (start, end, record, record + end - start)
        codes = " ".join(_timecode(frames, nominal) for frames in times)
        yield f"\n{event.id:03d}  AX       V     C        {codes}"
        yield f"* FROM CLIP NAME: {_line(document.video['path'])}"
        yield f"* COMMENT: {_line(_caption(event))}"
        record += end - start


def _timecode(frames: int, nominal: int) -> str:
    seconds, frames = divmod(frames, nominal)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}:{frames:02d}"


def _line(text: str) -> str:
    return " ".join(text.split())
