"""Writes events in the formats of other tools. Each module has formats of one kind.

`vadcli.registry.EXPORTERS` lists the formats under the names that `--format` accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from vadcli.errors import UsageError
from vadcli.registry import EXPORTERS
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch
from vadcli.store.events import EventsDocument
from vadcli.store.masks import MaskTrack, masks_of

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
        beside: additional files for the whole export: file name -> the function that writes the file.
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
    """Return a function that writes one text for all videos."""
    return lambda documents, masks, file: print(text(documents), end="", file=file)


def each_video(text: Callable[[EventsDocument], str]) -> Write:
    """Return a function that writes the texts of the videos one after the other."""
    return lambda documents, masks, file: print(*map(text, documents), sep="", end="", file=file)


def export(
    documents: Sequence[EventsDocument], name: str, *, layout: OutputLayout, to: Path | None = None, file: TextIO
) -> list[str]:
    """Write events in one format to a folder or an open file. Returns one line per problem.

    There are two kinds of problem: stored masks that can't be read, and videos that the format can't represent. The files of
    such videos are left out.

    Args:
        documents: the videos' events.
        name: a name in `registry.EXPORTERS`.
        layout: the output folder of the scan, for its masks.
        to: the folder to write to. Each file is written completely or not at all. If None, the text is written to `file`.
        file: an open text file. It is used only if `to` is None.

    Raises:
        UsageError: the format does not exist or can't represent these events, or several videos would go into a file that can
            contain only one.
        OutputError: a file can't be written. The files before it are kept.
    """
    exporter = EXPORTERS.load(name)
    EXPORTERS.check(name, ok=isinstance(exporter, Exporter), what="is not an Exporter")
    opened: list[MaskTrack] = []
    problems: list[str] = []

    def masks(document: EventsDocument) -> MaskTrack | None:
        found = masks_of(layout, document)
        opened.extend([found] if found else [])
        return found

    if to is not None:
        with Scratch(to / ".tmp") as scratch:
            for relative, write, some in exporter.files(documents):
                try:
                    with scratch.replace(to / relative) as temporary, temporary.open("w", encoding="utf-8") as target:
                        write(some, masks, target)
                except UsageError as error:
                    if not exporter.one_video:
                        raise
                    problems.append(str(error))
    elif exporter.one_video and len(documents) > 1:
        hint = "name a folder with --to, or one video with --include"
        raise UsageError(f"--format {name} can contain only one video, and there are {len(documents)}", hint=hint)
    elif documents or not exporter.one_video:
        exporter.write(documents, masks, file)
    return problems + [problem for track in opened for problem in track.problems]
