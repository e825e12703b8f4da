"""The workers of a run on a cluster, and the loop that hands chunks out to them.

A worker is a Ray actor. There is one worker per GPU, or one per few cores on a node without GPUs. The machines share only OUT
and the footage. What the loop relies on:

- A video is in one chunk at a time, and its lock in OUT protects it from other runs.
- A worker that dies loses the work since its last checkpoint. Its videos are handed out again, one by one. A video is given up
  if two workers in a row died while they had only this video and made no progress with it.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vadcli.engine.cluster.ray_cluster import Node, connected, import_ray, nodes_of, on_node, usable_nodes
from vadcli.engine.cluster.worker import ChunkWorker, Work
from vadcli.engine.cluster.worklist import Chunk, Worklist
from vadcli.engine.plan import WorkUnit
from vadcli.engine.runner import Stop
from vadcli.errors import DeviceError, ToolError, UsageError, VadcliError, WeightsError
from vadcli.options import ScanOptions, VerifyOptions
from vadcli.store.atomic import Scratch

log = logging.getLogger("vadcli")

CORES_PER_WORKER = 4
"""Cores per worker on a node without GPUs, if the user does not give --ray-cpus."""
WAIT_S = 0.2
PATIENCE_S = 30.0
"""If no worker reports anything for this many seconds, the log says that the run waits for the cluster."""
END_S = 120.0
"""A worker that was asked to stop has this many seconds to finish its batch and write its checkpoint."""
MOST_STILLBORN = 3
"""A node takes no more videos if this many of its workers died before they began, for example because the node shuts down."""
KILLS = 2
"""A video is given up if it kills this many workers in a row without any progress."""

MakeWork = Callable[[int], Work]
"""Called with the number of cores of a worker; returns the work that the worker does."""


@dataclass(frozen=True)
class Killer:
    """A video that has killed KILLS workers, and is given up."""

    unit: WorkUnit


class WorkerDied(Exception):
    """A worker died, or its node is lost."""


@contextmanager
def hired(
    options: ScanOptions | VerifyOptions, scratch: Scratch, root: Path | None, work: MakeWork, *, wants_gpu: bool, stop: Stop
) -> Iterator[Workers]:
    """Connect to the cluster and start the workers. A context manager: at exit, it ends all workers.

    Args:
        options: the options of the command.
        scratch: makes a file in OUT, which each node must see.
        root: the footage, which the nodes must see; None to omit this check.
        work: makes the work that a worker does with each chunk.
        wants_gpu: True if a worker needs a GPU on each node that has one.
        stop: why and how the run ends.

    Raises:
        UsageError: ray is not installed, no cluster answers, or no node can take part.
    """
    ray = import_ray()
    with connected(ray, options):
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
    """Hand out all chunks. Yield what the workers report, and a `Killer` for each video that is given up.

    The caller removes a video from `left` of its chunk when it has a result, and sets `moved` at other progress.

    Args:
        work: the chunks.
        workers: they get the chunks.
        stop: ends the run early, on all nodes.
        order_of: returns the order that a worker gets for a chunk.
        ended: called when a worker has ended a chunk.

    Raises:
        VadcliError: a worker can't write OUT at all, or the last node can't work.
    """
    kills: dict[str, int] = {}
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
                for killer in _killers(chunk, kills):
                    yield killer, chunk, worker.node
                work.give_back(chunk.camera, chunk.left.values())
                workers.replace(worker)
                continue
            chunk.begun = True
            for item in sent:
                if isinstance(item, DeviceError | WeightsError | ToolError):  # this node can't work, but others may
                    workers.give_up(worker, item)
                    work.give_back(chunk.camera, chunk.left.values())
                    break
                if isinstance(item, VadcliError):
                    raise item
                if isinstance(item, logging.LogRecord):
                    logging.getLogger(item.name).handle(item)
                else:
                    yield item, chunk, worker.node


def _killers(chunk: Chunk, kills: dict[str, int]) -> Iterator[Killer]:
    """Count the death of a chunk's worker; remove and yield the videos that are given up."""
    for video, unit in list(chunk.left.items()):
        alone = len(chunk.units) == 1 and chunk.begun  # else the video is not the cause
        kills[video] = 0 if chunk.moved else kills.get(video, 0) + alone
        if kills[video] >= KILLS:
            del chunk.left[video]
            yield Killer(unit)


@dataclass(eq=False)
class Worker:
    """A Ray actor on a node, and the chunk that it scans."""

    ray: Any
    node: Node
    actor: Any
    chunk: Chunk | None = None
    sending: Any = None

    def next(self) -> list[Any]:
        """Return the items that the worker sent.

        Raises:
            StopIteration: the chunk has ended.
            WorkerDied: the worker died.
        """
        try:
            return list(self.ray.get(next(self.sending)))
        except self.ray.exceptions.RayActorError as error:
            raise WorkerDied(str(error)) from error


class Workers:
    """The actors of a run: one per slot. A slot is a GPU or a few cores of a node."""

    def __init__(
        self, ray: Any, options: ScanOptions | VerifyOptions, nodes: Sequence[Node], work: MakeWork, *, wants_gpu: bool
    ) -> None:
        self._ray, self._options, self._work = ray, options, work
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
        self._running: dict[Any, Worker] = {}
        self._stillborn: Counter[str] = Counter()
        self._stopped = False
        self._since = time.monotonic()

    @property
    def cores(self) -> int:
        """The largest number of cores of a worker."""
        return max(map(self._cpus, self.slots))

    @property
    def busy(self) -> bool:
        """True while a worker scans."""
        return bool(self._running)

    @property
    def has_free(self) -> bool:
        """True if a worker has nothing to do."""
        return bool(self._free)

    def start(self, chunk: Chunk, order: Any) -> None:
        """Hand a chunk to a free worker, with the order that the worker gets for it."""
        worker = self._free.pop()
        worker.chunk, worker.sending = chunk, worker.actor.run.remote(order)
        self._running[worker.sending] = worker

    def waited(self) -> list[Worker]:
        """Wait a moment; return the workers that have sent something, have ended, or have died."""
        self._ray.wait(list(self._running), num_returns=1, timeout=WAIT_S, fetch_local=False)
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0, fetch_local=False)
        if ready:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > PATIENCE_S:
            log.info("waiting for the cluster: no worker has reported anything for %.0f s", PATIENCE_S)
            self._since = time.monotonic()
        return [self._running[one] for one in ready]

    def free(self, worker: Worker) -> None:
        """Mark a worker as free after its chunk has ended."""
        self._running.pop(worker.sending)
        worker.chunk = worker.sending = None
        if worker.node in self.slots:
            self._free.append(worker)
        else:
            self._ray.kill(worker.actor)

    def replace(self, worker: Worker) -> None:
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

    def give_up(self, worker: Worker, error: VadcliError) -> None:
        """Leave out the node of a worker that can't work; raises its error if no node is left."""
        log.warning("node %s takes no more videos: %s", worker.node.name, error)
        self.drop(worker.node)
        self.free(worker)
        if not self.slots:
            raise error

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
                except (StopIteration, WorkerDied, self._ray.exceptions.RayError):
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

    def _made(self, node: Node) -> Worker:
        cpus = self._cpus(node)
        actor = (
            self._ray.remote(ChunkWorker)
            .options(
                num_cpus=cpus,
                num_gpus=self._gpus(node),
                max_concurrency=2,  # so that `stop` can be called while `run` runs
                scheduling_strategy=on_node(self._ray, node),
            )
            .remote(self._work(cpus), os.getcwd())
        )
        return Worker(self._ray, node, actor)
