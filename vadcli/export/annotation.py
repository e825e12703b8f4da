"""Events for annotation tools: labels.json for a FiftyOneTemporalDetectionDataset, and predictions for Label Studio.

Label Studio needs two files: the tasks to import, and the labelling configuration that shows them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from vadcli.errors import UsageError
from vadcli.export import Exporter, all_videos
from vadcli.export.text import UNNAMED, label, legal_in_xml
from vadcli.store.events import EventsDocument
from vadcli.types import Box, Event


def to_fiftyone(documents: Iterable[EventsDocument]) -> str:
    """Return the labels of all videos. Import them with the scanned folder as `data_path`.

    FiftyOne finds a video by its path without the suffix. It counts frames from 1, and the end of a span is its last frame.

    Raises:
        UsageError: two videos differ only in their suffix, so FiftyOne can't tell them apart.
    """
    labels: dict[str, list[dict[str, Any]]] = {}
    named: dict[str, str] = {}
    for document in documents:
        path = str(document.video["path"])
        key = str(PurePosixPath(path).with_suffix(""))
        if key in named:
            raise UsageError(
                f"FiftyOne can't distinguish {named[key]} from {path}, because it ignores the suffix",
                hint="export one of them with --include",
            )
        named[key] = path
        labels[key] = [_detection(document, event) for event in document.events]
    classes = sorted({found["label"] for listed in labels.values() for found in listed})
    return json.dumps({"classes": classes, "labels": labels}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _detection(document: EventsDocument, event: Event) -> dict[str, Any]:
    attributes: dict[str, Any] = {"event": event.id, "mean_score": event.mean_score, "peak_frame": event.peak_frame + 1}
    if document.start is not None:
        attributes["start_time"] = document.start.text_at(event.start_s)
    if event.head_score is not None:
        attributes["head_score"] = event.head_score
    if event.verification is not None:
        attributes["verification"] = event.verified
    if event.description is not None:
        attributes["description"] = event.described
    return {
        "label": label(event),
        "support": [event.start_frame + 1, event.end_frame],
        "confidence": event.peak_score,
        "attributes": attributes,
    }


LOCAL_FILES = "/data/local-files/?d="
"""Label Studio serves local files under URLs that start with this. The path relative to the scanned folder follows."""


def to_label_studio(documents: Iterable[EventsDocument]) -> str:
    """Return one task per video. A task has one timeline span per event, and the event's box if there is one."""
    return json.dumps([_task(document) for document in documents], indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def label_studio_config(documents: Iterable[EventsDocument]) -> str:
    """Return the labelling configuration with the labels of all events."""
    names = sorted({_label(event) for document in documents for event in document.events} | {UNNAMED})
    labels = "".join(f"\n    <Label value={quoteattr(name)}/>" for name in names)
    return (
        "<View>\n"
        '  <Video name="video" value="$video" framerate="$fps"/>\n'
        f'  <TimelineLabels name="event" toName="video">{labels}\n  </TimelineLabels>\n'
        f'  <Labels name="boxed" toName="video">{labels}\n  </Labels>\n'
        '  <VideoRectangle name="box" toName="video"/>\n'
        "</View>\n"
    )


def _label(event: Event) -> str:
    """Return the event's label in a form that XML allows, because the configuration is an XML file."""
    return legal_in_xml(label(event))


def _task(document: EventsDocument) -> dict[str, Any]:
    video = document.video
    results: list[dict[str, Any]] = []
    for event in document.events:
        results.append(_span(event))
        if event.bbox and video["width"] and video["height"]:
            results.append(_box(event, event.bbox, document))
    predictions = {
        "model_version": f"{document.generator} {document.detector}",
        "score": max((event.peak_score for event in document.events), default=0.0),
        "result": results,
    }
    data = {
        "video": LOCAL_FILES + quote(str(video["path"])),
        "fps": video["fps"],
        "path": video["path"],
        "camera": video["camera"],
    }
    if document.start is not None:
        data["start_time"] = document.start.text_at(0.0)
    return {"data": data, "predictions": [predictions]}


def _span(event: Event) -> dict[str, Any]:
    """Return the event's span. Label Studio counts frames from 1, and the end of a span is its last frame."""
    said = [text for text in (event.verified, event.described) if text]
    return {
        **({"meta": {"text": said}} if said else {}),
        "id": f"event-{event.id}",
        "from_name": "event",
        "to_name": "video",
        "type": "timelinelabels",
        "score": event.peak_score,
        "value": {"ranges": [{"start": event.start_frame + 1, "end": event.end_frame}], "timelinelabels": [_label(event)]},
    }


def _box(event: Event, box: Box, document: EventsDocument) -> dict[str, Any]:
    """Return the event's box in percent of the picture's size. It is shown in all frames of the event."""
    video = document.video
    across, down = 100 / video["width"], 100 / video["height"]
    place = {"x": box[0] * across, "y": box[1] * down, "width": box[2] * across, "height": box[3] * down, "rotation": 0}
    shown = {"frame": event.start_frame + 1, "enabled": True, "time": event.start_s, **place}
    hidden = {"frame": event.end_frame, "enabled": False, "time": event.end_s, **place}
    value = {
        "framesCount": video["frames"] or event.end_frame,
        "duration": video["duration_s"] or event.end_s,
        "sequence": [shown, hidden],
        "labels": [_label(event)],
    }
    return {
        "id": f"box-{event.id}",
        "from_name": "box",
        "to_name": "video",
        "type": "videorectangle",
        "score": event.peak_score,
        "value": value,
    }


FIFTYONE = Exporter(all_videos(to_fiftyone), ".json", name="labels.json")
LABEL_STUDIO = Exporter(
    all_videos(to_label_studio),
    ".json",
    name="label-studio.json",
    beside={"label-studio.xml": all_videos(label_studio_config)},
)
