"""The worker of a cluster: does its work with one chunk after the other. It does not depend on Ray."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any, Protocol

from vadcli.detectors import Detector
from vadcli.engine.cameras import size_of
from vadcli.engine.local import LocalRunner, loader_of
from vadcli.engine.plan import WorkUnit
from vadcli.engine.runner import ScanSettings, Stop, choose_detector
from vadcli.errors import OutputError, UsageError, VadcliError
from vadcli.options import ScanOptions
from vadcli.types.text import is_remote, may_exist
from vadcli.video.loader import ClipLoader
from vadcli.video.objects import check_store

log = logging.getLogger("vadcli")

SEND_EVERY_S = 0.5


class Work(Protocol):
    """The work that a worker does with each chunk.

    It can be pickled, because it loads its models only when it needs them.
    """

    def do(self, order: Any, stop: Stop, say: Callable[[object], None]) -> None:
        """Do the work for a chunk.

        Args:
            order: describes the chunk; each kind of work has its own class for it.
            stop: ends the work early.
            say: sends an object that can be pickled to the driver.
        """
        ...


@dataclass(frozen=True)
class Fitted:
    """Frames that a worker has read to fit a camera."""

    camera: str
    frames: int


@dataclass
class ScanWork:
    """Scans chunks. An order is a `ScanSettings` that scans only the videos of the chunk."""

    options: ScanOptions  # with the number of `workers`
    _detector: Detector | None = None
    _loader: ClipLoader | None = None  # its decoder processes take longer to start than some videos take to scan

    def do(self, order: ScanSettings, stop: Stop, say: Callable[[object], None]) -> None:
        """See `Work`. Passes the updates of the runner to `say`."""
        if self._detector is None or self._loader is None:
            self._detector = choose_detector(self.options)
            self._loader = loader_of(self._detector, self.options)
        settings = replace(order, options=replace(order.options, workers=self.options.workers))
        runner = LocalRunner(settings, self._detector, stop=stop, loader=self._loader)
        for update in runner.updates(lambda camera, frames: say(Fitted(camera, frames))):
            say(update)


@dataclass(eq=False)
class Chunk:
    """Videos that a worker scans in one call."""

    camera: str  # the camera of these videos; "" if the detector does not fit cameras
    units: tuple[WorkUnit, ...]
    opens: bool = False  # True if the worker must fit the camera first. Then it gets the list of all videos of the camera.
    left: dict[str, WorkUnit] = field(default_factory=dict)  # the videos that have no result yet
    begun: bool = False  # True if the worker has sent something
    moved: bool = False  # True if a clip of the chunk was scored

    def __post_init__(self) -> None:
        self.left = {unit.video: unit for unit in self.units}

    def __lt__(self, other: Chunk) -> bool:
        return size_of(self.units) > size_of(other.units)  # the heap hands out the largest chunk first


class ChunkWorker:
    """The worker: a Ray actor that does its work with one chunk after the other.

    It works in the driver's working folder, so relative paths have the same meaning. This folder need not exist on every node.
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

        The first list is empty and comes at once. The other lists come every SEND_EVERY_S.

        If a `VadcliError` ends the work, it is the last item.
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
    """Return the reason why this node can't take part; "" if it can take part.

    If `root` is None, the footage is not checked.
    """
    from vadcli import __version__ as own

    if own != version:
        return f"it has vadcli {own}, and this machine has {version}"
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
