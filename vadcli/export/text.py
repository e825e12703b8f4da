"""Writes events as JSON, CSV, WebVTT, CMX 3600 edit lists and OpenTimelineIO.

Players show WebVTT as captions or chapters; video editors read the last two. This module also makes the labels and captions of
events for all other formats.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from vadcli.errors import UsageError
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
    """Return the event's label and peak score, then the head's score and the answer of `verify`, if any."""
    judged = f", head {event.head_score:.2f}" if event.head_score is not None else ""
    answer = f", {event.verified}" if event.verified else ""
    return f"{label(event)} {event.peak_score:.2f}{judged}{answer}"


def one_line(text: str) -> str:
    """Return the text on one line, for formats in which a line break ends an entry."""
    return " ".join(text.split())


def recorded_at(document: EventsDocument, event: Event) -> str:
    """Return the wall-clock time at which the event starts, such as 2026-11-29 14:03:22.

    Returns "" if the time is unknown, or if the only source is the time of the file's last change.
    """
    start = document.start
    return f"{start.at(event.start_s):%Y-%m-%d %H:%M:%S}" if start and start.is_recorded else ""


_NOT_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def legal_in_xml(text: str) -> str:
    """Return the text after replacing the characters that XML does not allow even in escaped form."""
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
        for event in document.events:
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
            writer.writerow(["" if values[name] is None else values[name] for name in columns])
    return text.getvalue()


def to_vtt(document: EventsDocument) -> str:
    """Return WebVTT captions of one video, with one cue per event.

    The second line of a cue is the wall-clock time at which the event starts, if this time is known.
    """
    blocks = ["WEBVTT"]
    for event in document.events:
        start_ms = round(event.start_s * 1000)
        end_ms = max(round(event.end_s * 1000), start_ms + 1)
        span = " --> ".join(clock_ms(ms / 1000, hour_digits=2) for ms in (start_ms, end_ms))
        words = one_line(caption(event)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        lines = [str(event.id), span, words, recorded_at(document, event)]
        blocks.append("\n".join(line for line in lines if line))
    return "\n\n".join(blocks) + "\n"


JSON = Exporter(all_videos(to_json), ".json")
CSV = Exporter(all_videos(to_csv), ".csv")
VTT = Exporter(each_video(to_vtt), ".vtt", one_video=True)


_RECORD_START_S = 3600
"""The edit list starts at this timecode: by convention, edited videos start at one hour."""
_DEFAULT_FPS = 25.0


def to_edl(document: EventsDocument) -> str:
    """Return a CMX 3600 edit list of one video's events, in non-drop timecode at the video's frame rate.

    The format needs a whole number of frames per second: 29.97 becomes 30, as in video editors.

    Raises:
        UsageError: the document has events but no frame rate.
    """
    name, fps = one_line(document.video["path"]), float(document.video["fps"] or 0.0)
    if document.events and not fps:
        hint = "scan the video again, or choose another --format"
        raise UsageError(f"{document.video['path']}: an edit list needs the frame rate, which is not known", hint=hint)
    lines = [f"TITLE: {name}", "FCM: NON-DROP FRAME"]
    nominal = max(1, round(fps))
    record = _RECORD_START_S * nominal
    for event in document.events:
        start = round(event.start_s * fps)
        end = max(round(event.end_s * fps), start + 1)
        times = (start, end, record, record + end - start)
        codes = " ".join(_timecode(frames, nominal) for frames in times)
        lines.append(f"\n{event.id:03d}  AX       V     C        {codes}")
        lines.append(f"* FROM CLIP NAME: {name}")
        lines.append(f"* COMMENT: {one_line(caption(event))}")
        if recorded := recorded_at(document, event):
            lines.append(f"* COMMENT: recorded at {recorded}")
        record += end - start
    return "\n".join(lines) + "\n"


def _timecode(frames: int, nominal: int) -> str:
    seconds, frames = divmod(frames, nominal)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}:{frames:02d}"


def to_otio(documents: Iterable[EventsDocument]) -> str:
    """Return an OpenTimelineIO timeline with one clip per event, for all videos.

    Each clip has a marker at the event's peak. It refers to its video by the path relative to the scanned folder. The clip's
    metadata contains all other data of the event.

    Raises:
        UsageError: the opentimelineio package is not installed.
    """
    try:
        import opentimelineio as otio
    except ImportError as error:
        raise UsageError("--format otio needs the opentimelineio package", hint="pip install 'vadcli[otio]'") from error

    def span(start: float, frames: float, fps: float) -> Any:
        return otio.opentime.TimeRange(otio.opentime.RationalTime(start, fps), otio.opentime.RationalTime(frames, fps))

    track = otio.schema.Track(name="events", kind=otio.schema.TrackKind.Video)
    for document in documents:
        video = document.video
        path, fps = video["path"], float(video["fps"] or _DEFAULT_FPS)
        whole = span(0, video["frames"], fps) if video["frames"] else None
        for event in document.events:
            clip = otio.schema.Clip(
                name=f"{path} #{event.id}",
                media_reference=otio.schema.ExternalReference(target_url=quote(str(path)), available_range=whole),
                source_range=span(event.start_frame, event.end_frame - event.start_frame, fps),
                metadata={"vadcli": {**document.event_json(event), "video": path, "camera": video["camera"]}},
            )
            peak = span(event.peak_frame, 1, fps)
            marker = otio.schema.Marker(name=caption(event), marked_range=peak, color=otio.schema.MarkerColor.RED)
            marker.metadata["vadcli"] = {"category": label(event)}
            clip.markers.append(marker)
            track.append(clip)
    timeline = otio.schema.Timeline(name="vadcli events")
    timeline.tracks.append(track)
    return str(timeline.to_json_string(indent=2)) + "\n"


EDL = Exporter(each_video(to_edl), ".edl", one_video=True)
OTIO = Exporter(all_videos(to_otio), ".otio")
