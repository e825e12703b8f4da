"""The files that decide which events a user sees: regions, reviews, choices and reported events.

- The user's file of hidden regions is JSON with polygons per camera, or a mask image for all cameras.
- A review is the JSON or CSV that the report page saves.
- OUT/choices.json has the thresholds and the review of `vadcli events --write`. Scans make events with these thresholds, and
  leave out the events that the review marks as false.
- OUT/reported.jsonl lists the events that scans have reported, so that no event is reported twice.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vadcli.errors import DocumentError, UsageError
from vadcli.store import OutputLayout, json_text, matches, printable
from vadcli.store.atomic import Scratch, remove, writing
from vadcli.store.events import EventsDocument, read_unchecked
from vadcli.types import Event, ReviewedEvent, Thresholds, Verdict
from vadcli.types.media import CameraRegions, MaskImage, Region, Regions, region_from_json
from vadcli.types.text import (
    SAVE_AS,
    NotText,
    decode_text,
    document_errors,
    error_text,
    read_document,
    read_text,
    structure,
    unreadable,
)

REGIONS_FORMAT_VERSION = 1
KINDS = ("ignore", "only")
EVERY_CAMERA = "*"
WHITE = 128
_LARGEST_SIDE_PX = 512  # larger mask images are reduced to this size, because they are stored with the results
_CHECK_PX = 512
_MOST_FAULTS = 10


def read_regions(path: Path, kind: str) -> CameraRegions:
    """Return the hidden regions in a user's file.

    Args:
        path: a JSON file or an image.
        kind: what the white pixels of an image mean, `ignore` or `only`. Not used for JSON, because the file gives the kinds.

    Raises:
        UsageError: the file can't be read. The message names all faults, up to ten.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(unreadable(f"--{kind} {path}", error)) from error
    faults: list[str] = []
    if data.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \r\n\t")[:1] in (b"{", b"["):
        by_camera = {}
        for name, lists in _cameras(path, data).items():
            if not isinstance(lists, dict):
                faults.append(f"{_camera_text(name)}: is not an object with `ignore` and `only`")
                continue
            faults += [f"{_camera_text(name)}: `{key}` is not known; write ignore or only" for key in lists if key not in KINDS]
            ignore, only = (tuple(_regions(name, kind, lists.get(kind, []), path, faults)) for kind in KINDS)
            by_camera[name] = Regions(ignore, only)
    else:
        try:
            region = (_image(path),)
        except ValueError as error:
            raise UsageError(f"--{kind} {path}: {error}", hint="give a regions file (JSON) or a mask image") from error
        by_camera = {EVERY_CAMERA: Regions(ignore=region) if kind == "ignore" else Regions(only=region)}
    faults += [
        f"{_camera_text(name)}: the regions hide the whole picture"
        for name, regions in by_camera.items()
        if regions and regions.hidden(_CHECK_PX, _CHECK_PX).all()
    ]
    if faults:
        more = [f"and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else []
        raise UsageError(f"{path}: {'; '.join(faults[:_MOST_FAULTS] + more)}")
    return CameraRegions(by_camera)


def _cameras(path: Path, data: bytes) -> Mapping[str, Any]:
    """Return the JSON of each camera in a regions file."""
    try:
        document = json.loads(decode_text(data))
    except NotText as error:
        raise UsageError(f"{path}: {error}", hint=SAVE_AS) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    version = document.get("format_version", document.get("version")) if isinstance(document, dict) else None
    if version != REGIONS_FORMAT_VERSION or not isinstance(document.get("cameras"), dict):
        raise UsageError(
            f"{path}: not a regions file of format version {REGIONS_FORMAT_VERSION}",
            hint='write {"format_version": 1, "cameras": {"NAME": {"ignore": [POLYGON, …]}}}, or draw them in the report',
        )
    cameras: Mapping[str, Any] = document["cameras"]
    return cameras


def _regions(camera: str, kind: str, values: Any, path: Path, faults: list[str]) -> Iterator[Region]:
    """Yield the regions of one kind (`ignore` or `only`) of one camera; add what is wrong to `faults`."""
    if not isinstance(values, list):
        faults.append(f"{_camera_text(camera)}: {kind} is not a list of polygons")
        return
    for place, value in enumerate(values):
        where = f"{_camera_text(camera)}: {kind}[{place}]"
        try:
            yield _image(path.parent / value) if isinstance(value, str) else region_from_json(value)
        except ValueError as error:
            faults.append(f"{where}: {value}: {error}" if isinstance(value, str) else f"{where}: {error}")


def _image(path: Path) -> MaskImage:
    """Return the white pixels of an image; raise ValueError if it has none, or can't be read."""
    from PIL import Image, ImageOps  # here, because every scan imports this module, but few scans have a mask image

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = getattr(error, "strerror", None)  # the reason of the system; None if the file is not an image
        raise ValueError(f"can't be read: {why}" if why else "can't be read as an image") from error
    grey = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("L")
    grey.thumbnail((_LARGEST_SIDE_PX, _LARGEST_SIDE_PX), Image.Resampling.BOX)
    pixels = np.asarray(grey) >= WHITE
    if not pixels.any():
        raise ValueError("the mask image has no white pixel")
    return MaskImage.of(pixels)


def _camera_text(camera: str) -> str:
    return "all cameras" if camera == EVERY_CAMERA else f"camera {camera}"


REVIEW_FORMAT_VERSION = 1
_SAVED = "give a file that the report page saved"
_KEPT_FROM_RUNNING = re.compile(r"'+[=+\-@\t\r]")  # an apostrophe keeps spreadsheets from running a cell as a formula


def read_review(path: Path) -> tuple[ReviewedEvent, ...]:
    """Return the entries of a saved review in order.

    The file is CSV if its name ends in .csv, otherwise JSON.

    Raises:
        DocumentError: the file can't be read, or an entry is not valid.
    """
    text = read_text(path)
    entries: list[Any]
    if path.suffix.lower() == ".csv":
        entries = []
        try:
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
        except csv.Error as error:
            raise DocumentError(f"{path}: not CSV: {error}", hint=_SAVED) from error
        for row in rows:
            cells = {name: cell for name, cell in row.items() if name and isinstance(cell, str)}
            entries.append({name: cell[1:] if _KEPT_FROM_RUNNING.match(cell) else cell for name, cell in cells.items()})
    else:
        document = read_document(
            path, version=REVIEW_FORMAT_VERSION, what="a review", hint=_SAVED, read=lambda _: text.encode()
        )
        entries = document.get("reviews", {})
        if not isinstance(entries, list):
            raise DocumentError(f"{path}: `reviews` is not a list", hint=_SAVED)
    reviewed = []
    for number, entry in enumerate(entries, 1):
        try:
            reviewed.append(
                ReviewedEvent(
                    video=str(entry["video"]),
                    start_s=float(entry["start_s"]),
                    end_s=float(entry["end_s"]),
                    peak_score=float(entry["peak_score"]),
                    verdict=Verdict(str(entry["verdict"])),
                    note=str(entry.get("note") or ""),
                )
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DocumentError(f"{path}: entry {number}: {error_text(error)}") from error
    return tuple(reviewed)


CHOICES_FORMAT_VERSION = 1
_CHOICES = "the choices of `vadcli events --write`"
_FORGET = "forget them with `vadcli events --forget`, and write them again"


@dataclass(frozen=True)
class ChosenThresholds:
    """Thresholds for videos that one detector scored.

    Attributes:
        detector: the detector's name.
        thresholds: the thresholds with which the detector's scores become events.
        include: globs of the videos; empty for all.
    """

    detector: str
    thresholds: Thresholds
    include: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choices:
    """The thresholds and the review of an output folder, as `vadcli events --write` stores them.

    Attributes:
        thresholds: one entry per detector and group of videos. If several entries match a video, the last of them counts.
        reviews: verdicts on events.
        head: folder of the trained head that judges events; "" for no head.
        head_threshold: an event is kept if the head gives it at least this score.
        embeddings: other output folders whose vectors the head reads too.
    """

    thresholds: tuple[ChosenThresholds, ...] = ()
    reviews: tuple[ReviewedEvent, ...] = ()
    head: str = ""
    head_threshold: float = 0.5
    embeddings: tuple[str, ...] = ()

    def with_reviews(self, entries: Sequence[ReviewedEvent]) -> Choices:
        """Return the choices with these verdicts added.

        A new verdict replaces all old verdicts about overlapping spans of the same video.
        """

        def overlap(old: ReviewedEvent, new: ReviewedEvent) -> bool:
            """True if both entries are about the same part of the same video."""
            common_s = min(old.end_s, new.end_s) - max(old.start_s, new.start_s)
            return old.video == new.video and (common_s > 0 or (old.start_s, old.end_s) == (new.start_s, new.end_s))

        others = [old for old in self.reviews if not any(overlap(old, new) for new in entries)]
        return replace(self, reviews=(*others, *entries))

    def with_thresholds(
        self, detector: str, include: tuple[str, ...], new: Thresholds, change: Callable[[Thresholds], Thresholds]
    ) -> Choices:
        """Return the choices, with the thresholds that `vadcli events --write` has just used.

        Args:
            detector: the detector of the videos.
            include: globs of the videos; empty for all.
            new: the thresholds to store for these videos.
            change: gets thresholds that are stored for some of these videos, and returns them with the values of this command.
                If it raises UsageError, because the result contradicts itself (low above high), the stored thresholds stay.
        """
        entries = list(self.thresholds)
        for place, old in enumerate(entries):
            if old.detector == detector and include in ((), old.include):
                with suppress(UsageError):
                    entries[place] = replace(old, thresholds=change(old.thresholds))
        same = [entry for entry in entries if (entry.detector, entry.include) == (detector, include)]
        others = [entry for entry in entries if entry not in same]
        own = same[-1:] or [ChosenThresholds(detector, new, include)]
        # If several entries match a video, the last one counts. So an entry for all videos goes to the start of the list, and
        # an entry with globs goes to its end.
        return replace(self, thresholds=(*others, *own) if include else (*own, *others))


def chosen_for(entries: Sequence[ChosenThresholds], video: str) -> Thresholds | None:
    """Return the thresholds of the last entry that matches a video; None if no entry matches it."""
    return next((entry.thresholds for entry in reversed(entries) if matches(video, entry.include)), None)


def read_choices(layout: OutputLayout) -> Choices:
    """Return the choices of an output folder; empty choices if the folder has no file of choices.

    Raises:
        DocumentError: the file can't be read or is damaged.
    """
    path = layout.choices
    if not path.exists():
        return Choices()
    document = read_document(path, version=CHOICES_FORMAT_VERSION, what=_CHOICES, hint=_FORGET)
    with document_errors(path, _CHOICES, _FORGET):
        return structure(Choices, document, extra=True)


def write_choices(layout: OutputLayout, scratch: Scratch, choices: Choices) -> None:
    """Write the choices of an output folder, or remove the file if the choices are empty.

    Raises:
        OutputError: the file can't be written.
    """
    if choices == Choices():
        remove(layout.choices)
        return
    document = {"format_version": CHOICES_FORMAT_VERSION, **asdict(choices)}
    scratch.write_text(layout.choices, json_text(document))


REPORTED_FORMAT_VERSION = 1

Span = tuple[float, float]


class ReportedEvents:
    """The list of reported events of an output folder.

    An event is new if no reported event of the same video overlaps it.

    The list has one JSON object per line. The first line has the format version. Every other line is an event: the video, a
    hash of the video's content, and the span of the event. Lines are only added. Scans that run at the same time share the
    list, and a process locks the list while it reads or adds lines.

    If the content of a video has changed, all its events are new. If OUT has no list yet, the events that OUT already has
    count as reported.

    Args:
        layout: the output folder.

    Raises:
        OutputError: the list can't be written.
    """

    def __init__(self, layout: OutputLayout) -> None:
        self._path = layout.reported
        self._spans: dict[tuple[str, str], list[Span]] = {}
        self._read_to = 0
        self._threads = threading.Lock()
        with self._locked() as fd:
            if os.fstat(fd).st_size == 0:
                lines = [json.dumps({"format_version": REPORTED_FORMAT_VERSION}) + "\n"]
                for document in filter(None, map(read_unchecked, layout.iter_events())):
                    lines += [_line(*_key(document), (event.start_s, event.end_s)) for event in document.events]
                _append(fd, "".join(lines))
                self._read(fd)

    def new(self, document: EventsDocument) -> list[Event]:
        """Return the events of a video that are not in the list.

        Raises:
            OutputError: the list can't be read.
        """
        with self._locked():
            return [event for event in document.events if self._is_new(_key(document), event)]

    def add(self, document: EventsDocument, event: Event) -> bool:
        """Add an event of a video. Return False if another scan has already added the event.

        Raises:
            OutputError: the list can't be written.
        """
        key = _key(document)
        with self._locked() as fd:
            if not self._is_new(key, event):
                return False
            _append(fd, _line(*key, (event.start_s, event.end_s)))
            self._read(fd)
            return True

    def _is_new(self, key: tuple[str, str], event: Event) -> bool:
        return all(event.end_s <= start_s or end_s <= event.start_s for start_s, end_s in self._spans.get(key, ()))

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Open and lock the list, and read what other processes have added."""
        with self._threads, writing(self._path):
            fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                self._read(fd)
                yield fd
            finally:
                os.close(fd)

    def _read(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        text = os.pread(fd, size - self._read_to, self._read_to) if size > self._read_to else b""
        self._read_to = max(self._read_to, size)
        for line in text.splitlines():
            with suppress(ValueError, KeyError, TypeError):  # the first line, or a line that was cut off when the disk was full
                entry = json.loads(line)
                span = float(entry["start_s"]), float(entry["end_s"])
                self._spans.setdefault((entry["video"], entry["content"]), []).append(span)


def _append(fd: int, lines: str) -> None:
    """Add all of these lines. If that fails, add none of them."""
    size = os.fstat(fd).st_size
    # If an earlier process did not write its last line completely, the new lines must begin on another line.
    if size and os.pread(fd, 1, size - 1) != b"\n":
        lines = "\n" + lines
    left = memoryview(lines.encode())
    try:
        while left:  # if the disk becomes full, a call of `os.write` adds only a part of the lines
            left = left[os.write(fd, left) :]
    except OSError:
        os.ftruncate(fd, size)
        raise


def _key(document: EventsDocument) -> tuple[str, str]:
    return str(document.video["path"]), str(document.scan.source.get("content", "")) if document.scan else ""


def _line(video: str, content: str, span: Span) -> str:
    entry: dict[str, Any] = {"video": video, "content": content, "start_s": span[0], "end_s": span[1]}
    return printable(json.dumps(entry, ensure_ascii=False)) + "\n"
