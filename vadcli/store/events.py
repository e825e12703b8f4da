"""Writes, reads and checks events documents; finds their videos and when these videos start.

A document is checked against the published JSON Schema. No video is opened. The folders of the videos come from the run
records. A video that is not found may still exist: perhaps a share is not mounted.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from functools import cached_property
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from vadcli import __version__
from vadcli.errors import DocumentError
from vadcli.options.categories import Category
from vadcli.store import OutputLayout, json_text, matches, possible_paths
from vadcli.store.run_log import read_run
from vadcli.types import (
    EVENTS_FORMAT_VERSION,
    NO_REGIONS,
    Event,
    HeadMark,
    Regions,
    StartTime,
    Status,
    Thresholds,
    TimeRules,
    TimeSource,
    VideoInfo,
    When,
)
from vadcli.types.text import is_remote, may_exist, structure, unreadable
from vadcli.types.wall_clock import in_zone

_REWRITE = "write it again with `vadcli scan`; if the video counts as done, with `vadcli scan --force`"
_VIDEO_FIELDS = ("path", "camera", "width", "height", "rotation", "fps", "duration_s", "frames", "moving_camera")


def describe_video(
    path: str,
    camera: str | None,
    info: VideoInfo | None = None,
    *,
    frames: int | None = None,
    moving_camera: bool | None = None,
) -> dict[str, Any]:
    """Return the `video` part of an events document.

    If the probe failed, the values from the probe are null.

    Args:
        path: relative path.
        camera: the camera's name.
        info: the result of the probe; None if the probe failed.
        frames: number of rows in the scores file; None means the number of frames that the probe found.
        moving_camera: True if the detector found that the camera moves.
    """
    probed = {name: getattr(info, name, None) for name in ("width", "height", "rotation", "fps", "duration_s")}
    rows = info.frames if info and frames is None else frames
    return {"path": path, "camera": camera, **probed, "frames": rows, "moving_camera": moving_camera}


@dataclass(frozen=True)
class Failure:
    """The reason why a video has no scores.

    Attributes:
        stage: the step that failed: probe, open, decode, score or write.
        error: one line for people to read.
    """

    stage: str
    error: str


@dataclass(frozen=True, slots=True)
class ScanState:
    """The state of a video after its last scan.

    The next scan reads this state to decide whether to skip the video.

    Attributes:
        status: done, partial or failed.
        fingerprint: hash of everything that changes scores.
        source: values that show whether the video file has changed.
    """

    status: Status
    fingerprint: str
    source: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.status not in (Status.DONE, Status.PARTIAL, Status.FAILED):
            raise ValueError(f"the status of a stored scan must be done, partial or failed, not {self.status}")


@dataclass(frozen=True, slots=True)
class EventsDocument:
    """The events of one video, or the reason why it has no scores.

    Attributes:
        video: as `describe_video` returns it.
        detector: the detector's name in the registry.
        categories: the categories, as the user gave them.
        thresholds: the thresholds that opened and closed the events.
        events: the events in order of time.
        failure: why the video has no scores; None if there are scores.
        scan: the state after the last scan; the next scan reads it.
        generator: the program that wrote the document.
        start: when the video started; None if this is unknown.
        created: creation time according to the video's container; "" if the container does not store it.
        caveats: sentences that say why the scores deserve less trust than usual.
        regions: the parts of the picture that were hidden.
        head: the trained head that judged the events; None if no head judged them.
        own_categories: the categories that the user described with sentences.
        scan_events: the events as they were before `vadcli verify` changed them; None if the video was not verified.
    """

    video: Mapping[str, Any]
    detector: str
    categories: tuple[str, ...]
    thresholds: Thresholds
    events: tuple[Event, ...] = ()
    failure: Failure | None = None
    scan: ScanState | None = None
    generator: str = field(default=f"vadcli {__version__}")
    start: StartTime | None = None
    created: str = ""
    caveats: tuple[str, ...] = ()
    regions: Regions = NO_REGIONS
    head: HeadMark | None = None
    scan_events: tuple[Event, ...] | None = None
    own_categories: tuple[Category, ...] = ()

    def __post_init__(self) -> None:
        if tuple(self.video) != _VIDEO_FIELDS:
            raise ValueError(f"video needs the fields {', '.join(_VIDEO_FIELDS)}, not {', '.join(self.video)}")
        if self.failure and self.events:
            raise ValueError(f"{self.video['path']}: a failed video has no events")

    def to_json(self) -> dict[str, Any]:
        """Return the documented fields in the documented order."""
        scan, unknown = self.scan, {"start_time": None, "time_source": None, "time_zone": None}
        own = [
            {"name": category.name, "means": list(category.means), "looks_like": list(category.looks_like)}
            for category in self.own_categories
        ]
        return {
            "format_version": EVENTS_FORMAT_VERSION,
            "generator": self.generator,
            "video": {**self.video, **(self.start.to_json() if self.start else unknown), "creation_time": self.created or None},
            "detector": self.detector,
            "categories": list(self.categories),
            **({"own_categories": own} if own else {}),
            "threshold": self.thresholds.to_json(),
            "failure": asdict(self.failure) if self.failure else None,
            "scan": {"status": str(scan.status), "fingerprint": scan.fingerprint, "source": dict(scan.source)}
            if scan
            else None,
            "caveats": list(self.caveats),
            "regions": self.regions.to_json(),
            **({"head": asdict(self.head)} if self.head else {}),
            "events": [self.event_json(event) for event in self.events],
            **({} if self.scan_events is None else {"scan_events": [self.event_json(event) for event in self.scan_events]}),
        }

    def event_json(self, event: Event) -> dict[str, Any]:
        """Return the documented fields of one event; unknown wall-clock times are null."""
        times = [self.start.text_at(seconds) if self.start else None for seconds in (event.start_s, event.end_s)]
        return {**event.to_json(), "start_time": times[0], "end_time": times[1]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> EventsDocument:
        """Return the document that `to_json` stored. Check the JSON with `validate` first."""
        failure, scan, video = document["failure"], document.get("scan"), document["video"]
        before = document.get("scan_events")
        stored = scan["source"].items() if scan else ()
        source = {sys.intern(name): _shared(value) if name == "root" else value for name, value in stored}
        return cls(
            video={name: video[name] for name in _VIDEO_FIELDS} | {"camera": _shared(video["camera"])},
            detector=sys.intern(document["detector"]),
            categories=_texts(*document["categories"]),
            thresholds=_thresholds(json.dumps(document["threshold"])),
            events=tuple(Event.from_json(event) for event in document["events"]),
            failure=Failure(failure["stage"], failure["error"]) if failure else None,
            scan=ScanState(Status(scan["status"]), scan["fingerprint"], source) if scan else None,
            generator=sys.intern(document["generator"]),
            start=StartTime.from_json(video),
            created=str(video.get("creation_time") or ""),
            caveats=_texts(*document.get("caveats", ())),
            regions=Regions.from_json(document.get("regions")),
            head=HeadMark(**document["head"]) if document.get("head") else None,
            own_categories=tuple(structure(Category, category) for category in document.get("own_categories", ())),
            scan_events=None if before is None else tuple(Event.from_json(event) for event in before),
        )


# A command may keep the documents of a million videos. Most documents have the same values here, so they share the objects.
@functools.lru_cache(maxsize=1024)
def _thresholds(text: str) -> Thresholds:
    return Thresholds(**json.loads(text))


@functools.lru_cache(maxsize=1024)
def _texts(*texts: str) -> tuple[str, ...]:
    return texts


def _shared(value: Any) -> Any:
    return sys.intern(value) if type(value) is str else value


def write_events(path: Path, document: EventsDocument) -> None:
    """Write a document to `path`, a temporary file that the caller renames.

    Raises:
        OSError: the file can't be written.
    """
    path.write_text(json_text(document.to_json()), encoding="utf-8")


def read_events(path: Path) -> EventsDocument:
    """Return a stored document after checking it.

    Raises:
        DocumentError: the file is missing or damaged, or is not an events document of this version. The message
            contains the first error.
    """
    document = load(path)
    errors = validate(document, str(path))
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise DocumentError(errors[0] + more, hint=_REWRITE)
    return EventsDocument.from_json(document)


def read_unchecked(path: Path) -> EventsDocument | None:
    """Return a document without the slow check of its schema; None if the document is missing or damaged."""
    try:
        return EventsDocument.from_json(load(path))
    except (DocumentError, AttributeError, KeyError, TypeError, ValueError):
        return None


def load(path: Path) -> Any:
    """Return the JSON value in a file without checking it.

    Raises:
        DocumentError: the file can't be read or is not JSON.
    """
    try:
        return json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise DocumentError(unreadable(path, error), hint=_REWRITE) from error
    except json.JSONDecodeError as error:
        raise DocumentError(f"{path}: not JSON: {error.msg} in line {error.lineno}", hint=_REWRITE) from error
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{path}: not JSON: {error}", hint=_REWRITE) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def schema() -> dict[str, Any]:
    """Return the published JSON Schema of this format version."""
    text = resources.files("vadcli.store").joinpath(f"schemas/events-{EVENTS_FORMAT_VERSION}.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def validate(document: Any, name: str) -> list[str]:
    """Return one line "name: where: what" per error; an empty list if the document is valid.

    The schema is checked first. A document that fits it is also checked for contradictions: rows and times must be in order and
    inside the video, and events must not overlap.

    Args:
        document: a JSON value.
        name: the document's name in the messages, such as its path.
    """
    if _validator().is_valid(document):
        return [f"{name}: {where}: {what}" for where, what in _contradictions(document)]
    lines = []
    errors = _validator().iter_errors(document)
    for error in sorted(errors, key=lambda error: (list(map(str, error.instance_path)), error.message)):
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
        what = " ".join(error.message.split())
        short = what if len(what) <= 200 else f"{what[:120]} … {what[-60:]}"
        lines.append(f"{name}: {where.lstrip('.') or 'document'}: {short}")
    return lines


@functools.cache
def _validator() -> Any:
    import jsonschema_rs

    return jsonschema_rs.validator_for(schema())


def _contradictions(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    threshold, events = document["threshold"], document["events"]
    if threshold["low"] > threshold["high"]:
        yield "threshold", f"low ({threshold['low']}) is above high ({threshold['high']})"
    if document["failure"] and events:
        yield "events", "a failed video has no events"
    try:
        Regions.from_json(document.get("regions"))
    except ValueError as error:
        yield "regions", str(error)
    for name in ("events", "scan_events"):
        listed = document.get(name) or []
        yield from _time_contradictions(document["video"], listed, name)
        end_frame, end_s = 0, 0.0
        for index, event in enumerate(listed):
            yield from ((f"{name}[{index}]", what) for what in _event_contradictions(event, document["video"]))
            if event["id"] != index + 1:
                yield f"{name}[{index}].id", f"{event['id']} instead of {index + 1}"
            if event["start_frame"] < end_frame or event["start_s"] < end_s:
                yield f"{name}[{index}]", "starts before the previous event ends"
            end_frame, end_s = event["end_frame"], event["end_s"]


def _time_contradictions(video: Mapping[str, Any], events: Sequence[Mapping[str, Any]], part: str) -> Iterator[tuple[str, str]]:
    """Yield an error for each wall-clock time that does not fit the start of the video.

    Documents of old versions have no wall-clock times.
    """
    try:
        start = StartTime.from_json(video)
    except ValueError as error:
        yield "video.start_time", str(error)
        return
    for index, event in enumerate(events):
        for name, seconds in (("start_time", event["start_s"]), ("end_time", event["end_s"])):
            stored = event.get(name)
            try:
                right = not stored or (
                    start is not None and abs(datetime.fromisoformat(stored) - start.at(seconds)) < _TIME_SLACK
                )
            except (TypeError, ValueError, OverflowError):
                right = False
            if not right:
                yield f"{part}[{index}].{name}", f"{stored} is not {seconds} s after the start of the video"


_TIME_SLACK = timedelta(milliseconds=2)  # times are stored in whole milliseconds


def _event_contradictions(event: Mapping[str, Any], video: Mapping[str, Any]) -> Iterator[str]:
    if not event["start_frame"] <= event["peak_frame"] < event["end_frame"]:
        rows = f"{event['start_frame']}, {event['peak_frame']}, {event['end_frame']}"
        yield f"the rows of start, peak and end are not in order: {rows}"
    if not event["start_s"] <= event["peak_s"] <= event["end_s"]:
        yield f"the times of start, peak and end are not in order: {event['start_s']}, {event['peak_s']}, {event['end_s']}"
    if event["mean_score"] > event["peak_score"]:
        yield f"mean_score ({event['mean_score']}) is above peak_score ({event['peak_score']})"
    if video["frames"] is not None and event["end_frame"] > video["frames"]:
        yield f"ends at row {event['end_frame']} of {video['frames']}"
    box = event["bbox"]
    if box and video["width"] is not None and video["height"] is not None:
        right, bottom = box[0] + box[2], box[1] + box[3]
        if right > video["width"] or bottom > video["height"]:
            yield f"bbox reaches {right}, {bottom} in a video of {video['width']} x {video['height']}"


def stored_roots(layout: OutputLayout) -> Iterator[Path]:
    """Yield each root in the run records of an output folder once, the newest root first.

    A root is the folder that contains the scanned videos. Older versions stored one root per scan, so an old output folder may
    have several roots. If the output folder has no results, only the roots of runs that have not ended are yielded. Unreadable
    records are skipped.
    """
    cameras = layout.camera(".").parent
    stored = (layout.iter_events(), layout.iter_checkpoints(), cameras.glob("**/*.json"))
    has_results = any(next(files, None) for files in stored)
    seen: set[str] = set()
    for path in chain([layout.run_json], sorted(layout.iter_runs(), reverse=True)):
        with suppress(DocumentError):
            run = read_run(path, head=True)
            if run.info.root and run.info.root not in seen and (has_results or run.end is None):
                seen.add(run.info.root)
                yield from map(Path, possible_paths(run.info.root))


_GONE = (errno.ENOENT, errno.ENOTDIR)


class Presence(Enum):
    """Whether a video or a camera folder still exists; see `FootageFolders.presence`."""

    HERE = "here"
    GONE = "gone"  # it was deleted or moved
    UNKNOWN = "unknown"  # it is not found; the reason may be that a share is not mounted


class FootageFolders:
    """Finds the video files that belong to an output folder. Looks in all folders that may contain them.

    Args:
        layout: the output folder.
        moved_to: the folder that contains the footage now; None if the footage is still in the folders that were scanned.
    """

    def __init__(self, layout: OutputLayout, moved_to: Path | None = None) -> None:
        self._layout, self._moved_to = layout, moved_to
        self._filled: dict[str, bool] = {}

    @cached_property
    def _stored(self) -> list[str]:
        return [str(root) for root in stored_roots(self._layout)]

    def roots(self, document: EventsDocument | None = None) -> list[str]:
        """Return the folders in which to look for the video of `document`.

        If the footage was moved, this is only `moved_to`. Otherwise, the first folder is the root of the scan that wrote
        `document`. The roots of the other scans follow, from the newest to the oldest scan.
        """
        if self._moved_to is not None:
            return [str(self._moved_to)]
        own = str(document.scan.source.get("root") or "") if document and document.scan else ""
        return list(dict.fromkeys([*(possible_paths(own) if own else []), *self._stored]))

    def find(self, document: EventsDocument) -> Path | None:
        """Return the path of a video; None if it is not found."""
        return find_below(self.roots(document), str(document.video["path"]))

    def existing_root(self, document: EventsDocument | None = None) -> str | None:
        """Return the first folder of `roots` that exists; None if none of them exists."""
        return next(filter(os.path.isdir, self.roots(document)), None)

    def presence(self, name: str, document: EventsDocument | None = None) -> Presence:
        """Return whether a video or a camera folder is here, gone or unknown.

        - here: the path exists.
        - gone: the path does not exist, but the closest existing folder above it, within the root, is not empty.
        - unknown: in all other cases. For example, if a share is not mounted, the folder in which it is usually mounted is
          empty.
        """
        for path in _below(self.roots(document), name):
            if is_remote(path):
                return Presence.UNKNOWN
            try:
                os.lstat(path)
            except OSError as error:
                if error.errno not in _GONE:
                    return Presence.UNKNOWN
            else:
                return Presence.HERE
        root = self.existing_root(document)
        closest = next((path.parent for path in _below([root], name)), None) if root else None
        while closest is not None and not os.path.lexists(closest):
            closest = closest.parent if str(closest) != root else None
        return Presence.GONE if closest is not None and self._is_filled(str(closest)) else Presence.UNKNOWN

    def _is_filled(self, folder: str) -> bool:
        if folder not in self._filled:
            # Hidden files do not count: the folder may contain hidden files even if the share is not mounted.
            try:
                self._filled[folder] = any(not name.startswith(".") for name in os.listdir(folder))
            except OSError:
                self._filled[folder] = False
        return self._filled[folder]


def find_below(roots: Iterable[str | Path], name: str) -> Path | None:
    """Return the path of a video in the first root that has it; None if no root has it."""
    return next((path for path in _below(roots, name) if may_exist(path)), None)


def _below(roots: Iterable[str | Path], name: str) -> Iterator[Path]:
    """Yield the paths that a stored name may mean; none for a name like `../x`, which leads out of a root."""
    for root in roots:
        for text in possible_paths(name):
            if not text.startswith("/") and ".." not in text.split("/") and "\0" not in text:
                yield Path(root, text)


def timed(document: EventsDocument, rules: TimeRules) -> EventsDocument:
    """Return the document with the start of its video.

    The stored start is kept, with two exceptions: if the user gave an option about times, or if an older version stored no
    start, the start is computed.
    """
    if document.start is not None:
        if not rules.given:
            return document
        # The stored start was read with the pattern of an earlier scan. That pattern is not stored, so the start can't be read
        # again: only its time zone is changed.
        if document.start.source is TimeSource.OPTION and rules.pattern is None:
            return replace(document, start=in_zone(document.start, rules.zone))
    source = document.scan.source if document.scan else {}
    mtime_ns, duration_s = source.get("mtime_ns"), document.video["duration_s"]
    start = rules.start_of(
        f"{source.get('root', '')}/{document.video['path']}",
        created=document.created,
        modified_s=mtime_ns / 1e9 if isinstance(mtime_ns, int | float) else None,
        duration_s=duration_s,
    )
    return replace(document, start=start)


def choose(documents: Sequence[EventsDocument], when: When, categories: Collection[str] = ()) -> list[EventsDocument]:
    """Return the documents with only the chosen events. The events keep their numbers.

    Videos without a chosen event are left out, but failed videos are kept. If neither a time nor a category is chosen, all
    documents are returned.

    Args:
        documents: the documents, with the start of their videos.
        when: the dates and times of day of the chosen events.
        categories: globs of categories; empty for all events. An event without a category counts as `anomaly`.
    """
    if not when and not categories:
        return list(documents)
    chosen = []
    for document in documents:
        events = tuple(
            event
            for event in document.events
            if matches((event.category or "anomaly").casefold(), [name.casefold() for name in categories])
            and when.takes(document.start, event.start_s, event.end_s)
        )
        if events or document.failure:
            chosen.append(replace(document, events=events))
    return chosen
