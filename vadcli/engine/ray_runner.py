"""The driver of a run on a Ray cluster: divides the videos into chunks, and gives them to the workers.

The driver is the process that the user started. A worker has its own detector, scans its chunk with a `LocalRunner`, and sends
the updates to the driver. To hand out a chunk means to give it to a worker.

- A video is in one chunk at a time. A lock in OUT keeps other runs away from the video.
- If a worker dies, the work since its last checkpoint is lost. The videos of its chunk are handed out again, each in a chunk of
  its own. A video is given up if MOST_DEATHS workers in a row die with this single video, and none of them makes progress.
- A camera is fitted once. While a camera has no model, only one of its chunks is handed out. The worker that gets this chunk
  also gets the list of all videos of the camera.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vadcli.detectors import Detector
from vadcli.engine.cameras import size_of
from vadcli.engine.local import LocalRunner
from vadcli.engine.plan import WorkUnit, by_camera
from vadcli.engine.ray_cluster import (
    Chunk,
    Fitted,
    MakeWork,
    Node,
    ScanWork,
    WorkerDied,
    Workers,
    import_ray,
    joined,
    nodes_of,
    started,
    usable_nodes,
)
from vadcli.engine.runner import Fitting, ScanSettings, Stop
from vadcli.engine.stream import ClipsScored, Update
from vadcli.errors import DeviceError, ToolError, VadcliError, WeightsError
from vadcli.options import ScanOptions, VerifyOptions
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch
from vadcli.types import Status, VideoResult

log = logging.getLogger("vadcli")

MOST_DEATHS = 2
"""A video is given up if this many workers in a row died while they worked on it without any progress."""
CHUNKS_PER_WORKER = 8
"""The videos are divided into about this many chunks per worker, so that all workers end at about the same time."""
MOST_VIDEOS = 64
"""A chunk has at most this many videos, so that little work is lost if a worker dies."""
MOST_CHUNKS = 20_000
"""If the videos would fill more chunks than this, the chunks get more than MOST_VIDEOS videos."""
VIDEOS_PER_DECODER = 2
"""A chunk has at least this many videos per decoder process, so that each process has work. If there are few videos, a chunk
has fewer."""


class Worklist:
    """The queue of the chunks that are not handed out yet.

    While a camera has no model, only one of its chunks is handed out.

    Args:
        units: all videos.
        wanted: the videos to hand out.
        by_cameras: True if a camera must be fitted before its videos are scanned.
        workers: number of workers.
        decoders: number of videos that a worker reads at the same time.
    """

    def __init__(
        self, units: Sequence[WorkUnit], wanted: Sequence[WorkUnit], *, by_cameras: bool, workers: int, decoders: int = 1
    ) -> None:
        mine = {unit.video for unit in wanted}
        groups = by_camera(units) if by_cameras else [("", list(units))]
        self.whole = {camera: tuple(units) for camera, units in groups}
        self._ready: list[Chunk] = []  # a heap; the largest chunk comes first
        self._closed: dict[str, list[Chunk]] = {}  # by camera without a model: the chunks that wait until it has one
        least = max(1, size_of(wanted) // (workers * CHUNKS_PER_WORKER))
        most = max(MOST_VIDEOS, len(mine) // MOST_CHUNKS)
        fewest = min(VIDEOS_PER_DECODER * decoders, len(mine) // workers, most)
        for camera, of_camera in self.whole.items():
            own = [unit for unit in of_camera if unit.video in mine]
            chunks = sorted(Chunk(camera, tuple(part)) for part in _split(own, least, fewest, most))
            if not by_cameras:
                self._ready += chunks
            elif chunks:
                self._closed[camera] = chunks[1:]
                self._ready.append(replace(chunks[0], fits_camera=True))
        heapq.heapify(self._ready)

    def __bool__(self) -> bool:
        return bool(self._ready)

    def take(self) -> Chunk:
        """Remove and return the largest chunk that can be scanned now."""
        return heapq.heappop(self._ready)

    def give_back(self, camera: str, units: Iterable[WorkUnit]) -> None:
        """Return the videos of an unfinished chunk to the queue, each in a chunk of its own."""
        chunks = [Chunk(camera, (unit,)) for unit in units]
        if camera in self._closed:  # the worker that should have fitted this camera has died or can't work
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
        """Make the next chunk of a camera available. The worker that takes this chunk fits the camera's model."""
        waiting = self._closed.get(camera)
        if waiting:
            heapq.heappush(self._ready, replace(waiting.pop(0), fits_camera=True))


def _split(units: Sequence[WorkUnit], least: int, fewest: int, most: int) -> Iterator[list[WorkUnit]]:
    """Yield the videos in parts, in order.

    Args:
        units: the videos.
        least: smallest number of bytes of a part. The last part may be smaller.
        fewest, most: smallest and largest number of videos in a part. A part with `most` videos may have fewer bytes.
    """
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


@dataclass(frozen=True)
class GivenUp:
    """A video that is given up because too many workers (MOST_DEATHS) died while they worked on it."""

    unit: WorkUnit


@contextmanager
def started_workers(
    options: ScanOptions | VerifyOptions, scratch: Scratch, root: Path | None, work: MakeWork, *, wants_gpu: bool, stop: Stop
) -> Iterator[Workers]:
    """Connect to the cluster and start the workers. Without --ray-address, start Ray on this machine.

    At the end of the `with` block, all workers are stopped.

    Args:
        options: the options of the command.
        scratch: a folder in OUT, for a file that each node must see.
        root: the root of the footage. Each node must be able to read this folder; None if no footage is read.
        work: a function that makes the `Work` of a worker.
        wants_gpu: True if the workers use GPUs on nodes that have GPUs.
        stop: the request to end the run. Its `reason` is sent to the workers at the end.

    Raises:
        UsageError: Ray is not installed, no cluster answers, or no node can take part.
        ToolError: Ray does not start on this machine.
    """
    ray = import_ray()
    with joined(ray, options.ray_address) if options.ray_address else started(ray):
        # Without an address, this machine is the cluster, so there is nothing to check.
        nodes = usable_nodes(ray, scratch, root) if options.ray_address else nodes_of(ray)
        workers = Workers(ray, options, nodes, work, wants_gpu=wants_gpu)
        try:
            yield workers
        finally:
            workers.end(stop.reason or "the run ended", stop.signal)


def drive(
    work: Worklist,
    workers: Workers,
    stop: Stop,
    order_of: Callable[[Chunk], Any],
    ended: Callable[[Chunk], None] = lambda _: None,
) -> Iterator[tuple[Any, Chunk, Node]]:
    """Hand out all chunks. Yield the updates of the workers, and a `GivenUp` per video that is given up.

    Each item is yielded with its chunk and the node of its worker. The caller must update the chunk:

    - When a video has a result, remove the video from `left`.
    - When an item shows that a clip was scored or answered, set `has_progress`.

    Args:
        work: the chunks.
        workers: the workers that get the chunks.
        stop: ends the run early, on all nodes.
        order_of: returns the order for a chunk (see `Work.do`).
        ended: called when a worker has ended a chunk.

    Raises:
        VadcliError: a worker can't write OUT at all, or the last node can't work.
    """
    deaths: dict[str, int] = {}
    while (work and not stop()) or workers.busy:
        while work and not stop() and workers.has_free:
            chunk = work.take()
            workers.start(chunk, order_of(chunk))
        if stop():
            workers.stop(stop.reason, stop.signal)
        for worker in workers.waited():
            assert worker.chunk is not None
            chunk = worker.chunk
            try:
                sent = worker.next()
            except StopIteration:
                ended(chunk)
                workers.free(worker)
                continue
            except WorkerDied as error:
                log.debug("a worker died: %s", error)
                name, count = worker.node.name, len(chunk.left)
                log.warning("node %s: a worker died; %d of its videos are handed out again", name, count)
                for given_up in _given_up(chunk, deaths):
                    yield given_up, chunk, worker.node
                work.give_back(chunk.camera, chunk.left.values())
                workers.replace(worker)
                continue
            chunk.has_begun = True
            for item in sent:
                if isinstance(item, DeviceError | WeightsError | ToolError):  # this node can't work, but other nodes may
                    workers.give_up(worker, item)
                    work.give_back(chunk.camera, chunk.left.values())
                    break
                if isinstance(item, VadcliError):
                    raise item
                if isinstance(item, logging.LogRecord):
                    logging.getLogger(item.name).handle(item)
                else:
                    yield item, chunk, worker.node


def _given_up(chunk: Chunk, deaths: dict[str, int]) -> Iterator[GivenUp]:
    """Count the death of the chunk's worker in `deaths`, and yield the videos of the chunk that are given up.

    These videos are also removed from the chunk.
    """
    for video, unit in list(chunk.left.items()):
        alone = len(chunk.units) == 1 and chunk.has_begun  # otherwise this video may not be the cause
        deaths[video] = 0 if chunk.has_progress else deaths.get(video, 0) + alone
        if deaths[video] >= MOST_DEATHS:
            del chunk.left[video]
            yield GivenUp(unit)


class RayRunner:
    """Executes a plan on the Ray cluster of `--ray-address`.

    Without this option, Ray is started on this machine.

    The driver does not load the detector, because each worker makes its own detector from the options.

    Raises:
        UsageError: Ray is not installed, or the detector can't do what the options ask for.
    """

    def __init__(self, settings: ScanSettings, detector: Detector, *, stop: Stop) -> None:
        import_ray()
        self._here = LocalRunner(settings, detector, stop=stop)
        # Every node must use the detector that this machine has chosen, also with --detector auto.
        self.settings = replace(settings, options=replace(settings.options, detector=detector.name))
        self.options, self.stop = self.settings.options, stop
        self._fits = detector.fits_camera
        self._wants_gpu = bool(detector.weights) and self.options.device != "cpu"

    def preview(self) -> Iterator[tuple[str, str]]:
        """See `Runner`."""
        return self._here.preview()

    def updates(self, fitting: Fitting) -> Generator[Update, None, None]:
        """See `Runner`.

        Raises:
            UsageError: no cluster answers at the address, or no node can take part.
        """
        layout, settings = OutputLayout(self.options.out), self.settings
        layout.rename_old_files((unit.video for unit in settings.units), {unit.camera for unit in settings.plan.units})

        def work_of(cpus: int) -> ScanWork:
            """Return the work of a node with this number of cores."""
            return ScanWork(replace(self.options, workers=self.options.workers or cpus))

        with (
            Scratch(layout.scratch) as scratch,
            started_workers(
                self.options, scratch, settings.plan.root, work_of, wants_gpu=self._wants_gpu, stop=self.stop
            ) as workers,
        ):
            self._here.log_learned_again()
            work = Worklist(
                settings.plan.units,
                settings.units,
                by_cameras=self._fits,
                workers=len(workers.slots),
                decoders=self.options.workers or workers.cores,
            )
            yield from self._drive(work, workers, fitting)

    def _drive(self, work: Worklist, workers: Workers, fitting: Fitting) -> Iterator[Update]:
        """Hand out the chunks. Yield the updates of the workers, see `Runner.updates`."""
        order_of, ended = partial(self._settings_of, work), partial(self._ended, work)
        for item, chunk, node in drive(work, workers, self.stop, order_of, ended):
            if isinstance(item, Fitted):
                fitting(item.camera, item.frames)
            elif isinstance(item, ClipsScored):
                chunk.has_progress = True
                work.open(chunk.camera)
                yield item
            elif isinstance(item, VideoResult):
                chunk.left.pop(item.video, None)
                yield replace(item, node=node.name)
            elif isinstance(item, GivenUp):
                video, camera = item.unit.video, item.unit.camera
                reason = f"{MOST_DEATHS} workers died while they scanned this video, the last one on node {node.name}"
                yield VideoResult(video, Status.FAILED, stage="score", reason=reason, camera=camera, node=node.name)

    def _settings_of(self, work: Worklist, chunk: Chunk) -> ScanSettings:
        """Return the settings for the scan of one chunk."""
        # The worker of a camera's first chunk also fits the camera, so it gets the list of all videos of the camera. The
        # workers of later chunks never fit the camera.
        units = work.whole[chunk.camera] if chunk.fits_camera else chunk.units
        refit = self.options.refit if chunk.fits_camera or self.options.refit is None else False
        return replace(
            self.settings,
            plan=replace(self.settings.plan, units=units, unusable=(), passed_over={}, notes=()),
            options=replace(self.options, refit=refit, shard=None),
            videos=frozenset(chunk.left),
        )

    def _ended(self, work: Worklist, chunk: Chunk) -> None:
        """Make more chunks of a camera available if its first chunk ended without a scored clip.

        In this case, all videos of the chunk were done before or have failed, and the camera may still have no model.
        """
        if chunk.fits_camera and not chunk.has_progress:
            if self._here.is_fitted(chunk.camera):
                work.open(chunk.camera)
            else:
                work.next_of(chunk.camera)
