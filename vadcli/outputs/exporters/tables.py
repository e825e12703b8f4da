"""Events as tables: JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable

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
