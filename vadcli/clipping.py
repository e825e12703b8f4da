"""Cuts events out of their footage, in original quality and with sound. No frame is decoded or encoded."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vadcli.engine.job import check_unchanged
from vadcli.errors import DocumentError, VideoError
from vadcli.options import ClipsOptions, parse_duration
from vadcli.store import OutputLayout, matches, stored_layout
from vadcli.store.atomic import Scratch
from vadcli.store.events import EventsDocument, read_events
from vadcli.store.footage import FootageFolders, choose, timed
from vadcli.types import ClipNeeds, Event, PixelFormat, SizeRule, VideoInfo
from vadcli.types.text import clock, how_many, without_name
from vadcli.video.cut import MUXERS, Cut, cut_file, plan_cut, why_uncuttable
from vadcli.video.loader import ClipLoader, ClipRequest, Finished, Opened, loader_options
from vadcli.video.objects import local_copy

_LONGEST_PART = 60
_FORBIDDEN = re.compile(r"[^\w.-]+")
_NEEDS = ClipNeeds(frames=1, overlap=0, rate_hz=1.0, interval=1, size=SizeRule(64 * 64), pixel_format=PixelFormat.GRAY)


@dataclass(frozen=True)
class ClipResult:
    """The result for one event, or for one video that can't be cut.

    Attributes:
        video: relative path.
        event: number of the event; None if the problem concerns the whole video.
        file: the clip; None if no clip was written.
        start_s, end_s: the part of the video that the clip shows, in seconds from the first frame; None if it is not known.
        problem: what went wrong, in one line; "" if nothing went wrong.
        skipped: True if the clip was cut earlier.
    """

    video: str
    event: int | None = None
    file: Path | None = None
    start_s: float | None = None
    end_s: float | None = None
    problem: str = ""
    skipped: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `vadcli clips --json` prints."""
        return {**vars(self), "file": None if self.file is None else str(self.file)}


def clip_all(out: Path, options: ClipsOptions) -> Iterator[ClipResult]:
    """Cut the chosen events out of their footage. Yields one result per event, and per video that can't be cut.

    Raises:
        UsageError: the folder does not exist, or has no results of a scan.
        OutputError: a clip can't be written.
    """
    layout = stored_layout(out)
    return _clip_all(layout, options)


def _clip_all(layout: OutputLayout, options: ClipsOptions) -> Iterator[ClipResult]:
    documents, problems = _documents(layout, options)
    yield from problems
    folders, missing = FootageFolders(layout, options.footage), []
    to = options.to or layout.out / "clips"
    with Scratch(to / ".tmp") as scratch, ClipLoader(_NEEDS, loader_options(options, workers=1)) as loader:
        cutter = _Cutter(to, scratch, loader, options)
        for document in documents:
            video = str(document.video["path"])
            old = {event.id: cutter.existing(document, event, Path(video).suffix) for event in document.events}
            yield from (ClipResult(video, number, file, skipped=True) for number, file in old.items() if file is not None)
            wanted = [event for event in document.events if old[event.id] is None]
            path = folders.find(document) if wanted else None
            if path is not None:
                yield from cutter.clips(document, path, wanted)
            elif wanted:
                missing.append(video)
    if missing:
        roots = folders.roots(documents[0])
        more = f" and {how_many(len(missing) - 1, 'more video')}" if len(missing) > 1 else ""
        where = f"not found in {roots[0]}" if roots else "not found"
        yield ClipResult(missing[0], problem=f"{where}{more} (if the footage has moved, name its folder with --footage)")


def _documents(layout: OutputLayout, options: ClipsOptions) -> tuple[list[EventsDocument], list[ClipResult]]:
    """Return the documents with only the chosen events, and a result for each document that can't be read."""
    documents, problems = [], []
    rules = options.time_rules()
    for path in layout.iter_events():
        try:
            document = read_events(path)
        except DocumentError as error:
            problems.append(ClipResult(path.relative_to(layout.out / "events").as_posix(), problem=str(error)))
            continue
        if matches(str(document.video["path"]), options.include) and matches(
            str(document.video["camera"] or ""), options.camera
        ):
            documents.append(timed(document, rules))
    return [one for one in choose(documents, options.when(), options.category) if one.events], problems


class _Cutter:
    """Cuts the events of one video after the other.

    Args:
        to: the folder of the clips.
        scratch: a folder for temporary files, inside of `to`.
        loader: opens videos in another process, because a damaged video may crash that process.
        options: the options of the command.
    """

    def __init__(self, to: Path, scratch: Scratch, loader: ClipLoader, options: ClipsOptions) -> None:
        self._to, self._scratch, self._loader, self._options = to, scratch, loader, options
        self._before_s, self._after_s = parse_duration(options.before, "before"), parse_duration(options.after, "after")
        self._timeout_s = parse_duration(options.decode_timeout, "decode_timeout")

    def existing(self, document: EventsDocument, event: Event, suffix: str) -> Path | None:
        """Return the clip of an event if it was cut earlier with the same options; else None."""
        files = (self._file(document, event, one) for one in self._suffixes(suffix))
        return None if self._options.force else next(filter(os.path.exists, files), None)

    def clips(self, document: EventsDocument, path: Path, events: Sequence[Event]) -> Iterator[ClipResult]:
        """Cut events of one video. Yields one result per event, or a single result if the video can't be cut."""
        video = str(document.video["path"])
        try:
            check_unchanged(document, path)
            with local_copy(path) as source:
                yield from self._clips(document, self._probe(video, source), events)
        except VideoError as error:
            yield ClipResult(video, problem=without_name(str(error), video))

    def _clips(self, document: EventsDocument, info: VideoInfo, events: Sequence[Event]) -> Iterator[ClipResult]:
        video = str(document.video["path"])
        if why := why_uncuttable(info):
            yield ClipResult(video, problem=f"not cut: {why} (`vadcli render --events-only` encodes it)")
            return
        for event in events:
            part = plan_cut(info, event.start_s - self._before_s, event.end_s + self._after_s)
            yield self._cut(document, info, event, part)

    def _cut(self, document: EventsDocument, info: VideoInfo, event: Event, part: Cut) -> ClipResult:
        """Cut one event. If the container can't hold a codec, use Matroska. If that fails, too, leave out the sound."""
        result = ClipResult(str(document.video["path"]), event.id, start_s=round(part.start_s, 3), end_s=round(part.end_s, 3))
        tries = [(suffix, True) for suffix in self._suffixes(info.path.suffix)] + [(".mkv", False)]
        first: VideoError | None = None
        for suffix, sound in tries:
            file = self._file(document, event, suffix)
            try:
                with self._scratch.replace(file) as temporary:
                    tags = {"creation_time": document.start.at(part.start_s).isoformat()} if document.start else {}
                    cut_file(info, temporary, part, sound=sound, tags=tags, timeout_s=self._timeout_s)
                    self._probe(result.video, temporary)
            except VideoError as error:
                first = first or error
                continue
            return replace(result, file=file, problem="" if sound else f"event {event.id}: the sound can't be copied")
        return replace(result, problem=f"event {event.id}: {without_name(str(first), result.video)}")

    def _suffixes(self, source: str) -> list[str]:
        """Return the suffixes to try, in order."""
        own = source.lower() if source.lower() in MUXERS else ".mkv"
        return list(dict.fromkeys([own if self._options.container == "same" else f".{self._options.container}", ".mkv"]))

    def _file(self, document: EventsDocument, event: Event, suffix: str) -> Path:
        """Return the path of a clip. Its name depends on the event, the content of the footage, and --before and --after."""
        video = str(document.video["path"])
        content = document.scan.source.get("content") if document.scan else None
        parts = [video, content, event.start_frame, event.end_frame, self._before_s, self._after_s]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:6]
        camera = _part(str(document.video["camera"] or "").replace("/", "-").strip("."))
        if document.start is not None:
            names = [f"{document.start.at(event.start_s):%Y-%m-%d_%H-%M-%S}", camera]
        else:
            names = [camera, _part(Path(video).stem), clock(event.start_s).replace(":", "-").zfill(8)]
        names += [f"{event.peak_score:.2f}", _part(event.category or ""), digest]
        return self._to / f"{'_'.join(filter(None, names))}{suffix}"

    def _probe(self, video: str, path: Path) -> VideoInfo:
        """Return the description of a video file.

        Raises:
            VideoError: the file is not a readable video.
        """
        request = ClipRequest(video, path, spans=((0, 1),))
        with closing(self._loader.run([request])) as items:  # type: ignore[type-var]
            for item in items:
                if isinstance(item, Opened):
                    return item.info
                if isinstance(item, Finished) and item.error:
                    raise item.error
        raise VideoError(f"{video}: can't be opened")


def _part(text: str) -> str:
    """Return a text in a form that is allowed in file names."""
    return _FORBIDDEN.sub("-", text).strip("-._")[:_LONGEST_PART]
