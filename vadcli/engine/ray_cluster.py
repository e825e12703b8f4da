"""The Ray cluster of a run: its nodes, and the workers on them. Only this file imports the package `ray`.

A worker is a Ray actor: a `ChunkWorker`, which works on one chunk of videos after the other. A node has one worker per GPU. A
node without GPUs has one worker per CORES_PER_WORKER cores. The machines share only OUT and the footage.

The first part of this file is the code that runs on the nodes. The second part is the code with which the driver uses the
nodes.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any, Protocol

import psutil

from vadcli import __version__
from vadcli.detectors import Detector
from vadcli.engine.cameras import size_of
from vadcli.engine.local import LocalRunner, loader_of
from vadcli.engine.plan import WorkUnit
from vadcli.engine.runner import ScanSettings, Stop, choose_detector
from vadcli.errors import DeviceError, OutputError, ToolError, UsageError, VadcliError
from vadcli.options import ScanOptions, VerifyOptions
from vadcli.store.atomic import Scratch
from vadcli.types.text import is_remote, may_exist
from vadcli.video.loader import ClipLoader, core_count
from vadcli.video.objects import check_store

log = logging.getLogger("vadcli")

SEND_EVERY_S = 0.5
"""Seconds between two lists of updates that a worker sends to the driver."""
CHECK_S = 120.0
"""A node is left out if it does not answer within this many seconds whether it can take part in the run."""
CONNECT_S = 20.0
"""A run ends with an error if no program answers at --ray-address within this many seconds."""
LONGEST_FOLDER = 15
"""Longest path of the folder for temporary files, in bytes.

Ray adds up to 92 bytes for the names of its own folders and sockets, and the path of a socket may have at most 107 bytes.
"""
_TEMPORARY = "vadcli-ray-"
CORES_PER_WORKER = 4
"""Cores per worker on a node without GPUs, if the user does not give --ray-cpus."""
WAIT_S = 0.2
"""The driver waits this long for updates of the workers before it checks whether the run must end."""
PATIENCE_S = 30.0
"""If no worker sends an update for this many seconds, the log shows that the run waits for the cluster."""
END_S = 120.0
"""A worker that was asked to stop has this many seconds to finish its batch and write its checkpoint."""
MOST_EARLY_DEATHS = 3
"""A node gets no more videos if this many of its workers died before they began, for example because the node shuts down."""


class Work(Protocol):
    """The work that a worker does for each chunk.

    An object of this type can be pickled, because models are loaded only when `do` needs them.
    """

    def do(self, order: Any, stop: Stop, send: Callable[[object], None]) -> None:
        """Do the work for a chunk.

        Args:
            order: describes the chunk; each kind of work has its own class of orders.
            stop: ends the work early.
            send: sends an object to the driver. It must be possible to pickle the object.
        """
        ...


@dataclass(frozen=True)
class Fitted:
    """A worker sends this object when it has read frames to fit a camera."""

    camera: str
    frames: int


@dataclass
class ScanWork:
    """Scans chunks. The order for a chunk is a `ScanSettings` with only the videos of the chunk."""

    options: ScanOptions  # with the number of `workers`
    _detector: Detector | None = None
    # The loader is kept from chunk to chunk, because its decoder processes take longer to start than some chunks take to scan.
    _loader: ClipLoader | None = None

    def do(self, order: ScanSettings, stop: Stop, send: Callable[[object], None]) -> None:
        """See `Work`. Passes the updates of the runner to `send`."""
        if self._detector is None or self._loader is None:
            self._detector = choose_detector(self.options)
            self._loader = loader_of(self._detector, self.options)
        settings = replace(order, options=replace(order.options, workers=self.options.workers))
        runner = LocalRunner(settings, self._detector, stop=stop, loader=self._loader)
        for update in runner.updates(lambda camera, frames: send(Fitted(camera, frames))):
            send(update)


@dataclass(eq=False)
class Chunk:
    """Videos that a worker gets together, as one piece of work."""

    camera: str  # the camera of these videos; "" if the detector does not fit cameras
    units: tuple[WorkUnit, ...]
    fits_camera: bool = False  # True if the worker must fit the camera first, from all videos of the camera
    left: dict[str, WorkUnit] = field(default_factory=dict)  # the videos that have no result yet, by name
    has_begun: bool = False  # True if the worker has sent an update
    has_progress: bool = False  # True if a clip of the chunk was scored or answered

    def __post_init__(self) -> None:
        self.left = {unit.video: unit for unit in self.units}

    def __lt__(self, other: Chunk) -> bool:
        return size_of(self.units) > size_of(other.units)  # the heap hands out the largest chunk first


class ChunkWorker:
    """The worker: a Ray actor that does its work for one chunk after the other.

    It changes to the driver's working folder, if the node has this folder, so that relative paths have the same meaning.
    """

    def __init__(self, work: Work, folder: str) -> None:
        with suppress(OSError):
            os.chdir(folder)
        self._work = work
        self._stop = Stop()

    def stop(self, reason: str, signal: int | None) -> None:
        """Ask the running work to end."""
        self._stop.set(reason, signal)

    def run(self, order: Any) -> Iterator[list[object]]:
        """Do the work for a chunk. Yield lists of updates and log records.

        The first list is empty. It comes at once, and shows the driver that the work has begun. After that, a list comes every
        SEND_EVERY_S seconds if there are new items. If a `VadcliError` ends the work, the error is the last item.
        """
        yield []
        sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        handler = QueueHandler(sent)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        thread = threading.Thread(target=self._run, args=(order, sent), daemon=True)
        thread.start()
        try:
            ended = False
            while not ended:
                due, items = time.monotonic() + SEND_EVERY_S, []
                while not ended and (left := due - time.monotonic()) > 0:
                    with suppress(queue.Empty):
                        item = sent.get(timeout=left)
                        ended = item is None
                        items += [] if ended else [item]
                if items:
                    yield items
        finally:
            self._stop.set("the driver is gone")
            thread.join()
            log.removeHandler(handler)
            self._stop = Stop()

    def _run(self, order: Any, sent: queue.SimpleQueue[Any]) -> None:
        try:
            self._work.do(order, self._stop, sent.put)
        except VadcliError as error:
            sent.put(error)
        except Exception as error:  # the driver reports the error with the node's name
            log.debug("the work on a chunk failed", exc_info=True)
            sent.put(OutputError(f"{socket.gethostname()}: {type(error).__name__}: {error}"))
        finally:
            sent.put(None)


def check_node(token: Path, word: str, root: Path | None, version: str) -> str:
    """Return why this node can't take part in the run; "" if it can take part.

    Args:
        token: a file that the driver has written into OUT.
        word: the text in this file.
        root: the root of the footage; None to omit the check of the footage.
        version: the version of vadcli on the driver's machine.
    """
    if __version__ != version:
        return f"it has vadcli {__version__}, and this machine has {version}"
    try:
        if token.read_text(encoding="ascii") != word:
            return f"it has another folder at {token.parent}"
    except OSError:
        return "it does not see the output folder; it must be on storage that all nodes share"
    if root is None:
        return ""
    if is_remote(root):
        try:
            check_store(root)
        except UsageError as error:
            return str(error)
    return "" if may_exist(root) else f"it does not see the footage at {root}"


MakeWork = Callable[[int], Work]
"""Makes the `Work` of a worker; called with the number of cores of this worker."""


class WorkerDied(Exception):
    """A worker died, or its node is lost."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster: its id, its name in messages, and the cores and GPUs that it offers."""

    id: str
    name: str
    cpus: int
    gpus: int


def import_ray() -> Any:
    """Import and return the package `ray`. Raises UsageError if the package is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would print the errors of its nodes to stdout, which is for data. The driver logs these errors.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
    except ImportError as error:
        raise UsageError("--runner ray: Ray is not installed", hint="pip install 'vadcli[ray]'") from error
    return ray


@contextmanager
def joined(ray: Any, address: str) -> Iterator[None]:
    """Connect to the cluster at an address. At the end of the `with` block, disconnect.

    Raises:
        UsageError: no cluster answers at the address.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # if no program listens at the address, Ray itself would wait for many minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        with _own_signals():
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        hint = "start one with: ray start --head"
        raise UsageError(f"--ray-address {address}: no Ray cluster answers: {words[0]}", hint=hint) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def started(ray: Any) -> Iterator[None]:
    """Start Ray on this machine. At the end of the `with` block, stop Ray and remove its files.

    Raises:
        ToolError: Ray does not start.
    """
    temporary = tempfile.gettempdir()
    if len(os.fsencode(temporary)) > LONGEST_FOLDER:
        temporary = "/tmp"  # noqa: S108 - a new folder is made in it
    for folder in Path(temporary).glob(f"{_TEMPORARY}*-*"):  # folders of runs that were killed
        pid = folder.name.removeprefix(_TEMPORARY).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{os.getpid()}-", dir=temporary))
    try:
        try:
            with _own_signals():
                ray.init(  # fails after 30 seconds
                    num_cpus=core_count(),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    _temp_dir=str(folder),
                    _system_config={"worker_niceness": 0},  # at Ray's default, 15, most other programs go first
                )
        except Exception as error:  # Ray raises various exceptions if it does not start
            words = str(error).strip().splitlines() or [type(error).__name__]
            hint = "try again when the machine is less busy, or name a cluster with --ray-address"
            raise ToolError(f"--runner ray: Ray does not start on this machine: {words[0]}", hint=hint) from error
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handler of SIGTERM, because Ray's handler would end the process at once."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # only the main thread can set a handler
            signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def usable_nodes(ray: Any, scratch: Scratch, root: Path | None) -> list[Node]:
    """Return the nodes that can take part in the run, and log why the other nodes can't.

    A node must be able to read OUT and the footage, and must have the same version of vadcli.

    Raises:
        UsageError: no node can take part.
    """
    word = uuid.uuid4().hex
    token = scratch.folder / "token"
    token.write_text(word, encoding="ascii")
    nodes = nodes_of(ray)
    check = ray.remote(check_node)
    node_of = {
        check.options(num_cpus=0, scheduling_strategy=on_node(ray, node)).remote(
            token.absolute(), word, root, __version__
        ): node
        for node in nodes
    }
    usable = []
    for answer, node in node_of.items():
        try:
            problem = ray.get(answer, timeout=CHECK_S)
        except ray.exceptions.RayError as error:
            problem = f"it can't run vadcli: {str(error).strip().splitlines()[-1]}"
        if problem:
            log.warning("node %s takes no videos: %s", node.name, problem)
        else:
            usable.append(node)
    if not usable:
        raise UsageError("no node of the cluster can take part", hint="the lines above show why")
    return usable


def on_node(ray: Any, node: Node) -> Any:
    """Return the scheduling strategy for tasks and actors that must run on this node."""
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.id, soft=False)


def nodes_of(ray: Any) -> list[Node]:
    """Return the nodes that are alive. If a host has several nodes, their names get a number."""
    nodes: list[Node] = []
    alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"])
    hosts = [str(node["NodeManagerHostname"]) for node in alive]
    for place, (node, host) in enumerate(zip(alive, hosts, strict=True)):
        name = host if hosts.count(host) == 1 else f"{host}/{hosts[: place + 1].count(host)}"
        resources = node["Resources"]
        nodes.append(Node(node["NodeID"], name, int(resources.get("CPU", 0)), int(resources.get("GPU", 0))))
    return nodes


@dataclass(eq=False)
class ClusterWorker:
    """The driver's view of a worker: a Ray actor on a node, and the chunk that it works on."""

    ray: Any
    node: Node
    actor: Any
    chunk: Chunk | None = None  # None if the worker has nothing to do
    sending: Any = None  # Ray's generator of the lists that `ChunkWorker.run` yields

    def next(self) -> list[Any]:
        """Return the items that the worker has sent.

        Raises:
            StopIteration: the worker has ended its chunk.
            WorkerDied: the worker died.
        """
        try:
            return list(self.ray.get(next(self.sending)))
        except self.ray.exceptions.RayActorError as error:
            raise WorkerDied(str(error)) from error


class Workers:
    """The workers of a run: one per slot. A slot is a GPU or a few cores of a node."""

    def __init__(
        self, ray: Any, options: ScanOptions | VerifyOptions, nodes: Sequence[Node], work: MakeWork, *, wants_gpu: bool
    ) -> None:
        self._ray, self._options, self._work = ray, options, work
        self._wants_gpu = wants_gpu
        self.slots: list[Node] = []
        for node in nodes:
            cpus, gpus = self._cpus(node), self._gpus(node)
            by_cores = node.cpus // cpus if cpus else 0
            self.slots += [node] * (int(min(by_cores, node.gpus / gpus)) if gpus else by_cores)
        if not self.slots:
            given = {"--ray-cpus": options.ray_cpus, "--ray-gpus": options.ray_gpus}
            asked = " and ".join(f"{name} {value:g}" for name, value in given.items() if value is not None)
            raise UsageError(
                f"no node of the cluster has room for a worker{asked and f' with {asked}'}",
                hint="give smaller --ray-cpus and --ray-gpus" if asked else "wait until a node has a free core, or add a node",
            )
        self._free = [self._made(node) for node in self.slots]
        self._running: dict[Any, ClusterWorker] = {}
        self._early_deaths: Counter[str] = Counter()  # number of workers that died before they began, by node
        self._stopped = False
        self._since = time.monotonic()

    @property
    def cores(self) -> int:
        """The number of cores of the largest worker."""
        return max(map(self._cpus, self.slots))

    @property
    def busy(self) -> bool:
        """True if a worker has a chunk."""
        return bool(self._running)

    @property
    def has_free(self) -> bool:
        """True if a worker has nothing to do."""
        return bool(self._free)

    def start(self, chunk: Chunk, order: Any) -> None:
        """Give a chunk to a free worker. The `order` describes the chunk for the worker."""
        worker = self._free.pop()
        worker.chunk, worker.sending = chunk, worker.actor.run.remote(order)
        self._running[worker.sending] = worker

    def waited(self) -> list[ClusterWorker]:
        """Wait up to WAIT_S. Return the workers that have sent updates, have ended their chunk, or have died."""
        self._ray.wait(list(self._running), num_returns=1, timeout=WAIT_S, fetch_local=False)
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0, fetch_local=False)
        if ready:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > PATIENCE_S:
            log.info("waiting for the cluster: no worker has reported anything for %.0f s", PATIENCE_S)
            self._since = time.monotonic()
        return [self._running[sending] for sending in ready]

    def free(self, worker: ClusterWorker) -> None:
        """Mark a worker as free after its chunk has ended."""
        self._running.pop(worker.sending)
        worker.chunk = worker.sending = None
        if worker.node in self.slots:
            self._free.append(worker)
        else:
            self._ray.kill(worker.actor)

    def replace(self, worker: ClusterWorker) -> None:
        """Start a new worker in place of a worker that died.

        No worker is started if the node is gone, or if too many workers of the node (MOST_EARLY_DEATHS) died before they began
        to work. In both cases, the node gets no more videos.

        Raises:
            DeviceError: no node is left.
        """
        self._running.pop(worker.sending)
        if worker.node not in self.slots:
            return
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        assert worker.chunk is not None
        self._early_deaths[worker.node.id] += not worker.chunk.has_begun
        if worker.node.id in alive and self._early_deaths[worker.node.id] < MOST_EARLY_DEATHS:
            self._free.append(self._made(worker.node))
            return
        self.drop(worker.node)
        why = "takes no more videos: its workers die before they begin" if worker.node.id in alive else "is gone"
        log.warning("node %s %s", worker.node.name, why)
        if not self.slots:
            raise DeviceError(f"no node is left: node {worker.node.name} {why}", hint="the next run continues from here")

    def give_up(self, worker: ClusterWorker, error: VadcliError) -> None:
        """Give no more work to the node of a worker that can't work.

        `error` says why the worker can't work. This error is raised if no node is left.
        """
        log.warning("node %s takes no more videos: %s", worker.node.name, error)
        self.drop(worker.node)
        self.free(worker)
        if not self.slots:
            raise error

    def drop(self, node: Node) -> None:
        """Give no more work to a node. Its busy workers finish their chunks or fail, and report this."""
        self.slots = [slot for slot in self.slots if slot != node]
        for worker in [worker for worker in self._free if worker.node == node]:
            self._free.remove(worker)
            self._ray.kill(worker.actor)

    def stop(self, reason: str, signal: int | None) -> None:
        """Ask all workers to save their checkpoints and to end."""
        if not self._stopped:
            self._stopped = True
            for worker in self._running.values():
                worker.actor.stop.remote(reason, signal)

    def end(self, reason: str, signal: int | None) -> None:
        """Stop all workers, wait until they have written their checkpoints, and remove the workers."""
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

    def _gpus(self, node: Node) -> float:
        """Return the number of GPUs per worker on a node."""
        if self._options.ray_gpus is not None:
            return self._options.ray_gpus
        return 1.0 if self._wants_gpu and node.gpus else 0.0

    def _cpus(self, node: Node) -> int:
        """Return the number of cores per worker on a node."""
        if self._options.ray_cpus is not None:
            return self._options.ray_cpus
        gpus = self._gpus(node)
        return max(1, int(node.cpus * gpus // node.gpus)) if gpus else min(CORES_PER_WORKER, node.cpus)

    def _made(self, node: Node) -> ClusterWorker:
        """Start a worker on a node."""
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
        return ClusterWorker(self._ray, node, actor)
