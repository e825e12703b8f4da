"""Events in the formats of other tools: documents in, text out. Each file has one kind of format.

`vadcli.registry.EXPORTERS` has the formats by name, as `--format` takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from vadcli.store.events import EventsDocument
from vadcli.store.masks import MaskTrack

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


def all_videos(text: Callable[[Sequence[EventsDocument]], str]) -> Write:
    """Return what writes the text of all videos together."""
    return lambda documents, masks, file: print(text(documents), end="", file=file)


def each_video(text: Callable[[EventsDocument], str]) -> Write:
    """Return what writes the text of each video, one after the other."""
    return lambda documents, masks, file: print(*map(text, documents), sep="", end="", file=file)
