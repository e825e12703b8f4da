"""Events in the format `CVAT for video 1.1`: the masks of each event, or the event's box if no masks are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import TextIOBase
from typing import TextIO, cast
from xml.sax.saxutils import XMLGenerator
from xml.sax.xmlreader import AttributesImpl

import numpy as np

from vadcli.export import Exporter, MasksOf
from vadcli.export.text import UNNAMED, label, legal_in_xml
from vadcli.store.events import EventsDocument
from vadcli.store.mask_video import mask_box, upsample_mask
from vadcli.store.masks import MaskTrack
from vadcli.types import BoolArray, Event


def write_cvat(document: EventsDocument, masks: MaskTrack | None, file: TextIO) -> None:
    """Write the events of one video.

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
                for name, said in _said(event).items():
                    _text(xml, "attribute", said, name=name)
                xml.endElement(tag)
            xml.endElement("track")
            number += 1
    xml.endElement("annotations")
    xml.endDocument()
    file.write("\n")


def _said(event: Event) -> dict[str, str]:
    """Return what a second model says about the event, as attributes of its shapes."""
    said = {"verification": event.verified, "description": event.described}
    return {name: text for name, text in said.items() if text}


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

    Runs outside and inside the mask take turns. The first run is outside, and its length may be 0.
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
    said = sorted({name for event in document.events for name in _said(event)})
    for name in sorted({label(event) for event in document.events} | {UNNAMED}):
        _open(xml, "label")
        _text(xml, "name", name)
        _text(xml, "type", "any")
        _attributes(xml, said)
        xml.endElement("label")
    xml.endElement("labels")
    _open(xml, "original_size")
    _text(xml, "width", video["width"] or 0)
    _text(xml, "height", video["height"] or 0)
    xml.endElement("original_size")
    xml.endElement("task")
    xml.endElement("meta")


def _attributes(xml: XMLGenerator, names: Sequence[str]) -> None:
    """Declare attributes of a label: texts that are the same in all frames of a track."""
    _open(xml, "attributes")
    for name in names:
        _open(xml, "attribute")
        for tag, content in (("name", name), ("mutable", False), ("input_type", "text"), ("default_value", ""), ("values", "")):
            _text(xml, tag, content)
        xml.endElement("attribute")
    xml.endElement("attributes")


def _text(xml: XMLGenerator, tag: str, content: object, **attributes: object) -> None:
    _open(xml, tag, **attributes)
    xml.characters(legal_in_xml(str(content)))
    xml.endElement(tag)


def _open(xml: XMLGenerator, tag: str, **attributes: object) -> None:
    xml.startElement(tag, AttributesImpl({name: legal_in_xml(str(value)) for name, value in attributes.items()}))


def write_all(documents: Sequence[EventsDocument], masks: MasksOf, file: TextIO) -> None:
    """Write the annotations of every video; see `write_cvat`."""
    for document in documents:
        write_cvat(document, masks(document), file)


CVAT = Exporter(write_all, ".cvat.xml", one_video=True)
