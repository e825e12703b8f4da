"""Divides the videos of a plan into chunks for the workers of a cluster, and hands the chunks out."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from vadcli.engine.footage import size_of
from vadcli.engine.plan import WorkUnit, by_camera

CHUNKS_PER_WORKER = 8
MOST_VIDEOS = 64
"""A chunk has at most this many videos, so that little work is lost with a worker. It has more if there are too many chunks."""
MOST_CHUNKS = 20_000
VIDEOS_PER_DECODER = 2
"""A chunk has at least this many videos per decoder process, if there are enough videos, so that each process has work."""


@dataclass(eq=False)
class Chunk:
    """Videos that a worker scans in one call.

    Attributes:
        camera: the camera of these videos; "" if the detector does not fit cameras.
        units: the videos.
        opens: True if the camera is not fitted yet. Then the worker gets the list of all videos of the camera.
        left: the videos that have no result yet.
        begun: True if the worker has sent something.
        moved: True if a clip was scored.
    """

    camera: str
    units: tuple[WorkUnit, ...]
    opens: bool = False
    left: dict[str, WorkUnit] = field(default_factory=dict)
    begun: bool = False
    moved: bool = False

    def __post_init__(self) -> None:
        self.left = {unit.video: unit for unit in self.units}

    def __lt__(self, other: Chunk) -> bool:
        return size_of(self.units) > size_of(other.units)  # the heap hands out the largest chunk first


class Worklist:
    """The chunks that are left. While a camera has no model, at most one of its chunks is handed out.

    Args:
        units: all videos.
        wanted: the videos to hand out.
        by_cameras: True if a camera must be fitted before its videos are scanned.
        workers: number of workers that share the chunks.
        decoders: number of videos that a worker reads at the same time.
    """

    def __init__(
        self, units: Sequence[WorkUnit], wanted: Sequence[WorkUnit], *, by_cameras: bool, workers: int, decoders: int = 1
    ) -> None:
        mine = {unit.video for unit in wanted}
        groups = by_camera(units) if by_cameras else [("", list(units))]
        self.whole = {camera: tuple(units) for camera, units in groups}
        self._ready: list[Chunk] = []
        self._closed: dict[str, list[Chunk]] = {}
        least = max(1, size_of(wanted) // (workers * CHUNKS_PER_WORKER))
        most = max(MOST_VIDEOS, len(mine) // MOST_CHUNKS)
        fewest = min(VIDEOS_PER_DECODER * decoders, len(mine) // workers, most)
        for camera, every in self.whole.items():
            part = [unit for unit in every if unit.video in mine]
            chunks = sorted(Chunk(camera, tuple(some)) for some in _split(part, least, fewest, most))
            if not by_cameras:
                self._ready += chunks
            elif chunks:
                self._closed[camera] = chunks[1:]
                self._ready.append(replace(chunks[0], opens=True))
        heapq.heapify(self._ready)

    def __bool__(self) -> bool:
        return bool(self._ready)

    def take(self) -> Chunk:
        """Return the largest chunk that can be scanned now."""
        return heapq.heappop(self._ready)

    def give_back(self, camera: str, units: Iterable[WorkUnit]) -> None:
        """Take back the videos of a chunk, and put each of them into a chunk of its own."""
        chunks = [Chunk(camera, (unit,)) for unit in units]
        if camera in self._closed:  # the worker that should have fitted the camera has died
            self._closed[camera] += chunks
            self.next_of(camera)
        else:
            for chunk in chunks:
                heapq.heappush(self._ready, chunk)

    def open(self, camera: str) -> None:
        """Make all chunks of a camera available, because it has a model now."""
        for chunk in self._closed.pop(camera, ()):
            heapq.heappush(self._ready, chunk)

    def next_of(self, camera: str) -> None:
        """Make the next chunk of a camera available, because the camera still has no model."""
        waiting = self._closed.get(camera)
        if waiting:
            heapq.heappush(self._ready, replace(waiting.pop(0), opens=True))


def _split(units: Sequence[WorkUnit], least: int, fewest: int, most: int) -> Iterator[list[WorkUnit]]:
    """Yield the videos in parts of at least `fewest` videos and `least` bytes, or of `most` videos. The last may be smaller."""
    part: list[WorkUnit] = []
    size = 0
    for unit in units:
        part.append(unit)
        size += unit.size
        if (size >= least and len(part) >= fewest) or len(part) == most:
            yield part
            part, size = [], 0
    if part:
        yield part
