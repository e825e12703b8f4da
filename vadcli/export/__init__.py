"""Writes events in the formats of other tools.

The formats in this module are JSON, CSV, WebVTT, CMX 3600 edit lists and OpenTimelineIO. Players show WebVTT as captions or
chapters. Video editors read CMX 3600 and OpenTimelineIO. `annotation` has the formats of annotation tools.
`vadcli.registry.EXPORTERS` lists all formats under the names that `--format` accepts.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from vadcli.errors import UsageError
from vadcli.registry import EXPORTERS
from vadcli.store import OutputLayout, json_text
from vadcli.store.atomic import Scratch
from vadcli.store.events import EventsDocument
from vadcli.store.masks import MaskTrack, masks_of
from vadcli.types import Event
from vadcli.types.text import clock_ms

MasksOf = Callable[[EventsDocument], MaskTrack | None]
Write = Callable[[Sequence[EventsDocument], MasksOf, TextIO], None]
ExportedFile = tuple[str, Write, Sequence[EventsDocument]]
"""One file of an export: its relative name, the function that writes the file, and the documents of its videos."""


@dataclass(frozen=True)
class Exporter:
    """One export format.

    Attributes:
        write: the function that writes the events of some videos to a file.
        suffix: suffix of the file names, if there is one file per video.
        one_video: True if a file can contain only one video.
        name: name of the file with all videos; empty if there is one file per video.
        beside: for each additional file of the export, the function that writes the file; the keys are the file names.
    """

    write: Write
    suffix: str
    one_video: bool = False
    name: str = ""
    beside: Mapping[str, Write] = field(default_factory=dict)

    def files(self, documents: Sequence[EventsDocument]) -> Iterator[ExportedFile]:
        """Yield every file that an export to a folder writes."""
        if not self.name:
            yield from ((f"{document.video['path']}{self.suffix}", self.write, [document]) for document in documents)
            return
        yield self.name, self.write, documents
        yield from ((name, write, documents) for name, write in self.beside.items())


def all_videos(text: Callable[[Sequence[EventsDocument]], str]) -> Write:
    """Return a function that calls `text` once, with all videos, and writes the result."""
    return lambda documents, masks, file: print(text(documents), end="", file=file)


def each_video(text: Callable[[EventsDocument], str]) -> Write:
    """Return a function that calls `text` once per video, and writes the results one after the other."""
    return lambda documents, masks, file: print(*map(text, documents), sep="", end="", file=file)


def export(
    documents: Sequence[EventsDocument], name: str, *, layout: OutputLayout, to: Path | None = None, file: TextIO
) -> list[str]:
    """Write events in one format to a folder or an open file, and return one line per problem.

    There are two kinds of problem: stored masks that can't be read, and videos that the format can't represent. If the format
    can't represent a video, the file of this video is left out.

    Args:
        documents: the videos' events.
        name: a name in `registry.EXPORTERS`.
        layout: the output folder of the scan, for its masks.
        to: the folder to write to. Each file is written completely or not at all. If None, the text is written to `file`.
        file: an open text file. It is used only if `to` is None.

    Raises:
        UsageError: the format does not exist, or can't represent these events. Also if `to` is None, and there are more videos
            than a file in this format can contain.
        OutputError: a file can't be written. The files that were written before are kept.
    """
    exporter = EXPORTERS.load(name)
    EXPORTERS.check(name, ok=isinstance(exporter, Exporter), what="is not an Exporter")
    opened: list[MaskTrack] = []
    problems: list[str] = []

    def masks(document: EventsDocument) -> MaskTrack | None:
        """Return the masks of a video; they are closed at the end of the export."""
        track = masks_of(layout, document)
        opened.extend([track] if track else [])
        return track

    if to is not None:
        with Scratch(to / ".tmp") as scratch:
            for relative, write, described in exporter.files(documents):
                try:
                    with scratch.replace(to / relative) as temporary, temporary.open("w", encoding="utf-8") as target:
                        write(described, masks, target)
                except UsageError as error:
                    if not exporter.one_video:
                        raise
                    problems.append(str(error))
    elif exporter.one_video and len(documents) > 1:
        hint = "name a folder with --to, or one video with --include"
        raise UsageError(f"--format {name} needs one file per video, but there are {len(documents)} videos", hint=hint)
    elif documents or not exporter.one_video:
        exporter.write(documents, masks, file)
    return problems + [problem for track in opened for problem in track.problems]


UNNAMED = "anomaly"
"""The label of an event without a category."""


def label(event: Event) -> str:
    """Return the event's category, or `UNNAMED` if it has none."""
    return event.category or UNNAMED


def caption(event: Event) -> str:
    """Return the event's label and peak score; also the head's score and the answer of `verify`, if any."""
    judged = f", head {event.head_score:.2f}" if event.head_score is not None else ""
    answer = f", {event.verified}" if event.verified else ""
    return f"{label(event)} {event.peak_score:.2f}{judged}{answer}"


def one_line(text: str) -> str:
    """Return the text without line breaks, for formats in which a line break ends an entry."""
    return " ".join(text.split())


def recorded_at(document: EventsDocument, event: Event) -> str:
    """Return the wall-clock time at which the event starts, such as 2026-11-29 14:03:22.

    Return "" if the time is unknown, or is known only from the time of the file's last change.
    """
    start = document.start
    return f"{start.at(event.start_s):%Y-%m-%d %H:%M:%S}" if start and start.is_recorded else ""


_NOT_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def legal_in_xml(text: str) -> str:
    """Return the text with U+FFFD in place of characters that XML forbids."""
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
    return json_text([document.to_json() for document in documents])


def to_csv(documents: Iterable[EventsDocument]) -> str:
    """Return a header row and one row per event of all videos; a cell without a value is empty.

    If a trained head judged the events of a video, the last column is the score of this head.
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
"""Seconds of the first timecode of an edit list: by convention, edited videos start at one hour."""
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

    Each clip has a marker at the event's peak. The clip refers to its video by the path relative to the scanned folder. The
    clip's metadata contains all other data of the event.

    Raises:
        UsageError: the opentimelineio package is not installed.
    """
    try:
        import opentimelineio as otio
    except ImportError as error:
        raise UsageError("--format otio needs the opentimelineio package", hint="pip install 'vadcli[otio]'") from error

    def span(start: float, frames: float, fps: float) -> Any:
        """Return a time range of OpenTimelineIO."""
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
