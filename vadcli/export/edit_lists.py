"""Events for video editors: CMX 3600 edit lists and OpenTimelineIO."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from vadcli.errors import UsageError
from vadcli.export import Exporter, all_videos, each_video
from vadcli.export.text import caption, label, one_line, recorded_at
from vadcli.store.events import EventsDocument
from vadcli.types import Event

_RECORD_START_S = 3600
"""The edit list starts at this timecode: by convention, an edited programme starts at one hour."""
_DEFAULT_FPS = 25.0


def to_edl(document: EventsDocument) -> str:
    """Return a CMX 3600 edit list of one video's events, in non-drop timecode at the video's frame rate.

    The format needs a whole number of frames per second: 29.97 becomes 30, as in video editors.

    Raises:
        UsageError: the document has events but no frame rate.
    """
    lines = [f"TITLE: {one_line(document.video['path'])}", "FCM: NON-DROP FRAME"]
    if document.events:
        fps = document.video["fps"]
        if not fps:
            hint = "scan the video again, or choose another --format"
            raise UsageError(f"{document.video['path']}: an edit list needs the frame rate, which is not known", hint=hint)
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
        yield f"* FROM CLIP NAME: {one_line(document.video['path'])}"
        yield f"* COMMENT: {one_line(caption(event))}"
        if recorded := recorded_at(document, event):
            yield f"* COMMENT: recorded at {recorded}"
        record += end - start


def _timecode(frames: int, nominal: int) -> str:
    seconds, frames = divmod(frames, nominal)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}:{frames:02d}"


def to_otio(documents: Iterable[EventsDocument]) -> str:
    """Return an OpenTimelineIO timeline with one clip per event, for all videos.

    Each clip has a marker at the event's peak. It refers to its video by the path relative to the scanned folder. Everything
    else about the event is in the clip's metadata.

    Raises:
        UsageError: the opentimelineio package is not installed.
    """
    try:
        import opentimelineio as otio
    except ImportError as error:
        raise UsageError("--format otio needs the opentimelineio package", hint="pip install 'vadcli[otio]'") from error
    track = otio.schema.Track(name="events", kind=otio.schema.TrackKind.Video)
    for document in documents:
        track.extend([_otio_clip(otio, document, event) for event in document.events])
    timeline = otio.schema.Timeline(name="vadcli events")
    timeline.tracks.append(track)
    return str(timeline.to_json_string(indent=2)) + "\n"


def _otio_clip(otio: Any, document: EventsDocument, event: Event) -> Any:
    video = document.video
    fps = float(video["fps"] or _DEFAULT_FPS)

    def span(start: float, frames: float) -> Any:
        return otio.opentime.TimeRange(otio.opentime.RationalTime(start, fps), otio.opentime.RationalTime(frames, fps))

    whole = span(0, video["frames"]) if video["frames"] else None
    clip = otio.schema.Clip(
        name=f"{video['path']} #{event.id}",
        media_reference=otio.schema.ExternalReference(target_url=quote(str(video["path"])), available_range=whole),
        source_range=span(event.start_frame, event.end_frame - event.start_frame),
        metadata={"vadcli": {**document.event_json(event), "video": video["path"], "camera": video["camera"]}},
    )
    marker = otio.schema.Marker(name=caption(event), marked_range=span(event.peak_frame, 1), color=otio.schema.MarkerColor.RED)
    marker.metadata["vadcli"] = {"category": label(event)}
    clip.markers.append(marker)
    return clip


EDL = Exporter(each_video(to_edl), ".edl", one_video=True)
OTIO = Exporter(all_videos(to_otio), ".otio")
