"""Cuts events out of their footage, in original quality and with sound. Nothing is encoded.

ffmpeg copies the compressed frames (`cut_file`). A player can begin only at a keyframe. So a clip begins at the last keyframe
before the requested time. If ffmpeg can't find this keyframe, the clip begins at an earlier keyframe.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from vadcli.engine.job import check_unchanged
from vadcli.errors import DecodeError, DocumentError, VideoError
from vadcli.options import ClipsOptions, parse_duration
from vadcli.store import OutputLayout, matches, stored_layout
from vadcli.store.atomic import Scratch
from vadcli.store.events import EventsDocument, FootageFolders, choose, read_events, timed
from vadcli.types import ClipNeeds, Event, PixelFormat, SizeRule, VideoInfo
from vadcli.types.text import clock, how_many, without_name
from vadcli.video.container import can_jump, has_times
from vadcli.video.ffmpeg import clock_shifts, find_sound, run_ffmpeg, source_arguments
from vadcli.video.loader import ClipLoader, ClipRequest, Finished, Opened, loader_options
from vadcli.video.objects import local_copy

MUXERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".3gp": "3gp",
    ".mkv": "matroska",
    ".webm": "webm",
    ".avi": "avi",
    ".ts": "mpegts",
    ".mts": "mpegts",
    ".m2ts": "mpegts",
    ".mpg": "mpeg",
    ".mpeg": "mpeg",
    ".flv": "flv",
}
"""ffmpeg's name of the container format, by suffix."""

# If frames are decoded in another order than they are shown, ffmpeg seeks to a time that is this number of seconds earlier.
# MP4 is an exception. The number is from ffmpeg's source code.
_SEEKS_EARLIER_S = 3 / 23
# In transport and program streams, ffmpeg seeks by decoding time. This time is earlier than the presentation time. The copy
# begins at the first keyframe after the seek time. So the seek time must be a little before the wanted keyframe.
_DECODED_EARLIER_S = 0.1
_LONGEST_PART = 60
_FORBIDDEN = re.compile(r"[^\w.-]+")
_NEEDS = ClipNeeds(frames=1, overlap=0, rate_hz=1.0, interval=1, size=SizeRule(64 * 64), pixel_format=PixelFormat.GRAY)


@dataclass(frozen=True)
class ClipResult:
    """The result for one event, or for a whole video if it can't be cut.

    Attributes:
        video: relative path.
        event: number of the event; None if the problem concerns the whole video.
        file: the clip; None if no clip was written.
        start_s, end_s: the part of the video that was cut, in seconds from the first frame; None if this run cut no part.
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
    """Cut the chosen events. Yields one result per event, and one result per video that can't be cut.

    Raises:
        UsageError: the folder does not exist, or has no results of a scan.
        OutputError: a clip can't be written.
    """
    return _clip_all(stored_layout(out), options)


def _clip_all(layout: OutputLayout, options: ClipsOptions) -> Iterator[ClipResult]:
    documents, rules = [], options.time_rules()
    for path in layout.iter_events():
        try:
            document = read_events(path)
        except DocumentError as error:
            yield ClipResult(path.relative_to(layout.out / "events").as_posix(), problem=str(error))
            continue
        video, camera = str(document.video["path"]), str(document.video["camera"] or "")
        if matches(video, options.include) and matches(camera, options.camera):
            documents.append(timed(document, rules))
    documents = [document for document in choose(documents, options.when(), options.category) if document.events]
    folders, missing = FootageFolders(layout, options.footage), []
    to = options.to or layout.out / "clips"
    with Scratch(to / ".tmp") as scratch, ClipLoader(_NEEDS, loader_options(options, workers=1)) as loader:
        cutter = _Cutter(to, scratch, loader, options)
        for document in documents:
            video = str(document.video["path"])
            files = {event.id: cutter.existing(document, event, Path(video).suffix) for event in document.events}
            yield from (ClipResult(video, number, file, skipped=True) for number, file in files.items() if file is not None)
            uncut = [event for event in document.events if files[event.id] is None]
            source = folders.find(document) if uncut else None
            if source is not None:
                yield from cutter.clips(document, source, uncut)
            elif uncut:
                missing.append(video)
    if missing:
        roots = folders.roots(documents[0])
        more = f" and {how_many(len(missing) - 1, 'more video')}" if len(missing) > 1 else ""
        where = f"not found in {roots[0]}" if roots else "not found"
        yield ClipResult(missing[0], problem=f"{where}{more} (if the footage has moved, name its folder with --footage)")


class _Cutter:
    """Cuts the events of one video after the other.

    Args:
        to: the folder of the clips.
        scratch: a folder for temporary files, in `to`.
        loader: opens videos in another process, so that a damaged video crashes only that process.
        options: the options of the command.
    """

    def __init__(self, to: Path, scratch: Scratch, loader: ClipLoader, options: ClipsOptions) -> None:
        self._to, self._scratch, self._loader, self._options = to, scratch, loader, options
        self._before_s, self._after_s = parse_duration(options.before, "before"), parse_duration(options.after, "after")
        self._timeout_s = parse_duration(options.decode_timeout, "decode_timeout")

    def existing(self, document: EventsDocument, event: Event, suffix: str) -> Path | None:
        """Return the clip of an event if it was cut earlier with the same options; else None."""
        files = (self._file(document, event, container) for container in self._suffixes(suffix))
        return None if self._options.force else next(filter(os.path.exists, files), None)

    def clips(self, document: EventsDocument, path: Path, events: Sequence[Event]) -> Iterator[ClipResult]:
        """Cut events of one video. Yields one result per event, or a single result if the video can't be cut."""
        video = str(document.video["path"])
        try:
            check_unchanged(document, path)
            with local_copy(path) as source:
                info = self._probe(video, source)
                if why := why_uncuttable(info):
                    yield ClipResult(video, problem=f"not cut: {why} (`vadcli render --events-only` encodes it)")
                    return
                for event in events:
                    yield self._cut(document, info, event)
        except VideoError as error:
            yield ClipResult(video, problem=without_name(str(error), video))

    def _cut(self, document: EventsDocument, info: VideoInfo, event: Event) -> ClipResult:
        """Cut one event. If this fails, try again as Matroska with sound, and then as Matroska without sound."""
        part = plan_cut(info, event.start_s - self._before_s, event.end_s + self._after_s)
        result = ClipResult(str(document.video["path"]), event.id, start_s=round(part.start_s, 3), end_s=round(part.end_s, 3))
        tries = [(suffix, True) for suffix in self._suffixes(info.path.suffix)] + [(".mkv", False)]
        first_error: VideoError | None = None
        for suffix, sound in tries:
            file = self._file(document, event, suffix)
            try:
                with self._scratch.replace(file) as temporary:
                    tags = {"creation_time": document.start.at(part.start_s).isoformat()} if document.start else {}
                    cut_file(info, temporary, part, sound=sound, tags=tags, timeout_s=self._timeout_s)
                    self._probe(result.video, temporary)
            except VideoError as error:
                first_error = first_error or error
                continue
            return replace(result, file=file, problem="" if sound else f"event {event.id}: the sound can't be copied")
        return replace(result, problem=f"event {event.id}: {without_name(str(first_error), result.video)}")

    def _suffixes(self, source: str) -> list[str]:
        """Return the suffixes of the containers to try, in this order. `source` is the suffix of the video."""
        own = source.lower() if source.lower() in MUXERS else ".mkv"
        return list(dict.fromkeys([own if self._options.container == "same" else f".{self._options.container}", ".mkv"]))

    def _file(self, document: EventsDocument, event: Event, suffix: str) -> Path:
        """Return the path of a clip. The file name depends on the footage and on the length of the clip."""
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


@dataclass(frozen=True)
class Cut:
    """A part of a video, in seconds from its first frame.

    Attributes:
        start_s: time of the keyframe at which the part begins.
        end_s: time at which the part ends.
    """

    start_s: float
    end_s: float


def why_uncuttable(info: VideoInfo) -> str:
    """Return why parts of a video cannot be copied without encoding them; "" if they can be copied."""
    if info.images:
        return "a folder of images has no packets to copy"
    if not has_times(info.demuxer):
        return "a raw stream has no times by which it could be cut"
    return "its clock restarts, so a time can be in several places of the file" if clock_shifts(info) else ""


def plan_cut(info: VideoInfo, start_s: float, end_s: float) -> Cut:
    """Return the part that contains all frames from `start_s` to `end_s` and begins at a keyframe."""
    times = info.timestamps(info.pts)
    keys = times[info.keyframes]
    before = keys[keys <= max(start_s, 0.0) + 1e-6]
    return Cut(float(before[-1]) if len(before) else 0.0, min(end_s, info.duration_s))


def cut_file(
    info: VideoInfo,
    target: Path,
    part: Cut,
    *,
    sound: bool = True,
    tags: Mapping[str, str] = MappingProxyType({}),
    timeout_s: float = 60.0,
) -> None:
    """Copy a part of a video into a file. The suffix of `target` chooses the container.

    Args:
        info: the probe of the video.
        target: the file to write; its suffix is one of `MUXERS`.
        part: the part to copy.
        sound: False leaves out the sound.
        tags: metadata to write. The metadata of the source is left out, because its times would be wrong.
        timeout_s: time limit in seconds. The length of the part is added to this limit.

    Raises:
        DecodeError: ffmpeg failed, for example because the container can't store the codec. The message contains the first
            line that ffmpeg reported.
        DecoderHung: ffmpeg took too long.
    """
    zero_s, start_s = float(info.pts[0] * info.time_base), part.start_s
    if start_s <= 0:
        track = find_sound(info, timeout_s=timeout_s)
        begin: list[str] = []
        begins_s = min(0.0, track.earliest_s - zero_s) if track else 0.0  # also copy the sound before the first frame
    else:
        begins_s = start_s - _DECODED_EARLIER_S
        if not can_jump(info.demuxer) or info.demuxer == "flv":
            little_s = 0.25 / info.fps  # a tolerance, because some containers round times
            keys = info.timestamps(info.pts)[info.keyframes]
            later = keys[keys > start_s + little_s]
            room_s = float(later[0]) - start_s if len(later) else np.inf
            begins_s = start_s + little_s + (_SEEKS_EARLIER_S if room_s > _SEEKS_EARLIER_S + 2 * little_s else 0.0)
        begin = ["-seek_timestamp", "1", "-ss", f"{zero_s + begins_s:.6f}"]
    tagged = [word for name, value in tags.items() for word in ("-metadata", f"{name}={value}")]
    apple = ["-tag:v", "hvc1"] if info.codec == "hevc" and target.suffix in (".mp4", ".mov", ".m4v") else []
    arguments = [
        *("-y", "-fflags", "+genpts", *begin),
        *(word for name, value in info.probe_options.items() for word in (f"-{name}", str(value))),
        *source_arguments(info),
        *("-map", f"0:{info.stream_index}", *(["-map", "0:a?"] if sound else [])),
        *("-c", "copy", "-t", f"{part.end_s - begins_s:.6f}", "-avoid_negative_ts", "make_zero"),
        *("-map_metadata", "-1", "-map_chapters", "-1", *tagged, *apple),
        *(["-movflags", "+faststart"] if MUXERS[target.suffix] in ("mp4", "mov") else []),
        *("-f", MUXERS[target.suffix], f"file:{target}"),
    ]
    done = run_ffmpeg(arguments, info, verbosity="error", timeout_s=timeout_s + part.end_s - part.start_s, what="cut nothing")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ffmpeg ended with status {done.returncode}"]
        raise DecodeError(f"{info.path}: can't be cut; ffmpeg reports: {lines[0]}")
