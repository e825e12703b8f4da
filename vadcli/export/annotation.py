"""Writes events for the annotation tools FiftyOne, Label Studio and CVAT.

A FiftyOneTemporalDetectionDataset reads labels.json. Label Studio needs two files: the tasks to import, and the labelling
configuration that shows the tasks. A CVAT file has the masks of each event, or the box of the event if no masks are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from io import TextIOBase
from pathlib import PurePosixPath
from typing import Any, TextIO, cast
from urllib.parse import quote
from xml.sax.saxutils import XMLGenerator, quoteattr
from xml.sax.xmlreader import AttributesImpl

import numpy as np

from vadcli.errors import UsageError
from vadcli.export import UNNAMED, Exporter, MasksOf, all_videos, label, legal_in_xml
from vadcli.store import json_text
from vadcli.store.events import EventsDocument
from vadcli.store.masks import MaskTrack, mask_box, upsample_mask
from vadcli.types import BoolArray, Box, Event


def to_fiftyone(documents: Iterable[EventsDocument]) -> str:
    """Return the labels of all videos for FiftyOne. Import them with the scanned folder as `data_path`.

    FiftyOne finds a video by its path without the suffix. FiftyOne counts frames from 1, and a span includes its last frame.

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
        labels[key] = []
        for event in document.events:
            attributes: dict[str, Any] = {"event": event.id, "mean_score": event.mean_score, "peak_frame": event.peak_frame + 1}
            if document.start is not None:
                attributes["start_time"] = document.start.text_at(event.start_s)
            if event.head_score is not None:
                attributes["head_score"] = event.head_score
            if event.verification is not None:
                attributes["verification"] = event.verified
            if event.description is not None:
                attributes["description"] = event.described
            labels[key].append(
                {
                    "label": label(event),
                    "support": [event.start_frame + 1, event.end_frame],
                    "confidence": event.peak_score,
                    "attributes": attributes,
                }
            )
    classes = sorted({entry["label"] for entries in labels.values() for entry in entries})
    return json_text({"classes": classes, "labels": labels})


LOCAL_FILES = "/data/local-files/?d="
"""Start of Label Studio's URLs of local files. The path relative to the scanned folder follows."""


def to_label_studio(documents: Iterable[EventsDocument]) -> str:
    """Return one task per video, with a timeline span per event, and the box of an event if it has a box.

    Label Studio counts frames from 1, and a span includes its last frame.
    """
    tasks = []
    for document in documents:
        video = document.video
        results: list[dict[str, Any]] = []
        for event in document.events:
            answers = [text for text in (event.verified, event.described) if text]
            ranges = [{"start": event.start_frame + 1, "end": event.end_frame}]
            span = {
                "id": f"event-{event.id}",
                "from_name": "event",
                "to_name": "video",
                "type": "timelinelabels",
                "score": event.peak_score,
                "value": {"ranges": ranges, "timelinelabels": [_label(event)]},
            }
            results.append({"meta": {"text": answers}, **span} if answers else span)
            if event.bbox and video["width"] and video["height"]:
                results.append(_box(event, event.bbox, document))
        predictions = {
            "model_version": f"{document.generator} {document.detector}",
            "score": max((event.peak_score for event in document.events), default=0.0),
            "result": results,
        }
        url = LOCAL_FILES + quote(str(video["path"]))
        data = {"video": url, "fps": video["fps"], "path": video["path"], "camera": video["camera"]}
        if document.start is not None:
            data["start_time"] = document.start.text_at(0.0)
        tasks.append({"data": data, "predictions": [predictions]})
    return json_text(tasks)


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
    """Return the event's label in a form that XML allows: Label Studio's labelling configuration is XML."""
    return legal_in_xml(label(event))


def _box(event: Event, box: Box, document: EventsDocument) -> dict[str, Any]:
    """Return the event's box for Label Studio, in percent of the picture, for all frames of the event."""
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


def write_cvat(document: EventsDocument, masks: MaskTrack | None, file: TextIO) -> None:
    """Write the events of one video as a CVAT document.

    CVAT reads only the first mask of a track, so every mask gets its own track.

    Args:
        document: the video's events.
        masks: the stored masks of the video; None if there are none.
        file: an open text file.
    """
    xml = XMLGenerator(cast(TextIOBase, file), file.encoding or "utf-8", short_empty_elements=True)
    xml.startDocument()
    _open(xml, "annotations")
    _text(xml, "version", "1.1")
    _head(xml, document)
    number = 0
    for event in document.events:
        size = (document.video["width"], document.video["height"])
        level = masks.level(document.thresholds) if masks is not None else 0
        shapes = list(_masks(event, masks, size, level)) if masks is not None and all(size) else []
        for tag, frames in shapes or _boxes(event, document):
            _open(xml, "track", id=number, label=label(event), source="auto")
            for attributes in frames:
                _open(xml, tag, **attributes)
                for name, text in _answers(event).items():
                    _text(xml, "attribute", text, name=name)
                xml.endElement(tag)
            xml.endElement("track")
            number += 1
    xml.endElement("annotations")
    xml.endDocument()
    file.write("\n")


def _answers(event: Event) -> dict[str, str]:
    """Return the results of `vadcli verify` for the event; the keys are the names of CVAT attributes."""
    answers = {"verification": event.verified, "description": event.described}
    return {name: text for name, text in answers.items() if text}


_Shape = tuple[str, list[dict[str, object]]]


def _masks(event: Event, masks: MaskTrack, size: tuple[int, int], level: int) -> Iterator[_Shape]:
    for row, stored in masks.between(event.start_frame, event.end_frame):
        mask = upsample_mask(stored, *size) >= level
        box = mask_box(mask.astype(np.uint8), 1)
        if box is None:
            continue
        left, top, width, height = box
        shape: dict[str, object] = {
            "frame": row,
            "keyframe": 1,
            "outside": 0,
            "occluded": 0,
            "rle": ", ".join(map(str, runs(mask[top : top + height, left : left + width]))),
            "left": left,
            "top": top,
            "width": width,
            "height": height,
            "z_order": 0,
        }
        yield "mask", [shape]


def runs(mask: BoolArray) -> list[int]:
    """Return the run lengths of a mask, row by row.

    The runs are alternately outside and inside the mask. The first run is outside the mask, and may have length 0.
    """
    flat = np.concatenate([[False], mask.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(length) for length in np.diff(np.concatenate([[0], changes, [mask.size]]))]


def _boxes(event: Event, document: EventsDocument) -> Iterator[_Shape]:
    if event.bbox is None:
        return
    left, top, width, height = event.bbox
    place = {"xtl": left, "ytl": top, "xbr": left + width, "ybr": top + height, "z_order": 0}
    frames: list[dict[str, object]] = [{"frame": event.start_frame, "keyframe": 1, "outside": 0, "occluded": 0, **place}]
    if event.end_frame < (document.video["frames"] or event.end_frame + 1):
        frames.append({"frame": event.end_frame, "keyframe": 1, "outside": 1, "occluded": 0, **place})
    yield "box", frames


def _head(xml: XMLGenerator, document: EventsDocument) -> None:
    video, size = document.video, int(document.video["frames"] or 0)
    _open(xml, "meta")
    _open(xml, "task")
    _text(xml, "name", str(video["path"]))
    _text(xml, "size", size)
    _text(xml, "mode", "interpolation")
    _text(xml, "start_frame", 0)
    _text(xml, "stop_frame", max(0, size - 1))
    _open(xml, "labels")
    attributes = sorted({name for event in document.events for name in _answers(event)})
    for name in sorted({label(event) for event in document.events} | {UNNAMED}):
        _open(xml, "label")
        _text(xml, "name", name)
        _text(xml, "type", "any")
        _open(xml, "attributes")  # an attribute that is not mutable is the same in all frames of a track
        for attribute in attributes:
            _open(xml, "attribute")
            _text(xml, "name", attribute)
            _text(xml, "mutable", False)
            _text(xml, "input_type", "text")
            _text(xml, "default_value", "")
            _text(xml, "values", "")
            xml.endElement("attribute")
        xml.endElement("attributes")
        xml.endElement("label")
    xml.endElement("labels")
    _open(xml, "original_size")
    _text(xml, "width", video["width"] or 0)
    _text(xml, "height", video["height"] or 0)
    xml.endElement("original_size")
    xml.endElement("task")
    xml.endElement("meta")


def _text(xml: XMLGenerator, tag: str, content: object, **attributes: object) -> None:
    _open(xml, tag, **attributes)
    xml.characters(legal_in_xml(str(content)))
    xml.endElement(tag)


def _open(xml: XMLGenerator, tag: str, **attributes: object) -> None:
    xml.startElement(tag, AttributesImpl({name: legal_in_xml(str(value)) for name, value in attributes.items()}))


def write_all(documents: Sequence[EventsDocument], masks: MasksOf, file: TextIO) -> None:
    """Write the events of several videos, one CVAT document per video; see `write_cvat`."""
    for document in documents:
        write_cvat(document, masks(document), file)


CVAT = Exporter(write_all, ".cvat.xml", one_video=True)
