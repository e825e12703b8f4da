"""Clips of one size gathered into batches, each pixel copied once: from the loader's memory into the batch's own.

Fresh memory is dear: the system clears it page by page, and a clip of eight HD frames is 22 MB. So a batch's pixels are used
again when its scores are there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from vadcli.types import ByteArray, CameraModel, Clip, ClipBatch

Ticket = TypeVar("Ticket")

SPARES = 4
"""Batches' worth of pixels that may wait to be used again."""


@dataclass
class GatheredBatch(Generic[Ticket]):
    """Clips of one size that belong together.

    Attributes:
        pixels: (N, T, H, W, C) uint8, of which the first rows are taken.
        clips: at most N; their frames are rows of `pixels`, in order.
        tickets: one a clip, whatever the caller wants back with it.
    """

    pixels: ByteArray
    clips: list[Clip]
    tickets: list[Ticket]

    def __len__(self) -> int:
        return len(self.clips)

    def add(self, clip: Clip, ticket: Ticket) -> None:
        """Copy a clip in."""
        row = self.pixels[len(self.clips)]
        row[...] = clip.frames
        self.clips.append(replace(clip, frames=row))
        self.tickets.append(ticket)

    def without(self, dropped: Callable[[Clip], bool]) -> GatheredBatch[Ticket]:
        """The clips that are not dropped, moved together; this batch is not to be used any more."""
        kept = GatheredBatch[Ticket](self.pixels, [], [])
        for clip, ticket in zip(self.clips, self.tickets, strict=True):
            if not dropped(clip):
                kept.add(clip, ticket)
        return kept

    def clip_batch(self, models: Callable[[Clip], CameraModel | None] = lambda clip: None) -> ClipBatch:
        """For a detector; the pixels are not copied."""
        return ClipBatch.of(self.clips, [models(clip) for clip in self.clips], frames=self.pixels[: len(self.clips)])


class ClipBatcher(Generic[Ticket]):
    """Gathers clips into batches of one size each.

    Args:
        batch_size: clips a batch, at least 1.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._waiting: dict[tuple[int, ...], GatheredBatch[Ticket]] = {}
        self._spare: deque[ByteArray] = deque(maxlen=SPARES)

    def add(self, clip: Clip, ticket: Ticket) -> GatheredBatch[Ticket] | None:
        """Take a clip, whose memory may be used again afterwards; the full batch where it completes one."""
        shape = clip.frames.shape
        if shape not in self._waiting:
            self._waiting[shape] = GatheredBatch(self._pixels(shape), [], [])
        self._waiting[shape].add(clip, ticket)
        return self._waiting.pop(shape) if len(self._waiting[shape]) >= self.batch_size else None

    def flush(self, video: str | None = None) -> list[GatheredBatch[Ticket]]:
        """The batches that hold clips of a video, or all of them."""
        wanted = [
            shape for shape, batch in self._waiting.items() if video is None or any(clip.video == video for clip in batch.clips)
        ]
        return [self._waiting.pop(shape) for shape in wanted]

    def give_back(self, batch: GatheredBatch[Ticket]) -> None:
        """Say that nobody will look at a batch's pixels any more: others may take their place."""
        self._spare.append(batch.pixels)

    def _pixels(self, shape: tuple[int, ...]) -> ByteArray:
        for spare in self._spare:
            if spare.shape[1:] == shape:
                self._spare = deque((each for each in self._spare if each is not spare), maxlen=SPARES)
                return spare
        return np.empty((self.batch_size, *shape), np.uint8)
