"""Takes one frame of each camera, on which the reader of the page can draw regions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from vadcli.errors import DocumentError, VideoError
from vadcli.reporting.archive import Archive
from vadcli.reporting.pictures import webp
from vadcli.reporting.stories import VideoStory
from vadcli.store.scores import read_metadata
from vadcli.types import ClipNeeds, PixelFormat, SizeRule
from vadcli.video.loader import ClipLoader, LoaderOptions
from vadcli.video.pictures import FrameFeed

AREA_PX = 640 * 360
QUALITY = 50
TRIES = 5  # number of a camera's videos that are tried; if none of them can be read, the others most likely can't either


def camera_frames(archive: Archive, *, most: int, root: Path | None, decode: LoaderOptions) -> dict[str, bytes]:
    """Return a frame of each camera as WebP data: from the middle of its last video that is found and can be read.

    Args:
        archive: the archive with the cameras.
        most: largest number of cameras that get a frame.
        root: the folder that holds the footage now; None if the footage is still where it was scanned.
        decode: options for the decoders.
    """
    needs = ClipNeeds(frames=1, overlap=0, rate_hz=1.0, interval=1, size=SizeRule(AREA_PX), pixel_format=PixelFormat.RGB)
    found: dict[str, bytes] = {}
    with ClipLoader(needs, decode) as loader:
        for camera, videos in list(archive.cameras.items())[:most]:
            frame = _frame(archive, loader, videos, root)
            if frame is not None:
                found[camera] = frame
    return found


def _frame(archive: Archive, loader: ClipLoader, videos: Sequence[VideoStory], root: Path | None) -> bytes | None:
    paths = ((video, archive.footage(video.video, root)) for video in reversed(videos) if video.frames)
    for video, source in islice(((video, path) for video, path in paths if path is not None), TRIES):
        with suppress(DocumentError, VideoError):  # the page names damaged videos elsewhere
            metadata = read_metadata(archive.layout.scores(video.video))
            fps = float(metadata.video["fps"]) if metadata else 1.0
            feed = FrameFeed(loader, 1, source, video=video.video, frames=video.frames, fps=fps)
            for _, picture in feed.at_rows([video.frames // 2]):
                return webp(picture, QUALITY)
    return None
