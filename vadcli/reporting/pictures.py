"""Where a page's pictures, clips and curves go: into the page itself while there is room, or into a folder beside it.

Score curves small enough for a page: the highest score of each stretch of a video, a byte a stretch.

Thumbnails of events: a few frames each, with the outline of what the detector marked.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol
from urllib.parse import quote

import numpy as np
from PIL import Image

from vadcli.draw.layers import EVENT, column_maxima
from vadcli.errors import DocumentError, OutputError, VideoError
from vadcli.reporting.archive import Archive, VideoStory
from vadcli.store import OutputLayout
from vadcli.store.atomic import FileLock, Scratch, writing
from vadcli.store.masks import MaskTrack
from vadcli.store.scores import read_scores
from vadcli.types import BoolArray, ByteArray, ClipNeeds, Event, FloatArray, PixelFormat, ScoreTable, SizeRule
from vadcli.video.loader import ClipLoader, LoaderOptions
from vadcli.video.pictures import FrameFeed

SUFFIXES = {"image/webp": "webp", "video/mp4": "mp4", "text/javascript": "js"}
PAGES = "pages.json"
_LOCK = ".lock"
_OURS = re.compile(rb"[0-9a-f]{32}\.(?:webp|mp4|js)")


class Shelf(Protocol):
    """Takes files and says by what URL the page finds them."""

    beside: bool
    """True where files lie beside the page, so that curves too are loaded only when they are looked at."""

    def put(self, data: bytes, media_type: str) -> str | None:
        """The URL, None where there is no room left.

        Args:
            data: the whole file.
            media_type: one of `SUFFIXES`.

        Raises:
            OutputError: the file can't be written.
        """
        ...


class InPage:
    """Everything inside the page, as data URLs.

    Args:
        room: bytes of page that may be used.

    Attributes:
        refused: files that there was no room for.
    """

    beside = False

    def __init__(self, room: int) -> None:
        self.room = room
        self.refused = 0

    def put(self, data: bytes, media_type: str) -> str | None:
        """See `Shelf`."""
        head = f"data:{media_type};base64,"
        size = len(head) + 4 * ((len(data) + 2) // 3)
        if size > self.room:
            self.refused += 1
            return None
        self.room -= size
        return head + base64.b64encode(data).decode()


class InFolder:
    """Files in a folder, by relative URLs; open as a context manager.

    A file's name is the hash of what it holds, so that an earlier page keeps its own files while this one is made, and several
    pages may share the folder. `settle` removes what no page names any more; `pages.json` says which pages there are.

    Args:
        folder: where they go.
        page: the file that names them.
    """

    beside = True

    def __init__(self, folder: Path, page: Path) -> None:
        self._folder, self._page = folder.absolute(), page.absolute()
        self._scratch = Scratch(self._folder / ".tmp")
        self._lock: FileLock | None = None
        self._base = quote(Path(os.path.relpath(self._folder, self._page.parent)).as_posix())

    def __enter__(self) -> InFolder:
        """Raises OutputError: another report is written into the folder, or it isn't one for pages' files."""
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock.acquire(self._folder / _LOCK)
        if self._lock is None:
            raise OutputError(
                f"{self._folder}: another report is being written here", hint="wait for it, or choose another --assets"
            )
        try:
            self._pages()
            self._scratch.__enter__()
        except BaseException:
            self._lock.release(delete=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._scratch.__exit__(kind, error, trace)
        if self._lock is not None:
            self._lock.release(delete=True)

    def put(self, data: bytes, media_type: str) -> str | None:
        """See `Shelf`."""
        name = f"{hashlib.sha256(data).hexdigest()[:32]}.{SUFFIXES[media_type]}"
        if not (self._folder / name).exists():
            self._scratch.write_bytes(self._folder / name, data)
        return f"{self._base}/{name}"

    def settle(self) -> None:
        """Once the page is written: note it, and remove the files that neither it nor another page names.

        Raises:
            OutputError: the note can't be written.
        """
        if not self._page.is_file():  # a pipe: nobody knows what becomes of it
            return
        ours = Path(os.path.relpath(self._page, self._folder)).as_posix()
        pages = sorted({page for page in self._pages() if (self._folder / page).is_file()} | {ours})
        self._scratch.write_text(self._folder / PAGES, json.dumps(pages, indent=2) + "\n")
        try:
            named = {name for page in pages for name in _OURS.findall((self._folder / page).read_bytes())}
            for entry in self._folder.iterdir():
                name = os.fsencode(entry.name)
                if _OURS.fullmatch(name) and name not in named:
                    entry.unlink()
        except OSError:  # a page that can't be read may name anything: everything stays
            return

    def _pages(self) -> list[str]:
        """The pages that have files here, relative to the folder."""
        path = self._folder / PAGES
        try:
            pages = json.loads(path.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise OutputError(f"{path}: can't be read: {error}", hint="choose another folder with --assets") from error
        if not (isinstance(pages, list) and all(isinstance(page, str) for page in pages)):
            raise OutputError(f"{path}: no list of pages", hint="choose another folder with --assets")
        return pages


FEWEST_POINTS = 2
NO_SCORE = 255
LEVELS = 254


def points_for(durations_s: Sequence[float], budget: int) -> list[int]:
    """How many points each video gets of a budget: in proportion to its length, at least `FEWEST_POINTS`."""
    total = sum(durations_s)
    shares = [budget * duration / total if total > 0 else 0.0 for duration in durations_s]
    return [max(FEWEST_POINTS, int(share)) for share in shares]


def peaks(table: ScoreTable, duration_s: float, points: int) -> FloatArray:
    """(points,) float32: the highest score shown in each of as many equal stretches, NaN where there is none.

    There are never more points than frames.
    """
    points = max(1, min(points, len(table)))
    end_s = max(duration_s, float(table.timestamp[-1])) if len(table) else duration_s
    edges = np.linspace(0.0, max(end_s, 1e-6), points + 1)
    return column_maxima(table.timestamp, table.score, edges) if len(table) else np.full(points, np.nan, np.float32)


def pack(values: FloatArray) -> str:
    """Scores in [0, 1] as base64 of a byte each, 0 to `LEVELS`; `NO_SCORE` stands for NaN."""
    levels = np.where(np.isnan(values), NO_SCORE, np.rint(np.nan_to_num(values) * LEVELS))
    return base64.b64encode(levels.astype(np.uint8).tobytes()).decode()


def packed_curves(
    layout: OutputLayout, cameras: Mapping[str, Sequence[VideoStory]], *, budget: int, problems: list[str]
) -> dict[str, str]:
    """Video -> packed curve, of every video that has scores; files that can't be read go to `problems`, a line each."""
    videos = [video for some in cameras.values() for video in some]
    shares = points_for([video.duration_s for video in videos], budget)
    found = {}
    for video, points in zip(videos, shares, strict=True):
        try:
            table, _ = read_scores(layout.scores(video.video))
        except DocumentError as error:
            problems.append(error.message)
            continue
        found[video.video] = pack(peaks(table, video.duration_s, points))
    return found


AREA_PX = 192 * 108
QUALITY = 62
MARKED = 128  # of 255: pixel score 0.5

EventKey = tuple[str, int]
"""A video's relative path and the event's id."""


@dataclass(frozen=True)
class Strip:
    """An event's thumbnails.

    Attributes:
        frames: WebP files.
        seconds: the time of each in its video.
        width, height: of each, px.
    """

    frames: tuple[bytes, ...]
    seconds: tuple[float, ...]
    width: int
    height: int

    def __len__(self) -> int:
        return sum(map(len, self.frames))


def rows_of(event: Event, count: int) -> list[int]:
    """The rows to show of an event: its peak and others spread over it, in order, without repetition."""
    last = event.end_frame - 1
    spread = np.linspace(event.start_frame, last, count).round().astype(int).tolist()
    if count == 1:
        return [event.peak_frame]
    nearest = min(range(count), key=lambda place: abs(spread[place] - event.peak_frame))
    spread[nearest] = event.peak_frame
    return sorted(set(spread))


def strips(
    archive: Archive,
    events: Sequence[tuple[VideoStory, Event]],
    *,
    count: int,
    root: Path | None,
    decode: LoaderOptions,
    problems: list[str],
) -> Iterator[tuple[EventKey, Strip]]:
    """The strip of each event whose footage is still there, video by video.

    What can't be decoded goes to `problems`, a line a video.

    Args:
        archive: whose footage and masks are read.
        events: those to show.
        count: thumbnails an event.
        root: where the footage is now; where it was scanned, if None.
        decode: how it is read.
        problems: is added to.
    """
    by_video: dict[str, list[tuple[VideoStory, Event]]] = {}
    for story, event in events:
        by_video.setdefault(story.video, []).append((story, event))
    needs = ClipNeeds(frames=1, overlap=0, rate_hz=1.0, interval=1, size=SizeRule(AREA_PX), pixel_format=PixelFormat.RGB)
    gone = 0
    with ClipLoader(needs, decode) as loader:
        for video, some in sorted(by_video.items()):
            source = archive.footage(video, root)
            if source is None:
                gone += 1
                continue
            try:
                yield from _strips_of(archive, loader, source, some, count=count, problems=problems)
            except (DocumentError, VideoError) as error:
                problems.append(f"{video}: no thumbnails: {error.message}")
    if gone:
        problems.append(f"the footage of {gone} videos with events is not where it was scanned: no thumbnails of them")


def _strips_of(
    archive: Archive,
    loader: ClipLoader,
    source: Path,
    some: Sequence[tuple[VideoStory, Event]],
    *,
    count: int,
    problems: list[str],
) -> Iterator[tuple[EventKey, Strip]]:
    video = some[0][0].video
    table, metadata = read_scores(archive.layout.scores(video))
    feed = FrameFeed(loader, 1, source, video=video, frames=len(table), fps=float(metadata.video["fps"]))
    masks = MaskTrack(table, archive.layout)
    rows = {event.id: [row for row in rows_of(event, count) if row < len(table)] for _, event in some}
    made: dict[int, bytes] = {}
    height = width = 0
    for row, picture in feed.at_rows(sorted({row for each in rows.values() for row in each})):
        height, width = picture.shape[:2]
        made[row] = _webp(outlined(picture, masks.at(row)))
    problems.extend(f"{video}: thumbnails: {line}" for line in feed.problems())
    for number, wanted in rows.items():
        seen = [row for row in wanted if row in made]
        if seen:
            seconds = tuple(float(table.timestamp[row]) for row in seen)
            yield (video, number), Strip(tuple(made[row] for row in seen), seconds, width, height)


def outlined(picture: ByteArray, mask: ByteArray | None) -> ByteArray:
    """A copy of a picture with the edge of what is marked drawn in.

    Args:
        picture: (H, W, 3).
        mask: of any size, 0–255 = pixel score 0–1; None where there is none.
    """
    drawn = picture.copy()
    if mask is None or not (mask >= MARKED).any():
        return drawn
    height, width = picture.shape[:2]
    small = Image.fromarray(mask).resize((width, height), Image.Resampling.BOX)
    drawn[_edge(np.asarray(small) >= MARKED)] = EVENT
    return drawn


def _edge(inside: BoolArray) -> BoolArray:
    """Marked pixels that have an unmarked one beside them."""
    padded = np.pad(inside, 1, constant_values=True)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: BoolArray = inside & ~core
    return edge


def _webp(picture: ByteArray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=QUALITY, method=4)
    return file.getvalue()
