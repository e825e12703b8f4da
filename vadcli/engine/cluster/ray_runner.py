"""The runner of a Ray cluster.

The driver is the process that the user started. It splits the plan into chunks of videos and hands them to workers. A worker is
a Ray actor with its own detector; there is one worker per GPU, or one per few cores on a node without GPUs. A worker scans its
chunk with a `LocalRunner`, and sends the updates back. Apart from that, the machines share only OUT and the footage.

What the driver relies on:

- A camera is fitted once. While a camera has no model, only one of its chunks is handed out, and the worker gets the list of
  all videos of the camera. `Cameras` locks the fit, so a second fit would be slow but not wrong.
- A video is in one chunk at a time, and its lock in OUT protects it from other scans.
- A worker that dies loses the scores since its last checkpoint. Its videos are handed out again, one by one. A video fails if
  two workers in a row died while they had only this video, and no clip of it was scored.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vadcli.detectors import Detector
from vadcli.engine.cluster.ray_cluster import Node, connected, import_ray, on_node, usable_nodes
from vadcli.engine.cluster.scanner import ChunkScanner, Fitted, Sent
from vadcli.engine.cluster.worklist import Chunk, Worklist
from vadcli.engine.local import LocalRunner
from vadcli.engine.runner import Fitting, ScanSettings, Stop
from vadcli.engine.stream import ClipsScored, Update
from vadcli.errors import DeviceError, ToolError, UsageError, VadcliError, WeightsError
from vadcli.options import ScanOptions
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch
from vadcli.types import Status, VideoResult

log = logging.getLogger("vadcli")

CORES_PER_WORKER = 4
"""Cores per worker on a node without GPUs, if the user does not give --ray-cpus."""
WAIT_S = 0.2
PATIENCE_S = 30.0
"""If no worker reports anything for this many seconds, the log says that the run waits for the cluster."""
END_S = 120.0
"""A worker that was asked to stop has this many seconds to finish its batch and write its checkpoint."""
MOST_STILLBORN = 3
"""A node takes no more videos after this many workers that died before they began, for example because it is being lost."""
KILLS = 2
"""A video fails if it kills this many workers in a row without any progress."""


class RayRunner:
    """Executes a plan on a Ray cluster, or on this machine with Ray if `--ray-address` names no cluster.

    Args:
        settings: what to scan.
        detector: the driver does not load it; each worker makes its own from the options.
        stop: ends the run early, on all nodes.

    Raises:
        UsageError: ray is not installed, or the detector can't do what the options ask for.
    """

    def __init__(self, settings: ScanSettings, detector: Detector, *, stop: Stop) -> None:
        self._ray = import_ray()
        self._here = LocalRunner(settings, detector, stop=stop)
        # Every node must use the detector that this machine has chosen, even with --detector auto.
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
        layout = OutputLayout(self.options.out)
        with Scratch(layout.scratch) as scratch, connected(self._ray, self.options):
            layout.rename_old_files(
                (unit.video for unit in self.settings.units), {unit.camera for unit in self.settings.plan.units}
            )
            nodes = usable_nodes(self._ray, scratch, self.settings)
            workers = _Workers(self._ray, self.options, nodes, wants_gpu=self._wants_gpu)
            work = Worklist(self.settings, by_cameras=self._fits, workers=max(1, len(workers.slots)))
            try:
                yield from self._drive(work, workers, fitting)
            finally:
                workers.end(self.stop.reason or "the run ended", self.stop.signal)

    def _drive(self, work: Worklist, workers: _Workers, fitting: Fitting) -> Iterator[Update]:
        kills: dict[str, int] = {}
        while (work and not self.stop()) or workers.busy:
            while work and not self.stop() and workers.has_free:
                handed = work.take()
                workers.start(handed, self._settings_of(handed, work))
            if self.stop():
                workers.stop(self.stop.reason, self.stop.signal)
            for worker in workers.waited():
                chunk = worker.chunk
                assert chunk is not None
                try:
                    sent = worker.next()
                except StopIteration:
                    self._ended(chunk, work)
                    workers.free(worker)
                    continue
                except self._ray.exceptions.RayActorError as error:
                    yield from self._died(worker, chunk, work, kills, error)
                    workers.replace(worker)
                    continue
                chunk.begun = True
                for item in sent:
                    if isinstance(item, DeviceError | WeightsError | ToolError):  # this node can't work, but others may
                        self._give_up(worker, item, workers)
                        work.give_back(chunk.camera, chunk.left.values())
                        break
                    yield from self._took(item, chunk, work, worker, fitting)

    def _settings_of(self, chunk: Chunk, work: Worklist) -> ScanSettings:
        """Return the settings for one chunk. They contain all videos of the camera only if the worker must fit it."""
        units = work.whole[chunk.camera] if chunk.opens else chunk.units
        # Only the chunk that opens the camera may fit it again.
        refit = self.options.refit if chunk.opens or self.options.refit is None else False
        return replace(
            self.settings,
            plan=replace(self.settings.plan, units=units, unusable=(), passed_over={}, notes=()),
            options=replace(self.options, refit=refit, shard=None),
            videos=frozenset(chunk.left),
        )

    def _took(self, item: Sent, chunk: Chunk, work: Worklist, worker: _Worker, fitting: Fitting) -> Iterator[Update]:
        if isinstance(item, logging.LogRecord):
            logging.getLogger(item.name).handle(item)
        elif isinstance(item, Fitted):
            fitting(item.camera, item.frames)
        elif isinstance(item, VadcliError):
            raise item
        elif isinstance(item, ClipsScored):
            chunk.moved = True
            work.open(chunk.camera)
            yield item
        elif isinstance(item, VideoResult):
            chunk.left.pop(item.video, None)
            yield replace(item, node=worker.node.name)

    def _ended(self, chunk: Chunk, work: Worklist) -> None:
        """Hand out the next chunks of the camera, if the chunk ended without a scored clip: all its videos are done or broken.

        The camera may have a model then, or not.
        """
        if chunk.opens and not chunk.moved:
            if self._here.is_fitted(chunk.camera):
                work.open(chunk.camera)
            else:
                work.next_of(chunk.camera)

    def _died(
        self, worker: _Worker, chunk: Chunk, work: Worklist, kills: dict[str, int], error: Exception
    ) -> Iterator[VideoResult]:
        log.debug("a worker died: %s", error)
        log.warning("node %s: a worker died; %d of its videos are handed out again", worker.node.name, len(chunk.left))
        for video, unit in list(chunk.left.items()):
            alone = len(chunk.units) == 1 and chunk.begun  # else the video is not the cause
            kills[video] = 0 if chunk.moved else kills.get(video, 0) + alone
            if kills[video] >= KILLS:
                del chunk.left[video]
                reason = f"{KILLS} workers died while they scanned this video, the last one on node {worker.node.name}"
                yield VideoResult(video, Status.FAILED, stage="score", reason=reason, camera=unit.camera, node=worker.node.name)
        work.give_back(chunk.camera, chunk.left.values())

    def _give_up(self, worker: _Worker, error: VadcliError, workers: _Workers) -> None:
        log.warning("node %s takes no more videos: %s", worker.node.name, error)
        workers.drop(worker.node)
        workers.free(worker)
        if not workers.slots:
            raise error


@dataclass(eq=False)
class _Worker:
    """A Ray actor on a node, and the chunk that it scans."""

    ray: Any
    node: Node
    actor: Any
    chunk: Chunk | None = None
    sending: Any = None

    def next(self) -> list[Sent]:
        """Return what the worker sent; raises StopIteration at the end of the chunk."""
        return list(self.ray.get(next(self.sending)))


class _Workers:
    """The actors of a run: one per slot. A slot is a GPU or a few cores of a node."""

    def __init__(self, ray: Any, options: ScanOptions, nodes: Sequence[Node], *, wants_gpu: bool) -> None:
        self._ray, self._options = ray, options
        self._wants_gpu = wants_gpu
        self.slots = [node for node in nodes for _ in range(self._count(node))]
        if not self.slots:
            given = {"--ray-cpus": options.ray_cpus, "--ray-gpus": options.ray_gpus}
            asked = " and ".join(f"{name} {value:g}" for name, value in given.items() if value is not None)
            raise UsageError(
                f"no node of the cluster has room for a worker{asked and f' with {asked}'}",
                hint="give smaller --ray-cpus and --ray-gpus" if asked else "wait until a node has a free core, or add a node",
            )
        self._free = [self._made(node) for node in self.slots]
        self._running: dict[Any, _Worker] = {}
        self._stillborn: Counter[str] = Counter()
        self._stopped = False
        self._since = time.monotonic()

    @property
    def busy(self) -> bool:
        """True while a worker scans."""
        return bool(self._running)

    @property
    def has_free(self) -> bool:
        """True if a worker has nothing to do."""
        return bool(self._free)

    def start(self, chunk: Chunk, settings: ScanSettings) -> None:
        """Hand a chunk to a free worker."""
        worker = self._free.pop()
        worker.chunk, worker.sending = chunk, worker.actor.scan.remote(settings)
        self._running[worker.sending] = worker

    def waited(self) -> list[_Worker]:
        """Wait a moment; return the workers that have sent something, have ended, or have died."""
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=WAIT_S, fetch_local=False)
        if ready:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > PATIENCE_S:
            log.info("waiting for the cluster: no worker has reported anything for %.0f s", PATIENCE_S)
            self._since = time.monotonic()
        return [self._running[one] for one in ready]

    def free(self, worker: _Worker) -> None:
        """Mark a worker as free after its chunk has ended."""
        self._running.pop(worker.sending)
        worker.chunk = worker.sending = None
        if worker.node in self.slots:
            self._free.append(worker)
        else:
            self._ray.kill(worker.actor)

    def replace(self, worker: _Worker) -> None:
        """Start a new worker in place of a worker that died, if its node is still alive."""
        self._running.pop(worker.sending)
        if worker.node not in self.slots:
            return
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        assert worker.chunk is not None
        self._stillborn[worker.node.id] += not worker.chunk.begun
        if worker.node.id in alive and self._stillborn[worker.node.id] < MOST_STILLBORN:
            self._free.append(self._made(worker.node))
            return
        self.drop(worker.node)
        log.warning(
            "node %s %s", worker.node.name, "takes no more videos: no worker begins" if worker.node.id in alive else "is gone"
        )
        if not self.slots:
            raise DeviceError("the last node of the cluster is gone", hint="the next run continues from here")

    def drop(self, node: Node) -> None:
        """Give no more work to a node. Workers that are busy there finish or fail by themselves, and report it."""
        self.slots = [one for one in self.slots if one != node]
        for worker in [worker for worker in self._free if worker.node == node]:
            self._free.remove(worker)
            self._ray.kill(worker.actor)

    def stop(self, reason: str, signal: int | None) -> None:
        """Ask all workers to end at their checkpoints."""
        if not self._stopped:
            self._stopped = True
            for worker in self._running.values():
                worker.actor.stop.remote(reason, signal)

    def end(self, reason: str, signal: int | None) -> None:
        """Stop all workers, wait until they have written their checkpoints, and remove them."""
        self.stop(reason, signal)
        deadline = time.monotonic() + END_S
        while self._running and time.monotonic() < deadline:
            for worker in self.waited():
                try:
                    worker.next()
                except (StopIteration, self._ray.exceptions.RayError):
                    self._running.pop(worker.sending)
                    self._ray.kill(worker.actor)
        for worker in [*self._free, *self._running.values()]:
            self._ray.kill(worker.actor)

    def _count(self, node: Node) -> int:
        gpus = self._gpus(node)
        by_cores = node.cpus // self._cpus(node) if self._cpus(node) else 0
        return int(min(by_cores, node.gpus / gpus)) if gpus else by_cores

    def _gpus(self, node: Node) -> float:
        if self._options.ray_gpus is not None:
            return self._options.ray_gpus
        return 1.0 if self._wants_gpu and node.gpus else 0.0

    def _cpus(self, node: Node) -> int:
        if self._options.ray_cpus is not None:
            return self._options.ray_cpus
        gpus = self._gpus(node)
        return max(1, int(node.cpus * gpus // node.gpus)) if gpus else min(CORES_PER_WORKER, node.cpus)

    def _made(self, node: Node) -> _Worker:
        cpus = self._cpus(node)
        actor = (
            self._ray.remote(ChunkScanner)
            .options(
                num_cpus=cpus,
                num_gpus=self._gpus(node),
                max_concurrency=2,  # so that `stop` can be called while `scan` runs
                scheduling_strategy=on_node(self._ray, node),
            )
            .remote(replace(self._options, workers=self._options.workers or cpus))
        )
        return _Worker(self._ray, node, actor)
