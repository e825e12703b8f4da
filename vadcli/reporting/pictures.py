"""Makes a page's score curves and thumbnails, and stores its assets in the page or in a folder.

A curve has one byte per span of a video: the highest score in the span. A thumbnail is a frame of an event, with the outline of
the frame's mask.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Protocol
from urllib.parse import quote

import numpy as np
from PIL import Image

from vadcli.draw import EVENT, HiddenLayer, column_maxima
from vadcli.errors import DocumentError, OutputError, UsageError, VideoError
from vadcli.reporting.archive import Archive, VideoSummary
from vadcli.store import OutputLayout
from vadcli.store.atomic import FileLock, Scratch, writing
from vadcli.store.masks import MaskTrack
from vadcli.store.scores import read_metadata, read_scores
from vadcli.types import (
    NO_REGIONS,
    ByteArray,
    ClipNeeds,
    Event,
    FloatArray,
    PixelFormat,
    Regions,
    ScoreTable,
    SizeRule,
)
from vadcli.types.text import how_many, without_name
from vadcli.video.loader import ClipLoader, FrameFeed, LoaderOptions

SUFFIXES = {"image/webp": "webp", "video/mp4": "mp4", "text/javascript": "js"}
PAGES = "pages.json"
_LOCK = ".lock"
FEWEST_POINTS = 2  # smallest number of points of a curve
NO_SCORE, LEVELS = 255, 254  # a byte of a curve is NO_SCORE, or a score in [0, 1] times LEVELS
AREA_PX, QUALITY = 192 * 108, 62  # of a thumbnail
CAMERA_AREA_PX, CAMERA_QUALITY = 640 * 360, 50  # of the frame of a camera
TRIES = 5  # after this many unreadable videos of a camera, the camera gets no frame: probably all are unreadable
_STRIPE_PX = 6
_PLACE_BYTES = 32  # per data URL, the page has at most this many bytes of other data, such as the time of the picture
_ASSET_NAME = re.compile(rb"[0-9a-f]{32}\.(?:webp|mp4|js)")

EventKey = tuple[str, int]
"""A video's relative path and the event's id."""


class AssetStore(Protocol):
    """Stores the files that a page shows (its assets), and returns the URLs by which the page finds them."""

    beside: bool
    """True if assets are files beside the page. Then the page loads the curves from these files."""

    def put(self, data: bytes, media_type: str) -> str | None:
        """Store a file and return its URL; None if the page would become too large. The media type is a key of `SUFFIXES`.

        Raises:
            OutputError: the file can't be written.
        """


class InPage:
    """Stores assets inside the page, as data URLs.

    Attributes:
        room: number of bytes that further assets may add to the page.
        refused: number of assets for which there was no room.
    """

    beside = False

    def __init__(self, room: int) -> None:
        self.room = room
        self.refused = 0

    def put(self, data: bytes, media_type: str) -> str | None:
        """See `AssetStore`."""
        head = f"data:{media_type};base64,"
        size = len(head) + 4 * ((len(data) + 2) // 3) + _PLACE_BYTES
        if size > self.room:
            self.refused += 1
            return None
        self.room -= size
        return head + base64.b64encode(data).decode()


class InFolder:
    """A context manager that stores assets in a folder. Their URLs are relative.

    A file's name is the hash of its content. So an earlier page keeps its files while a new page is made, and several pages can
    share the folder. `pages.json` lists the pages. `settle` removes the files that no page uses.

    Args:
        folder: the folder of the files.
        page: the HTML file that uses the assets.
    """

    beside = True

    def __init__(self, folder: Path, page: Path) -> None:
        self._folder, self._page = folder.absolute(), page.absolute()
        self._scratch = Scratch(self._folder / ".tmp")
        self._lock: FileLock | None = None
        self._base = quote(Path(os.path.relpath(self._folder, self._page.parent)).as_posix())

    def __enter__(self) -> InFolder:
        """Lock the folder. Raises OutputError if the folder is in use or `pages.json` is damaged."""
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock.acquire(self._folder / _LOCK)
        if self._lock is None:
            raise OutputError(
                f"{self._folder}: another report is being written here",
                hint="wait for it, or choose another folder with --assets",
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
        """See `AssetStore`."""
        name = f"{hashlib.sha256(data).hexdigest()[:32]}.{SUFFIXES[media_type]}"
        if not (self._folder / name).exists():
            self._scratch.write_bytes(self._folder / name, data)
        return f"{self._base}/{name}"

    def settle(self) -> None:
        """Add the written page to `pages.json`, and remove the files that no page uses.

        Raises:
            OutputError: `pages.json` can't be written.
        """
        if not self._page.is_file():  # a page in a pipe can't be read again to find the files that it uses
            return
        this_page = Path(os.path.relpath(self._page, self._folder)).as_posix()
        pages = sorted({page for page in self._pages() if (self._folder / page).is_file()} | {this_page})
        self._scratch.write_text(self._folder / PAGES, json.dumps(pages, indent=2) + "\n")
        try:
            used = {name for page in pages for name in _ASSET_NAME.findall((self._folder / page).read_bytes())}
            for entry in self._folder.iterdir():
                name = os.fsencode(entry.name)
                if _ASSET_NAME.fullmatch(name) and name not in used:
                    entry.unlink()
        except OSError:  # a page that can't be read may use any file, so all files are kept
            return

    def _pages(self) -> list[str]:
        """Return the paths of the pages that use files of the folder, relative to the folder."""
        path = self._folder / PAGES
        try:
            pages = json.loads(path.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise OutputError(f"{path}: can't be read: {error}", hint="choose another folder with --assets") from error
        if not (isinstance(pages, list) and all(isinstance(page, str) for page in pages)):
            raise OutputError(f"{path}: is not a list of pages", hint="choose another folder with --assets")
        return pages


def points_for(durations_s: Sequence[float], budget: int) -> list[int]:
    """Divide `budget` points among curves, in proportion to their durations.

    If the share of a curve is smaller than `FEWEST_POINTS`, the curve gets this many points.
    """
    total = sum(durations_s)
    shares = [budget * duration / total if total > 0 else 0.0 for duration in durations_s]
    return [max(FEWEST_POINTS, int(share)) for share in shares]


def peaks(table: ScoreTable, duration_s: float, points: int) -> FloatArray:
    """Return the highest score in each of `points` equal spans of a video, as (points,) float32.

    A span without a score has NaN. If there are fewer frames than `points`, there is one span per frame.
    """
    points = max(1, min(points, len(table)))
    end_s = max(duration_s, float(table.timestamp[-1])) if len(table) else duration_s
    edges = np.linspace(0.0, max(end_s, 1e-6), points + 1)
    return column_maxima(table.timestamp, table.score, edges) if len(table) else np.full(points, np.nan, np.float32)


def pack(values: FloatArray) -> str:
    """Return scores in [0, 1] or NaN as base64, one byte per score."""
    levels = np.where(np.isnan(values), NO_SCORE, np.rint(np.nan_to_num(values) * LEVELS))
    return base64.b64encode(levels.astype(np.uint8).tobytes()).decode()


def highest_score(curves: Iterable[str]) -> float | None:
    """Return the highest score of packed curves, in steps of 1 / `LEVELS`; None if no curve has a score."""
    levels = np.frombuffer(b"".join(map(base64.b64decode, curves)), np.uint8)
    scores = levels[levels != NO_SCORE]
    return float(scores.max()) / LEVELS if scores.size else None


def packed_curves(
    layout: OutputLayout, cameras: Mapping[str, Sequence[VideoSummary]], *, budget: int, problems: list[str]
) -> dict[str, str]:
    """Return the packed curve of each video of these cameras; the keys are the videos' paths.

    All curves together have about `budget` points. Errors in reading scores are added to `problems`.
    """
    videos = [video for videos_of_camera in cameras.values() for video in videos_of_camera]
    curves = {}
    for video, points in zip(videos, points_for([video.duration_s for video in videos], budget), strict=True):
        try:
            table, _ = read_scores(layout.scores(video.video))
        except DocumentError as error:
            problems.append(error.message)
            continue
        curves[video.video] = pack(peaks(table, video.duration_s, points))
    return curves


@dataclass(frozen=True)
class Strip:
    """An event's thumbnails.

    Attributes:
        frames: the thumbnails as WebP data.
        seconds: the time of each thumbnail in the video.
        width, height: size of each thumbnail, in pixels.
    """

    frames: tuple[bytes, ...]
    seconds: tuple[float, ...]
    width: int
    height: int


def rows_of(event: Event, count: int) -> list[int]:
    """Return the frames that the thumbnails of an event show, in order: evenly spread frames and the peak."""
    last = event.end_frame - 1
    spread = np.linspace(event.start_frame, last, count).round().astype(int).tolist()
    if count == 1:
        return [event.peak_frame]
    nearest = min(range(count), key=lambda place: abs(spread[place] - event.peak_frame))
    spread[nearest] = event.peak_frame
    return sorted(set(spread))


def strips(
    archive: Archive,
    events: Sequence[tuple[VideoSummary, Event]],
    *,
    count: int,
    root: Path | None,
    decode: LoaderOptions,
    problems: list[str],
) -> Iterator[tuple[EventKey, Strip]]:
    """Yield the thumbnails of each event whose footage is found, video by video.

    Args:
        count: thumbnails per event.
        root: the folder that contains the footage now; None if the footage is still where it was scanned.
        problems: one line is added per video that can't be decoded.
    """
    by_video: dict[str, list[tuple[VideoSummary, Event]]] = {}
    for summary, event in events:
        by_video.setdefault(summary.video, []).append((summary, event))
    needs = ClipNeeds(frames=1, overlap=0, rate_hz=1.0, interval=1, size=SizeRule(AREA_PX), pixel_format=PixelFormat.RGB)
    gone = 0
    with ClipLoader(needs, decode) as loader:
        for video, events_of_video in sorted(by_video.items()):
            source = archive.footage(video, root)
            if source is None:
                gone += 1
                continue
            try:
                yield from _strips_of(archive, loader, source, events_of_video, count=count, problems=problems)
            except (DocumentError, VideoError) as error:
                problems.append(f"{video}: no thumbnails: {without_name(error.message, video)}")
    if gone:
        where = "where it was scanned" if root is None else f"below {root}"
        problems.append(
            f"the footage of {how_many(gone, 'video')} with events is not {where}, so there are no thumbnails of it"
            " (name the folder that contains it now with --footage)"
        )


def _strips_of(
    archive: Archive,
    loader: ClipLoader,
    source: Path,
    events: Sequence[tuple[VideoSummary, Event]],
    *,
    count: int,
    problems: list[str],
) -> Iterator[tuple[EventKey, Strip]]:
    summary = events[0][0]
    video = summary.video
    table, metadata = read_scores(archive.layout.scores(video))
    feed = FrameFeed(loader, 1, source, video=video, frames=len(table), fps=float(metadata.video["fps"]))
    masks = MaskTrack(table, archive.layout)
    level = masks.level(summary.thresholds)
    rows = {event.id: [row for row in rows_of(event, count) if row < len(table)] for _, event in events}
    pictures: dict[int, bytes] = {}  # row -> WebP data
    height = width = 0
    for row, picture in feed.at_rows(sorted({row for rows_of_event in rows.values() for row in rows_of_event})):
        height, width = picture.shape[:2]
        pictures[row] = webp(outlined(picture, masks.at(row), level, summary.regions), QUALITY)
    problems.extend(f"{video}: thumbnails: {line}" for line in feed.problems())
    for number, rows_of_event in rows.items():
        decoded = [row for row in rows_of_event if row in pictures]
        if decoded:
            seconds = tuple(float(table.timestamp[row]) for row in decoded)
            yield (video, number), Strip(tuple(pictures[row] for row in decoded), seconds, width, height)


def camera_frames(archive: Archive, *, most: int, root: Path | None, decode: LoaderOptions) -> dict[str, bytes]:
    """Return one frame of each camera as WebP data; the keys are the cameras.

    The frame is from the middle of the camera's last readable video. The user can draw regions on these frames in the page.

    Args:
        most: largest number of cameras that get a frame.
        root: the folder that contains the footage now; None if the footage is still where it was scanned.
    """
    size = SizeRule(CAMERA_AREA_PX)
    needs = ClipNeeds(frames=1, overlap=0, rate_hz=1.0, interval=1, size=size, pixel_format=PixelFormat.RGB)
    frames: dict[str, bytes] = {}
    with ClipLoader(needs, decode) as loader:
        for camera, videos in list(archive.cameras.items())[:most]:
            paths = ((video, archive.footage(video.video, root)) for video in reversed(videos) if video.frames)
            for video, source in islice(((video, path) for video, path in paths if path is not None), TRIES):
                with suppress(DocumentError, VideoError):  # the page works without this frame
                    metadata = read_metadata(archive.layout.scores(video.video))
                    fps = float(metadata.video["fps"]) if metadata else 1.0
                    feed = FrameFeed(loader, 1, source, video=video.video, frames=video.frames, fps=fps)
                    for _, picture in feed.at_rows([video.frames // 2]):
                        frames[camera] = webp(picture, CAMERA_QUALITY)
                if camera in frames:
                    break
    return frames


def outlined(picture: ByteArray, mask: ByteArray | None, level: int, regions: Regions = NO_REGIONS) -> ByteArray:
    """Return a copy of a frame with the outline of the mask, and with marks on the hidden parts.

    Args:
        picture: (H, W, 3) uint8.
        mask: of any size, 0–255 = pixel score 0–1; None if there is no mask.
        level: the outline encloses mask values of at least this level.
        regions: the parts of the picture that the detector did not see.
    """
    drawn = picture.copy()
    if regions:
        HiddenLayer(regions.hidden(picture.shape[1], picture.shape[0]), stripe_px=_STRIPE_PX).draw(drawn)
    if mask is None or not (mask >= level).any():
        return drawn
    height, width = picture.shape[:2]
    inside = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BOX)) >= level
    padded = np.pad(inside, 1, constant_values=True)
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    drawn[inside & ~surrounded] = EVENT
    return drawn


def webp(picture: ByteArray, quality: int) -> bytes:
    """Return a picture (H, W, 3) uint8 as WebP data. The quality is 0-100."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=quality, method=4)
    return file.getvalue()


def read_picture(path: Path) -> ByteArray:
    """Return the RGB picture (H, W, 3) uint8 of an image file.

    Raises:
        UsageError: the file can't be read as a picture.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: can't be read as a picture: {error}") from error
