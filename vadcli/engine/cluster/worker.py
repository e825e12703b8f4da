"""The worker of a cluster: does its work with one chunk after the other. It does not depend on the cluster's software."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any, Protocol

from vadcli.detectors import Detector
from vadcli.engine.local import LocalRunner, loader_of
from vadcli.engine.runner import ScanSettings, Stop, choose_detector
from vadcli.errors import OutputError, UsageError, VadcliError
from vadcli.options import ScanOptions
from vadcli.types.text import is_remote, may_exist
from vadcli.video.loader import ClipLoader
from vadcli.video.objects import check_store

log = logging.getLogger("vadcli")

SEND_EVERY_S = 0.5


class Work(Protocol):
    """The work that a worker does with each chunk. It can be pickled: a worker makes its models itself, and keeps them."""

    def do(self, order: Any, stop: Stop, say: Callable[[object], None]) -> None:
        """Work through a chunk. Everything that is passed to `say` can be pickled, and goes to the driver in order.

        Args:
            order: the chunk as the driver describes it for this work.
            stop: ends the work early.
            say: tells the driver something.
        """
        ...


@dataclass(frozen=True)
class Fitted:
    """Frames that a worker has read to fit a camera."""

    camera: str
    frames: int


@dataclass
class ScanWork:
    """Scans chunks. An order has the settings of a scan of only the chunk's videos.

    Attributes:
        options: the options of the scan; its `workers` is known.
    """

    options: ScanOptions
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


class ChunkWorker:
    """The worker: an actor that does its work with one chunk after the other.

    Args:
        work: the work that it does with each chunk.
        folder: the driver's working folder, so that relative paths mean the same here; it need not exist on every node.
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
        """Work through a chunk. Yield an empty list at once, and then lists of updates and log records, every SEND_EVERY_S.

        If an error of vadcli ends the work, it is the last item.
        """
        yield []
        said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        handler = QueueHandler(said)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        thread = threading.Thread(target=self._run, args=(order, said), daemon=True)
        thread.start()
        try:
            ended = False
            while not ended:
                due, items = time.monotonic() + SEND_EVERY_S, []
                while not ended and (left := due - time.monotonic()) > 0:
                    with suppress(queue.Empty):
                        item = said.get(timeout=left)
                        ended = item is None
                        items += [] if ended else [item]
                if items:
                    yield items
        finally:
            self._stop.set("the driver is gone")
            thread.join()
            log.removeHandler(handler)
            self._stop = Stop()

    def _run(self, order: Any, said: queue.SimpleQueue[Any]) -> None:
        try:
            self._work.do(order, self._stop, said.put)
        except VadcliError as error:
            said.put(error)
        except Exception as error:  # the driver reports it with the node's name
            log.debug("the work on a chunk failed", exc_info=True)
            said.put(OutputError(f"{socket.gethostname()}: {type(error).__name__}: {error}"))
        finally:
            said.put(None)


def check_node(token: Path, word: str, root: Path | None, version: str) -> str:
    """Return the reason why this node can't take part; "" if it can. If `root` is None, the footage is not checked."""
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
