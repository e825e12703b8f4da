"""A video's pictures one by one, each row with a picture, however many were lost: what a renderer reads."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

from vadcli.errors import DecodeError, VideoError
from vadcli.types import ByteArray, VideoInfo
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, Finished, Item, Opened

JOINED_ROWS = 100
"""Rows this near to each other are read in one go: less work than to start a decoder at the keyframe before each."""


class PictureFeed:
    """The video's pictures by row, from the guarded decoder.

    Args:
        loader: that delivers every frame in colour.
        clip_frames: how many frames a clip of it has.
        source: the footage.
        video: its relative path.
        frames: how many rows the video is known to have.
        fps: of a folder of images.
    """

    def __init__(self, loader: ClipLoader, clip_frames: int, source: Path, *, video: str, frames: int, fps: float) -> None:
        self._loader, self._clip_frames = loader, clip_frames
        self._source, self._video, self._frames, self._fps = source, video, frames, fps
        self._info: VideoInfo | None = None
        self._lost = 0
        self._ends: list[str] = []

    @property
    def info(self) -> VideoInfo:
        """The probe; there once a picture is."""
        if self._info is None:
            raise RuntimeError("no picture was asked for yet")
        return self._info

    def problems(self) -> list[str]:
        """A line each."""
        lost = [f"{self._lost} frames could not be decoded; the picture before each is shown"] if self._lost else []
        return lost + self._ends

    def pictures(self, first: int, last: int) -> Generator[tuple[int, ByteArray], None, None]:
        """Rows [first, last) in order, each with its (H, W, 3) picture, valid until the next; fewer where the video ends early.

        A row without a picture shows the one before.

        Raises:
            VideoError: there is not even one picture.
        """
        part = last < self._frames
        row, shown = first, None
        with closing(self._items(spans=((first, last),)) if part else self._items(first // self._clip_frames)) as items:
            for item in items:
                if isinstance(item, Opened):
                    continue
                if isinstance(item, Finished):
                    if row < last:
                        yield from self._rest(item, row, last, shown)
                    continue
                seen = False
                for index, own, lost in _rows_of(item, row, last):
                    self._lost += lost
                    seen = seen or not lost
                    picture = own if seen or shown is None else shown
                    yield from ((between, picture) for between in range(row, index + 1))
                    row = index + 1
                if row >= last and not part:  # what is read in part ends by itself, and its decoder lives on
                    return
                if item.clip.valid.any():
                    shown = item.clip.frames[-1].copy()

    def _rest(self, end: Finished, row: int, last: int, shown: ByteArray | None) -> Iterator[tuple[int, ByteArray]]:
        """The rows after the last clip's, as far as the video is known to go."""
        if shown is None:
            raise end.error or DecodeError(f"{self._source}: no picture could be decoded from frame {row} on")
        whole = last < self._frames and not end.error  # a part that was read to its end
        known = max(row, min(last, self.info.frames if whole else end.rows.first + len(end.rows)))
        self._lost += known - row
        yield from ((lost, shown) for lost in range(row, known))
        if known < last:
            self._ends.append(self._early_end(known, end.error))

    def some(self, rows: Sequence[int]) -> Generator[tuple[int, ByteArray], None, None]:
        """These rows in order, each with its (H, W, 3) picture, valid until the next; those without a picture are left out.

        Args:
            rows: in order, each once.

        Raises:
            VideoError: there is not even one picture, and that has a reason.
        """
        wanted, found = set(rows), False
        with closing(self._items(spans=joined(rows))) as items:
            for item in items:
                if isinstance(item, ClipReady):
                    for row, picture, lost in _rows_of(item, 0, self._frames):
                        if row in wanted and not lost:
                            found = True
                            yield row, picture
                elif isinstance(item, Finished) and item.error:
                    if not found:
                        raise item.error
                    self._ends.append(item.error.message)

    def _items(self, start_clip: int = 0, spans: tuple[tuple[int, int], ...] = ()) -> Generator[Item, None, None]:
        request = ClipRequest(self._video, self._source, fps=self._fps, start_clip=start_clip, spans=spans)
        with closing(cast(Generator[Item, None, None], self._loader.run([request]))) as items:
            for item in items:
                if isinstance(item, Opened):
                    self._info = item.info
                yield item

    def _early_end(self, row: int, error: VideoError | None) -> str:
        reason = error.message if error else "the file now holds fewer frames than were scored"
        return f"ends at frame {row} of {self._frames}: {reason}"


def joined(rows: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Spans [first, last) that hold these rows, given in order; near ones share one."""
    spans: list[tuple[int, int]] = []
    for row in rows:
        first = spans.pop()[0] if spans and row - spans[-1][1] < JOINED_ROWS else row
        spans.append((first, row + 1))
    return tuple(spans)


def _rows_of(item: ClipReady, first: int, last: int) -> Iterator[tuple[int, ByteArray, bool]]:
    """(row, picture, lost) of a clip's rows in [first, last), each once."""
    clip = item.clip
    for index, picture, valid in zip(clip.frame_index.tolist(), clip.frames, clip.valid.tolist(), strict=True):
        if first <= index < last:
            yield index, picture, not valid
            first = index + 1
