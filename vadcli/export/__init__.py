"""Events in the formats of other tools: documents in, text out. `FORMATS` has them by name; each has a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from vadcli.export.annotation import label_studio_config, to_fiftyone, to_label_studio
from vadcli.export.cvat import write_cvat
from vadcli.export.edit_lists import to_edl, to_otio
from vadcli.export.text import CSV_COLUMNS, to_csv, to_json, to_vtt
from vadcli.store.events import EventsDocument
from vadcli.store.masks import MaskTrack

__all__ = [
    "CSV_COLUMNS",
    "FORMATS",
    "ExportedFile",
    "Exporter",
    "MasksOf",
    "label_studio_config",
    "to_csv",
    "to_edl",
    "to_fiftyone",
    "to_json",
    "to_label_studio",
    "to_otio",
    "to_vtt",
    "write_cvat",
]

MasksOf = Callable[[EventsDocument], MaskTrack | None]
Write = Callable[[Sequence[EventsDocument], MasksOf, TextIO], None]
ExportedFile = tuple[str, Write, Sequence[EventsDocument]]
"""A file of an export: its relative name, what writes it, and the videos in it."""


@dataclass(frozen=True)
class Exporter:
    """One format.

    Attributes:
        write: writes these videos' events.
        suffix: of a video's file.
        one_video: a file holds one video only.
        name: of the one file that holds all videos; where there is none, each has a file of its own.
        beside: further files for the whole export, by their names.
    """

    write: Write
    suffix: str
    one_video: bool = False
    name: str = ""
    beside: Mapping[str, Write] = field(default_factory=dict)

    def files(self, documents: Sequence[EventsDocument]) -> Iterator[ExportedFile]:
        """Every file of an export into a folder."""
        if not self.name:
            yield from ((f"{document.video['path']}{self.suffix}", self.write, [document]) for document in documents)
            return
        yield self.name, self.write, documents
        yield from ((name, write, documents) for name, write in self.beside.items())


def _all(text: Callable[[Sequence[EventsDocument]], str]) -> Write:
    return lambda documents, masks, file: _put(file, text(documents))


def _each(text: Callable[[EventsDocument], str]) -> Write:
    return lambda documents, masks, file: _put(file, "".join(map(text, documents)))


def _put(file: TextIO, text: str) -> None:
    file.write(text)


def _cvat(documents: Sequence[EventsDocument], masks: MasksOf, file: TextIO) -> None:
    for document in documents:
        write_cvat(document, masks(document), file)


FORMATS: Mapping[str, Exporter] = {
    "json": Exporter(_all(to_json), ".json"),
    "csv": Exporter(_all(to_csv), ".csv"),
    "vtt": Exporter(_each(to_vtt), ".vtt", one_video=True),
    "edl": Exporter(_each(to_edl), ".edl", one_video=True),
    "otio": Exporter(_all(to_otio), ".otio"),
    "fiftyone": Exporter(_all(to_fiftyone), ".json", name="labels.json"),
    "label-studio": Exporter(
        _all(to_label_studio), ".json", name="label-studio.json", beside={"label-studio.xml": _all(label_studio_config)}
    ),
    "cvat": Exporter(_cvat, ".cvat.xml", one_video=True),
}
"""By what `--format` calls them."""
